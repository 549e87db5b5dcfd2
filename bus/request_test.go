package bus_test

import (
	"context"
	"errors"
	"runtime"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"fulmar/bus"
	"fulmar/messages"
	fulmarv1 "fulmar/messages/fulmar/v1"
)

const deploy = fulmarv1.Kind_KIND_DEPLOY

type requestHandler = func(context.Context, bus.Request) (*fulmarv1.Event, error)

func (w *world) requests(b *bus.Bus, handle requestHandler) (stop func()) {
	w.t.Helper()
	return w.start(func(ctx context.Context) error { return b.RunRequests(ctx, "accept", handle) })
}

func (w *world) request(kind fulmarv1.Kind, stack, body string) uint64 {
	w.t.Helper()
	generation, err := w.Request(w.t.Context(), kind, stack, []byte(body))
	if err != nil {
		w.t.Fatal(err)
	}
	return generation
}

func accepts(_ context.Context, r bus.Request) (*fulmarv1.Event, error) {
	return event(r.Stack, r.Generation, messages.Accepted), nil
}

func TestARequestIsItsGeneration(t *testing.T) {
	w := newWorld(t)
	got := make(chan bus.Request, 2)
	w.requests(w.replica(bus.Options{}), func(ctx context.Context, r bus.Request) (*fulmarv1.Event, error) {
		got <- r
		return accepts(ctx, r)
	})
	before := time.Now()
	first := w.request(deploy, "web", `{"network":"lan"}`)
	second := w.request(fulmarv1.Kind_KIND_RETIRE, "dns", "")
	if first != 1 || second != 2 {
		t.Errorf("stored as %d and %d", first, second)
	}
	r := <-got
	if r.Generation != 1 || r.Kind != deploy || r.Stack != "web" || string(r.Body) != `{"network":"lan"}` || r.Time.Before(before.Add(-time.Second)) {
		t.Errorf("got %+v", r)
	}
	if e := w.await(messages.Accepted); e.GetDeployment().GetGeneration() != 1 {
		t.Errorf("got %v", e)
	}
	if r := <-got; r.Generation != 2 || r.Kind != fulmarv1.Kind_KIND_RETIRE || r.Stack != "dns" {
		t.Errorf("got %+v", r)
	}
}

// TestRequestsAreTakenInTheirOrder has two replicas, and every third request needs a second try.
func TestRequestsAreTakenInTheirOrder(t *testing.T) {
	const requests = 30
	w := newWorld(t)
	var mu sync.Mutex
	var order []uint64
	var busy atomic.Int32
	tried := map[uint64]bool{}
	handle := func(ctx context.Context, r bus.Request) (*fulmarv1.Event, error) {
		if busy.Add(1) > 1 {
			t.Error("two requests were handled at once")
		}
		defer busy.Add(-1)
		mu.Lock()
		defer mu.Unlock()
		if r.Generation%3 == 0 && !tried[r.Generation] {
			tried[r.Generation] = true
			return nil, errors.New("not now")
		}
		order = append(order, r.Generation)
		return accepts(ctx, r)
	}
	w.requests(w.replica(bus.Options{}), handle)
	w.requests(w.replica(bus.Options{}), handle)
	var want []uint64
	for range requests {
		want = append(want, w.request(deploy, "web", "{}"))
	}
	for range requests {
		w.await(messages.Accepted)
	}
	mu.Lock()
	defer mu.Unlock()
	if diff := cmp.Diff(want, order); diff != "" {
		t.Errorf("order (-want +got):\n%s", diff)
	}
}

func TestARefusalRejectsARequest(t *testing.T) {
	w := newWorld(t)
	w.requests(w.replica(bus.Options{Service: "builder"}), func(context.Context, bus.Request) (*fulmarv1.Event, error) {
		return nil, messages.Refuse(fulmarv1.ReasonCode_REASON_CODE_NOT_FOUND, "network %q does not exist", "lan")
	})
	w.request(fulmarv1.Kind_KIND_RENEW, "web", "")
	e := w.await(messages.Rejected)
	if e.GetReason() != `network "lan" does not exist` || e.GetReasonCode() != fulmarv1.ReasonCode_REASON_CODE_NOT_FOUND || e.GetService() != "builder" {
		t.Errorf("got %v", e)
	}
	if d := e.GetDeployment(); d.GetStack() != "web" || d.GetGeneration() != 1 || d.GetKind() != fulmarv1.Kind_KIND_RENEW {
		t.Errorf("got %v", e)
	}
	w.wantChain("web", 1, messages.Rejected)
}

func TestNothingToSayOfARequest(t *testing.T) {
	w := newWorld(t)
	w.requests(w.replica(bus.Options{}), func(context.Context, bus.Request) (*fulmarv1.Event, error) { return nil, nil })
	w.request(deploy, "web", "")
	w.settled("accept", "+ACK")
	w.wantChain("web", 1, []messages.Verb{}...)
}

func TestForgottenAcksOfRequestsRepeatNothing(t *testing.T) {
	w := newWorld(t)
	var calls atomic.Int32
	handle := func(ctx context.Context, r bus.Request) (*fulmarv1.Event, error) {
		calls.Add(1)
		return accepts(ctx, r)
	}
	stop := w.requests(w.replica(bus.Options{}), handle)
	w.request(deploy, "web", "{}")
	w.settled("accept", "+ACK")
	stop()
	w.forget(messages.RequestStream, "accept")
	w.requests(w.replica(bus.Options{}), handle)
	w.settled("accept", "+ACK")
	w.wantChain("web", 1, messages.Accepted)
	if calls.Load() != 1 {
		t.Errorf("the handler ran %d times", calls.Load())
	}
}

// TestARequestNobodyCanNameBlocksNobody publishes what people may publish by hand.
func TestARequestNobodyCanNameBlocksNobody(t *testing.T) {
	w := newWorld(t)
	w.requests(w.replica(bus.Options{}), accepts)
	for _, stack := range []string{"web!", "größe", "_", "web$", ">", "*"} {
		if _, err := w.Request(t.Context(), deploy, stack, []byte("{}")); err != nil {
			t.Logf("the bus itself refuses %q: %v", stack, err)
			continue
		}
		w.settled("accept", "+ACK")
	}
	last := w.request(deploy, "web", "{}")
	for w.await(messages.Accepted).GetDeployment().GetGeneration() != last {
	}
}

func TestRequestsWaitUntilTheyAreSettled(t *testing.T) {
	w := newWorld(t)
	waits := func(want bool) {
		t.Helper()
		for begin := time.Now(); ; runtime.Gosched() { // an acknowledgement is on its way for a moment
			got, err := w.RequestsWait(t.Context(), "accept")
			if err == nil && got == want {
				return
			}
			if err != nil || time.Since(begin) > patience {
				t.Fatalf("requests wait: %t, %v; want %t", got, err, want)
			}
		}
	}
	waits(true) // whoever takes them has never run
	proceed := make(chan struct{})
	w.start(func(ctx context.Context) error {
		return w.RunRequests(ctx, "accept", func(context.Context, bus.Request) (*fulmarv1.Event, error) {
			<-proceed
			return nil, nil
		})
	})
	w.request(deploy, "web", "{}")
	waits(true)
	proceed <- struct{}{}
	w.settled("accept", "+ACK")
	waits(false)
	w.request(deploy, "web", "{}")
	waits(true)
	close(proceed)
}
