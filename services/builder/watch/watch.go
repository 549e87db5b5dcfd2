// Package watch follows the sources of stacks for the builder: a Git ref, the tag of a Docker image, the SHA-256 of an
// artefact on the web. It hears accepted requests from the builder that it is part of, and webhooks; it says a request for
// a deployment when a source has moved. Its state is one record a stack, changed by compare-and-set.
//
// The invariant it guards: a source that moves is deployed, once in effect, whatever crashes and however many builders
// look. What a look found is in the record before the request is sent; the builder that accepts a request takes it as what
// the new generation has seen, in the same record; and a request names the generation it means. So a request that is not
// sent is sent by the next look, and one that is sent twice is accepted once.
package watch

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"net/http"
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

// DefaultInterval is the time between two looks at a source that answers.
const DefaultInterval = time.Minute

const (
	parallel = 8                // looks at once
	limit    = 45 * time.Second // for a look at all sources of a stack
	claim    = time.Minute      // for which a builder that looks puts off the others
	holdOff  = 5 * time.Second  // after an error of the bus
	idle     = time.Hour        // when nothing is to be looked at
)

// Config is what a watch is told.
type Config struct {
	Interval time.Duration // between two looks at a source that answers; 0: the default
	Lookers  Lookers
	Webhooks string                   // address of the endpoint for webhooks; empty: there is none
	Secrets  func() ([]string, error) // of webhooks; every one is good
	Clock    Clock                    // zero: that of the machine
	Register prometheus.Registerer    // nil: nowhere
}

// Clock is what a watch knows of time.
type Clock struct {
	Now   func() time.Time
	Until func(time.Time) <-chan time.Time // gives when it is that time
}

// Service follows the sources of all stacks.
type Service struct {
	bus     *bus.Bus
	config  Config
	view    *bus.View[*fulmarv1.Watch]
	metrics metrics
}

// New makes a watch.
func New(b *bus.Bus, c Config) *Service {
	if c.Clock.Now == nil {
		c.Clock = Clock{Now: time.Now, Until: func(t time.Time) <-chan time.Time { return time.After(time.Until(t)) }}
	}
	if c.Interval <= 0 {
		c.Interval = DefaultInterval
	}
	if c.Lookers.HTTP == nil {
		once := &http.Transport{Proxy: http.ProxyFromEnvironment, DisableKeepAlives: true} // nobody keeps a connection for a minute
		c.Lookers.HTTP = &http.Client{Transport: once, Timeout: limit}
	}
	if c.Register == nil {
		c.Register = prometheus.NewRegistry()
	}
	return &Service{bus: b, config: c, view: b.Watches.View(), metrics: newMetrics(c.Register)}
}

// Run follows until ctx ends, which is no error.
func (s *Service) Run(ctx context.Context) error {
	g, ctx := errgroup.WithContext(ctx)
	g.Go(func() error { return s.view.Run(ctx) })
	g.Go(func() error { return s.follow(ctx) })
	if s.config.Webhooks != "" {
		g.Go(func() error { return s.serve(ctx) })
	}
	return g.Wait()
}

// Accepted takes a request into the record of its stack. The builder calls it after the request has entered the head, and
// before it says so: if it dies in between it is called again, and nothing newer has been accepted meanwhile.
func (s *Service) Accepted(ctx context.Context, r bus.Request) error {
	var request *fulmarv1.DeployRequest
	switch r.Kind {
	case fulmarv1.Kind_KIND_DEPLOY:
		m, err := messages.DecodeRequest(r.Kind, r.Body)
		if err != nil {
			return err
		}
		request = m.(*fulmarv1.DeployRequest)
	case fulmarv1.Kind_KIND_RETIRE:
	default:
		return nil // a rollback is not undone until a source moves, and then it is
	}
	_, err := s.bus.Watches.Edit(ctx, r.Stack, func(w *fulmarv1.Watch) (*fulmarv1.Watch, error) {
		return Enter(w, r.Stack, r.Generation, request, s.config.Clock.Now())
	})
	return err
}

// done is the end of a look.
type done struct {
	stack string
	err   error
}

