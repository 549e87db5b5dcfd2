package host_test

import (
	"encoding/binary"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"slices"
	"syscall"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/google/nftables"
	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"fulmar/albatross"
	"fulmar/services/host/hosttest"
)

// unicast lists what is in the table of what goes to a bridge alone, as "tap address hardware address"; nil if there is no table.
func unicast(t testing.TB) []string {
	t.Helper()
	conn, err := nftables.New()
	if err != nil {
		t.Fatal(err)
	}
	tables, err := conn.ListTablesOfFamily(nftables.TableFamilyBridge)
	if err != nil {
		t.Fatal(err)
	}
	if !slices.ContainsFunc(tables, func(n *nftables.Table) bool { return n.Name == "fulmar" }) {
		return nil
	}
	elements, err := conn.GetSetElements(&nftables.Set{Table: &nftables.Table{Name: "fulmar", Family: nftables.TableFamilyBridge}, Name: "unicast"})
	if err != nil {
		t.Fatal(err)
	}
	all := []string{}
	for _, e := range elements {
		addr, _ := netip.AddrFromSlice(e.Key[4:])
		all = append(all, fmt.Sprintln(binary.NativeEndian.Uint32(e.Key), addr, net.HardwareAddr(e.Val)))
	}
	slices.Sort(all)
	return all
}

// wants is what the table should have of unikernels with an address each, on a bridge that has 10.9.0.1.
func wants(t *testing.T, br *netlink.Bridge, addrs map[albatross.Name]string) []string {
	t.Helper()
	link, err := netlink.LinkByIndex(br.Index)
	if err != nil {
		t.Fatal(err)
	}
	var all []string
	for n, addr := range addrs {
		index := tapOf(t, n).Attrs().Index
		all = append(all, fmt.Sprintln(index, "10.9.0.1", link.Attrs().HardwareAddr), fmt.Sprintln(index, addr, link.Attrs().HardwareAddr))
	}
	slices.Sort(all)
	return all
}

// flushRuleset does what `nft flush ruleset` does.
func flushRuleset(t *testing.T) {
	t.Helper()
	conn, err := nftables.New()
	if err != nil {
		t.Fatal(err)
	}
	conn.FlushRuleset()
	if err := conn.Flush(); err != nil {
		t.Fatal(err)
	}
}

func TestTheTableHasWhatRuns(t *testing.T) {
	cfg := config(t)
	br, _ := quietBridge(t)
	d := start(t, cfg)
	image := hosttest.Guest(t, 1)
	running := map[albatross.Name]string{}
	create := func(label, addr string) {
		t.Helper()
		n := name(t, label)
		d.create(t, n, unikernel(image, 1, "wait", "--ipv4="+addr+"/24"))
		running[n] = addr
	}
	destroy := func(label string) {
		t.Helper()
		if err := d.Destroy(t.Context(), name(t, label)); err != nil {
			t.Fatal(err)
		}
		delete(running, name(t, label))
	}
	check := func(when string) {
		t.Helper()
		if diff := cmp.Diff(wants(t, br, running), unicast(t)); diff != "" {
			t.Errorf("%s (-want +got):\n%s", when, diff)
		}
	}
	check("before anything runs")
	create(":a", "10.9.0.2")
	create(":b", "10.9.0.3")
	check("when two run")
	destroy(":a")
	check("when one has ended")

	flushRuleset(t)
	create(":c", "10.9.0.4")
	check("at the next start after somebody took the table")
	create(":d", "10.9.0.5")
	flushRuleset(t)
	destroy(":d")
	check("at the next end after somebody took the table")

	if err := d.stop(); err != nil {
		t.Fatal(err)
	}
	check("when host has gone")
	flushRuleset(t)
	d = start(t, cfg)
	check("when host has come back")
	create(":e", "10.9.0.6")
	check("and something starts then")
	for _, label := range []string{":b", ":c", ":e"} {
		destroy(label)
	}
	check("when nothing runs any more")
}

// isGone reports whether a link is.
func isGone(link netlink.Link) bool {
	_, err := netlink.LinkByIndex(link.Attrs().Index)
	notFound := netlink.LinkNotFoundError{}
	return errors.As(err, &notFound)
}

func TestWhatAKilledHostLeftInTheTableGoes(t *testing.T) {
	cfg := config(t)
	br, _ := quietBridge(t)
	path := program(t)
	h := startChild(t, path, cfg)
	image := hosttest.Guest(t, 1)
	a, b := name(t, ":a"), name(t, ":b")
	for n, addr := range map[albatross.Name]string{a: "10.9.0.2", b: "10.9.0.3"} {
		h.create(t, n, unikernel(image, 1, "wait", "--ipv4="+addr+"/24"))
	}
	tap, pid := tapOf(t, b), stored(t, cfg, b).PID
	h.end(t, syscall.SIGKILL)
	if err := unix.Kill(pid, unix.SIGKILL); err != nil {
		t.Fatal(err)
	}
	until(t, "the tap of b goes", func() bool { return isGone(tap) })
	if got := unicast(t); len(got) != 4 {
		t.Errorf("without a host the table has %v", got)
	}
	h = startChild(t, path, cfg)
	if diff := cmp.Diff(wants(t, br, map[albatross.Name]string{a: "10.9.0.2"}), unicast(t)); diff != "" {
		t.Errorf("after a restart (-want +got):\n%s", diff)
	}
	tap, pid = tapOf(t, a), stored(t, cfg, a).PID
	h.end(t, syscall.SIGKILL)
	if err := unix.Kill(pid, unix.SIGKILL); err != nil {
		t.Fatal(err)
	}
	until(t, "the tap of a goes", func() bool { return isGone(tap) })
	h = startChild(t, path, cfg)
	if got := unicast(t); got != nil {
		t.Errorf("nothing runs, and the table has %v", got)
	}
	h.end(t, syscall.SIGTERM)
}
