package bus

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"sync"
	"time"

	"github.com/nats-io/nats.go/jetstream"

	"fulmar/messages"
)

const (
	ackWait     = 2 * time.Second // a message whose worker died is delivered again after it
	progress    = 4               // how often in that time a worker that lives says so
	parallel    = 64              // messages in hand at once
	maxPending  = 10000           // more than the drains and retries that may wait
	grace       = 5 * time.Second // for handlers to finish when the service stops
	maxDelay    = 5 * time.Second
	firstDelay  = 10 * time.Millisecond
	reopenDelay = time.Second
	lateDelay   = time.Second
	pullExpiry  = 5 * time.Second // a pull request that is lost, on its way or in a busy server, is made again after it
)

// RetryDelay is the time before delivery n+1 of a message whose delivery n ended in an error: 10 ms, doubled each
// time, at most 5 s. A bus that was killed forgets the count; then it begins anew.
func RetryDelay(n uint64) time.Duration {
	if n == 0 || n > 10 {
		n = min(max(n, 1), 10)
	}
	return min(firstDelay<<(n-1), maxDelay)
}

// later is an error that asks for another delivery after a time, without having failed.
type later struct{ after time.Duration }

func (l later) Error() string { return fmt.Sprintf("not yet, again in %s", l.after) }

// Later makes the error with which a handler asks to be called again after a time: its condition does not hold yet.
func Later(after time.Duration) error { return later{after} }

// consumer is what a durable consumer reads and how.
type consumer struct {
	stream  string
	name    string
	filters []string
	pending int // at most this many unacknowledged at once; 0: the default
	lane    func(jetstream.Msg) string
	handle  func(context.Context, jetstream.Msg) error
}

// consume delivers messages to handle until ctx ends: those of one lane one after another, different lanes in
// parallel. It settles each by what handle gives back.
func (b *Bus) consume(ctx context.Context, c consumer) error {
	for {
		err := b.consumeOnce(ctx, c)
		if ctx.Err() != nil {
			return nil
		}
		b.Log.Warn("consumer was opened again", "consumer", c.name, "err", err)
		select {
		case <-ctx.Done():
			return nil
		case <-time.After(reopenDelay):
		}
	}
}

func (b *Bus) consumeOnce(ctx context.Context, c consumer) error {
	if c.pending == 0 {
		c.pending = maxPending
	}
	cons, err := b.JS.CreateOrUpdateConsumer(ctx, c.stream, jetstream.ConsumerConfig{
		Durable: c.name, FilterSubjects: c.filters, AckPolicy: jetstream.AckExplicitPolicy, AckWait: b.options.AckWait,
		MaxAckPending: c.pending, MaxDeliver: -1,
	})
	if err != nil {
		return fmt.Errorf("open consumer %s: %w", c.name, err)
	}
	it, err := cons.Messages(jetstream.PullMaxMessages(min(parallel, c.pending)), jetstream.PullExpiry(pullExpiry))
	if err != nil {
		return fmt.Errorf("open consumer %s: %w", c.name, err)
	}
	defer context.AfterFunc(ctx, func() {
		if b.NC.IsConnected() {
			it.Drain() // what is on its way here is handed back
		} else {
			it.Stop() // nobody would answer
		}
	})()
	defer it.Stop()

	work, cancel := context.WithCancel(context.WithoutCancel(ctx)) // handlers outlive ctx by the grace
	defer cancel()
	defer context.AfterFunc(ctx, func() { time.AfterFunc(grace, cancel) })()
	tether, release := tie(work, b.NC)
	defer release()
	l := newLanes()
	defer l.wait()
	for {
		msg, err := it.Next()
		switch {
		case errors.Is(err, jetstream.ErrMsgIteratorClosed):
			return nil
		case errors.Is(err, jetstream.ErrNoHeartbeat):
			continue
		case err != nil:
			return fmt.Errorf("next message of %s: %w", c.name, err)
		}
		if !l.run(ctx, c.lane(msg), func(turn <-chan struct{}) { b.deliver(ctx, tether, c, msg, turn) }) {
			handBack(msg)
		}
	}
}

