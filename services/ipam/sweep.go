package ipam

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/nats-io/nats.go/jetstream"

	"fulmar/bus"
	"fulmar/messages"
	fulmarv1 "fulmar/messages/fulmar/v1"
)

// keepDeadlines condemns every deployment that is underway when its deadline passes, and says failed for it.
func (s *Service) keepDeadlines(ctx context.Context) error {
	if err := s.heads.CaughtUp(ctx); err != nil {
		return ignoreEnd(ctx, err)
	}
	for {
		changed := s.heads.Changed()
		next := s.now().Add(s.config.Sweep)
		for _, h := range s.heads.All() {
			for _, d := range h.GetDeployments() {
				underway := d.GetState() == fulmarv1.State_STATE_UNDERWAY // most are not, and this runs at each change of any
				switch {
				case underway && d.GetDeadline().AsTime().After(s.now()):
					if due := d.GetDeadline().AsTime(); due.Before(next) {
						next = due
					}
				case underway, d.GetState() == fulmarv1.State_STATE_CONDEMNED && d.GetExpired() != "":
					if err := s.expire(ctx, h.GetStack(), d.GetGeneration()); err != nil {
						s.bus.Log.Warn("deadline was not kept yet", "deployment", messages.DeploymentName(h.GetStack(), d.GetGeneration()), "err", err)
						next = s.now().Add(bus.RetryDelay(8))
					}
				}
			}
		}
		timer := time.NewTimer(max(next.Sub(s.now()), time.Millisecond))
		select {
		case <-ctx.Done():
			timer.Stop()
			return nil
		case <-changed:
		case <-timer.C:
		}
		timer.Stop()
	}
}

// expire condemns a deployment whose deadline is past; failed names the step it waited for, and why that did not come. It can run again at any
// point: what is condemned already is only said.
func (s *Service) expire(ctx context.Context, stack string, generation uint64) error {
	last, _, err := s.bus.Last(ctx, stack, generation)
	if err != nil {
		return err
	}
	head, err := s.bus.Heads.Edit(ctx, stack, func(h *fulmarv1.Head) (*fulmarv1.Head, error) {
		reason := waited(last, messages.Find(h, generation).GetDeadline().AsTime(), s.tries.Last(stack, generation, messages.Verb(last.GetVerb())))
		return messages.Expire(h, generation, s.now(), reason)
	})
	if errors.Is(err, messages.ErrEarly) || errors.Is(err, messages.ErrGone) {
		return nil // it arrived in time, or somebody else was first
	}
	if err != nil {
		return err
	}
	for ctx.Err() == nil {
		last, seq, err := s.bus.Last(ctx, stack, generation)
		if err != nil {
			return err
		}
		e, due := Failed(last, head, generation)
		if !due {
			return nil
		}
		if err := s.bus.Say(ctx, e, seq); !errors.Is(err, bus.ErrMoved) {
			return err
		}
	}
	return ctx.Err()
}

// Failed gives what to say of a deployment that its head condemned because of its deadline, as the successor of its last
// event. Nothing is due when that is said, or the deployment was condemned for another reason. Of one whose events are
// lost, or that was entered and never accepted, the head says enough.
func Failed(last *fulmarv1.Event, h *fulmarv1.Head, generation uint64) (e *fulmarv1.Event, due bool) {
	entry := messages.Find(h, generation)
	if entry.GetExpired() == "" || last != nil && messages.Verb(last.GetVerb()).Awaited() == "" {
		return nil, false
	}
	d := last.GetDeployment()
	if d == nil {
		d = &fulmarv1.Deployment{
			Stack: h.GetStack(), Generation: generation, Content: entry.GetContent(), Staged: entry.GetStaged(), Deadline: entry.GetDeadline(),
			Network: &fulmarv1.Network{Name: entry.GetContent().GetNetwork(), Host: entry.GetHost()},
		}
	}
	return &fulmarv1.Event{
		Verb: string(messages.Failed), Deployment: d, Reason: entry.GetExpired(), ReasonCode: fulmarv1.ReasonCode_REASON_CODE_DEADLINE,
	}, true
}

// sweepLoop lays leases to rest that no head explains, and deletes those that have rested long since.
func (s *Service) sweepLoop(ctx context.Context) error {
	ticker := time.NewTicker(s.config.Sweep)
	defer ticker.Stop()
	for {
		if err := s.sweep(ctx); err != nil && ctx.Err() == nil {
			s.bus.Log.Warn("sweep was incomplete", "err", err)
		}
		heads := s.heads.All()
		s.tries.Forget(func(stack string, generation uint64) bool {
			return messages.Find(heads[stack], generation).GetState() == fulmarv1.State_STATE_UNDERWAY
		})
		select {
		case <-ctx.Done():
			return nil
		case <-ticker.C:
		}
	}
}

// sweep goes through the leases once. An error keeps it from one lease, or from those of the stack whose head cannot be read, and not from the next.
func (s *Service) sweep(ctx context.Context) error {
	if err := s.leases.CaughtUp(ctx); err != nil {
		return err
	}
	if err := s.hosts.CaughtUp(ctx); err != nil {
		return err
	}
	running := s.running()
	unread := map[string]bool{} // stacks
	var errs []error
	for key, l := range s.leases.All() {
		if spent(l, running, s.now()) {
			errs = append(errs, s.forget(ctx, key))
			continue
		}
		stack, _, _, ok := messages.ParseInstance(l.GetInstance())
		if !ok || l.GetRestingUntil() != nil || unread[stack] {
			continue
		}
		head, _, err := s.bus.Heads.Get(ctx, stack) // after the lease was seen
		if err != nil {
			unread[stack] = true
			errs = append(errs, err)
			continue
		}
		if running(l.GetInstance()) && messages.Orphan(head, l.GetInstance()) {
			continue // the instance goes first
		}
		errs = append(errs, s.sweepLease(ctx, key, l, head))
	}
	return errors.Join(errs...)
}

// forget deletes the lease of an address that has rested long since, unless somebody claims it meanwhile.
func (s *Service) forget(ctx context.Context, key string) error {
	l, rev, err := s.bus.Leases.Get(ctx, key)
	if err != nil || rev == 0 || !spent(l, s.running(), s.now()) {
		return err
	}
	err = s.bus.Leases.Delete(ctx, key, rev)
	if errors.Is(err, jetstream.ErrKeyRevisionMismatch) {
		return nil
	}
	return err
}

// sweepLease lays a lease to rest if the head, read after the lease, proves that it is nobody's.
func (s *Service) sweepLease(ctx context.Context, key string, l *fulmarv1.Lease, head *fulmarv1.Head) error {
	network, address, ok := messages.ParseLeaseKey(key)
	if !ok {
		return fmt.Errorf("lease %q has no network in its key", key)
	}
	if l.GetRestingUntil() != nil || !messages.OrphanLease(head, l.GetInstance(), network, address) {
		return nil
	}
	s.bus.Log.Info("lease was swept", "network", network, "addr", address, "unikernel", l.GetInstance())
	return s.layToRest(ctx, network, address, l.GetInstance(), head)
}

func ignoreEnd(ctx context.Context, err error) error {
	if ctx.Err() != nil {
		return nil
	}
	return err
}
