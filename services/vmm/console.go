package vmm

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"maps"
	"net"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/nats-io/nats.go"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/timestamppb"

	"fulmar/albatross"
	"fulmar/bus"
	"fulmar/messages"
	fulmarv1 "fulmar/messages/fulmar/v1"
)

// TimeHeader is the header of a console line that says when it was written, in the form of [time.RFC3339Nano].
const TimeHeader = "Fulmar-Time"

const (
	backlog     = 1024             // lines of the past that are asked for
	consoleTick = time.Millisecond // a console knows no finer time

	// An instance can write that it has exited, too. More often than this it is not looked at because it says so.
	trust = 10 * time.Second

	// From one subscription to a console to the next: it doubles while a daemon does not want more of them.
	firstRefollow = time.Second
	lastRefollow  = time.Minute
)

// follow is one console that is followed.
type follow struct {
	cancel context.CancelFunc
	origin
	passed  bool // a line was, since the last subscription
	tail    Tail
	hurried time.Time // when it last made the looks come in quick succession
}

// followAll begins to follow the consoles that are wanted and ends with those that are not.
func (w *watcher) followAll(ctx context.Context, following *sync.WaitGroup) {
	w.mu.Lock()
	defer w.mu.Unlock()
	if r := w.config.Remote; r != nil {
		w.want = youngest(w.want, cmp.Or(r.Consoles, DefaultConsoles))
	}
	for name, f := range w.follows {
		if _, wanted := w.want[name]; !wanted {
			f.cancel()
			delete(w.follows, name)
		}
	}
	for name, o := range w.want {
		if w.follows[name] != nil {
			continue
		}
		ctx, cancel := context.WithCancel(ctx)
		o.from = o.from.Truncate(consoleTick)
		f := &follow{cancel: cancel, origin: o}
		w.follows[name] = f
		following.Go(func() { w.follow(ctx, name, f) })
	}
}

// youngest gives as many of the wanted consoles as there may be: those of instances that have just gone, and then of the
// youngest generations.
func youngest(want map[string]origin, n int) map[string]origin {
	if len(want) <= n {
		return want
	}
	names := slices.SortedFunc(maps.Keys(want), func(a, b string) int {
		if gone := want[a].silent; gone != want[b].silent {
			if gone {
				return -1
			}
			return 1
		}
		_, _, older, _ := messages.ParseInstance(a)
		_, _, newer, _ := messages.ParseInstance(b)
		return cmp.Or(cmp.Compare(newer, older), cmp.Compare(a, b))
	})
	some := map[string]origin{}
	for _, name := range names[:n] {
		some[name] = want[name]
	}
	return some
}

// follow passes on the lines of a console until ctx ends. Whatever ends the subscription, there is another one.
func (w *watcher) follow(ctx context.Context, instance string, f *follow) {
	name, err := nameOf(w.path, instance)
	if err != nil {
		w.log.Error("console was not followed", "unikernel", instance, "err", err)
		return
	}
	t := time.NewTimer(0)
	defer t.Stop()
	for wait := firstRefollow; ; wait = min(2*wait, lastRefollow) {
		select {
		case <-ctx.Done():
			return
		case <-t.C:
		}
		begin := time.Now()
		err := w.client.Subscribe(ctx, name, albatross.ConsoleSubscribe{Count: backlog}, func(l albatross.ConsoleLine) error {
			return w.line(instance, f, l.ConsoleData)
		})
		if err != nil && ctx.Err() == nil {
			w.log.Debug("console was lost", "unikernel", instance, "err", err)
		}
		w.mu.Lock()
		if f.passed { // the next subscription begins with the same lines
			f.from, f.passed = f.from.Add(consoleTick), false
		}
		w.mu.Unlock()
		if time.Since(begin) > lastRefollow {
			wait = firstRefollow
		}
		t.Reset(wait)
	}
}

