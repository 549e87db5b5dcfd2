package gc

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"
	"time"

	"google.golang.org/protobuf/proto"

	"fulmar/bus"
	"fulmar/messages"
	fulmarv1 "fulmar/messages/fulmar/v1"
)

// sweeps sweeps at once and then periodically, until ctx ends.
func (s *Service) sweeps(ctx context.Context) error {
	t := time.NewTicker(s.config.Sweep)
	defer t.Stop()
	for {
		begin := time.Now()
		_, err := s.sweep(ctx)
		if ctx.Err() != nil {
			return nil
		}
		s.metrics.sweep.Observe(time.Since(begin).Seconds())
		if err != nil {
			s.metrics.failures.Inc()
			s.log.Error("sweep was incomplete", "err", err)
		}
		select {
		case <-ctx.Done():
			return nil
		case <-t.C:
		}
	}
}

// Item is one thing that a sweep does, waits with, or reports.
type Item struct {
	Subject string // a deployment, as web-42, or an instance, as web.web.42
	Action
}

// sweep does for every stack what the events would have asked for, and then drains orphans. It gives what it did. An
// error keeps it from one deployment or instance, not from the next.
func (s *Service) sweep(ctx context.Context) ([]Item, error) {
	heads, bad, err := s.bus.Heads.Readable(ctx)
	if err != nil {
		return nil, err
	}
	s.forget(heads)
	items := leftAlone(bad)
	var errs []error
	for _, stack := range slices.Sorted(maps.Keys(heads)) {
		for _, d := range heads[stack].GetDeployments() {
			if restful(d) {
				continue
			}
			done, err := s.lower(ctx, stack, d.GetGeneration())
			items, errs = append(items, done...), append(errs, err)
		}
	}
	strays, err := s.strays(ctx)
	errs = append(errs, err)
	for _, stray := range strays {
		if stray.action.Do == Drain {
			if err := s.drainOrphan(ctx, stray); err != nil {
				errs = append(errs, err)
				continue
			}
		}
		items = append(items, Item{stray.instance, stray.action})
	}
	s.report(strays, bad)
	return items, errors.Join(errs...)
}

// leftAlone gives the stacks whose heads cannot be read.
func leftAlone(bad []*bus.UnreadableError) []Item {
	var items []Item
	for _, u := range bad {
		items = append(items, Item{u.Key, Action{Do: Report, Why: "the stack is left alone: " + u.Error()}})
	}
	return items
}

// restful reports whether gc has nothing to do with a deployment in its state.
func restful(d *fulmarv1.HeadDeployment) bool {
	return d.GetState() == fulmarv1.State_STATE_LIVE || d.GetState() == fulmarv1.State_STATE_STAGED
}

// forget drops what is remembered of drains that are over.
func (s *Service) forget(heads map[string]*fulmarv1.Head) {
	s.polls.forget(func(drain string) bool {
		stack, generation, err := messages.ParseDeployment(drain)
		return err != nil || messages.Find(heads[stack], generation).GetState() != fulmarv1.State_STATE_DRAINING
	})
}

// stray is an instance that runs and that its head does not explain.
type stray struct {
	instance string
	last     *fulmarv1.Event
	sequence uint64
	action   Action
}

// strays compares what runs, as vmm wrote it down, with the heads: first the host, then the heads, so that a head that
// does not know an instance proves something.
func (s *Service) strays(ctx context.Context) ([]stray, error) {
	host, _, err := s.bus.Hosts.Get(ctx, s.config.Host)
	if err != nil {
		return nil, err
	}
	heads, bad, err := s.bus.Heads.Readable(ctx)
	if err != nil {
		return nil, err
	}
	unread := map[string]bool{}
	for _, u := range bad {
		unread[u.Key] = true
	}
	var strays []stray
	for _, i := range host.GetInstances() {
		if !i.GetRunning() {
			continue
		}
		st := stray{instance: i.GetName()}
		stack, _, generation, ok := messages.ParseInstance(i.GetName())
		if ok && unread[stack] {
			strays = append(strays, stray{instance: i.GetName(), action: Action{Do: Report, Why: fmt.Sprintf("the head of stack %s cannot be read", stack)}})
			continue
		}
		if ok && messages.Orphan(heads[stack], i.GetName()) {
			if st.last, st.sequence, err = s.bus.Last(ctx, stack, generation); err != nil {
				return strays, err
			}
		}
		if st.action = Explain(heads[stack], i.GetName(), messages.Verb(st.last.GetVerb())); st.action.Do != Nothing {
			strays = append(strays, st)
		}
	}
	return strays, nil
}

