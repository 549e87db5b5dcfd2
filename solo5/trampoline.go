package solo5

import (
	"debug/elf"
	"encoding/binary"
	"errors"
)

// A trampoline is an executable that performs a fixed list of system calls and
// then jumps into a guest. Its one segment, far above any guest, is the file
// itself: ELF headers, code, table of calls, and the data that these point to.
// It is readable and executable, and never writable.
//
// A trampoline with a name is an empty one.
type trampoline struct {
	name  string // of the tender, before what is said of an error
	table []byte
	data  []byte
}

// A call is one system call of the table.
type call struct {
	nr   uint64
	args [6]uint64
	want uint64 // the only result that is a success
	any  bool   // every result is one
	or   string // what to say of another result; the trampoline adds the errno
}

const (
	trampolineBase  = 0x200000000000 // above any guest, below what the kernel maps
	trampolineCode  = headerSize + 2*progHeaderSize
	trampolineTable = trampolineCode + len(trampolineText)
	trampolineData  = 0x10000
	callWords       = 10
	endOfTable      = ^uint64(0)
)

// trampolineText is testdata/trampoline.S, assembled. It walks the table, which
// follows it, and jumps into the guest. If a call fails it writes the call's
// message and the errno to standard error and exits with status 1.
const trampolineText = "" +
	"\x48\x8d\x1d\xc9\x00\x00\x00\x48\x8b\x03\x48\x85\xc0\x0f\x88\x8f" +
	"\x00\x00\x00\x48\x8b\x7b\x08\x48\x8b\x73\x10\x48\x8b\x53\x18\x4c" +
	"\x8b\x53\x20\x4c\x8b\x43\x28\x4c\x8b\x4b\x30\x0f\x05\x48\x39\x43" +
	"\x38\x74\x07\x48\x83\x7b\x48\x00\x7d\x06\x48\x83\xc3\x50\xeb\xc7" +
	"\x41\x89\xc4\x41\xf7\xdc\x48\x8b\x53\x48\x48\x85\xd2\x74\x46\x48" +
	"\x8b\x73\x40\xbf\x02\x00\x00\x00\xb8\x01\x00\x00\x00\x0f\x05\x44" +
	"\x89\xe0\xb9\x0a\x00\x00\x00\xbe\x30\x30\x30\x0a\x31\xd2\xf7\xf1" +
	"\xc1\xe2\x10\x01\xd6\x31\xd2\xf7\xf1\xc1\xe2\x08\x01\xd6\x01\xc6" +
	"\x56\x48\x89\xe6\xba\x04\x00\x00\x00\xbf\x02\x00\x00\x00\xb8\x01" +
	"\x00\x00\x00\x0f\x05\xbf\x01\x00\x00\x00\xb8\xe7\x00\x00\x00\x0f" +
	"\x05\xf4\x48\x8b\x63\x08\x48\x8b\x7b\x10\x48\x8b\x43\x18\x31\xdb" +
	"\x31\xc9\x31\xd2\x31\xf6\x31\xed\x45\x31\xc0\x45\x31\xc9\x45\x31" +
	"\xd2\x45\x31\xdb\x45\x31\xe4\xff\xe0\xcc\xcc\xcc\xcc\xcc\xcc\xcc"

var errTrampolineFull = errors.New("the image has more segments and devices than fit into the table of system calls")

// put adds data and returns its address; its offset in the file is that
// address less trampolineBase.
func (t *trampoline) put(b []byte) uint64 {
	t.data = append(t.data, make([]byte, -len(t.data)&7)...)
	addr := trampolineBase + trampolineData + uint64(len(t.data))
	t.data = append(t.data, b...)
	return addr
}

// call adds a system call.
func (t *trampoline) call(c call) {
	var message, length uint64
	switch {
	case c.any:
		length = ^uint64(0)
	case c.or != "":
		text := []byte(t.name + ": " + c.or + ": errno ")
		message, length = t.put(text), uint64(len(text))
	}
	t.words(c.nr, c.args[0], c.args[1], c.args[2], c.args[3], c.args[4], c.args[5], c.want, message, length)
}

func (t *trampoline) words(words ...uint64) {
	for _, w := range words {
		t.table = binary.LittleEndian.AppendUint64(t.table, w)
	}
}

// jump ends the table: the guest starts at entry with this stack pointer and
// this first argument.
func (t *trampoline) jump(entry, stack, arg uint64) {
	t.words(endOfTable, stack, arg, entry)
}

// file returns the executable.
func (t *trampoline) file() ([]byte, error) {
	if trampolineTable+len(t.table) > trampolineData {
		return nil, errTrampolineFull
	}
	f := make([]byte, trampolineData, trampolineData+len(t.data))
	copy(f[trampolineCode:], trampolineText)
	copy(f[trampolineTable:], t.table)
	f = append(f, t.data...)

	header := elf.Header64{
		Type: uint16(elf.ET_EXEC), Machine: uint16(elf.EM_X86_64), Version: uint32(elf.EV_CURRENT),
		Entry: trampolineBase + trampolineCode,
		Phoff: headerSize, Phnum: 2, Phentsize: progHeaderSize, Ehsize: headerSize,
	}
	copy(header.Ident[:], elf.ELFMAG)
	header.Ident[elf.EI_CLASS] = byte(elf.ELFCLASS64)
	header.Ident[elf.EI_DATA] = byte(elf.ELFDATA2LSB)
	header.Ident[elf.EI_VERSION] = byte(elf.EV_CURRENT)
	progs := [2]elf.Prog64{
		{
			Type: uint32(elf.PT_LOAD), Flags: uint32(elf.PF_R | elf.PF_X), Align: pageSize,
			Vaddr: trampolineBase, Paddr: trampolineBase, Filesz: uint64(len(f)), Memsz: uint64(len(f)),
		},
		// Without this one, older kernels make everything readable executable.
		{Type: uint32(elf.PT_GNU_STACK), Flags: uint32(elf.PF_R | elf.PF_W), Align: 16},
	}
	if _, err := binary.Encode(f, binary.LittleEndian, header); err != nil {
		return nil, err
	}
	if _, err := binary.Encode(f[headerSize:], binary.LittleEndian, progs); err != nil {
		return nil, err
	}
	return f, nil
}
