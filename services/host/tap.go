package host

import (
	"errors"
	"fmt"
	"net"
	"os"
	"strconv"
	"sync"

	"github.com/vishvananda/netlink"
	"github.com/vishvananda/netlink/nl"
	"golang.org/x/sys/unix"

	"fulmar/bridge"
)

// A tap is called by its prefix, which leaves fulmar0, fulmar1 and so on to bridges, and a number: that after the slot of its unikernel, or if that is taken
// the lowest one that no interface has. The kernel, which finds that one, looks at all interfaces for it. All that has 15 characters, the most that a name may have.
const (
	tapPrefix  = "fulmar-tap"
	tapPattern = tapPrefix + "%d"
)

// bridges attaches taps to the bridges of the network namespace that the program was started in.
type bridges struct {
	handle    *netlink.Handle
	sockets   map[int]*nl.SocketHandle // for messages that handle does not know
	addresses *nl.NetlinkSocket        // hears when IPv4 addresses come and go
	unicasts  *unicasts

	mu     sync.Mutex
	pinned map[int]bool                  // by index: a bridge that is made anew has a new one
	macs   map[string][]net.HardwareAddr // by name, that bridges have had lately

	holders holders
}

// newBridges opens netlink sockets in the network namespace of the calling thread.
func newBridges() (_ *bridges, err error) {
	b := &bridges{unicasts: newUnicasts(), pinned: make(map[int]bool), macs: make(map[string][]net.HardwareAddr), holders: holders{last: make(map[holderKey]holder)}}
	defer func() {
		if err != nil {
			b.close()
		}
	}()
	if b.handle, err = netlink.NewHandle(unix.NETLINK_ROUTE); err != nil {
		return nil, fmt.Errorf("open netlink: %w", err)
	}
	s, err := nl.Subscribe(unix.NETLINK_ROUTE)
	if err != nil {
		return nil, fmt.Errorf("open netlink: %w", err)
	}
	// So that questions about one interface are answered with that one alone; a kernel before Linux 4.20 cannot.
	_ = unix.SetsockoptInt(s.GetFd(), unix.SOL_NETLINK, unix.NETLINK_GET_STRICT_CHK, 1)
	b.sockets = map[int]*nl.SocketHandle{unix.NETLINK_ROUTE: {Socket: s}}
	if b.addresses, err = nl.Subscribe(unix.NETLINK_ROUTE, unix.RTNLGRP_IPV4_IFADDR); err != nil {
		return nil, fmt.Errorf("open netlink: %w", err)
	}
	return b, nil
}

// close ends what newBridges opened.
func (b *bridges) close() {
	if b.handle != nil {
		b.handle.Close()
	}
	for _, s := range b.sockets {
		s.Close()
	}
	if b.addresses != nil {
		b.addresses.Close()
	}
	b.unicasts.close()
}

// find returns the bridge of a name. The error is a refusal if there is none.
func (b *bridges) find(name string) (*netlink.Bridge, error) {
	link, err := b.handle.LinkByName(name)
	if notFound := (netlink.LinkNotFoundError{}); errors.As(err, &notFound) {
		return nil, refuse("interface %s does not exist", name) // in albatross's words
	}
	if err != nil {
		return nil, fmt.Errorf("find bridge %s: %w", name, err)
	}
	bridge, ok := link.(*netlink.Bridge)
	if !ok {
		return nil, refuse("interface %s is not a bridge: fulmar network ls says which network names it; give that one a bridge, or remove the interface and let fulmar up make one", name)
	}
	return bridge, nil
}

// pin pins the address of a bridge, once: a unikernel that holds the bridge in its ARP cache must not be cut off when another's tap goes.
func (b *bridges) pin(br *netlink.Bridge) error {
	b.mu.Lock()
	defer b.mu.Unlock()
	index := br.Attrs().Index
	if b.pinned[index] {
		return nil
	}
	if err := bridge.Pin(b.handle, br); err != nil {
		return err
	}
	b.pinned[index] = true
	return nil
}

// tap is a network interface of one instance. It lives as long as somebody holds its descriptor: once the instance is started only its process does,
// so the tap is gone when the process is, whatever became of host.
type tap struct {
	name  string
	index int
	file  *os.File
}

