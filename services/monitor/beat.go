package monitor

import (
	"context"
	"slices"
	"sync"
	"time"
)

// together is how many checks are run at once. To be woken costs ten times as much as to check, so checks of one
// interval are gathered; too many at once would hold up a deployment.
const together = 64

// member is one check of a watched instance.
type member struct {
	watcher *watcher
	index   int
	check   *check
	busy    sync.Mutex // held while the check runs
}

// group is a number of checks that run at the same times: at phase, and every interval after it.
type group struct {
	interval time.Duration
	number   int // among those of its interval
	next     time.Duration
	members  []*member
}

// beats says when the checks run, in time since it was made. The groups of one interval are spread over it, and
// different intervals meet whenever they can.
type beats struct {
	begin   time.Time
	changed chan struct{}

	mu     sync.Mutex
	groups []*group
}

func newBeats() *beats { return &beats{begin: time.Now(), changed: make(chan struct{}, 1)} }

// phase is the time within an interval at which the group of a number runs: 0, 1/2, 1/4, 3/4, 1/8 … of it, so that any
// number of groups is spread well.
func phase(number int, interval time.Duration) time.Duration {
	var at time.Duration
	for part := interval / 2; number > 0; number, part = number/2, part/2 {
		at += time.Duration(number%2) * part
	}
	return at
}

// following is the first time after now at which a group runs.
func following(now, interval, phase time.Duration) time.Duration {
	at := now/interval*interval + phase
	if at <= now {
		at += interval
	}
	return at
}

// add puts a check into the first group of its interval that has room.
func (b *beats) add(m *member) {
	b.mu.Lock()
	defer b.mu.Unlock()
	taken := map[int]bool{}
	var to *group
	for _, g := range b.groups {
		if g.interval == m.check.interval {
			taken[g.number] = true
			if len(g.members) < together && (to == nil || g.number < to.number) {
				to = g
			}
		}
	}
	if to == nil {
		to = &group{interval: m.check.interval}
		for taken[to.number] {
			to.number++
		}
		to.next = following(time.Since(b.begin), to.interval, phase(to.number, to.interval))
		b.groups = append(b.groups, to)
		select {
		case b.changed <- struct{}{}:
		default: // it will look again anyway
		}
	}
	to.members = append(to.members, m)
}

// remove takes a check out.
func (b *beats) remove(m *member) {
	b.mu.Lock()
	defer b.mu.Unlock()
	for _, g := range b.groups {
		g.members = slices.DeleteFunc(g.members, func(other *member) bool { return other == m })
	}
	b.groups = slices.DeleteFunc(b.groups, func(g *group) bool { return len(g.members) == 0 })
}

// due gives the checks whose time has come, and when to ask again. A time that was missed is not made up for.
func (b *beats) due(now time.Duration) (due []*member, next time.Duration) {
	b.mu.Lock()
	defer b.mu.Unlock()
	next = now + time.Hour
	for _, g := range b.groups {
		if g.next <= now {
			due = append(due, g.members...)
			g.next = following(now, g.interval, phase(g.number, g.interval))
		}
		next = min(next, g.next)
	}
	return due, next
}

// run gives the checks to beat when their time has come, until ctx ends.
func (b *beats) run(ctx context.Context, beat func(context.Context, []*member)) error {
	for {
		due, next := b.due(time.Since(b.begin))
		beat(ctx, due)
		t := time.NewTimer(next - time.Since(b.begin))
		select {
		case <-t.C:
		case <-b.changed:
			t.Stop()
		case <-ctx.Done():
			t.Stop()
			return nil
		}
	}
}
