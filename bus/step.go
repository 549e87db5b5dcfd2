package bus

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"time"

	"github.com/nats-io/nats.go/jetstream"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/timestamppb"

	"fulmar/messages"
	fulmarv1 "fulmar/messages/fulmar/v1"
)

// Step turns events into their successors.
type Step struct {
	// Name is the durable consumer: ipam-lease. Replicas of a service share it; services of different hosts do not.
	Name string
	// Hears are the verbs it takes, of Host only if that is set.
	Hears []messages.Verb
	Host  string
	// Handle adds its facts to the event's deployment and gives the verb of the successor, or none when there is
	// nothing to say. It may run again after any crash, and twice at once. A [messages.Refusal] fails a deployment that
	// is on its way up; every other error is worth another try.
	Handle func(context.Context, *fulmarv1.Event) (messages.Verb, error)
}

// Run runs a step until ctx ends, which is no error. Deployments are handled in parallel.
func (b *Bus) Run(ctx context.Context, s Step) error {
	var filters []string
	for _, v := range s.Hears {
		filters = append(filters, messages.StepFilter(v, s.Host))
	}
	return b.consume(ctx, consumer{
		stream: messages.EventStream, name: s.Name, filters: filters, lane: deploymentOf,
		handle: func(ctx context.Context, msg jetstream.Msg) error { return b.step(ctx, s, msg) },
	})
}

// deploymentOf is the lane of an event: a deployment that takes long holds up nobody else, not even a newer one of its
// stack, which may be its cure.
func deploymentOf(msg jetstream.Msg) string {
	subject, err := messages.ParseEventSubject(msg.Subject())
	if err != nil {
		return msg.Subject()
	}
	return messages.DeploymentName(subject.Stack, subject.Generation)
}

func (b *Bus) step(ctx context.Context, s Step, msg jetstream.Msg) error {
	meta, err := msg.Metadata()
	if err != nil {
		return err
	}
	subject, err := messages.ParseEventSubject(msg.Subject())
	if err != nil {
		b.Log.Error("event was unreadable", "subject", msg.Subject(), "stream_seq", meta.Sequence.Stream, "err", err)
		return nil // its subject names no deployment: there is nobody to fail
	}
	last, err := b.last(ctx, subject.Stack, subject.Generation)
	if err != nil {
		return err
	}
	if last == nil || last.Sequence != meta.Sequence.Stream {
		b.metrics.handled.WithLabelValues(s.Name, "moved").Inc()
		return nil // its successor is there
	}
	e := &fulmarv1.Event{}
	if err := readEvent(msg.Data(), subject, e); err != nil {
		return b.unreadable(ctx, subject, meta.Sequence.Stream, err)
	}
	verb, err := s.Handle(ctx, e)
	if refusal, ok := messages.AsRefusal(err); ok && subject.Verb.Awaited() != "" {
		b.metrics.handled.WithLabelValues(s.Name, "refused").Inc()
		e.Reason, e.ReasonCode = err.Error(), refusal.Code
		verb, err = messages.Failed, nil
	}
	if err != nil {
		if ctx.Err() == nil {
			b.tell(subject, err)
		}
		return err
	}
	if verb == "" {
		return nil
	}
	return b.succeed(ctx, e, verb, meta.Sequence.Stream)
}

func (b *Bus) succeed(ctx context.Context, e *fulmarv1.Event, verb messages.Verb, cause uint64) error {
	e.Verb = string(verb)
	if verb != messages.Failed && verb != messages.Rejected {
		e.Reason, e.ReasonCode = "", 0
	}
	err := b.Say(ctx, e, cause)
	if errors.Is(err, ErrMoved) {
		return nil // another delivery said it
	}
	return err
}

func readEvent(data []byte, subject messages.EventSubject, e *fulmarv1.Event) error {
	if err := proto.Unmarshal(data, e); err != nil {
		return err
	}
	if d := e.GetDeployment(); d.GetStack() != subject.Stack || d.GetGeneration() != subject.Generation {
		return errors.New("its deployment is not the one of its subject")
	}
	return nil
}

// unreadable fails the deployment of an event that cannot be read, so that it is out of the way and not silent.
func (b *Bus) unreadable(ctx context.Context, s messages.EventSubject, seq uint64, cause error) error {
	b.Log.Error("event was unreadable", "deployment", messages.DeploymentName(s.Stack, s.Generation), "stream_seq", seq, "err", cause)
	e := bare(s)
	e.Verb, e.ReasonCode = string(messages.Failed), fulmarv1.ReasonCode_REASON_CODE_UNREADABLE
	e.Reason = "the event " + string(s.Verb) + " cannot be read: " + cause.Error()
	err := b.Say(ctx, e, seq)
	if errors.Is(err, ErrMoved) {
		return nil
	}
	return err
}

