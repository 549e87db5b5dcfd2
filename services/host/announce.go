package host

import (
	"context"
	"io"
	"maps"
	"net"
	"slices"
	"strings"
	"time"

	"fulmar/albatross"
)

// changes tells those who follow what runs that it has changed.
type changes struct{ next chan struct{} }

func newChanges() changes { return changes{next: make(chan struct{})} }

// tell ends the wait of all who wait. The caller holds the service's mu.
func (c *changes) tell() {
	close(c.next)
	c.next = make(chan struct{})
}

// announce tells albatross's own daemon of statistics, or whoever else asks for it, of the process of each unikernel that runs, as they come and
// go, until either side closes the connection. What it answers is nothing to host.
func (s *Service) announce(ctx context.Context, conn net.Conn, h albatross.Header) {
	s.reply(conn, h, albatross.Empty{})
	left, leave := hears(conn, func(conn net.Conn) { _, _ = io.Copy(io.Discard, conn) })
	defer leave()
	var sequence uint64
	say := func(name albatross.Name, c albatross.Command) bool {
		sequence++
		_ = conn.SetWriteDeadline(time.Now().Add(lineTime))
		der, err := albatross.Marshal(albatross.Wire{Header: albatross.Header{Sequence: sequence, Name: name}, Payload: c})
		return err == nil && albatross.WriteFrame(conn, der) == nil
	}
	told := make(map[albatross.Name]watched)
	for {
		s.mu.Lock()
		changed := s.changes.next
		s.mu.Unlock()
		for _, step := range announcements(told, s.watchedUnikernels()) {
			if !say(step.name, step.command) {
				return
			}
		}
		select {
		case <-ctx.Done():
			return
		case <-left:
			return
		case <-changed:
		}
	}
}

// announcement is one step from what was told to what runs.
type announcement struct {
	name    albatross.Name
	command albatross.Command
}

// announcements says what is to be told, and changes told to it: first what runs no more, or as another process.
func announcements(told map[albatross.Name]watched, now []watched) (steps []announcement) {
	running := make(map[albatross.Name]watched)
	for _, w := range now {
		running[w.name] = w
	}
	byName := func(a, b albatross.Name) int { return strings.Compare(a.String(), b.String()) }
	for _, name := range slices.SortedFunc(maps.Keys(told), byName) {
		if running[name].identity != told[name].identity {
			steps = append(steps, announcement{name, albatross.StatsRemove{}})
			delete(told, name)
		}
	}
	for _, name := range slices.SortedFunc(maps.Keys(running), byName) {
		if _, known := told[name]; !known {
			w := running[name]
			steps = append(steps, announcement{name, albatross.StatsAdd{PID: w.PID, Taps: w.taps}})
			told[name] = w
		}
	}
	return steps
}
