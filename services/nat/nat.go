// Package nat publishes: it leads the ports of the host to the instances of what is live, and moves them to a new
// generation by one switch, without a gap and without a mixture.
//
// It hears healthy and says published or staged. A deployment that something newer has overtaken, or one of whose ports
// another stack holds, fails before anything changes. It also hears stopped, and then deletes what the connection table
// still has of the instances that ended.
//
// Its state is in the heads alone: what is live, staged, draining or condemned there says which rules the kernel should
// have, and the kernel follows, at every switch, at start, after every change of the firewall by somebody else, and in a
// sweep. It acts alone in its network namespace; a second one there waits as a standby until the first is gone.
//
// The invariant: the kernel never leads clients to anything but what the head of a stack has, or has lately had, as live,
// and never back to an older generation; the head changes first, and then the kernel, by one commit for all ports.
package nat

import (
	"cmp"
	"context"
	"errors"
	"log/slog"
	"net/netip"
	"sync"
	"sync/atomic"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"golang.org/x/sync/errgroup"

	"fulmar/bus"
	"fulmar/firewall"
	"fulmar/messages"
	fulmarv1 "fulmar/messages/fulmar/v1"
)

// lateDelay is when a deployment that is too late is looked at again; ipam has failed it by then.
const lateDelay = time.Second

// Service is nat on one host.
type Service struct {
	bus      *bus.Bus
	host     string
	log      *slog.Logger
	metrics  metrics
	kernel   *firewall.Kernel
	heads    *bus.View[*fulmarv1.Head]
	networks *bus.View[*fulmarv1.Network]

	changed chan struct{} // holds a token when somebody else changed the firewall
	waiting atomic.Int32  // switches that wait for their turn or take it

	turn   sync.Mutex // held by whoever changes rules; guards what follows
	rules  rules
	pinned map[int]bool // bridges whose address does not change, by index: one that is made anew has a new one
}

// FirewallFlags are the flags of every command that has a nat in it.
type FirewallFlags struct {
	FirewallBackend firewall.Backend `env:"NAT_FIREWALL_BACKEND" enum:"iptables,nftables" default:"iptables" help:"What published ports are written with: iptables, or nftables, with which a switch takes as long beside 1,000 stacks as beside one."`
}

// Config says which host nat publishes for and how.
type Config struct {
	Host string // its name
	FirewallFlags
}

// New makes nat for a host. It fails if the host has no iptables.
func New(b *bus.Bus, c Config, reg prometheus.Registerer) (*Service, error) {
	if err := messages.CheckName("host", c.Host); err != nil {
		return nil, err
	}
	kernel, err := firewall.NewKernel(cmp.Or(c.FirewallBackend, firewall.IPTables))
	if err != nil {
		return nil, err
	}
	return &Service{
		bus: b, host: c.Host, log: b.Log, metrics: newMetrics(reg), kernel: kernel,
		heads: b.Heads.ViewBy(messages.HeldPorts), networks: b.Networks.View(),
		changed: make(chan struct{}, 1), pinned: map[int]bool{},
	}, nil
}

// Run waits until it is alone in the network namespace, makes the kernel follow the heads, and then publishes until ctx
// ends, which is no error.
func (s *Service) Run(ctx context.Context) error {
	alone, err := waitAlone(ctx, lockName, s.log)
	if err != nil || alone == nil {
		return err
	}
	defer alone.Close() // after everything that acts has ended
	defer s.kernel.Close()
	g, within := errgroup.WithContext(ctx)
	s.act(within, g)
	if err := g.Wait(); ctx.Err() == nil {
		return err
	}
	return nil
}

// act starts everything that makes nat act.
func (s *Service) act(ctx context.Context, g *errgroup.Group) {
	g.Go(func() error { return s.heads.Run(ctx) })
	g.Go(func() error { return s.networks.Run(ctx) })
	listening, followed := make(chan struct{}), make(chan struct{})
	g.Go(func() error { return firewall.Watch(ctx, func() { close(listening) }, s.foreign) })
	g.Go(func() error {
		if !wait(ctx, listening) {
			return nil
		}
		return s.follow(ctx, func() { close(followed) })
	})
	g.Go(func() error {
		if !wait(ctx, followed) {
			return nil
		}
		return s.bus.Run(ctx, bus.Step{
			Name: "nat-" + s.host, Hears: []messages.Verb{messages.Healthy}, Host: s.host, Handle: s.publish,
		})
	})
	g.Go(func() error {
		if !wait(ctx, followed) {
			return nil
		}
		return s.bus.Watch(ctx, bus.Step{
			Name: "nat-stopped-" + s.host, Hears: []messages.Verb{messages.Stopped}, Host: s.host, Handle: s.stopped,
		})
	})
}

