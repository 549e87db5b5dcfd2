package crash_test

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"testing"
	"time"

	"fulmar/bus"
	"fulmar/e2e/lab"
	"fulmar/messages"
	fulmarv1 "fulmar/messages/fulmar/v1"
)

const (
	writers    = 8
	busKills   = 5
	eachKilled = 200 // acknowledged writes before the bus is killed
)

// acknowledged is what a bus has acknowledged.
type acknowledged struct {
	mu       sync.Mutex
	requests map[uint64]string // bodies by sequence
	leases   map[string]string // instances by key
	moved    chan struct{}     // has a token when something was added
}

// TestBusKeepsWhatItAcknowledged kills the bus again and again while it is written to.
func TestBusKeepsWhatItAcknowledged(t *testing.T) {
	w := newLab(t)
	m := w.add("bus", lab.How{})
	w.connect()
	a := &acknowledged{requests: map[uint64]string{}, leases: map[string]string{}, moved: make(chan struct{}, 1)}
	ctx, cancel := context.WithCancel(w.patient(t))
	var writing sync.WaitGroup
	for i := range writers {
		writing.Go(func() { a.write(ctx, w.bus, i) })
	}
	for i := range busKills {
		for a.len() < (i+1)*eachKilled {
			select {
			case <-a.moved:
			case <-ctx.Done():
				t.Fatal("nothing is acknowledged any more")
			}
		}
		if err := m.kill(); err != nil {
			t.Fatal(err)
		}
	}
	cancel()
	writing.Wait()
	w.until(t, func(ctx context.Context) error { // what is asked of one that is away is lost
		_, err := w.bus.JS.Stream(ctx, messages.RequestStream)
		return err
	})
	looking := w.patient(t)
	if err := lab.Until(looking, func() error { return a.missing(looking, w.bus) }); err != nil {
		t.Fatal(err)
	}
}

// write stores requests and leases, one after another, and remembers those that were acknowledged.
func (a *acknowledged) write(ctx context.Context, b *bus.Bus, writer int) {
	for i := 0; ctx.Err() == nil; i++ {
		try, cancel := context.WithTimeout(ctx, time.Second)
		stack, text := fmt.Sprintf("writer%d", writer), fmt.Sprintf("%d of %d", i, writer)
		seq, err := b.Request(try, fulmarv1.Kind_KIND_DEPLOY, stack, []byte(text))
		key := messages.LeaseKey("kept", fmt.Sprintf("%d-%d", writer, i))
		lerr := b.Leases.Put(try, key, &fulmarv1.Lease{Instance: text}, 0)
		cancel()
		a.add(func() {
			if err == nil {
				a.requests[seq] = text
			}
			if lerr == nil {
				a.leases[key] = text
			}
		})
	}
}

func (a *acknowledged) add(f func()) {
	a.mu.Lock()
	defer a.mu.Unlock()
	f()
	select {
	case a.moved <- struct{}{}:
	default:
	}
}

func (a *acknowledged) len() int {
	a.mu.Lock()
	defer a.mu.Unlock()
	return len(a.requests) + len(a.leases)
}

// missing says what was acknowledged and is not there.
func (a *acknowledged) missing(ctx context.Context, b *bus.Bus) error {
	requests, err := b.JS.Stream(ctx, messages.RequestStream)
	if err != nil {
		return err
	}
	leases, err := b.Leases.All(ctx)
	if err != nil {
		return err
	}
	var errs []error
	for seq, text := range a.requests {
		m, err := requests.GetMsg(ctx, seq)
		if err != nil || string(m.Data) != text {
			errs = append(errs, fmt.Errorf("request %d is not %q: %w", seq, text, err))
		}
	}
	for key, text := range a.leases {
		if got := leases[key].GetInstance(); got != text {
			errs = append(errs, fmt.Errorf("record %s is %q, not %q", key, got, text))
		}
	}
	return errors.Join(errs...)
}
