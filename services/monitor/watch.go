package monitor

import (
	"context"
	"fmt"
	"math/rand/v2"
	"slices"
	"sync"
	"time"

	"github.com/nats-io/nats.go/jetstream"

	"fulmar/messages"
	fulmarv1 "fulmar/messages/fulmar/v1"
)

// settle is the time in which changes of the records are gathered before the watch looks at them.
const settle = 20 * time.Millisecond

// watch keeps one watcher for each instance that is live or staged on the host.
type watch struct {
	service  *Service
	events   jetstream.Stream
	heads    map[string]*fulmarv1.Head // as they were looked at last
	watchers map[string]*watcher       // by instance
	wg       sync.WaitGroup
}

func newWatch(s *Service, events jetstream.Stream) *watch {
	return &watch{service: s, events: events, heads: map[string]*fulmarv1.Head{}, watchers: map[string]*watcher{}}
}

func (w *watch) run(ctx context.Context) error {
	defer w.wg.Wait()
	for {
		heads, hosts := w.service.heads.Changed(), w.service.hosts.Changed()
		w.follow(ctx)
		select {
		case <-heads:
		case <-hosts:
		case <-ctx.Done():
			return nil
		}
		if sleep(ctx, settle) != nil {
			return nil
		}
	}
}

// follow makes the watchers those that the heads ask for, and tells them what the host's record says.
func (w *watch) follow(ctx context.Context) {
	for stack, h := range w.service.heads.All() {
		if w.heads[stack] != h {
			w.service.trials.prune(h)
			w.followHead(ctx, w.heads[stack], h)
			w.heads[stack] = h
		}
	}
	w.service.metrics.watched.Set(float64(len(w.watchers)))
	for _, i := range w.service.hosts.All()[w.service.host].GetInstances() {
		if n, ok := w.watchers[i.GetName()]; ok {
			n.see(i)
		}
	}
}

func (w *watch) followHead(ctx context.Context, before, now *fulmarv1.Head) {
	want := map[string]target{}
	for _, t := range targets(now, w.service.host) {
		want[t.instance] = t
	}
	for _, t := range targets(before, w.service.host) {
		if n, ok := w.watchers[t.instance]; ok && n.target.generation != want[t.instance].generation {
			n.stop()
			delete(w.watchers, t.instance)
		}
	}
	for name, t := range want {
		if w.watchers[name] == nil {
			w.start(ctx, t)
		}
	}
}

func (w *watch) start(ctx context.Context, t target) {
	checks, err := w.service.newChecks(t.checks, t.address)
	if err != nil {
		w.service.bus.Log.Error("unit was not watched", "deployment", messages.DeploymentName(t.stack, t.generation), "unit", t.unit, "err", err)
		return
	}
	ctx, stop := context.WithCancel(ctx)
	n := &watcher{service: w.service, events: w.events, target: t, checks: checks, stop: stop, wake: make(chan struct{}, 1), rows: make([]row, len(checks)), bad: make([]error, len(checks))}
	w.watchers[t.instance] = n
	w.wg.Go(func() { n.run(ctx) })
}

// watcher probes one instance, each check at its interval, and says what changes.
type watcher struct {
	service *Service
	events  jetstream.Stream
	target  target
	checks  []*check
	stop    context.CancelFunc
	wake    chan struct{} // the instance has ended, or runs again

	mu     sync.Mutex
	record *fulmarv1.HostInstance // as vmm saw it last, or nil
	known  bool                   // said is what the log says
	said   messages.Verb
	rows   []row
	bad    []error // the last bad result of each check
}

func (w *watcher) run(ctx context.Context) {
	var wg sync.WaitGroup
	for i := range w.checks {
		wake := w.wake
		if i > 0 {
			wake = nil // one of them is enough to say that the instance exited
		}
		wg.Go(func() { w.probe(ctx, i, wake) })
	}
	wg.Wait()
	w.mu.Lock()
	defer w.mu.Unlock()
	w.say("")
}

// see takes what vmm saw of the instance.
func (w *watcher) see(i *fulmarv1.HostInstance) {
	w.mu.Lock()
	defer w.mu.Unlock()
	before := w.exited()
	w.record = i
	if w.exited() == before {
		return
	}
	select {
	case w.wake <- struct{}{}:
	default: // it is awake already
	}
}

