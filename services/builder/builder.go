// Package builder is the first of the services: it hears requests, in their order, and says accepted or rejected; it
// hears accepted, gets the image of every unit into the object store, and says built. Images are its only state, and
// they are named by what they are.
//
// The invariant it guards: a deployment enters its head once, above every generation before it, and leaves the builder
// with every image pinned by digest, runnable on its host and fitting what was asked for.
package builder

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"
	"time"

	"golang.org/x/sync/errgroup"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/timestamppb"

	"fulmar/bus"
	"fulmar/messages"
	fulmarv1 "fulmar/messages/fulmar/v1"
	"fulmar/services/builder/watch"
)

// Config is what a builder is told.
type Config struct {
	FileRoot string        // images from files lie below it; empty: there are none
	MaxImage int64         // bytes of an image at most
	Fetch    time.Duration // for an image that comes from a URL at most
	Patience time.Duration // with a source that fails, before the deployment does
	Collect  time.Duration // between two collections of images that nobody needs; 0: 1 h
	Watch    watch.Config  // following sources, and webhooks
}

// Service is a builder.
type Service struct {
	bus      *bus.Bus
	config   Config
	networks *bus.View[*fulmarv1.Network]
	heads    *bus.View[*fulmarv1.Head]
	hosts    *bus.View[*fulmarv1.Host]
	images   *images
	watch    *watch.Service
	now      func() time.Time
}

// New makes a builder.
func New(b *bus.Bus, c Config) *Service {
	return &Service{
		bus: b, config: c, networks: b.Networks.View(), heads: b.Heads.View(), hosts: b.Hosts.View(),
		images: newImages(b, c), watch: watch.New(b, c.Watch), now: time.Now,
	}
}

// Run serves until ctx ends, which is no error.
func (s *Service) Run(ctx context.Context) error {
	g, ctx := errgroup.WithContext(ctx)
	g.Go(func() error { return s.networks.Run(ctx) })
	g.Go(func() error { return s.heads.Run(ctx) })
	g.Go(func() error { return s.hosts.Run(ctx) })
	g.Go(func() error { return s.bus.RunRequests(ctx, acceptor, s.accept) })
	g.Go(func() error {
		return s.bus.Run(ctx, bus.Step{Name: "builder-build", Hears: []messages.Verb{messages.Accepted}, Handle: s.build})
	})
	g.Go(func() error { return s.collects(ctx) })
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
	w := Surroundings{Networks: s.networks.All(), Hosts: s.hosts.All(), Heads: slices.Collect(maps.Values(s.heads.All())), Now: s.now(), Fetch: s.config.Fetch}
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
	network := w.Networks[d.GetContent().GetNetwork()]
	if network == nil { // it was deleted after the request was entered; whoever leases from it says so
		network = &fulmarv1.Network{Name: d.GetContent().GetNetwork(), Host: d.GetHost()}
	}
	return &fulmarv1.Event{Verb: string(messages.Accepted), Deployment: &fulmarv1.Deployment{
		Stack: r.Stack, Generation: r.Generation, Kind: r.Kind, Content: d.GetContent(), Staged: d.GetStaged(), Network: network,
		Requested: timestamppb.New(r.Time), Deadline: d.GetDeadline(),
	}}, nil
}

// build gets the images of a deployment and pins them in its content.
func (s *Service) build(ctx context.Context, e *fulmarv1.Event) (messages.Verb, error) {
	d := e.GetDeployment()
	if len(d.GetContent().GetUnits()) == 0 {
		return messages.Built, nil
	}
	host := s.hosts.All()[d.GetNetwork().GetHost()] // it had reported when the deployment was accepted
	d.Content = proto.CloneOf(d.GetContent())
	d.Units = nil
	for _, spec := range d.GetContent().GetUnits() {
		i, err := s.images.get(ctx, spec.GetImage())
		if err != nil && ctx.Err() == nil && s.now().Sub(e.GetTime().AsTime()) > s.config.Patience {
			err = messages.Refuse(fulmarv1.ReasonCode_REASON_CODE_IMAGE, "%w", err) // it is not there, whatever the reason
		}
		if err != nil {
			return "", fmt.Errorf("unit %s: %w", spec.GetName(), err)
		}
		unit, err := fit(spec, i, host)
		if err != nil {
			return "", fmt.Errorf("unit %s: %w", spec.GetName(), err)
		}
		spec.Image = &fulmarv1.Image{Source: &fulmarv1.Image_Object{Object: i.digest}, Sha256: i.digest}
		d.Units = append(d.Units, unit)
	}
	return messages.Built, nil
}
