package solo5

import (
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"runtime"

	"golang.org/x/sys/unix"

	"fulmar/solo5/internal/kvm"
)

// HVTMain runs the guest and exits with its status if this process was started
// by a [Tender] of [PrepareHVT]; otherwise it does nothing. It comes first in
// the main of every program that is given to PrepareHVT.
func HVTMain() {
	text, ok := os.LookupEnv(orderVariable)
	if !ok {
		return
	}
	status, err := tend(text)
	if err != nil {
		unix.Write(unix.Stderr, fmt.Appendf(nil, "fulmar-hvt: %v\n", err)) //nolint:errcheck // there is nowhere else to say it
		status = 1
	}
	os.Exit(status)
}

// tend is the life of an hvt tender: it makes the machine, gives up what it
// needs no more, and serves the guest. It returns the guest's exit status.
func tend(text string) (int, error) {
	var o order
	if err := json.Unmarshal([]byte(text), &o); err != nil {
		return 0, fmt.Errorf("read the order: %w", err)
	}
	if o.Version != orderVersion {
		return 0, fmt.Errorf("the order is of version %d, and this is a tender of version %d", o.Version, orderVersion)
	}
	runtime.LockOSThread() // a virtual processor wants to be one thread's
	if err := setName(os.Args[0]); err != nil {
		return 0, fmt.Errorf("set the name of the process: %w", err)
	}
	m, err := newMachine(o, os.Args[1:])
	if err != nil {
		return 0, err
	}
	if err := m.confine(); err != nil {
		return 0, err
	}
	return m.run()
}

// setName sets the name of the whole process, whichever its thread this is. It
// does not use a file of package os, which would have the runtime wait for events.
func setName(name string) error {
	fd, err := unix.Open("/proc/self/comm", unix.O_WRONLY|unix.O_CLOEXEC, 0)
	if err != nil {
		return err
	}
	_, err = unix.Write(fd, []byte(name))
	return errors.Join(err, unix.Close(fd))
}

// A machine is a guest and what the tender has of it: memory, one processor and
// devices. While the processor runs, nothing else touches the memory.
type machine struct {
	memory  guestMemory
	vcpu    int
	exit    kvm.Exit
	devices [maxEntries]attachment // by handle; those that are there have a type
	waiting waitSet
}

// newMachine makes the machine, with the image in its memory. It closes what
// is needed for that alone.
func newMachine(o order, args []string) (*machine, error) {
	image := os.NewFile(uintptr(o.Image), "image")
	img, err := readImage(image)
	if err != nil {
		return nil, err
	}
	cmdline, err := commandLine(args)
	if err != nil {
		return nil, err
	}
	m := &machine{}
	if m.memory, err = loadGuest(image, img, o.Memory); err != nil {
		return nil, err
	}
	if err := image.Close(); err != nil {
		return nil, fmt.Errorf("close image: %w", err)
	}
	hz, err := m.power(o.KVM, img)
	if err != nil {
		return nil, err
	}
	copy(m.memory.bytes[hvtBootInfo:], hvtBoot(img, o.Memory, hz, o.Attached, cmdline))
	for handle, a := range o.Attached {
		m.devices[handle] = a
	}
	m.waiting = newWaitSet(m.devices[:])
	return m, nil
}

// power makes the processor, ready to run, and returns how often its clock
// counts in a second. The virtual machine lives as long as its processor is open.
func (m *machine) power(device int, img *Image) (hz uint64, err error) {
	if err := kvm.CheckVersion(device); err != nil {
		return 0, err
	}
	vm, err := kvm.CreateVM(device)
	if err != nil {
		return 0, err
	}
	if err := m.memory.give(vm, img); err != nil {
		return 0, err
	}
	if m.vcpu, err = kvm.CreateVCPU(vm); err != nil {
		return 0, err
	}
	if m.exit, err = kvm.MapExit(device, m.vcpu); err != nil {
		return 0, err
	}
	if err := kvm.OfferCPUID(device, m.vcpu); err != nil {
		return 0, err
	}
	if err := kvm.SetSregs(m.vcpu, longMode()); err != nil {
		return 0, err
	}
	size := uint64(len(m.memory.bytes))
	if err := kvm.SetRegs(m.vcpu, &kvm.Regs{RIP: img.Entry, RFLAGS: rflagsReserved, RSP: size - 8, RDI: hvtBootInfo}); err != nil {
		return 0, err
	}
	khz, err := kvm.TSCkHz(m.vcpu)
	if err != nil {
		return 0, err
	}
	for _, fd := range []int{vm, device} {
		if err := unix.Close(fd); err != nil {
			return 0, fmt.Errorf("close KVM: %w", err)
		}
	}
	return khz * 1000, nil
}
