package host_test

import (
	"net"
	"slices"
	"testing"
	"time"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"fulmar/albatross"
	"fulmar/services/host/hosttest"
)

// anew makes br0 anew, with what an administrator gives it: with 10.9.0.1/24, if it is to have an address.
func anew(t *testing.T, address bool) *netlink.Bridge {
	t.Helper()
	br := &netlink.Bridge{LinkAttrs: netlink.LinkAttrs{Name: "br0"}}
	if err := netlink.LinkAdd(br); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = netlink.LinkDel(br) })
	if err := netlink.LinkSetUp(br); err != nil {
		t.Fatal(err)
	}
	if address {
		addr, err := netlink.ParseAddr("10.9.0.1/24")
		if err == nil {
			err = netlink.AddrAdd(br, addr)
		}
		if err != nil {
			t.Fatal(err)
		}
	}
	return br
}

// isPlugged says whether the tap of a unikernel is on a bridge as it has to be, and the bridge knows who is behind it.
func isPlugged(t *testing.T, n albatross.Name, br *netlink.Bridge) bool {
	t.Helper()
	tap := tapOf(t, n)
	if tap.Attrs().MasterIndex != br.Index {
		return false
	}
	port, err := netlink.LinkGetProtinfo(tap)
	if err != nil {
		t.Fatal(err)
	}
	known, err := netlink.NeighList(tap.Attrs().Index, unix.AF_BRIDGE)
	if err != nil {
		t.Fatal(err)
	}
	return port.Hairpin && slices.ContainsFunc(known, func(k netlink.Neigh) bool {
		return k.HardwareAddr.String() == albatross.MAC(n, "net0").String() && k.MasterIndex == br.Index
	})
}

// takes says whether a bridge takes what is sent to a hardware address.
func takes(t *testing.T, br *netlink.Bridge, mac net.HardwareAddr) bool {
	t.Helper()
	known, err := netlink.NeighList(br.Index, unix.AF_BRIDGE)
	if err != nil {
		t.Fatal(err)
	}
	return slices.ContainsFunc(known, func(k netlink.Neigh) bool {
		return slices.Equal(k.HardwareAddr, mac) && k.State&netlink.NUD_PERMANENT != 0
	})
}

func TestTapsArePutOnTheBridgeThatIsMadeAnew(t *testing.T) {
	for what, c := range map[string]struct{ address, restart bool }{
		"with an address, of which host hears":     {true, false},
		"without one, when host looks":             {false, false},
		"with an address, while host does not run": {true, true},
	} {
		t.Run(what, func(t *testing.T) {
			cfg := config(t)
			br, _ := quietBridge(t)
			d := start(t, cfg)
			n := name(t, ":a")
			d.create(t, n, unikernel(hosttest.Guest(t, 1), 1, "wait", "--ipv4=10.9.0.2/24"))
			d.await(t, n, is("up"))
			if !isPlugged(t, n, br) {
				t.Fatal("the tap of a new unikernel is not on its bridge")
			}
			if c.restart {
				if err := d.stop(); err != nil {
					t.Fatal(err)
				}
			}
			link, err := netlink.LinkByIndex(br.Index)
			if err != nil {
				t.Fatal(err)
			}
			before := link.Attrs().HardwareAddr
			if err := netlink.LinkDel(br); err != nil {
				t.Fatal(err)
			}
			br = anew(t, c.address)
			if c.restart {
				d = start(t, cfg)
			}
			d.destroyAll(t)
			begin := time.Now()
			untilIn(t, 20*time.Second, "the tap is on the new bridge", func() bool { return isPlugged(t, n, br) })
			if took := time.Since(begin); c.address && took > 5*time.Second {
				t.Errorf("it took %v", took)
			}
			if !c.restart {
				until(t, "the new bridge takes what is for the old one, too", func() bool { return takes(t, br, before) })
			}
			if c.address {
				until(t, "the table is of the new bridge", func() bool {
					return slices.Equal(unicast(t), wants(t, br, map[albatross.Name]string{n: "10.9.0.2"}))
				})
				until(t, "the kernel is told of the unikernel", func() bool {
					have := neighbor(t, br, "10.9.0.2")
					return have != nil && have.HardwareAddr.String() == albatross.MAC(n, "net0").String()
				})
			}
		})
	}
}

func TestATapOnAnotherBridgeStaysThere(t *testing.T) {
	cfg := config(t)
	br, _ := quietBridge(t)
	d := start(t, cfg)
	n := name(t, ":a")
	d.create(t, n, unikernel(hosttest.Guest(t, 1), 1, "wait", "--ipv4=10.9.0.2/24"))
	other := &netlink.Bridge{LinkAttrs: netlink.LinkAttrs{Name: "br1"}}
	if err := netlink.LinkAdd(other); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = netlink.LinkDel(other) })
	if err := netlink.LinkSetMaster(tapOf(t, n), other); err != nil {
		t.Fatal(err)
	}
	if err := d.stop(); err != nil {
		t.Fatal(err)
	}
	told := neighbor(t, br, "10.9.0.2")
	if told == nil {
		t.Fatal("the kernel was not told of the unikernel while its tap was on its bridge")
	}
	if err := netlink.NeighDel(told); err != nil {
		t.Fatal(err)
	}
	start(t, cfg).destroyAll(t)
	if tapOf(t, n).Attrs().MasterIndex != other.Index {
		t.Error("the tap was taken from the bridge that somebody put it on")
	}
	if have := neighbor(t, br, "10.9.0.2"); have != nil {
		t.Errorf("the kernel was told that it is on its bridge: %v", have)
	}
	if got := unicast(t); got != nil {
		t.Errorf("what it asks goes to its bridge alone: %v", got)
	}
}
