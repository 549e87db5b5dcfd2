package monitor

import (
	"context"
	"fmt"
	"net/netip"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"github.com/nats-io/nats.go/jetstream"
	"golang.org/x/sync/errgroup"

	"fulmar/messages"
	fulmarv1 "fulmar/messages/fulmar/v1"
)

// settle is the time in which changes of the records are gathered before the watch looks at them.
const settle = 20 * time.Millisecond

// watch keeps one watcher for each instance that is live or staged on the host.
type watch struct {
	service  *Service
	events   jetstream.Stream
	beats    *beats
	heads    map[string]*fulmarv1.Head // as they were looked at last
	watchers map[string]*watcher       // by instance
	wg       sync.WaitGroup
}

func newWatch(s *Service, events jetstream.Stream) *watch {
	return &watch{service: s, events: events, beats: newBeats(), heads: map[string]*fulmarv1.Head{}, watchers: map[string]*watcher{}}
}

// run watches until ctx ends.
func (w *watch) run(ctx context.Context) error {
	defer w.wg.Wait()
	g, ctx := errgroup.WithContext(ctx)
	g.Go(func() error { return w.beats.run(ctx, w.beat) })
	g.Go(func() error { return w.look(ctx) })
	err := g.Wait()
	for _, n := range w.watchers {
		w.stop(n)
	}
	return err
}

// look follows the records until ctx ends.
func (w *watch) look(ctx context.Context) error {
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
			w.followHead(w.heads[stack], h)
			w.heads[stack] = h
		}
	}
	w.service.metrics.watched.Set(float64(len(w.watchers)))
	for _, i := range w.service.hosts.All()[w.service.host].GetInstances() {
		if n, ok := w.watchers[i.GetName()]; ok && n.see(i) {
			w.wg.Go(func() { n.settle(ctx) })
		}
	}
}

func (w *watch) followHead(before, now *fulmarv1.Head) {
	want := map[string]target{}
	for _, t := range targets(now, w.service.host) {
		want[t.instance] = t
	}
	for _, t := range targets(before, w.service.host) {
		if n, ok := w.watchers[t.instance]; ok && n.target.generation != want[t.instance].generation {
			w.stop(n)
			delete(w.watchers, t.instance)
		}
	}
	for name, t := range want {
		if w.watchers[name] == nil {
			w.start(t)
		}
	}
}

func (w *watch) start(t target) {
	checks, err := w.service.newChecks(t.checks, t.address)
	if err != nil {
		w.service.bus.Log.Error("unit was not watched", "deployment", messages.DeploymentName(t.stack, t.generation), "unit", t.unit, "err", err)
		return
	}
	n := &watcher{service: w.service, events: w.events, target: t, rows: make([]row, len(checks)), bad: make([]error, len(checks))}
	for i, c := range checks {
		m := &member{watcher: n, index: i, check: c}
		n.members = append(n.members, m)
		w.beats.add(m)
	}
	w.watchers[t.instance] = n
}

// stop ends the watch over an instance, without waiting for the checks that run.
func (w *watch) stop(n *watcher) {
	for _, m := range n.members {
		w.beats.remove(m)
	}
	w.wg.Go(n.end)
}

// beat runs the checks whose time has come. One that still runs from the last time is left alone.
func (w *watch) beat(ctx context.Context, due []*member) {
	var tcp []*member
	for _, m := range due {
		if !m.busy.TryLock() {
			continue
		}
		_, isTCP := m.check.probe.(tcpProbe)
		switch {
		case m.watcher.exited():
			w.wg.Go(func() {
				defer m.busy.Unlock()
				m.watcher.settle(ctx)
			})
		case isTCP:
			tcp = append(tcp, m)
		default:
			w.wg.Go(func() { m.finish(ctx, m.check.run(ctx, m.check.timeout, m.check.timeout)) })
		}
	}
	if len(tcp) > 0 {
		w.wg.Go(func() { w.knock(ctx, tcp) })
	}
}

func (w *watch) knock(ctx context.Context, tcp []*member) {
	to, timeouts := make([]netip.AddrPort, len(tcp)), make([]time.Duration, len(tcp))
	for i, m := range tcp {
		to[i], timeouts[i] = netip.AddrPort(m.check.probe.(tcpProbe)), m.check.timeout
	}
	knock(ctx, to, timeouts, func(i int, err error) {
		w.wg.Go(func() { tcp[i].finish(ctx, tcp[i].check.count(ctx, err)) })
	})
}

// finish takes the result of a check, which is of no interest once ctx has ended.
func (m *member) finish(ctx context.Context, result error) {
	defer m.busy.Unlock()
	if ctx.Err() == nil {
		m.watcher.note(ctx, m.index, result)
	}
}

