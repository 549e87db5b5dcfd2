package host

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"strconv"
	"time"
	"unsafe"

	"golang.org/x/sys/unix"
)

// process is a unikernel's process, ours or adopted. Its pidfd cannot come to mean another process, so a signal never hits a stranger.
type process struct {
	pid   int
	start uint64 // ticks after boot, field 22 of /proc/<pid>/stat: with the pid it names one process of this boot
	fd    *os.File
}

// errNotThere reports that a process of a stored pid and start time does not run (any more).
var errNotThere = errors.New("the process is gone")

// openProcess opens the process pid. The caller knows that it is the one it means: a child not yet reaped, or by its start time.
func openProcess(pid int) (*process, error) {
	fd, err := unix.PidfdOpen(pid, unix.PIDFD_NONBLOCK)
	if errors.Is(err, unix.ESRCH) {
		return nil, errNotThere
	}
	if err != nil {
		return nil, fmt.Errorf("open pidfd of %d: %w", pid, err)
	}
	p := &process{pid: pid, fd: os.NewFile(uintptr(fd), "pidfd")}
	if p.start, err = startTime(pid); err != nil {
		return nil, errors.Join(err, p.fd.Close())
	}
	return p, nil
}

// adoptProcess opens the process pid if it is still the one that started at start.
func adoptProcess(pid int, start uint64) (*process, error) {
	p, err := openProcess(pid) // first the pidfd, then the look at what it means: no other order is safe
	if errors.Is(err, os.ErrNotExist) {
		return nil, errNotThere
	}
	if err != nil {
		return nil, err
	}
	if p.start != start {
		return nil, errors.Join(errNotThere, p.fd.Close())
	}
	return p, nil
}

// startTime reads when the process pid started, in clock ticks after boot.
func startTime(pid int) (uint64, error) {
	stat, err := os.ReadFile("/proc/" + strconv.Itoa(pid) + "/stat")
	if errors.Is(err, unix.ESRCH) {
		return 0, errNotThere
	}
	if err != nil {
		return 0, fmt.Errorf("read start time of process %d: %w", pid, err)
	}
	return parseStartTime(stat)
}

// parseStartTime finds field 22 in the text of /proc/<pid>/stat. The command name, field 2, is in parentheses and may hold anything.
func parseStartTime(stat []byte) (uint64, error) {
	end := bytes.LastIndexByte(stat, ')')
	fields := bytes.Fields(stat[end+1:])
	if end < 0 || len(fields) < 20 {
		return 0, fmt.Errorf("process status %q has no start time", stat)
	}
	start, err := strconv.ParseUint(string(fields[19]), 10, 64)
	if err != nil {
		return 0, fmt.Errorf("parse start time: %w", err)
	}
	return start, nil
}

// signal sends sig; a process that is gone already is no error.
func (p *process) signal(sig unix.Signal) error {
	raw, err := p.fd.SyscallConn()
	if err != nil {
		return fmt.Errorf("signal process %d: %w", p.pid, err)
	}
	var serr error
	err = raw.Control(func(fd uintptr) { serr = unix.PidfdSendSignal(int(fd), sig, nil, 0) })
	if errors.Is(serr, unix.ESRCH) || errors.Is(err, os.ErrClosed) {
		return nil
	}
	if err = errors.Join(err, serr); err != nil {
		return fmt.Errorf("signal process %d: %w", p.pid, err)
	}
	return nil
}

// wait blocks until the process has ended or ctx has, and tells how it ended. No thread is held meanwhile.
func (p *process) wait(ctx context.Context) (exit, error) {
	stop := context.AfterFunc(ctx, func() { _ = p.fd.SetReadDeadline(time.Unix(1, 0)) })
	defer stop()
	raw, err := p.fd.SyscallConn()
	if err != nil {
		return exit{}, fmt.Errorf("wait for process %d: %w", p.pid, err)
	}
	if err := raw.Read(func(fd uintptr) bool { return polled(fd, unix.POLLIN) }); err != nil {
		return exit{}, fmt.Errorf("wait for process %d: %w", p.pid, err)
	}
	var ws unix.WaitStatus
	for {
		_, err = unix.Wait4(p.pid, &ws, unix.WNOHANG, nil)
		if !errors.Is(err, unix.EINTR) {
			break
		}
	}
	if err == nil {
		return exit{known: true, status: ws}, nil
	}
	return p.foreignExit(raw), nil // adopted: the child of another process
}

// reapTime bounds the wait for the parent of an adopted process to collect it; only then does the kernel tell its exit status.
const reapTime = 200 * time.Millisecond

// foreignExit asks the kernel (6.15 or newer) how a process ended that is not our child.
func (p *process) foreignExit(raw interface {
	Control(func(uintptr)) error
	Read(func(uintptr) bool) error
},
) exit {
	_ = p.fd.SetReadDeadline(time.Now().Add(reapTime))
	_ = raw.Read(func(fd uintptr) bool { return polled(fd, unix.POLLHUP) }) // late is no error: then the status is unknown
	var e exit
	_ = raw.Control(func(fd uintptr) { e = pidfdExit(fd) })
	return e
}

// polled says whether one of the events is there, without blocking.
func polled(fd uintptr, events int16) bool {
	fds := []unix.PollFd{{Fd: int32(fd), Events: events}}
	n, err := unix.Poll(fds, 0)
	return n > 0 && err == nil && fds[0].Revents&events != 0
}

// pidfdInfo is struct pidfd_info, version 0 (include/uapi/linux/pidfd.h).
type pidfdInfo struct {
	mask, cgroupID                                                    uint64
	pid, tgid, ppid, ruid, rgid, euid, egid, suid, sgid, fsuid, fsgid uint32
	exitCode                                                          int32
}

const (
	pidfdGetInfo  = 0xc040ff0b // _IOWR(0xff, 11, struct pidfd_info)
	pidfdInfoExit = 1 << 3     // PIDFD_INFO_EXIT
)

// pidfdExit reads the exit status from a pidfd of a collected process.
func pidfdExit(fd uintptr) exit {
	info := pidfdInfo{mask: pidfdInfoExit}
	_, _, errno := unix.Syscall(unix.SYS_IOCTL, fd, pidfdGetInfo, uintptr(unsafe.Pointer(&info)))
	if errno != 0 || info.mask&pidfdInfoExit == 0 {
		return exit{}
	}
	return exit{known: true, status: unix.WaitStatus(info.exitCode)}
}

// bootID names this boot of the machine.
func bootID() (string, error) {
	id, err := os.ReadFile("/proc/sys/kernel/random/boot_id")
	if err != nil {
		return "", fmt.Errorf("read boot id: %w", err)
	}
	return string(bytes.TrimSpace(id)), nil
}
