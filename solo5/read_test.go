package solo5

import (
	"bytes"
	"debug/elf"
	"encoding/binary"
	"errors"
	"io"
	"os"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
)

// A file describes an image for a test; the zero value is one that has nothing.
type file struct {
	header   elf.Header64
	progs    []elf.Prog64 // the note segment comes behind them
	notes    []byte
	contents []byte // of the segments, at contentsAt
}

const contentsAt = 0x200

// good returns an image of two segments and the two devices.
func good() file {
	f := file{
		header: elf.Header64{
			Type: uint16(elf.ET_EXEC), Machine: uint16(elf.EM_X86_64), Version: 1,
			Entry: 0x100010, Phoff: headerSize, Phentsize: progHeaderSize, Ehsize: headerSize,
		},
		progs: []elf.Prog64{
			{Type: uint32(elf.PT_LOAD), Flags: 5, Off: contentsAt, Vaddr: 0x100000, Filesz: 0x20, Memsz: 0x1000, Align: 0x1000},
			{Type: uint32(elf.PT_LOAD), Flags: 6, Off: contentsAt + 0x20, Vaddr: 0x101000, Filesz: 0x10, Memsz: 0x2345, Align: 0x1000},
		},
		notes: bytes.Join([][]byte{
			note("OpenBSD\x00", 1, make([]byte, 4)),
			abiNote(SPT, ABIVersion),
			manifestNote(entry("", reservedFirst), entry("service", 2), entry("Disk0", 1)),
		}, nil),
		contents: make([]byte, 0x30),
	}
	copy(f.header.Ident[:], "\x7fELF\x02\x01\x01")
	return f
}

func (f file) bytes() []byte {
	noteAt := uint64(contentsAt + len(f.contents))
	progs := append([]elf.Prog64{}, f.progs...)
	if f.notes != nil {
		progs = append(progs, elf.Prog64{Type: uint32(elf.PT_NOTE), Off: noteAt, Filesz: uint64(len(f.notes)), Align: 4})
	}
	if f.header.Phnum == 0 {
		f.header.Phnum = uint16(len(progs))
	}
	var b bytes.Buffer
	binary.Write(&b, binary.LittleEndian, f.header)
	binary.Write(&b, binary.LittleEndian, progs)
	b.Write(make([]byte, max(0, contentsAt-b.Len())))
	b.Write(f.contents)
	b.Write(f.notes)
	return b.Bytes()
}

func note(name string, kind uint32, desc []byte) []byte {
	pad := func(b []byte) []byte { return append(b, make([]byte, -len(b)&3)...) }
	var b []byte
	b = binary.LittleEndian.AppendUint32(b, uint32(len(name)))
	b = binary.LittleEndian.AppendUint32(b, uint32(len(desc)))
	b = binary.LittleEndian.AppendUint32(b, kind)
	return pad(append(pad(append(b, name...)), desc...))
}

func abiNote(target Target, version uint32) []byte {
	desc := make([]byte, 16)
	binary.LittleEndian.PutUint32(desc, uint32(target))
	binary.LittleEndian.PutUint32(desc[4:], version)
	return note(noteName, noteABI, desc)
}

func manifest(version, count uint32, entries ...[]byte) []byte {
	desc := make([]byte, manifestPad)
	desc = binary.LittleEndian.AppendUint32(desc, version)
	desc = binary.LittleEndian.AppendUint32(desc, count)
	return note(noteName, noteManifest, append(desc, bytes.Join(entries, nil)...))
}

func manifestNote(entries ...[]byte) []byte {
	return manifest(1, uint32(len(entries)), entries...)
}

func entry(name string, kind uint32) []byte {
	e := make([]byte, entrySize)
	copy(e[:entryNameSize], name)
	binary.LittleEndian.PutUint32(e[entryTypeAt:], kind)
	return e
}