// open makes a tap for the user uid, with a number if nobody has it. It is down.
func (b *bridges) open(uid, number int) (_ *tap, err error) {
	t, err := openTap(tapPrefix+strconv.Itoa(number), uid)
	if errors.Is(err, unix.EBUSY) {
		t, err = openTap(tapPattern, uid)
	}
	if err != nil {
		return nil, err
	}
	defer func() {
		if err != nil {
			err = errors.Join(err, t.file.Close())
		}
	}()
	if err := b.identify(t); err != nil {
		return nil, err
	}
	if err := offIPv6(t.name); err != nil {
		return nil, fmt.Errorf("keep IPv6 off tap %s: %w", t.name, err)
	}
	return t, nil
}

// identify finds the index of a tap.
func (b *bridges) identify(t *tap) error {
	req, err := unix.NewIfreq(t.name)
	if err == nil {
		err = unix.IoctlIfreq(b.sockets[unix.NETLINK_ROUTE].Socket.GetFd(), unix.SIOCGIFINDEX, req)
	}
	if err != nil {
		return fmt.Errorf("find tap %s: %w", t.name, err)
	}
	t.index = int(req.Uint32())
	return nil
}

// attach brings a tap up on a bridge, under a name for people.
func (b *bridges) attach(t *tap, bridge *netlink.Bridge, alias string) error {
	if err := b.pin(bridge); err != nil {
		return err
	}
	err := b.connect(t.index, bridge, alias)
	if errors.Is(err, unix.EXFULL) {
		return fmt.Errorf("bridge %s has as many ports as Linux allows, 1,023: try again when something has been retired", bridge.Attrs().Name)
	}
	if err != nil {
		return fmt.Errorf("put tap %s on bridge %s: %w", t.name, bridge.Attrs().Name, err)
	}
	return nil
}

// connect names a tap, puts it on the bridge and brings it up, in one message, and then lets it hear its own packets, in another: a
// unikernel may reach itself through its published port.
func (b *bridges) connect(index int, bridge *netlink.Bridge, alias string) error {
	up := b.change(index)
	up.msg.Flags, up.msg.Change = unix.IFF_UP, unix.IFF_UP
	up.AddData(nl.NewRtAttr(unix.IFLA_IFALIAS, []byte(alias)))
	up.AddData(nl.NewRtAttr(unix.IFLA_MTU, nl.Uint32Attr(uint32(bridge.Attrs().MTU)))) // or the bridge would shrink to it
	up.AddData(nl.NewRtAttr(unix.IFLA_MASTER, nl.Uint32Attr(uint32(bridge.Attrs().Index))))
	if _, err := up.Execute(unix.NETLINK_ROUTE, 0); err != nil {
		return fmt.Errorf("connect: %w", err)
	}
	hairpin := b.change(index)
	info := nl.NewRtAttr(unix.IFLA_LINKINFO, nil)
	info.AddRtAttr(nl.IFLA_INFO_SLAVE_KIND, nl.NonZeroTerminated("bridge"))
	info.AddRtAttr(nl.IFLA_INFO_SLAVE_DATA, nil).AddRtAttr(nl.IFLA_BRPORT_MODE, nl.Uint8Attr(1))
	hairpin.AddData(info)
	if _, err := hairpin.Execute(unix.NETLINK_ROUTE, 0); err != nil {
		return fmt.Errorf("set hairpin: %w", err)
	}
	return nil
}

// change is the start of a message that changes the link of an index, which unlike a name is not another's when it is gone.
type change struct {
	*nl.NetlinkRequest
	msg *nl.IfInfomsg
}

func (b *bridges) change(index int) change {
	c := change{nl.NewNetlinkRequest(unix.RTM_NEWLINK, unix.NLM_F_ACK), nl.NewIfInfomsg(unix.AF_UNSPEC)}
	c.Sockets = b.sockets
	c.msg.Index = int32(index)
	c.AddData(c.msg)
	return c
}

// openTap makes a tap that ends with its descriptor. That its name is taken is [unix.EBUSY].
func openTap(name string, uid int) (*tap, error) {
	fd, err := unix.Open("/dev/net/tun", unix.O_RDWR|unix.O_CLOEXEC|unix.O_NONBLOCK, 0)
	if err != nil {
		return nil, fmt.Errorf("open /dev/net/tun: %w", err)
	}
	req, err := unix.NewIfreq(name)
	if err == nil {
		req.SetUint16(unix.IFF_TAP | unix.IFF_NO_PI | unix.IFF_TUN_EXCL)
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
