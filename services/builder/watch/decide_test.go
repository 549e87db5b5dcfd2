package watch

import (
	"errors"
	"fmt"
	"math"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/testing/protocmp"

	"fulmar/messages"
	fulmarv1 "fulmar/messages/fulmar/v1"
)

func answer(value string) []Answer { return []Answer{{Value: value}} }

func TestWeigh(t *testing.T) {
	const interval = time.Minute
	settled := Made{Newest: 7, Settled: true, Ended: true}
	made := func(value string) Made {
		m := settled
		m.Values = map[string]string{"web": value}
		return m
	}
	source := func(seen, found string) func(*fulmarv1.Watch, *fulmarv1.WatchedSource) {
		return func(_ *fulmarv1.Watch, s *fulmarv1.WatchedSource) { s.Seen, s.Found = seen, found }
	}
	presumed := func(_ *fulmarv1.Watch, s *fulmarv1.WatchedSource) { s.Seen, s.Found, s.Presumed = one, one, true }
	sentFor := func(found string) func(*fulmarv1.Watch, *fulmarv1.WatchedSource) {
		return func(w *fulmarv1.Watch, s *fulmarv1.WatchedSource) {
			s.Seen, s.Found, w.Sent, w.SentNewest = one, found, 8, 7
		}
	}
	rejected := func(newest uint64) Made { return Made{Newest: newest, Settled: true, Ended: true, Rejected: true} }
	from := func(a, b string) []Move { return []Move{{wwwMain, a, b}} }

	for name, c := range map[string]struct {
		have    *fulmarv1.Watch
		answers []Answer
		made    Made
		moves   []Move
		seen    string
		next    time.Duration
	}{
		"nothing moved":                {followed(source(one, one)), answer(one), settled, nil, one, interval},
		"it moved":                     {followed(source(one, one)), answer(two), settled, from(one, two), one, soon},
		"the first look moves nothing": {followed(source("", "")), answer(one), Made{Newest: 7, Settled: true}, nil, one, interval},
		"the first look after the build, which is so":   {followed(source("", "")), answer(one), made(one), nil, one, interval},
		"the first look after the build met older":      {followed(source("", "")), answer(two), made(one), from(one, two), one, soon},
		"the build met something older than the look":   {followed(presumed), answer(one), made(two), from(two, one), two, soon},
		"the build met something newer, which it is":    {followed(presumed), answer(two), made(two), nil, two, interval},
		"it moves while the first build is underway":    {followed(presumed), answer(two), Made{Newest: 7, Settled: true}, from(one, two), one, soon},
		"the first build failed":                        {followed(presumed), answer(one), settled, nil, one, interval},
		"what moved was met by the build already":       {followed(source(one, one)), answer(two), made(two), nil, two, interval},
		"a build cannot have met older than was seen":   {followed(source(two, two)), answer(two), made(one), nil, two, interval},
		"a builder died before it sent":                 {followed(source(one, two)), answer(two), settled, from(one, two), one, soon},
		"what was sent is not accepted yet":             {followed(sentFor(two)), answer(two), settled, nil, one, interval},
		"what was sent is rejected":                     {followed(sentFor(two)), answer(two), rejected(7), nil, one, interval},
		"what was sent is rejected, and it moves again": {followed(sentFor(two)), answer(three), rejected(7), from(one, three), one, soon},
		"it is rejected because the stack moved":        {followed(sentFor(two)), answer(two), rejected(9), from(one, two), one, soon},
		"it is sent, and moves back":                    {followed(sentFor(two)), answer(one), settled, nil, one, interval},
		"the newest request is just being accepted":     {followed(source(one, one)), answer(two), Made{Newest: 8, Ended: true}, nil, one, soon},
		"it cannot be reached":                          {followed(source(one, one)), []Answer{{Err: errors.New("no route")}}, settled, nil, one, 2 * interval},
		"it asks to stay away":                          {followed(source(one, one)), []Answer{{Err: fmt.Errorf("look: %w", busyError{errors.New("busy"), time.Hour})}}, settled, nil, one, time.Hour},
		"it asks to stay away for ever":                 {followed(source(one, one)), []Answer{{Err: busyError{errors.New("busy"), math.MaxInt64}}}, settled, nil, one, 24 * time.Hour},
	} {
		t.Run(name, func(t *testing.T) {
			before := proto.CloneOf(c.have)
			c.have.Asked = "me"
			got, moves := Weigh(c.have, c.answers, c.made, interval, begin)
			if diff := cmp.Diff(c.moves, moves); diff != "" {
				t.Errorf("moves (-want +got):\n%s", diff)
			}
			s := got.GetSources()[0]
			if next := got.GetNext().AsTime().Sub(begin); s.GetSeen() != c.seen || next != c.next || !s.GetLooked().AsTime().Equal(begin) || got.GetAsked() != "" {
				t.Errorf("next after %s, want %s; seen %s, want %s: %v", next, c.next, s.GetSeen(), c.seen, got)
			}
			c.have.Asked = ""
			if diff := cmp.Diff(before, c.have, protocmp.Transform()); diff != "" {
				t.Errorf("what was given was changed:\n%s", diff)
			}
		})
	}
}

