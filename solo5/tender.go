package solo5

import (
	"crypto/rand"
	"errors"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"runtime"

	"golang.org/x/sys/unix"
)

// A Guest is a unikernel and what it is to run with.
type Guest struct {
	Image  *os.File // is not trusted; stays the caller's
	Memory int      // MB
	Nets   []Net    // all network devices of the manifest, and no others
	Args   []string // joined by single spaces, at most 8191 bytes
	Name   string   // of the process, for ps and top; the base name of Image if empty
}

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

// A Tender is a guest that is ready to run, once: by Exec, Command or
// GatedCommand. It holds open files until Close, which is right as soon as the
// process runs; the same goes for the image and the taps of the [Guest].
type Tender struct {
	plan  plan // but for the descriptors
	args  []string
	image *os.File // sealed
	epoll *os.File
	timer *os.File
	taps  []*os.File // as plan.taps
	made  []*os.File // to be closed
}

// PrepareSPT checks the image, and that it fits to the memory and the devices.
// Beside the errors of [Read] it returns a [*MismatchError].
func PrepareSPT(g Guest) (_ *Tender, err error) {
	if runtime.GOARCH != "amd64" {
		return nil, mismatch("spt unikernels are for amd64, and this machine is %s", runtime.GOARCH)
	}
	t := &Tender{}
	defer func() {
		if err != nil {
			err = errors.Join(err, t.Close())
		}
	}()
	if err := t.openImage(g.Image); err != nil {
		return nil, err
	}
	img, err := checkImage(t.image, g)
	if err != nil {
		return nil, err
	}
	if err := t.describe(img, g); err != nil {
		return nil, err
	}
	if err := t.openEvents(); err != nil {
		return nil, err
	}
	return t, nil
}

// checkImage reads the sealed image and holds it against the memory and the
// devices that the guest is to have.
func checkImage(f *os.File, g Guest) (*Image, error) {
	info, err := f.Stat()
	if err != nil {
		return nil, fmt.Errorf("read image: %w", err)
	}
	img, err := Read(f, info.Size())
	if err != nil {
		return nil, err
	}
	if err := img.CheckTarget(SPT); err != nil {
		return nil, err
	}
	if err := img.CheckMemory(g.Memory); err != nil {
		return nil, err
	}
	var names []string
	for _, n := range g.Nets {
		names = append(names, n.Name)
	}
	return img, img.CheckDevices(names, nil)
}

// describe decides what the guest is told, and which taps it has.
func (t *Tender) describe(img *Image, g Guest) (err error) {
	t.plan = plan{image: img, memory: uint64(g.Memory) * megabyte, name: g.Name, attached: map[int]attachment{}}
	if t.plan.name == "" {
		t.plan.name = filepath.Base(g.Image.Name())
	}
	t.args = append([]string{t.plan.name}, g.Args...)
	if t.plan.cmdline, err = commandLine(g.Args); err != nil {
		return err
	}
	for _, d := range img.Devices {
		for _, n := range g.Nets {
			if d.Type != NetDevice || n.Name != d.Name {
				continue
			}
			if t.plan.attached[d.Handle], err = attach(n); err != nil {
				return err
			}
			t.taps = append(t.taps, n.Tap)
		}
	}
	return nil
}

// attach returns what the guest is told about a network device.
func attach(n Net) (attachment, error) {
	a := attachment{mac: n.MAC, mtu: n.MTU}
	if a.mtu == 0 {
		a.mtu = defaultMTU
	}
	if a.mtu < minMTU || a.mtu > maxMTU {
		return a, mismatch("network device %q: the MTU %d is not between %d and %d", n.Name, a.mtu, minMTU, maxMTU)
	}
	if a.mac == nil {
		a.mac = randomMAC()
	}
	if len(a.mac) != 6 {
		return a, mismatch("network device %q: %s is no Ethernet address", n.Name, a.mac)
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

// openImage seals the image, or takes it as it is if it is sealed.
func (t *Tender) openImage(f *os.File) error {
	if isSealed(f) {
		t.image = f
		return nil
	}
	m, err := Seal(f)
	if err != nil {
		return err
	}
	t.image = m
	t.made = append(t.made, m)
	return nil
}

// openEvents makes the epoll set in which the guest waits for its timer and its taps.
func (t *Tender) openEvents() error {
	epoll, err := unix.EpollCreate1(unix.EPOLL_CLOEXEC)
	if err != nil {
		return fmt.Errorf("make epoll set: %w", err)
	}
	t.epoll = os.NewFile(uintptr(epoll), "epoll")
	t.made = append(t.made, t.epoll)
	timer, err := unix.TimerfdCreate(unix.CLOCK_MONOTONIC, unix.TFD_CLOEXEC|unix.TFD_NONBLOCK)
	if err != nil {
		return fmt.Errorf("make timer: %w", err)
	}
	t.timer = os.NewFile(uintptr(timer), "timer")
	t.made = append(t.made, t.timer)

	if err := t.watch(t.timer, timerEvent); err != nil {
		return err
	}
	for n, handle := range t.plan.handles() {
		if err := t.watch(t.taps[n], uint32(handle)); err != nil {
			return err
		}
	}
	return nil
}

// watch adds a file to the epoll set; data is what the guest gets with its events.
func (t *Tender) watch(f *os.File, data uint32) error {
	event := unix.EpollEvent{Events: unix.EPOLLIN, Fd: int32(data)}
	if err := unix.EpollCtl(int(t.epoll.Fd()), unix.EPOLL_CTL_ADD, int(f.Fd()), &event); err != nil {
		return fmt.Errorf("wait for packets of %s: %w", f.Name(), err)
	}
	return nil
}

// Close closes what PrepareSPT opened. A guest that runs keeps its own.
func (t *Tender) Close() error {
	var errs []error
	for _, f := range t.made {
		errs = append(errs, f.Close())
	}
	t.made = nil
	return errors.Join(errs...)
}
