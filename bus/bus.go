// Package bus is the one shared runtime of the services: it connects, declares streams and buckets, keeps records by
// compare-and-set, and runs a step: one event in, one event out.
//
// The invariant it guards is rule 2 of the design: the events of a deployment are a chain. An event is published only
// while its cause is still the last event of its deployment, so each event has one successor for ever, whatever is
// delivered twice; a message is acknowledged only after that publish, or after its refusal, which means that it was
// done before.
package bus

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"strings"
	"time"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"
	"github.com/prometheus/client_golang/prometheus"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/timestamppb"

	"fulmar/messages"
	fulmarv1 "fulmar/messages/fulmar/v1"
)

// ErrMoved reports that an event was not published because its deployment's chain has moved on: it was done before.
var ErrMoved = errors.New("the chain of the deployment has moved on")

// Options says who speaks.
type Options struct {
	Service  string                // the service: ipam
	Host     string                // the host it is for, empty for a service that is for all
	Log      *slog.Logger          // nil: nowhere
	Register prometheus.Registerer // nil: nowhere
	AckWait  time.Duration         // after it a message whose worker died is delivered again; 0: 2 s
}

// Bus is a connection to the declared streams and buckets in the name of one service.
type Bus struct {
	NC     *nats.Conn
	JS     jetstream.JetStream
	Images jetstream.ObjectStore
	Logs   jetstream.ObjectStore // of builds

	Heads    *Bucket[*fulmarv1.Head]
	Leases   *Bucket[*fulmarv1.Lease]
	Networks *Bucket[*fulmarv1.Network]
	Hosts    *Bucket[*fulmarv1.Host]
	Builds   *Bucket[*fulmarv1.BuildRecord]
	Watches  *Bucket[*fulmarv1.Watch]

	Log *slog.Logger

	options Options
	events  jetstream.Stream
	images  images
	metrics metrics
}

// Open declares what is not yet declared and gives the bus to a service. The connection stays the caller's.
func Open(ctx context.Context, nc *nats.Conn, o Options) (*Bus, error) {
	js, err := jetstream.New(nc)
	if err != nil {
		return nil, fmt.Errorf("open the bus: %w", err)
	}
	if o.Log == nil {
		o.Log = slog.New(slog.DiscardHandler)
	}
	if o.Register == nil {
		o.Register = prometheus.NewRegistry()
	}
	if o.AckWait <= 0 {
		o.AckWait = ackWait
	}
	b := &Bus{NC: nc, JS: js, Log: o.Log, options: o, metrics: newMetrics(o.Register)}
	if err := b.declare(ctx); err != nil {
		return nil, err
	}
	return b, nil
}

// Request stores a request and gives its sequence, which is the generation of the deployment it asks for. The body is
// protobuf or JSON.
func (b *Bus) Request(ctx context.Context, kind fulmarv1.Kind, stack string, body []byte) (uint64, error) {
	ack, err := b.JS.Publish(ctx, messages.RequestSubject(kind, stack), body)
	if err != nil {
		return 0, fmt.Errorf("store the request for stack %s: %w", stack, err)
	}
	return ack.Sequence, nil
}

// Last gives the last step of a deployment and its stream sequence; without one it gives nil and 0.
func (b *Bus) Last(ctx context.Context, stack string, generation uint64) (*fulmarv1.Event, uint64, error) {
	raw, err := b.last(ctx, stack, generation)
	if raw == nil || err != nil {
		return nil, 0, err
	}
	e := &fulmarv1.Event{}
	if err := proto.Unmarshal(raw.Data, e); err != nil {
		s, serr := messages.ParseEventSubject(raw.Subject)
		if serr != nil {
			return nil, 0, fmt.Errorf("last event of %s: %w", messages.DeploymentName(stack, generation), serr)
		}
		e = bare(s)
	}
	return e, raw.Sequence, nil
}

// bare is what the subject alone says of an event.
func bare(s messages.EventSubject) *fulmarv1.Event {
	d := &fulmarv1.Deployment{Stack: s.Stack, Generation: s.Generation}
	if s.Host != messages.NoHost {
		d.Network = &fulmarv1.Network{Host: s.Host}
	}
	return &fulmarv1.Event{Verb: string(s.Verb), Deployment: d, Unit: s.Unit}
}

func (b *Bus) last(ctx context.Context, stack string, generation uint64) (*jetstream.RawStreamMsg, error) {
	raw, err := b.events.GetLastMsgForSubject(ctx, messages.ChainFilter(stack, generation))
	if errors.Is(err, jetstream.ErrMsgNotFound) {
		return nil, nil
	}
	if err != nil {
		return nil, fmt.Errorf("last event of %s: %w", messages.DeploymentName(stack, generation), err)
	}
	return raw, nil
}