// follow looks at every watch whose time has come, each by one look at a time.
func (s *Service) follow(ctx context.Context) error {
	var g errgroup.Group
	ended := make(chan done)
	busy, off := map[string]bool{}, map[string]time.Time{}
	for ctx.Err() == nil {
		changed := s.view.Changed()
		now := s.config.Clock.Now()
		next := now.Add(idle)
		for stack, w := range s.view.All() {
			due, at := Due(w, now)
			switch {
			case busy[stack] || !Following(w) || w.GetPaused():
			case off[stack].After(now):
				next = earlier(next, off[stack])
			case !due:
				next = earlier(next, at)
			case len(busy) < parallel:
				busy[stack] = true
				delete(off, stack)
				g.Go(func() error {
					ended <- done{stack, s.look(ctx, stack)}
					return nil
				})
			}
		}
		select {
		case <-ctx.Done():
		case <-changed:
		case d := <-ended:
			delete(busy, d.stack)
			if d.err != nil && ctx.Err() == nil {
				off[d.stack] = s.config.Clock.Now().Add(holdOff)
				s.bus.Log.Warn("look was given up", "stack", d.stack, "err", d.err)
			}
		case <-s.config.Clock.Until(next):
		}
	}
	for range busy {
		<-ended
	}
	return g.Wait()
}

func earlier(a, b time.Time) time.Time {
	if a.Before(b) {
		return a
	}
	return b
}

// look claims the look at a stack, asks its sources, writes what they are, and sends the request if one has moved.
func (s *Service) look(ctx context.Context, stack string) error {
	w, rev, err := s.bus.Watches.Get(ctx, stack)
	if err != nil {
		return err
	}
	begin := s.config.Clock.Now()
	if due, _ := Due(w, begin); !due {
		return nil // somebody else looks
	}
	w.Next = timestamppb.New(begin.Add(claim))
	err = s.bus.Watches.Put(ctx, stack, w, rev)
	if errors.Is(err, jetstream.ErrKeyRevisionMismatch) {
		return nil // or changes it; then it is looked at again
	}
	if err != nil {
		return err
	}
	answers := s.ask(ctx, w)
	if ctx.Err() != nil {
		return nil
	}
	w, r, err := s.conclude(ctx, w, answers, begin)
	if err != nil || r == nil {
		return err
	}
	generation, err := s.send(ctx, stack, r)
	if err != nil {
		return err
	}
	return s.sent(ctx, w, r, generation)
}

// ask looks at the sources of a watch, at once.
func (s *Service) ask(ctx context.Context, w *fulmarv1.Watch) []Answer {
	answers := make([]Answer, len(w.GetSources()))
	n, err := messages.Normalize(w.GetStack(), w.GetRequest())
	if err != nil { // by the builder that accepted it, it was good
		for i := range answers {
			answers[i].Err = fmt.Errorf("its request is not good any more: %w", err)
		}
		return answers
	}
	images := map[string]*fulmarv1.Image{}
	for _, u := range n.GetUnits() {
		images[u.GetName()] = u.GetImage()
	}
	ctx, cancel := context.WithTimeout(ctx, limit)
	defer cancel()
	var wg sync.WaitGroup
	slots := make(chan struct{}, parallel)
	for i, source := range w.GetSources() {
		slots <- struct{}{}
		wg.Go(func() {
			answers[i] = s.config.Lookers.look(ctx, images[source.GetUnit()], source, s.config.Clock.Now())
			<-slots
		})
	}
	wg.Wait()
	s.metrics.looked(images, w.GetSources(), answers)
	return answers
}

// conclude writes what a look has found, and gives the record with the request that is to be sent then, if there is one.
// Who asked for another look meanwhile gets it; any other change makes this one void.
func (s *Service) conclude(ctx context.Context, claimed *fulmarv1.Watch, answers []Answer, begin time.Time) (*fulmarv1.Watch, *fulmarv1.DeployRequest, error) {
	for {
		w, rev, err := s.bus.Watches.Get(ctx, claimed.GetStack())
		if err != nil {
			return nil, nil, err
		}
		now := s.config.Clock.Now()
		if w.GetPaused() || w.GetGeneration() != claimed.GetGeneration() || now.Sub(begin) >= claim {
			return nil, nil, nil
		}
		made, err := s.made(ctx, w) // between reading the record and writing it, so that neither knows less than the other
		if err != nil {
			return nil, nil, err
		}
		n, moves := Weigh(w, answers, made, s.interval(), now)
		if !proto.Equal(w.GetNext(), claimed.GetNext()) {
			n.Next, n.Asked = w.GetNext(), w.GetAsked()
		}
		err = s.bus.Watches.Put(ctx, w.GetStack(), n, rev)
		switch {
		case errors.Is(err, jetstream.ErrKeyRevisionMismatch):
			continue
		case err != nil || len(moves) == 0:
			return nil, nil, err
		}
		return n, Again(n, moves, claimed.GetAsked(), made.Newest), nil
	}
}

