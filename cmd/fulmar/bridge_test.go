package main

import (
	"context"
	"log/slog"
	"net"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/vishvananda/netlink"
	"github.com/vishvananda/netlink/nl"
	"golang.org/x/sys/unix"

	"fulmar/bus"
	"fulmar/bus/bustest"
	"fulmar/firewall/nstest"
	fulmarv1 "fulmar/messages/fulmar/v1"
)

// keeping has the bridges of host h1 kept until the test ends; one is there when it returns.
func keeping(t *testing.T) (b *bus.Bus, told lines) {
	t.Helper()
	nstest.NeedRoot(t)
	server := bustest.Server(t)
	b = bustest.Open(t, server, bus.Options{Service: "test"})
	first := &fulmarv1.Network{Name: "first", Host: "h1", Bridge: "first0", Prefix: "10.96.0.0/24", Gateway: "10.96.0.1"}
	if err := b.Networks.Put(t.Context(), first.GetName(), first, 0); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { remove(t, "first0", "kept0") })
	told = make(lines, 100)
	ctx, cancel := context.WithCancel(context.Background())
	var wg sync.WaitGroup
	wg.Go(func() {
		if err := (&upCmd{Host: "h1"}).keepBridges(ctx, server, slog.New(slog.NewTextHandler(told, nil))); err != nil {
			t.Error(err)
		}
	})
	t.Cleanup(func() {
		cancel()
		wg.Wait()
	})
	awaitBridge(t, "first0", "10.96.0.1/24")
	return b, told
}

// remove removes those of the interfaces that are there.
func remove(t *testing.T, names ...string) {
	t.Helper()
	for _, name := range names {
		if link, err := netlink.LinkByName(name); err == nil {
			if err := netlink.LinkDel(link); err != nil {
				t.Error(err)
			}
		}
	}
}

// awaitBridge waits until a bridge is up and has an address.
func awaitBridge(t *testing.T, name, address string) netlink.Link {
	t.Helper()
	tick := time.NewTicker(time.Millisecond)
	defer tick.Stop()
	timeout := time.After(5 * time.Second) // less than it takes until it is looked at unheard
	for {
		link, err := netlink.LinkByName(name)
		if err == nil && link.Type() == "bridge" {
			addrs, err := netlink.AddrList(link, netlink.FAMILY_V4)
			if err == nil && len(addrs) == 1 && addrs[0].IPNet.String() == address {
				if link, err = netlink.LinkByName(name); err == nil { // as it is now that it has its address
					return link
				}
			}
		}
		select {
		case <-tick.C:
		case <-timeout:
			t.Fatalf("bridge %s did not get %s", name, address)
		}
	}
}

