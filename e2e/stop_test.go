package e2e_test

import (
	"errors"
	"fmt"
	"os/exec"
	"syscall"
	"testing"
	"time"

	"google.golang.org/protobuf/types/known/durationpb"

	"fulmar/messages"
	fulmarv1 "fulmar/messages/fulmar/v1"
)

// stopTime is what `fulmar up` takes to end at most, as docs/OPERATIONS.md says.
const stopTime = 10 * time.Second

// TestUpEndsInTimeWhateverIsUnderway asks Fulmar to end at different moments of many deployments at once, under load. What was
// underway goes on when it is back.
func TestUpEndsInTimeWhateverIsUnderway(t *testing.T) {
	const stacks = 6
	w := newLab(t)
	up := w.up()
	w.connect()
	w.deploy("web", 8080, "v1")
	load := w.Load(at(8080), rate/5)
	for round, moment := range []messages.Verb{messages.Accepted, messages.Leased, messages.Started, messages.Published} {
		generations := map[string]uint64{}
		for i := range stacks {
			stack := fmt.Sprintf("s%d", i)
			generations[stack] = w.request(deploy, stack, w.hello(fmt.Sprintf("v%d", round), func(r *fulmarv1.DeployRequest) {
				if i%2 == 1 {
					checked("/sleep?ms=500")(r)
				}
				r.Units[0].Ports[0].Port = 9000 + uint32(i)
				r.Drain = durationpb.New(time.Duration(i) * time.Second)
			}))
		}
		w.await("s2", generations["s2"], moment)
		begin := time.Now()
		if err := up.Stop(); err != nil {
			t.Fatal(err)
		}
		took := time.Since(begin)
		t.Logf("stopped at %s in %s", moment, took)
		if took > stopTime {
			t.Errorf("it took %s to end when s2 was %s, more than %s", took, moment, stopTime)
		}
		up = w.up()
		for stack, g := range generations {
			if s := w.await(stack, g, messages.Published, messages.Failed); s.Verb != messages.Published {
				t.Errorf("%s ends as %v", s.Name(), s)
			}
		}
	}
	w.flowing(load, "v1", rate/5)
	w.unfailing(load)
	for i := range stacks {
		w.answers(9000+uint16(i), "v3")
		w.cli("retire", fmt.Sprintf("s%d", i), "--wait")
	}
	w.cli("retire", "web", "--wait")
	w.retired()
}

// TestUpEndsWhileItStarts asks Fulmar to end at ever later moments of its start.
func TestUpEndsWhileItStarts(t *testing.T) {
	w := newLab(t)
	for moment := range 20 {
		up, err := w.Start("fulmar", "", w.UpArgs()...)
		if err != nil {
			t.Fatal(err)
		}
		<-time.After(time.Duration(moment) * 6 * time.Millisecond)
		begin := time.Now()
		err = up.Stop()
		var early *exec.ExitError // the program had not begun
		if errors.As(err, &early) && early.Sys().(syscall.WaitStatus).Signaled() {
			err = nil
		}
		if took := time.Since(begin); err != nil || took > stopTime {
			t.Errorf("it took %s to end: %v", took, err)
		}
	}
}