func TestReadGoodImage(t *testing.T) {
	b := good().bytes()
	got, err := Read(bytes.NewReader(b), int64(len(b)))
	if err != nil {
		t.Fatal(err)
	}
	want := &Image{
		Target: SPT, ABI: 2, Entry: 0x100010, KernelEnd: 0x104000,
		Segments: []Segment{
			{Addr: 0x100000, MemSize: 0x1000, Offset: contentsAt, FileSize: 0x20, Flags: elf.PF_R | elf.PF_X},
			{Addr: 0x101000, MemSize: 0x2345, Offset: contentsAt + 0x20, FileSize: 0x10, Flags: elf.PF_R | elf.PF_W},
		},
		Devices: []Device{{"service", NetDevice, 1}, {"Disk0", BlockDevice, 2}},
	}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("image (-want +got):\n%s", diff)
	}
}

func TestReadBrokenImage(t *testing.T) {
	abi := abiNote(SPT, ABIVersion)
	reserved := entry("", reservedFirst)
	withEntry := func(e []byte) func(*file) {
		return func(f *file) { f.notes = append(bytes.Clone(abi), manifestNote(reserved, entry("a", 1), e)...) }
	}
	changed := func(e []byte, at int, b byte) []byte {
		e[at] = b
		return e
	}
	tests := map[string]struct {
		change func(*file)
		want   string
	}{
		"no ELF file":                      {func(f *file) { f.header.Ident[0] = 'X' }, "not a Solo5 image: no ELF header"},
		"32 bits":                          {func(f *file) { f.header.Ident[elf.EI_CLASS] = 1 }, "not a Solo5 image: the ELF file is not 64-bit and little-endian"},
		"big-endian":                       {func(f *file) { f.header.Ident[elf.EI_DATA] = 2 }, "not a Solo5 image: the ELF file is not 64-bit and little-endian"},
		"a shared object":                  {func(f *file) { f.header.Type = 3 }, "not a Solo5 image: the ELF file is not a static executable"},
		"another machine":                  {func(f *file) { f.header.Machine = uint16(elf.EM_AARCH64) }, "ELF header: the machine is EM_AARCH64, and only x86-64 is supported"},
		"program headers of another size":  {func(f *file) { f.header.Phentsize = 32 }, "ELF header: a program header has 32 bytes instead of 56"},
		"no program headers":               {func(f *file) { f.progs, f.notes = nil, nil }, "ELF header: there are no program headers"},
		"too many program headers":         {func(f *file) { f.header.Phnum = 129 }, "ELF header: there are 129 program headers, at most 128 are supported"},
		"program headers behind the end":   {func(f *file) { f.header.Phoff = 0x100000 }, "ELF header: the program headers are outside of the file"},
		"program headers that wrap around": {func(f *file) { f.header.Phoff = ^uint64(0) - 8 }, "ELF header: the program headers are outside of the file"},

		"no notes":                     {func(f *file) { f.notes = nil }, "not a Solo5 image: the ELF file has no Solo5 note"},
		"notes of others":              {func(f *file) { f.notes = note("GNU\x00", 1, make([]byte, 16)) }, "not a Solo5 image: the ELF file has no Solo5 note"},
		"a manifest alone":             {func(f *file) { f.notes = manifestNote(reserved) }, "not a Solo5 image: the ELF file has no Solo5 note"},
		"notes behind the end":         {func(f *file) { f.progs[1].Type, f.progs[1].Off = uint32(elf.PT_NOTE), 1<<40 }, "program header 1: the notes are outside of the file"},
		"notes that wrap around":       {func(f *file) { f.progs[1].Type, f.progs[1].Off = uint32(elf.PT_NOTE), ^uint64(0) }, "program header 1: the notes are outside of the file"},
		"too many notes":               {func(f *file) { f.notes = make([]byte, maxNoteSegment+1) }, "program header 2: the notes have 65537 bytes, at most 65536 are supported"},
		"a note longer than its place": {func(f *file) { f.notes[4] = 0xff; f.notes[7] = 0xff; f.notes = f.notes[:28] }, "notes: a note is longer than its segment"},
		"a name longer than its place": {func(f *file) { copy(f.notes, "\xff\xff\xff\xff") }, "notes: a note is longer than its segment"},
		"two ABI notes":                {func(f *file) { f.notes = append(f.notes, abi...) }, "notes: the image has two manifests or two ABI notes"},
		"a short ABI note":             {func(f *file) { f.notes = note(noteName, noteABI, make([]byte, 12)) }, "ABI note: the note has 12 bytes instead of 16"},
		"an unknown target":            {func(f *file) { f.notes = abiNote(7, 1) }, "ABI note: there is no target 7"},

		"no manifest":                   {func(f *file) { f.notes = abi }, "manifest: the image has none"},
		"a short manifest":              {func(f *file) { f.notes = append(bytes.Clone(abi), note(noteName, noteManifest, make([]byte, 8))...) }, "manifest: the note has only 8 bytes"},
		"a manifest of the future":      {func(f *file) { f.notes = append(bytes.Clone(abi), manifest(2, 1, reserved)...) }, "manifest: version 2 is not supported"},
		"no entries":                    {func(f *file) { f.notes = append(bytes.Clone(abi), manifest(1, 0)...) }, "manifest: there are 0 entries instead of 1 to 64"},
		"too many entries":              {func(f *file) { f.notes = append(bytes.Clone(abi), manifest(1, 65)...) }, "manifest: there are 65 entries instead of 1 to 64"},
		"a count that would overflow":   {func(f *file) { f.notes = append(bytes.Clone(abi), manifest(1, 1<<31)...) }, "manifest: there are 2147483648 entries instead of 1 to 64"},
		"fewer entries than it says":    {func(f *file) { f.notes = append(bytes.Clone(abi), manifest(1, 3, reserved)...) }, "manifest: 3 entries do not fill 104 bytes"},
		"more entries than it says":     {func(f *file) { f.notes = append(bytes.Clone(abi), manifest(1, 1, reserved, reserved)...) }, "manifest: 1 entries do not fill 208 bytes"},
		"a device as the first entry":   {func(f *file) { f.notes = append(bytes.Clone(abi), manifestNote(entry("a", 2))...) }, "manifest: entry 0: the first entry is not the reserved one"},
		"a reserved entry with a name":  {func(f *file) { f.notes = append(bytes.Clone(abi), manifestNote(entry("a", reservedFirst))...) }, "manifest: entry 0: the first entry is not the reserved one"},
		"a name that does not end":      {withEntry(entry(strings.Repeat("a", 68), 2)), "manifest: entry 2: name is longer than 67 bytes"},
		"a name with a dash":            {withEntry(entry("a-b", 2)), `manifest: entry 2: name "a-b" has other characters than letters and digits`},
		"a name with a control":         {withEntry(entry("a\n", 2)), `manifest: entry 2: name "a\n" has other characters than letters and digits`},
		"an empty name":                 {withEntry(entry("", 2)), "manifest: entry 2: name is empty"},
		"a name twice":                  {withEntry(entry("a", 1)), `manifest: entry 2: name "a" is that of entry 1`},
		"an unknown type":               {withEntry(entry("b", 3)), "manifest: entry 2: there is no device type 3"},
		"a second reserved entry":       {withEntry(entry("b", reservedFirst)), "manifest: entry 2: there is no device type 1073741824"},
		"a device attached by the file": {withEntry(changed(entry("b", 1), entryAttachedAt, 1)), "manifest: entry 2: the device says that it is attached already"},

		"nothing to load":                  {func(f *file) { f.progs = nil }, "program headers: there is nothing to load"},
		"writable and executable":          {func(f *file) { f.progs[0].Flags = 7 }, "program header 0: the segment is both writable and executable"},
		"too low":                          {func(f *file) { f.progs[0].Vaddr = 0xff000 }, "program header 0: the segment starts at 0xff000, below 0x100000"},
		"in page 0":                        {func(f *file) { f.progs[0].Vaddr = 0 }, "program header 0: the segment starts at 0x0, below 0x100000"},
		"in the boot area":                 {func(f *file) { f.progs[0].Vaddr = bootInfoBase }, "program header 0: the segment starts at 0x11000, below 0x100000"},
		"too high":                         {func(f *file) { f.progs[1].Memsz = 1 << 40 }, "program header 1: the segment ends above 0x10000000000"},
		"an address that wraps around":     {func(f *file) { f.progs[1].Memsz = ^uint64(0) - 0x1000 }, "program header 1: the segment ends above 0x10000000000"},
		"out of order":                     {func(f *file) { f.progs[0], f.progs[1] = f.progs[1], f.progs[0] }, "program header 1: the segment at 0x100000 overlaps the one before, which ends at 0x104000"},
		"two in one page":                  {func(f *file) { f.progs[1].Vaddr = 0x100fff }, "program header 1: the segment at 0x100fff overlaps the one before, which ends at 0x101000"},
		"more in the file than in memory":  {func(f *file) { f.progs[1].Memsz = 0xf }, "program header 1: the segment has 16 bytes in the file and only 15 in memory"},
		"outside of the file":              {func(f *file) { f.progs[1].Off = 1 << 30 }, "program header 1: the segment is outside of the file"},
		"a place in the file that wraps":   {func(f *file) { f.progs[1].Off = ^uint64(0) }, "program header 1: the segment is outside of the file"},
		"an entry point in no segment":     {func(f *file) { f.header.Entry = 0x100fffff }, "ELF header: the entry point 0x100fffff is in no executable segment"},
		"an entry point in data":           {func(f *file) { f.header.Entry = 0x101000 }, "ELF header: the entry point 0x101000 is in no executable segment"},
		"an entry point behind a segment":  {func(f *file) { f.header.Entry, f.progs[0].Filesz, f.progs[0].Memsz = 0x100800, 16, 16 }, "ELF header: the entry point 0x100800 is in no executable segment"},
		"the target is named before flaws": {func(f *file) { f.notes = abiNote(7, 1); f.progs[0].Flags = 7 }, "ABI note: there is no target 7"},
	}
	for name, tt := range tests {
		t.Run(name, func(t *testing.T) {
			f := good()
			tt.change(&f)
			b := f.bytes()
			img, err := Read(bytes.NewReader(b), int64(len(b)))
			if err == nil {
				t.Fatalf("was read: %+v", img)
			}
			if diff := cmp.Diff(tt.want, err.Error()); diff != "" {
				t.Errorf("error (-want +got):\n%s", diff)
			}
			if bad := (*ImageError)(nil); errors.Is(err, ErrNotSolo5) == errors.As(err, &bad) {
				t.Errorf("%v is not one of ErrNotSolo5 and ImageError", err)
			}
		})
	}
}

