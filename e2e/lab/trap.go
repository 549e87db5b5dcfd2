package lab

import (
	"context"
	"fmt"
	"slices"
	"sync"
)

// Message is what a process sends to the bus or to the host's daemon.
type Message struct {
	Subject string // on the bus; or a command of albatross, as create
	Body    []byte // of a message of the bus; or the label of the name that it is about
}

// When says at which moment a trap closes.
type When int

// The moments.
const (
	Before When = iota // a message was sent, and nobody has it yet
	After              // it was taken, and the sender does not know
)

// String names the moment as a test's name does.
func (w When) String() string {
	if w == Before {
		return "before"
	}
	return "after"
}

// Trap holds one message, or its answer, between a process and who it talks to. Whoever set it waits until it has
// caught the message, does to the process what it likes, and then drops the connection or lets it go on.
type Trap struct {
	accepts func(Message) bool
	when    When
	caught  chan struct{}
	free    chan struct{}

	once sync.Once
	drop bool // once free
}

// Await waits until the message is held.
func (t *Trap) Await(ctx context.Context) error {
	select {
	case <-t.caught:
		return nil
	case <-ctx.Done():
		return fmt.Errorf("wait for a message to be caught: %w", ctx.Err())
	}
}

// Drop ends the connection; what is held is lost.
func (t *Trap) Drop() { t.end(true) }

// Pass lets what is held go on.
func (t *Trap) Pass() { t.end(false) }

func (t *Trap) end(drop bool) {
	t.once.Do(func() {
		t.drop = drop
		close(t.free)
	})
}

// hold is called by the connection that has the message, and reports whether it goes on.
func (t *Trap) hold(closed <-chan struct{}) bool {
	close(t.caught)
	select {
	case <-t.free:
		return !t.drop
	case <-closed:
		return false
	}
}

// traps are those that are set and have caught nothing yet, and who only looks on.
type traps struct {
	mu       sync.Mutex
	all      []*Trap
	observer func(Message)
}

// Trap sets a trap for the first message from now on that a test accepts.
func (t *traps) Trap(when When, accepts func(Message) bool) *Trap {
	trap := &Trap{accepts: accepts, when: when, caught: make(chan struct{}), free: make(chan struct{})}
	t.mu.Lock()
	defer t.mu.Unlock()
	t.all = append(t.all, trap)
	return trap
}

// Observe calls f with each command that a daemon has done, as created.
func (t *traps) Observe(f func(Message)) {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.observer = f
}

func (t *traps) observe(m Message) {
	t.mu.Lock()
	f := t.observer
	t.mu.Unlock()
	if f != nil {
		f(m)
	}
}

// match gives the trap for a message, which is set no longer then, or nil.
func (t *traps) match(m Message) *Trap {
	t.mu.Lock()
	defer t.mu.Unlock()
	for i, trap := range t.all {
		select {
		case <-trap.free: // nobody waits for it any more
			continue
		default:
		}
		if trap.accepts(m) {
			t.all = slices.Delete(t.all, i, i+1)
			return trap
		}
	}
	return nil
}