// watcher knows how one instance is, and says what changes.
type watcher struct {
	service *Service
	events  jetstream.Stream
	target  target
	members []*member
	record  atomic.Pointer[fulmarv1.HostInstance] // as vmm saw it last
	again   atomic.Bool                           // it ended and was started again, and that is not said yet

	mu    sync.Mutex
	known bool // said is what the log says
	ended bool
	said  messages.Verb
	owed  bool // an older deployment heard that the instance is ill, and nobody that it recovered
	rows  []row
	bad   []error // the last bad result of each check
}

// see takes what vmm saw of the instance, and reports whether it ended, or runs again. An end that was too short to be seen
// shows by the restart.
func (w *watcher) see(i *fulmarv1.HostInstance) bool {
	before, ended := w.record.Load(), w.exited()
	w.record.Store(i)
	if before != nil && i.GetRestarts() > before.GetRestarts() {
		w.again.Store(true)
	}
	return w.exited() != ended || w.again.Load()
}

// exited reports whether the instance was seen to have ended.
func (w *watcher) exited() bool {
	i := w.record.Load()
	return i != nil && !i.GetRunning()
}

// end lets go of what the checks keep.
func (w *watcher) end() {
	w.mu.Lock()
	w.ended = true
	w.say("")
	w.mu.Unlock()
	for _, m := range w.members {
		m.busy.Lock() // waits until it has run
		m.check.close()
		m.busy.Unlock()
	}
}

// note takes the result of a check and says what changed by it.
func (w *watcher) note(ctx context.Context, i int, result error) {
	w.mu.Lock()
	w.rows[i] = w.rows[i].next(result == nil, w.members[i].check.successes, w.members[i].check.failures)
	if result != nil {
		w.bad[i] = result
	}
	w.mu.Unlock()
	w.settle(ctx)
}

// settle says what changed. What could not be said is said at the next check.
func (w *watcher) settle(ctx context.Context) {
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.ended {
		return
	}
	err := w.recall(ctx)
	if err == nil {
		again := w.again.Load()
		verb := change(w.said, w.exited() || again, w.rows)
		if verb == "" && w.owed && !w.exited() && w.well() {
			verb = messages.Recovered
		}
		if verb != "" {
			err = w.observe(ctx, verb, w.reason(verb))
		}
		if err == nil && again {
			w.again.Store(false)
		}
	}
	if err != nil && ctx.Err() == nil {
		w.service.bus.Log.Warn("observation was delayed", "deployment", messages.DeploymentName(w.target.stack, w.target.generation), "unit", w.target.unit, "err", err)
	}
}

// recall begins with what was observed last of the unit, by whoever watched it then. If nothing was observed of it for this
// deployment it was healthy when that was published; who heard otherwise of its instance before is owed that it recovered.
func (w *watcher) recall(ctx context.Context) error {
	if w.known {
		return nil
	}
	last, err := lastObservation(ctx, w.events, w.target)
	if err != nil {
		return err
	}
	if last == "" {
		before, err := inherited(ctx, w.events, w.target)
		if err != nil {
			return err
		}
		w.owed = ill(before)
	}
	w.known = true
	w.say(last)
	return nil
}

// say notes what was said of the unit last. After unhealthy and exited each check has to be good in a row again.
func (w *watcher) say(verb messages.Verb) {
	if verb == w.said {
		return
	}
	if ill(verb) && !ill(w.said) {
		w.service.metrics.unhealthy.Inc()
	}
	if !ill(verb) && ill(w.said) {
		w.service.metrics.unhealthy.Dec()
	}
	w.said, w.owed = verb, false
	for i := range w.rows {
		w.rows[i] = row{down: ill(verb)}
	}
}

// well reports whether each check was good as many times in a row as asked for.
func (w *watcher) well() bool {
	for i, r := range w.rows {
		if r.good < w.members[i].check.successes {
			return false
		}
	}
	return true
}

func (w *watcher) reason(verb messages.Verb) string {
	unit := fmt.Sprintf("unit %s at %s ", w.target.unit, w.target.address)
	switch verb {
	case messages.Exited:
		if !w.exited() {
			return unit + "exited and was started again"
		}
		return unit + exitClause(w.record.Load()) + lastLine(w.record.Load())
	case messages.Recovered:
		return unit + "is healthy again"
	}
	i := slices.IndexFunc(w.rows, func(r row) bool { return r.down })
	return unit + fmt.Sprintf("failed %d checks in a row: %s: %s", w.members[i].check.failures, w.members[i].check.what, w.bad[i])
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
