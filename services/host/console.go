package host

import (
	"bytes"
	"slices"
	"sync"
	"time"

	"fulmar/albatross"
)

const (
	maxLine        = 512  // bytes of a line that are kept; what follows is cut
	ringLines      = 1024 // lines kept of each unikernel
	subscribersMax = 5    // of one console; the oldest makes room
)

// line is one line of a console.
type line struct {
	at   time.Time
	text string
}

// since selects the lines that a new subscriber is sent first.
type since func(ring []line) []line

// sinceTime selects what was written at t or later.
func sinceTime(t time.Time) since {
	return func(ring []line) []line {
		for i := range ring {
			if !ring[i].at.Before(t) {
				return ring[i:]
			}
		}
		return nil
	}
}

// sinceCount selects the last n lines.
func sinceCount(n int) since {
	return func(ring []line) []line { return ring[len(ring)-max(0, min(n, len(ring))):] }
}

// subscriber is one reader of a console.
type subscriber struct {
	next uint64        // number of the line that it gets next
	wake chan struct{} // has one element when there may be lines
	gone chan struct{} // closed when it is dropped for a newer one
}

// console keeps the last lines of one unikernel name. Subscribers fetch them from there, so it never waits for one: who is
// slower than the unikernel for more than the ring holds loses lines, and is told how many.
type console struct {
	mu          sync.Mutex
	ring        []line // oldest first
	total       uint64 // lines ever; the last in the ring has the number total-1
	subscribers []*subscriber
	active      bool      // a unikernel of this name runs
	ended       time.Time // when the last one did
	used        bool      // one of this name ran
	stopped     bool      // a command has ended the last one, and no other was told so since
}

// kept returns the lines that are kept. The caller holds c.mu.
func (c *console) kept() []line { return c.ring[max(0, len(c.ring)-ringLines):] }

// add keeps a line and tells the subscribers.
func (c *console) add(l line) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if len(c.ring) >= 2*ringLines { // the ring is moved once in ringLines lines
		c.ring = append(c.ring[:0], c.kept()...)
	}
	c.ring = append(c.ring, l)
	c.total++
	for _, s := range c.subscribers {
		select {
		case s.wake <- struct{}{}:
		default:
		}
	}
}

// subscribe starts with the lines that from selects. It says whether a unikernel of the name ran at all.
func (c *console) subscribe(from since) (s *subscriber, used bool) {
	c.mu.Lock()
	defer c.mu.Unlock()
	s = &subscriber{next: c.total - uint64(len(from(c.kept()))), wake: make(chan struct{}, 1), gone: make(chan struct{})}
	s.wake <- struct{}{}
	if len(c.subscribers) == subscribersMax {
		close(c.subscribers[0].gone)
		c.subscribers = append(c.subscribers[:0], c.subscribers[1:]...)
	}
	c.subscribers = append(c.subscribers, s)
	return s, c.used
}

// fetch returns the lines that are new to a subscriber, and how many it has missed before them.
func (c *console) fetch(s *subscriber) (lines []line, missed uint64) {
	c.mu.Lock()
	defer c.mu.Unlock()
	kept := c.kept()
	if first := c.total - uint64(len(kept)); s.next < first {
		missed, s.next = first-s.next, first
	}
	lines = append(lines, kept[uint64(len(kept))-(c.total-s.next):]...)
	s.next = c.total
	return lines, missed
}

// unsubscribe ends a subscription; one that was dropped already is no error.
func (c *console) unsubscribe(s *subscriber) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.subscribers = slices.DeleteFunc(c.subscribers, func(other *subscriber) bool { return other == s })
}

// idle says whether nothing needs the console: no unikernel of its name runs and nobody listens.
func (c *console) idle() bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	return !c.active && len(c.subscribers) == 0
}

// idleOrWaited says whether no unikernel of its name runs.
func (c *console) idleOrWaited() bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	return !c.active
}

// inactive says whether a unikernel of its name ran and does no more, and since when.
func (c *console) inactive() (ended time.Time, yes bool) {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.ended, c.used && !c.active
}

// setActive tells the console that a unikernel of its name begins.
func (c *console) setActive() {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.active, c.used = true, true
}

