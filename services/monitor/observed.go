package monitor

import (
	"context"
	"errors"
	"fmt"
	"slices"

	"github.com/nats-io/nats.go/jetstream"
	"google.golang.org/protobuf/proto"

	"fulmar/messages"
	fulmarv1 "fulmar/messages/fulmar/v1"
)

// lastObservation gives what was observed last of a unit of a deployment, or nothing.
func lastObservation(ctx context.Context, events jetstream.Stream, t target) (messages.Verb, error) {
	subject := messages.ObservationSubject(t.stack, t.generation, "*", t.deployment.GetNetwork().GetHost(), t.unit)
	raw, err := events.GetLastMsgForSubject(ctx, subject)
	if errors.Is(err, jetstream.ErrMsgNotFound) {
		return "", nil
	}
	if err != nil {
		return "", fmt.Errorf("last observation of %s: %w", t.instance, err)
	}
	parsed, err := messages.ParseEventSubject(raw.Subject)
	return parsed.Verb, err
}

// inherited gives what was observed last of an instance while older deployments had it, or nothing.
func inherited(ctx context.Context, events jetstream.Stream, t target) (messages.Verb, error) {
	_, _, made, ok := messages.ParseInstance(t.instance)
	if !ok || made >= t.generation {
		return "", nil // nobody had it before
	}
	host := t.deployment.GetNetwork().GetHost()
	info, err := events.Info(ctx, jetstream.WithSubjectFilter(messages.ObservationFilter(t.stack, host, t.unit)))
	if err != nil {
		return "", fmt.Errorf("observations of %s: %w", t.instance, err)
	}
	for _, generation := range olderOwners(info.State.Subjects, made, t.generation) {
		raw, err := events.GetLastMsgForSubject(ctx, messages.ObservationSubject(t.stack, generation, "*", host, t.unit))
		if err != nil {
			return "", fmt.Errorf("last observation of %s: %w", t.instance, err)
		}
		e := &fulmarv1.Event{}
		if err := proto.Unmarshal(raw.Data, e); err != nil {
			continue // it tells nobody anything
		}
		if instanceOf(e.GetDeployment(), t.unit).GetName() == t.instance {
			return messages.Verb(e.GetVerb()), nil
		}
	}
	return "", nil
}

// olderOwners gives the generations, newest first, among the subjects of observations that may have had an instance before
// the generation that has it now.
func olderOwners[C any](subjects map[string]C, made, now uint64) []uint64 {
	var older []uint64
	for subject := range subjects {
		s, err := messages.ParseEventSubject(subject)
		if err == nil && s.Generation >= made && s.Generation < now {
			older = append(older, s.Generation)
		}
	}
	slices.Sort(older)
	older = slices.Compact(older)
	slices.Reverse(older)
	return older
}
