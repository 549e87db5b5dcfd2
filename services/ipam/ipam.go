// Package ipam gives addresses: it hears built and says leased; it hears stopped and says retired. It keeps the
// deadlines of all deployments and sweeps leases that no head explains. Its state is the bucket of leases, of which it
// holds a watched view.
//
// The invariant it guards: an address is held by one instance at a time, it was claimed before its head names it, and
// it rests before anybody else gets it.
package ipam

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"net/netip"
	"sync"
	"time"

	"github.com/nats-io/nats.go/jetstream"
	"github.com/prometheus/client_golang/prometheus"
	"golang.org/x/sync/errgroup"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/timestamppb"

	"fulmar/bus"
	"fulmar/messages"
	fulmarv1 "fulmar/messages/fulmar/v1"
)

// Config is what ipam is told.
type Config struct {
	Rest  time.Duration // of an address after its instance is gone
	Sweep time.Duration // between two sweeps
}

// Service is ipam.
type Service struct {
	bus    *bus.Bus
	config Config
	leases *bus.View[*fulmarv1.Lease]
	heads  *bus.View[*fulmarv1.Head]
	hosts  *bus.View[*fulmarv1.Host]
	tries  *bus.Tries
	now    func() time.Time

	claims *prometheus.CounterVec
}

// New makes ipam.
func New(b *bus.Bus, c Config, r prometheus.Registerer) *Service {
	s := &Service{
		bus: b, config: c, leases: b.Leases.View(), heads: b.Heads.View(), hosts: b.Hosts.View(), tries: b.Tries(), now: time.Now,
		claims: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "fulmar_ipam_claims_total", Help: "Claims of an address by their end: claimed, lost to a replica, full.",
		}, []string{"result"}),
	}
	r.MustRegister(s.claims)
	return s
}

// Run serves until ctx ends, which is no error.
func (s *Service) Run(ctx context.Context) error {
	g, ctx := errgroup.WithContext(ctx)
	g.Go(func() error { return s.leases.Run(ctx) })
	g.Go(func() error { return s.heads.Run(ctx) })
	g.Go(func() error { return s.hosts.Run(ctx) })
	g.Go(func() error { return s.tries.Run(ctx) })
	g.Go(func() error {
		return s.bus.Run(ctx, bus.Step{Name: "ipam-lease", Hears: []messages.Verb{messages.Built}, Handle: s.lease})
	})
	g.Go(func() error {
		return s.bus.Run(ctx, bus.Step{Name: "ipam-retire", Hears: []messages.Verb{messages.Stopped}, Handle: s.retire})
	})
	g.Go(func() error { return s.keepDeadlines(ctx) })
	g.Go(func() error { return s.sweepLoop(ctx) })
	return g.Wait()
}

// lease gives every unit of a built deployment its instance and address: read the head, decide in order of use, claim,
// write the head. bus publishes leased as the event's one successor. Something newer that is live or staged takes nobody's
// address: what it supersedes fails here, also when it only waits for an address that rests.
func (s *Service) lease(ctx context.Context, e *fulmarv1.Event) (messages.Verb, error) {
	d := e.GetDeployment()
	head, rev, err := s.bus.Heads.Get(ctx, d.GetStack())
	if err != nil {
		return "", err
	}
	entry := messages.Find(head, d.GetGeneration())
	switch {
	case entry == nil || entry.GetState() == fulmarv1.State_STATE_CONDEMNED:
		return "", nil // it failed meanwhile, and whoever condemned it says so
	case !entry.GetLeased() && s.now().After(entry.GetDeadline().AsTime()):
		return "", messages.ErrLate
	}
	if err := messages.Superseded(head, d.GetGeneration()); err != nil {
		return "", err
	}
	instances := entry.GetInstances()
	if !entry.GetLeased() {
		if instances, err = s.assign(ctx, head, d); err != nil {
			return "", err
		}
		next, err := messages.SetInstances(head, d.GetGeneration(), d.GetContent(), instances)
		if err != nil {
			return "", err
		}
		if err := s.bus.Heads.Put(ctx, d.GetStack(), next, rev); err != nil {
			return "", err // a conflict is tried again and finds what is written
		}
	}
	return messages.Leased, Complete(d, instances)
}

// assign gives the instances of a deployment, with what a former try claimed and new claims.
func (s *Service) assign(ctx context.Context, head *fulmarv1.Head, d *fulmarv1.Deployment) ([]*fulmarv1.Instance, error) {
	if len(d.GetUnits()) == 0 {
		return nil, nil
	}
	p, err := NewPool(d.GetNetwork())
	if err != nil {
		return nil, err
	}
	if err := s.leases.CaughtUp(ctx); err != nil { // what a former try claimed is found
		return nil, err
	}
	if err := s.hosts.CaughtUp(ctx); err != nil {
		return nil, err
	}
	return Assign(head, d, func(i *fulmarv1.Instance) (netip.Addr, error) {
		return s.claim(ctx, p, i.GetName(), d.GetDeadline().AsTime())
	})
}

