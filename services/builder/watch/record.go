package watch

import (
	"time"

	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/timestamppb"

	"fulmar/messages"
	fulmarv1 "fulmar/messages/fulmar/v1"
)

// The changes of a watch's record that do not come from a look. Each is pure: it takes a record as it was read, and gives
// the record to write by compare-and-set, or the very same pointer when there is nothing to write. The record that was
// given is never changed.

// gap is the time between two looks that somebody asks for, so that who asks often costs no more.
const gap = 2 * time.Second

// Following reports whether a record follows anything: one that was ended does not.
func Following(w *fulmarv1.Watch) bool { return w.GetRequest() != nil }

// Enter takes an accepted request for new content, or nil for a retirement, into the record of its stack. A request
// without watch ends it. An older generation than the record's changes nothing, so a late worker does no harm.
//
// The build of a request that the watch sent is no older than what was found before that: this is what the new generation
// has seen. What the request of a person meets is not known yet, so its sources have their first look at once.
func Enter(have *fulmarv1.Watch, stack string, generation uint64, request *fulmarv1.DeployRequest, now time.Time) (*fulmarv1.Watch, error) {
	if have.GetGeneration() >= generation {
		return have, nil
	}
	if !request.GetWatch() {
		if !Following(have) {
			return have, nil
		}
		return &fulmarv1.Watch{Stack: stack, Generation: generation}, nil
	}
	sources, err := Sources(stack, request)
	if err != nil {
		return nil, err
	}
	n := &fulmarv1.Watch{Stack: stack, Generation: generation, Request: proto.CloneOf(request), Sources: sources, Paused: have.GetPaused(), Next: have.GetNext(), Asked: have.GetAsked()}
	n.Request.Cause, n.Request.IfNewest = "", nil
	own := request.GetCause() != "" && proto.Equal(n.GetRequest(), have.GetRequest())
	if !own {
		n.Next = timestamppb.New(now)
	}
	for i, s := range n.GetSources() {
		old := find(have, s)
		if old == nil {
			continue
		}
		n.Sources[i] = proto.CloneOf(old)
		n.Sources[i].Seen, n.Sources[i].Presumed = "", false
		if own {
			n.Sources[i].Seen = old.GetFound()
		}
	}
	return n, nil
}

// find gives the source of a record that is the same as s, or nil.
func find(w *fulmarv1.Watch, s *fulmarv1.WatchedSource) *fulmarv1.WatchedSource {
	for _, old := range w.GetSources() {
		if old.GetUnit() == s.GetUnit() && old.GetSource() == s.GetSource() {
			return old
		}
	}
	return nil
}

// Pause keeps a watch from looking until it is resumed, whatever is deployed meanwhile.
func Pause(w *fulmarv1.Watch) *fulmarv1.Watch {
	if w.GetPaused() {
		return w
	}
	n := proto.CloneOf(w)
	n.Paused = true
	return n
}

// Resume ends a pause, and asks for a look.
func Resume(w *fulmarv1.Watch, now time.Time) *fulmarv1.Watch {
	n := proto.CloneOf(w)
	n.Paused = false
	return Check(n, "fulmar watch resume", now)
}

// Check asks, for a person, for a look at once. If the request that was sent last was rejected it may be sent again.
func Check(w *fulmarv1.Watch, who string, now time.Time) *fulmarv1.Watch {
	n := proto.CloneOf(w)
	n.Asked, n.Next, n.Sent, n.SentNewest = who, timestamppb.New(now), 0, 0
	return n
}

// Ask asks, for a program, for a look as soon as the last one is a while ago. It wakes no watch that is paused.
func Ask(w *fulmarv1.Watch, who string, now time.Time) *fulmarv1.Watch {
	at := now
	for _, s := range w.GetSources() {
		if s.GetLooked() != nil && s.GetLooked().AsTime().Add(gap).After(at) {
			at = s.GetLooked().AsTime().Add(gap)
		}
	}
	if w.GetPaused() || !w.GetNext().AsTime().After(at) {
		return w
	}
	n := proto.CloneOf(w)
	n.Asked, n.Next = who, timestamppb.New(at)
	return n
}

// Sent notes that the request of a watch was sent, unless the record has moved on since: then it is accepted, or another
// look is about to send it.
func Sent(have, sent *fulmarv1.Watch, generation, newest uint64, next time.Time) *fulmarv1.Watch {
	same := &fulmarv1.Watch{Sources: have.GetSources()}
	if have.GetGeneration() != sent.GetGeneration() || have.GetSent() != sent.GetSent() || !proto.Equal(same, &fulmarv1.Watch{Sources: sent.GetSources()}) {
		return have
	}
	n := proto.CloneOf(have)
	n.Sent, n.SentNewest = generation, newest
	if proto.Equal(have.GetNext(), sent.GetNext()) {
		n.Next = timestamppb.New(next)
	}
	return n
}

// Sources gives the sources of a request that can be followed.
func Sources(stack string, request *fulmarv1.DeployRequest) ([]*fulmarv1.WatchedSource, error) {
	n, err := messages.Normalize(stack, request)
	if err != nil {
		return nil, err
	}
	var sources []*fulmarv1.WatchedSource
	for _, u := range n.GetUnits() {
		if messages.Watchable(u.GetImage()) {
			sources = append(sources, &fulmarv1.WatchedSource{Unit: u.GetName(), Source: Name(u.GetImage())})
		}
	}
	return sources, nil
}

// Name gives a source that can be followed as a person writes it, without credentials.
func Name(i *fulmarv1.Image) string {
	if sum := i.GetSha256Url(); sum != "" {
		i = &fulmarv1.Image{Source: &fulmarv1.Image_Url{Url: sum}}
	}
	return messages.SourceText(i)
}
