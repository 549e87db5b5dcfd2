package crash_test

import (
	"context"
	"fmt"
	"maps"
	"os"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"fulmar/e2e/lab"
	"fulmar/messages"
	fulmarv1 "fulmar/messages/fulmar/v1"
)

const (
	manyStacks  = 3
	manyUpdates = 10
)

// TestReplicasDoNothingTwice has two of each service, and asks for updates of several stacks without waiting for one
// another; then the first of each is killed for good, and the second goes on alone.
func TestReplicasDoNothingTwice(t *testing.T) {
	w := newWorld(t, 2)
	created := w.countCreated()
	var stacks []*life
	for i := range manyStacks {
		stacks = append(stacks, w.newLife(t, fmt.Sprintf("many%d", i+1), uint16(8000+i)))
	}
	w.updates(stacks, func(l *life, i int) { l.ask(fulmarv1.Kind_KIND_DEPLOY, fmt.Sprintf("v%d", i)) })
	for _, l := range stacks {
		l.newestServes()
		l.held()
	}
	for _, s := range services { // nat among them: its second one takes over
		if _, complaints := w.members[s].end(); len(complaints) > 0 {
			t.Error(complaints)
		}
		w.order = slices.DeleteFunc(w.order, func(m *member) bool { return m == w.members[s] })
	}
	for _, l := range stacks {
		l.run(update, "alone")
		l.run(retire, "")
		l.ended()
	}
	w.nothingLeft()
	if twice := created(); len(twice) > 0 {
		t.Errorf("instances were made more than once: %q", twice)
	}
}

// updates asks for so many updates of each stack, all stacks at once.
func (w *world) updates(stacks []*life, ask func(*life, int)) {
	w.t.Helper()
	var asking sync.WaitGroup
	for _, l := range stacks {
		asking.Go(func() {
			for i := range manyUpdates {
				ask(l, i+1)
			}
		})
	}
	asking.Wait()
}

// ask stores a request without waiting for what becomes of it.
func (l *life) ask(kind fulmarv1.Kind, text string) {
	id := fmt.Sprintf("%s-%d", l.stack, len(l.generations))
	l.generations = append(l.generations, l.request(l.t, kind, l.stack, id, l.body(text)))
	l.serves = text
}

// newestServes fails the test unless the newest deployment was published and serves, and all others have ended: published
// before it, or overtaken.
func (l *life) newestServes() {
	l.t.Helper()
	for i, g := range l.generations {
		s := l.await(g, messages.Published, messages.Failed, messages.Rejected)
		newest := i == len(l.generations)-1
		overtaken := s.Verb == messages.Failed && s.Event.GetReasonCode() == fulmarv1.ReasonCode_REASON_CODE_SUPERSEDED
		if s.Verb != messages.Published && (newest || !overtaken) {
			l.t.Errorf("%v ends the deployment", s)
		}
		if !newest {
			l.await(g, messages.Retired)
		}
	}
	l.served()
	l.ended()
}

// held fails the test unless the leases that are held are those of what is live.
func (l *life) held() {
	l.t.Helper()
	want := map[string]bool{}
	for _, i := range messages.InState(l.head(l.t, l.stack), fulmarv1.State_STATE_LIVE).GetInstances() {
		want[messages.LeaseKey(i.GetNetwork(), i.GetAddress())+" of "+i.GetName()] = true
	}
	l.until(l.t, func(ctx context.Context) error {
		leases, err := l.bus.Leases.All(ctx)
		if err != nil {
			return err
		}
		have := map[string]bool{}
		for key, lease := range leases {
			if strings.HasPrefix(lease.GetInstance(), l.stack+".") && lease.GetRestingUntil() == nil {
				have[key+" of "+lease.GetInstance()] = true
			}
		}
		if !maps.Equal(have, want) {
			return fmt.Errorf("leases held are %v, live are %v", have, want)
		}
		return nil
	})
}

