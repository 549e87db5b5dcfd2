package solo5_test

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"net"
	"os"
	"runtime"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"fulmar/solo5"
	"fulmar/solo5/solo5test"
)

// inNamespace moves the calling test, and what it starts, to a new network
// namespace, which goes when the test's thread does.
func inNamespace(t *testing.T) {
	t.Helper()
	if os.Getuid() != 0 {
		t.Skip("only root can make a network namespace")
	}
	if _, err := os.Stat("/dev/net/tun"); err != nil {
		t.Skip("there is no /dev/net/tun")
	}
	runtime.LockOSThread() // and never unlock: the thread ends with the test
	if err := unix.Unshare(unix.CLONE_NEWNET); err != nil {
		t.Fatal(err)
	}
}

// newTap makes a tap of the namespace that is up.
func newTap(t *testing.T, name string, mtu int) {
	t.Helper()
	link := &netlink.Tuntap{
		LinkAttrs: netlink.LinkAttrs{Name: name, MTU: mtu},
		Mode:      netlink.TUNTAP_MODE_TAP, Flags: netlink.TUNTAP_NO_PI,
	}
	if err := netlink.LinkAdd(link); err != nil {
		t.Fatal(err)
	}
	if err := netlink.LinkSetMTU(link, mtu); err != nil {
		t.Fatal(err)
	}
	if err := netlink.LinkSetUp(link); err != nil {
		t.Fatal(err)
	}
}

// attached opens a tap for a guest.
func attached(t *testing.T, device, tap string, mac net.HardwareAddr) solo5.Net {
	t.Helper()
	f, mtu, err := solo5.OpenTap(tap)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { f.Close() })
	return solo5.Net{Name: device, Tap: f, MAC: mac, MTU: mtu}
}

// cable returns a socket for all frames of an interface.
func cable(t *testing.T, name string) int {
	t.Helper()
	const all = unix.ETH_P_ALL<<8 | unix.ETH_P_ALL>>8
	fd, err := unix.Socket(unix.AF_PACKET, unix.SOCK_RAW|unix.SOCK_CLOEXEC, all)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { unix.Close(fd) })
	link, err := net.InterfaceByName(name)
	if err != nil {
		t.Fatal(err)
	}
	if err := unix.Bind(fd, &unix.SockaddrLinklayer{Protocol: all, Ifindex: link.Index}); err != nil {
		t.Fatal(err)
	}
	if err := unix.SetsockoptTimeval(fd, unix.SOL_SOCKET, unix.SO_RCVTIMEO, &unix.Timeval{Sec: 20}); err != nil {
		t.Fatal(err)
	}
	return fd
}

func frame(to, from net.HardwareAddr, size int) []byte {
	b := make([]byte, 0, size)
	b = append(append(b, to...), from...)
	b = binary.BigEndian.AppendUint16(b, 0x88b5) // for local experiments
	for len(b) < size {
		b = append(b, byte(len(b)))
	}
	return b
}

// echoed sends a frame and waits until it comes back with the addresses swapped.
func echoed(t *testing.T, fd int, guest net.HardwareAddr, size int) {
	t.Helper()
	me := net.HardwareAddr{2, 0, 0, 0, 0, 0x99}
	if err := unix.Send(fd, frame(guest, me, size), 0); err != nil {
		t.Fatal(err)
	}
	want, buf := frame(me, guest, size), make([]byte, 4096)
	for {
		n, err := unix.Read(fd, buf)
		if err != nil {
			t.Fatalf("wait for a frame of %d bytes: %v", size, err)
		}
		if bytes.Equal(buf[:n], want) {
			return
		}
	}
}

func TestPackets(t *testing.T) {
	inNamespace(t)
	newTap(t, "tap0", 1400)
	newTap(t, "tap1", 1500)
	macs := []net.HardwareAddr{{2, 0, 0, 0, 0, 1}, {2, 0, 0, 0, 0, 2}}
	nets := []solo5.Net{attached(t, "net1", "tap1", macs[1]), attached(t, "net0", "tap0", macs[0])}
	tender := prepare(t, solo5.Guest{Image: open(t, solo5test.Build(t, 2)), Memory: 2, Nets: nets, Args: []string{"echo", "5"}})
	cmd, err := tender.Command()
	if err != nil {
		t.Fatal(err)
	}
	asNobody(t, cmd)
	started(t, cmd, "up")
	tender.Close()
	for _, n := range nets {
		n.Tap.Close() // the guest has its own
	}
	for _, fd := range []int{7, 8} { // the taps
		info, err := os.ReadFile(fmt.Sprintf("/proc/%d/fdinfo/%d", cmd.Process.Pid, fd))
		var pos, flags int
		if fmt.Sscanf(string(info), "pos: %d\nflags: %o", &pos, &flags); flags&unix.O_NONBLOCK == 0 {
			t.Errorf("a read of tap %d can block: %s (%v)", fd, info, err)
		}
	}
	wires := []int{cable(t, "tap0"), cable(t, "tap1")}
	echoed(t, wires[0], macs[0], 60)
	echoed(t, wires[1], macs[1], 60)
	echoed(t, wires[0], macs[0], 1414)
	echoed(t, wires[1], macs[1], 1514)
	echoed(t, wires[0], macs[0], 14)
	if err := cmd.Wait(); err != nil {
		t.Error(err)
	}
}

