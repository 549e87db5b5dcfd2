package ipam

import (
	"fmt"
	"net/netip"
	"slices"
	"time"

	"fulmar/messages"
	fulmarv1 "fulmar/messages/fulmar/v1"
)

// moment is the time between two looks at an address that is about to be free.
const moment = time.Second

// memory is how long the lease of an address that has rested tells who held it last.
const memory = time.Hour

// Pool is a network as ipam reads it.
type Pool struct {
	name     string
	prefix   netip.Prefix
	gateway  netip.Addr
	reserved []netip.Prefix
}

// NewPool reads a network, and refuses one that cannot give addresses.
func NewPool(n *fulmarv1.Network) (Pool, error) {
	if n.GetPrefix() == "" {
		return Pool{}, messages.Refuse(fulmarv1.ReasonCode_REASON_CODE_NOT_FOUND, "network %s was removed: add it again with fulmar network add, or deploy to another", n.GetName())
	}
	if err := messages.CheckNetwork(n); err != nil {
		return Pool{}, messages.Refuse(fulmarv1.ReasonCode_REASON_CODE_INVALID, "%w", err)
	}
	p := Pool{name: n.GetName(), prefix: netip.MustParsePrefix(n.GetPrefix()), gateway: netip.MustParseAddr(n.GetGateway())}
	for _, s := range n.GetReserved() {
		r, err := messages.ParseReserved(s)
		if err != nil {
			return p, messages.Refuse(fulmarv1.ReasonCode_REASON_CODE_INVALID, "%w", err)
		}
		p.reserved = append(p.reserved, r)
	}
	return p, nil
}

// size is the number of addresses of the prefix.
func (p Pool) size() uint32 { return 1 << (32 - p.prefix.Bits()) }

// at gives address number i of the prefix.
func (p Pool) at(i uint32) netip.Addr {
	b := p.prefix.Addr().As4()
	n := uint32(b[0])<<24 | uint32(b[1])<<16 | uint32(b[2])<<8 | uint32(b[3]) + i
	return netip.AddrFrom4([4]byte{byte(n >> 24), byte(n >> 16), byte(n >> 8), byte(n)})
}

// leasable reports whether an address may ever be leased: it is neither the network's nor the broadcast address, nor
// the gateway, nor reserved.
func (p Pool) leasable(a netip.Addr) bool {
	return p.prefix.Contains(a) && a != p.at(0) && a != p.at(p.size()-1) && a != p.gateway &&
		!slices.ContainsFunc(p.reserved, func(r netip.Prefix) bool { return r.Contains(a) })
}

// Leases are those of one network, among the records of all by their keys. They are not sorted out before: of thousands, a claim
// needs to look at few.
type Leases struct {
	network string
	records map[string]*fulmarv1.Lease
}

// NewLeases gives the leases of a network.
func NewLeases(network string, records map[string]*fulmarv1.Lease) Leases {
	return Leases{network, records}
}

// address reads a key; false means that it is none of this network.
func (l Leases) address(key string) (netip.Addr, bool) {
	network, address, ok := messages.ParseLeaseKey(key)
	if !ok || network != l.network {
		return netip.Addr{}, false
	}
	a, err := netip.ParseAddr(address)
	return a, err == nil
}

// free reports whether an address can be claimed now: nobody holds it, it has rested, and who held it last does not run. A
// frozen worker may have started that one again before its deadline; then gc stops it first.
func (l Leases) free(a netip.Addr, running func(instance string) bool, now time.Time) bool {
	r, ok := l.records[messages.LeaseKey(l.network, a.String())]
	return !ok || rested(r, running, now)
}

func rested(r *fulmarv1.Lease, running func(instance string) bool, now time.Time) bool {
	return r.GetRestingUntil() != nil && !now.Before(r.GetRestingUntil().AsTime()) && !running(r.GetInstance())
}

// spent reports whether a lease says nothing any more that anybody could need: its address has rested for long.
func spent(r *fulmarv1.Lease, running func(instance string) bool, now time.Time) bool {
	return rested(r, running, now.Add(-memory))
}

// HeldBy gives the address that an instance holds already; of several the lowest, so that everybody finds the same.
func (l Leases) HeldBy(instance string) (netip.Addr, bool) {
	var lowest netip.Addr
	for key, r := range l.records {
		if r.GetInstance() != instance || r.GetRestingUntil() != nil {
			continue
		}
		if a, ok := l.address(key); ok && (!lowest.IsValid() || a.Less(lowest)) {
			lowest = a
		}
	}
	return lowest, lowest.IsValid()
}

// Pick gives the first free address of the pool from a start chosen at random, round once; none is reported by false.
// Running reports whether an instance runs.
func (p Pool) Pick(l Leases, running func(instance string) bool, start uint32, now time.Time) (netip.Addr, bool) {
	for i := range p.size() {
		a := p.at((start + i) % p.size())
		if p.leasable(a) && l.free(a, running, now) {
			return a, true
		}
	}
	return netip.Addr{}, false
}

// Full says why a pool has no free address, and when the first one has rested; that is zero if none rests. One that has
// rested and whose holder runs again is free in a moment.
func (p Pool) Full(l Leases, now time.Time) (reason string, first time.Time) {
	held, resting := 0, 0
	for key, r := range l.records {
		a, ok := l.address(key)
		if !ok || !p.leasable(a) {
			continue
		}
		until := r.GetRestingUntil()
		if until == nil {
			held++
			continue
		}
		resting++
		t := until.AsTime()
		if !t.After(now) {
			t = now.Add(moment)
		}
		if first.IsZero() || t.Before(first) {
			first = t
		}
	}
	return fmt.Sprintf("network %s (%s) has no free address: %d held, %d resting", p.name, p.prefix, held, resting), first
}

// RestUntil is how long an address rests after its instance is gone: until the latest deadline of its stack, when no
// frozen worker can start the instance any more, and the rest time on top.
func RestUntil(now, deadline time.Time, rest time.Duration) time.Time {
	if deadline.After(now) {
		return deadline.Add(rest)
	}
	return now.Add(rest)
}

// waited is the reason of a deployment whose deadline passed after its last event, which is nil if there is none. Try is
// how the last try of the step that it waited for ended, if that is known.
func waited(last *fulmarv1.Event, deadline time.Time, try string) string {
	step := messages.Verb(last.GetVerb()).Awaited()
	if step == "" {
		step = messages.Accepted
	}
	reason := fmt.Sprintf("the deadline passed while it waited for %s", step)
	if requested := last.GetDeployment().GetRequested(); requested != nil {
		reason = fmt.Sprintf("the deadline passed %s after the request while it waited for %s", deadline.Sub(requested.AsTime()).Round(time.Millisecond), step)
	}
	if try != "" {
		reason += ": " + try
	}
	return reason
}
