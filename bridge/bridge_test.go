package bridge

import (
	"net"
	"os"
	"runtime"
	"testing"

	"github.com/vishvananda/netlink"
	"github.com/vishvananda/netns"
	"golang.org/x/sys/unix"
)

// fresh makes a bridge in a network namespace that the test's goroutine is in from then on, and its sysfs.
func fresh(t *testing.T) (link netlink.Link, sysfs string) {
	t.Helper()
	if os.Getuid() != 0 {
		t.Skip("not root: a network namespace cannot be made")
	}
	runtime.LockOSThread() // and never unlocked: the thread ends with the test and its namespace with it
	ns, err := netns.New()
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = ns.Close() })
	if err := netlink.LinkAdd(&netlink.Bridge{LinkAttrs: netlink.LinkAttrs{Name: "br0"}}); err != nil {
		t.Fatal(err)
	}
	sysfs = t.TempDir()
	if err := unix.Mount("sysfs", sysfs, "sysfs", 0, ""); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = unix.Unmount(sysfs, 0) })
	return find(t), sysfs
}

func find(t *testing.T) netlink.Link {
	t.Helper()
	link, err := netlink.LinkByName("br0")
	if err != nil {
		t.Fatal(err)
	}
	return link
}

func TestPin(t *testing.T) {
	link, sysfs := fresh(t)
	if pinned(sysfs, link) {
		t.Error("a new bridge counts as pinned")
	}
	before := link.Attrs().HardwareAddr
	if err := Pin(&netlink.Handle{}, link); err != nil {
		t.Fatal(err)
	}
	if link = find(t); !pinned(sysfs, link) || link.Attrs().HardwareAddr.String() != before.String() {
		t.Errorf("its address was %s, is %s, and is pinned: %v", before, link.Attrs().HardwareAddr, pinned(sysfs, link))
	}
	other := *link.(*netlink.Bridge)
	other.Index++ // the bridge of this name in another namespace
	if pinned(sysfs, &other) {
		t.Error("another bridge was taken for it")
	}
	none := *link.(*netlink.Bridge)
	none.HardwareAddr = make(net.HardwareAddr, 6)
	if err := Pin(&netlink.Handle{}, &none); err != nil {
		t.Errorf("a bridge without an address: %v", err)
	}
}

// This is why it is done once only.
func TestToBeGivenAnAddressForgetsTheNeighbors(t *testing.T) {
	link, _ := fresh(t)
	neighbor := &netlink.Neigh{
		LinkIndex: link.Attrs().Index, Family: unix.AF_INET, State: netlink.NUD_STALE, Flags: netlink.NTF_EXT_LEARNED,
		IP: net.IPv4(10, 9, 0, 2), HardwareAddr: net.HardwareAddr{2, 0, 0, 0, 0, 2},
	}
	if err := netlink.LinkSetUp(link); err != nil {
		t.Fatal(err)
	}
	if err := netlink.NeighAdd(neighbor); err != nil {
		t.Fatal(err)
	}
	if err := Pin(&netlink.Handle{}, link); err != nil {
		t.Fatal(err)
	}
	list, err := netlink.NeighList(link.Attrs().Index, unix.AF_INET)
	if err != nil {
		t.Fatal(err)
	}
	if len(list) > 0 {
		t.Errorf("the kernel knows %v: it may be given an address as often as one likes", list)
	}
}
