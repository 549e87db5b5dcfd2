package solo5

import (
	"debug/elf"
	"encoding/binary"
	"fmt"
	"slices"
	"strings"

	"golang.org/x/sys/unix"
)

const maxCommandLine = 8191 // and a NUL

// A plan is all that a process must do to become a guest. It is pure: the
// descriptors are numbers, as the process will have them.
type plan struct {
	image    *Image
	memory   uint64 // bytes
	cmdline  string
	args     []string // of the process; the first one is its name
	attached map[int]attachment
	fds      descriptors
}

// descriptors are the numbers of a process's open files; -1: there is none.
type descriptors struct {
	trampoline, image int
	epoll, timer      int // of a guest of the target spt
	program, kvm      int // of a guest of the target hvt
	gate              int
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

// waitAtGate reads one byte. It comes before all that costs memory, since
// whoever holds the gate has yet to say to which cgroup that is charged. If the
// other end closes without a byte the process ends, and says nothing.
func (p plan) waitAtGate(t *trampoline) {
	if p.fds.gate < 0 {
		return
	}
	// The byte needs a place; the guest's memory is mapped over it afterwards.
	t.call(mapMemory(guestMemBase, pageSize))
	t.call(call{nr: sysRead, args: [6]uint64{uint64(p.fds.gate), guestMemBase, 1}, want: 1})
}

// shareable reports whether the pages of a segment can be those of the sealed
// image itself, so that guests of one image share them and nothing is copied:
// it is not written to, its pages lie in the file as they do in memory, and
// there is nothing to add to them.
func shareable(s Segment) bool {
	return s.Flags&elf.PF_W == 0 && s.FileSize == s.MemSize && s.Offset%pageSize == s.Addr%pageSize
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

// dropRights takes from the process its groups, its capabilities and the way
// to new ones.
func (p plan) dropRights(t *trampoline) {
	// Only a process with the capability for it can drop its groups; one
	// without has those of its user.
	t.call(call{nr: sysSetgroups, any: true})
	header := binary.LittleEndian.AppendUint32(nil, unix.LINUX_CAPABILITY_VERSION_3)
	t.call(call{
		nr: sysCapset, args: [6]uint64{t.put(append(header, 0, 0, 0, 0)), t.put(make([]byte, 24))},
		or: "drop all capabilities",
	})
	t.call(call{nr: sysPrctl, args: [6]uint64{unix.PR_SET_NO_NEW_PRIVS, 1}, or: "set no_new_privs"})

	for _, tap := range p.descriptorsOf(NetDevice) {
		// A guest polls; and Go makes a file blocking when it hands out its number.
		t.call(call{
			nr: sysFcntl, args: [6]uint64{uint64(tap), unix.F_SETFL, unix.O_RDWR | unix.O_NONBLOCK},
			or: fmt.Sprintf("make the tap of descriptor %d non-blocking", tap),
		})
	}
}

// closeAllBut closes all files that are not to be kept.
func closeAllBut(t *trampoline, keep []int) {
	for _, gap := range gaps(keep) {
		t.call(call{nr: sysCloseRange, args: [6]uint64{gap[0], gap[1]}, or: "close what the unikernel does not need (Linux 5.9 is the oldest that can)"})
	}
}

// handles returns those of the devices of a type that are attached, in the
// order of the manifest.
func (p plan) handles(of DeviceType) []int {
	var list []int
	for h, a := range p.attached {
		if a.Device == of {
			list = append(list, h)
		}
	}
	slices.Sort(list)
	return list
}

// descriptorsOf returns the descriptors of the devices of a type, in the order
// of their handles.
func (p plan) descriptorsOf(of DeviceType) []int {
	var list []int
	for _, h := range p.handles(of) {
		list = append(list, p.attached[h].FD)
	}
	return list
}

// descriptors returns those of all devices.
func (p plan) descriptors() []int {
	return append(p.descriptorsOf(NetDevice), p.descriptorsOf(BlockDevice)...)
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
