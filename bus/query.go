package bus

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/micro"
	"google.golang.org/protobuf/encoding/protojson"
	"google.golang.org/protobuf/proto"

	"fulmar/messages"
	fulmarv1 "fulmar/messages/fulmar/v1"
)

// askTimeout bounds how long an answer may take.
const askTimeout = 10 * time.Second

// Endpoint answers a question on the NATS micro framework.
type Endpoint struct {
	Name    string // console
	Subject string
	// Request makes an empty request, which is filled from protobuf or JSON; the answer goes out in the same form.
	Request func() proto.Message
	Handle  func(ctx context.Context, request proto.Message) (proto.Message, error)
}

// Answerer is a [Service] that answers questions.
type Answerer interface {
	Endpoints() []Endpoint
}

// addEndpoints adds the endpoints of a service that has some. Their handlers run until ctx ends.
func addEndpoints(ctx context.Context, m micro.Service, svc Service) error {
	a, ok := svc.(Answerer)
	if !ok {
		return nil
	}
	for _, e := range a.Endpoints() {
		handler := micro.HandlerFunc(func(r micro.Request) { answer(ctx, e, r) })
		if err := m.AddEndpoint(e.Name, handler, micro.WithEndpointSubject(e.Subject), micro.WithEndpointQueueGroupDisabled()); err != nil {
			return fmt.Errorf("add endpoint %s: %w", e.Name, err)
		}
	}
	return nil
}

func answer(ctx context.Context, e Endpoint, r micro.Request) {
	request, asJSON := e.Request(), messages.IsJSON(r.Data())
	err := messages.Decode(r.Data(), request)
	if err != nil {
		_ = r.Error("400", err.Error(), nil) // who asked is gone when it fails
		return
	}
	reply, err := e.Handle(ctx, request)
	if err != nil {
		_ = r.Error("500", err.Error(), nil)
		return
	}
	body, err := proto.Marshal(reply)
	if asJSON {
		body, err = protojson.Marshal(reply)
	}
	if err != nil {
		_ = r.Error("500", err.Error(), nil)
		return
	}
	if err := r.Respond(body); err != nil { // as a rule it is larger than the bus takes
		_ = r.Error("500", fmt.Sprintf("the answer has %d bytes and could not be sent, ask for less: %s", len(body), err), nil)
	}
}

// Console asks the vmm of a host for the last lines of an instance's console.
func (b *Bus) Console(ctx context.Context, host, instance string, lines int) ([]*fulmarv1.ConsoleLine, error) {
	reply := &fulmarv1.ConsoleReply{}
	err := b.ask(ctx, "its vmm does not run", messages.ConsoleQuery(host), &fulmarv1.ConsoleRequest{Instance: instance, Lines: uint32(lines)}, reply)
	if err != nil {
		return nil, fmt.Errorf("console of %s on host %s: %w", instance, host, err)
	}
	return reply.GetLines(), nil
}

// Stats asks the vmm of a host what its instances used.
func (b *Bus) Stats(ctx context.Context, host string, request *fulmarv1.StatsRequest) ([]*fulmarv1.Stats, error) {
	reply := &fulmarv1.StatsReply{}
	if err := b.ask(ctx, "its vmm does not run", messages.StatsQuery(host), request, reply); err != nil {
		return nil, fmt.Errorf("statistics of host %s: %w", host, err)
	}
	return reply.GetSamples(), nil
}

// Sweep asks the gc of a host to sweep, or only to say what it would do; with [messages.NoHost] for the host it asks the
// builder about images.
func (b *Bus) Sweep(ctx context.Context, host string, dryRun bool) ([]*fulmarv1.SweepItem, error) {
	reply := &fulmarv1.SweepReply{}
	what, absent := "host "+host, "its gc does not run"
	if host == messages.NoHost {
		what, absent = "images", "no builder runs"
	}
	if err := b.ask(ctx, absent, messages.SweepQuery(host), &fulmarv1.SweepRequest{DryRun: dryRun}, reply); err != nil {
		return nil, fmt.Errorf("sweep of %s: %w", what, err)
	}
	return reply.GetItems(), nil
}

// ask asks a question; absent says that nobody answers it.
func (b *Bus) ask(ctx context.Context, absent, subject string, request, reply proto.Message) error {
	body, err := proto.Marshal(request)
	if err != nil {
		return err
	}
	ctx, cancel := context.WithTimeout(ctx, askTimeout)
	defer cancel()
	msg, err := b.NC.RequestWithContext(ctx, subject, body)
	if errors.Is(err, nats.ErrNoResponders) {
		return errors.New(absent)
	}
	if err != nil {
		return err
	}
	if text := msg.Header.Get(micro.ErrorHeader); text != "" {
		return errors.New(text)
	}
	return proto.Unmarshal(msg.Data, reply)
}
