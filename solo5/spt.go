package solo5

import (
	"encoding/binary"
	"fmt"

	"golang.org/x/sys/unix"
)

// Layout of a spt guest's memory below the image (Solo5's spt_abi.h).
const (
	guestMemBase = 0x10000 // what the kernel lets nobody map is not mapped either
	bootInfoBase = guestMemBase + 0x1000
	bootInfoSize = 40

	timerEvent = 0xfffffffe // data of the timer in the epoll set

	maxRead = 1 << 30 // one read transfers no more than 2 GB
)

// spt returns the executable that becomes a guest of the target spt.
func (p plan) spt() ([]byte, error) {
	t := &trampoline{name: "fulmar-spt"}
	p.waitAtGate(t)
	p.load(t)
	p.dropRights(t)
	closeAllBut(t, append(p.descriptors(), unix.Stdout, p.fds.epoll, p.fds.timer))
	confine(t, filter(p.rules(), kill))
	t.jump(p.image.Entry, p.memory-8, bootInfoBase)
	return t.file()
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

// load puts the guest into memory.
func (p plan) load(t *trampoline) {
	name := append([]byte(p.args[0][:min(len(p.args[0]), 15)]), 0)
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

// confine puts the filter on. It comes last.
func confine(t *trampoline, program []unix.SockFilter) {
	fprog := binary.LittleEndian.AppendUint64(nil, uint64(len(program))) // a 16-bit length, padded
	fprog = binary.LittleEndian.AppendUint64(fprog, t.put(encodeFilter(program)))
	t.call(call{nr: sysSeccomp, args: [6]uint64{unix.SECCOMP_SET_MODE_FILTER, 0, t.put(fprog)}})
}
