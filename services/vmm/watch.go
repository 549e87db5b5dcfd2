package vmm

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"slices"
	"sync"
	"time"

	"github.com/nats-io/nats.go/jetstream"

	"fulmar/albatross"
	"fulmar/bus"
	"fulmar/messages"
	fulmarv1 "fulmar/messages/fulmar/v1"
)

const (
	lookTime  = 10 * time.Second // for the daemon to answer one look
	hurryTime = time.Second
	youngTime = 2 * time.Second

	// The more runs, the longer a look at all takes. It takes at most this part of the time while nothing happens, unless
	// that would make it much rarer than it should be.
	share = 50
	rarer = 5

	// More young ones than this are looked at together with all others.
	fewYoung = 8
)

// pace is how often the daemon is looked at when there is a reason to.
type pace struct {
	// After an exit is known or suspected the next looks come in quick succession, for hurryTime.
	hurried time.Duration
	// An image that cannot run dies right after it was created, and not every daemon tells. So what was created is looked
	// at more often, by itself, for youngTime: with a thousand others beside it a look at all takes the machine from whom
	// the deployment is for.
	young time.Duration
	// The first look after a create leaves the machine to the deployment that waits for it; the console is followed at
	// once, and whatever ends there is looked at at once.
	first time.Duration
	// For the console of an instance that is gone to say how it ended.
	grace time.Duration
}

// paceOf is slower where each look is a connection to another machine, with a certificate of its own.
func paceOf(c Config) pace {
	if c.Remote != nil {
		return pace{hurried: 100 * time.Millisecond, young: 250 * time.Millisecond, first: 100 * time.Millisecond, grace: time.Second}
	}
	return pace{hurried: 5 * time.Millisecond, young: 50 * time.Millisecond, first: 25 * time.Millisecond, grace: 50 * time.Millisecond}
}

// watcher looks at what runs, keeps the record of the host, and follows the consoles.
type watcher struct {
	bus     *bus.Bus
	log     *slog.Logger
	config  Config
	path    albatross.Path
	client  *albatross.Client
	metrics metrics
	machine Machine
	pace    pace
	looked  func(running map[string]bool, at time.Time) // is told what each look saw
	poke    chan struct{}                               // asks run for a look
	come    chan struct{}                               // tells run of an instance that was created

	looking sync.Mutex           // one look at a time; it guards gone and told
	gone    map[string]time.Time // since when an instance has been found gone
	told    bool                 // the record was written once

	mu      sync.Mutex
	made    map[string]time.Time // created here and not yet seen by a look, by when that began
	want    map[string]origin    // the consoles to follow
	follows map[string]*follow
	hurry   time.Time            // until when looks come in quick succession
	young   map[string]time.Time // created here a moment ago, by until when they are looked at more often
}

// origin says from when on the lines of a console are passed on.
type origin struct {
	from   time.Time
	silent bool // they are not, but only looked at
}

func newWatcher(b *bus.Bus, c Config, path albatross.Path, client *albatross.Client, m metrics, looked func(map[string]bool, time.Time)) *watcher {
	return &watcher{
		bus: b, log: b.Log, config: c, path: path, client: client, metrics: m, pace: paceOf(c), looked: looked, poke: make(chan struct{}, 1), come: make(chan struct{}, 1),
		gone: map[string]time.Time{}, made: map[string]time.Time{}, want: map[string]origin{}, follows: map[string]*follow{},
		young: map[string]time.Time{},
	}
}

// run looks periodically, and whenever it is poked, until ctx ends.
func (w *watcher) run(ctx context.Context) error {
	ctx, cancel := context.WithCancel(ctx)
	var following sync.WaitGroup
	defer following.Wait()
	defer cancel()
	due := time.Now() // for the next look
	t := time.NewTimer(0)
	defer t.Stop()
	blind := false
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-w.come:
			w.followAll(ctx, &following)
			if first := time.Now().Add(w.pace.first); first.Before(due) {
				due = first
			}
			t.Reset(time.Until(due))
			continue
		case <-t.C:
			if now := time.Now(); now.Before(due) && w.runOn(ctx, w.youngOnes(now)) {
				t.Reset(w.wait(time.Now(), due))
				continue
			}
		case <-w.poke:
		}
		begin := time.Now()
		err := w.look(ctx)
		switch {
		case ctx.Err() != nil:
			return nil
		case err != nil && !blind:
			w.log.Error("host was not looked at", "err", err)
		case err == nil && blind:
			w.log.Info("host was looked at again")
		}
		blind = err != nil
		w.followAll(ctx, &following)
		now := time.Now()
		due = now.Add(w.pause(now, now.Sub(begin)))
		t.Reset(w.wait(now, due))
	}
}

