package solo5

import (
	"debug/elf"
	"encoding/binary"
	"testing"
)

// translate walks the tables as the processor does, and returns where an
// address leads and what may be done there.
func translate(t *testing.T, low, more []byte, addr uint64) (at, flags uint64) {
	t.Helper()
	const address = 1<<52 - pageSize
	read := func(table, index uint64) uint64 {
		if table >= hvtMoreTables {
			return binary.LittleEndian.Uint64(more[table-hvtMoreTables+8*index:])
		}
		return binary.LittleEndian.Uint64(low[table+8*index:])
	}
	all, table := uint64(pageWritable), uint64(hvtPML4)
	var never uint64
	for level := 3; level >= 0; level-- {
		entry := read(table, addr>>(12+9*level)&511)
		if entry&pagePresent == 0 {
			return 0, 0
		}
		all, never = all&entry, never|entry&pageNoExecute
		table = entry & address
		if level == 1 && entry&pageLarge != 0 {
			return table + addr&(largePage-1), pagePresent | all | never
		}
	}
	return table + addr&(pageSize-1), pagePresent | all | never
}

func TestTablesMapMemoryAsTheImageDeclaresIt(t *testing.T) {
	const (
		code  = elf.PF_R | elf.PF_X
		value = elf.PF_R
		data  = elf.PF_R | elf.PF_W
	)
	segment := func(addr, size uint64, flags elf.ProgFlag) Segment {
		return Segment{Addr: addr, MemSize: size, Flags: flags}
	}
	tests := map[string]struct {
		memory   uint64
		segments []Segment
		tables   int // behind the first 2 MB
	}{
		"a small image":                           {4 * megabyte, []Segment{segment(0x100000, 0x1001, code), segment(0x102000, 0x10, value), segment(0x103000, 0x5000, data)}, 0},
		"memory that ends within a large page":    {5 * megabyte, []Segment{segment(0x100000, 0x1000, code)}, 1},
		"code over the border of large pages":     {16 * megabyte, []Segment{segment(0x100000, 0x234567, code), segment(0x335000, 0x1000, data)}, 1},
		"an image of many large pages":            {64 * megabyte, []Segment{segment(0x100000, 20*megabyte, value), segment(0x1600000, 0x1000, code)}, 11},
		"an image that ends with a large page":    {8 * megabyte, []Segment{segment(0x100000, megabyte, code), segment(0x200000, largePage, data)}, 1},
		"a segment that nobody may use":           {8 * megabyte, []Segment{segment(0x100000, 0x1000, code), segment(0x200000, 0x1000, 0)}, 1},
		"all the memory that a guest can have":    {hvtMaxMB * megabyte, []Segment{segment(0x100000, 0x1000, code)}, 0},
		"pages that are not whole, and between":   {8 * megabyte, []Segment{segment(0x100010, 0x10, code), segment(0x105ff0, 0x20, value), segment(0x3ff000, 0x2000, code)}, 2},
		"memory that ends in the last large page": {(hvtMaxMB - 1) * megabyte, []Segment{segment(0x100000, 0x1000, code)}, 1},
	}
	for name, tt := range tests {
		t.Run(name, func(t *testing.T) {
			img := &Image{Segments: tt.segments}
			_, img.KernelEnd = tt.segments[len(tt.segments)-1].pages()
			low, more := tables(img, tt.memory)
			if len(low) != hvtTables || len(more) != tt.tables*pageSize {
				t.Fatalf("%d and %d bytes of tables, and %d tables were expected", len(low), len(more), tt.tables)
			}
			check := func(addr uint64) {
				t.Helper()
				want := uint64(0)
				switch {
				case addr < 0x10000 || addr >= tt.memory:
				case addr < 0x100000:
					want = pagePresent | pageNoExecute
				default:
					want = pagePresent | pageWritable | pageNoExecute
				}
				for _, s := range tt.segments {
					if addr >= s.Addr&^4095 && addr < (s.Addr+s.MemSize+4095)&^4095 {
						want = map[elf.ProgFlag]uint64{code: pagePresent, value: pagePresent | pageNoExecute, data: pagePresent | pageWritable | pageNoExecute, 0: 0}[s.Flags]
					}
				}
				at, flags := translate(t, low, more, addr)
				if flags != want || flags != 0 && at != addr {
					t.Errorf("%#x leads to %#x with %#x instead of %#x", addr, at, flags, want)
				}
			}
			for addr := uint64(0); addr < min(tt.memory+largePage, 32*megabyte); addr += pageSize {
				check(addr + 8)
			}
			for _, addr := range []uint64{tt.memory - 8, tt.memory, tt.memory / 2, tt.memory - megabyte, hvtMaxMB*megabyte - 8, hvtMaxMB * megabyte, 1 << 39, 1 << 46} {
				check(addr)
			}
		})
	}
}

func TestDescriptorsAreTheSegmentsOfTheProcessor(t *testing.T) {
	low, _ := tables(&Image{}, 4*megabyte)
	sregs := longMode()
	for _, s := range []struct {
		selector      uint16
		kind, db, l   uint8
		limit, access uint64
	}{
		{sregs.CS.Selector, sregs.CS.Type, sregs.CS.DB, sregs.CS.L, 0xfffff, 0x90},
		{sregs.DS.Selector, sregs.DS.Type, sregs.DS.DB, sregs.DS.L, 0xfffff, 0x90},
	} {
		d := binary.LittleEndian.Uint64(low[hvtGDT+uint64(s.selector):])
		want := s.limit&0xffff | (s.access|uint64(s.kind))<<40 | s.limit>>16<<48 | uint64(s.l)<<53 | uint64(s.db)<<54 | 1<<55
		if d != want {
			t.Errorf("descriptor %d is %#x instead of %#x", s.selector, d, want)
		}
	}
}

func TestHVTBootInformationFitsBelowTheImage(t *testing.T) {
	img := &Image{}
	attached := map[int]attachment{}
	for n := range maxEntries - 1 {
		img.Devices = append(img.Devices, Device{Name: "d", Type: NetDevice, Handle: n + 1})
		attached[n+1] = attachment{Device: NetDevice, FD: 77}
	}
	boot := hvtBoot(img, 1, 2, attached, string(make([]byte, maxCommandLine)))
	if end := hvtBootInfo + len(boot); end > guestMinBase {
		t.Errorf("it ends at %#x", end)
	}
	if attached[1].FD != 77 {
		t.Error("the devices themselves were changed")
	}
	manifest := boot[hvtBootInfoSize:]
	for n := range maxEntries {
		if fd := binary.LittleEndian.Uint32(manifest[manifestHeader+n*entrySize+entryFDAt:]); fd != 0 {
			t.Errorf("the guest is told of descriptor %d", fd)
		}
	}
}