// setEnded tells the console that the unikernel has ended.
func (c *console) setEnded(now time.Time) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.active, c.ended = false, now
}

// setStopped tells the console whether a command has ended the unikernel.
func (c *console) setStopped(by bool) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.stopped = by
}

// takeStopped says whether a command has ended the last unikernel of a name, once.
func (c *consoles) takeStopped(name albatross.Name) (stopped bool) {
	c.mu.Lock()
	defer c.mu.Unlock()
	con := c.byName[name]
	if con == nil {
		return false
	}
	con.mu.Lock()
	defer con.mu.Unlock()
	stopped, con.stopped = con.stopped, false
	return stopped
}

// consoles holds the console of every name: of those that run, those that somebody waits for, and the last that ended.
type consoles struct {
	mu      sync.Mutex
	byName  map[albatross.Name]*console
	foreign int // that are read for others
}

func newConsoles() *consoles { return &consoles{byName: make(map[albatross.Name]*console)} }

// begin returns the console of a unikernel that begins.
func (c *consoles) begin(name albatross.Name) *console {
	c.mu.Lock()
	defer c.mu.Unlock()
	con := c.get(name)
	con.setActive()
	return con
}

// subscribe subscribes to the console of a name, be there a unikernel of it or not.
func (c *consoles) subscribe(name albatross.Name, from since) (con *console, s *subscriber, used bool) {
	c.mu.Lock()
	defer c.mu.Unlock()
	con = c.get(name)
	s, used = con.subscribe(from)
	return con, s, used
}

// inactive lists the names whose unikernels have ended and whose lines are kept, the last first.
func (c *consoles) inactive() []albatross.Name {
	c.mu.Lock()
	defer c.mu.Unlock()
	at := make(map[albatross.Name]time.Time)
	var names []albatross.Name
	for name, con := range c.byName {
		if ended, yes := con.inactive(); yes {
			at[name] = ended
			names = append(names, name)
		}
	}
	slices.SortFunc(names, func(a, b albatross.Name) int { return at[b].Compare(at[a]) })
	return names
}

// get returns the console of a name, made when it is first asked for: the time to forget others. The caller holds c.mu.
func (c *consoles) get(name albatross.Name) *console {
	if con := c.byName[name]; con != nil {
		return con
	}
	c.forget(time.Now())
	con := &console{}
	c.byName[name] = con
	return con
}

const (
	inactiveMax = 256       // consoles of ended unikernels that are kept
	inactiveAge = time.Hour // and for how long
)

// forget drops the consoles that nobody needs, the oldest first, until at most inactiveMax are left of them. The caller holds c.mu.
func (c *consoles) forget(now time.Time) {
	type old struct {
		name  albatross.Name
		ended time.Time
	}
	var idle []old
	for name, con := range c.byName {
		if !con.idle() {
			continue
		}
		ended, used := con.inactive()
		if !used || now.Sub(ended) > inactiveAge {
			delete(c.byName, name)
			continue
		}
		idle = append(idle, old{name, ended})
	}
	if len(idle) <= inactiveMax {
		return
	}
	slices.SortFunc(idle, func(a, b old) int { return a.ended.Compare(b.ended) })
	for _, o := range idle[:len(idle)-inactiveMax] {
		delete(c.byName, o.name)
	}
}

// splitter cuts a stream into lines: empty ones are dropped, the rest of a line longer than maxLine too.
type splitter struct {
	partial []byte
}

// split returns the lines that data completes.
func (s *splitter) split(data []byte, now time.Time) []line {
	var lines []line
	for len(data) > 0 {
		end := bytes.IndexByte(data, '\n')
		part := data
		if end >= 0 {
			part, data = data[:end], data[end+1:]
		} else {
			data = nil
		}
		s.partial = append(s.partial, part[:min(len(part), maxLine-len(s.partial))]...)
		if end >= 0 {
			lines = append(lines, s.flush(now)...)
		}
	}
	return lines
}

// flush returns what is left without a line end, if anything is.
func (s *splitter) flush(now time.Time) []line {
	text := bytes.TrimSuffix(s.partial, []byte("\r"))
	s.partial = s.partial[:0]
	if len(text) == 0 {
		return nil
	}
	return []line{{at: now, text: string(text)}}
}
