package solo5

import (
	"fmt"
	"time"
	"unsafe"

	"golang.org/x/sys/unix"

	"fulmar/solo5/internal/kvm"
)

// More system calls of x86-64: those of the runtime of Go.
const (
	sysMunmap           = 11
	sysRtSigprocmask    = 14
	sysRtSigreturn      = 15
	sysIoctl            = 16
	sysSchedYield       = 24
	sysMadvise          = 28
	sysNanosleep        = 35
	sysGetpid           = 39
	sysClone            = 56
	sysExit             = 60
	sysSigaltstack      = 131
	sysGettid           = 186
	sysFutex            = 202
	sysSchedGetaffinity = 204
	sysTgkill           = 234
	sysPpoll            = 271
	sysSetRobustList    = 273
	sysRseq             = 334
	sysClone3           = 435
)

// confine takes from the process what is not needed to serve the guest. What it
// had no need of at all, its parent has not let it have.
//
// The program may have goroutines that its packages have started before main,
// and nobody can stop those. So what is not allowed fails, and does not kill the
// process; and what the runtime needs for their timers is there before.
func (m *machine) confine() error {
	time.AfterFunc(time.Hour, func() {}).Stop()
	if err := unix.Close(unix.Stdin); err != nil { // the runtime opens one if there is none
		return fmt.Errorf("close standard input: %w", err)
	}
	for _, s := range ends() {
		if err := endBy(s); err != nil {
			return fmt.Errorf("let %s end the process: %w", unix.SignalName(s), err)
		}
	}
	program := filter(m.rules(unix.Getpid()), isForbidden)
	fprog := unix.SockFprog{Len: uint16(len(program)), Filter: &program[0]}
	_, _, errno := unix.Syscall(unix.SYS_SECCOMP, unix.SECCOMP_SET_MODE_FILTER, unix.SECCOMP_FILTER_FLAG_TSYNC, uintptr(unsafe.Pointer(&fprog)))
	if errno != 0 {
		return fmt.Errorf("put on the filter of system calls: %w", errno)
	}
	return nil
}

// ends returns the signals that are to end the process, without a word of it.
func ends() []unix.Signal {
	return []unix.Signal{
		unix.SIGHUP, unix.SIGINT, unix.SIGQUIT, unix.SIGPIPE, unix.SIGALRM, unix.SIGTERM, unix.SIGUSR1, unix.SIGUSR2,
		unix.SIGXCPU, unix.SIGXFSZ,
	}
}

// endBy makes the kernel end the process by a signal, in whatever it is doing.
// [os/signal] cannot: it makes the runtime do so, which would need more rights.
func endBy(s unix.Signal) error {
	var defaultAction [4]uint64 // struct sigaction of the kernel
	const maskSize = 8
	_, _, errno := unix.RawSyscall6(unix.SYS_RT_SIGACTION, uintptr(s), uintptr(unsafe.Pointer(&defaultAction)), 0, maskSize, 0, 0)
	if errno != 0 {
		return errno
	}
	return nil
}

// rules returns what the process may do from then on: serve the guest, and what
// the runtime of Go does around that, with which one can neither make code nor
// reach anything outside.
func (m *machine) rules(pid int) []rule {
	list := []rule{of(sysIoctl, m.vcpu, condition{1, isEqual, kvm.RequestRun})}
	for _, a := range m.devices {
		if a.Device == NetDevice {
			list = append(list, of(sysRead, a.FD), of(sysWrite, a.FD))
		}
	}
	list = append(list, rule{nr: sysPpoll}, of(sysWrite, unix.Stdout), of(sysWrite, unix.Stderr))
	for _, a := range m.devices {
		if a.Device == BlockDevice {
			within := condition{3, isAtMost, a.Capacity - uint64(a.Sector)}
			list = append(list, of(sysPread64, a.FD, within), of(sysPwrite64, a.FD, within),
				rule{nr: sysWrite, where: []condition{{0, isEqual, uint64(a.FD)}}, refusal: isForbidden}) // nor at its end
		}
	}
	list = append(list,
		of(sysIoctl, m.vcpu, condition{1, isEqual, kvm.RequestGetRegs}),
		rule{nr: sysExitGroup},
	)
	return append(list, runtimeRules(pid)...)
}

// runtimeRules returns what the runtime of Go may do. Little of it happens
// where nothing is allocated and no other goroutine runs.
func runtimeRules(pid int) []rule {
	noCode := condition{2, hasNone, unix.PROT_EXEC}
	const event = 8 // bytes of a write to the runtime's eventfd, whose number is not known
	list := []rule{
		{nr: sysWrite, where: []condition{{2, isEqual, event}}},
		of(sysTgkill, pid),
		{nr: sysMmap, where: []condition{noCode}},
		{nr: sysMprotect, where: []condition{noCode}},
		of(sysPrctl, unix.PR_SET_VMA),
		{nr: sysClone, where: []condition{{0, hasNone, ^uint64(threadFlags)}}},
		{nr: sysClone3, refusal: isUnknown}, // the C library, if it is there, then uses the one above
	}
	for _, nr := range []uint32{
		sysFutex, sysNanosleep, sysSchedYield, sysClockGettime, sysEpollPwait, sysGetpid, sysGettid,
		sysMunmap, sysMadvise, sysExit, sysRtSigreturn, sysRtSigprocmask, sysSigaltstack, sysSetRobustList, sysRseq, sysSchedGetaffinity,
	} {
		list = append(list, rule{nr: nr})
	}
	return list
}

// threadFlags are those with which a thread is made, by Go or by the C library.
const threadFlags = unix.CLONE_VM | unix.CLONE_FS | unix.CLONE_FILES | unix.CLONE_SIGHAND | unix.CLONE_SYSVSEM | unix.CLONE_THREAD |
	unix.CLONE_SETTLS | unix.CLONE_PARENT_SETTID | unix.CLONE_CHILD_CLEARTID | unix.CLONE_CHILD_SETTID
