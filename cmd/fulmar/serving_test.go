package main

import (
	"context"
	"strings"
	"sync"
	"testing"
	"time"

	"fulmar/messages"
	fulmarv1 "fulmar/messages/fulmar/v1"
)

// TestADeploymentThatNobodyTakesSaysWhoIsMissing goes up step by step.
func TestADeploymentThatNobodyTakesSaysWhoIsMissing(t *testing.T) {
	w := newQuietWorld(t)
	ctx, cancel := context.WithCancel(t.Context())
	out, errout := make(lines, 100), make(lines, 100)
	var wg sync.WaitGroup
	wg.Go(func() {
		execute(ctx, []string{"--nats", w.url, "deploy", "web", strings.Repeat("0", 64)}, out, errout)
	})
	defer wg.Wait()
	defer cancel()
	tells := func(want string) {
		t.Helper()
		select {
		case told := <-errout:
			if told != want+"\n" {
				t.Errorf("it tells %swant %s", told, want)
			}
		case <-time.After(20 * time.Second):
			t.Fatalf("it does not tell %s", want)
		}
	}
	tells("note: web-1 is not accepted yet: no builder runs")
	w.serve("builder", "")
	d := &fulmarv1.Deployment{Stack: "web", Generation: 1, Network: &fulmarv1.Network{Host: "h1"}}
	last := uint64(0)
	for _, c := range []struct {
		verb messages.Verb
		want string
	}{
		{messages.Accepted, ""}, // it builds, which may take long
		{messages.Built, "note: web-1 is not leased yet: no ipam runs"},
		{messages.Started, "note: web-1 is not healthy yet: no monitor runs for host h1"},
	} {
		if err := w.bus.Say(ctx, &fulmarv1.Event{Verb: string(c.verb), Deployment: d}, last); err != nil {
			t.Fatal(err)
		}
		var err error
		if _, last, err = w.bus.Last(ctx, "web", 1); err != nil {
			t.Fatal(err)
		}
		if c.want != "" {
			tells(c.want)
		}
	}
	f := &follower{env: &env{ctx: ctx, cli: &cli{}, err: errout}, bus: w.bus, stack: "web", generation: 2}
	if err := f.sayWhoIsMissing(said{}); err != nil {
		t.Fatal(err)
	}
	tells("note: web-2 is not accepted yet: a builder runs and has not taken it; its log may say why")
	accepted := said{subject: messages.EventSubject{Verb: messages.Accepted}, event: &fulmarv1.Event{Deployment: d}}
	if err := f.sayWhoIsMissing(accepted); err != nil || len(errout) > 0 {
		t.Errorf("of one that is built: %v", err)
	}
}