// line takes one line of a console. Those from before its origin were passed on by somebody else or belong to nobody any
// more; they only tell what was last.
func (w *watcher) line(instance string, f *follow, l albatross.ConsoleData) error {
	w.mu.Lock()
	tail := f.tail.add(l.Line)
	old := l.Time.Before(f.from)
	if old {
		f.tail.Line = tail.Line
	} else {
		f.tail, f.from, f.passed = tail, l.Time, true
	}
	now := time.Now()
	exited := !old && tail.Exit != "" && now.Sub(f.hurried) > trust
	if exited {
		f.hurried, w.hurry = now, now.Add(hurryTime)
	}
	w.mu.Unlock()
	if exited {
		w.again()
	}
	if old || f.silent {
		return nil
	}
	w.metrics.lines.Inc()
	return w.bus.NC.PublishMsg(&nats.Msg{
		Subject: messages.ConsoleSubject(w.config.Host, instance), Data: []byte(l.Line),
		Header: nats.Header{TimeHeader: []string{l.Time.Format(time.RFC3339Nano)}},
	})
}

// tails gives the ends of the consoles that are followed.
func (w *watcher) tails() map[string]Tail {
	w.mu.Lock()
	defer w.mu.Unlock()
	tails := map[string]Tail{}
	for name, f := range w.follows {
		tails[name] = f.tail
	}
	return tails
}

const (
	defaultLines = 100                    // of an answer about a console
	quiet        = 100 * time.Millisecond // after which a console has no more past to tell
)

// Endpoints answers what is on the console of an instance, and what instances used.
func (s *Service) Endpoints() []bus.Endpoint {
	return []bus.Endpoint{{
		Name: "stats", Subject: messages.StatsQuery(s.config.Host),
		Request: func() proto.Message { return &fulmarv1.StatsRequest{} },
		Handle: func(_ context.Context, request proto.Message) (proto.Message, error) {
			return s.stats.answer(request.(*fulmarv1.StatsRequest))
		},
	}, {
		Name: "console", Subject: messages.ConsoleQuery(s.config.Host),
		Request: func() proto.Message { return &fulmarv1.ConsoleRequest{} },
		Handle: func(ctx context.Context, request proto.Message) (proto.Message, error) {
			r := request.(*fulmarv1.ConsoleRequest)
			return s.past(ctx, r.GetInstance(), int(r.GetLines()))
		},
	}}
}

// past gives the last lines of an instance's console. The daemon does not say where they end and the new ones begin, so
// it reads until there are enough or no more come for a moment, which is longer where it takes longer to connect.
func (s *Service) past(ctx context.Context, instance string, lines int) (*fulmarv1.ConsoleReply, error) {
	if _, _, _, ok := messages.ParseInstance(instance); !ok {
		return nil, fmt.Errorf("instance %q: want STACK.UNIT.GENERATION, as web.web.42", instance)
	}
	name, err := nameOf(s.path, instance)
	if err != nil {
		return nil, err
	}
	lines = min(cmp.Or(lines, defaultLines), backlog)
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	client, moment := s.client, quiet
	timer := time.AfterFunc(moment, cancel)
	defer timer.Stop()
	if s.config.Remote != nil {
		timer.Reset(lookTime)
		client = &albatross.Client{Open: func(ctx context.Context, name albatross.Name, m albatross.Command) (net.Conn, error) {
			begin := time.Now()
			conn, err := s.client.Open(ctx, name, m)
			moment += time.Since(begin)
			timer.Reset(moment)
			return conn, err
		}}
	}
	reply := &fulmarv1.ConsoleReply{}
	err = client.Subscribe(ctx, name, albatross.ConsoleSubscribe{Count: lines}, func(l albatross.ConsoleLine) error {
		timer.Reset(moment)
		reply.Lines = append(reply.Lines, &fulmarv1.ConsoleLine{Time: timestamppb.New(l.Time), Line: strings.ToValidUTF8(l.Line, "\uFFFD")})
		if len(reply.Lines) == lines {
			return context.Canceled
		}
		return nil
	})
	if errors.Is(err, context.Canceled) {
		return reply, nil
	}
	return reply, err
}