// pause is the time to the next look at all, after one that took so long.
func (w *watcher) pause(now time.Time, took time.Duration) time.Duration {
	w.mu.Lock()
	defer w.mu.Unlock()
	if now.Before(w.hurry) {
		return min(w.pace.hurried, w.config.Poll)
	}
	return rest(w.config.Poll, took)
}

// rest is the time between two looks at all that should be poll apart, when the last one took so long.
func rest(poll, took time.Duration) time.Duration {
	return max(poll, min(share*took, rarer*poll))
}

// wait is the time until something is to be looked at: all, when that is due, or what is young.
func (w *watcher) wait(now, due time.Time) time.Duration {
	if len(w.youngOnes(now)) > 0 {
		return min(due.Sub(now), w.pace.young)
	}
	return due.Sub(now)
}

// youngOnes lists what was created a moment ago.
func (w *watcher) youngOnes(now time.Time) []string {
	w.mu.Lock()
	defer w.mu.Unlock()
	maps.DeleteFunc(w.young, func(_ string, until time.Time) bool { return !now.Before(until) })
	return slices.Collect(maps.Keys(w.young))
}

// runOn asks the daemon for a few instances by their names and reports whether all of them run. If it cannot tell they
// may not.
func (w *watcher) runOn(ctx context.Context, names []string) bool {
	if len(names) > fewYoung {
		return false
	}
	ctx, cancel := context.WithTimeout(ctx, lookTime)
	defer cancel()
	for _, instance := range names {
		name, err := nameOf(w.path, instance)
		if err != nil {
			return false
		}
		list, err := w.client.Info(ctx, name)
		if err != nil || len(list) == 0 {
			return false
		}
	}
	return true
}

func (w *watcher) again() { signal(w.poke) }

func signal(c chan struct{}) {
	select {
	case c <- struct{}{}:
	default: // somebody did already
	}
}

// created tells of an instance that the daemon has just started.
func (w *watcher) created(instance string, begin time.Time) {
	w.mu.Lock()
	w.made[instance] = begin
	w.want[instance] = origin{from: begin}
	w.young[instance] = time.Now().Add(youngTime)
	w.mu.Unlock()
	signal(w.come)
}

// revise sees to it that the record does not tell any more how instances ended that have just been created: one that was
// kept and had exited, or one whose first create was cut short by a crash of the daemon.
func (w *watcher) revise(ctx context.Context, created []Start) error {
	if len(created) == 0 {
		return nil
	}
	record, _, err := w.bus.Hosts.Get(ctx, w.config.Host)
	if err != nil {
		return err
	}
	for _, i := range record.GetInstances() {
		if !i.GetRunning() && slices.ContainsFunc(created, func(st Start) bool { return st.Name == i.GetName() }) {
			return w.look(ctx)
		}
	}
	return nil
}

// look asks the daemon what runs and writes the record of the host if that changed.
func (w *watcher) look(ctx context.Context) error {
	w.looking.Lock()
	defer w.looking.Unlock()
	for {
		result, err := w.lookOnce(ctx)
		if errors.Is(err, jetstream.ErrKeyRevisionMismatch) {
			continue // a replica was first
		}
		w.metrics.looks.WithLabelValues(result).Inc()
		return err
	}
}

func (w *watcher) lookOnce(ctx context.Context) (result string, err error) {
	w.mu.Lock()
	made := maps.Clone(w.made) // before the daemon is asked: it must know them
	w.mu.Unlock()
	l := Look{Host: w.config.Host, Targets: w.config.Targets, At: time.Now(), First: !w.told, Unsure: map[string]bool{}, Created: map[string]bool{}, Machine: w.machine}
	for name := range made {
		l.Created[name] = true
	}
	if l.Running, l.Started, err = w.running(ctx); err != nil {
		return "failed", err
	}
	have, revision, err := w.bus.Hosts.Get(ctx, w.config.Host)
	if unreadable, ok := errors.AsType[*bus.UnreadableError](err); ok { // it tells nobody anything: better one of now
		w.log.Warn("record of the host was written anew", "err", unreadable)
		l.First = true
	} else if err != nil {
		return "failed", err
	}
	if l.Gone, err = w.missing(ctx, have, made, l.Running); err != nil {
		return "failed", err
	}
	l.Tails = w.tails()
	w.doubt(&l)
	next := Record(have, l)
	result = "same"
	if next != have {
		result = "written"
		if err := w.bus.Hosts.Put(ctx, w.config.Host, next, revision); err != nil {
			return "failed", err
		}
	}
	w.told = true
	w.metrics.running.Set(float64(len(l.Running)))
	w.looked(l.Running, l.At)
	w.settle(l, made, have.GetSeen().AsTime())
	return result, nil
}

