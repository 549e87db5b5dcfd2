package solo5

import (
	"debug/elf"
	"encoding/binary"
	"fmt"
	"maps"
	"slices"
	"strings"

	"golang.org/x/sys/unix"
)

// Layout of a spt guest's memory below the image (Solo5's spt_abi.h).
const (
	guestMemBase   = 0x10000 // what the kernel lets nobody map is not mapped either
	bootInfoBase   = guestMemBase + 0x1000
	bootInfoSize   = 40
	maxCommandLine = 8191 // and a NUL

	timerEvent = 0xfffffffe // data of the timer in the epoll set

	maxRead = 1 << 30 // one read transfers no more than 2 GB
)

// A plan is all that a process must do to become a guest. It is pure: the
// descriptors are numbers, as the process will have them.
type plan struct {
	image    *Image
	memory   uint64 // bytes
	cmdline  string
	name     string // of the process
	attached map[int]attachment
	fds      descriptors
}

// descriptors are the numbers of a process's open files.
type descriptors struct {
	trampoline, image, epoll, timer int
	gate                            int // -1: there is none
}

// with returns the plan with the numbers of the descriptors filled in; taps are
// in the order of the handles.
func (p plan) with(fds descriptors, taps []int) plan {
	p.fds = fds
	p.attached = maps.Clone(p.attached)
	for n, h := range p.handles() {
		a := p.attached[h]
		a.fd = taps[n]
		p.attached[h] = a
	}
	return p
}

// commandLine joins the arguments as the guest gets them.
func commandLine(args []string) (string, error) {
	line := strings.Join(args, " ")
	if len(line) > maxCommandLine {
		return "", mismatch("the arguments have %d bytes, more than the %d that a unikernel can get", len(line), maxCommandLine)
	}
	if strings.ContainsRune(line, 0) {
		return "", mismatch("an argument contains a NUL byte")
	}
	return line, nil
}

// boot returns the contents of the guest's memory from bootInfoBase on.
func (p plan) boot() []byte {
	manifest := encodeManifest(p.image.Devices, p.attached)
	var b []byte
	for _, v := range []uint64{
		p.memory,
		p.image.KernelEnd,
		bootInfoBase + bootInfoSize + uint64(len(manifest)), // the command line
		bootInfoBase + bootInfoSize,                         // the manifest
	} {
		b = binary.LittleEndian.AppendUint64(b, v)
	}
	b = binary.LittleEndian.AppendUint32(b, uint32(p.fds.epoll))
	b = binary.LittleEndian.AppendUint32(b, uint32(p.fds.timer))
	b = append(b, manifest...)
	b = append(b, p.cmdline...)
	return append(b, 0)
}

// trampoline returns the executable that carries the plan out.
func (p plan) trampoline() ([]byte, error) {
	t := &trampoline{}
	if p.fds.gate >= 0 {
		p.waitAtGate(t)
	}
	p.load(t)
	p.confine(t)
	t.jump(p.image.Entry, p.memory-8, bootInfoBase)
	return t.file()
}

// waitAtGate reads one byte. It comes before all that costs memory, since
// whoever holds the gate has yet to say to which cgroup that is charged. If the
// other end closes without a byte the process ends, and says nothing.
func (p plan) waitAtGate(t *trampoline) {
	// The byte needs a place; the guest's memory is mapped over it afterwards.
	t.call(mapMemory(guestMemBase, pageSize))
	t.call(call{nr: sysRead, args: [6]uint64{uint64(p.fds.gate), guestMemBase, 1}, want: 1})
}

// load puts the guest into memory.
func (p plan) load(t *trampoline) {
	name := append([]byte(p.name[:min(len(p.name), 15)]), 0)
	t.call(call{nr: sysPrctl, args: [6]uint64{unix.PR_SET_NAME, t.put(name)}, any: true})

	memory := mapMemory(guestMemBase, p.memory-guestMemBase)
	memory.or = fmt.Sprintf("map %d MB of memory", p.memory/megabyte)
	t.call(memory)

	boot := p.boot()
	t.read(p.fds.trampoline, bootInfoBase, t.put(boot)-trampolineBase, uint64(len(boot)))
	for _, s := range p.image.Segments {
		if shareable(s) {
			p.share(t, s)
		} else {
			p.copy(t, s)
		}
	}
}

// shareable reports whether the pages of a segment can be those of the sealed
// image itself, so that guests of one image share them and nothing is copied:
// it is not written to, its pages lie in the file as they do in memory, and
// there is nothing to add to them.
func shareable(s Segment) bool {
	return s.Flags&elf.PF_W == 0 && s.FileSize == s.MemSize && s.Offset%pageSize == s.Addr%pageSize
}