// interval is the time to the next look, give or take a tenth, so that stacks do not look at once.
func (s *Service) interval() time.Duration {
	tenth := int64(s.config.Interval / 10)
	return s.config.Interval + time.Duration(rand.Int64N(2*tenth+1)-tenth)
}

// send sends the request of a watch again, and gives its sequence.
func (s *Service) send(ctx context.Context, stack string, r *fulmarv1.DeployRequest) (uint64, error) {
	body, err := proto.Marshal(r)
	if err != nil {
		return 0, fmt.Errorf("send the request of stack %s again: %w", stack, err)
	}
	generation, err := s.bus.Request(ctx, fulmarv1.Kind_KIND_DEPLOY, stack, body)
	if err != nil {
		return 0, err
	}
	s.metrics.sent.Inc()
	s.bus.Log.Info("source moved", "deployment", messages.DeploymentName(stack, generation), "cause", r.GetCause())
	return generation, nil
}

// sent notes that a request was sent. If it is accepted before that, or this builder dies, the accepted request stands in
// the record instead.
func (s *Service) sent(ctx context.Context, w *fulmarv1.Watch, r *fulmarv1.DeployRequest, generation uint64) error {
	next := s.config.Clock.Now().Add(s.interval())
	_, err := s.bus.Watches.Edit(ctx, w.GetStack(), func(have *fulmarv1.Watch) (*fulmarv1.Watch, error) {
		return Sent(have, w, generation, r.GetIfNewest(), next), nil
	})
	return err
}

// made reads what the bus tells of the requests of a watch.
func (s *Service) made(ctx context.Context, w *fulmarv1.Watch) (Made, error) {
	m := Made{Values: map[string]string{}}
	own, _, err := s.bus.Last(ctx, w.GetStack(), w.GetGeneration())
	if err != nil {
		return m, err
	}
	verb := messages.Verb(own.GetVerb())
	m.Ended = own != nil && verb != messages.Accepted
	for _, u := range own.GetDeployment().GetUnits() {
		m.Values[u.GetName()] = madeOf(w, u)
	}
	head, _, err := s.bus.Heads.Get(ctx, w.GetStack())
	if err != nil {
		return m, err
	}
	m.Newest, m.Settled = head.GetNewest(), true
	if messages.Find(head, m.Newest).GetState() == fulmarv1.State_STATE_UNDERWAY && m.Newest > w.GetGeneration() {
		newest, _, err := s.bus.Last(ctx, w.GetStack(), m.Newest)
		if err != nil {
			return m, err
		}
		m.Settled = newest != nil // the record of a watch is written before the first event is said
	}
	if w.GetSent() != 0 {
		sent, _, err := s.bus.Last(ctx, w.GetStack(), w.GetSent())
		if err != nil {
			return m, err
		}
		gone := sent == nil && m.Newest > w.GetSent() // requests are entered in their order; only its events are gone
		m.Rejected = gone || messages.Verb(sent.GetVerb()) == messages.Rejected
	}
	return m, nil
}

// madeOf is what the source of a unit was when its image was made.
func madeOf(w *fulmarv1.Watch, u *fulmarv1.Unit) string {
	for _, spec := range w.GetRequest().GetUnits() {
		if spec.GetName() != u.GetName() && len(w.GetRequest().GetUnits()) > 1 {
			continue
		}
		switch spec.GetImage().GetSource().(type) {
		case *fulmarv1.Image_Git:
			return u.GetBuild().GetCommit()
		case *fulmarv1.Image_Url:
			return u.GetImage()
		case *fulmarv1.Image_Docker:
			return u.GetBuild().GetRegistryDigest()
		}
	}
	return ""
}
