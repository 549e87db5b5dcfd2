package monitor

import (
	"testing"

	"github.com/google/go-cmp/cmp"
	"google.golang.org/protobuf/types/known/timestamppb"

	"fulmar/bus/bustest"
	"fulmar/messages"
	fulmarv1 "fulmar/messages/fulmar/v1"
)

// keeping is a deployment that keeps the instance of unit web of another one.
func keeping(generation uint64, from *fulmarv1.Deployment) *fulmarv1.Deployment {
	d := deployment(generation, from.GetContent().GetUnits()...)
	d.Units[0].Instance = from.GetUnits()[0].GetInstance()
	return d
}

// replaced has web-42, whose instance is said to have exited, replaced by web-43, while it runs again and does not answer
// well yet.
func (w *world) replaced(a *web, first, second *fulmarv1.Deployment) {
	w.t.Helper()
	w.head(first, live)
	w.record("web.web.42", false, "exited with status 0", "")
	w.hear(messages.Exited)
	a.ill.Store(true)
	w.record("web.web.42", true, "", "")
	w.head(second, live)
	w.head(first, draining)
}

func TestWhatIsKeptAndStartedAgainRecovers(t *testing.T) {
	for name, monitors := range map[string]int{"one monitor": 1, "two monitors": 2, "one that was away meanwhile": 0} {
		t.Run(name, func(t *testing.T) {
			w, a := newWorld(t), newWeb(t)
			first := deployment(42, spec(t, "web", quick(get(a.port))))
			stop := w.monitor()
			w.replaced(a, first, keeping(43, first))
			switch monitors {
			case 0:
				stop()
				w.head(first, fulmarv1.State_STATE_CONDEMNED)
				stop = w.monitor()
			case 2:
				w.monitor()
			}
			a.ill.Store(false)
			e := w.hear(messages.Recovered)
			if e.GetDeployment().GetGeneration() != 43 || e.GetReason() != "unit web at 127.0.0.1 is healthy again" {
				t.Errorf("observed %q of %d", e.GetReason(), e.GetDeployment().GetGeneration())
			}
			stop()
			w.monitor() // which knows of it
			before := a.asked.Load()
			wait(t, "more checks", func() bool { return a.asked.Load() > before+20 })
			if n := w.count(messages.Recovered); n > uint64(max(monitors, 1)) {
				t.Errorf("recovered was said %d times", n)
			}
		})
	}
}

func TestWhatIsKeptAndIsIllAgainHasNotRecovered(t *testing.T) {
	w, a := newWorld(t), newWeb(t)
	first := deployment(42, spec(t, "web", quick(get(a.port))))
	w.monitor()
	w.replaced(a, first, keeping(43, first))
	if e := w.hear(messages.Unhealthy); e.GetDeployment().GetGeneration() != 43 {
		t.Errorf("observed %v", e.GetDeployment())
	}
	a.ill.Store(false)
	w.hear(messages.Recovered)
	w.record("web.web.42", false, "exited with status 0", "")
	w.hear(messages.Exited)
}

func TestWhatIsFreshHasNothingToRecoverFrom(t *testing.T) {
	w, a := newWorld(t), newWeb(t)
	units := spec(t, "web", quick(get(a.port)))
	w.monitor()
	w.replaced(a, deployment(42, units), deployment(43, units))
	a.ill.Store(false)
	before := a.asked.Load()
	wait(t, "more checks", func() bool { return a.asked.Load() > before+20 })
	a.ill.Store(true)
	w.hear(messages.Unhealthy) // and no recovered before it
}

func TestInherited(t *testing.T) {
	unit := spec(t, "web", tcp(80))
	mine := deployment(42, unit)
	kept, own, late := keeping(44, mine), deployment(43, unit), keeping(45, mine)
	for name, c := range map[string]struct {
		said []*fulmarv1.Deployment // of which exited was said
		want messages.Verb
	}{
		"nothing was observed":                                 {nil, ""},
		"of the deployment that made it":                       {[]*fulmarv1.Deployment{mine}, messages.Exited},
		"of another instance":                                  {[]*fulmarv1.Deployment{own}, ""},
		"of it, and later of another instance":                 {[]*fulmarv1.Deployment{mine, own}, messages.Exited},
		"of the deployment that keeps it, which is no concern": {[]*fulmarv1.Deployment{late}, ""},
		"of another that kept it":                              {[]*fulmarv1.Deployment{kept, own}, messages.Exited},
	} {
		t.Run(name, func(t *testing.T) {
			w := newWorld(t)
			for _, d := range c.said {
				if err := w.vmm.Observe(t.Context(), messages.Exited, d, "web", "it exited"); err != nil {
					t.Fatal(err)
				}
			}
			w.head(late, live)
			h, _, err := w.vmm.Heads.Get(t.Context(), "web")
			if err != nil {
				t.Fatal(err)
			}
			events, err := w.vmm.JS.Stream(t.Context(), messages.EventStream)
			if err != nil {
				t.Fatal(err)
			}
			if got, err := inherited(t.Context(), events, targets(h, host)[0]); got != c.want || err != nil {
				t.Errorf("it inherits %q, %v; want %q", got, err, c.want)
			}
		})
	}
}

func TestOlderOwners(t *testing.T) {
	subjects := map[string]uint64{}
	for _, g := range []uint64{3, 7, 8, 12, 40, 42, 43} {
		for _, verb := range []messages.Verb{messages.Exited, messages.Recovered} {
			subjects[messages.ObservationSubject("web", g, verb, host, "web")]++
		}
	}
	subjects["fulmar.event.web.x.exited.host1.web"]++
	want := []uint64{40, 12, 8, 7}
	if diff := cmp.Diff(want, olderOwners(subjects, 7, 42)); diff != "" {
		t.Error(diff)
	}
}

// TestAnEndThatIsForgottenCountsNoMore has a monitor whose view still tells how a kept unit ended that was started again.
func TestAnEndThatIsForgottenCountsNoMore(t *testing.T) {
	w, a := newWorld(t), newWeb(t)
	a.ill.Store(true)
	w.record("web.web.42", false, "exited with status 0", "")
	s, _ := w.idle()
	stop := bustest.Run(t, s.hosts.Run)
	if err := s.hosts.CaughtUp(t.Context()); err != nil {
		t.Fatal(err)
	}
	stop()
	w.record("web.web.42", true, "", "")
	e := &fulmarv1.Event{Time: timestamppb.Now(), Deployment: keeping(43, deployment(42, spec(t, "web", get(a.port))))}
	_, err := s.check(t.Context(), e)
	if _, refused := messages.AsRefusal(err); err == nil || refused {
		t.Errorf("check gives %v, want an error for another try", err)
	}
	s.trials.stop()
}
