package host

import (
	"maps"
	"net/netip"
	"slices"
	"sync"
	"time"
)

// heldFor is for how long a unikernel may know by which hardware address it reached another one.
const heldFor = time.Hour

// holders remembers which hardware address had which IPv4 address last, of unikernels that say which is theirs, so that others are told
// when one has moved, and only then.
type holders struct {
	mu     sync.Mutex
	last   map[holderKey]holder
	blind  time.Time // until when what a host before this one knew may count
	pruned time.Time
}

// holderKey is an address on a bridge, which is named by its index.
type holderKey struct {
	bridge int
	addr   netip.Addr
}

type holder struct {
	mac   string
	ended time.Time // zero while it runs
}

// forgot says that what was held before now is not known.
func (h *holders) forgot(now time.Time) {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.blind = now.Add(heldFor)
}

// moved takes note of the holder of an address and reports whether another one may have had it lately.
func (h *holders) moved(key holderKey, mac string, now time.Time) bool {
	h.mu.Lock()
	defer h.mu.Unlock()
	if now.Sub(h.pruned) > heldFor {
		for k, v := range h.last {
			if !v.ended.IsZero() && now.Sub(v.ended) > heldFor {
				delete(h.last, k)
			}
		}
		h.pruned = now
	}
	before, known := h.last[key]
	if known && before.mac != mac && before.ended.IsZero() {
		return false // it is not for a second one to say
	}
	h.last[key] = holder{mac: mac}
	if !known {
		return now.Before(h.blind)
	}
	return before.mac != mac
}

// left takes note that the holder of an address has ended.
func (h *holders) left(key holderKey, mac string, now time.Time) {
	h.mu.Lock()
	defer h.mu.Unlock()
	if h.last[key].mac == mac {
		h.last[key] = holder{mac: mac, ended: now}
	}
}

// forget drops what is remembered of bridges that are gone.
func (h *holders) forget(gone func(bridge int) bool) {
	h.mu.Lock()
	defer h.mu.Unlock()
	maps.DeleteFunc(h.last, func(key holderKey, _ holder) bool { return gone(key.bridge) })
}

// greeting is what a says of itself to all.
func greeting(a acquaintance) []byte {
	all := []byte{0xff, 0xff, 0xff, 0xff, 0xff, 0xff}
	question := []byte{8, 6, 0, 1, 8, 0, 6, 4, 0, 1} // ARP: Ethernet, IPv4, their lengths, request
	addr := a.addr.AsSlice()
	return slices.Concat(all, a.mac, question, a.mac, addr, make([]byte, 6), addr, make([]byte, 18)) // to Ethernet's least length
}