func TestManifestIsHandedOver(t *testing.T) {
	inNamespace(t)
	newTap(t, "tap0", 1400)
	newTap(t, "tap1", 9000)
	nets := []solo5.Net{
		attached(t, "net0", "tap0", net.HardwareAddr{2, 1, 2, 3, 4, 5}),
		attached(t, "net1", "tap1", net.HardwareAddr{6, 7, 8, 9, 10, 11}),
	}
	tender := prepare(t, solo5.Guest{Image: open(t, solo5test.Build(t, 2)), Memory: 2, Nets: nets, Args: []string{"boot"}})
	cmd, err := tender.Command()
	if err != nil {
		t.Fatal(err)
	}
	output, err := cmd.Output()
	if err != nil {
		t.Fatal(err)
	}
	_, manifest, _ := strings.Cut(string(output), "initialized\n")
	want := `entry=0
=1073741824
entry=1
net0=2
mac=2
mac=1
mac=2
mac=3
mac=4
mac=5
mtu=1400
attached=1
entry=2
net1=2
mac=6
mac=7
mac=8
mac=9
mac=10
mac=11
mtu=9000
attached=1
`
	if diff := cmp.Diff(want, manifest); diff != "" {
		t.Errorf("manifest (-want +got):\n%s", diff)
	}
}

func TestDevicesMustFit(t *testing.T) {
	inNamespace(t)
	newTap(t, "tap0", 1500)
	one, two := solo5test.Build(t, 1), solo5test.Build(t, 2)
	tap := func(name string) solo5.Net { return attached(t, name, "tap0", nil) }
	with := func(n solo5.Net, change func(*solo5.Net)) solo5.Net {
		change(&n)
		return n
	}
	service := tap("net0")
	tests := map[string]struct {
		image string
		nets  []solo5.Net
		want  string
	}{
		"a device that is missing":        {two, []solo5.Net{service}, `the image declares the network device "net1", and it is not attached`},
		"a device too many":               {one, []solo5.Net{service, {Name: "eth0", Tap: service.Tap}}, `the network device "eth0" is attached, and the image does not declare it`},
		"a device that is attached twice": {one, []solo5.Net{service, service}, `the network device "net0" is attached twice`},
		"a MAC of eight bytes": {
			one,
			[]solo5.Net{with(service, func(n *solo5.Net) { n.MAC = make(net.HardwareAddr, 8) })},
			`network device "net0": 00:00:00:00:00:00:00:00 is no Ethernet address`,
		},
		"an MTU that IPv4 cannot use": {
			one,
			[]solo5.Net{with(service, func(n *solo5.Net) { n.MTU = 67 })},
			`network device "net0": the MTU 67 is not between 68 and 65535`,
		},
	}
	for name, tt := range tests {
		t.Run(name, func(t *testing.T) {
			_, err := solo5.PrepareSPT(solo5.Guest{Image: open(t, tt.image), Memory: 2, Nets: tt.nets})
			if mismatch := (*solo5.MismatchError)(nil); !errors.As(err, &mismatch) || mismatch.Problem != tt.want {
				t.Errorf("got %v instead of %q", err, tt.want)
			}
		})
	}
}

func TestDeviceWithoutMACGetsALocalOne(t *testing.T) {
	inNamespace(t)
	newTap(t, "tap0", 1500)
	tender := prepare(t, solo5.Guest{
		Image: open(t, solo5test.Build(t, 1)), Memory: 2,
		Nets: []solo5.Net{attached(t, "net0", "tap0", nil)}, Args: []string{"boot"},
	})
	cmd, err := tender.Command()
	if err != nil {
		t.Fatal(err)
	}
	output, err := cmd.Output()
	if err != nil {
		t.Fatal(err)
	}
	macs := bytes.Count(output, []byte("mac="))
	_, first, _ := bytes.Cut(output, []byte("mac="))
	var b int
	for _, c := range first {
		if c < '0' || c > '9' {
			break
		}
		b = 10*b + int(c-'0')
	}
	if macs != 6 || b&3 != 2 {
		t.Errorf("the address is not a local one of one station:\n%s", output)
	}
}

func TestOpenTap(t *testing.T) {
	inNamespace(t)
	newTap(t, "tap0", 1400)
	if err := netlink.LinkAdd(&netlink.Tuntap{LinkAttrs: netlink.LinkAttrs{Name: "down0"}, Mode: netlink.TUNTAP_MODE_TAP}); err != nil {
		t.Fatal(err)
	}
	tap, mtu, err := solo5.OpenTap("tap0")
	if err != nil {
		t.Fatal(err)
	}
	defer tap.Close()
	if again, err := solo5.TapMTU(tap); mtu != 1400 || again != 1400 || err != nil {
		t.Errorf("MTU %d when opened and then %d, %v", mtu, again, err)
	}
	if _, err := solo5.TapMTU(open(t, "/dev/null")); err == nil {
		t.Error("/dev/null has an MTU")
	}
	for name, want := range map[string]string{
		"tap0":              "device or resource busy",
		"none0":             "no such device",
		"down0":             "it is down",
		"lo":                "it is down",
		"tap%d":             "no name of an interface",
		"":                  "no name of an interface",
		"a-very-long-name0": "no name of an interface",
	} {
		if f, _, err := solo5.OpenTap(name); err == nil || !strings.Contains(err.Error(), want) || f != nil {
			t.Errorf("tap %q: got %v instead of %q", name, err, want)
		}
	}
	if _, err := net.InterfaceByName("none0"); err == nil {
		t.Error("a tap was made by asking for it")
	}
}
