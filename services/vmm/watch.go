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
)

// pace is how often the daemon is looked at when there is a reason to.
type pace struct {
	// After an exit is known or suspected the next looks come in quick succession, for hurryTime.
	hurried time.Duration
	// An image that cannot run dies right after it was created, and not every daemon tells. So the next looks come sooner,
	// for youngTime.
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
	hurry   time.Time // until when looks come in quick succession
	young   time.Time // until when they come sooner
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
	}
}

// run looks periodically, and whenever it is poked, until ctx ends.
func (w *watcher) run(ctx context.Context) error {
	ctx, cancel := context.WithCancel(ctx)
	var following sync.WaitGroup
	defer following.Wait()
	defer cancel()
	next := time.Now()
	t := time.NewTimer(0)
	defer t.Stop()
	blind := false
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-w.come:
			w.followAll(ctx, &following)
			if first := time.Now().Add(w.pace.first); first.Before(next) {
				next = first
			}
			t.Reset(time.Until(next))
			continue
		case <-t.C:
		case <-w.poke:
		}
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
		next = time.Now().Add(w.pause(time.Now()))
		t.Reset(time.Until(next))
	}
}

// pause is the time to the next look.
func (w *watcher) pause(now time.Time) time.Duration {
	w.mu.Lock()
	defer w.mu.Unlock()
	switch {
	case now.Before(w.hurry):
		return min(w.pace.hurried, w.config.Poll)
	case now.Before(w.young):
		return min(w.pace.young, w.config.Poll)
	}
	return w.config.Poll
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
	w.young = time.Now().Add(youngTime)
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
	l := Look{Host: w.config.Host, Targets: w.config.Targets, At: time.Now(), First: !w.told, Unsure: map[string]bool{}, Machine: w.machine}
	if l.Running, l.Started, err = w.running(ctx); err != nil {
		return "failed", err
	}
	have, revision, err := w.bus.Hosts.Get(ctx, w.config.Host)
	if err != nil {
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
	heads := map[string]*fulmarv1.Head{}
	for name := range names {
		stack, _, _, ok := messages.ParseInstance(name)
		if running[name] || !ok {
			delete(names, name)
			continue
		}
		if heads[stack] == nil {
			head, _, err := w.bus.Heads.Get(ctx, stack)
			if err != nil {
				return nil, err
			}
			heads[stack] = head
		}
		if !Wanted(heads[stack], name) {
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
}
