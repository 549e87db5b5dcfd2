package solo5

import (
	"errors"
	"fmt"
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
	Blocks []Block  // all block devices of the manifest, and no others
	Args   []string // joined by single spaces, at most 8191 bytes
	Name   string   // of the process, for ps and top; the base name of Image if empty
}

// A Tender is a guest that is ready to run, once: by Exec, Command or
// GatedCommand. It holds open files until Close, which is right as soon as the
// process runs; the same goes for the image and the devices of the [Guest].
type Tender struct {
	plan    plan                       // but for the descriptors
	compile func(plan) ([]byte, error) // the plan to the executable that the process begins with
	devices map[int]*os.File           // by handle
	made    []*os.File                 // to be closed

	image        *os.File // sealed
	epoll, timer *os.File // of a guest of the target spt
	program, kvm *os.File // of a guest of the target hvt
}

// PrepareSPT checks the image, and that it fits to the memory and the devices.
// Beside the errors of [Read] it returns a [*MismatchError].
func PrepareSPT(g Guest) (*Tender, error) {
	return prepare(g, SPT, func(t *Tender) error {
		t.compile = plan.spt
		return t.openEvents()
	})
}

// prepare does what is the same for both targets, and then what is not.
func prepare(g Guest, target Target, finish func(*Tender) error) (_ *Tender, err error) {
	if runtime.GOARCH != "amd64" {
		return nil, mismatch("%s unikernels are for amd64, and this machine is %s", target, runtime.GOARCH)
	}
	t := &Tender{devices: map[int]*os.File{}}
	defer func() {
		if err != nil {
			err = errors.Join(err, t.Close())
		}
	}()
	if err := t.openImage(g.Image); err != nil {
		return nil, err
	}
	img, err := readImage(t.image)
	if err != nil {
		return nil, err
	}
	if err := g.check(img, target); err != nil {
		return nil, err
	}
	if err := t.describe(img, g); err != nil {
		return nil, err
	}
	return t, finish(t)
}

// readImage reads a file that is only an image.
func readImage(f *os.File) (*Image, error) {
	info, err := f.Stat()
	if err != nil {
		return nil, fmt.Errorf("read image: %w", err)
	}
	return Read(f, info.Size())
}

// check holds the image against the memory and the devices that the guest is
// to have.
func (g Guest) check(img *Image, target Target) error {
	if err := img.CheckTarget(target); err != nil {
		return err
	}
	if err := img.CheckMemory(g.Memory); err != nil {
		return err
	}
	var nets, blocks []string
	for _, n := range g.Nets {
		nets = append(nets, n.Name)
	}
	for _, b := range g.Blocks {
		blocks = append(blocks, b.Name)
	}
	return img.CheckDevices(nets, blocks)
}

// describe decides what the guest is told, and which files its devices are.
func (t *Tender) describe(img *Image, g Guest) (err error) {
	name := g.Name
	if name == "" {
		name = filepath.Base(g.Image.Name())
	}
	t.plan = plan{
		image: img, memory: uint64(g.Memory) * megabyte,
		args: append([]string{name}, g.Args...), attached: map[int]attachment{},
	}
	if t.plan.cmdline, err = commandLine(g.Args); err != nil {
		return err
	}
	for _, n := range g.Nets {
		a, err := n.attach()
		if err != nil {
			return err
		}
		t.attach(img, n.Name, n.Tap, a)
	}
	for _, b := range g.Blocks {
		a, err := b.attach()
		if err != nil {
			return err
		}
		t.attach(img, b.Name, b.File, a)
	}
	return nil
}

// attach gives the device of the manifest its file.
func (t *Tender) attach(img *Image, name string, f *os.File, a attachment) {
	for _, d := range img.Devices {
		if d.Type == a.Device && d.Name == name {
			t.plan.attached[d.Handle], t.devices[d.Handle] = a, f
		}
	}
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
	for _, handle := range t.plan.handles(NetDevice) {
		if err := t.watch(t.devices[handle], uint32(handle)); err != nil {
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

// Close closes what was opened for it. A guest that runs keeps its own.
func (t *Tender) Close() error {
	var errs []error
	for _, f := range t.made {
		errs = append(errs, f.Close())
	}
	t.made = nil
	return errors.Join(errs...)
}
