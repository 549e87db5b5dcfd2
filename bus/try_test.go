package bus_test

import (
	"context"
	"errors"
	"runtime"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"fulmar/bus"
	"fulmar/messages"
	fulmarv1 "fulmar/messages/fulmar/v1"
)

func TestHowATryEndedIsRemembered(t *testing.T) {
	w := newWorld(t)
	told := w.subscribe(messages.TryFilter())
	tries := w.Tries()
	w.start(tries.Run)
	var calls atomic.Int32
	answers := []error{bus.Later(time.Millisecond), messages.ErrLate, errors.New("no route"), errors.New(strings.Repeat("very ", 1000) + "busy")}
	w.step(w.replica(bus.Options{Service: "vmm"}), lease(func(context.Context, *fulmarv1.Event) (messages.Verb, error) {
		n := int(calls.Add(1))
		if n > len(answers) {
			return messages.Leased, nil
		}
		return "", answers[n-1]
	}))
	w.say("web", 42, messages.Built)
	w.await(messages.Leased)
	for range 2 { // and not the two that are no errors
		if _, err := told.NextMsg(patience); err != nil {
			t.Fatal(err)
		}
	}
	if n, _, err := told.Pending(); n != 0 || err != nil {
		t.Errorf("%d more tries were told, %v", n, err)
	}
	for begin := time.Now(); tries.Last("web", 42, messages.Built) == ""; runtime.Gosched() { // another goroutine hears it
		if time.Since(begin) > patience {
			t.Fatal("nothing is remembered")
		}
	}
	got := tries.Last("web", 42, messages.Built)
	if !strings.HasPrefix(got, "vmm: ") || len(got) > 700 {
		t.Errorf("the last try is %q", got)
	}
	if got := tries.Last("web", 42, messages.Leased); got != "" {
		t.Errorf("of another step it is %q", got)
	}
	tries.Forget(func(string, uint64) bool { return false })
	if got := tries.Last("web", 42, messages.Built); got != "" {
		t.Errorf("after it was forgotten it is %q", got)
	}
}

func TestATryOnTheWayDownIsNotTold(t *testing.T) {
	w := newWorld(t)
	told := w.subscribe(messages.TryFilter())
	var calls atomic.Int32
	w.step(w.replica(bus.Options{}), bus.Step{Name: "stop", Hears: []messages.Verb{messages.Drained}, Handle: func(context.Context, *fulmarv1.Event) (messages.Verb, error) {
		if calls.Add(1) < 3 {
			return "", errors.New("the daemon is busy")
		}
		return messages.Stopped, nil
	}})
	w.say("web", 42, messages.Drained)
	w.await(messages.Stopped)
	if n, _, err := told.Pending(); n != 0 || err != nil {
		t.Errorf("%d tries were told, %v", n, err)
	}
}