func TestBridgesAreKeptWhileUpRuns(t *testing.T) {
	b, told := keeping(t)
	n := &fulmarv1.Network{Name: "kept", Host: "h1", Bridge: "kept0", Prefix: "10.93.0.0/24", Gateway: "10.93.0.1"}
	elsewhere := &fulmarv1.Network{Name: "elsewhere", Host: "h2", Bridge: "elsewhere0", Prefix: "10.94.0.0/24", Gateway: "10.94.0.1"}
	bad := &fulmarv1.Network{Name: "bad", Host: "h1", Bridge: "lo", Prefix: "10.95.0.0/24", Gateway: "10.95.0.1"}
	for _, n := range []*fulmarv1.Network{elsewhere, bad, n} {
		if err := b.Networks.Put(t.Context(), n.GetName(), n, 0); err != nil {
			t.Fatal(err)
		}
	}
	link := awaitBridge(t, "kept0", "10.93.0.1/24") // of a network that was added while up runs
	if link.Attrs().Flags&net.FlagUp == 0 {
		t.Error("it is not up")
	}

	addrs, err := netlink.AddrList(link, netlink.FAMILY_V4)
	if err != nil {
		t.Fatal(err)
	}
	if err := netlink.AddrDel(link, &addrs[0]); err != nil {
		t.Fatal(err)
	}
	if again := awaitBridge(t, "kept0", "10.93.0.1/24"); again.Attrs().Index != link.Attrs().Index {
		t.Error("it has another bridge, and was to have its address only")
	}
	if err := netlink.LinkDel(link); err != nil {
		t.Fatal(err)
	}
	again := awaitBridge(t, "kept0", "10.93.0.1/24")
	if again.Attrs().Index == link.Attrs().Index || again.Attrs().HardwareAddr.String() != link.Attrs().HardwareAddr.String() {
		t.Errorf("of %+v became %+v", link.Attrs(), again.Attrs())
	}

	if _, err := netlink.LinkByName("elsewhere0"); err == nil {
		t.Error("a bridge of another host was made")
	}
	var all string
	for whole := `bridge=kept0 missing="bridge, up, address"`; strings.Count(all, whole) < 2; {
		all += <-told
	}
	for what, times := range map[string]int{
		`msg="bridge was put right" network=kept bridge=kept0 missing=address`:                  1,
		`msg="bridge was put right" network=kept bridge=kept0 missing="bridge, up, address"`:    2,
		`msg="could not put a bridge right" network=bad err="interface lo of network bad is no`: 1,
	} {
		if n := strings.Count(all, what); n != times {
			t.Errorf("it says %d times %s, want %d:\n%s", n, what, times, all)
		}
	}
}

// TestAnEndOfWhatTheKernelTellsIsNoError has the socket fail on which the kernel tells of addresses; what listens gives no error that could end up.
func TestAnEndOfWhatTheKernelTellsIsNoError(t *testing.T) {
	addresses, err := nl.Subscribe(unix.NETLINK_ROUTE, unix.RTNLGRP_IPV4_IFADDR)
	if err != nil {
		t.Fatal(err)
	}
	told := make(lines, 1)
	k := &keeper{host: "h1", log: slog.New(slog.NewTextHandler(told, nil)), told: make(map[string]string), pinned: make(map[int]bool)}
	addresses.Close()
	k.listen(t.Context(), addresses, make(chan struct{}, 1))
	close(told)
	if line, want := <-told, `level=ERROR msg="addresses of bridges were not followed any more"`; !strings.Contains(line, want) {
		t.Errorf("it says %q, not %s", line, want)
	}
}

// TestALookAtABridgeMakesTheKernelForgetNobody looks twice: at the first time the address is pinned, as sysfs is not that of this network namespace.
func TestALookAtABridgeMakesTheKernelForgetNobody(t *testing.T) {
	nstest.NeedRoot(t)
	t.Cleanup(func() { remove(t, "looked0") })
	n := &fulmarv1.Network{Name: "looked", Host: "h1", Bridge: "looked0", Prefix: "10.97.0.0/24", Gateway: "10.97.0.1"}
	pinned := make(map[int]bool)
	if _, err := mendBridge(n, pinned); err != nil {
		t.Fatal(err)
	}
	link, err := netlink.LinkByName("looked0")
	if err != nil {
		t.Fatal(err)
	}
	neighbor := &netlink.Neigh{
		LinkIndex: link.Attrs().Index, Family: unix.AF_INET, State: netlink.NUD_STALE,
		IP: net.IPv4(10, 97, 0, 2), HardwareAddr: net.HardwareAddr{2, 0, 0, 0, 0, 1},
	}
	if err := netlink.NeighAdd(neighbor); err != nil {
		t.Fatal(err)
	}
	if missing, err := mendBridge(n, pinned); err != nil || len(missing) > 0 {
		t.Fatalf("missing %q, %v", missing, err)
	}
	known, err := netlink.NeighList(link.Attrs().Index, unix.AF_INET)
	if err != nil || len(known) != 1 || !known[0].IP.Equal(neighbor.IP) {
		t.Errorf("the kernel knows %v, %v", known, err)
	}
}
