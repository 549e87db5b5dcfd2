// Package builder is the first of the services: it hears requests, in their order, and says accepted or rejected; it
// hears accepted, gets the image of every unit into the object store, and says built. An image is a file, or it is taken
// from a Docker or OCI image, or built from a Git repository; while that runs its log is said as it comes. What is kept are
// the images, named by what they are, a record of each build by what went into it, and the logs.
//
// The invariant it guards: a deployment enters its head once, above every generation before it, and leaves the builder
// with every image pinned by digest, runnable on its host and fitting what was asked for. What is known is not built again.
package builder

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"golang.org/x/sync/errgroup"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/timestamppb"

	"fulmar/bus"
	"fulmar/messages"
	fulmarv1 "fulmar/messages/fulmar/v1"
	"fulmar/services/builder/credential"
	"fulmar/services/builder/docker"
	"fulmar/services/builder/git"
	"fulmar/services/builder/policy"
	"fulmar/services/builder/watch"
)

// Config is what a builder is told.
type Config struct {
	FileRoot    string               // images from files lie below it; empty: there are none
	Credentials credential.Directory // for registries and repositories
	Engine      *docker.Engine       // for Docker images and builds
	Git         *git.Client          // for repositories
	Policy      *policy.Policy       // what is taken; nil: everything
	Recipes     Recipes              // how builds from Git run
	MaxImage    int64                // bytes of an image at most
	Fetch       time.Duration        // for what comes from elsewhere at most: an image, a repository
	Patience    time.Duration        // with a source that fails, before the deployment does
	Collect     time.Duration        // between two collections of images that nobody needs; 0: 1 h
	Watch       watch.Config         // following sources, and webhooks
}

// Recipes says how builds from Git run.
type Recipes struct {
	Builds  int    // that run at once
	Network string // of their commands: none, host, or empty for the engine's default
	Mirage  string // base image of MirageOS recipes that name none; empty: that of their version
	Cache   int64  // bytes that the engine keeps for later builds; 0: as it does by itself
}

// errBusy reports that as many builds run or wait here as may: another builder may have room, or this one later.
var errBusy = errors.New("as many builds run as may (--builds)")

// Service is a builder.
type Service struct {
	bus      *bus.Bus
	config   Config
	networks *bus.View[*fulmarv1.Network]
	heads    *bus.View[*fulmarv1.Head]
	hosts    *bus.View[*fulmarv1.Host]
	images   *images
	sources  *sources
	cache    *cache
	watch    *watch.Service
	troubles troubles
	metrics  *metrics
	now      func() time.Time
}

// New makes a builder.
func New(b *bus.Bus, c Config, r prometheus.Registerer) *Service {
	i := newImages(b, c)
	o := newSources(c, i)
	c.Watch.Lookers.Git, c.Watch.Lookers.Docker = o.commit, o.latest
	return &Service{
		bus: b, config: c, networks: b.Networks.View(), heads: b.Heads.ViewBy(messages.HeldPorts), hosts: b.Hosts.View(),
		images: i, sources: o, cache: newCache(b), watch: watch.New(b, c.Watch),
		troubles: troubles{since: map[string]time.Time{}}, metrics: newMetrics(r), now: time.Now,
	}
}

// Run serves until ctx ends, which is no error, and then closes the engine and the repositories.
func (s *Service) Run(ctx context.Context) (err error) {
	defer func() { err = errors.Join(err, s.config.Git.Close(), s.config.Engine.Close()) }()
	g, ctx := errgroup.WithContext(ctx)
	g.Go(func() error { return s.networks.Run(ctx) })
	g.Go(func() error { return s.heads.Run(ctx) })
	g.Go(func() error { return s.hosts.Run(ctx) })
	g.Go(func() error { return s.cache.view.Run(ctx) })
	g.Go(func() error { return s.bus.RunRequests(ctx, acceptor, s.accept) })
	g.Go(func() error {
		return s.bus.Run(ctx, bus.Step{Name: "builder-build", Hears: []messages.Verb{messages.Accepted}, Handle: s.build})
	})
	g.Go(func() error { return s.collects(ctx) })
	g.Go(func() error { return s.sweeps(ctx) })
	g.Go(func() error { return s.watch.Run(ctx) })
	return g.Wait()
}