// Watch calls handle with every event of the verbs, whatever was said since, until ctx ends. It is for who acts on
// what the records say and publishes on other chains, or not at all. Handle may be called again after any error.
func (b *Bus) Watch(ctx context.Context, s Step) error {
	var filters []string
	for _, v := range s.Hears {
		filters = append(filters, messages.StepFilter(v, s.Host))
	}
	return b.consume(ctx, consumer{
		stream: messages.EventStream, name: s.Name, filters: filters, lane: deploymentOf,
		handle: func(ctx context.Context, msg jetstream.Msg) error {
			subject, err := messages.ParseEventSubject(msg.Subject())
			if err != nil {
				return nil
			}
			e := &fulmarv1.Event{}
			if err := readEvent(msg.Data(), subject, e); err != nil {
				e = bare(subject)
			}
			_, err = s.Handle(ctx, e)
			return err
		},
	})
}

// Request is one message of the request stream.
type Request struct {
	Generation uint64
	Kind       fulmarv1.Kind
	Stack      string
	Body       []byte
	Time       time.Time
}

// RunRequests gives requests, one at a time and in their order, to handle, which gives the first event of the
// deployment: accepted or rejected; nil when there is nothing to say. A refusal rejects it.
func (b *Bus) RunRequests(ctx context.Context, name string, handle func(context.Context, Request) (*fulmarv1.Event, error)) error {
	return b.consume(ctx, consumer{
		stream: messages.RequestStream, name: name, filters: messages.RequestSubjects(), pending: 1,
		lane:   func(jetstream.Msg) string { return "" },
		handle: func(ctx context.Context, msg jetstream.Msg) error { return b.request(ctx, name, handle, msg) },
	})
}

// RequestsWait reports whether requests are stored that the consumer of this name has not settled. It goes by what was
// acknowledged: a message that is just being delivered counts neither as pending nor as waiting for its acknowledgement.
func (b *Bus) RequestsWait(ctx context.Context, name string) (bool, error) {
	stream, err := b.JS.Stream(ctx, messages.RequestStream)
	if err != nil {
		return true, fmt.Errorf("look at the requests: %w", err)
	}
	cons, err := stream.Consumer(ctx, name)
	if errors.Is(err, jetstream.ErrConsumerNotFound) {
		return true, nil // it has never run
	}
	if err != nil {
		return true, fmt.Errorf("look at the requests: %w", err)
	}
	state := stream.CachedInfo().State
	return state.Msgs > 0 && cons.CachedInfo().AckFloor.Stream < state.LastSeq, nil
}

func (b *Bus) request(ctx context.Context, name string, handle func(context.Context, Request) (*fulmarv1.Event, error), msg jetstream.Msg) error {
	meta, err := msg.Metadata()
	if err != nil {
		return err
	}
	kind, stack, err := messages.ParseRequestSubject(msg.Subject())
	if err != nil {
		b.Log.Error("request was unreadable", "subject", msg.Subject(), "stream_seq", meta.Sequence.Stream, "err", err)
		return nil
	}
	r := Request{Generation: meta.Sequence.Stream, Kind: kind, Stack: stack, Body: msg.Data(), Time: meta.Timestamp}
	if strings.ContainsAny(stack, "*>") {
		stack = messages.NoStack // in the subject of an event it would stand for all stacks
	}
	last, err := b.last(ctx, stack, r.Generation)
	if err != nil {
		return err
	}
	if last != nil {
		b.metrics.handled.WithLabelValues(name, "moved").Inc()
		return nil
	}
	e, err := handle(ctx, r)
	if refusal, ok := messages.AsRefusal(err); ok {
		b.metrics.handled.WithLabelValues(name, "refused").Inc()
		e, err = &fulmarv1.Event{
			Verb: string(messages.Rejected), Reason: err.Error(), ReasonCode: refusal.Code,
			Deployment: &fulmarv1.Deployment{Stack: stack, Generation: r.Generation, Kind: kind, Requested: timestamppb.New(r.Time)},
		}, nil
	}
	if err != nil || e == nil {
		return err
	}
	return b.succeed(ctx, e, messages.Verb(e.GetVerb()), 0)
}
