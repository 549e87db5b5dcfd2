package monitor

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"testing"
	"time"

	"go.uber.org/goleak"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/timestamppb"

	"fulmar/bus"
	"fulmar/messages"
	fulmarv1 "fulmar/messages/fulmar/v1"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

func TestHealthyOnceAllChecksAreGood(t *testing.T) {
	w, a, b := newWorld(t), newWeb(t), newWeb(t)
	w.monitor()
	d := deployment(42, spec(t, "web", tcp(a.port), every(get(a.port), 10*time.Millisecond, 3, 3)), spec(t, "signer", get(b.port)))
	w.say(d)
	e := w.hear(messages.Healthy)
	if !proto.Equal(e.GetDeployment(), d) {
		t.Errorf("the deployment changed on its way: %v", e.GetDeployment())
	}
	if n := a.asked.Load(); n != 3 {
		t.Errorf("unit web was asked %d times, want 3", n)
	}
}

func TestADeploymentWithoutUnitsIsHealthy(t *testing.T) {
	w := newWorld(t)
	w.monitor()
	w.say(deployment(42))
	w.hear(messages.Healthy)
}

func TestAUnitMayTakeItsTime(t *testing.T) {
	w, a := newWorld(t), newWeb(t)
	a.ill.Store(true)
	w.monitor()
	w.say(deployment(42, spec(t, "web", get(a.port))))
	w.say(deployment(43, spec(t, "web", tcp(a.port)))) // not held up by the one before
	if e := w.hear(messages.Healthy); e.GetDeployment().GetGeneration() != 43 {
		t.Errorf("%v was healthy first", e.GetDeployment().GetGeneration())
	}
	a.ill.Store(false)
	w.hear(messages.Healthy)
}

func TestUnhealthyByADeadline(t *testing.T) {
	a := newWeb(t)
	a.ill.Store(true)
	for name, c := range map[string]struct {
		check    *fulmarv1.HealthCheck
		deadline time.Duration
		want     string
	}{
		"the start deadline of the check": {
			within(get(a.port), 2*time.Second), time.Minute,
			fmt.Sprintf("unit web at 127.0.0.1 was not healthy within 2s: http GET :%d/: status 503", a.port),
		},
		"the deadline of the deployment": {
			get(a.port), 3 * time.Second,
			fmt.Sprintf("unit web at 127.0.0.1 was not healthy before the deadline of the deployment: http GET :%d/: status 503", a.port),
		},
		"a start deadline after that of the deployment": {
			within(get(a.port), time.Hour), 3 * time.Second,
			fmt.Sprintf("unit web at 127.0.0.1 was not healthy before the deadline of the deployment: http GET :%d/: status 503", a.port),
		},
		"too few good checks": {
			within(every(tcp(a.port), time.Second, 3, 3), 300*time.Millisecond), time.Minute,
			fmt.Sprintf("unit web at 127.0.0.1 was not healthy within 300ms: tcp port %d: 1 of 3 good checks in a row", a.port),
		},
		"nobody listens": {
			within(tcp(1), 100*time.Millisecond), time.Minute,
			"unit web at 127.0.0.1 was not healthy within 100ms: tcp port 1: connection refused",
		},
	} {
		t.Run(name, func(t *testing.T) {
			w := newWorld(t)
			w.monitor()
			d := deployment(42, spec(t, "web", c.check))
			d.Deadline = timestamppb.New(time.Now().Add(c.deadline))
			w.say(d)
			e := w.hear(messages.Failed)
			if e.GetReason() != c.want || e.GetReasonCode() != fulmarv1.ReasonCode_REASON_CODE_UNHEALTHY {
				t.Errorf("failed with %v %q\nwant %q", e.GetReasonCode(), e.GetReason(), c.want)
			}
		})
	}
}

func TestExitBeforeHealthy(t *testing.T) {
	w := newWorld(t)
	w.monitor()
	w.say(deployment(42, spec(t, "web", tcp(unused(t)))))
	w.record("web.web.42", true, "", "")
	w.record("web.web.42", false, "exited with status 1", "no such disk")
	e := w.hear(messages.Failed)
	if want := "unit web exited with status 1 before it was healthy: no such disk"; e.GetReason() != want {
		t.Errorf("failed with %q, want %q", e.GetReason(), want)
	}
}

