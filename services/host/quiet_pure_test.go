package host

import (
	"net"
	"net/netip"
	"slices"
	"testing"
	"time"

	"golang.org/x/net/bpf"
)

func TestHushed(t *testing.T) {
	all, one := []byte{0xff, 0xff, 0xff, 0xff, 0xff, 0xff}, []byte{2, 0, 0, 0, 0, 7}
	arp := func(to []byte, sender, target string) []byte {
		frame := slices.Concat(to, []byte{2, 0, 0, 0, 0, 9, 8, 6, 0, 1, 8, 0, 6, 4, 0, 1, 2, 0, 0, 0, 0, 9}, netip.MustParseAddr(sender).AsSlice())
		return slices.Concat(frame, make([]byte, 6), netip.MustParseAddr(target).AsSlice())
	}
	for what, c := range map[string]struct {
		frame []byte
		want  bool
	}{
		"a question for somebody":                                      {arp(all, "10.9.0.9", "10.9.0.2"), true},
		"a question of the bridge":                                     {arp(all, "10.9.0.1", "10.9.0.2"), true},
		"a question for the bridge":                                    {arp(all, "10.9.0.9", "10.9.0.1"), false},
		"a question for its other address":                             {arp(all, "10.9.0.9", "192.168.0.1"), false},
		"an announcement":                                              {arp(all, "10.9.0.9", "10.9.0.9"), true},
		"an announcement of another unikernel":                         {slices.Concat(all, []byte{0, 0x80, 0x41}, arp(all, "10.9.0.9", "10.9.0.9")[9:]), false},
		"a question of another unikernel":                              {slices.Concat(all, []byte{0, 0x80, 0x41}, arp(all, "10.9.0.9", "10.9.0.2")[9:]), true},
		"what host announces of another unikernel":                     {greeting(acquaintance{addr: netip.MustParseAddr("10.9.0.9"), mac: net.HardwareAddr{0, 0x80, 0x41, 1, 2, 3}}), true},
		"an announcement of the bridge, or that its address has moved": {arp(all, "10.9.0.1", "10.9.0.1"), true},
		"an announcement of its other address":                         {arp(all, "192.168.0.1", "192.168.0.1"), true},
		"a look whether an address is free":                            {arp(all, "0.0.0.0", "10.9.0.2"), true},
		"an answer":                                                    {arp(one, "10.9.0.1", "10.9.0.2"), true},
		"an announcement to one alone":                                 {arp(one, "10.9.0.9", "10.9.0.9"), true},
		"a broadcast that is no ARP":                                   {slices.Concat(all, one, []byte{8, 0}, make([]byte, 46)), true},
		"a packet":                                                     {slices.Concat(one, one, []byte{8, 0}, make([]byte, 46)), true},
		"a broadcast that is shorter than a question":                  {slices.Concat(all, one, []byte{8, 6}, make([]byte, 14)), false},
	} {
		t.Run(what, func(t *testing.T) {
			vm, err := bpf.NewVM(hushed([]netip.Addr{netip.MustParseAddr("10.9.0.1"), netip.MustParseAddr("192.168.0.1")}))
			if err != nil {
				t.Fatal(err)
			}
			if n, err := vm.Run(c.frame); err != nil || (n > 0) != c.want {
				t.Errorf("passes %d bytes (%v), want that it passes: %v", n, err, c.want)
			}
		})
	}
	for n := 1; n <= maxOwn; n++ {
		own := make([]netip.Addr, n)
		for i := range own {
			own[i] = netip.AddrFrom4([4]byte{10, 9, 1, byte(i)})
		}
		vm, err := bpf.NewVM(hushed(own))
		if err != nil {
			t.Fatal(err)
		}
		for _, o := range own {
			if passed, err := vm.Run(arp(all, "10.9.0.9", o.String())); err != nil || passed > 0 {
				t.Errorf("of %d addresses %v passes %d bytes, %v", n, o, passed, err)
			}
		}
	}
}

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
