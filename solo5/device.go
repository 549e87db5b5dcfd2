package solo5

import (
	"crypto/rand"
	"fmt"
	"io"
	"net"
	"os"

	"golang.org/x/sys/unix"
)

// A Net attaches a network device.
type Net struct {
	Name string           // in the manifest
	Tap  *os.File         // a tap without packet information (IFF_TAP|IFF_NO_PI); stays the caller's
	MAC  net.HardwareAddr // a random one if nil
	MTU  int              // 1500 if 0
}

const (
	defaultMTU = 1500
	minMTU     = 68 // of IPv4 (RFC 791)
	maxMTU     = 1<<16 - 1
)

// attach returns what the guest is told about a network device.
func (n Net) attach() (attachment, error) {
	a := attachment{Device: NetDevice, MAC: n.MAC, MTU: n.MTU}
	if a.MTU == 0 {
		a.MTU = defaultMTU
	}
	if a.MTU < minMTU || a.MTU > maxMTU {
		return a, mismatch("network device %q: the MTU %d is not between %d and %d", n.Name, a.MTU, minMTU, maxMTU)
	}
	if a.MAC == nil {
		a.MAC = randomMAC()
	}
	if len(a.MAC) != 6 {
		return a, mismatch("network device %q: %s is no Ethernet address", n.Name, a.MAC)
	}
	return a, nil
}

// randomMAC returns a unicast address of the range that everybody may use.
func randomMAC() net.HardwareAddr {
	mac := make(net.HardwareAddr, 6)
	rand.Read(mac)
	mac[0] = mac[0]&^1 | 2
	return mac
}

// A Block attaches a block device.
type Block struct {
	Name       string   // in the manifest
	File       *os.File // what is on it, opened for reading and writing; stays the caller's
	SectorSize int      // a power of two; 512 if 0
}

const (
	defaultSector = 512
	maxSector     = 1 << 15 // the manifest has 16 bits for it
)

// OpenBlock opens a file or a block device for a [Block].
func OpenBlock(path string) (*os.File, error) {
	f, err := os.OpenFile(path, os.O_RDWR, 0)
	if err != nil {
		return nil, fmt.Errorf("attach block device: %w", err)
	}
	return f, nil
}

// attach returns what the guest is told about a block device.
func (b Block) attach() (attachment, error) {
	a := attachment{Device: BlockDevice, Sector: b.SectorSize}
	bad := func(format string, args ...any) (attachment, error) {
		return a, mismatch("block device %q: %s", b.Name, fmt.Sprintf(format, args...))
	}
	if a.Sector == 0 {
		a.Sector = defaultSector
	}
	if a.Sector < defaultSector || a.Sector > maxSector || a.Sector&(a.Sector-1) != 0 {
		return bad("a sector of %d bytes is not a power of two from %d to %d", a.Sector, defaultSector, maxSector)
	}
	info, err := b.File.Stat()
	if err != nil {
		return a, fmt.Errorf("look at block device %q: %w", b.Name, err)
	}
	if !info.Mode().IsRegular() && info.Mode().Type() != os.ModeDevice {
		return bad("%s is neither a regular file nor a block device", b.File.Name())
	}
	if flags, err := unix.FcntlInt(b.File.Fd(), unix.F_GETFL, 0); err != nil || flags&(unix.O_ACCMODE|unix.O_APPEND) != unix.O_RDWR {
		return bad("%s is not open for reading and writing", b.File.Name())
	}
	size, err := b.File.Seek(0, io.SeekEnd) // a block device has no size otherwise
	if err != nil {
		return a, fmt.Errorf("look for the size of block device %q: %w", b.Name, err)
	}
	if size == 0 || size%int64(a.Sector) != 0 {
		return bad("%s has %d bytes, which are no whole sectors of %d", b.File.Name(), size, a.Sector)
	}
	a.Capacity = uint64(size)
	return a, nil
}