// handBack gives a message to whoever is next. If even that is lost it comes again after the ack wait.
func handBack(msg jetstream.Msg) { _ = msg.Nak() }

// deliver waits for the message's turn, handles it and settles it, and meanwhile reports progress. When its turn comes
// after the service was told to stop it is handed back. A handler does not outlive the connection to the bus.
func (b *Bus) deliver(serving context.Context, tether *tether, c consumer, msg jetstream.Msg, turn <-chan struct{}) {
	begin := time.Now()
	done := make(chan struct{})
	var wg sync.WaitGroup
	wg.Go(func() { b.progress(msg, done) })
	<-turn
	if serving.Err() != nil {
		close(done)
		wg.Wait()
		handBack(msg)
		return
	}
	work := tether.context()
	err := c.handle(work, msg)
	close(done)
	wg.Wait()
	if serr := b.settle(work, c, msg, err); serr != nil {
		b.Log.Warn("settling was lost", "consumer", c.name, "subject", msg.Subject(), "err", serr)
	}
	b.metrics.seconds.WithLabelValues(c.name).Observe(time.Since(begin).Seconds())
}

// progress keeps a message from being delivered again until its worker is done.
func (b *Bus) progress(msg jetstream.Msg, done <-chan struct{}) {
	t := time.NewTicker(b.options.AckWait / progress)
	defer t.Stop()
	for {
		select {
		case <-done:
			return
		case <-t.C:
			_ = msg.InProgress() // a lost one costs a second delivery, which does no harm
		}
	}
}

// settle is the only place that acknowledges.
func (b *Bus) settle(ctx context.Context, c consumer, msg jetstream.Msg, err error) error {
	l, late := errors.AsType[later](err)
	switch {
	case err == nil:
		b.metrics.handled.WithLabelValues(c.name, "done").Inc()
		return msg.Ack()
	case ctx.Err() != nil: // the service stops, or the bus went away: whoever is next may begin at once
		return msg.Nak()
	case late:
		b.metrics.handled.WithLabelValues(c.name, "later").Inc()
		return msg.NakWithDelay(l.after)
	}
	meta, merr := msg.Metadata()
	if merr != nil {
		return merr
	}
	b.metrics.handled.WithLabelValues(c.name, "retried").Inc()
	delay, level := RetryDelay(meta.NumDelivered), slog.LevelWarn
	switch {
	case errors.Is(err, jetstream.ErrKeyRevisionMismatch): // somebody else wrote first, as somebody does
		level = slog.LevelDebug
	case errors.Is(err, messages.ErrLate): // ipam fails it, and then it is no longer delivered
		delay, level = lateDelay, slog.LevelDebug
	}
	b.Log.Log(ctx, level, "event was delayed", "consumer", c.name, "subject", msg.Subject(), "stream_seq", meta.Sequence.Stream,
		"attempt", meta.NumDelivered, "delay", delay, "err", err)
	return msg.NakWithDelay(delay)
}

// lanes runs the work of one lane one after another, and different lanes in parallel.
type lanes struct {
	slots chan struct{}
	wg    sync.WaitGroup

	mu    sync.Mutex
	tails map[string]chan struct{} // closed when the last work of a lane is done
}

func newLanes() *lanes {
	return &lanes{slots: make(chan struct{}, parallel), tails: map[string]chan struct{}{}}
}

// run starts f, which does its work once turn is closed. It blocks while all slots are taken, and reports false if ctx
// ends before one is free.
func (l *lanes) run(ctx context.Context, lane string, f func(turn <-chan struct{})) bool {
	if ctx.Err() != nil {
		return false
	}
	select {
	case l.slots <- struct{}{}:
	case <-ctx.Done():
		return false
	}
	mine := make(chan struct{})
	l.mu.Lock()
	turn, busy := l.tails[lane]
	l.tails[lane] = mine
	l.mu.Unlock()
	if !busy {
		turn = make(chan struct{})
		close(turn)
	}
	l.wg.Go(func() {
		f(turn)
		l.mu.Lock()
		if l.tails[lane] == mine {
			delete(l.tails, lane)
		}
		l.mu.Unlock()
		close(mine)
		<-l.slots
	})
	return true
}

func (l *lanes) wait() { l.wg.Wait() }