// Say publishes a step as the one successor of the event at stream sequence cause (0: there is none yet). It is
// [ErrMoved] when the deployment's chain has moved on. Time and service are filled in, and it is logged.
func (b *Bus) Say(ctx context.Context, e *fulmarv1.Event, cause uint64) error {
	d := e.GetDeployment()
	host := d.GetNetwork().GetHost()
	e.Time, e.Service, e.Reason = timestamppb.New(time.Now()), b.options.Service, strings.ToValidUTF8(e.GetReason(), "\uFFFD")
	body, err := proto.Marshal(e)
	if err != nil {
		return fmt.Errorf("say %s of %s: %w", e.GetVerb(), messages.DeploymentName(d.GetStack(), d.GetGeneration()), err)
	}
	_, err = b.JS.Publish(ctx, messages.StepSubject(d.GetStack(), d.GetGeneration(), messages.Verb(e.GetVerb()), host), body,
		jetstream.WithExpectLastSequenceForSubject(cause, messages.ChainFilter(d.GetStack(), d.GetGeneration())))
	if wrongSequence(err) {
		return ErrMoved
	}
	if err != nil {
		return fmt.Errorf("say %s of %s: %w", e.GetVerb(), messages.DeploymentName(d.GetStack(), d.GetGeneration()), err)
	}
	b.metrics.said.WithLabelValues(e.GetVerb()).Inc()
	b.Log.Log(ctx, levelOf(messages.Verb(e.GetVerb())), "deployment moved", "deployment", messages.DeploymentName(d.GetStack(), d.GetGeneration()), "verb", e.GetVerb(), "reason", e.GetReason())
	return nil
}

// levelOf is the level at which an event is logged: what went wrong is shown to whoever is not shown every step.
func levelOf(v messages.Verb) slog.Level {
	switch v {
	case messages.Failed, messages.Rejected, messages.Unhealthy, messages.Exited:
		return slog.LevelWarn
	}
	return slog.LevelInfo
}

// wrongSequence reports whether a publish was refused because of the sequence that it expected.
func wrongSequence(err error) bool {
	api, ok := errors.AsType[*jetstream.APIError](err)
	return ok && (api.ErrorCode == jetstream.JSErrCodeStreamWrongLastSequence || api.ErrorCode == jetstream.JSErrCodeStreamWrongLastSequenceConstant)
}

// Observe publishes an observation of a unit. It is no step and has no place in the chain. It
// is logged.
func (b *Bus) Observe(ctx context.Context, verb messages.Verb, d *fulmarv1.Deployment, unit, reason string) error {
	e := &fulmarv1.Event{
		Verb: string(verb), Time: timestamppb.New(time.Now()), Service: b.options.Service,
		Deployment: d, Unit: unit, Reason: strings.ToValidUTF8(reason, "\uFFFD"),
	}
	body, err := proto.Marshal(e)
	if err != nil {
		return fmt.Errorf("observe %s of unit %s: %w", verb, unit, err)
	}
	subject := messages.ObservationSubject(d.GetStack(), d.GetGeneration(), verb, d.GetNetwork().GetHost(), unit)
	if _, err := b.JS.Publish(ctx, subject, body); err != nil {
		return fmt.Errorf("observe %s of unit %s: %w", verb, unit, err)
	}
	b.Log.Log(ctx, levelOf(verb), "unit changed", "deployment", messages.DeploymentName(d.GetStack(), d.GetGeneration()), "unit", unit, "verb", verb, "reason", reason)
	return nil
}

type metrics struct {
	said    *prometheus.CounterVec
	handled *prometheus.CounterVec
	seconds *prometheus.HistogramVec
}

func newMetrics(r prometheus.Registerer) metrics {
	m := metrics{
		said: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "fulmar_bus_events_total", Help: "Steps that were published.",
		}, []string{"verb"}),
		handled: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "fulmar_bus_handled_total", Help: "Deliveries by their end: done, moved (said before), later (not yet), retried, refused.",
		}, []string{"step", "result"}),
		seconds: prometheus.NewHistogramVec(prometheus.HistogramOpts{
			Name: "fulmar_bus_handle_duration_seconds", Help: "From delivery to settlement.",
			Buckets: prometheus.ExponentialBuckets(0.0005, 2, 16),
		}, []string{"step"}),
	}
	r.MustRegister(m.said, m.handled, m.seconds)
	return m
}
