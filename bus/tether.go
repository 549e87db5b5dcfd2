package bus

import (
	"context"
	"sync"

	"github.com/nats-io/nats.go"
)

// tether gives contexts that end with the connection that they were given on: whoever waits for an answer over one that
// was lost would wait in vain, for as long as an answer may take.
type tether struct {
	parent context.Context

	mu     sync.Mutex
	ctx    context.Context
	cancel context.CancelFunc
}

// tie makes a tether to a connection, and gives the function that lets go of it.
func tie(parent context.Context, nc *nats.Conn) (t *tether, release func()) {
	t = &tether{parent: parent}
	t.ctx, t.cancel = context.WithCancel(parent)
	lost := nc.StatusChanged(nats.RECONNECTING)
	done := make(chan struct{})
	var watching sync.WaitGroup
	watching.Go(func() {
		for {
			select {
			case _, open := <-lost:
				if !open { // the connection was closed for good
					return
				}
				t.cut()
			case <-done:
				return
			}
		}
	})
	return t, func() {
		nc.RemoveStatusListener(lost)
		close(done)
		watching.Wait()
		t.mu.Lock()
		defer t.mu.Unlock()
		t.cancel()
	}
}

// cut ends the contexts that were given so far.
func (t *tether) cut() {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.cancel()
	t.ctx, t.cancel = context.WithCancel(t.parent)
}

// context gives a context of the connection as it is now.
func (t *tether) context() context.Context {
	t.mu.Lock()
	defer t.mu.Unlock()
	return t.ctx
}
