package kvm

import (
	"fmt"
	"unsafe"
)

// Regs is struct kvm_regs.
type Regs struct {
	RAX, RBX, RCX, RDX uint64
	RSI, RDI, RSP, RBP uint64
	R8, R9, R10, R11   uint64
	R12, R13, R14, R15 uint64
	RIP, RFLAGS        uint64
}

// Segment is struct kvm_segment.
type Segment struct {
	Base                                                uint64
	Limit                                               uint32
	Selector                                            uint16
	Type, Present, DPL, DB, S, L, G, AVL, Unusable, Pad uint8
}

// DTable is struct kvm_dtable.
type DTable struct {
	Base  uint64
	Limit uint16
	Pad   [3]uint16
}

// Sregs is struct kvm_sregs.
type Sregs struct {
	CS, DS, ES, FS, GS, SS  Segment
	TR, LDT                 Segment
	GDT, IDT                DTable
	CR0, CR2, CR3, CR4, CR8 uint64
	EFER, APICBase          uint64
	InterruptBitmap         [4]uint64
}

// SetRegs sets the general registers.
func SetRegs(vcpu int, r *Regs) error {
	if _, err := ioctl(vcpu, setRegs, unsafe.Pointer(r)); err != nil {
		return fmt.Errorf("set the registers of the processor: %w", err)
	}
	return nil
}

// GetRegs reads the general registers.
func GetRegs(vcpu int, r *Regs) error {
	if _, err := ioctl(vcpu, getRegs, unsafe.Pointer(r)); err != nil {
		return fmt.Errorf("read the registers of the processor: %w", err)
	}
	return nil
}

// SetSregs sets the special registers.
func SetSregs(vcpu int, s *Sregs) error {
	if _, err := ioctl(vcpu, setSregs, unsafe.Pointer(s)); err != nil {
		return fmt.Errorf("set the mode of the processor: %w", err)
	}
	return nil
}
