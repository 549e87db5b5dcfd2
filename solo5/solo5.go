// Package solo5 reads Solo5 images and runs those of the targets spt and hvt.
//
// [Read] takes an untrusted file and answers what the image is: its target,
// its segments and the devices that its manifest declares. [PrepareSPT] and
// [PrepareHVT] hold that against the devices and the memory they are given, and
// make a process of it: by [Tender.Exec] in the place of the calling one
// (cmd/fulmar-spt, cmd/fulmar-hvt), by [Tender.Command] or [Tender.GatedCommand]
// as a child (services/host).
//
// # A guest of the target spt: the process is the unikernel
//
// solo5-spt loads the image into its own address space and jumps to it, so a
// tender with its libraries stays in memory beside the guest. A Go program
// cannot do that: its runtime owns threads, signal handlers and mappings that
// have no place under a filter that allows seven system calls. Nor need it. All
// that a spt tender does before the jump is a fixed list of system calls: map
// memory, read the segments into it, protect them, put on the filter. So that
// list is computed here, written as a table into a tiny executable (see
// trampoline.go) which lives in sealed memory, and executed. The kernel throws
// the old address space away, the trampoline walks the table and jumps. From
// then on the process has the guest's memory, the descriptors of its devices,
// standard output, and nothing else: no tender that could be attacked or that
// must be kept alive, none to upgrade; and kill, wait,
// pidfd, cgroup and exit status of the process are those of the unikernel. A
// daemon that starts guests can be restarted without touching them.
//
// # A guest of the target hvt: a virtual machine and its tender
//
// A virtual machine on /dev/kvm has a process that runs it and answers its
// hypercalls. That is a small program in Go (see [HVTMain]), which one trampoline
// more starts: so here too a process has lost groups, capabilities and all files
// but its own before the first instruction of the tender, and the process is
// again the unikernel's for kill, wait, pidfd, cgroup and exit status, and needs
// nobody else. The tender makes the machine of the sealed image, puts on a
// filter that allows running it and what the runtime of Go does around that,
// and only then lets it run. One thread runs it, and while it does nobody touches
// its memory; every address that it passes is checked against what it may read
// or write itself.
//
// # Invariant
//
// What runs is what was checked. The image is copied into sealed memory before
// it is read (or is already sealed, see [Seal]), so nobody can change it
// between check and load, and each segment gets exactly the protection that was
// checked: none is both writable and executable, page 0 is never mapped, and
// any system call but those of the devices attached kills the process. (A
// virtual machine can change its own page tables. It does not get past the
// host's, in which what was not writable in the image is not.)
//
// Nothing in this package keeps state outside the values it returns. It needs
// Linux 5.9 or newer on amd64, and /proc.
//
// Facts of the format: Solo5's elf_abi.h, mft_abi.h, spt_abi.h and hvt_abi.h.
package solo5

import (
	"debug/elf"
	"errors"
	"fmt"
	"slices"
)

// A Target is the kind of host that an image was linked for. Its values are
// those of the ABI1 note.
type Target uint32

// The targets of Solo5.
const (
	HVT Target = iota + 1
	SPT
	Virtio
	Muen
	Genode
	Xen
)

// String returns the name that Solo5 gives the target, as in "solo5-spt".
func (t Target) String() string {
	names := [...]string{"hvt", "spt", "virtio", "muen", "genode", "xen"}
	if i := int64(t) - 1; i >= 0 && i < int64(len(names)) {
		return names[i]
	}
	return fmt.Sprintf("target %d", uint32(t))
}

// A DeviceType is the kind of a device in the manifest. Its values are those
// of the MFT1 note.
type DeviceType uint32

// The types of devices that a manifest can declare.
const (
	BlockDevice DeviceType = 1
	NetDevice   DeviceType = 2
)

// String returns what the type is called in messages to people.
func (t DeviceType) String() string {
	switch t {
	case BlockDevice:
		return "block"
	case NetDevice:
		return "network"
	}
	return fmt.Sprintf("type %d", uint32(t))
}

// A Device is an entry of the manifest: what the unikernel wants to be attached.
type Device struct {
	Name   string // 1 to 67 letters and digits
	Type   DeviceType
	Handle int // by which the unikernel calls it: the index in the manifest, from 1
}

