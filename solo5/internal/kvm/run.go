package kvm

import (
	"encoding/binary"
	"fmt"

	"golang.org/x/sys/unix"
)

// An ExitReason says why a processor stopped.
type ExitReason uint32

// Exit reasons that have a meaning here.
const (
	ExitIO            ExitReason = 2
	ExitHLT           ExitReason = 5
	ExitMMIO          ExitReason = 6
	ExitShutdown      ExitReason = 8
	ExitFailEntry     ExitReason = 9
	ExitIntr          ExitReason = 10
	ExitInternalError ExitReason = 17
)

// Offsets in struct kvm_run.
const (
	runExitReason = 8
	runUnion      = 32

	ioDirection  = runUnion
	ioSize       = runUnion + 1
	ioPort       = runUnion + 2
	ioCount      = runUnion + 4
	ioDataOffset = runUnion + 8

	mmioAddr    = runUnion
	mmioIsWrite = runUnion + 20

	failReason = runUnion
	suberror   = runUnion
)

// Exit is the memory in which KVM says why a processor stopped.
type Exit struct {
	run []byte
}

// MapExit maps that memory of a processor.
func MapExit(kvm, vcpu int) (Exit, error) {
	size, err := ioctl(kvm, getVCPUMmapSize, nil)
	if err != nil {
		return Exit{}, fmt.Errorf("ask for the size of a processor's state: %w", err)
	}
	run, err := unix.Mmap(vcpu, 0, size, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_SHARED)
	if err != nil {
		return Exit{}, fmt.Errorf("map the processor's state: %w", err)
	}
	return Exit{run}, nil
}

// Run runs the processor until it stops; [unix.EINTR] means that a signal came.
// It allocates nothing.
func Run(vcpu int) error {
	if _, _, errno := unix.Syscall(unix.SYS_IOCTL, uintptr(vcpu), RequestRun, 0); errno != 0 {
		return errno
	}
	return nil
}

func (e Exit) u16(at int) uint16 { return binary.LittleEndian.Uint16(e.run[at:]) }
func (e Exit) u32(at int) uint32 { return binary.LittleEndian.Uint32(e.run[at:]) }
func (e Exit) u64(at int) uint64 { return binary.LittleEndian.Uint64(e.run[at:]) }

// Reason returns why the processor stopped.
func (e Exit) Reason() ExitReason { return ExitReason(e.u32(runExitReason)) }

// Port returns the port of an [ExitIO].
func (e Exit) Port() uint16 { return e.u16(ioPort) }

// Out32 returns the value of an [ExitIO] that is one write of 32 bits, and
// whether it is that.
func (e Exit) Out32() (uint32, bool) {
	const out = 1
	if e.run[ioDirection] != out || e.run[ioSize] != 4 || e.u32(ioCount) != 1 {
		return 0, false
	}
	return e.u32(int(e.u64(ioDataOffset))), true
}

// MMIO returns the address of an [ExitMMIO], and whether it was written to.
func (e Exit) MMIO() (addr uint64, write bool) { return e.u64(mmioAddr), e.run[mmioIsWrite] != 0 }

// EntryFailure returns the processor's reason of an [ExitFailEntry].
func (e Exit) EntryFailure() uint64 { return e.u64(failReason) }

// Suberror returns the number of an [ExitInternalError].
func (e Exit) Suberror() uint32 { return e.u32(suberror) }
