package solo5

import (
	"errors"
	"fmt"

	"golang.org/x/sys/unix"

	"fulmar/solo5/internal/kvm"
)

const hypercallPort = 0x500 // and the number of the hypercall

// run runs the processor until the guest halts, and returns its exit status; or
// until the guest does what it must not, and returns what.
func (m *machine) run() (int, error) {
	for {
		switch err := kvm.Run(m.vcpu); {
		case errors.Is(err, unix.EINTR):
			continue
		case errors.Is(err, unix.EFAULT):
			return 0, m.fault(errors.New("the unikernel used memory in a way that it must not"))
		case err != nil:
			return 0, m.fault(fmt.Errorf("run the processor: %w", err))
		}
		call, arg, err := m.asked()
		if err != nil {
			return 0, m.fault(err)
		}
		if call == callHalt {
			status, err := m.halt(arg)
			return status, m.fault(err)
		}
		if err := m.serve(call, arg); err != nil {
			return 0, m.fault(err)
		}
	}
}

// asked returns the hypercall for which the processor stopped, and the address
// of its argument, or an error that says why it stopped instead.
func (m *machine) asked() (hypercall, uint64, error) {
	switch reason := m.exit.Reason(); reason {
	case kvm.ExitIO:
		port := m.exit.Port()
		arg, ok := m.exit.Out32()
		if !ok || port < hypercallPort+uint16(callWalltime) || port > hypercallPort+uint16(callHalt) {
			return 0, 0, fmt.Errorf("the unikernel used the port %#x, and not as a hypercall", port)
		}
		return hypercall(port - hypercallPort), uint64(arg), nil
	case kvm.ExitMMIO:
		addr, write := m.exit.MMIO()
		if write {
			return 0, 0, fmt.Errorf("the unikernel wrote to %#x, which it must not", addr)
		}
		return 0, 0, fmt.Errorf("the unikernel read from %#x, where there is no memory", addr)
	case kvm.ExitShutdown:
		return 0, 0, errors.New("the unikernel crashed: an exception that it does not handle")
	case kvm.ExitHLT:
		return 0, 0, errors.New("the unikernel stopped its processor, and nothing can wake it")
	case kvm.ExitFailEntry:
		return 0, 0, fmt.Errorf("the processor refused to run the unikernel: reason %#x", m.exit.EntryFailure())
	case kvm.ExitInternalError:
		return 0, 0, fmt.Errorf("KVM cannot run an instruction of the unikernel: suberror %d", m.exit.Suberror())
	default:
		return 0, 0, fmt.Errorf("KVM stopped the unikernel for reason %d", reason)
	}
}

// fault says where in its code the guest was when an error ended it.
func (m *machine) fault(err error) error {
	if err == nil {
		return nil
	}
	var r kvm.Regs
	if rerr := kvm.GetRegs(m.vcpu, &r); rerr != nil {
		return errors.Join(err, rerr)
	}
	return fmt.Errorf("%w (its instruction at %#x)", err, r.RIP)
}
