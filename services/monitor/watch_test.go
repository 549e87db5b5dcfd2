package monitor

import (
	"fmt"
	"testing"
	"time"

	"fulmar/bus/bustest"
	"fulmar/messages"
	fulmarv1 "fulmar/messages/fulmar/v1"
)

const (
	live     = fulmarv1.State_STATE_LIVE
	staged   = fulmarv1.State_STATE_STAGED
	draining = fulmarv1.State_STATE_DRAINING
)

// quick is a check that soon finds what changes: 2 good or 3 bad ones in a row, 10 ms apart.
func quick(c *fulmarv1.HealthCheck) *fulmarv1.HealthCheck { return every(c, 10*time.Millisecond, 2, 3) }

func TestUnhealthyAndRecovered(t *testing.T) {
	w, a := newWorld(t), newWeb(t)
	w.head(deployment(42, spec(t, "web", quick(get(a.port)))), live)
	w.monitor()
	for range 2 {
		wait(t, "a check", func() bool { return a.asked.Load() > 5 })
		a.ill.Store(true)
		e := w.hear(messages.Unhealthy)
		want := fmt.Sprintf("unit web at 127.0.0.1 failed 3 checks in a row: http GET :%d/: status 503", a.port)
		if e.GetReason() != want || e.GetUnit() != "web" || e.GetDeployment().GetGeneration() != 42 {
			t.Errorf("observed %q of unit %q of %v, want %q", e.GetReason(), e.GetUnit(), e.GetDeployment().GetGeneration(), want)
		}
		a.ill.Store(false)
		if e := w.hear(messages.Recovered); e.GetReason() != "unit web at 127.0.0.1 is healthy again" {
			t.Errorf("observed %q", e.GetReason())
		}
	}
	if n := a.conns.Load(); n != 1 {
		t.Errorf("the checks took %d connections, want one that is kept", n)
	}
}

func TestTwoMonitorsSayAChangeOnce(t *testing.T) {
	w, a := newWorld(t), newWeb(t)
	w.head(deployment(42, spec(t, "web", quick(get(a.port)))), live)
	w.monitor()
	wait(t, "a check", func() bool { return a.asked.Load() > 5 })
	a.ill.Store(true)
	w.hear(messages.Unhealthy)
	w.monitor()
	before := a.asked.Load()
	wait(t, "more checks", func() bool { return a.asked.Load() > before+20 })
	w.silent()
	if n := w.count(messages.Unhealthy); n != 1 {
		t.Errorf("unhealthy was said %d times", n)
	}
}

func TestWhatAnotherMonitorSaidIsNotSaidAgain(t *testing.T) {
	w, a := newWorld(t), newWeb(t)
	d := deployment(42, spec(t, "web", quick(get(a.port))))
	w.head(d, live)
	w.monitor()
	wait(t, "checks", func() bool { return a.asked.Load() > 5 })
	if err := w.vmm.Observe(t.Context(), messages.Unhealthy, d, "web", "seen by another one"); err != nil {
		t.Fatal(err)
	}
	w.hear(messages.Unhealthy)
	a.ill.Store(true)
	before := a.asked.Load()
	wait(t, "bad checks", func() bool { return a.asked.Load() > before+10 })
	a.ill.Store(false)
	w.hear(messages.Recovered) // and no second unhealthy before it
}

func TestARestartKnowsWhatWasSaid(t *testing.T) {
	w, a := newWorld(t), newWeb(t)
	w.head(deployment(42, spec(t, "web", quick(get(a.port)))), live)
	stop := w.monitor()
	a.ill.Store(true)
	w.hear(messages.Unhealthy)
	stop()
	stop = w.monitor()
	before := a.asked.Load()
	wait(t, "more checks", func() bool { return a.asked.Load() > before+10 })
	stop()
	a.ill.Store(false)
	w.monitor()
	w.hear(messages.Recovered) // and no second unhealthy before it
}

func TestExited(t *testing.T) {
	w, a := newWorld(t), newWeb(t)
	w.head(deployment(42, spec(t, "web", every(get(a.port), time.Hour, 1, 3))), live) // no check finds it
	w.record("web.web.42", true, "", "")
	w.monitor()
	w.record("web.web.42", false, "exited with status 2", "uncaught exception")
	if e := w.hear(messages.Exited); e.GetReason() != "unit web at 127.0.0.1 exited with status 2: uncaught exception" {
		t.Errorf("observed %q", e.GetReason())
	}
}

func TestStartedAgain(t *testing.T) {
	w, a := newWorld(t), newWeb(t)
	w.head(deployment(42, spec(t, "web", quick(get(a.port)))), live)
	w.record("web.web.42", false, "exited with status 2", "")
	w.monitor()
	w.hear(messages.Exited)
	w.record("web.web.42", true, "", "")
	w.hear(messages.Recovered)
}

// restarted writes an instance that runs, and was started again so often, into the record of the host.
func (w *world) restarted(instance string, restarts uint32) {
	w.t.Helper()
	_, err := w.vmm.Hosts.Edit(w.t.Context(), host, func(*fulmarv1.Host) (*fulmarv1.Host, error) {
		return &fulmarv1.Host{Name: host, Instances: []*fulmarv1.HostInstance{{Name: instance, Running: true, Restarts: restarts}}}, nil
	})
	if err != nil {
		w.t.Fatal(err)
	}
}

