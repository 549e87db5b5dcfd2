package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"strings"
	"time"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"
	"google.golang.org/protobuf/encoding/protojson"
	"google.golang.org/protobuf/proto"

	"fulmar/bus"
	"fulmar/messages"
	fulmarv1 "fulmar/messages/fulmar/v1"
)

// said is an event as it came from the log.
type said struct {
	subject messages.EventSubject
	event   *fulmarv1.Event
	seq     uint64
	time    time.Time // when the bus stored it
}

// eventConsumer reads the events of the subjects from a sequence on.
func eventConsumer(ctx context.Context, b *bus.Bus, from uint64, subjects ...string) (jetstream.Consumer, error) {
	config := jetstream.OrderedConsumerConfig{FilterSubjects: subjects, DeliverPolicy: jetstream.DeliverAllPolicy}
	if from > 0 {
		config.DeliverPolicy, config.OptStartSeq = jetstream.DeliverByStartSequencePolicy, from
	}
	cons, err := b.JS.OrderedConsumer(ctx, messages.EventStream, config)
	if err != nil {
		return nil, fmt.Errorf("read events: %w", err)
	}
	return cons, nil
}

// readLog calls handle with the events of the subjects that are there. Of one that cannot be read it tells and goes on.
func (e *env) readLog(b *bus.Bus, handle func(said) error, subjects ...string) error {
	const batch = 256
	cons, err := eventConsumer(e.ctx, b, 0, subjects...)
	if err != nil {
		return err
	}
	for {
		got, err := cons.FetchNoWait(batch)
		if err != nil {
			return fmt.Errorf("read events: %w", err)
		}
		n := 0
		for msg := range got.Messages() {
			n++
			s, err := readSaid(msg)
			if err != nil {
				e.leftOut(err)
				continue
			}
			if err := handle(s); err != nil {
				return err
			}
		}
		if n == 0 {
			return got.Error()
		}
	}
}

// followLog calls handle with the events of the subjects from a sequence on, and with those that come, until handle says
// that it is done or ctx ends. Of one that cannot be read it tells and goes on.
func (e *env) followLog(ctx context.Context, b *bus.Bus, from uint64, handle func(said) (done bool, err error), subjects ...string) error {
	cons, err := eventConsumer(ctx, b, from, subjects...)
	if err != nil {
		return err
	}
	it, err := cons.Messages()
	if err != nil {
		return fmt.Errorf("read events: %w", err)
	}
	defer it.Stop()
	defer context.AfterFunc(ctx, it.Stop)()
	for {
		msg, err := it.Next()
		switch {
		case errors.Is(err, jetstream.ErrNoHeartbeat):
			continue
		case ctx.Err() != nil:
			return ctx.Err()
		case err != nil:
			return fmt.Errorf("read events: %w", err)
		}
		s, err := readSaid(msg)
		if err != nil {
			e.leftOut(err)
			continue
		}
		if done, err := handle(s); done || err != nil {
			return err
		}
	}
}

func readSaid(msg jetstream.Msg) (said, error) {
	meta, err := msg.Metadata()
	if err != nil {
		return said{}, fmt.Errorf("read events: %w", err)
	}
	subject, err := messages.ParseEventSubject(msg.Subject())
	if err != nil {
		return said{}, fmt.Errorf("event %d cannot be read: %w", meta.Sequence.Stream, err)
	}
	e := &fulmarv1.Event{}
	if err := proto.Unmarshal(msg.Data(), e); err != nil {
		return said{}, fmt.Errorf("event %d on %s cannot be read: %w", meta.Sequence.Stream, msg.Subject(), err)
	}
	return said{subject: subject, event: e, seq: meta.Sequence.Stream, time: meta.Timestamp}, nil
}

// follower prints a deployment step by step.
type follower struct {
	env        *env
	bus        *bus.Bus
	stack      string
	generation uint64
	wait       bool

	builds chan *nats.Msg // the logs of the builds of the stack

	before time.Time // of the step before
	begin  time.Time
}

func (f *follower) name() string { return messages.DeploymentName(f.stack, f.generation) }