func TestReadOfEveryLength(t *testing.T) {
	b := good().bytes()
	for n := range b {
		if img, err := Read(bytes.NewReader(b[:n]), int64(n)); err == nil {
			t.Fatalf("the first %d of %d bytes were read: %+v", n, len(b), img)
		}
		// A file that was cut off after its size was asked for.
		img, err := Read(bytes.NewReader(b[:n]), int64(len(b)))
		if err == nil && n < contentsAt {
			t.Fatalf("%d of %d bytes were read: %+v", n, len(b), img)
		}
	}
}

// A disk fails to be read.
type disk struct{}

var errDisk = errors.New("disk on fire")

func (disk) ReadAt([]byte, int64) (int, error) { return 0, errDisk }

func TestReadErrorIsNotTheImages(t *testing.T) {
	_, err := Read(disk{}, 1<<20)
	if bad := (*ImageError)(nil); !errors.Is(err, errDisk) || errors.As(err, &bad) || errors.Is(err, ErrNotSolo5) {
		t.Errorf("got %v", err)
	}
}

func TestOtherTargetsAreNamed(t *testing.T) {
	for target, name := range map[Target]string{
		HVT: "hvt", Virtio: "virtio", Muen: "muen", Genode: "genode", Xen: "xen",
	} {
		f := good()
		f.notes = append(abiNote(target, 1), manifestNote(entry("", reservedFirst))...)
		if target != HVT {
			f.progs[0].Vaddr = 0 // lies as it likes
		}
		b := f.bytes()
		img, err := Read(bytes.NewReader(b), int64(len(b)))
		if err != nil {
			t.Errorf("%s: %v", name, err)
			continue
		}
		want := "the image is for the target " + name + ", not for spt"
		if err := img.CheckTarget(SPT); err == nil || err.Error() != want {
			t.Errorf("%s: got %v", name, err)
		}
	}
}

