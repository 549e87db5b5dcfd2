package watch

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	dto "github.com/prometheus/client_model/go"

	fulmarv1 "fulmar/messages/fulmar/v1"
	"fulmar/services/builder/credential"
)

// post sends a webhook to a handler, and gives its status and what it says.
func post(t *testing.T, h http.Handler, p provider, event, signature string, body []byte) (int, string) {
	t.Helper()
	r := httptest.NewRequestWithContext(t.Context(), http.MethodPost, "/webhook/"+p.name, bytes.NewReader(body))
	r.Header.Set("Content-Type", "application/json")
	r.Header.Set(p.event, event)
	if signature != "" {
		r.Header.Set(p.signature, signature)
	}
	w := httptest.NewRecorder()
	h.ServeHTTP(w, r)
	return w.Code, strings.TrimSpace(w.Body.String())
}

// hooked is a replica whose view of the records is fresh.
func (w *world) hooked() *Service {
	w.t.Helper()
	s := w.replica()
	w.background(s.view.Run)
	if err := s.view.CaughtUp(w.t.Context()); err != nil {
		w.t.Fatal(err)
	}
	return s
}

func TestAWebhookMakesItsWatchesLook(t *testing.T) {
	for _, p := range providers() {
		t.Run(p.name, func(t *testing.T) {
			w := newWorld(t)
			w.deploy(deployOf(gitUnit("", "ssh://git@"+strings.ToUpper(p.name)+".example:22/harbour/www", "main")))
			s := w.hooked()
			w.clock.advance(-time.Hour) // its next look is in an hour
			body := sample(t, p)
			for name, c := range map[string]struct {
				event, signature string
				body             []byte
				status           int
				says             string
			}{
				"unsigned":            {p.pushes[0], "", body, 401, p.signature + " is not"},
				"with another secret": {p.pushes[0], signed(p, "sesame", body), body, 401, p.signature + " is not"},
				"a ping":              {"ping", signed(p, "secret", body), body, 200, `nothing to do for the event "ping"`},
				"another event":       {"issues", signed(p, "secret", body), body, 200, `nothing to do for the event "issues"`},
				"no JSON":             {p.pushes[0], signed(p, "secret", []byte("{")), []byte("{"), 400, "no JSON"},
				"too large":           {p.pushes[0], "", make([]byte, maxHook+1), 413, "more than 1048576 bytes"},
				"another repository":  {p.pushes[0], signed(p, "secret", bytes.ReplaceAll(body, []byte("harbour"), []byte("cliff"))), bytes.ReplaceAll(body, []byte("harbour"), []byte("cliff")), 202, "no stack follows https://" + p.name + ".example/cliff/www"},
			} {
				if status, says := post(t, s.Handler(), p, c.event, c.signature, c.body); status != c.status || !strings.Contains(says, c.says) {
					t.Errorf("%s: %d %s; want %d %s", name, status, says, c.status, c.says)
				}
			}
			if r, _, err := w.Watches.Get(t.Context(), "web"); err != nil || r.GetAsked() != "" || !r.GetNext().AsTime().After(w.clock.Now()) {
				t.Fatalf("one of these did something: %v, %v", r, err)
			}
			for range 2 { // sent again, it does no harm
				if status, says := post(t, s.Handler(), p, p.pushes[0], signed(p, "secret", body), body); status != 202 || says != "asked for a look at the sources of web" {
					t.Errorf("a push: %d %s", status, says)
				}
			}
			r, _, err := w.Watches.Get(t.Context(), "web")
			if due, _ := Due(r, w.clock.Now()); err != nil || !due || r.GetAsked() != "webhook of "+p.title {
				t.Errorf("after a push: %v, %v", r, err)
			}
			w.wantRequests(1)
			want := map[string]float64{"unverified": 2, "ignored": 2, "bad": 2, "unknown": 1, "asked": 2}
			for result, n := range want {
				m := &dto.Metric{}
				if err := s.metrics.webhooks.WithLabelValues(p.name, result).Write(m); err != nil || m.GetCounter().GetValue() != n {
					t.Errorf("%g webhooks are %s, want %g: %v", m.GetCounter().GetValue(), result, n, err)
				}
			}
		})
	}
}