// announce prints the deployment's name.
func (f *follower) announce() error {
	if f.env.cli.JSON {
		return f.env.printJSON(map[string]any{"deployment": f.name(), "stack": f.stack, "generation": f.generation})
	}
	_, err := fmt.Fprintln(f.env.out, f.name())
	return err
}

// follow prints the steps until the deployment is published, staged, rejected or failed; the latter two are errors.
func (f *follower) follow() error {
	if !f.env.cli.JSON {
		if err := f.announce(); err != nil {
			return err
		}
	}
	end, err := f.followUp()
	if errors.Is(err, context.Canceled) {
		return fmt.Errorf("%s goes on; follow it with: fulmar events -f %s", f.name(), f.stack)
	}
	if err != nil {
		return err
	}
	if end.subject.Verb == messages.Failed || end.subject.Verb == messages.Rejected {
		return saidError{errors.New(end.event.GetReason())}
	}
	if f.wait {
		return f.followRetirement(end)
	}
	return nil
}

// followUp prints the steps of the way up, and of builds meanwhile, and gives the last one.
func (f *follower) followUp() (end said, err error) {
	ctx, cancel := context.WithCancel(f.env.ctx)
	defer cancel()
	events, ended := make(chan said), make(chan error, 1)
	go func() {
		ended <- f.env.followLog(ctx, f.bus, 0, func(s said) (bool, error) {
			select {
			case events <- s:
			case <-ctx.Done():
			}
			return ends(s.subject.Verb), nil
		}, messages.ChainFilter(f.stack, f.generation))
	}()
	quiet := time.NewTimer(quietTime)
	defer quiet.Stop()
	for {
		select {
		case <-quiet.C:
			err = f.sayWhoIsMissing(end)
		case m := <-f.builds:
			err = f.printStep(m)
		case end = <-events:
			quiet.Reset(quietTime)
			for len(f.builds) > 0 && err == nil {
				err = f.printStep(<-f.builds)
			}
			if err == nil {
				err = f.print(end)
			}
		case err := <-ended:
			return end, err
		}
		if err != nil {
			cancel()
			return end, errors.Join(err, <-ended)
		}
	}
}

// ends reports whether a verb ends the way up.
func ends(v messages.Verb) bool {
	return v == messages.Published || v == messages.Staged || v == messages.Failed || v == messages.Rejected || v == messages.Drained
}

// followRetirement waits until everything older than the deployment is out of the head.
func (f *follower) followRetirement(published said) error {
	older := func() (bool, error) {
		h, _, err := f.bus.Heads.Get(f.env.ctx, f.stack)
		for _, d := range h.GetDeployments() {
			if d.GetGeneration() < f.generation && (d.GetState() == fulmarv1.State_STATE_DRAINING || d.GetState() == fulmarv1.State_STATE_CONDEMNED) {
				return true, err
			}
		}
		return false, err
	}
	if left, err := older(); !left || err != nil {
		return err
	}
	return f.env.followLog(f.env.ctx, f.bus, published.seq+1, func(s said) (bool, error) {
		if s.subject.Generation >= f.generation || s.subject.Verb.Observation() {
			return false, nil
		}
		if err := f.print(s); err != nil || s.subject.Verb != messages.Retired {
			return false, err
		}
		left, err := older()
		return !left, err
	}, messages.StackFilter(f.stack))
}

func (f *follower) print(s said) error {
	if f.env.cli.JSON {
		return f.env.printSaid(s)
	}
	d := s.event.GetDeployment()
	if f.begin.IsZero() {
		f.begin, f.before = s.time, s.time
		if d.GetRequested() != nil {
			f.begin, f.before = d.GetRequested().AsTime(), d.GetRequested().AsTime()
		}
	}
	what := string(s.subject.Verb)
	if s.subject.Generation != f.generation {
		what += " " + messages.DeploymentName(s.subject.Stack, s.subject.Generation)
	}
	if _, err := fmt.Fprintln(f.env.out, strings.TrimRight(fmt.Sprintf("  %-10s %9s  %s", what, ms(s.time.Sub(f.before)), facts(s)), " ")); err != nil {
		return err
	}
	f.before = s.time
	if s.subject.Generation != f.generation || !ends(s.subject.Verb) {
		return nil
	}
	_, err := fmt.Fprintf(f.env.out, "%s %s %s after the request\n", f.name(), s.subject.Verb, ms(s.time.Sub(f.begin)))
	return err
}

