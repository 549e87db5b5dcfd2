// Package monitor says whether the units of a host are well.
//
// It hears started, probes every unit of the deployment with the checks of its content, and says healthy once each
// check was good as many times in a row as asked for. A unit that is not healthy in time, or that exited, fails the
// deployment; so does a newer one that is live or staged, to which it gives way at once. What is live or staged is probed
// for as long as it is; changes are said as observations: unhealthy, recovered, exited.
//
// Its state is in memory and can be lost at any time. A check before publication begins anew with the next delivery of
// its event; a watch after publication begins with what the last observation in the log says, and looks there again
// before it says anything, so neither a restart nor a second monitor repeats an observation. (Two monitors of one host
// that see a change within the same millisecond may both say it.) An instance that was ill when an older deployment had
// it has recovered for the one that keeps it.
//
// The invariant it guards: healthy is said only of a deployment each of whose checks was good in a row, with the checks
// of that very generation, while none of its instances was known to have exited.
package monitor

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"golang.org/x/sync/errgroup"

	"fulmar/bus"
	"fulmar/messages"
	fulmarv1 "fulmar/messages/fulmar/v1"
)

// Config says which host is monitored.
type Config struct {
	Host string
}

// Service checks what starts on a host and watches what is live or staged on it. It runs once.
type Service struct {
	bus       *bus.Bus
	host      string
	heads     *bus.View[*fulmarv1.Head]
	hosts     *bus.View[*fulmarv1.Host]
	trials    *trials
	pinger    *pinger
	neighbors *neighbors
	metrics   *metrics
}

// New makes the monitor of a host.
func New(b *bus.Bus, c Config, reg prometheus.Registerer) (*Service, error) {
	if err := messages.CheckName("host", c.Host); err != nil {
		return nil, err
	}
	return &Service{
		bus: b, host: c.Host, heads: b.Heads.View(), hosts: b.Hosts.View(),
		trials: newTrials(), pinger: newPinger(), neighbors: newNeighbors(), metrics: newMetrics(reg),
	}, nil
}

// Run monitors the host until ctx ends, which is no error.
func (s *Service) Run(ctx context.Context) error {
	events, err := s.bus.JS.Stream(ctx, messages.EventStream)
	if err != nil {
		return fmt.Errorf("open stream %s: %w", messages.EventStream, err)
	}
	if err := s.pinger.open(); err != nil {
		s.bus.Log.Warn("icmp was not permitted", "err", err)
	}
	if err := s.neighbors.open(); err != nil {
		s.bus.Log.Warn("arp was not permitted", "err", err)
	}
	defer s.neighbors.close()
	defer s.trials.stop()
	g, ctx := errgroup.WithContext(ctx)
	g.Go(func() error { return s.pinger.run(ctx) })
	g.Go(func() error { return s.heads.Run(ctx) })
	g.Go(func() error { return s.hosts.Run(ctx) })
	g.Go(func() error { return newWatch(s, events).run(ctx) })
	g.Go(func() error {
		return s.bus.Run(ctx, bus.Step{Name: "monitor-check-" + s.host, Hears: []messages.Verb{messages.Started}, Host: s.host, Handle: s.check})
	})
	return g.Wait()
}

// check says healthy of a started deployment once its trial is passed. A trial goes on between deliveries: one that
// takes long gives its place in the bus to others and is asked again. None begins after the deadline, but what one has
// found wrong is said then, too: ipam can only say that the time is over.
func (s *Service) check(ctx context.Context, e *fulmarv1.Event) (messages.Verb, error) {
	d := e.GetDeployment()
	late := lateness(d)
	t := s.trials.find(d.GetStack(), d.GetGeneration())
	if t == nil {
		if late != nil {
			return "", late
		}
		t = s.trials.begin(ctx, d.GetStack(), d.GetGeneration(), func(ctx context.Context) error { return s.try(ctx, e) })
	}
	hold, again := turn(s.trials.len())
	timer := time.NewTimer(hold)
	defer timer.Stop()
	select {
	case <-t.done:
	case <-timer.C:
		return "", bus.Later(again)
	case <-ctx.Done():
		return "", ctx.Err()
	}
	s.trials.forget(t)
	switch {
	case errors.Is(t.err, context.Canceled):
		return "", bus.Later(again) // the head says that nobody waits for it
	case t.err != nil:
		return "", t.err
	case late != nil:
		return "", late
	}
	s.metrics.trial.Observe(time.Since(e.GetTime().AsTime()).Seconds())
	return messages.Healthy, nil
}

