package ipam

import (
	"context"
	"testing"
	"time"

	"github.com/nats-io/nats.go/jetstream"
	"github.com/prometheus/client_golang/prometheus"
	"go.uber.org/goleak"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/timestamppb"

	"fulmar/bus"
	"fulmar/bus/bustest"
	"fulmar/messages"
	fulmarv1 "fulmar/messages/fulmar/v1"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// patience bounds every wait of these tests: it is only ever reached when one fails.
const patience = 20 * time.Second

// world is a bus of its own, and what the other services would say on it.
type world struct {
	t      *testing.T
	server *bus.Server
	*bus.Bus
	said    jetstream.MessagesContext
	network *fulmarv1.Network
}

func newWorld(t *testing.T, n *fulmarv1.Network) *world {
	t.Helper()
	w := &world{t: t, server: bustest.Server(t), network: n}
	w.Bus = bustest.Open(t, w.server, bus.Options{Service: "test"})
	cons, err := w.JS.OrderedConsumer(t.Context(), messages.EventStream, jetstream.OrderedConsumerConfig{})
	if err == nil {
		w.said, err = cons.Messages()
	}
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(w.said.Stop)
	return w
}

// replica is an ipam with a connection of its own, whose views run. Its steps do not.
func (w *world) replica(c Config) *Service {
	w.t.Helper()
	s := New(bustest.Open(w.t, w.server, bus.Options{Service: "ipam", AckWait: time.Second}), c, prometheus.NewRegistry())
	w.background(s.leases.Run)
	w.background(s.heads.Run)
	w.background(s.hosts.Run)
	return s
}

// start runs ipam.
func (w *world) start(c Config) (stop func()) {
	w.t.Helper()
	s := New(bustest.Open(w.t, w.server, bus.Options{Service: "ipam", AckWait: time.Second}), c, prometheus.NewRegistry())
	return w.background(s.Run)
}

func (w *world) background(run func(context.Context) error) (stop func()) {
	return bustest.Run(w.t, run)
}

// calm is a configuration in which nothing happens by itself.
func calm() Config { return Config{Rest: time.Minute, Sweep: time.Hour} }

// unit is a unit with its image and arguments.
func unit(name, image string, args ...string) *fulmarv1.UnitSpec {
	return &fulmarv1.UnitSpec{Name: name, Image: &fulmarv1.Image{Sha256: image}, Args: args, Memory: 32}
}

// accepted enters a deployment into its head, as builder does, with so long a time.
func (w *world) accepted(stack string, generation uint64, within time.Duration, units ...*fulmarv1.UnitSpec) *fulmarv1.Event {
	w.t.Helper()
	d := &fulmarv1.Deployment{
		Stack: stack, Generation: generation, Kind: fulmarv1.Kind_KIND_DEPLOY, Network: w.network,
		Content:  &fulmarv1.Content{Units: units, Network: w.network.GetName()},
		Deadline: timestamppb.New(time.Now().Add(within)), Requested: timestamppb.Now(),
	}
	w.edit(stack, func(h *fulmarv1.Head) (*fulmarv1.Head, error) {
		return messages.Accept(h, stack, &fulmarv1.HeadDeployment{
			Generation: generation, Deadline: d.GetDeadline(), Content: d.GetContent(), Host: w.network.GetHost(),
		})
	})
	for _, u := range units {
		d.Units = append(d.Units, &fulmarv1.Unit{Name: u.GetName(), Image: u.GetImage().GetSha256(), Target: "spt", Device: "net0"})
	}
	return &fulmarv1.Event{Verb: string(messages.Accepted), Deployment: d}
}

// built enters a deployment and says that it is built.
func (w *world) built(stack string, generation uint64, units ...*fulmarv1.UnitSpec) *fulmarv1.Event {
	w.t.Helper()
	e := w.accepted(stack, generation, time.Minute, units...)
	w.say(e, messages.Built)
	return e
}

// say says the event under a verb, as the successor of whatever is last.
func (w *world) say(e *fulmarv1.Event, verb messages.Verb) {
	w.t.Helper()
	d := e.GetDeployment()
	e.Verb = string(verb)
	_, last, err := w.Last(w.t.Context(), d.GetStack(), d.GetGeneration())
	if err == nil {
		err = w.Say(w.t.Context(), e, last)
	}
	if err != nil {
		w.t.Fatal(err)
	}
}

// await waits for a verb of a generation, and gives that event.
func (w *world) await(generation uint64, verb messages.Verb) *fulmarv1.Event {
	w.t.Helper()
	for {
		e := w.nextEvent()
		if e.GetDeployment().GetGeneration() == generation && e.GetVerb() == string(verb) {
			return e
		}
		if verb == messages.Leased && e.GetDeployment().GetGeneration() == generation && e.GetVerb() == string(messages.Failed) {
			w.t.Fatalf("%d failed: %s", generation, e.GetReason())
		}
	}
}

func (w *world) nextEvent() *fulmarv1.Event {
	w.t.Helper()
	msg, err := w.said.Next(jetstream.NextMaxWait(patience))
	if err != nil {
		w.t.Fatalf("nobody says anything any more: %v", err)
	}
	e := &fulmarv1.Event{}
	if err := proto.Unmarshal(msg.Data(), e); err != nil {
		w.t.Fatal(err)
	}
	return e
}

func (w *world) edit(stack string, f func(*fulmarv1.Head) (*fulmarv1.Head, error)) {
	w.t.Helper()
	if _, err := w.Heads.Edit(w.t.Context(), stack, f); err != nil {
		w.t.Fatal(err)
	}
}

func (w *world) publish(stack string, generation uint64) {
	w.t.Helper()
	w.edit(stack, func(h *fulmarv1.Head) (*fulmarv1.Head, error) { return messages.Publish(h, generation, time.Now()) })
}

func (w *world) head(stack string) *fulmarv1.Head {
	w.t.Helper()
	h, _, err := w.Heads.Get(w.t.Context(), stack)
	if err != nil {
		w.t.Fatal(err)
	}
	return h
}

// leases gives the instances that hold addresses, by address, and those that rest, marked so.
func (w *world) leases() map[string]string {
	w.t.Helper()
	all, err := w.Leases.All(w.t.Context())
	if err != nil {
		w.t.Fatal(err)
	}
	by := map[string]string{}
	for key, l := range all {
		_, address, _ := messages.ParseLeaseKey(key)
		by[address] = l.GetInstance()
		if l.GetRestingUntil() != nil {
			by[address] = "resting"
		}
	}
	return by
}

func (w *world) lease(address string, l *fulmarv1.Lease) {
	w.t.Helper()
	if err := w.Leases.Put(w.t.Context(), messages.LeaseKey(w.network.GetName(), address), l, 0); err != nil {
		w.t.Fatal(err)
	}
}

// chain gives the verbs that were said of a deployment, in their order.
func (w *world) chain(stack string, generation uint64) []messages.Verb {
	w.t.Helper()
	cons, err := w.JS.OrderedConsumer(w.t.Context(), messages.EventStream, jetstream.OrderedConsumerConfig{FilterSubjects: []string{messages.ChainFilter(stack, generation)}})
	if err != nil {
		w.t.Fatal(err)
	}
	info, err := cons.Info(w.t.Context())
	if err != nil {
		w.t.Fatal(err)
	}
	var verbs []messages.Verb
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
