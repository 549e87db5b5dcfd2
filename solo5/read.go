package solo5

import (
	"bytes"
	"debug/elf"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
)

const (
	headerSize     = 64
	progHeaderSize = 56
	maxProgHeaders = 128       // Solo5's linker scripts make nine
	maxNoteSegment = 64 * 1024 // the largest manifest is 6,664 bytes
)

// Read reads the image in the first size bytes of r. The file is not trusted:
// what is read of it at once is bounded whatever it says.
//
// Of an image for another target than hvt and spt only Target, ABI and Entry
// are read. The error is [ErrNotSolo5], an [*ImageError], or one of r.
func Read(r io.ReaderAt, size int64) (*Image, error) {
	progs, entry, err := readHeaders(r, size)
	if err != nil {
		return nil, err
	}
	notes, err := readNotes(r, size, progs)
	if err != nil {
		return nil, err
	}
	img := &Image{Entry: entry}
	if img.Target, img.ABI, err = decodeABI(notes.abi); err != nil {
		return nil, err
	}
	if img.Target != HVT && img.Target != SPT {
		return img, nil
	}
	if img.Devices, err = decodeManifest(notes.manifest); err != nil {
		return nil, err
	}
	if img.Segments, err = loadSegments(progs, size); err != nil {
		return nil, err
	}
	_, img.KernelEnd = img.Segments[len(img.Segments)-1].pages()
	if !executable(img.Segments, entry) {
		return nil, &ImageError{"ELF header", fmt.Sprintf("the entry point %#x is in no executable segment", entry)}
	}
	return img, nil
}

// readHeaders returns the program headers and the entry point.
func readHeaders(r io.ReaderAt, size int64) ([]elf.Prog64, uint64, error) {
	buf := make([]byte, headerSize)
	if size < headerSize {
		return nil, 0, fmt.Errorf("%w: no ELF header", ErrNotSolo5)
	}
	if err := readAt(r, buf, 0, "ELF header"); err != nil {
		return nil, 0, err
	}
	if !bytes.HasPrefix(buf, []byte(elf.ELFMAG)) {
		return nil, 0, fmt.Errorf("%w: no ELF header", ErrNotSolo5)
	}
	if elf.Class(buf[elf.EI_CLASS]) != elf.ELFCLASS64 || elf.Data(buf[elf.EI_DATA]) != elf.ELFDATA2LSB {
		return nil, 0, fmt.Errorf("%w: the ELF file is not 64-bit and little-endian", ErrNotSolo5)
	}
	var h elf.Header64
	if _, err := binary.Decode(buf, binary.LittleEndian, &h); err != nil {
		return nil, 0, fmt.Errorf("decode ELF header: %w", err)
	}
	bad := func(format string, args ...any) ([]elf.Prog64, uint64, error) {
		return nil, 0, &ImageError{"ELF header", fmt.Sprintf(format, args...)}
	}
	switch {
	case elf.Type(h.Type) != elf.ET_EXEC:
		return nil, 0, fmt.Errorf("%w: the ELF file is not a static executable", ErrNotSolo5)
	case elf.Machine(h.Machine) != elf.EM_X86_64:
		return bad("the machine is %s, and only x86-64 is supported", elf.Machine(h.Machine))
	case h.Phentsize != progHeaderSize:
		return bad("a program header has %d bytes instead of %d", h.Phentsize, progHeaderSize)
	case h.Phnum == 0:
		return bad("there are no program headers")
	case h.Phnum > maxProgHeaders:
		return bad("there are %d program headers, at most %d are supported", h.Phnum, maxProgHeaders)
	}
	table := make([]byte, int(h.Phnum)*progHeaderSize)
	if !within(h.Phoff, uint64(len(table)), size) {
		return bad("the program headers are outside of the file")
	}
	if err := readAt(r, table, h.Phoff, "program headers"); err != nil {
		return nil, 0, err
	}
	progs := make([]elf.Prog64, h.Phnum)
	if _, err := binary.Decode(table, binary.LittleEndian, progs); err != nil {
		return nil, 0, fmt.Errorf("decode program headers: %w", err)
	}
	return progs, h.Entry, nil
}

// loadSegments returns what is to be loaded, checked against the file's size,
// the guest's address space and one another.
func loadSegments(progs []elf.Prog64, size int64) ([]Segment, error) {
	var segments []Segment
	end := uint64(guestMinBase)
	for n, p := range progs {
		if elf.ProgType(p.Type) != elf.PT_LOAD || p.Memsz == 0 && p.Filesz == 0 {
			continue
		}
		s := Segment{
			Addr: p.Vaddr, MemSize: p.Memsz, Offset: p.Off, FileSize: p.Filesz,
			Flags: elf.ProgFlag(p.Flags) & (elf.PF_R | elf.PF_W | elf.PF_X),
		}
		if problem := checkSegment(s, end, size); problem != "" {
			return nil, &ImageError{fmt.Sprintf("program header %d", n), problem}
		}
		segments = append(segments, s)
		_, end = s.pages()
	}
	if len(segments) == 0 {
		return nil, &ImageError{"program headers", "there is nothing to load"}
	}
	return segments, nil
}

// checkSegment says what is wrong with a segment that follows one which ends at
// the address after, and "" if nothing is.
func checkSegment(s Segment, after uint64, size int64) string {
	start := s.Addr &^ (pageSize - 1)
	switch {
	case s.FileSize > s.MemSize:
		return fmt.Sprintf("the segment has %d bytes in the file and only %d in memory", s.FileSize, s.MemSize)
	case !within(s.Offset, s.FileSize, size):
		return "the segment is outside of the file"
	case start < guestMinBase:
		return fmt.Sprintf("the segment starts at %#x, below %#x", s.Addr, guestMinBase)
	case !within(s.Addr, s.MemSize, guestMaxEnd):
		return fmt.Sprintf("the segment ends above %#x", uint64(guestMaxEnd))
	case start < after:
		return fmt.Sprintf("the segment at %#x overlaps the one before, which ends at %#x", s.Addr, after)
	case s.Flags&elf.PF_W != 0 && s.Flags&elf.PF_X != 0:
		return "the segment is both writable and executable"
	}
	return ""
}

func executable(segments []Segment, addr uint64) bool {
	for _, s := range segments {
		if s.Flags&elf.PF_X != 0 && addr >= s.Addr && addr-s.Addr < s.MemSize {
			return true
		}
	}
	return false
}

// within reports whether n bytes at off end at or before limit.
func within(off, n uint64, limit int64) bool {
	return off <= uint64(limit) && n <= uint64(limit)-off
}

// readAt fills buf; a file that ends early is the image's fault.
func readAt(r io.ReaderAt, buf []byte, off uint64, part string) error {
	switch n, err := r.ReadAt(buf, int64(off)); {
	case n == len(buf):
		return nil
	case errors.Is(err, io.EOF), errors.Is(err, io.ErrUnexpectedEOF):
		return &ImageError{part, "the file ends too early"}
	default:
		return fmt.Errorf("read %s of the image: %w", part, err)
	}
}
