package host

import (
	"errors"
	"fmt"
	"sync"
)

const (
	slotsMax = 1 << 16 // user ids that are ours
	noSlot   = -1
)

// The user ids of unikernels begin between these: the 16-bit ids, with root, nobody and no user at all, are not theirs, nor are the last two of 32 bits.
const (
	uidsFirst = 1 << 16
	uidsLast  = 1<<32 - 2 - slotsMax
)

// checkUIDs refuses user ids that cannot be those of unikernels.
func checkUIDs(base int) error {
	if base < uidsFirst || base > uidsLast {
		return fmt.Errorf("the user ids of unikernels cannot begin at %d: --uid-base is from %d to %d, and the first of %d ids", base, uidsFirst, uidsLast, slotsMax)
	}
	return nil
}

// errNoSlots reports that every user id is in use.
var errNoSlots = errors.New("too many unikernels: every user id is in use")

// slots gives each instance a small number, and so a user id, that no other has at the same time.
type slots struct {
	mu    sync.Mutex
	taken map[int]bool
	low   int // no slot below it is free
}

func newSlots() *slots { return &slots{taken: make(map[int]bool)} }

// take returns the lowest free slot.
func (s *slots) take() (int, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for ; s.low < slotsMax; s.low++ {
		if !s.taken[s.low] {
			s.taken[s.low] = true
			return s.low, nil
		}
	}
	return noSlot, errNoSlots
}

// claim takes a slot that an adopted instance has.
func (s *slots) claim(slot int) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.taken[slot] = true
}

// give makes a slot free again. There is nothing to do for noSlot.
func (s *slots) give(slot int) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if slot == noSlot {
		return
	}
	delete(s.taken, slot)
	s.low = min(s.low, slot)
}
