package monitor

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"time"

	"fulmar/messages"
	fulmarv1 "fulmar/messages/fulmar/v1"
)

// While a unit starts its checks follow one another fast: what counts is how soon it is seen to be ready.
const (
	firstPause    = time.Millisecond      // after the first bad check; doubled after each
	lastPause     = 50 * time.Millisecond // at most
	firstPatience = 5 * time.Millisecond  // for the first sign of life: the kernel would repeat a lost SYN after 1 s only; doubled after each
)

// margin is how long before the deadline of its deployment a unit is given up that had so long when it was started: what is
// wrong is to be said before ipam fails the deployment, on a busy machine, too.
func margin(had time.Duration) time.Duration { return max(0, min(time.Second, had/5)) }

// A handler holds its message while few trials wait, and else lets others have its place.
const (
	few        = 32
	holdFew    = 100 * time.Millisecond
	laterFew   = 10 * time.Millisecond
	holdCrowd  = 20 * time.Millisecond
	laterCrowd = 250 * time.Millisecond
)

// turn gives how long a handler waits for its trial, and after what time it is asked again, when so many wait.
func turn(waiting int) (hold, again time.Duration) {
	if waiting > few {
		return holdCrowd, laterCrowd
	}
	return holdFew, laterFew
}

// candidate is one check of one unit that is to pass before a deployment is healthy.
type candidate struct {
	unit    string
	address string
	check   *check
	stop    time.Time // when it gives up
	within  string    // the same for people
	silent  func()    // called when there was no answer
}

// newCandidate makes the candidate of a unit that was started at a time, in a deployment with a deadline.
func newCandidate(unit, address string, c *check, started, deadline time.Time, silent func()) candidate {
	n := candidate{unit: unit, address: address, check: c, stop: deadline.Add(-margin(deadline.Sub(started))), within: "before the deadline of the deployment", silent: silent}
	if c.startDeadline > 0 && started.Add(c.startDeadline).Before(n.stop) {
		n.stop, n.within = started.Add(c.startDeadline), "within "+c.startDeadline.String()
	}
	return n
}

// prove probes until enough checks in a row were good. It probes once even if it comes too late, because a monitor that
// was away knows nothing against the unit.
func (c candidate) prove(ctx context.Context) error {
	defer c.check.close()
	pause, patience, good := firstPause, min(firstPatience, c.check.timeout), 0
	var last error
	for {
		left := max(time.Until(c.stop), firstPatience)
		err := c.check.run(ctx, min(patience, left), min(c.check.timeout, left))
		if ctx.Err() != nil {
			return ctx.Err()
		}
		wait := c.check.interval
		if err == nil {
			if good++; good >= c.check.successes {
				return nil
			}
			last = fmt.Errorf("%d of %d good checks in a row", good, c.check.successes)
		} else {
			if cut := left < c.check.timeout && errors.Is(err, errNoAnswer); !cut || last == nil {
				last = err // one that was cut short says less than the one before
			}
			if errors.Is(err, errNoAnswer) {
				c.silent()
				patience = min(2*patience, c.check.timeout)
			}
			good, wait, pause = 0, pause, min(2*pause, lastPause)
		}
		if time.Now().Add(wait).After(c.stop) {
			return messages.Refuse(fulmarv1.ReasonCode_REASON_CODE_UNHEALTHY, "unit %s at %s was not healthy %s: %s: %w", c.unit, c.address, c.within, c.check.what, last)
		}
		if err := sleep(ctx, wait); err != nil {
			return err
		}
	}
}

func sleep(ctx context.Context, d time.Duration) error {
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-t.C:
		return nil
	case <-ctx.Done():
		return ctx.Err()
	}
}

// trial is the probing of a deployment before it is published. It outlives the delivery that began it.
type trial struct {
	stack      string
	generation uint64
	cancel     context.CancelFunc
	done       chan struct{}
	err        error // once done
}

// trials are those under way.
type trials struct {
	mu  sync.Mutex
	all map[string]*trial
	wg  sync.WaitGroup
}

func newTrials() *trials { return &trials{all: map[string]*trial{}} }

// find gives the trial of a deployment, or nil.
func (t *trials) find(stack string, generation uint64) *trial {
	t.mu.Lock()
	defer t.mu.Unlock()
	return t.all[messages.DeploymentName(stack, generation)]
}

// begin gives the trial of a deployment, and starts it if there is none. It goes on when ctx ends.
func (t *trials) begin(ctx context.Context, stack string, generation uint64, run func(context.Context) error) *trial {
	t.mu.Lock()
	defer t.mu.Unlock()
	name := messages.DeploymentName(stack, generation)
	if n, ok := t.all[name]; ok {
		return n
	}
	ctx, cancel := context.WithCancel(context.WithoutCancel(ctx))
	n := &trial{stack: stack, generation: generation, cancel: cancel, done: make(chan struct{})}
	t.all[name] = n
	t.wg.Go(func() {
		defer close(n.done)
		n.err = run(ctx)
	})
	return n
}

func (t *trials) len() int {
	t.mu.Lock()
	defer t.mu.Unlock()
	return len(t.all)
}

// forget drops a trial; the next delivery of its event begins another.
func (t *trials) forget(n *trial) {
	t.mu.Lock()
	defer t.mu.Unlock()
	name := messages.DeploymentName(n.stack, n.generation)
	n.cancel()
	if t.all[name] == n {
		delete(t.all, name)
	}
}

// prune drops the trials of deployments that are no longer underway: nobody will ask for them.
func (t *trials) prune(h *fulmarv1.Head) {
	t.mu.Lock()
	defer t.mu.Unlock()
	for name, n := range t.all {
		if n.stack == h.GetStack() && h.GetNewest() >= n.generation && messages.Find(h, n.generation).GetState() != fulmarv1.State_STATE_UNDERWAY {
			n.cancel()
			delete(t.all, name)
		}
	}
}

// stop ends all trials and waits for them. None begins any more.
func (t *trials) stop() {
	t.mu.Lock()
	for _, n := range t.all {
		n.cancel()
	}
	t.mu.Unlock()
	t.wg.Wait()
}