// running asks the daemon for the instances that run, and when they were started, if it tells.
func (w *watcher) running(ctx context.Context) (running map[string]bool, started map[string]time.Time, err error) {
	ctx, cancel := context.WithTimeout(ctx, lookTime)
	defer cancel()
	list, err := w.client.Info(ctx, w.path.Name())
	if err != nil && !errors.Is(err, albatross.ErrNotFound) {
		return nil, nil, fmt.Errorf("look at what runs: %w", err)
	}
	running, started = map[string]bool{}, map[string]time.Time{}
	for _, r := range list {
		if _, _, _, ours := messages.ParseInstance(r.Name.Label()); ours && r.Name.Path() == w.path {
			running[r.Name.Label()] = true
			if r.Started.Unix() > 0 {
				started[r.Name.Label()] = r.Started
			}
		}
	}
	return running, started, nil
}

// missing gives the instances that ran, by the record or because they were created here, that run no more, and that a
// deployment still refers to.
func (w *watcher) missing(ctx context.Context, have *fulmarv1.Host, made map[string]time.Time, running map[string]bool) (map[string]bool, error) {
	names := map[string]bool{}
	for _, i := range have.GetInstances() {
		names[i.GetName()] = true
	}
	for name := range made {
		names[name] = true
	}
	wanted := map[string]func(name string) bool{} // by stack
	for name := range names {
		stack, _, _, ok := messages.ParseInstance(name)
		if running[name] || !ok {
			delete(names, name)
			continue
		}
		if wanted[stack] == nil {
			head, _, err := w.bus.Heads.Get(ctx, stack)
			wanted[stack] = func(name string) bool { return Wanted(head, name) }
			if _, unreadable := errors.AsType[*bus.UnreadableError](err); unreadable {
				wanted[stack] = func(string) bool { return true } // as long as nobody can tell; the other stacks have nothing to do with it
			} else if err != nil {
				return nil, err
			}
		}
		if !wanted[stack](name) {
			delete(names, name)
		}
	}
	return names, nil
}

// doubt marks the instances that went a moment ago and whose console has not yet said how.
func (w *watcher) doubt(l *Look) {
	maps.DeleteFunc(w.gone, func(name string, _ time.Time) bool { return !l.Gone[name] })
	for name := range l.Gone {
		if _, known := w.gone[name]; !known {
			w.gone[name] = l.At
		}
		l.Unsure[name] = l.Tails[name].Exit == "" && l.At.Sub(w.gone[name]) < w.pace.grace
	}
}

// settle remembers what the next look needs: which creates are seen, and which consoles to follow.
func (w *watcher) settle(l Look, made map[string]time.Time, seen time.Time) {
	w.mu.Lock()
	defer w.mu.Unlock()
	want := map[string]origin{}
	for name := range l.Running {
		want[name] = origin{from: l.At}
		if begin, ok := made[name]; ok {
			want[name] = origin{from: begin}
		}
	}
	for name, unsure := range l.Unsure {
		if !unsure {
			continue
		}
		want[name] = origin{from: seen, silent: true}
		if begin, ok := made[name]; ok {
			want[name] = origin{from: begin}
		}
		if until := l.At.Add(2 * w.pace.grace); until.After(w.hurry) {
			w.hurry = until
		}
	}
	for name, begin := range w.made {
		if _, asked := made[name]; !asked { // it was created since
			want[name] = origin{from: begin}
		}
	}
	w.want = want
	for name, begin := range made {
		if w.made[name].Equal(begin) && !l.Unsure[name] {
			delete(w.made, name)
		}
	}
	maps.DeleteFunc(w.young, func(name string, until time.Time) bool { // it ended
		return !l.Running[name] && until.Before(l.At.Add(youngTime))
	})
}