// wait waits until ready is closed, and reports false if ctx ends before.
func wait(ctx context.Context, ready <-chan struct{}) bool {
	select {
	case <-ready:
		return true
	case <-ctx.Done():
		return false
	}
}

// publish makes a healthy deployment live or staged: look at everybody's ports, change the head, and then switch.
func (s *Service) publish(ctx context.Context, e *fulmarv1.Event) (messages.Verb, error) {
	d := e.GetDeployment()
	s.waiting.Add(1)
	defer s.waiting.Add(-1)
	s.turn.Lock()
	defer s.turn.Unlock()

	head, err := s.claim(ctx, d)
	switch {
	case errors.Is(err, messages.ErrGone): // who condemned it has said why
		return "", nil
	case errors.Is(err, messages.ErrLate): // ipam keeps the deadlines
		return "", bus.Later(lateDelay)
	case err != nil:
		return "", err
	}
	if err := s.lead(ctx, head); err != nil {
		return "", err
	}
	e.Unchanged = unchanged(head, d)
	if d.GetStaged() {
		return messages.Staged, nil
	}
	return messages.Published, nil
}

// claim makes the deployment live or staged in its head, unless another stack holds one of its ports or its records make
// no rules. No other nat of this host can change that in between.
func (s *Service) claim(ctx context.Context, d *fulmarv1.Deployment) (*fulmarv1.Head, error) {
	if err := s.heads.CaughtUp(ctx); err != nil {
		return nil, err
	}
	heads := s.heads.Having(messages.Ports(d.GetContent())...)
	return s.bus.Heads.Edit(ctx, d.GetStack(), func(h *fulmarv1.Head) (*fulmarv1.Head, error) {
		next, err := messages.Publish(h, d.GetGeneration(), time.Now())
		if err != nil || next == h {
			return next, err
		}
		pub, err := publication(d.GetStack(), messages.Find(next, d.GetGeneration()))
		if err != nil {
			return nil, messages.Refuse(fulmarv1.ReasonCode_REASON_CODE_INVALID, "%w", err)
		}
		if err := messages.CheckPorts(heads, d.GetStack(), s.host, d.GetContent()); err != nil {
			return nil, err
		}
		return next, s.checkListeners(added(h, pub))
	})
}

// checkListeners refuses ports that a process of the host listens on.
func (s *Service) checkListeners(ports []firewall.Port) error {
	if len(ports) == 0 {
		return nil
	}
	all, err := listeners()
	if err != nil {
		return err
	}
	first, last, err := ephemeral()
	if err != nil {
		return err
	}
	if l, found := taken(ports, all, first, last); found {
		return messages.Refuse(fulmarv1.ReasonCode_REASON_CODE_CONFLICT, "port %d/%s of host %s is taken by a process of the host, which listens on %s",
			l.addr.Port(), l.protocol, s.host, l.addr)
	}
	return nil
}

// lead leads clients to what is live in a head.
func (s *Service) lead(ctx context.Context, head *fulmarv1.Head) error {
	d := messages.InState(head, fulmarv1.State_STATE_LIVE)
	if d == nil || d.GetHost() != s.host {
		return nil
	}
	pub, err := publication(head.GetStack(), d)
	if err != nil {
		return err
	}
	return s.show(ctx, pub)
}

// stopped deletes what the connection table has of instances that ended, unless their address has a new holder.
func (s *Service) stopped(ctx context.Context, e *fulmarv1.Event) (messages.Verb, error) {
	if err := s.heads.CaughtUp(ctx); err != nil {
		return "", err
	}
	heads := s.heads.All()
	var addrs []netip.Addr
	for _, i := range e.GetDeployment().GetDying() {
		addr, err := netip.ParseAddr(i.GetAddress())
		if err != nil || held(heads, i) {
			continue
		}
		addrs = append(addrs, addr)
	}
	return "", forget(addrs)
}
