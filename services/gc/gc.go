// Package gc lets what was replaced or has failed go. There is one of it on every host.
//
// It hears published, staged and failed, and once in a while it sweeps, so nothing rests on how long an event is kept. It
// says drained, with the instances that no other deployment refers to, which vmm then stops; and failed for a deployment
// that was condemned because of its deadline, if nobody has said so yet. It keeps nothing but, in memory, since when a
// drain has been without connections. It decides and others act: it changes neither kernel nor host, and needs
// CAP_NET_ADMIN only to read.
//
// The invariant it guards: an instance dies only after its deployment is condemned in the head, and a deployment that was
// published is condemned only after the kernel leads nobody to it any more and its connections have ended or its drain
// time has; and only what a head proves to be an orphan is swept.
package gc

import (
	"context"
	"errors"
	"log/slog"
	"net/netip"
	"slices"
	"sync"
	"time"

	"github.com/nats-io/nats.go/jetstream"
	"github.com/prometheus/client_golang/prometheus"
	"golang.org/x/sync/errgroup"
	"google.golang.org/protobuf/proto"

	"fulmar/bus"
	"fulmar/conntrack"
	"fulmar/firewall"
	"fulmar/messages"
	fulmarv1 "fulmar/messages/fulmar/v1"
)

// DefaultSweep is the time between two sweeps unless a configuration names another.
const DefaultSweep = 10 * time.Second

// Config says what gc looks after.
type Config struct {
	Host  string        // whose deployments
	Sweep time.Duration // between two sweeps; 0 means DefaultSweep
}

// Service is gc of one host.
type Service struct {
	bus     *bus.Bus
	log     *slog.Logger
	config  Config
	metrics metrics

	polls polls

	mu       sync.Mutex
	reported map[string]bool // instances that nobody can explain and stacks that cannot be read, that a person was told of
}

// New makes gc of a host. It starts nothing.
func New(b *bus.Bus, c Config, reg prometheus.Registerer) (*Service, error) {
	if err := messages.CheckName("host", c.Host); err != nil {
		return nil, err
	}
	if c.Sweep <= 0 {
		c.Sweep = DefaultSweep
	}
	return &Service{
		bus: b, log: b.Log, config: c, metrics: newMetrics(reg),
		polls: polls{last: map[string]poll{}}, reported: map[string]bool{},
	}, nil
}

// Run hears and sweeps until ctx ends, which is no error.
func (s *Service) Run(ctx context.Context) error {
	g, ctx := errgroup.WithContext(ctx)
	g.Go(func() error {
		return s.bus.Watch(ctx, bus.Step{
			Name: "gc-" + s.config.Host, Hears: []messages.Verb{messages.Published, messages.Staged, messages.Failed},
			Host: s.config.Host, Handle: s.handle,
		})
	})
	g.Go(func() error { return s.sweeps(ctx) })
	return g.Wait()
}

// handle brings the deployments that an event concerns as far down as they may go now, and asks to be called again while
// one of them drains.
func (s *Service) handle(ctx context.Context, e *fulmarv1.Event) (messages.Verb, error) {
	stack := e.GetDeployment().GetStack()
	head, _, err := s.bus.Heads.Get(ctx, stack)
	if err != nil {
		return "", err
	}
	var after time.Duration
	for _, generation := range Concerned(head, messages.Verb(e.GetVerb()), e.GetDeployment().GetGeneration()) {
		done, err := s.lower(ctx, stack, generation)
		if err != nil {
			return "", err
		}
		for _, item := range done {
			if item.Do == Wait && (after == 0 || item.After < after) {
				after = item.After
			}
		}
	}
	if after > 0 {
		return "", bus.Later(after)
	}
	return "", nil
}

// lower takes a deployment down step by step until nothing is to be done, or not yet, and gives what it did and what it
// waits for.
func (s *Service) lower(ctx context.Context, stack string, generation uint64) ([]Item, error) {
	var done []Item
	for {
		l, err := s.look(ctx, stack, generation)
		if err != nil {
			return done, err
		}
		switch l.action.Do {
		case Condemn:
			err = s.condemn(ctx, l)
		case Fail, Drain:
			err = s.say(ctx, l)
		case Wait:
			return append(done, Item{Subject: l.name(), Action: l.action}), nil
		default:
			return done, nil
		}
		switch {
		case err == nil:
			done = append(done, Item{Subject: l.name(), Action: l.action})
		case errors.Is(err, jetstream.ErrKeyRevisionMismatch), errors.Is(err, bus.ErrMoved):
			// Somebody else did something: what is next shows by another look.
		default:
			return done, err
		}
	}
}

// looked is one look at a deployment.
type looked struct {
	head     *fulmarv1.Head
	revision uint64
	entry    *fulmarv1.HeadDeployment // nil: it is not there, or not on this host
	dying    []*fulmarv1.Instance
	last     *fulmarv1.Event
	sequence uint64
	action   Action
}

