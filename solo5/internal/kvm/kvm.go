// Package kvm is a thin layer over the ioctls of /dev/kvm on x86-64: those that
// a virtual machine of one processor without interrupts needs. It decides
// nothing and keeps nothing; descriptors are the caller's to close.
//
// Facts: Linux's Documentation/virt/kvm/api.rst and its uapi header linux/kvm.h.
package kvm

import (
	"errors"
	"fmt"
	"unsafe"

	"golang.org/x/sys/unix"
)

// Requests, named as in linux/kvm.h.
const (
	getAPIVersion       = 0xae00
	createVM            = 0xae01
	getVCPUMmapSize     = 0xae04
	getSupportedCPUID   = 0xc008ae05
	createVCPU          = 0xae41
	setUserMemoryRegion = 0x4020ae46
	getRegs             = 0x8090ae81
	setRegs             = 0x4090ae82
	setSregs            = 0x4138ae84
	setCPUID2           = 0x4008ae90
	getTSCkHz           = 0xaea3

	// RequestRun is the one request of a processor that runs, and
	// RequestGetRegs the one of a processor that has failed.
	RequestRun     = 0xae80
	RequestGetRegs = getRegs
)

const stableAPI = 12 // there has been no other since Linux 2.6.22

// ioctl makes one request, again if a signal comes between.
func ioctl(fd int, request uintptr, arg unsafe.Pointer) (int, error) {
	for {
		n, _, errno := unix.Syscall(unix.SYS_IOCTL, uintptr(fd), request, uintptr(arg))
		switch errno {
		case 0:
			return int(n), nil
		case unix.EINTR:
		default:
			return 0, errno
		}
	}
}

// CheckVersion returns an error unless the file is /dev/kvm as this package knows it.
func CheckVersion(kvm int) error {
	version, err := ioctl(kvm, getAPIVersion, nil)
	if err != nil {
		return fmt.Errorf("ask for the version of KVM: %w", err)
	}
	if version != stableAPI {
		return fmt.Errorf("version %d of KVM is not supported, only %d is", version, stableAPI)
	}
	return nil
}

// CreateVM makes a machine without memory and processors.
func CreateVM(kvm int) (int, error) {
	vm, err := ioctl(kvm, createVM, nil)
	if err != nil {
		return -1, fmt.Errorf("make a virtual machine: %w", err)
	}
	return vm, nil
}

// memoryRegion is struct kvm_userspace_memory_region.
type memoryRegion struct {
	slot, flags      uint32
	guestPhysAddr    uint64
	memorySize       uint64
	userspaceAddress uint64
}

// SetMemory makes mem, which is mapped and not of Go's heap, the machine's
// memory from the address addr on. It stays mapped as long as the machine is there.
func SetMemory(vm int, slot uint32, addr uint64, mem []byte) error {
	region := memoryRegion{
		slot: slot, guestPhysAddr: addr,
		memorySize: uint64(len(mem)), userspaceAddress: uint64(uintptr(unsafe.Pointer(unsafe.SliceData(mem)))),
	}
	if _, err := ioctl(vm, setUserMemoryRegion, unsafe.Pointer(&region)); err != nil {
		return fmt.Errorf("give the virtual machine %d bytes of memory at %#x: %w", len(mem), addr, err)
	}
	return nil
}

// CreateVCPU makes the machine's first processor. It is to be used by one thread alone.
func CreateVCPU(vm int) (int, error) {
	vcpu, err := ioctl(vm, createVCPU, nil) // its number 0
	if err != nil {
		return -1, fmt.Errorf("make a virtual processor: %w", err)
	}
	return vcpu, nil
}

const maxCPUID = 256

// cpuid is struct kvm_cpuid2 with room for entries of 40 bytes.
type cpuid struct {
	entries, pad uint32
	entry        [maxCPUID][40]byte
}

// OfferCPUID lets the processor tell the guest of all features that KVM has.
func OfferCPUID(kvm, vcpu int) error {
	c := &cpuid{entries: maxCPUID}
	if _, err := ioctl(kvm, getSupportedCPUID, unsafe.Pointer(c)); err != nil {
		return fmt.Errorf("ask for the features of the processor: %w", err)
	}
	if _, err := ioctl(vcpu, setCPUID2, unsafe.Pointer(c)); err != nil {
		return fmt.Errorf("set the features of the processor: %w", err)
	}
	return nil
}

// TSCkHz returns how many thousand times a second the processor's time stamp counts.
func TSCkHz(vcpu int) (uint64, error) {
	khz, err := ioctl(vcpu, getTSCkHz, nil)
	if err != nil {
		return 0, fmt.Errorf("ask for the frequency of the processor's clock: %w", err)
	}
	if khz <= 0 {
		return 0, errors.New("KVM does not know the frequency of the processor's clock")
	}
	return uint64(khz), nil
}