func TestAnExitedUnitIsNotHealthyThoughItsAddressAnswers(t *testing.T) {
	w, a := newWorld(t), newWeb(t)
	w.record("web.web.42", false, "exited with status 1", "")
	s, _ := w.idle()
	ctx, cancel := context.WithCancel(t.Context())
	var wg sync.WaitGroup
	wg.Go(func() { _ = s.hosts.Run(ctx) })
	defer wg.Wait()
	defer cancel()
	if err := s.hosts.CaughtUp(ctx); err != nil {
		t.Fatal(err)
	}
	e := &fulmarv1.Event{Time: timestamppb.Now(), Deployment: deployment(42, spec(t, "web", tcp(a.port)))}
	_, err := checked(ctx, s, e)
	if want := "unit web exited with status 1 before it was healthy"; err == nil || err.Error() != want {
		t.Errorf("check gives %v, want %q", err, want)
	}
}

// checked is check, and again for as long as it gives way to others.
func checked(ctx context.Context, s *Service, e *fulmarv1.Event) (messages.Verb, error) {
	for {
		if verb, err := s.check(ctx, e); !errors.Is(err, bus.Later(laterFew)) {
			return verb, err
		}
	}
}

func TestTheSameEventTwiceAndTwoReplicas(t *testing.T) {
	w, a := newWorld(t), newWeb(t)
	d := deployment(42, spec(t, "web", every(get(a.port), 20*time.Millisecond, 5, 3)))
	w.say(d)
	w.monitor()
	w.monitor()
	for range 2 { // beside the durable consumer, as if it had been delivered again
		s, _ := w.idle()
		e := &fulmarv1.Event{Time: timestamppb.Now(), Deployment: d}
		if verb, err := s.check(t.Context(), e); err == nil && verb != messages.Healthy {
			t.Errorf("a second delivery gives %q", verb)
		}
		s.trials.stop()
	}
	w.hear(messages.Healthy)
	w.silent()
	if n := w.count(messages.Healthy); n != 1 {
		t.Errorf("healthy was said %d times", n)
	}
}

func TestACrashBetweenTheChecksAndTheirEvent(t *testing.T) {
	w, a := newWorld(t), newWeb(t)
	d := deployment(42, spec(t, "web", get(a.port)))
	w.say(d)
	s, _ := w.idle()
	if verb, err := checked(t.Context(), s, &fulmarv1.Event{Time: timestamppb.Now(), Deployment: d}); verb != messages.Healthy || err != nil {
		t.Fatalf("check gives %q, %v", verb, err)
	}
	w.monitor() // what was found is lost, and found again
	w.hear(messages.Healthy)
	w.silent()
	if n := w.count(messages.Healthy); n != 1 {
		t.Errorf("healthy was said %d times", n)
	}
}

func TestAStopInTheMiddleOfATrialHandsItBack(t *testing.T) {
	w, a := newWorld(t), newWeb(t)
	a.ill.Store(true)
	stop := w.monitor()
	w.say(deployment(42, spec(t, "web", get(a.port))))
	wait(t, "the first check", func() bool { return a.asked.Load() > 0 })
	begin := time.Now()
	stop()
	if took := time.Since(begin); took > 3*time.Second {
		t.Errorf("the monitor took %s to stop", took)
	}
	if n := w.count(messages.Failed); n != 0 {
		t.Fatal("a monitor that stopped failed the deployment")
	}
	a.ill.Store(false)
	w.monitor()
	w.hear(messages.Healthy)
}

func TestAfterTheDeadlineNothingIsSaid(t *testing.T) {
	w, a := newWorld(t), newWeb(t)
	s, _ := w.idle()
	d := deployment(42, spec(t, "web", get(a.port)))
	d.Deadline = timestamppb.New(time.Now().Add(-time.Millisecond))
	_, err := s.check(t.Context(), &fulmarv1.Event{Time: timestamppb.Now(), Deployment: d})
	if _, refused := messages.AsRefusal(err); err == nil || refused {
		t.Errorf("check gives %v, want an error for another try", err)
	}
	if n := a.asked.Load(); n != 0 {
		t.Errorf("it was probed %d times", n)
	}
}

func TestWhatATrialFoundWrongIsSaidAfterTheDeadline(t *testing.T) {
	w := newWorld(t)
	wrong := errors.New("status 503")
	for name, c := range map[string]struct{ found, want error }{
		"what it found wrong":       {wrong, wrong},
		"not that it found nothing": {nil, messages.ErrLate},
	} {
		t.Run(name, func(t *testing.T) {
			s, _ := w.idle()
			d := deployment(42)
			d.Deadline = timestamppb.New(time.Now().Add(-time.Millisecond))
			<-s.trials.begin(t.Context(), "web", 42, func(context.Context) error { return c.found }).done
			if verb, err := checked(t.Context(), s, &fulmarv1.Event{Time: timestamppb.Now(), Deployment: d}); verb != "" || !errors.Is(err, c.want) {
				t.Errorf("check gives %q, %v; want %v", verb, err, c.want)
			}
		})
	}
}