func (l looked) name() string {
	return messages.DeploymentName(l.head.GetStack(), l.entry.GetGeneration())
}

// look reads the head, then what its state makes worth knowing, and decides.
func (s *Service) look(ctx context.Context, stack string, generation uint64) (looked, error) {
	var l looked
	var err error
	if l.head, l.revision, err = s.bus.Heads.Get(ctx, stack); err != nil {
		return l, err
	}
	l.entry = messages.Find(l.head, generation)
	if l.entry == nil || l.entry.GetHost() != s.config.Host {
		return l, nil
	}
	l.dying = messages.Dying(l.head, generation)
	facts := Facts{Dying: len(l.dying)}
	if l.last, l.sequence, err = s.bus.Last(ctx, stack, generation); err != nil {
		return l, err
	}
	facts.Last = messages.Verb(l.last.GetVerb())
	if l.entry.GetState() == fulmarv1.State_STATE_DRAINING {
		if err := s.lookAtKernel(ctx, l, &facts); err != nil {
			return l, err
		}
	}
	l.action = Next(l.entry, facts, time.Now())
	return l, nil
}

// publicationOf is what a deployment publishes, without where to.
func publicationOf(stack string, d *fulmarv1.HeadDeployment) firewall.Publication {
	p := firewall.Publication{Stack: stack, Generation: d.GetGeneration()}
	for _, unit := range d.GetContent().GetUnits() {
		for _, port := range unit.GetPorts() {
			p.Ports = append(p.Ports, firewall.Port{Protocol: port.GetProtocol(), Port: uint16(port.GetPort())})
		}
	}
	return p
}

// lookAtKernel asks whether clients are still led to a deployment that drains, and then for the flows of its instances that
// have not ended: nobody answers those of the others.
func (s *Service) lookAtKernel(ctx context.Context, l looked, f *Facts) error {
	var err error
	if f.Redirected, err = firewall.Redirected(publicationOf(l.head.GetStack(), l.entry)); err != nil || f.Redirected || len(l.dying) == 0 {
		return err
	}
	host, _, err := s.bus.Hosts.Get(ctx, s.config.Host)
	if err != nil {
		return err
	}
	var addrs []netip.Addr
	for _, i := range l.dying {
		if ended(host, i.GetName()) {
			f.Ended++
			continue
		}
		addr, err := netip.ParseAddr(i.GetAddress())
		if err != nil {
			return err
		}
		addrs = append(addrs, addr)
	}
	if len(addrs) == 0 {
		return nil
	}
	p, err := s.polls.look(l.name(), addrs, time.Now, conntrack.Established)
	f.Flows, f.IdleSince, f.Polled = p.flows, p.idleSince, p.at
	return err
}

// ended reports whether the record of the host says that an instance has. One that it does not name may be about to.
func ended(host *fulmarv1.Host, instance string) bool {
	return slices.ContainsFunc(host.GetInstances(), func(i *fulmarv1.HostInstance) bool { return i.GetName() == instance && !i.GetRunning() })
}

// condemn writes into the head that was read that a deployment is condemned.
func (s *Service) condemn(ctx context.Context, l looked) error {
	transition := messages.CondemnDrained
	if l.entry.GetState() == fulmarv1.State_STATE_UNDERWAY {
		transition = messages.CondemnFailed
	}
	next, err := transition(l.head, l.entry.GetGeneration())
	if err != nil {
		return err
	}
	if err := s.bus.Heads.Put(ctx, l.head.GetStack(), next, l.revision); err != nil {
		return err
	}
	s.polls.forget(func(drain string) bool { return drain == l.name() })
	s.metrics.condemned.WithLabelValues(l.action.Cause).Inc()
	s.log.Info("deployment was condemned", "deployment", l.name(), "why", l.action.Why)
	return nil
}

// say says failed or drained of a condemned deployment, as the successor of the event that was last when it was looked at.
func (s *Service) say(ctx context.Context, l looked) error {
	e := &fulmarv1.Event{Verb: string(messages.Drained), Deployment: Describe(l.last, l.head.GetStack(), l.entry, l.dying)}
	if l.action.Do == Fail {
		e.Verb, e.Deployment.Dying = string(messages.Failed), nil
		e.Reason, e.ReasonCode = l.action.Why, fulmarv1.ReasonCode_REASON_CODE_DEADLINE
	}
	return s.bus.Say(ctx, e, l.sequence)
}

// deploymentOf gives the deployment of a chain's last event, or an empty one if there is none.
func deploymentOf(last *fulmarv1.Event, stack string, generation uint64) *fulmarv1.Deployment {
	if last.GetDeployment() == nil {
		return &fulmarv1.Deployment{Stack: stack, Generation: generation}
	}
	return proto.CloneOf(last.GetDeployment())
}