// countCreated counts the creates that the host has answered with success, by instance, and gives a function that lists
// the instances with more than one.
func (w *world) countCreated() func() []string {
	var mu sync.Mutex
	count := map[string]int{}
	for _, d := range w.daemons {
		d.Observe(func(m lab.Message) {
			if m.Subject == "created" {
				mu.Lock()
				defer mu.Unlock()
				count[string(m.Body)]++
			}
		})
	}
	return func() []string {
		mu.Lock()
		defer mu.Unlock()
		if len(count) == 0 {
			w.t.Error("no instance was made at all")
		}
		var twice []string
		for name, n := range count {
			if n > 1 {
				twice = append(twice, fmt.Sprintf("%s %d times", name, n))
			}
		}
		slices.Sort(twice)
		return twice
	}
}

// TestFrozenNatPublishesOnce freezes nat when it has sent that a deployment is live and nobody has it yet, until its work
// is given to it a second time: the other nat must wait, and one switch must come of it.
func TestFrozenNatPublishesOnce(t *testing.T) {
	w := newWorld(t, 2)
	l := w.newLife(t, "web", 8080)
	l.run(first, "v1")
	ctx := w.patient(t)
	nat := w.acting(ctx)
	for i := 1; !l.frozenPublishing(ctx, nat, fmt.Sprintf("v2.%d", i)); i++ {
		if i == 5 {
			t.Fatal("its work was not delivered again")
		}
	}
	if err := w.members[nat].kill(); err != nil { // now the other one acts
		t.Fatal(err)
	}
	l.run(update, "v3")
	l.run(retire, "")
	l.ended()
	w.nothingLeft()
}

// frozenPublishing asks for an update and freezes nat in the middle of it. It reports whether nat's work was then given to
// it again, which takes a pull request that it has made before: that waits for 5 seconds, of which what is not
// acknowledged takes 2 to come again, and a slow machine may take the rest.
func (l *life) frozenPublishing(ctx context.Context, nat, text string) bool {
	l.t.Helper()
	wire := l.members[nat].wire
	pull := wire.Trap(lab.Before, func(m lab.Message) bool {
		return m.Subject == "$JS.API.CONSUMER.MSG.NEXT."+messages.EventStream+".nat-"+lab.HostName
	})
	err := pull.Await(ctx)
	head := wire.Trap(lab.Before, writesHead(nil)(l.stack))
	pull.Pass()
	if err != nil {
		l.t.Fatal(err)
	}
	l.ask(fulmarv1.Kind_KIND_DEPLOY, text)
	if err := head.Await(ctx); err != nil {
		l.t.Fatal(err)
	}
	p, err := l.members[nat].running(ctx)
	if err == nil {
		err = p.Freeze()
	}
	if err != nil {
		l.t.Fatal(err)
	}
	again := l.redelivered(ctx)
	if said := l.verbs(l.generations[len(l.generations)-1]); said[len(said)-1] != messages.Healthy {
		l.t.Errorf("the other nat did not wait: %q", said)
	}
	if err := p.Thaw(); err != nil {
		l.t.Fatal(err)
	}
	head.Pass()
	l.newestServes()
	return again
}

// redelivered waits until work that nat has in hand is given to it again, at most for as long as a pull request waits.
func (l *life) redelivered(ctx context.Context) bool {
	ctx, cancel := context.WithTimeout(ctx, 6*time.Second)
	defer cancel()
	return lab.Until(ctx, func() error {
		c, err := l.bus.JS.Consumer(ctx, messages.EventStream, "nat-"+lab.HostName)
		if err != nil {
			return err
		}
		if info := c.CachedInfo(); info.NumRedelivered == 0 {
			return fmt.Errorf("it was not: %+v", info)
		}
		return nil
	}) == nil
}

// acting gives the nat that holds the lock of the network namespace: the one that hears events.
func (w *world) acting(ctx context.Context) string {
	w.t.Helper()
	for _, name := range []string{"nat", "nat-2"} {
		p, err := w.members[name].running(ctx)
		if err != nil {
			w.t.Fatal(err)
		}
		text, err := os.ReadFile(p.Log())
		if err != nil {
			w.t.Fatal(err)
		}
		if !strings.Contains(string(text), "another nat acts") {
			return name
		}
	}
	w.t.Fatal("no nat acts")
	return ""
}
