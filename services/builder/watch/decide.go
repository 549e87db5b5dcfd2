package watch

import (
	"fmt"
	"strings"
	"time"

	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/timestamppb"

	"fulmar/messages"
	fulmarv1 "fulmar/messages/fulmar/v1"
)

const (
	maxBackoff = time.Hour      // between two looks at a source that fails
	maxWait    = 24 * time.Hour // that a server may ask for
	maxError   = 300            // bytes of an error in a record
	soon       = 10 * time.Second
)

// Answer is what a source is at a time.
type Answer struct {
	Value string // a commit, a digest or a SHA-256
	ETag  string // of the answer over http
	Err   error  // then there is no value
}

// Made is what the bus tells of the requests of a watch.
type Made struct {
	Values   map[string]string // by unit: what the generation of the watch is made of, as far as its events tell
	Ended    bool              // its events tell no more
	Newest   uint64            // the newest generation of the stack
	Settled  bool              // whether the watch's record has heard of the newest generation
	Rejected bool              // whether the request that was sent last was rejected
}

// Move is a source that is something else than its watch has seen.
type Move struct {
	Source, From, To string
}

// Weigh takes the answers of all sources into the record of a watch, and gives what has moved if the request is to be sent
// again now. It is sent when every source answers: one that does not would fail the deployment. It is not sent again for
// the same values, unless it was rejected and the stack has moved on since.
func Weigh(have *fulmarv1.Watch, answers []Answer, m Made, interval time.Duration, now time.Time) (*fulmarv1.Watch, []Move) {
	w := proto.CloneOf(have)
	w.Asked = ""
	var moves []Move
	var failures uint32
	var asked time.Duration
	for i, s := range w.GetSources() {
		s.Looked = timestamppb.New(now)
		a := answers[i]
		if a.Err != nil {
			s.Error, s.Failures = sentence(a.Err), s.GetFailures()+1
			failures, asked = max(failures, s.GetFailures()), max(asked, wait(a.Err))
			continue
		}
		s.Error, s.Failures = "", 0
		if s.GetFound() != a.Value {
			w.Sent, w.SentNewest = 0, 0 // whatever became of it, there is something newer
		}
		s.Found, s.Etag = a.Value, a.ETag
		settle(s, m)
		if s.GetFound() != s.GetSeen() {
			moves = append(moves, Move{Source: s.GetSource(), From: s.GetSeen(), To: s.GetFound()})
		}
	}
	w.Next = timestamppb.New(now.Add(interval))
	switch {
	case failures > 0:
		w.Next = timestamppb.New(now.Add(max(backoff(interval, failures), min(asked, maxWait))))
		return w, nil
	case len(moves) == 0, w.GetSent() != 0 && (!m.Rejected || m.Newest == w.GetSentNewest()):
		return w, nil
	}
	w.Next = timestamppb.New(now.Add(soon)) // should this builder die before the request is sent
	if !m.Settled {
		return w, nil
	}
	return w, moves
}

// settle says what a source was for the generation of its watch. What the first look found is only presumed: the build
// may have met something older or newer, and tells. Once that is known a build can only be newer than what was seen.
func settle(s *fulmarv1.WatchedSource, m Made) {
	value := m.Values[s.GetUnit()]
	if s.GetSeen() == "" {
		s.Seen, s.Presumed = s.GetFound(), true
	}
	switch {
	case value != "" && (s.GetPresumed() || value == s.GetFound()):
		s.Seen, s.Presumed = value, false
	case m.Ended:
		s.Presumed = false
	}
}

// backoff is the time to the next look after failures in a row: the interval, doubled each time, at most an hour.
func backoff(interval time.Duration, failures uint32) time.Duration {
	return max(interval, min(interval<<min(failures, 16), maxBackoff))
}

// Due reports whether a watch is to be looked at, and when that will be if not.
func Due(w *fulmarv1.Watch, now time.Time) (bool, time.Time) {
	next := w.GetNext().AsTime()
	return Following(w) && !w.GetPaused() && !next.After(now), next
}

// Again gives the request that a watch sends when sources have moved.
func Again(w *fulmarv1.Watch, moves []Move, asked string, newest uint64) *fulmarv1.DeployRequest {
	r := proto.CloneOf(w.GetRequest())
	r.Cause, r.IfNewest = Cause(moves, asked), &newest
	return r
}

// Cause says in one line why a request is sent again.
func Cause(moves []Move, asked string) string {
	m := moves[0]
	tail := fmt.Sprintf(" moved from %s to %s", short(m.From), short(m.To))
	if n := len(moves) - 1; n > 0 {
		tail += fmt.Sprintf(", and %d more", n)
	}
	if asked != "" {
		tail += " (" + asked + ")"
	}
	return limited(m.Source, messages.MaxCause-len(tail)) + tail
}

// short is a value as people say it.
func short(value string) string {
	value = strings.TrimPrefix(value, "sha256:")
	return value[:min(len(value), 7)]
}

// sentence makes one line of an error, of a length that a record can hold.
func sentence(err error) string {
	return limited(strings.Join(strings.Fields(err.Error()), " "), maxError)
}

// limited cuts a text to a number of bytes.
func limited(s string, n int) string {
	s = strings.ToValidUTF8(s, "\uFFFD")
	if len(s) <= n {
		return s
	}
	const more = "…"
	return strings.ToValidUTF8(s[:max(n-len(more), 0)], "") + more
}