func ms(d time.Duration) string { return fmt.Sprintf("%.1f ms", float64(d.Microseconds())/1000) }

// facts says what a step has added, for people.
func facts(s said) string {
	d := s.event.GetDeployment()
	var parts []string
	switch s.subject.Verb {
	case messages.Accepted:
		return fmt.Sprintf("%s on network %s", messages.KindName(d.GetKind()), d.GetContent().GetNetwork())
	case messages.Built:
		for _, u := range d.GetUnits() {
			part := fmt.Sprintf("%s %s, %d KB", u.GetTarget(), short(u.GetImage()), (u.GetImageSize()+1023)/1024)
			if b := u.GetBuild(); b != nil {
				part += ", " + provenance(b)
			}
			parts = append(parts, part)
		}
	case messages.Leased:
		for _, u := range d.GetUnits() {
			part := u.GetInstance().GetName() + " " + u.GetInstance().GetAddress()
			if u.GetKept() {
				part += " (kept)"
			}
			parts = append(parts, part)
		}
	case messages.Published:
		if s.event.GetUnchanged() {
			return "nothing changed: every unit was kept"
		}
		for _, u := range d.GetUnits() {
			parts = append(parts, ports(specOf(d.GetContent(), u.GetName()), u.GetInstance().GetAddress())...)
		}
		if len(d.GetUnits()) == 0 {
			return "no units: the stack is out of service"
		}
	case messages.Drained, messages.Stopped, messages.Retired:
		for _, i := range d.GetDying() {
			parts = append(parts, i.GetName())
		}
	case messages.Failed, messages.Rejected:
		return s.event.GetReason()
	}
	return strings.Join(parts, ", ")
}

// provenance says how an image was made.
func provenance(b *fulmarv1.Build) string {
	text := "from " + b.GetSource()
	if b.GetCommit() != "" {
		text += ", commit " + short(b.GetCommit())
	}
	took := b.GetDuration().AsDuration().Round(time.Millisecond)
	if b.GetCached() {
		text += fmt.Sprintf(", cached (built in %s)", took)
	} else {
		text += fmt.Sprintf(", built in %s", took)
	}
	if d := b.GetDiffersFrom(); d != "" {
		text += ", differs from " + short(d)
	}
	return text
}

func short(digest string) string { return digest[:min(12, len(digest))] }

func specOf(c *fulmarv1.Content, unit string) *fulmarv1.UnitSpec {
	for _, u := range c.GetUnits() {
		if u.GetName() == unit {
			return u
		}
	}
	return nil
}

func ports(u *fulmarv1.UnitSpec, address string) []string {
	var parts []string
	for _, p := range u.GetPorts() {
		parts = append(parts, fmt.Sprintf("%d/%s -> %s:%d", p.GetPort(), p.GetProtocol(), address, p.GetTarget()))
	}
	return parts
}

func (e *env) printJSON(v any) error {
	line, err := json.Marshal(v)
	if err != nil {
		return fmt.Errorf("print JSON: %w", err)
	}
	_, err = fmt.Fprintln(e.out, string(line))
	return err
}

// printProto prints a message as one line of JSON.
func (e *env) printProto(m proto.Message) error {
	line, err := protojson.Marshal(m)
	if err != nil {
		return fmt.Errorf("print JSON: %w", err)
	}
	return e.printJSON(json.RawMessage(line))
}

// printSaid prints an event with where and when it was stored.
func (e *env) printSaid(s said) error {
	event, err := protojson.Marshal(s.event)
	if err != nil {
		return fmt.Errorf("print JSON: %w", err)
	}
	return e.printJSON(map[string]any{
		"deployment": messages.DeploymentName(s.subject.Stack, s.subject.Generation), "verb": s.subject.Verb, "host": s.subject.Host,
		"stream_seq": s.seq, "stored": s.time, "event": json.RawMessage(event),
	})
}
