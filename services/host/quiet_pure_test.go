package host

import (
	"net/netip"
	"strconv"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

func TestOwnAddress(t *testing.T) {
	for what, c := range map[string]struct {
		arguments []string
		want      string
	}{
		"as MirageOS has it":   {[]string{"-l", "debug", "--ipv4=10.0.0.2/24", "--ipv4-gateway=10.0.0.1"}, "10.0.0.2"},
		"none":                 {[]string{"--ipv4-gateway=10.0.0.1"}, ""},
		"no prefix":            {[]string{"--ipv4=10.0.0.2"}, ""},
		"IPv6":                 {[]string{"--ipv4=fe80::1/64"}, ""},
		"the first one counts": {[]string{"--ipv4=x", "--ipv4=10.0.0.2/24"}, ""},
	} {
		t.Run(what, func(t *testing.T) {
			got, ok := ownAddress(c.arguments)
			if ok != (c.want != "") || ok && got.String() != c.want {
				t.Errorf("got %v, %v, want %q", got, ok, c.want)
			}
		})
	}
}

func TestAnAddressHasMovedOnlyIfAnotherMayHaveHadIt(t *testing.T) {
	at := func(minutes int) time.Time { return time.Unix(0, 0).Add(time.Duration(minutes) * time.Minute) }
	one, other := holderKey{1, netip.MustParseAddr("10.9.0.2")}, holderKey{2, netip.MustParseAddr("10.9.0.2")}
	h := holders{last: make(map[holderKey]holder)}
	for i, step := range []struct {
		what string
		got  bool
		want bool
	}{
		{"a new one", h.moved(one, "a", at(0)), false},
		{"the same one again", h.moved(one, "a", at(1)), false},
		{"a second one at the same time", h.moved(one, "b", at(2)), false},
		{"another", func() bool { h.left(one, "b", at(2)); h.left(one, "a", at(2)); return h.moved(one, "b", at(3)) }(), true},
		{"one on another bridge", h.moved(other, "c", at(3)), false},
		{"one long after the last began", func() bool { h.left(one, "b", at(300)); return h.moved(one, "a", at(301)) }(), true},
		{"one long after the last ended", func() bool {
			h.left(one, "a", at(302))
			h.moved(other, "c", at(600))
			return h.moved(one, "b", at(601))
		}(), false},
		{"one that host may have forgotten", func() bool { h.forgot(at(700)); return h.moved(holderKey{3, one.addr}, "a", at(701)) }(), true},
		{"one that nobody remembers any more", h.moved(holderKey{4, one.addr}, "a", at(800)), false},
	} {
		if step.got != step.want {
			t.Errorf("step %d, %s: %v", i, step.what, step.got)
		}
	}
}

func TestEveryTapHasAName(t *testing.T) {
	if last := tapPrefix + strconv.Itoa(slotsMax); len(last) >= unix.IFNAMSIZ {
		t.Errorf("%s has %d characters, and the kernel takes %d", last, len(last), unix.IFNAMSIZ-1)
	}
}
