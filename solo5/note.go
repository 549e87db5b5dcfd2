package solo5

import (
	"debug/elf"
	"encoding/binary"
	"fmt"
	"io"
)

const (
	noteName       = "Solo5\x00"
	noteABI        = 0x31494241 // "ABI1"
	noteManifest   = 0x3154464d // "MFT1"
	noteHeaderSize = 12
)

// notes are the contents of the two notes that make an executable an image.
type notes struct {
	abi, manifest []byte
}

// readNotes finds both notes in the note segments of the file.
func readNotes(r io.ReaderAt, size int64, progs []elf.Prog64) (notes, error) {
	var found notes
	for n, p := range progs {
		if elf.ProgType(p.Type) != elf.PT_NOTE {
			continue
		}
		part := fmt.Sprintf("program header %d", n)
		if !within(p.Off, p.Filesz, size) {
			return notes{}, &ImageError{part, "the notes are outside of the file"}
		}
		if p.Filesz > maxNoteSegment {
			return notes{}, &ImageError{part, fmt.Sprintf("the notes have %d bytes, at most %d are supported", p.Filesz, maxNoteSegment)}
		}
		buf := make([]byte, p.Filesz)
		if err := readAt(r, buf, p.Off, part); err != nil {
			return notes{}, err
		}
		align := uint64(4)
		if p.Align == 8 {
			align = 8
		}
		if err := found.scan(buf, align); err != nil {
			return notes{}, err
		}
	}
	if found.abi == nil {
		return notes{}, fmt.Errorf("%w: the ELF file has no Solo5 note", ErrNotSolo5)
	}
	return found, nil
}

// scan takes the notes of Solo5 out of one segment. The name and the content of
// a note are padded to 4 bytes, the next note begins at a multiple of align.
func (f *notes) scan(buf []byte, align uint64) error {
	for len(buf) >= noteHeaderSize {
		nameSize := uint64(binary.LittleEndian.Uint32(buf[0:]))
		descSize := uint64(binary.LittleEndian.Uint32(buf[4:]))
		kind := binary.LittleEndian.Uint32(buf[8:])
		start := noteHeaderSize + (nameSize+3)&^3
		end := start + descSize
		if end > uint64(len(buf)) {
			return &ImageError{"notes", "a note is longer than its segment"}
		}
		if string(buf[noteHeaderSize:noteHeaderSize+nameSize]) == noteName {
			if err := f.add(kind, buf[start:end:end]); err != nil {
				return err
			}
		}
		buf = buf[min((end+align-1)&^(align-1), uint64(len(buf))):]
	}
	return nil
}

func (f *notes) add(kind uint32, desc []byte) error {
	var to *[]byte
	switch kind {
	case noteABI:
		to = &f.abi
	case noteManifest:
		to = &f.manifest
	default:
		return nil
	}
	if *to != nil {
		return &ImageError{"notes", "the image has two manifests or two ABI notes"}
	}
	*to = desc
	return nil
}

// decodeABI decodes the content of the ABI1 note.
func decodeABI(desc []byte) (Target, uint32, error) {
	if len(desc) != 16 {
		return 0, 0, &ImageError{"ABI note", fmt.Sprintf("the note has %d bytes instead of 16", len(desc))}
	}
	target := Target(binary.LittleEndian.Uint32(desc[0:]))
	if target < HVT || target > Xen {
		return 0, 0, &ImageError{"ABI note", fmt.Sprintf("there is no target %d", uint32(target))}
	}
	return target, binary.LittleEndian.Uint32(desc[4:]), nil
}