// TestAWebhookDeploysAtOnce has the endpoint at work, with nothing of the webhook believed but that there was a push.
func TestAWebhookDeploysAtOnce(t *testing.T) {
	w := newWorld(t)
	first := w.repo.push("main")
	w.built(w.deploy(w.www()), first)
	free, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	free.Close()
	s := w.replica()
	s.config.Webhooks = free.Addr().String()
	w.background(s.Run)
	w.awaitLook()
	if err := s.view.CaughtUp(t.Context()); err != nil {
		t.Fatal(err)
	}
	w.clock.advance(gap)
	second := w.repo.push("main")
	p := providers()[0]
	body := fmt.Appendf(nil, `{"ref":"refs/heads/$(reboot)","after":"%s","repository":{"clone_url":%q}}`, three, w.repo.url)
	r, err := http.NewRequestWithContext(t.Context(), http.MethodPost, "http://"+s.config.Webhooks+"/webhook/github", bytes.NewReader(body))
	if err != nil {
		t.Fatal(err)
	}
	r.Header.Set(p.event, "push")
	r.Header.Set(p.signature, signed(p, "secret", body))
	client := &http.Client{Transport: &http.Transport{DisableKeepAlives: true}}
	answer, err := client.Do(r)
	if err != nil {
		t.Fatal(err)
	}
	said, _ := io.ReadAll(answer.Body)
	answer.Body.Close()
	if answer.StatusCode != http.StatusAccepted {
		t.Fatalf("%s: %s", answer.Status, said)
	}
	w.await("the push is deployed", func(r *fulmarv1.Watch, s *fulmarv1.WatchedSource) bool {
		return r.GetGeneration() == 2 && s.GetSeen() == second
	})
	if got, want := w.wantRequests(2).GetCause(), "git+"+w.repo.url+"#main moved from "+first[:7]+" to "+second[:7]+" (webhook of GitHub)"; got != want {
		t.Errorf("the cause is %q, want %q", got, want)
	}
	for path, want := range map[string]int{"/webhook/github": 405, "/webhook/bitbucket": 404, "/": 404} {
		r, err := http.NewRequestWithContext(t.Context(), http.MethodGet, "http://"+s.config.Webhooks+path, nil)
		if err != nil {
			t.Fatal(err)
		}
		answer, err := client.Do(r)
		if err != nil {
			t.Fatal(err)
		}
		answer.Body.Close()
		if answer.StatusCode != want {
			t.Errorf("GET %s: %s", path, answer.Status)
		}
	}
}

func TestTooManyWebhooksAtOnceAreSentAway(t *testing.T) {
	w := newWorld(t)
	h := w.hooked().Handler()
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	done := make(chan int, hooksAtOnce)
	for range hooksAtOnce { // each sends the begin of a body, and then nothing
		in, out := io.Pipe()
		context.AfterFunc(ctx, func() { out.CloseWithError(ctx.Err()) })
		go func() {
			w := httptest.NewRecorder()
			h.ServeHTTP(w, httptest.NewRequestWithContext(ctx, http.MethodPost, "/webhook/gitea", in))
			done <- w.Code
		}()
		if _, err := out.Write([]byte("{")); err != nil {
			t.Fatal(err)
		}
	}
	if status, says := post(t, h, providers()[1], "push", "", nil); status != http.StatusServiceUnavailable {
		t.Errorf("%d %s", status, says)
	}
	cancel()
	for range hooksAtOnce {
		if status := <-done; status != http.StatusBadRequest {
			t.Errorf("one that was cut off is answered %d", status)
		}
	}
	if status, says := post(t, h, providers()[1], "push", "", nil); status != http.StatusUnauthorized {
		t.Errorf("afterwards: %d %s", status, says)
	}
}

func TestAWebhookWithoutASecretIsNotBelieved(t *testing.T) {
	w := newWorld(t)
	s := w.hooked()
	s.config.Secrets = func() ([]string, error) { return nil, errors.New("the disk is gone") }
	p := providers()[2]
	if status, says := post(t, s.Handler(), p, "Push Hook", "secret", sample(t, p)); status != http.StatusInternalServerError || strings.Contains(says, "disk") {
		t.Errorf("%d %s", status, says)
	}
}

func TestSecretsOfWebhooks(t *testing.T) {
	dir := t.TempDir()
	file := func(name, text string) string {
		t.Helper()
		path := filepath.Join(dir, name)
		if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
		return path
	}
	file("webhook", "password=of the credential\n")
	for name, c := range map[string]struct {
		file        string
		credentials credential.Directory
		want        []string
		err         string
	}{
		"a file":                {file("a", "one\r\n\n#two three\n"), "", []string{"one", "#two three"}, ""},
		"the credential":        {"", credential.Directory(dir), []string{"of the credential"}, ""},
		"the file goes first":   {file("b", "one"), credential.Directory(dir), []string{"one"}, ""},
		"an empty file":         {file("c", "\n\n"), "", nil, "has none"},
		"no such file":          {filepath.Join(dir, "none"), "", nil, "no such file"},
		"a large file":          {file("d", strings.Repeat("x", maxSecrets+1)), "", nil, "more than 65536 bytes"},
		"neither":               {"", "", nil, "this builder holds none"},
		"no credential webhook": {"", credential.Directory(t.TempDir()), nil, "credential webhook"},
	} {
		config, err := Flags{Interval: time.Minute, Webhooks: "127.0.0.1:0", SecretFile: c.file}.Config(c.credentials, nil)
		if c.err != "" {
			if err == nil || !strings.Contains(err.Error(), "--webhooks: ") || !strings.Contains(err.Error(), c.err) {
				t.Errorf("%s: %v, want %s", name, err, c.err)
			}
			continue
		}
		if err != nil {
			t.Errorf("%s: %v", name, err)
			continue
		}
		got, err := config.Secrets()
		if diff := cmp.Diff(c.want, got); diff != "" || err != nil {
			t.Errorf("%s: %v\n%s", name, err, diff)
		}
	}
	if _, err := (Flags{Interval: time.Minute}).Config("", nil); err != nil {
		t.Errorf("without webhooks there need be no secret: %v", err)
	}
}
