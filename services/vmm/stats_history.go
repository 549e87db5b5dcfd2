package vmm

import (
	"cmp"
	"slices"
	"time"
)

// What history keeps: 10 minutes, which are about 60 samples of 250 bytes of each instance (15 KB), and no more than 16 MiB of
// all instances together.
const (
	historyTime  = 10 * time.Minute
	historyBytes = 16 << 20
	entryBytes   = 64 // of an entry beside its body
)

// entry is one sample, encoded as it was published.
type entry struct {
	at       time.Time
	instance string
	body     []byte
}

// history is the samples of all instances in the order in which they came. The oldest leave first, by age and by size: so
// those of an instance that is gone stay as long as those of the others.
type history struct {
	limit   int // bytes
	entries []entry
	first   int // the oldest entry that is kept
	bytes   int
}

// add keeps a sample and lets go what is too old or too much.
func (h *history) add(e entry) {
	h.entries = append(h.entries, e)
	h.bytes += entryBytes + len(e.body)
	for h.bytes > h.limit || e.at.Sub(h.entries[h.first].at) > historyTime {
		h.bytes -= entryBytes + len(h.entries[h.first].body)
		h.entries[h.first] = entry{}
		h.first++
		if h.first == len(h.entries) {
			break
		}
	}
	if 2*h.first > len(h.entries) {
		h.entries = slices.Delete(h.entries, 0, h.first)
		h.first = 0
	}
}

// find gives the last n samples, or all if n is 0, of each instance that is wanted, which are not older than since: by
// instance, and oldest first.
func (h *history) find(wanted func(instance string) bool, since time.Time, n int) []entry {
	var found []entry
	have := map[string]int{}
	for _, e := range slices.Backward(h.entries[h.first:]) {
		if e.at.Before(since) {
			break
		}
		if !wanted(e.instance) || n > 0 && have[e.instance] == n {
			continue
		}
		have[e.instance]++
		found = append(found, e)
	}
	slices.Reverse(found)
	slices.SortStableFunc(found, func(a, b entry) int { return cmp.Compare(a.instance, b.instance) })
	return found
}