// A Segment is a part of the file that is loaded into the guest's memory.
type Segment struct {
	Addr     uint64 // in the guest
	MemSize  uint64 // bytes in the guest; what the file does not fill is zero
	Offset   uint64 // in the file
	FileSize uint64 // bytes in the file
	Flags    elf.ProgFlag
}

// pages returns the range of whole pages that the segment lies in.
func (s Segment) pages() (start, end uint64) {
	return s.Addr &^ (pageSize - 1), (s.Addr + s.MemSize + pageSize - 1) &^ (pageSize - 1)
}

// An Image is what an executable says about itself.
type Image struct {
	Target    Target
	ABI       uint32 // version of the target's interface
	Entry     uint64 // address of the first instruction
	KernelEnd uint64 // end of the last segment, a multiple of the page size
	Segments  []Segment
	Devices   []Device // in the order of the manifest
}

// ABIVersion is the version of the interfaces of hvt and spt that is supported.
const ABIVersion = 2

const (
	pageSize = 4096
	megabyte = 1 << 20

	guestMinBase  = 0x100000   // no segment may lie below
	guestMaxEnd   = 1 << 40    // nor end above; far below the trampoline
	leastFree     = 512 * 1024 // Solo5's bindings refuse to start with less for heap and stack
	hvtLeastMB    = 4          // of the page tables that solo5-hvt lays out
	guestMaxMB    = guestMaxEnd / megabyte
	maxImageBytes = 1 << 30
)

// ErrNotSolo5 reports that a file is no Solo5 image at all.
var ErrNotSolo5 = errors.New("not a Solo5 image")

// An ImageError says what is wrong with a file that is a Solo5 image by name.
type ImageError struct {
	Part    string // of the file, as in "manifest: entry 3"
	Problem string
}

// Error returns one sentence for the one who made the image.
func (e *ImageError) Error() string { return e.Part + ": " + e.Problem }

// A MismatchError says that a good image and what it is to be run with do not
// fit together.
type MismatchError struct {
	Problem string
}

// Error returns one sentence for the one who asked for it.
func (e *MismatchError) Error() string { return e.Problem }

func mismatch(format string, args ...any) error {
	return &MismatchError{Problem: fmt.Sprintf(format, args...)}
}

// MinMemory returns the least memory in MB that the unikernel can start with:
// its segments, and the 512 KB that Solo5's bindings want for heap and stack.
func (i *Image) MinMemory() int {
	need := int((i.KernelEnd + leastFree + megabyte - 1) / megabyte)
	if i.Target == HVT {
		return max(need, hvtLeastMB)
	}
	return need
}

// CheckTarget returns a [*MismatchError] unless the image is one for the target
// and of the version of its interface that Fulmar has.
func (i *Image) CheckTarget(want Target) error {
	if i.Target != want {
		return mismatch("the image is for the target %s, not for %s", i.Target, want)
	}
	if i.ABI != ABIVersion {
		return mismatch("the image needs version %d of the %s interface, and only version %d is supported", i.ABI, i.Target, ABIVersion)
	}
	return nil
}

// CheckMemory returns a [*MismatchError] if the image cannot be run in so many MB.
func (i *Image) CheckMemory(mb int) error {
	if need := i.MinMemory(); mb < need {
		return mismatch("memory of %d MB is too small: the image needs at least %d MB", mb, need)
	}
	most := guestMaxMB
	if i.Target == HVT {
		most = hvtMaxMB
	}
	if mb > most {
		return mismatch("memory of %d MB is too large: a guest can have at most %d MB", mb, most)
	}
	return nil
}

// CheckDevices returns a [*MismatchError] unless the devices attached, by name,
// are those of the manifest: all of them, each once, and no others.
func (i *Image) CheckDevices(nets, blocks []string) error {
	attached := map[DeviceType][]string{NetDevice: nets, BlockDevice: blocks}
	for _, d := range i.Devices {
		if !slices.Contains(attached[d.Type], d.Name) {
			return mismatch("the image declares the %s device %q, and it is not attached", d.Type, d.Name)
		}
	}
	for _, t := range []DeviceType{NetDevice, BlockDevice} {
		for n, name := range attached[t] {
			if !slices.ContainsFunc(i.Devices, func(d Device) bool { return d.Type == t && d.Name == name }) {
				return mismatch("the %s device %q is attached, and the image does not declare it", t, name)
			}
			if slices.Contains(attached[t][:n], name) {
				return mismatch("the %s device %q is attached twice", t, name)
			}
		}
	}
	return nil
}
