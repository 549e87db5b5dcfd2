package watch

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"slices"
	"strings"
	"time"

	fulmarv1 "fulmar/messages/fulmar/v1"
)

const (
	maxHook      = 1 << 20 // bytes of a webhook; a push that is told with more is found by the next look
	hooksAtOnce  = 16      // bodies in memory at once
	hookTimeout  = 15 * time.Second
	hookShutdown = 5 * time.Second
)

// serve answers webhooks until ctx ends, which is no error.
func (s *Service) serve(ctx context.Context) error {
	l, err := (&net.ListenConfig{}).Listen(ctx, "tcp", s.config.Webhooks)
	if err != nil {
		return fmt.Errorf("listen for webhooks: %w", err)
	}
	server := &http.Server{
		Handler: s.Handler(), MaxHeaderBytes: 16 << 10,
		ReadHeaderTimeout: hookTimeout / 3, ReadTimeout: hookTimeout, WriteTimeout: 2 * hookTimeout, IdleTimeout: 4 * hookTimeout,
	}
	stopped := make(chan error, 1)
	stop := context.AfterFunc(ctx, func() {
		grace, cancel := context.WithTimeout(context.WithoutCancel(ctx), hookShutdown)
		defer cancel()
		stopped <- server.Shutdown(grace)
	})
	if err := server.Serve(l); !errors.Is(err, http.ErrServerClosed) {
		stop()
		return fmt.Errorf("serve webhooks: %w", err)
	}
	if err := <-stopped; err != nil { // who is too slow is cut off
		return server.Close()
	}
	return nil
}

// Handler answers POST /webhook/github, /webhook/gitlab and /webhook/gitea. A verified push makes the watches of its
// repository look at once, and that is all that it does: nothing else of it is believed, so a webhook that somebody sends
// again does no harm.
func (s *Service) Handler() http.Handler {
	slots := make(chan struct{}, hooksAtOnce)
	mux := http.NewServeMux()
	for _, p := range providers() {
		mux.HandleFunc("POST /webhook/"+p.name, func(w http.ResponseWriter, r *http.Request) {
			select {
			case slots <- struct{}{}:
				defer func() { <-slots }()
			default:
				w.Header().Set("Retry-After", "1")
				s.reply(w, p, http.StatusServiceUnavailable, "busy", "too many webhooks at once")
				return
			}
			s.hook(w, r, p)
		})
	}
	return mux
}

func (s *Service) reply(w http.ResponseWriter, p provider, status int, result, text string) {
	s.metrics.webhooks.WithLabelValues(p.name, result).Inc()
	w.Header().Set("Content-Type", "text/plain; charset=utf-8")
	w.WriteHeader(status)
	_, _ = io.WriteString(w, text+"\n") // who asked may be gone
}

// hook answers one webhook.
func (s *Service) hook(w http.ResponseWriter, r *http.Request, p provider) {
	body, err := io.ReadAll(http.MaxBytesReader(w, r.Body, maxHook))
	if err != nil {
		status, text := http.StatusBadRequest, "the body cannot be read"
		if _, large := errors.AsType[*http.MaxBytesError](err); large {
			status, text = http.StatusRequestEntityTooLarge, fmt.Sprintf("the body has more than %d bytes", maxHook)
		}
		s.reply(w, p, status, "bad", text)
		return
	}
	secrets, err := s.config.Secrets()
	if err != nil {
		s.bus.Log.Error("secret of webhooks was not read", "err", err)
		s.reply(w, p, http.StatusInternalServerError, "failed", "the secret of the webhooks cannot be read here")
		return
	}
	if !p.authentic(r.Header, body, secrets) {
		s.reply(w, p, http.StatusUnauthorized, "unverified", p.unverified)
		return
	}
	event := limited(r.Header.Get(p.event), 64)
	if !slices.Contains(p.pushes, event) {
		s.reply(w, p, http.StatusOK, "ignored", fmt.Sprintf("nothing to do for the event %q", event))
		return
	}
	urls, err := repositories(r.Header.Get("Content-Type"), body)
	if err != nil {
		s.reply(w, p, http.StatusBadRequest, "bad", err.Error())
		return
	}
	stacks, err := s.wake(r.Context(), urls, "webhook of "+p.title)
	switch {
	case err != nil:
		s.bus.Log.Error("look was not asked for", "err", err)
		s.reply(w, p, http.StatusInternalServerError, "failed", "the bus does not answer")
	case len(stacks) == 0:
		s.reply(w, p, http.StatusAccepted, "unknown", "no stack follows "+limited(strings.Join(urls, " or "), 400))
	default:
		s.reply(w, p, http.StatusAccepted, "asked", "asked for a look at the sources of "+strings.Join(stacks, ", "))
	}
}

// wake asks for a look at the stacks that follow a repository under any of its URLs, and gives them.
func (s *Service) wake(ctx context.Context, urls []string, who string) ([]string, error) {
	pushed := map[string]bool{}
	for _, u := range urls {
		pushed[repository(u)] = true
	}
	delete(pushed, "")
	var stacks []string
	for stack, w := range s.view.All() {
		if !follows(w, pushed) {
			continue
		}
		_, err := s.bus.Watches.Edit(ctx, stack, func(w *fulmarv1.Watch) (*fulmarv1.Watch, error) {
			if !Following(w) {
				return w, nil
			}
			return Ask(w, who, s.config.Clock.Now()), nil
		})
		if err != nil {
			return nil, err
		}
		stacks = append(stacks, stack)
	}
	slices.Sort(stacks)
	return stacks, nil
}

// follows reports whether a watch follows one of the repositories.
func follows(w *fulmarv1.Watch, repositories map[string]bool) bool {
	return slices.ContainsFunc(w.GetRequest().GetUnits(), func(u *fulmarv1.UnitSpec) bool {
		g := u.GetImage().GetGit()
		return g != nil && repositories[repository(g.GetUrl())]
	})
}