func TestMinMemory(t *testing.T) {
	tests := map[string]struct {
		image Image
		want  int
	}{
		"heap and stack fit exactly":   {Image{Target: SPT, KernelEnd: 0x180000}, 2},
		"a page more":                  {Image{Target: SPT, KernelEnd: 0x181000}, 3},
		"a small spt image":            {Image{Target: SPT, KernelEnd: 0x101000}, 2},
		"a small hvt image":            {Image{Target: HVT, KernelEnd: 0x101000}, 4},
		"a large hvt image":            {Image{Target: HVT, KernelEnd: 64 << 20}, 65},
		"an image at the upper end":    {Image{Target: SPT, KernelEnd: guestMaxEnd}, guestMaxMB + 1},
		"an image of another platform": {Image{Target: Xen}, 1},
	}
	for name, tt := range tests {
		t.Run(name, func(t *testing.T) {
			if got := tt.image.MinMemory(); got != tt.want {
				t.Errorf("%d MB instead of %d MB", got, tt.want)
			}
		})
	}
	img := Image{Target: SPT, KernelEnd: 0x180000}
	for mb, want := range map[int]string{
		1:              "memory of 1 MB is too small: the image needs at least 2 MB",
		0:              "memory of 0 MB is too small: the image needs at least 2 MB",
		-5:             "memory of -5 MB is too small: the image needs at least 2 MB",
		guestMaxMB + 1: "memory of 1048577 MB is too large: a guest can have at most 1048576 MB",
		2:              "",
		guestMaxMB:     "",
	} {
		got := ""
		if err := img.CheckMemory(mb); err != nil {
			got = err.Error()
		}
		if diff := cmp.Diff(want, got); diff != "" {
			t.Errorf("%d MB (-want +got):\n%s", mb, diff)
		}
	}
}

