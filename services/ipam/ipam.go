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
	now    func() time.Time

	claims *prometheus.CounterVec
}

// New makes ipam.
func New(b *bus.Bus, c Config, r prometheus.Registerer) *Service {
	s := &Service{
		bus: b, config: c, leases: b.Leases.View(), heads: b.Heads.View(), hosts: b.Hosts.View(), now: time.Now,
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
// write the head. bus publishes leased as the event's one successor.
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
	return messages.Leased, complete(d, instances)
}

// assign gives the instances of a deployment, in the order of its units: kept ones first looked for, then what a
// former try claimed, then new claims.
func (s *Service) assign(ctx context.Context, head *fulmarv1.Head, d *fulmarv1.Deployment) ([]*fulmarv1.Instance, error) {
	if len(d.GetUnits()) == 0 {
		return nil, nil
	}
	p, err := newPool(d.GetNetwork())
	if err != nil {
		return nil, err
	}
	order, err := messages.ContentOrder(d.GetContent())
	if err != nil {
		return nil, messages.Refuse(fulmarv1.ReasonCode_REASON_CODE_INVALID, "%w", err)
	}
	var keepable []*fulmarv1.Instance
	if d.GetKind() != fulmarv1.Kind_KIND_RENEW {
		keepable = messages.Keepable(head, d.GetGeneration())
	}
	if err := s.leases.CaughtUp(ctx); err != nil { // what a former try claimed is found
		return nil, err
	}
	assigned := map[string]*fulmarv1.Instance{}
	for _, name := range order {
		spec, unit := find(d, name)
		at := messages.NewAddress(d.GetStack(), name, netip.Addr{}, p.prefix, d.GetNetwork().GetGateway())
		sum, err := digest(spec, unit, d.GetNetwork(), at, addressIn(assigned))
		if err != nil {
			return nil, err
		}
		if i := kept(keepable, name, sum); i != nil {
			assigned[name] = i
			continue
		}
		i := &fulmarv1.Instance{Unit: name, Name: messages.InstanceName(d.GetStack(), name, d.GetGeneration()), Network: p.name, Digest: sum}
		a, err := s.claim(ctx, p, i.GetName(), d.GetDeadline().AsTime())
		if err != nil {
			return nil, err
		}
		i.Address = a.String()
		assigned[name] = i
	}
	var instances []*fulmarv1.Instance
	for _, u := range d.GetContent().GetUnits() {
		instances = append(instances, assigned[u.GetName()])
	}
	return instances, nil
}

// claim gives an instance an address of the pool: the one that it holds already, or a free one, claimed by its key.
func (s *Service) claim(ctx context.Context, p pool, instance string, deadline time.Time) (netip.Addr, error) {
	caughtUp := false
	for ctx.Err() == nil {
		held := poolLeases(p.name, s.leases.All())
		if a, ok := held.heldBy(instance); ok {
			return a, nil
		}
		a, ok := p.pick(held, rand.Uint32N(p.size()), s.now())
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
		err := s.take(ctx, p, a, instance)
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
func (s *Service) fullPool(p pool, l leases, deadline time.Time) error {
	reason, first := p.full(l, s.now())
	if !first.IsZero() && first.Before(deadline) {
		return bus.Later(min(first.Sub(s.now())+time.Millisecond, time.Second))
	}
	return messages.Refuse(fulmarv1.ReasonCode_REASON_CODE_EXHAUSTED, "%s", reason)
}

// take writes the lease of a free address.
func (s *Service) take(ctx context.Context, p pool, a netip.Addr, instance string) error {
	key := messages.LeaseKey(p.name, a.String())
	have, rev, err := s.bus.Leases.Get(ctx, key)
	if err != nil {
		return err
	}
	if rev != 0 && (have.GetRestingUntil() == nil || s.now().Before(have.GetRestingUntil().AsTime())) {
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
		n.RestingUntil = timestamppb.New(restUntil(s.now(), head.GetLatestDeadline().AsTime(), s.config.Rest))
		return n, nil
	})
	return err
}

// complete adds the facts of the lease to a deployment.
func complete(d *fulmarv1.Deployment, instances []*fulmarv1.Instance) error {
	byUnit := map[string]*fulmarv1.Instance{}
	for _, i := range instances {
		byUnit[i.GetUnit()] = i
	}
	for _, u := range d.GetUnits() {
		spec, _ := find(d, u.GetName())
		i := byUnit[u.GetName()]
		u.Instance = i
		_, _, generation, _ := messages.ParseInstance(i.GetName())
		u.Kept = generation != d.GetGeneration()
		p, err := newPool(d.GetNetwork())
		if err != nil {
			return err
		}
		a, err := netip.ParseAddr(i.GetAddress())
		if err != nil {
			return fmt.Errorf("instance %s: %w", i.GetName(), err)
		}
		at := messages.NewAddress(d.GetStack(), u.GetName(), a, p.prefix, d.GetNetwork().GetGateway())
		if u.Args, err = messages.RenderArgs(spec.GetArgs(), at, addressIn(byUnit)); err != nil {
			return messages.Refuse(fulmarv1.ReasonCode_REASON_CODE_INVALID, "unit %s: %w", u.GetName(), err)
		}
	}
	return nil
}

func addressIn(instances map[string]*fulmarv1.Instance) func(string) (string, error) {
	return func(unit string) (string, error) {
		i, ok := instances[unit]
		if !ok {
			return "", fmt.Errorf("unit %q has no address", unit)
		}
		return i.GetAddress(), nil
	}
}

// find gives the spec and the facts of a unit.
func find(d *fulmarv1.Deployment, name string) (spec *fulmarv1.UnitSpec, unit *fulmarv1.Unit) {
	for _, s := range d.GetContent().GetUnits() {
		if s.GetName() == name {
			spec = s
		}
	}
	for _, u := range d.GetUnits() {
		if u.GetName() == name {
			unit = u
		}
	}
	return spec, unit
}

// poolLeases gives the leases of one network by address.
func poolLeases(network string, all map[string]*fulmarv1.Lease) leases {
	l := leases{}
	for key, r := range all {
		n, address, ok := messages.ParseLeaseKey(key)
		if a, err := netip.ParseAddr(address); ok && err == nil && n == network {
			l[a] = r
		}
	}
	return l
}
