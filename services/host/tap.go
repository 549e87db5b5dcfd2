package host

import (
	"errors"
	"fmt"
	"os"
	"sync"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// tapPattern is the name of a tap; the kernel puts the lowest free number in, so no two hosts ever want the same one.
const tapPattern = "fulmar%d"

// bridges attaches taps to the bridges of the network namespace that the program was started in.
type bridges struct {
	handle *netlink.Handle

	mu     sync.Mutex
	pinned map[int]bool // by index: a bridge that is made anew has a new one
}

// newBridges opens a netlink socket in the network namespace of the calling thread.
func newBridges() (*bridges, error) {
	h, err := netlink.NewHandle(unix.NETLINK_ROUTE)
	if err != nil {
		return nil, fmt.Errorf("open netlink: %w", err)
	}
	return &bridges{handle: h, pinned: make(map[int]bool)}, nil
}

// find returns the bridge of a name. The error is a refusal if there is none.
func (b *bridges) find(name string) (*netlink.Bridge, error) {
	link, err := b.handle.LinkByName(name)
	if notFound := (netlink.LinkNotFoundError{}); errors.As(err, &notFound) {
		return nil, refuse("interface %s does not exist", name)
	}
	if err != nil {
		return nil, fmt.Errorf("find bridge %s: %w", name, err)
	}
	bridge, ok := link.(*netlink.Bridge)
	if !ok {
		return nil, refuse("interface %s is not a bridge", name)
	}
	return bridge, nil
}

// pin sets the address of a bridge to the one that it has: from then on it does not follow its ports'. Without that, a unikernel that
// holds the bridge in its ARP cache is cut off when another's tap goes.
func (b *bridges) pin(bridge *netlink.Bridge) error {
	b.mu.Lock()
	defer b.mu.Unlock()
	index := bridge.Attrs().Index
	if b.pinned[index] {
		return nil
	}
	if err := b.handle.LinkSetHardwareAddr(bridge, bridge.Attrs().HardwareAddr); err != nil {
		return fmt.Errorf("pin the address of bridge %s: %w", bridge.Attrs().Name, err)
	}
	b.pinned[index] = true
	return nil
}

// tap is a network interface of one instance. It lives as long as somebody holds its descriptor: once the instance is started only its process does,
// so the tap is gone when the process is, whatever became of host.
type tap struct {
	name string
	file *os.File
}

// attach makes a tap for the user uid and brings it up on the bridge.
func (b *bridges) attach(bridge *netlink.Bridge, uid int, alias string) (_ *tap, err error) {
	if err := b.pin(bridge); err != nil {
		return nil, err
	}
	t, err := openTap(uid)
	if err != nil {
		return nil, err
	}
	defer func() {
		if err != nil {
			err = errors.Join(err, t.file.Close())
		}
	}()
	link, err := b.handle.LinkByName(t.name)
	if err != nil {
		return nil, fmt.Errorf("find tap %s: %w", t.name, err)
	}
	if err := b.handle.LinkSetAlias(link, alias); err != nil {
		return nil, fmt.Errorf("name tap %s: %w", t.name, err)
	}
	if err := b.handle.LinkSetMaster(link, bridge); err != nil {
		return nil, fmt.Errorf("put tap %s on bridge %s: %w", t.name, bridge.Attrs().Name, err)
	}
	if err := b.handle.LinkSetHairpin(link, true); err != nil { // a unikernel may reach itself through its published port
		return nil, fmt.Errorf("set hairpin of tap %s: %w", t.name, err)
	}
	if err := b.handle.LinkSetUp(link); err != nil {
		return nil, fmt.Errorf("bring up tap %s: %w", t.name, err)
	}
	return t, nil
}

// openTap makes a tap that ends with its descriptor.
func openTap(uid int) (*tap, error) {
	fd, err := unix.Open("/dev/net/tun", unix.O_RDWR|unix.O_CLOEXEC|unix.O_NONBLOCK, 0)
	if err != nil {
		return nil, fmt.Errorf("open /dev/net/tun: %w", err)
	}
	req, err := unix.NewIfreq(tapPattern)
	if err == nil {
		req.SetUint16(unix.IFF_TAP | unix.IFF_NO_PI)
		err = unix.IoctlIfreq(fd, unix.TUNSETIFF, req)
	}
	if err == nil {
		err = unix.IoctlSetInt(fd, unix.TUNSETOWNER, uid)
	}
	if err != nil {
		return nil, errors.Join(fmt.Errorf("make tap: %w", err), unix.Close(fd))
	}
	return &tap{name: req.Name(), file: os.NewFile(uintptr(fd), req.Name())}, nil
}