// claim gives an instance an address of the pool: the one that it holds already, or a free one, claimed by its key.
func (s *Service) claim(ctx context.Context, p Pool, instance string, deadline time.Time) (netip.Addr, error) {
	caughtUp := false
	for ctx.Err() == nil {
		held := NewLeases(p.name, s.leases.All())
		if a, ok := held.HeldBy(instance); ok {
			return a, nil
		}
		running := s.running()
		a, ok := p.Pick(held, running, rand.Uint32N(p.size()), s.now())
		if !ok && !caughtUp { // the view may lag: never say full from an old one
			if err := s.leases.CaughtUp(ctx); err != nil {
				return a, err
			}
			caughtUp = true
			continue
		}
		if !ok {
			s.claims.WithLabelValues("full").Inc()
			return a, s.fullPool(p, held, deadline)
		}
		err := s.take(ctx, p, a, instance, running)
		if err == nil {
			s.claims.WithLabelValues("claimed").Inc()
			return a, nil
		}
		if !errors.Is(err, jetstream.ErrKeyRevisionMismatch) {
			return a, err
		}
		s.claims.WithLabelValues("lost").Inc()
		if err := s.leases.CaughtUp(ctx); err != nil {
			return a, err
		}
	}
	return netip.Addr{}, ctx.Err()
}

// fullPool refuses, unless an address will have rested in time.
func (s *Service) fullPool(p Pool, l Leases, deadline time.Time) error {
	reason, first := p.Full(l, s.now())
	if !first.IsZero() && first.Before(deadline) {
		return bus.Later(min(first.Sub(s.now())+time.Millisecond, moment))
	}
	return messages.Refuse(fulmarv1.ReasonCode_REASON_CODE_EXHAUSTED, "%s", reason)
}

// running tells which instances run, as every vmm saw last. Who asks about none pays for none.
func (s *Service) running() func(instance string) bool {
	hosts := s.hosts.All()
	all := sync.OnceValue(func() map[string]bool {
		running := map[string]bool{}
		for _, h := range hosts {
			for _, i := range h.GetInstances() {
				if i.GetRunning() {
					running[i.GetName()] = true
				}
			}
		}
		return running
	})
	return func(instance string) bool { return all()[instance] }
}

// take writes the lease of a free address.
func (s *Service) take(ctx context.Context, p Pool, a netip.Addr, instance string, running func(instance string) bool) error {
	key := messages.LeaseKey(p.name, a.String())
	have, rev, err := s.bus.Leases.Get(ctx, key)
	if err != nil {
		return err
	}
	if rev != 0 && !rested(have, running, s.now()) {
		return fmt.Errorf("claim %s: %w", key, jetstream.ErrKeyRevisionMismatch)
	}
	return s.bus.Leases.Put(ctx, key, &fulmarv1.Lease{Instance: instance}, rev)
}

// retire lays the addresses of stopped instances to rest, takes the deployment out of its head, and frees what it had
// claimed without ever using it.
func (s *Service) retire(ctx context.Context, e *fulmarv1.Event) (messages.Verb, error) {
	d := e.GetDeployment()
	head, _, err := s.bus.Heads.Get(ctx, d.GetStack())
	if err != nil {
		return "", err
	}
	for _, i := range d.GetDying() {
		if i.GetAddress() == "" {
			continue // an orphan that gc found on a host, whose lease is gone already
		}
		if err := s.layToRest(ctx, i.GetNetwork(), i.GetAddress(), i.GetName(), head); err != nil {
			return "", err
		}
	}
	head, err = s.bus.Heads.Edit(ctx, d.GetStack(), func(h *fulmarv1.Head) (*fulmarv1.Head, error) {
		return messages.Retire(h, d.GetGeneration())
	})
	if err != nil {
		return "", err
	}
	if err := s.leases.CaughtUp(ctx); err != nil {
		return "", err
	}
	for key, l := range s.leases.All() {
		_, _, generation, ok := messages.ParseInstance(l.GetInstance())
		if ok && generation == d.GetGeneration() {
			if err := s.sweepLease(ctx, key, l, head); err != nil {
				return "", err
			}
		}
	}
	return messages.Retired, nil
}

// layToRest lets an address rest if the instance, of the stack of the head, still holds it.
func (s *Service) layToRest(ctx context.Context, network, address, instance string, head *fulmarv1.Head) error {
	key := messages.LeaseKey(network, address)
	_, err := s.bus.Leases.Edit(ctx, key, func(l *fulmarv1.Lease) (*fulmarv1.Lease, error) {
		if l.GetInstance() != instance || l.GetRestingUntil() != nil {
			return l, nil
		}
		n := proto.CloneOf(l)
		n.RestingUntil = timestamppb.New(RestUntil(s.now(), head.GetLatestDeadline().AsTime(), s.config.Rest))
		return n, nil
	})
	return err
}