// TestASourceThatFailsHoldsTheOthers has a stack of two sources of which one moves while the other cannot be reached.
func TestASourceThatFailsHoldsTheOthers(t *testing.T) {
	w := &fulmarv1.Watch{Stack: "duo", Generation: 7, Request: www(), Sources: []*fulmarv1.WatchedSource{
		{Unit: "a", Source: "a", Seen: one, Found: one}, {Unit: "b", Source: "b", Seen: one, Found: one},
	}}
	m := Made{Newest: 7, Settled: true}
	for i, want := range []time.Duration{2 * time.Minute, 4 * time.Minute, 8 * time.Minute, 16 * time.Minute, 32 * time.Minute, time.Hour, time.Hour} {
		var moves []Move
		w, moves = Weigh(w, []Answer{{Value: two, ETag: "x"}, {Err: errors.New("no\nroute")}}, m, time.Minute, begin)
		b := w.GetSources()[1]
		if len(moves) != 0 || w.GetNext().AsTime().Sub(begin) != want || b.GetFailures() != uint32(i+1) || b.GetError() != "no route" || b.GetFound() != one {
			t.Fatalf("after %d failures: %v, %v; next after %s, want %s", i+1, moves, b, w.GetNext().AsTime().Sub(begin), want)
		}
	}
	w, moves := Weigh(w, []Answer{{Value: two}, {Value: one}}, m, time.Minute, begin)
	if diff := cmp.Diff([]Move{{"a", one, two}}, moves); diff != "" || w.GetSources()[1].GetError() != "" || w.GetSources()[1].GetFailures() != 0 {
		t.Errorf("when it is back: %v\n%s", w, diff)
	}
}

func TestALookIsNeverSoonerThanItsInterval(t *testing.T) {
	if got := backoff(2*time.Hour, 3); got != 2*time.Hour {
		t.Errorf("after failures it is sooner: %s", got)
	}
	if got := backoff(time.Minute, math.MaxUint32); got != time.Hour {
		t.Errorf("after many failures it is after %s", got)
	}
}

func TestAgain(t *testing.T) {
	r := deployOf(dockerUnit("", "registry.example/www:live"))
	w := &fulmarv1.Watch{Request: r}
	got := Again(w, []Move{{"registry.example/www:live", "sha256:" + one, "sha256:" + two}}, "webhook of GitHub", 7)
	want := proto.CloneOf(r)
	want.Cause, want.IfNewest = "registry.example/www:live moved from 1111111 to 2222222 (webhook of GitHub)", proto.Uint64(7)
	if diff := cmp.Diff(want, got, protocmp.Transform()); diff != "" {
		t.Errorf("the request (-want +got):\n%s", diff)
	}
	if r.GetCause() != "" || r.IfNewest != nil {
		t.Error("what is stored was changed")
	}
}

func TestCauseFitsARequest(t *testing.T) {
	long := strings.Repeat("ü", messages.MaxCause)
	for _, moves := range [][]Move{
		{{"main of " + long, one, two}}, {{long, one, two}, {"b", one, two}, {"c", one, two}}, {{"main", "", "x"}},
	} {
		c := Cause(moves, "webhook of GitHub")
		if len(c) > messages.MaxCause || !strings.Contains(c, " moved from ") || !strings.HasSuffix(c, "(webhook of GitHub)") {
			t.Errorf("%d bytes: %s", len(c), c)
		}
		r := www()
		r.Cause = c
		if _, err := messages.Normalize("web", r); err != nil {
			t.Error(err)
		}
	}
	if got, want := Cause([]Move{{"a", one, two}, {"b", one, two}}, ""), "a moved from 1111111 to 2222222, and 1 more"; got != want {
		t.Errorf("got %q, want %q", got, want)
	}
}
