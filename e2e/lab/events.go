package lab

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"sync"

	"github.com/nats-io/nats.go/jetstream"
	"google.golang.org/protobuf/proto"

	"fulmar/bus"
	"fulmar/messages"
	fulmarv1 "fulmar/messages/fulmar/v1"
)

// Said is an event with its subject, taken apart.
type Said struct {
	messages.EventSubject
	Event *fulmarv1.Event
}

// Name is the deployment's name.
func (s Said) Name() string { return messages.DeploymentName(s.Stack, s.Generation) }

// String is the event as a person reads it.
func (s Said) String() string {
	text := s.Name() + " " + string(s.Verb)
	if r := s.Event.GetReason(); r != "" {
		text += ": " + r
	}
	return text
}

// Log has everything that was ever said on a bus, and goes on.
type Log struct {
	mu    sync.Mutex
	all   []Said
	err   error // of an end before it was closed
	moved chan struct{}
	close func()
}

// Follow begins to read the log of a bus from its first event. Close ends it.
func Follow(ctx context.Context, b *bus.Bus) (*Log, error) {
	cons, err := b.JS.OrderedConsumer(ctx, messages.EventStream, jetstream.OrderedConsumerConfig{DeliverPolicy: jetstream.DeliverAllPolicy})
	if err != nil {
		return nil, fmt.Errorf("follow the log: %w", err)
	}
	it, err := cons.Messages()
	if err != nil {
		return nil, fmt.Errorf("follow the log: %w", err)
	}
	g := &Log{moved: make(chan struct{})}
	var reading sync.WaitGroup
	reading.Go(func() { g.read(it) })
	g.close = func() {
		it.Stop()
		reading.Wait()
	}
	return g, nil
}

// Close ends the reading.
func (g *Log) Close() { g.close() }

func (g *Log) read(it jetstream.MessagesContext) {
	for {
		msg, err := it.Next()
		if errors.Is(err, jetstream.ErrMsgIteratorClosed) {
			return
		}
		if errors.Is(err, jetstream.ErrNoHeartbeat) {
			continue
		}
		var s Said
		if err == nil {
			s, err = parse(msg)
		}
		g.add(s, err)
		if err != nil {
			return
		}
	}
}

func parse(msg jetstream.Msg) (Said, error) {
	subject, err := messages.ParseEventSubject(msg.Subject())
	if err != nil {
		return Said{}, err
	}
	s := Said{EventSubject: subject, Event: &fulmarv1.Event{}}
	return s, proto.Unmarshal(msg.Data(), s.Event)
}

func (g *Log) add(s Said, err error) {
	g.mu.Lock()
	defer g.mu.Unlock()
	if err != nil {
		g.err = fmt.Errorf("follow the log: %w", err)
	} else {
		g.all = append(g.all, s)
	}
	close(g.moved)
	g.moved = make(chan struct{})
}

// All is everything that was said so far, in its order.
func (g *Log) All() []Said {
	g.mu.Lock()
	defer g.mu.Unlock()
	return slices.Clone(g.all)
}

// Await gives the first event that a test accepts, whenever it was said.
func (g *Log) Await(ctx context.Context, what string, accepts func(Said) bool) (Said, error) {
	seen := 0
	for {
		g.mu.Lock()
		news, err, moved := g.all[seen:], g.err, g.moved
		g.mu.Unlock()
		for _, s := range news {
			if accepts(s) {
				return s, nil
			}
		}
		seen += len(news)
		if err != nil {
			return Said{}, err
		}
		select {
		case <-moved:
		case <-ctx.Done():
			return Said{}, fmt.Errorf("%s was not said: %w; what was said: %v", what, ctx.Err(), g.All())
		}
	}
}

// AwaitVerb gives the first event of a deployment with one of the verbs.
func (g *Log) AwaitVerb(ctx context.Context, stack string, generation uint64, verbs ...messages.Verb) (Said, error) {
	return g.Await(ctx, fmt.Sprintf("%q of %s", verbs, messages.DeploymentName(stack, generation)), func(s Said) bool {
		return s.Stack == stack && s.Generation == generation && slices.Contains(verbs, s.Verb)
	})
}