// A meter counts what is read.
type meter struct {
	io.ReaderAt
	bytes int
}

func (m *meter) ReadAt(b []byte, off int64) (int, error) {
	m.bytes += len(b)
	return m.ReaderAt.ReadAt(b, off)
}

func FuzzRead(f *testing.F) {
	f.Add(good().bytes())
	if exe, err := os.ReadFile("/proc/self/exe"); err == nil {
		f.Add(exe[:512])
	}
	f.Fuzz(func(t *testing.T, b []byte) {
		m := &meter{ReaderAt: bytes.NewReader(b)}
		img, err := Read(m, int64(len(b)))
		if limit := headerSize + maxProgHeaders*(progHeaderSize+maxNoteSegment); m.bytes > limit {
			t.Fatalf("%d bytes were read", m.bytes)
		}
		if err != nil || img.Target != SPT {
			return
		}
		checkInvariants(t, img, int64(len(b)))
	})
}

// checkInvariants checks what the tender relies on.
func checkInvariants(t *testing.T, img *Image, size int64) {
	t.Helper()
	end := uint64(guestMinBase)
	for _, s := range img.Segments {
		start, stop := s.pages()
		if start < end || stop < start || stop > guestMaxEnd || s.Offset+s.FileSize > uint64(size) || s.FileSize > s.MemSize {
			t.Fatalf("segment %+v", s)
		}
		end = stop
	}
	if img.KernelEnd != end {
		t.Fatalf("the kernel ends at %#x instead of %#x", img.KernelEnd, end)
	}
	if len(img.Devices) >= maxEntries {
		t.Fatalf("%d devices", len(img.Devices))
	}
	p := plan{args: []string{"fuzz"}, image: img, memory: uint64(img.MinMemory()) * megabyte, fds: descriptors{trampoline: 3, image: 4, epoll: 5, timer: 6, gate: -1}}
	if _, err := p.spt(); err != nil && !errors.Is(err, errTrampolineFull) {
		t.Fatal(err)
	}
}
