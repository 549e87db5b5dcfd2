package gc

import (
	"maps"
	"net/netip"
	"slices"
	"sync"
	"time"
)

// poll is what the connection table had of a drain at one time.
type poll struct {
	at        time.Time
	addrs     []netip.Addr
	flows     int
	idleSince time.Time // when the first of the polls in a row was that found none; zero: this one found some
}

// polls has the last poll of each drain. Each is a walk over the kernel's whole table, and every update of a stack asks for all that
// drain of it: so what is fresh is not asked again.
type polls struct {
	mu   sync.Mutex
	last map[string]poll // by deployment
}

// look gives a poll of a drain that is younger than apart, and makes one by count if there is none. A drain of other
// addresses than before begins anew.
func (p *polls) look(drain string, addrs []netip.Addr, now func() time.Time, count func(...netip.Addr) (map[netip.Addr]int, error)) (poll, error) {
	addrs = slices.SortedFunc(slices.Values(addrs), netip.Addr.Compare)
	p.mu.Lock() // one walk at a time
	defer p.mu.Unlock()
	before, known := p.last[drain]
	known = known && slices.Equal(before.addrs, addrs)
	if known && now().Sub(before.at) < apart {
		return before, nil
	}
	open, err := count(addrs...)
	if err != nil {
		return poll{}, err
	}
	this := poll{at: now(), addrs: addrs}
	for _, n := range open {
		this.flows += n
	}
	if this.flows == 0 {
		this.idleSince = this.at
		if known && !before.idleSince.IsZero() {
			this.idleSince = before.idleSince
		}
	}
	p.last[drain] = this
	return this, nil
}

// forget drops what is known of drains that are over.
func (p *polls) forget(over func(drain string) bool) {
	p.mu.Lock()
	defer p.mu.Unlock()
	maps.DeleteFunc(p.last, func(drain string, _ poll) bool { return over(drain) })
}
