package crash_test

import (
	"context"
	"errors"
	"slices"
	"strings"
	"sync"
	"testing"

	"fulmar/e2e/lab"
)

// TestFrozenWorkerHasNoSecondEffect stops one of two replicas when it has sent what changes something and nobody has it
// yet, for as long as it takes the other to do the work, and lets it go on after.
func TestFrozenWorkerHasNoSecondEffect(t *testing.T) {
	w := newWorld(t, 2)
	created := w.countCreated()
	var all []testLife
	var lived []*life
	for _, p := range points() {
		switch {
		case p.service == "nat": // the other one waits until this one ends: see TestFrozenNatPublishesOnce
			continue
		case strings.Contains(p.name, "image"), strings.Contains(p.name, "last"): // as the first
			continue
		}
		all = append(all, testLife{"before " + p.name, func(l *life) {
			w.mu.Lock()
			lived = append(lived, l)
			w.mu.Unlock()
			l.frozen(p)
		}})
	}
	w.lives(all)
	for _, l := range lived { // what was late has come by now
		l.t = t
		l.ended()
	}
	if twice := created(); len(twice) > 0 {
		t.Errorf("instances were made more than once: %q", twice)
	}
}

// frozen goes through a life in which, during an update, whichever replica comes to a point is frozen there until the
// update is over.
func (l *life) frozen(p point) {
	l.t.Helper()
	during := update
	if !slices.Contains(p.phases, update) {
		during = sick
	}
	l.run(first, "v1")
	turn := l.turns[p.service]
	turn.Lock() // of two replicas one works on
	f := l.freeze(p)
	l.run(during, "v2")
	err := f.thaw()
	turn.Unlock()
	if err != nil {
		l.t.Errorf("stack %s: %v", l.stack, err)
	}
	l.held()
	l.run(retire, "")
	l.ended()
	l.judge()
}

// freeze is a process that is frozen at a point.
type freeze struct{ thaw func() error }

// freeze sets a trap on both replicas. The first that comes to the point is frozen, the other one passes.
func (l *life) freeze(p point) freeze {
	ctx, cancel := context.WithTimeout(l.t.Context(), patience)
	var waiting sync.WaitGroup
	var once sync.Once
	var errs [2]error
	frozen := make(chan *lab.Process, 1)
	traps := [2]*lab.Trap{}
	for i, name := range []string{p.service, p.service + "-2"} {
		wire := l.members[name].wire
		if p.host {
			wire = l.daemons[name]
		}
		traps[i] = wire.Trap(lab.Before, p.is(l.stack))
		waiting.Go(func() {
			if traps[i].Await(ctx) != nil {
				return
			}
			mine := false
			once.Do(func() { mine = true })
			if !mine {
				traps[i].Pass()
				return
			}
			proc, err := l.members[name].running(ctx)
			if err == nil {
				err = proc.Freeze()
			}
			errs[i] = err
			if err == nil {
				frozen <- proc
			}
		})
	}
	return freeze{func() error {
		cancel()
		waiting.Wait()
		var err error
		select {
		case proc := <-frozen:
			err = proc.Thaw()
		default:
			err = errors.New("nobody was frozen")
		}
		for _, t := range traps {
			t.Pass()
		}
		return errors.Join(err, errs[0], errs[1])
	}}
}
