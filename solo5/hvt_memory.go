package solo5

import (
	"debug/elf"
	"fmt"
	"os"
	"unsafe"

	"golang.org/x/sys/unix"

	"fulmar/solo5/internal/kvm"
)

// guestMemory is the memory of an hvt guest as its tender has it. It is
// untrusted, and so is every address in it.
type guestMemory struct {
	bytes    []byte // by the guest's addresses
	readOnly []span // what the guest may not write to, and so nobody for it
}

// A span is a range of addresses.
type span struct{ start, end uint64 }

// read returns size bytes at an address that the guest gave, if all of them are
// memory that it can read. No bytes are nowhere, so a guest may leave their address out.
func (m guestMemory) read(addr, size uint64) ([]byte, bool) {
	limit := uint64(len(m.bytes))
	if addr < hvtBootInfo && size > 0 || addr > limit || size > limit-addr {
		return nil, false
	}
	return m.bytes[addr : addr+size : addr+size], true
}

// write returns size bytes at an address that the guest gave, if all of them
// are memory that it can write to.
func (m guestMemory) write(addr, size uint64) ([]byte, bool) {
	b, ok := m.read(addr, size)
	for _, s := range m.readOnly {
		if addr < s.end && addr+size > s.start {
			return nil, false
		}
	}
	return b, ok
}

// loadGuest returns the memory of a new guest, with the segments of its image.
// Those that cannot be written to are protected from the tender too, and with
// that from whatever the guest does to its page tables: KVM heeds it.
func loadGuest(f *os.File, img *Image, size uint64) (guestMemory, error) {
	bytes, err := unix.Mmap(-1, 0, int(size), unix.PROT_READ|unix.PROT_WRITE, unix.MAP_PRIVATE|unix.MAP_ANONYMOUS|unix.MAP_NORESERVE)
	if err != nil {
		return guestMemory{}, fmt.Errorf("map %d MB of memory: %w", size/megabyte, err)
	}
	m := guestMemory{bytes: bytes, readOnly: []span{{0, guestMinBase}}}
	for _, s := range img.Segments {
		if err := m.load(f, s); err != nil {
			return guestMemory{}, fmt.Errorf("load the segment at %#x: %w", s.Addr, err)
		}
	}
	return m, nil
}

func (m *guestMemory) load(f *os.File, s Segment) error {
	start, end := s.pages()
	if s.Flags&elf.PF_W == 0 {
		m.readOnly = append(m.readOnly, span{start, end})
	}
	if shareable(s) {
		_, err := unix.MmapPtr(int(f.Fd()), int64(s.Offset-s.Offset%pageSize), unsafe.Pointer(&m.bytes[start]), uintptr(end-start),
			unix.PROT_READ, unix.MAP_PRIVATE|unix.MAP_FIXED)
		return err
	}
	if _, err := f.ReadAt(m.bytes[s.Addr:][:s.FileSize], int64(s.Offset)); err != nil {
		return err
	}
	if s.Flags&elf.PF_W == 0 {
		return unix.Mprotect(m.bytes[start:end], unix.PROT_READ)
	}
	return nil
}

// give makes it the memory of a virtual machine, with the processor's tables.
func (m guestMemory) give(vm int, img *Image) error {
	low, more := tables(img, uint64(len(m.bytes)))
	copy(m.bytes, low)
	if err := kvm.SetMemory(vm, 0, 0, m.bytes); err != nil {
		return err
	}
	if len(more) == 0 {
		return nil
	}
	tables, err := unix.Mmap(-1, 0, len(more), unix.PROT_READ|unix.PROT_WRITE, unix.MAP_PRIVATE|unix.MAP_ANONYMOUS)
	if err != nil {
		return fmt.Errorf("map page tables: %w", err)
	}
	copy(tables, more)
	return kvm.SetMemory(vm, 1, hvtMoreTables, tables)
}