// accept enters a request into the head of its stack: decide, compare-and-set. bus publishes the event.
func (s *Service) accept(ctx context.Context, r bus.Request) (*fulmarv1.Event, error) {
	if err := messages.CheckName("stack", r.Stack); err != nil { // no key can have such a name
		return nil, messages.Refuse(fulmarv1.ReasonCode_REASON_CODE_INVALID, "%w", err)
	}
	if err := s.networks.CaughtUp(ctx); err != nil {
		return nil, err
	}
	if err := s.heads.CaughtUp(ctx); err != nil {
		return nil, err
	}
	if err := s.hosts.CaughtUp(ctx); err != nil {
		return nil, err
	}
	holding := func(c *fulmarv1.Content) []*fulmarv1.Head { return s.heads.Having(messages.Ports(c)...) }
	w := Surroundings{Networks: s.networks.All(), Hosts: s.hosts.All(), Holding: holding, Now: s.now(), Fetch: s.config.Fetch, Policy: s.config.Policy}
	var d *fulmarv1.HeadDeployment
	_, err := s.bus.Heads.Edit(ctx, r.Stack, func(h *fulmarv1.Head) (*fulmarv1.Head, error) {
		var err error
		if d, err = Enter(h, r, w); err != nil {
			return nil, err
		}
		return messages.Accept(h, r.Stack, d)
	})
	if errors.Is(err, messages.ErrGone) {
		return nil, nil // it was entered, went its way and is retired; only its events are gone
	}
	if err != nil {
		return nil, err
	}
	if err := s.watch.Accepted(ctx, r); err != nil {
		return nil, err
	}
	network, rev, err := s.bus.Networks.Get(ctx, d.GetContent().GetNetwork()) // after the head is written: who removes it looks there then
	if err != nil {
		return nil, err
	}
	if rev == 0 { // it was removed meanwhile, or before a crash of this; whoever leases from it says so
		network = &fulmarv1.Network{Name: d.GetContent().GetNetwork(), Host: d.GetHost()}
	}
	return &fulmarv1.Event{Verb: string(messages.Accepted), Deployment: &fulmarv1.Deployment{
		Stack: r.Stack, Generation: r.Generation, Kind: r.Kind, Content: d.GetContent(), Staged: d.GetStaged(), Network: network,
		Requested: timestamppb.New(r.Time), Deadline: d.GetDeadline(),
	}}, nil
}

// build gets the images of a deployment, one after another, and pins them in its content. It ends as soon as nobody wants
// them any more.
func (s *Service) build(ctx context.Context, e *fulmarv1.Event) (messages.Verb, error) {
	d := e.GetDeployment()
	if len(d.GetContent().GetUnits()) == 0 {
		return messages.Built, nil
	}
	wanted, release := s.wanted(ctx, d)
	defer release()
	host := s.hosts.Get(d.GetNetwork().GetHost())
	if host.GetName() == "" { // it had reported when the deployment was accepted, but this view has just begun
		if err := s.hosts.CaughtUp(ctx); err != nil {
			return "", err
		}
		host = s.hosts.Get(d.GetNetwork().GetHost())
	}
	d.Content = proto.CloneOf(d.GetContent())
	d.Units = nil
	for _, spec := range d.GetContent().GetUnits() {
		u, err := s.unit(wanted, d, spec, host)
		if err == nil || u.GetBuild() != nil {
			d.Units = append(d.Units, u)
		}
		if err != nil {
			return "", s.judge(ctx, wanted, d, fmt.Errorf("unit %s: %w", spec.GetName(), err))
		}
		spec.Image = &fulmarv1.Image{Source: &fulmarv1.Image_Object{Object: u.GetImage()}, Sha256: u.GetImage()}
	}
	s.troubles.forget(messages.DeploymentName(d.GetStack(), d.GetGeneration()))
	return messages.Built, nil
}

// unit gets the image of a unit into the store, and gives the facts of the unit. With an error these are of its build only.
func (s *Service) unit(ctx context.Context, d *fulmarv1.Deployment, spec *fulmarv1.UnitSpec, host *fulmarv1.Host) (*fulmarv1.Unit, error) {
	l := &log{bus: s.bus, stack: d.GetStack(), generation: d.GetGeneration(), unit: spec.GetName(), now: s.now}
	i, facts, err := s.permitted(ctx, d.GetKind(), spec.GetImage(), l)
	if err != nil {
		return &fulmarv1.Unit{Name: spec.GetName(), Build: facts}, err
	}
	u, err := fit(spec, i, host)
	if err != nil {
		return &fulmarv1.Unit{Name: spec.GetName(), Build: facts}, err
	}
	u.Build = facts
	return u, nil
}

// judge gives what comes of a build that ended with an error: what nobody wants any more has a reason of its own, and what
// was tried for long enough is refused.
func (s *Service) judge(ctx, wanted context.Context, d *fulmarv1.Deployment, err error) error {
	deployment := messages.DeploymentName(d.GetStack(), d.GetGeneration())
	_, refused := messages.AsRefusal(err)
	switch {
	case ctx.Err() != nil:
		return err // the service stops, or the bus is away
	case wanted.Err() != nil:
		err = context.Cause(wanted)
	case refused:
	case errors.Is(err, errBusy):
		return err
	case s.troubles.last(deployment, s.now()) >= s.config.Patience:
		err = messages.Refuse(fulmarv1.ReasonCode_REASON_CODE_IMAGE, "%w", err) // it is not there, whatever the reason
	default:
		return err
	}
	s.troubles.forget(deployment)
	return err
}