// lateness is an error after the deadline of a deployment, which ipam fails then.
func lateness(d *fulmarv1.Deployment) error {
	if !time.Now().After(d.GetDeadline().AsTime()) {
		return nil
	}
	return fmt.Errorf("check %s: %w", messages.DeploymentName(d.GetStack(), d.GetGeneration()), messages.ErrLate)
}

// try probes all units of a deployment, each check for itself, until all are healthy or one cannot be any more.
func (s *Service) try(ctx context.Context, e *fulmarv1.Event) error {
	d := e.GetDeployment()
	candidates, err := s.candidates(e)
	if err != nil {
		return err
	}
	g, ctx := errgroup.WithContext(ctx)
	running, finished := context.WithCancel(ctx)
	g.Go(func() error {
		defer finished()
		checks, ctx := errgroup.WithContext(ctx)
		for _, c := range candidates {
			checks.Go(func() error { return c.prove(ctx) })
		}
		return checks.Wait()
	})
	g.Go(func() error { return s.untilExit(ctx, running.Done(), d) })
	g.Go(func() error { return s.untilSuperseded(running, d) })
	return g.Wait()
}

func (s *Service) candidates(e *fulmarv1.Event) ([]candidate, error) {
	d := e.GetDeployment()
	var all []candidate
	for _, spec := range d.GetContent().GetUnits() {
		instance := instanceOf(d, spec.GetName())
		checks, err := s.newChecks(spec.GetHealth(), instance.GetAddress())
		if err != nil {
			return nil, messages.Refuse(fulmarv1.ReasonCode_REASON_CODE_INVALID, "unit %s: %w", spec.GetName(), err)
		}
		for _, c := range checks {
			all = append(all, newCandidate(spec.GetName(), instance.GetAddress(), c, e.GetTime().AsTime(), d.GetDeadline().AsTime(), func() {
				s.nudge(instance.GetAddress())
			}))
		}
	}
	return all, nil
}

// nudge makes the kernel look again for a unit that does not answer.
func (s *Service) nudge(address string) {
	addr, err := netip.ParseAddr(address)
	if err == nil {
		err = s.neighbors.ask(addr)
	}
	if err != nil {
		s.bus.Log.Debug("arp was not sent", "addr", address, "err", err)
	}
}

// untilExit ends with a refusal when an instance of the deployment exited, and with nothing once the checks are finished.
// A kept instance that had exited is started again, and vmm writes that down before it says started: so an end counts
// only if the record still tells of it when all that was written is known.
func (s *Service) untilExit(ctx context.Context, finished <-chan struct{}, d *fulmarv1.Deployment) error {
	for {
		changed := s.hosts.Changed()
		if exitedEarly(s.hosts.All()[s.host], d) != nil {
			if err := s.hosts.CaughtUp(ctx); err != nil {
				return err
			}
			if err := exitedEarly(s.hosts.All()[s.host], d); err != nil {
				return err
			}
		}
		select {
		case <-changed:
		case <-finished:
			return nil
		}
	}
}

// untilSuperseded ends with a refusal when something newer of the stack is live or staged, and with nothing when ctx ends.
func (s *Service) untilSuperseded(ctx context.Context, d *fulmarv1.Deployment) error {
	for {
		changed := s.heads.Changed()
		if err := messages.Superseded(s.heads.Get(d.GetStack()), d.GetGeneration()); err != nil {
			return err
		}
		select {
		case <-changed:
		case <-ctx.Done():
			return nil
		}
	}
}