// drainOrphan says drained for an instance that belongs to nobody, on the chain of the generation that made it.
func (s *Service) drainOrphan(ctx context.Context, st stray) error {
	stack, unit, generation, _ := messages.ParseInstance(st.instance)
	dying := &fulmarv1.Instance{Unit: unit, Name: st.instance}
	leases, bad, err := s.bus.Leases.Readable(ctx)
	if err != nil {
		return err
	}
	for key, lease := range leases {
		if lease.GetInstance() == st.instance {
			dying.Network, dying.Address, _ = messages.ParseLeaseKey(key)
		}
	}
	if dying.GetAddress() == "" && len(bad) > 0 {
		return fmt.Errorf("drain orphan %s, whose address may be that of a lease: %w", st.instance, bad[0])
	}
	d := deploymentOf(st.last, stack, generation)
	d.Dying = []*fulmarv1.Instance{dying}
	if d.GetNetwork().GetHost() != s.config.Host {
		d.Network = &fulmarv1.Network{Name: dying.GetNetwork(), Host: s.config.Host}
	}
	err = s.bus.Say(ctx, &fulmarv1.Event{Verb: string(messages.Drained), Deployment: d}, st.sequence)
	if errors.Is(err, bus.ErrMoved) {
		return nil // whoever moved it is seen by the next sweep
	}
	if err == nil {
		s.metrics.orphans.Inc()
		s.log.Warn("orphan was drained", "unikernel", st.instance, "deployment", messages.DeploymentName(stack, generation))
	}
	return err
}

// report tells, once, of what nobody can explain, and of stacks whose heads cannot be read.
func (s *Service) report(strays []stray, bad []*bus.UnreadableError) {
	now := map[string]bool{}
	s.mu.Lock()
	defer s.mu.Unlock()
	unexplained := 0
	for _, st := range strays {
		if st.action.Do != Report {
			continue
		}
		unexplained++
		now[st.instance] = true
		if !s.reported[st.instance] {
			s.log.Error("unikernel was not explained and is left alone", "unikernel", st.instance, "why", st.action.Why)
		}
	}
	for _, u := range bad {
		now[u.Key] = true
		if !s.reported[u.Key] {
			s.log.Error("head was unreadable and its stack is left alone", "stack", u.Key, "err", u)
		}
	}
	s.reported = now
	s.metrics.unexplained.Set(float64(unexplained))
}

// Plan gives what a sweep would do now and why, without doing it.
func (s *Service) Plan(ctx context.Context) ([]Item, error) {
	heads, bad, err := s.bus.Heads.Readable(ctx)
	if err != nil {
		return nil, err
	}
	items := leftAlone(bad)
	for _, stack := range slices.Sorted(maps.Keys(heads)) {
		for _, d := range heads[stack].GetDeployments() {
			if restful(d) {
				continue
			}
			l, err := s.look(ctx, stack, d.GetGeneration())
			if err != nil {
				return nil, err
			}
			if l.action.Do != Nothing {
				items = append(items, Item{l.name(), l.action})
			}
		}
	}
	strays, err := s.strays(ctx)
	for _, st := range strays {
		items = append(items, Item{st.instance, st.action})
	}
	return items, err
}

// Endpoints answers what a sweep would do, and sweeps on request.
func (s *Service) Endpoints() []bus.Endpoint {
	return []bus.Endpoint{{
		Name: "sweep", Subject: messages.SweepQuery(s.config.Host),
		Request: func() proto.Message { return &fulmarv1.SweepRequest{} },
		Handle: func(ctx context.Context, request proto.Message) (proto.Message, error) {
			run := s.sweep
			if request.(*fulmarv1.SweepRequest).GetDryRun() {
				run = s.Plan
			}
			items, err := run(ctx)
			if err != nil {
				return nil, err
			}
			reply := &fulmarv1.SweepReply{}
			for _, i := range items {
				reply.Items = append(reply.Items, &fulmarv1.SweepItem{Subject: i.Subject, Action: i.Do.String(), Reason: i.Why})
			}
			return reply, nil
		},
	}}
}
