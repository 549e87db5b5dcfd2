package influx

import (
	"context"
	"errors"
	"log/slog"
	"sync"
	"time"

	"fulmar/albatross"
)

const (
	defaultLimit = 4 << 20         // bytes that wait, unless configured
	batchLimit   = 512 << 10       // bytes of one batch
	linger       = time.Second     // in which lines for one HTTP request come together
	firstRetry   = time.Second     // after a failure; doubled up to
	lastRetry    = time.Minute     //
	lastTime     = 2 * time.Second // for what waits at the end
)

// Config says where lines go.
type Config struct {
	Target string // tcp://HOST:PORT, HOST[:PORT], or http(s)://HOST:PORT/write?db=NAME and whatever else the database wants to be told
	Token  string // of InfluxDB 2, over HTTP; empty: none
	Limit  int    // bytes that wait at most; 0 means 4 MiB
	Log    *slog.Logger
	Count  func(lines int, sent bool) // is told of lines that were sent, or dropped; nil: nobody is
}

// Sink sends statistics.
type Sink struct {
	cfg    Config
	target target
	unit   time.Duration
	linger time.Duration
	wake   chan struct{}

	trouble string // that was logged; of Run

	mu     sync.Mutex
	queue  []chunk
	queued int // bytes
}

// chunk is the lines of one sample.
type chunk struct {
	text  []byte
	lines int
}

// New makes a sink. It sends nothing until it runs. The error is an [ErrTarget].
func New(cfg Config) (*Sink, error) {
	to, unit, err := parseTarget(cfg.Target, cfg.Token)
	if err != nil {
		return nil, err
	}
	if cfg.Limit <= 0 {
		cfg.Limit = defaultLimit
	}
	if cfg.Count == nil {
		cfg.Count = func(int, bool) {}
	}
	s := &Sink{cfg: cfg, target: to, unit: unit, wake: make(chan struct{}, 1)}
	if _, ok := to.(*httpTarget); ok {
		s.linger = linger
	}
	return s, nil
}

// Add has one sample of a unikernel's statistics sent, by the name vm. It does not wait: if too much does, the oldest is dropped.
func (s *Sink) Add(vm string, stats albatross.Stats, at time.Time) {
	text := AppendLines(nil, vm, stats, at, s.unit)
	c := chunk{text: text, lines: countLines(text)}
	s.mu.Lock()
	s.queue = append(s.queue, c)
	s.queued += len(c.text)
	dropped := 0
	for s.queued > s.cfg.Limit && len(s.queue) > 0 {
		dropped += s.shift().lines
	}
	s.mu.Unlock()
	if dropped > 0 {
		s.cfg.Count(dropped, false)
	}
	select {
	case s.wake <- struct{}{}:
	default: // it is awake
	}
}

func countLines(text []byte) (n int) {
	for _, b := range text {
		if b == '\n' {
			n++
		}
	}
	return n
}

// shift removes the oldest chunk. The caller holds mu.
func (s *Sink) shift() chunk {
	c := s.queue[0]
	s.queue[0] = chunk{}
	s.queue = s.queue[1:]
	s.queued -= len(c.text)
	return c
}

// take removes as much of the queue as one batch has.
func (s *Sink) take() (batch chunk) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for len(s.queue) > 0 && (batch.lines == 0 || len(batch.text)+len(s.queue[0].text) <= batchLimit) {
		c := s.shift()
		batch.text, batch.lines = append(batch.text, c.text...), batch.lines+c.lines
	}
	return batch
}

// Run sends what is added until ctx ends, which is no error. What waits then is sent if that is quickly done.
func (s *Sink) Run(ctx context.Context) error {
	defer s.target.close()
	longer, cancel := context.WithCancel(context.WithoutCancel(ctx))
	defer cancel()
	defer context.AfterFunc(ctx, func() { time.AfterFunc(lastTime, cancel) })()
	for ctx.Err() == nil {
		select {
		case <-ctx.Done():
		case <-s.wake:
			pause(ctx, s.linger)
		}
		for batch := s.take(); batch.lines > 0; batch = s.take() {
			if !s.deliver(ctx, longer, batch) {
				return nil
			}
		}
	}
	return nil
}

// deliver sends a batch, however often it takes, unless the endpoint does not want it. It is false if ctx has ended and so did
// the try in hand, for which there is time until longer ends.
func (s *Sink) deliver(ctx, longer context.Context, batch chunk) bool {
	for wait := firstRetry; ; wait = min(2*wait, lastRetry) {
		err := s.target.send(longer, batch.text)
		switch {
		case err == nil:
			s.cfg.Count(batch.lines, true)
			s.settle("", nil)
			return true
		case errors.As(err, new(refusedError)):
			s.cfg.Count(batch.lines, false)
			s.settle("it refused lines", err)
			return true
		case ctx.Err() != nil:
			s.cfg.Count(batch.lines, false)
			return false
		}
		s.settle("it was not reached", err)
		pause(ctx, wait)
	}
}

// settle logs what is wrong when it begins, and when it ends.
func (s *Sink) settle(trouble string, err error) {
	switch trouble {
	case s.trouble:
	case "":
		s.cfg.Log.Info("lines were sent to influx again")
	default:
		s.cfg.Log.Warn("lines were not sent to influx", "trouble", trouble, "err", err)
	}
	s.trouble = trouble
}

func pause(ctx context.Context, d time.Duration) {
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-ctx.Done():
	case <-t.C:
	}
}