// TestAnEndThatWasTooShortToBeSeen shows only by the restart that vmm counted.
func TestAnEndThatWasTooShortToBeSeen(t *testing.T) {
	w, a := newWorld(t), newWeb(t)
	w.head(deployment(42, spec(t, "web", quick(get(a.port)))), live)
	w.record("web.web.42", true, "", "")
	w.monitor()
	wait(t, "checks", func() bool { return a.asked.Load() > 5 })
	w.restarted("web.web.42", 1)
	if e := w.hear(messages.Exited); e.GetReason() != "unit web at 127.0.0.1 exited and was started again" {
		t.Errorf("observed %q", e.GetReason())
	}
	w.hear(messages.Recovered)
	w.restarted("web.web.42", 1) // seen anew, and the same
	before := a.asked.Load()
	wait(t, "more checks", func() bool { return a.asked.Load() > before+5 })
	if n := w.count(messages.Exited); n != 1 {
		t.Errorf("exited was said %d times", n)
	}
}

func TestARestartKnowsWhatExited(t *testing.T) {
	w, a := newWorld(t), newWeb(t)
	w.head(deployment(42, spec(t, "web", quick(get(a.port)))), live)
	w.record("web.web.42", false, "exited with status 2", "")
	stop := w.monitor()
	w.hear(messages.Exited)
	stop()
	stop = w.monitor()
	w.silent()
	stop()
	w.record("web.web.42", true, "", "")
	w.monitor()
	w.hear(messages.Recovered) // and no second exited before it
}

func TestWhatIsNotLiveOrStagedIsNotWatched(t *testing.T) {
	w, a, b := newWorld(t), newWeb(t), newWeb(t)
	first := deployment(42, spec(t, "web", quick(get(a.port))))
	second := deployment(43, spec(t, "web", quick(get(b.port))))
	w.head(first, live)
	w.head(second, staged)
	w.monitor()
	wait(t, "checks of both", func() bool { return a.asked.Load() > 3 && b.asked.Load() > 3 })
	w.head(first, draining)
	var last int64
	wait(t, "the end of the first one's checks", func() bool {
		seen := b.asked.Load()
		before := a.asked.Load()
		wait(t, "checks of the second", func() bool { return b.asked.Load() > seen+5 })
		last = a.asked.Load()
		return last == before
	})
	a.ill.Store(true)
	b.ill.Store(true)
	if e := w.hear(messages.Unhealthy); e.GetDeployment().GetGeneration() != 43 {
		t.Errorf("observed %d", e.GetDeployment().GetGeneration())
	}
}

func TestAKeptInstanceTakesTheNewChecks(t *testing.T) {
	w, a, b := newWorld(t), newWeb(t), newWeb(t)
	first := deployment(42, spec(t, "web", quick(get(a.port))))
	second := deployment(43, spec(t, "web", quick(get(b.port))))
	second.Units[0].Instance = first.GetUnits()[0].GetInstance()
	second.Units[0].Kept = true
	w.head(first, live)
	w.monitor()
	a.ill.Store(true)
	w.hear(messages.Unhealthy)
	w.head(first, draining)
	w.head(second, live) // published means healthy: its watch begins anew
	if e := w.hear(messages.Recovered); e.GetDeployment().GetGeneration() != 43 {
		t.Errorf("observed %v", e.GetDeployment())
	}
	wait(t, "the new checks", func() bool { return b.asked.Load() > 10 })
	b.ill.Store(true)
	if e := w.hear(messages.Unhealthy); e.GetDeployment().GetGeneration() != 43 || e.GetDeployment().GetUnits()[0].GetInstance().GetName() != "web.web.42" {
		t.Errorf("observed %v", e.GetDeployment())
	}
}

func TestNothingIsSaidOnceTheWatchHasEnded(t *testing.T) {
	for name, after := range map[string]func(*world, *fulmarv1.Deployment, *watcher){
		"a check still ran when the watch ended": func(_ *world, _ *fulmarv1.Deployment, n *watcher) { n.end() },
		"the watch has not yet seen its head":    func(w *world, d *fulmarv1.Deployment, _ *watcher) { w.head(d, draining) },
	} {
		t.Run(name, func(t *testing.T) {
			w := newWorld(t)
			s, _ := w.idle()
			d := deployment(42, spec(t, "web", tcp(80)))
			w.head(d, live)
			h, _, err := w.vmm.Heads.Get(t.Context(), "web")
			if err != nil {
				t.Fatal(err)
			}
			events, err := w.vmm.JS.Stream(t.Context(), messages.EventStream)
			if err != nil {
				t.Fatal(err)
			}
			n := &watcher{service: s, events: events, target: targets(h, host)[0]}
			n.see(&fulmarv1.HostInstance{Name: "web.web.42"}) // it was stopped
			after(w, d, n)
			n.settle(t.Context())
			if n := w.count(messages.Exited); n != 0 {
				t.Errorf("exited was said %d times", n)
			}
		})
	}
}

func TestMetrics(t *testing.T) {
	w, a := newWorld(t), newWeb(t)
	w.head(deployment(42, spec(t, "web", quick(get(a.port)))), live)
	s, reg := w.idle()
	stop := bustest.Run(t, s.Run)
	a.ill.Store(true)
	w.hear(messages.Unhealthy)
	gauge := func(name string) float64 {
		all, err := reg.Gather()
		if err != nil {
			t.Fatal(err)
		}
		for _, m := range all {
			if m.GetName() == name {
				return m.GetMetric()[0].GetGauge().GetValue() + m.GetMetric()[0].GetCounter().GetValue()
			}
		}
		return -1
	}
	wait(t, "the gauges", func() bool { return gauge("fulmar_monitor_unhealthy") == 1 && gauge("fulmar_monitor_watched") == 1 })
	if gauge("fulmar_monitor_checks_total") < 3 {
		t.Errorf("%v checks were counted", gauge("fulmar_monitor_checks_total"))
	}
	stop()
	if n := gauge("fulmar_monitor_unhealthy"); n != 0 {
		t.Errorf("%v instances are unhealthy that nobody watches", n)
	}
}
