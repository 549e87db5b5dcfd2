package bus

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"strings"
	"sync"
	"time"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/timestamppb"

	"fulmar/messages"
	fulmarv1 "fulmar/messages/fulmar/v1"
)

const (
	tryText  = 600  // bytes of an error that are told at most
	tryNotes = 4096 // deployments whose last try is remembered
)

// tell says how a try ended that another one follows. It is no step and nothing rests on it: who keeps the deadlines can
// say what the matter was. What passes by itself is not worth a word.
func (b *Bus) tell(subject messages.EventSubject, err error) {
	_, late := errors.AsType[later](err)
	if subject.Verb.Awaited() == "" || late || errors.Is(err, jetstream.ErrKeyRevisionMismatch) || errors.Is(err, messages.ErrLate) {
		return
	}
	e := bare(subject)
	e.Time, e.Service, e.Reason = timestamppb.New(time.Now()), b.options.Service, sentence(err.Error())
	body, err := proto.Marshal(e)
	if err == nil {
		err = b.NC.Publish(messages.TrySubject(subject.Stack, subject.Generation), body)
	}
	if err != nil {
		b.Log.Debug("try was not told", "deployment", messages.DeploymentName(subject.Stack, subject.Generation), "err", err)
	}
}

// sentence makes one line of an error, of a length that a record can hold.
func sentence(s string) string {
	s = strings.Join(strings.Fields(s[:min(len(s), 2*tryText)]), " ")
	if len(s) > tryText {
		s = s[:tryText] + "…"
	}
	return strings.ToValidUTF8(s, "\uFFFD")
}

// Tries remembers how the last try of each deployment ended, as the step runners of all services tell it. It is filled
// by [Tries.Run], and what was told before that is not known. Anybody may publish there, so it is bounded, and nothing is
// remembered but a sentence for each deployment.
type Tries struct {
	bus *Bus

	mu   sync.Mutex
	last map[deployment]try
}

// deployment is what is tried.
type deployment struct {
	stack      string
	generation uint64
}

// try is how one ended.
type try struct {
	heard messages.Verb // the event whose step was tried
	text  string        // with the service whose it was
}

// Tries makes an empty memory of tries.
func (b *Bus) Tries() *Tries { return &Tries{bus: b, last: map[deployment]try{}} }

// Run listens until ctx ends, which is no error.
func (t *Tries) Run(ctx context.Context) error {
	sub, err := t.bus.NC.Subscribe(messages.TryFilter(), t.heard)
	if err != nil {
		return fmt.Errorf("listen to tries: %w", err)
	}
	<-ctx.Done()
	if err := sub.Unsubscribe(); err != nil && !errors.Is(err, nats.ErrConnectionClosed) {
		return fmt.Errorf("listen to tries: %w", err)
	}
	return nil
}

func (t *Tries) heard(m *nats.Msg) {
	stack, generation, ok := messages.ParseTrySubject(m.Subject)
	e := &fulmarv1.Event{}
	if !ok || proto.Unmarshal(m.Data, e) != nil || e.GetDeployment().GetStack() != stack || e.GetDeployment().GetGeneration() != generation {
		return // nothing rests on it
	}
	heard := messages.Verb(e.GetVerb())
	if heard.Awaited() == "" {
		return
	}
	t.mu.Lock()
	defer t.mu.Unlock()
	d := deployment{stack, generation}
	if _, known := t.last[d]; known || len(t.last) < tryNotes {
		t.last[d] = try{heard, sentence(e.GetService() + ": " + e.GetReason())}
	}
}

// Last gives how the last try of the step after heard ended, with the service whose it was, or nothing.
func (t *Tries) Last(stack string, generation uint64, heard messages.Verb) string {
	t.mu.Lock()
	defer t.mu.Unlock()
	if last := t.last[deployment{stack, generation}]; last.heard == heard {
		return last.text
	}
	return ""
}

// Forget drops what is remembered of deployments that are not to be kept.
func (t *Tries) Forget(keep func(stack string, generation uint64) bool) {
	t.mu.Lock()
	defer t.mu.Unlock()
	maps.DeleteFunc(t.last, func(d deployment, _ try) bool { return !keep(d.stack, d.generation) })
}
