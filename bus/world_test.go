package bus_test

import (
	"context"
	"strings"
	"testing"
	"time"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"
	"go.uber.org/goleak"
	"google.golang.org/protobuf/proto"

	"fulmar/bus"
	"fulmar/bus/bustest"
	"fulmar/messages"
	fulmarv1 "fulmar/messages/fulmar/v1"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// patience bounds every wait of these tests: it is only ever reached when one fails.
const patience = 20 * time.Second

// world is a bus of its own, with a connection that looks on.
type world struct {
	t      *testing.T
	server *bus.Server
	*bus.Bus
	said jetstream.MessagesContext // every event from now on, once it is kept
	acks *nats.Subscription        // every settlement from now on
}

func newWorld(t *testing.T) *world {
	t.Helper()
	return lookOn(t, bustest.Server(t))
}

func lookOn(t *testing.T, s *bus.Server) *world {
	t.Helper()
	w := &world{t: t, server: s, Bus: bustest.Open(t, s, bus.Options{Service: "test"})}
	cons, err := w.JS.OrderedConsumer(t.Context(), messages.EventStream, jetstream.OrderedConsumerConfig{DeliverPolicy: jetstream.DeliverNewPolicy})
	if err == nil {
		w.said, err = cons.Messages()
	}
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(w.said.Stop)
	w.acks = w.subscribe("$JS.ACK.>")
	return w
}

func (w *world) subscribe(subject string) *nats.Subscription {
	w.t.Helper()
	sub, err := w.NC.SubscribeSync(subject)
	if err == nil {
		err = w.NC.Flush()
	}
	if err != nil {
		w.t.Fatal(err)
	}
	return sub
}

// replica is another process of a service.
func (w *world) replica(o bus.Options) *bus.Bus {
	w.t.Helper()
	if o.Service == "" {
		o.Service = "worker"
	}
	return bustest.Open(w.t, w.server, o)
}

// start runs something until the test ends or stop is called, which waits for its end.
func (w *world) start(run func(context.Context) error) (stop func()) {
	w.t.Helper()
	return bustest.Run(w.t, run)
}

func (w *world) step(b *bus.Bus, s bus.Step) (stop func()) {
	w.t.Helper()
	return w.start(func(ctx context.Context) error { return b.Run(ctx, s) })
}

func event(stack string, generation uint64, verb messages.Verb) *fulmarv1.Event {
	return &fulmarv1.Event{Verb: string(verb), Deployment: &fulmarv1.Deployment{
		Stack: stack, Generation: generation, Network: &fulmarv1.Network{Name: "lan", Host: "host1"},
	}}
}

// say says an event as the successor of whatever is last.
func (w *world) say(stack string, generation uint64, verb messages.Verb) {
	w.t.Helper()
	_, last, err := w.Last(w.t.Context(), stack, generation)
	if err == nil {
		err = w.Say(w.t.Context(), event(stack, generation, verb), last)
	}
	if err != nil {
		w.t.Fatal(err)
	}
}

// await waits for an event of a verb, and gives it.
func (w *world) await(verb messages.Verb) *fulmarv1.Event {
	w.t.Helper()
	for {
		msg, err := w.said.Next(jetstream.NextMaxWait(patience))
		if err != nil {
			w.t.Fatalf("nobody said %s: %v", verb, err)
		}
		if s, err := messages.ParseEventSubject(msg.Subject()); err != nil || s.Verb != verb {
			continue
		}
		e := &fulmarv1.Event{}
		if err := proto.Unmarshal(msg.Data(), e); err != nil {
			w.t.Fatal(err)
		}
		return e
	}
}

// settled waits for a settlement of a consumer that begins with kind: +ACK, -NAK or +WPI.
func (w *world) settled(consumer, kind string) {
	w.t.Helper()
	for {
		msg, err := w.acks.NextMsg(patience)
		if err != nil {
			w.t.Fatalf("no %s from %s: %v", kind, consumer, err)
		}
		if strings.Contains(msg.Subject, "."+consumer+".") && strings.HasPrefix(string(msg.Data), kind) {
			return
		}
	}
}

// chain gives the verbs that were said of a deployment, in their order.
func (w *world) chain(stack string, generation uint64) []messages.Verb {
	w.t.Helper()
	return w.history(messages.ChainFilter(stack, generation))
}

func (w *world) history(filter string) []messages.Verb {
	w.t.Helper()
	cons, err := w.JS.OrderedConsumer(w.t.Context(), messages.EventStream, jetstream.OrderedConsumerConfig{FilterSubjects: []string{filter}})
	if err != nil {
		w.t.Fatal(err)
	}
	info, err := cons.Info(w.t.Context())
	if err != nil {
		w.t.Fatal(err)
	}
	verbs := []messages.Verb{}
	for range info.NumPending {
		msg, err := cons.Next()
		if err != nil {
			w.t.Fatal(err)
		}
		s, err := messages.ParseEventSubject(msg.Subject())
		if err != nil {
			w.t.Fatal(err)
		}
		verbs = append(verbs, s.Verb)
	}
	return verbs
}

// forget makes the bus forget that a consumer ever acknowledged anything, as one that was killed does.
func (w *world) forget(stream, consumer string) {
	w.t.Helper()
	if err := w.JS.DeleteConsumer(w.t.Context(), stream, consumer); err != nil {
		w.t.Fatal(err)
	}
}

// answers is a handler that always gives one verb.
func answers(verb messages.Verb) func(context.Context, *fulmarv1.Event) (messages.Verb, error) {
	return func(context.Context, *fulmarv1.Event) (messages.Verb, error) { return verb, nil }
}

func lease(handle func(context.Context, *fulmarv1.Event) (messages.Verb, error)) bus.Step {
	return bus.Step{Name: "lease", Hears: []messages.Verb{messages.Built}, Handle: handle}
}
