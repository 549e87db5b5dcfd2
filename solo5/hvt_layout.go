package solo5

import (
	"debug/elf"
	"encoding/binary"

	"fulmar/solo5/internal/kvm"
)

// Layout of an hvt guest's memory below the image (Solo5's hvt_abi.h and
// hvt_cpu_x86_64.h). The guest sees nothing below the boot information.
const (
	hvtGDT      = 0x1000
	hvtPML4     = 0x2000
	hvtPDPT     = 0x3000
	hvtPD       = 0x4000 // four, for 4 GB
	hvtPT       = 0x8000 // of the first 2 MB
	hvtTables   = 0x9000 // their end
	hvtBootInfo = 0x10000

	hvtBootInfoSize = 56
	hvtMaxMB        = 4096

	// hvtMoreTables is where the tables of pages of 4 KB above the first 2 MB
	// are: behind all memory, so that the guest has no way to them and no
	// memory less.
	hvtMoreTables = hvtMaxMB * megabyte

	largePage = 2 * megabyte
)

// Bits of a page table's entry (Intel SDM 3A §5.5).
const (
	pagePresent   = 1 << 0
	pageWritable  = 1 << 1
	pageLarge     = 1 << 7
	pageNoExecute = 1 << 63
)

// Bits of control registers (Intel SDM 3A §2.5, §2.2.1).
const (
	cr0Protection     = 1 << 0
	cr0NumericError   = 1 << 5
	cr0WriteProtect   = 1 << 16
	cr0Paging         = 1 << 31
	cr4PAE            = 1 << 5
	cr4FXSR           = 1 << 9
	cr4XMMExceptions  = 1 << 10
	eferLongMode      = 1 << 8
	eferLongModeIsOn  = 1 << 10
	eferNoExecute     = 1 << 11
	rflagsReserved    = 1 << 1
	selectorCode      = 1 * 8
	selectorData      = 2 * 8
	descriptorCode    = 0x00af99000000ffff // as segmentCode
	descriptorData    = 0x00cf93000000ffff // as segmentData
	descriptorsLength = 3 * 8
)

// longMode returns the registers of a processor in 64-bit mode with the tables
// of this layout.
func longMode() *kvm.Sregs {
	code := kvm.Segment{Limit: 0xffffffff, Selector: selectorCode, Type: 9, Present: 1, S: 1, L: 1, G: 1}
	data := kvm.Segment{Limit: 0xffffffff, Selector: selectorData, Type: 3, Present: 1, S: 1, DB: 1, G: 1}
	return &kvm.Sregs{
		CS: code, DS: data, ES: data, FS: data, GS: data, SS: data,
		TR: kvm.Segment{Type: 11, Present: 1}, LDT: kvm.Segment{Unusable: 1},
		GDT:  kvm.DTable{Base: hvtGDT, Limit: descriptorsLength - 1},
		CR0:  cr0Protection | cr0NumericError | cr0WriteProtect | cr0Paging,
		CR3:  hvtPML4,
		CR4:  cr4PAE | cr4FXSR | cr4XMMExceptions,
		EFER: eferLongMode | eferLongModeIsOn | eferNoExecute,
	}
}

// tables returns the processor's tables: those in the guest's memory, of its
// first hvtTables bytes, and those at hvtMoreTables. They map memory as it is,
// with exactly the protection of the image's segments; all other memory can be
// written to and not be executed.
//
// solo5-hvt makes everything writable and executable in these tables, and
// protects code from writes by the host's alone.
func tables(img *Image, memory uint64) (low, more []byte) {
	low = make([]byte, hvtTables)
	put := func(at, value uint64) { binary.LittleEndian.PutUint64(low[at:], value) }
	put(hvtGDT+selectorCode, descriptorCode)
	put(hvtGDT+selectorData, descriptorData)
	put(hvtPML4, hvtPDPT|pagePresent|pageWritable)
	for n := range uint64(4) {
		put(hvtPDPT+8*n, (hvtPD+n*pageSize)|pagePresent|pageWritable)
	}
	for at := uint64(0); at < memory; at += largePage {
		entry := hvtPD + at/largePage*8
		if at == 0 {
			put(entry, hvtPT|pagePresent|pageWritable)
			copy(low[hvtPT:], smallPages(img, memory, at))
		} else if at >= img.KernelEnd && at+largePage <= memory {
			put(entry, at|pagePresent|pageWritable|pageLarge|pageNoExecute)
		} else {
			put(entry, (hvtMoreTables+uint64(len(more)))|pagePresent|pageWritable)
			more = append(more, smallPages(img, memory, at)...)
		}
	}
	return low, more
}

// smallPages returns the page table of the 2 MB at the address start.
func smallPages(img *Image, memory, start uint64) []byte {
	table := make([]byte, 0, pageSize)
	for at := start; at < start+largePage; at += pageSize {
		var entry uint64
		if flags := pageFlags(img, memory, at); flags != 0 {
			entry = at | flags
		}
		table = binary.LittleEndian.AppendUint64(table, entry)
	}
	return table
}

// pageFlags returns how the guest may use the page at an address.
func pageFlags(img *Image, memory, at uint64) uint64 {
	switch {
	case at < hvtBootInfo, at >= memory:
		return 0
	case at < guestMinBase:
		return pagePresent | pageNoExecute
	}
	for _, s := range img.Segments {
		if start, end := s.pages(); at >= start && at < end {
			return segmentFlags(s.Flags)
		}
	}
	return pagePresent | pageWritable | pageNoExecute
}

func segmentFlags(f elf.ProgFlag) uint64 {
	var flags uint64
	if f != 0 {
		flags |= pagePresent
	}
	if f&elf.PF_W != 0 {
		flags |= pageWritable
	}
	if f&elf.PF_X == 0 {
		flags |= pageNoExecute
	}
	return flags
}

// hvtBoot returns the guest's memory from hvtBootInfo on. It offers none of the
// features that have been added to the interface since its version 2 began.
func hvtBoot(img *Image, memory, hz uint64, attached map[int]attachment, cmdline string) []byte {
	manifest := encodeManifest(img.Devices, withoutDescriptors(attached))
	var b []byte
	for _, v := range []uint64{
		memory,
		img.KernelEnd,
		hz,
		hvtBootInfo + hvtBootInfoSize + uint64(len(manifest)), // the command line
		hvtBootInfo + hvtBootInfoSize,                         // the manifest
		0,                                                     // features of host and guest
		0,                                                     // the ring
	} {
		b = binary.LittleEndian.AppendUint64(b, v)
	}
	b = append(b, manifest...)
	b = append(b, cmdline...)
	return append(b, 0)
}

// withoutDescriptors returns what an hvt guest may know: it calls its devices
// by their handles.
func withoutDescriptors(attached map[int]attachment) map[int]attachment {
	told := map[int]attachment{}
	for handle, a := range attached {
		a.FD = 0
		told[handle] = a
	}
	return told
}
