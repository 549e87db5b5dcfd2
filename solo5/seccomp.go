package solo5

import (
	"encoding/binary"

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
	sysCloseRange     = 436
)

const (
	archSetFS = 0x1002 // of arch_prctl

	// Offsets in struct seccomp_data.
	dataNr   = 0
	dataArch = 4
	dataArgs = 16
)

// A rule allows a system call if all its conditions hold.
type rule struct {
	nr    uint32
	where []equal
}

// An equal demands that an argument has a value, in all its 64 bits.
type equal struct {
	arg   int
	value uint64
}

// rules returns what a guest with these descriptors may do. What a guest does
// for each packet comes first, since the filter is walked from the top.
func rules(epoll, timer int, taps []int) []rule {
	first := func(nr uint32, value int) rule { return rule{nr, []equal{{0, uint64(value)}}} }
	var list []rule
	for _, tap := range taps {
		list = append(list, first(sysRead, tap), first(sysWrite, tap))
	}
	return append(list,
		first(sysEpollPwait, epoll),
		first(sysTimerfdSettime, timer),
		first(sysClockGettime, unix.CLOCK_MONOTONIC),
		first(sysClockGettime, unix.CLOCK_REALTIME),
		first(sysWrite, unix.Stdout),
		first(sysArchPrctl, archSetFS),
		rule{nr: sysExitGroup},
	)
}

// filter compiles the rules to a seccomp program that kills the process for
// everything else: other calls, other arguments, the calls of other
// architectures (32-bit ones by int 0x80, and x32, whose numbers have bit 30 set).
func filter(rules []rule) []unix.SockFilter {
	const (
		load = unix.BPF_LD | unix.BPF_W | unix.BPF_ABS
		jeq  = unix.BPF_JMP | unix.BPF_JEQ | unix.BPF_K
		ret  = unix.BPF_RET | unix.BPF_K
	)
	kill := unix.SockFilter{Code: ret, K: unix.SECCOMP_RET_KILL_PROCESS}
	program := []unix.SockFilter{
		{Code: load, K: dataArch},
		{Code: jeq, Jt: 1, K: unix.AUDIT_ARCH_X86_64},
		kill,
	}
	for _, r := range rules {
		// Each test jumps over what is left of its rule: two instructions
		// for each half of an argument, and the return.
		left := uint8(4*len(r.where) + 1)
		program = append(program,
			unix.SockFilter{Code: load, K: dataNr},
			unix.SockFilter{Code: jeq, Jf: left, K: r.nr})
		for _, w := range r.where {
			at := uint32(dataArgs + 8*w.arg)
			program = append(program,
				unix.SockFilter{Code: load, K: at},
				unix.SockFilter{Code: jeq, Jf: left - 2, K: uint32(w.value)},
				unix.SockFilter{Code: load, K: at + 4},
				unix.SockFilter{Code: jeq, Jf: left - 4, K: uint32(w.value >> 32)})
			left -= 4
		}
		program = append(program, unix.SockFilter{Code: ret, K: unix.SECCOMP_RET_ALLOW})
	}
	return append(program, kill)
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