// exited reports whether the instance was seen to have ended.
func (w *watcher) exited() bool { return w.record != nil && !w.record.GetRunning() }

// probe runs one check at its interval until ctx ends. The first comes at any time within it, so that those that begin
// together do not stay together.
func (w *watcher) probe(ctx context.Context, i int, wake <-chan struct{}) {
	c := w.checks[i]
	defer c.close()
	timer := time.NewTimer(rand.N(c.interval))
	defer timer.Stop()
	for {
		select {
		case <-timer.C:
		case <-wake:
		case <-ctx.Done():
			return
		}
		if err := w.turn(ctx, i); err != nil && ctx.Err() == nil {
			w.service.bus.Log.Warn("observation was delayed", "deployment", messages.DeploymentName(w.target.stack, w.target.generation), "unit", w.target.unit, "err", err)
		}
		timer.Reset(c.interval)
	}
}

// turn runs one check, unless the instance has ended, and says what changed by it. What could not be said is said at
// the next turn.
func (w *watcher) turn(ctx context.Context, i int) error {
	w.mu.Lock()
	ended := w.exited()
	w.mu.Unlock()
	var result error
	if !ended {
		result = w.checks[i].run(ctx, w.checks[i].timeout, w.checks[i].timeout)
		if ctx.Err() != nil {
			return ctx.Err()
		}
	}
	w.mu.Lock()
	defer w.mu.Unlock()
	if err := w.recall(ctx); err != nil {
		return err
	}
	if !ended {
		w.rows[i] = w.rows[i].next(result == nil, w.checks[i].successes, w.checks[i].failures)
		if result != nil {
			w.bad[i] = result
		}
	}
	verb := change(w.said, w.exited(), w.rows)
	if verb == "" {
		return nil
	}
	return w.observe(ctx, verb, w.reason(verb))
}

// recall begins with what was observed last of the unit, by whoever watched it then.
func (w *watcher) recall(ctx context.Context) error {
	if w.known {
		return nil
	}
	last, err := lastObservation(ctx, w.events, w.target)
	if err != nil {
		return err
	}
	w.known = true
	w.say(last)
	return nil
}

// say notes what was said of the unit last. After unhealthy and exited each check has to be good in a row again.
func (w *watcher) say(verb messages.Verb) {
	ill := func(v messages.Verb) bool { return v == messages.Unhealthy || v == messages.Exited }
	if ill(verb) && !ill(w.said) {
		w.service.metrics.unhealthy.Inc()
	}
	if !ill(verb) && ill(w.said) {
		w.service.metrics.unhealthy.Dec()
	}
	w.said = verb
	for i := range w.rows {
		w.rows[i] = row{down: ill(verb)}
	}
}

func (w *watcher) reason(verb messages.Verb) string {
	unit := fmt.Sprintf("unit %s at %s ", w.target.unit, w.target.address)
	switch verb {
	case messages.Exited:
		return unit + exitClause(w.record) + lastLine(w.record)
	case messages.Recovered:
		return unit + "is healthy again"
	}
	i := slices.IndexFunc(w.rows, func(r row) bool { return r.down })
	return unit + fmt.Sprintf("failed %d checks in a row: %s: %s", w.checks[i].failures, w.checks[i].what, w.bad[i])
}

// observe says a change, if the unit is still to be watched and nobody else said it.
func (w *watcher) observe(ctx context.Context, verb messages.Verb, reason string) error {
	h, _, err := w.service.bus.Heads.Get(ctx, w.target.stack)
	if err != nil {
		return err
	}
	if !w.wanted(h) {
		return nil
	}
	last, err := lastObservation(ctx, w.events, w.target)
	if err != nil {
		return err
	}
	if last != verb {
		if err := w.service.bus.Observe(ctx, verb, w.target.deployment, w.target.unit, reason); err != nil {
			return err
		}
		w.service.bus.Log.Info("unit changed", "deployment", messages.DeploymentName(w.target.stack, w.target.generation), "unit", w.target.unit, "verb", verb, "reason", reason)
	}
	w.say(verb)
	return nil
}

func (w *watcher) wanted(h *fulmarv1.Head) bool {
	for _, t := range targets(h, w.service.host) {
		if t.instance == w.target.instance && t.generation == w.target.generation {
			return true
		}
	}
	return false
}
