package solo5

import (
	"encoding/binary"
	"slices"

	"golang.org/x/sys/unix"
)

// System calls of x86-64, by number: those of the guest and of the trampoline.
// They are not unix.SYS_*, which are those of the machine that this is built for.
const (
	sysRead           = 0
	sysWrite          = 1
	sysMmap           = 9
	sysMprotect       = 10
	sysPread64        = 17
	sysPwrite64       = 18
	sysFcntl          = 72
	sysSetgroups      = 116
	sysCapset         = 126
	sysPrctl          = 157
	sysArchPrctl      = 158
	sysClockGettime   = 228
	sysExitGroup      = 231
	sysEpollPwait     = 281
	sysTimerfdSettime = 286
	sysSeccomp        = 317
	sysExecveat       = 322
	sysCloseRange     = 436
)

const (
	archSetFS = 0x1002 // of arch_prctl

	// Offsets in struct seccomp_data.
	dataNr   = 0
	dataArch = 4
	dataArgs = 16
)

// A rule allows a system call if all its conditions hold, or refuses it.
type rule struct {
	nr      uint32
	where   []condition
	refusal uint32 // what becomes of the call instead; 0: it is allowed
}

// What becomes of a system call that is not allowed.
const (
	kill        = unix.SECCOMP_RET_KILL_PROCESS
	isUnknown   = unix.SECCOMP_RET_ERRNO | uint32(unix.ENOSYS)
	isForbidden = unix.SECCOMP_RET_ERRNO | uint32(unix.EPERM)
)

// A condition compares an argument, in all its 64 bits.
type condition struct {
	arg     int
	compare comparison
	value   uint64
}

type comparison int

const (
	isEqual  comparison = iota
	isAtMost            // without sign
	hasNone             // of the bits of the value
)

// of is a rule for a call whose first argument is a descriptor, or another small number.
func of(nr uint32, first int, and ...condition) rule {
	return rule{nr: nr, where: append([]condition{{0, isEqual, uint64(first)}}, and...)}
}

// rules returns what a guest of the target spt may do. What a guest does for
// each packet comes first, since the filter is walked from the top.
func (p plan) rules() []rule {
	var list []rule
	for _, tap := range p.descriptorsOf(NetDevice) {
		list = append(list, of(sysRead, tap), of(sysWrite, tap))
	}
	list = append(list,
		of(sysEpollPwait, p.fds.epoll),
		of(sysTimerfdSettime, p.fds.timer),
		of(sysClockGettime, unix.CLOCK_MONOTONIC),
		of(sysClockGettime, unix.CLOCK_REALTIME),
		of(sysWrite, unix.Stdout),
	)
	for _, h := range p.handles(BlockDevice) {
		list = append(list, p.attached[h].transfers()...)
	}
	return append(list, of(sysArchPrctl, archSetFS), rule{nr: sysExitGroup})
}

// transfers returns the rules of a block device: one sector at a time, where
// there is one, so that the guest cannot make the file larger.
func (a attachment) transfers() []rule {
	sector := uint64(a.Sector)
	where := []condition{{2, isEqual, sector}, {3, isAtMost, a.Capacity - sector}, {3, hasNone, sector - 1}}
	return []rule{of(sysPread64, a.FD, where...), of(sysPwrite64, a.FD, where...)}
}

// Instructions of a seccomp program.
const (
	bpfLoad = unix.BPF_LD | unix.BPF_W | unix.BPF_ABS
	bpfJEQ  = unix.BPF_JMP | unix.BPF_JEQ | unix.BPF_K
	bpfJGT  = unix.BPF_JMP | unix.BPF_JGT | unix.BPF_K
	bpfJSET = unix.BPF_JMP | unix.BPF_JSET | unix.BPF_K
	bpfRet  = unix.BPF_RET | unix.BPF_K
)

// filter compiles the rules to a seccomp program. No rule is for what else there
// is: other calls, other arguments, and x32, whose numbers have bit 30 set. The
// calls of other architectures (32-bit ones by int 0x80) kill the process.
func filter(rules []rule, otherwise uint32) []unix.SockFilter {
	program := []unix.SockFilter{
		{Code: bpfLoad, K: dataArch},
		{Code: bpfJEQ, Jt: 1, K: unix.AUDIT_ARCH_X86_64},
		{Code: bpfRet, K: kill},
	}
	for _, r := range rules {
		program = append(program, r.compile()...)
	}
	return append(program, unix.SockFilter{Code: bpfRet, K: otherwise})
}

// compile returns the instructions of a rule. They are made from the last to
// the first, since a condition that does not hold jumps over all that follow.
func (r rule) compile() []unix.SockFilter {
	after := []unix.SockFilter{{Code: bpfRet, K: unix.SECCOMP_RET_ALLOW}}
	if r.refusal != 0 {
		after[0].K = r.refusal
	}
	for _, c := range slices.Backward(r.where) {
		after = append(c.compile(uint8(len(after))), after...)
	}
	return append([]unix.SockFilter{
		{Code: bpfLoad, K: dataNr},
		{Code: bpfJEQ, Jf: uint8(len(after)), K: r.nr},
	}, after...)
}

// compile returns the instructions of a condition, which jump over as many
// after them if it does not hold.
func (c condition) compile(over uint8) []unix.SockFilter {
	at, low, high := uint32(dataArgs+8*c.arg), uint32(c.value), uint32(c.value>>32)
	switch c.compare {
	case isAtMost:
		return []unix.SockFilter{
			{Code: bpfLoad, K: at + 4},
			{Code: bpfJGT, Jt: over + 3, K: high},
			{Code: bpfJEQ, Jf: 2, K: high},
			{Code: bpfLoad, K: at},
			{Code: bpfJGT, Jt: over, K: low},
		}
	case hasNone:
		return []unix.SockFilter{
			{Code: bpfLoad, K: at},
			{Code: bpfJSET, Jt: over + 2, K: low},
			{Code: bpfLoad, K: at + 4},
			{Code: bpfJSET, Jt: over, K: high},
		}
	default:
		return []unix.SockFilter{
			{Code: bpfLoad, K: at},
			{Code: bpfJEQ, Jf: over + 2, K: low},
			{Code: bpfLoad, K: at + 4},
			{Code: bpfJEQ, Jf: over, K: high},
		}
	}
}

// encodeFilter returns the program as the kernel reads it.
func encodeFilter(program []unix.SockFilter) []byte {
	var b []byte
	for _, i := range program {
		b = binary.LittleEndian.AppendUint16(b, i.Code)
		b = append(b, i.Jt, i.Jf)
		b = binary.LittleEndian.AppendUint32(b, i.K)
	}
	return b
}
