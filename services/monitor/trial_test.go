package monitor

import (
	"context"
	"errors"
	"testing"
	"testing/synctest"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/prometheus/client_golang/prometheus"

	fulmarv1 "fulmar/messages/fulmar/v1"
)

// script is a unit that answers by a script: g good, r refused, and after its end nothing.
type script struct {
	answers  string
	asked    []time.Duration // since it began
	patience []time.Duration
	begin    time.Time
}

func (s *script) ask(ctx context.Context, patience, timeout time.Duration) error {
	s.asked = append(s.asked, time.Since(s.begin))
	s.patience = append(s.patience, patience)
	if n := len(s.asked); n <= len(s.answers) {
		if s.answers[n-1] == 'g' {
			return nil
		}
		return errors.New("refused")
	}
	if err := sleep(ctx, min(patience, timeout)); err != nil {
		return err
	}
	return errNoAnswer
}

func (s *script) close() {}

func TestProve(t *testing.T) {
	for name, c := range map[string]struct {
		answers   string
		successes int
		start     time.Duration
		want      string
		asked     []time.Duration // at first
		silent    int
	}{
		"good at once": {
			answers: "g", successes: 1, asked: []time.Duration{0},
		},
		"good ones in a row are an interval apart": {
			answers: "ggg", successes: 3, asked: []time.Duration{0, 1000, 2000},
		},
		"a bad one in between begins a new row, soon": {
			answers: "grgg", successes: 2, asked: []time.Duration{0, 1000, 1001, 2001},
		},
		"while it is not ready it is asked ever less often": {
			answers: "rrrrrrrrrg", successes: 1, asked: []time.Duration{0, 1, 3, 7, 15, 31, 63, 113, 163, 213},
		},
		"in time": {
			answers: "rrrr", successes: 1, start: 10 * time.Millisecond, want: "unit web at 10.0.0.7 was not healthy within 10ms: probe: refused",
			asked: []time.Duration{0, 1, 3, 7},
		},
		"a last try that is cut short does not hide what was wrong": {
			answers: "rr", successes: 1, start: 20 * time.Millisecond, want: "unit web at 10.0.0.7 was not healthy within 20ms: probe: refused",
			asked: []time.Duration{0, 1, 3, 12}, silent: 2,
		},
		"no sign of life": {
			successes: 1, start: 40 * time.Millisecond, want: "unit web at 10.0.0.7 was not healthy within 40ms: probe: no answer",
			asked: []time.Duration{0, 6, 18}, silent: 3,
		},
		"too few in a row": {
			answers: "gg", successes: 3, start: 1500 * time.Millisecond, want: "unit web at 10.0.0.7 was not healthy within 1.5s: probe: 2 of 3 good checks in a row",
			asked: []time.Duration{0, 1000},
		},
		"too late it is asked once": {
			answers: "g", successes: 1, start: time.Nanosecond, asked: []time.Duration{0},
		},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				p := &script{answers: c.answers, begin: time.Now()}
				checks := &check{
					what: "probe", probe: p, interval: time.Second, timeout: time.Second, successes: c.successes, startDeadline: c.start,
					good: prometheus.NewCounter(prometheus.CounterOpts{}), bad: prometheus.NewCounter(prometheus.CounterOpts{}),
				}
				silent := 0
				err := newCandidate("web", "10.0.0.7", checks, p.begin, p.begin.Add(time.Minute), func() { silent++ }).prove(t.Context())
				got := ""
				if err != nil {
					got = err.Error()
				}
				for i := range p.asked {
					p.asked[i] /= time.Millisecond
				}
				if got != c.want || silent != c.silent {
					t.Errorf("says %q, want %q; %d times silent, want %d", got, c.want, silent, c.silent)
				}
				if diff := cmp.Diff(c.asked, p.asked); diff != "" {
					t.Error(diff)
				}
			})
		})
	}
}

func TestPatienceGrows(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		p := &script{begin: time.Now()}
		c := &check{
			probe: p, timeout: 30 * time.Millisecond, successes: 1, startDeadline: 150 * time.Millisecond,
			good: prometheus.NewCounter(prometheus.CounterOpts{}), bad: prometheus.NewCounter(prometheus.CounterOpts{}),
		}
		if err := newCandidate("web", "10.0.0.7", c, p.begin, p.begin.Add(time.Minute), func() {}).prove(t.Context()); err == nil {
			t.Error("it was healthy")
		}
		for i := range p.patience {
			p.patience[i] /= time.Millisecond
		}
		if diff := cmp.Diff([]time.Duration{5, 10, 20, 30, 30, 24}, p.patience); diff != "" {
			t.Error(diff)
		}
	})
}

func TestTurn(t *testing.T) {
	for name, c := range map[string]struct {
		waiting     int
		hold, again time.Duration
	}{
		"a few are held until they are healthy": {few, holdFew, laterFew},
		"many give way to others":               {few + 1, holdCrowd, laterCrowd},
	} {
		t.Run(name, func(t *testing.T) {
			if hold, again := turn(c.waiting); hold != c.hold || again != c.again {
				t.Errorf("holds %s and asks again after %s, want %s and %s", hold, again, c.hold, c.again)
			}
		})
	}
}

func TestPrune(t *testing.T) {
	head := func(newest uint64, generation uint64, state fulmarv1.State) *fulmarv1.Head {
		h := &fulmarv1.Head{Stack: "web", Newest: newest}
		if generation > 0 {
			h.Deployments = []*fulmarv1.HeadDeployment{{Generation: generation, State: state}}
		}
		return h
	}
	other := head(42, 0, 0)
	other.Stack = "mail"
	for name, c := range map[string]struct {
		head *fulmarv1.Head
		keep bool
	}{
		"it is underway":                      {head(42, 42, fulmarv1.State_STATE_UNDERWAY), true},
		"it is condemned":                     {head(42, 42, fulmarv1.State_STATE_CONDEMNED), false},
		"another monitor got it published":    {head(42, 42, fulmarv1.State_STATE_LIVE), false},
		"it is gone":                          {head(43, 43, fulmarv1.State_STATE_LIVE), false},
		"the head does not know of it so far": {head(41, 41, fulmarv1.State_STATE_LIVE), true},
		"the head of another stack":           {other, true},
	} {
		t.Run(name, func(t *testing.T) {
			all := newTrials()
			defer all.stop()
			n := all.begin(t.Context(), "web", 42, func(ctx context.Context) error {
				<-ctx.Done()
				return ctx.Err()
			})
			if again := all.begin(t.Context(), "web", 42, nil); again != n {
				t.Error("a second delivery began a second trial")
			}
			all.prune(c.head)
			if kept := all.len() == 1; kept != c.keep {
				t.Errorf("kept: %v, want %v", kept, c.keep)
			}
			if !c.keep {
				<-n.done
				if !errors.Is(n.err, context.Canceled) {
					t.Errorf("it ended with %v", n.err)
				}
			}
		})
	}
}
