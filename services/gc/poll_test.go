package gc

import (
	"errors"
	"net/netip"
	"testing"
	"time"
)

func TestPollsThatAreFreshAreNotMadeAgain(t *testing.T) {
	begin := time.Now()
	one, two := netip.MustParseAddr("10.0.0.1"), netip.MustParseAddr("10.0.0.2")
	p := polls{last: map[string]poll{}}
	broken := errors.New("no table")
	for i, step := range []struct {
		after time.Duration
		drain string
		addrs []netip.Addr
		found int
		fails error
		walks bool
		flows int
		since time.Duration // of being idle; -1: it is not
	}{
		{0, "web-1", []netip.Addr{one}, 3, nil, true, 3, -1},
		{apart - 1, "web-1", []netip.Addr{one}, 0, nil, false, 3, -1},
		{apart - 1, "web-2", []netip.Addr{two}, 0, nil, true, 0, apart - 1},
		{apart, "web-1", []netip.Addr{one}, 0, nil, true, 0, apart},
		{2*apart - 1, "web-1", []netip.Addr{one}, 5, nil, false, 0, apart},
		{2 * apart, "web-1", []netip.Addr{one}, 0, nil, true, 0, apart},
		{3 * apart, "web-1", []netip.Addr{one}, 1, nil, true, 1, -1},
		{4 * apart, "web-1", []netip.Addr{one}, 0, nil, true, 0, 4 * apart},
		{4 * apart, "web-1", []netip.Addr{two, one}, 0, nil, true, 0, 4 * apart},
		{5 * apart, "web-1", []netip.Addr{one, two}, 0, nil, true, 0, 4 * apart},
		{5 * apart, "web-1", []netip.Addr{two}, 0, nil, true, 0, 5 * apart}, // what was idle was something else
		{6 * apart, "web-1", []netip.Addr{two}, 0, broken, true, 0, -1},
		{6 * apart, "web-1", []netip.Addr{two}, 0, nil, true, 0, 5 * apart},
	} {
		walked := false
		got, err := p.look(step.drain, step.addrs, func() time.Time { return begin.Add(step.after) }, func(addrs ...netip.Addr) (map[netip.Addr]int, error) {
			walked = true
			return map[netip.Addr]int{addrs[0]: step.found}, step.fails
		})
		want := time.Time{}
		if step.since >= 0 {
			want = begin.Add(step.since)
		}
		if !errors.Is(err, step.fails) || walked != step.walks || got.flows != step.flows || !got.idleSince.Equal(want) {
			t.Errorf("step %d: %v, walked %v, %d flows, idle since %v", i, err, walked, got.flows, got.idleSince.Sub(begin))
		}
	}
}