// share maps a segment from the image.
func (p plan) share(t *trampoline, s Segment) {
	start, end := s.pages()
	t.call(call{
		nr: sysMmap,
		args: [6]uint64{
			start, end - start, protection(s.Flags), unix.MAP_PRIVATE | unix.MAP_FIXED,
			uint64(p.fds.image), s.Offset - s.Offset%pageSize,
		},
		want: start,
		or:   fmt.Sprintf("map the segment at %#x", s.Addr),
	})
}

// copy reads a segment into memory; what the file does not fill stays zero.
func (p plan) copy(t *trampoline, s Segment) {
	start, end := s.pages()
	t.read(p.fds.image, s.Addr, s.Offset, s.FileSize)
	t.call(call{
		nr: sysMprotect, args: [6]uint64{start, end - start, protection(s.Flags)},
		or: fmt.Sprintf("protect the segment at %#x", s.Addr),
	})
}

// mapMemory maps memory that can be read and written.
func mapMemory(addr, size uint64) call {
	return call{
		nr:   sysMmap,
		args: [6]uint64{addr, size, unix.PROT_READ | unix.PROT_WRITE, unix.MAP_PRIVATE | unix.MAP_ANONYMOUS | unix.MAP_FIXED, ^uint64(0), 0},
		want: addr,
	}
}

// read reads size bytes at off of a file to addr, all of them or the guest does not start.
func (t *trampoline) read(fd int, addr, off, size uint64) {
	for size > 0 {
		n := min(size, maxRead)
		t.call(call{
			nr: sysPread64, args: [6]uint64{uint64(fd), addr, n, off}, want: n,
			or: fmt.Sprintf("read %d bytes to %#x", n, addr),
		})
		addr, off, size = addr+n, off+n, size-n
	}
}

// protection returns the PROT_ bits of a segment.
func protection(f elf.ProgFlag) uint64 {
	var prot uint64
	for flag, bit := range map[elf.ProgFlag]uint64{elf.PF_R: unix.PROT_READ, elf.PF_W: unix.PROT_WRITE, elf.PF_X: unix.PROT_EXEC} {
		if f&flag != 0 {
			prot |= bit
		}
	}
	return prot
}

// confine takes from the process what the guest must not have: groups and
// capabilities, open files, and last the system calls.
func (p plan) confine(t *trampoline) {
	// Only a process with the capability for it can drop its groups; one
	// without has those of its user.
	t.call(call{nr: sysSetgroups, any: true})
	header := binary.LittleEndian.AppendUint32(nil, unix.LINUX_CAPABILITY_VERSION_3)
	t.call(call{
		nr: sysCapset, args: [6]uint64{t.put(append(header, 0, 0, 0, 0)), t.put(make([]byte, 24))},
		or: "drop all capabilities",
	})
	t.call(call{nr: sysPrctl, args: [6]uint64{unix.PR_SET_NO_NEW_PRIVS, 1}, or: "set no_new_privs"})

	taps := p.taps()
	for _, tap := range taps {
		// A guest polls; and Go makes a file blocking when it hands out its number.
		t.call(call{
			nr: sysFcntl, args: [6]uint64{uint64(tap), unix.F_SETFL, unix.O_RDWR | unix.O_NONBLOCK},
			or: fmt.Sprintf("make the tap of descriptor %d non-blocking", tap),
		})
	}
	for _, gap := range gaps(append([]int{unix.Stdout, p.fds.epoll, p.fds.timer}, taps...)) {
		t.call(call{nr: sysCloseRange, args: [6]uint64{gap[0], gap[1]}, or: "close what the unikernel does not need (Linux 5.9 is the oldest that can)"})
	}

	program := filter(rules(p.fds.epoll, p.fds.timer, taps))
	fprog := binary.LittleEndian.AppendUint64(nil, uint64(len(program))) // a 16-bit length, padded
	fprog = binary.LittleEndian.AppendUint64(fprog, t.put(encodeFilter(program)))
	t.call(call{nr: sysSeccomp, args: [6]uint64{unix.SECCOMP_SET_MODE_FILTER, 0, t.put(fprog)}})
}

// handles returns those of the network devices, in the order of the manifest.
func (p plan) handles() []int {
	return slices.Sorted(maps.Keys(p.attached))
}

// taps returns the descriptors of the network devices, in the order of their handles.
func (p plan) taps() []int {
	var list []int
	for _, h := range p.handles() {
		list = append(list, p.attached[h].fd)
	}
	return list
}

// gaps returns the ranges of descriptors that are not to be kept.
func gaps(keep []int) [][2]uint64 {
	const last = 1<<32 - 1
	var ranges [][2]uint64
	next := uint64(0)
	for _, fd := range slices.Sorted(slices.Values(keep)) {
		if fd := uint64(fd); fd > next {
			ranges = append(ranges, [2]uint64{next, fd - 1})
		}
		next = uint64(fd) + 1
	}
	return append(ranges, [2]uint64{next, last})
}
