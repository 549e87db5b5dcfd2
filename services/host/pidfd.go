package host

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"strconv"
	"strings"
	"syscall"
	"time"
	"unsafe"

	"golang.org/x/sys/unix"
)

// process is a unikernel's process, ours or adopted. Its pidfd cannot come to mean another process, so a signal never hits a stranger.
type process struct {
	identity
	fd *os.File
}

// identity names one process of this boot.
type identity struct {
	PID   int
	Start uint64 // in clock ticks after boot, field 22 of /proc/<pid>/stat
	Inode uint64 // of its pidfd, which no other process ever has (Linux 6.9; before that all have the same)
}

// errNotThere reports that a process of a stored pid and start time does not run (any more).
var errNotThere = errors.New("the process is gone")

// openProcess opens the process pid. The caller knows that it is the one it means: a child not yet reaped, or by its identity.
func openProcess(pid int) (*process, error) {
	fd, err := unix.PidfdOpen(pid, unix.PIDFD_NONBLOCK)
	if errors.Is(err, unix.ESRCH) {
		return nil, errNotThere
	}
	if err != nil {
		return nil, fmt.Errorf("open pidfd of %d: %w", pid, err)
	}
	p := &process{identity: identity{PID: pid}, fd: os.NewFile(uintptr(fd), "pidfd")}
	var st unix.Stat_t
	if err := unix.Fstat(fd, &st); err != nil {
		return nil, errors.Join(fmt.Errorf("look at pidfd of %d: %w", pid, err), p.fd.Close())
	}
	p.Inode = st.Ino
	if p.Start, err = startTime(pid); err != nil {
		return nil, errors.Join(err, p.fd.Close())
	}
	return p, nil
}

// adoptProcess opens the process that id names. The error is [errNotThere] if it has ended.
func adoptProcess(id identity) (*process, error) {
	p, err := openProcess(id.PID) // first the pidfd, then the look at what it means: no other order is safe
	if err != nil {
		return nil, err
	}
	if p.identity != id {
		return nil, errors.Join(errNotThere, p.fd.Close())
	}
	return p, nil
}

// startTime reads when the process pid started.
func startTime(pid int) (uint64, error) {
	fields, err := statFields(pid)
	if err != nil {
		return 0, err
	}
	return strconv.ParseUint(fields[22], 10, 64)
}

// statFields reads /proc/<pid>/stat; the fields have their numbers of proc_pid_stat(5), but for the second, which is left out.
func statFields(pid int) ([]string, error) {
	text, err := os.ReadFile("/proc/" + strconv.Itoa(pid) + "/stat")
	if errors.Is(err, unix.ESRCH) || errors.Is(err, fs.ErrNotExist) {
		return nil, errNotThere
	}
	if err != nil {
		return nil, fmt.Errorf("read status of process %d: %w", pid, err)
	}
	return parseStat(string(text))
}

// parseStat splits the text of /proc/<pid>/stat. The second field, the command, is in parentheses and may hold anything.
func parseStat(text string) ([]string, error) {
	end := strings.LastIndexByte(text, ')')
	fields := strings.Fields(text[end+1:])
	if end < 0 || len(fields) < 50 {
		return nil, fmt.Errorf("process status %q is none", text)
	}
	return append([]string{"", "", ""}, fields...), nil
}

// signal sends sig; a process that is gone already is no error.
func (p *process) signal(sig unix.Signal) error {
	raw, err := p.fd.SyscallConn()
	if err != nil {
		return fmt.Errorf("signal process %d: %w", p.PID, err)
	}
	if cerr := raw.Control(func(fd uintptr) { err = unix.PidfdSendSignal(int(fd), sig, nil, 0) }); cerr != nil {
		return nil //nolint:nilerr // it is closed, because the process is gone
	}
	if err != nil && !errors.Is(err, unix.ESRCH) {
		return fmt.Errorf("signal process %d: %w", p.PID, err)
	}
	return nil
}

// wait blocks until the process has ended or ctx has, and tells how it ended. No thread is held meanwhile.
func (p *process) wait(ctx context.Context) (exit, error) {
	stop := context.AfterFunc(ctx, func() { _ = p.fd.SetReadDeadline(time.Unix(1, 0)) })
	defer stop()
	raw, err := p.fd.SyscallConn()
	if err != nil {
		return exit{}, fmt.Errorf("wait for process %d: %w", p.PID, err)
	}
	if err := raw.Read(func(fd uintptr) bool { return polled(fd, unix.POLLIN) }); err != nil {
		return exit{}, fmt.Errorf("wait for process %d: %w", p.PID, err)
	}
	var ws unix.WaitStatus
	for {
		_, err = unix.Wait4(p.PID, &ws, unix.WNOHANG, nil)
		if !errors.Is(err, unix.EINTR) {
			break
		}
	}
	if err == nil {
		return exit{known: true, status: ws}, nil
	}
	return p.foreignExit(ctx, raw), nil // adopted: the child of another process
}

// endsBefore waits for the process to end, at most until then, and reports whether it has.
func (p *process) endsBefore(then time.Time) (ended bool) {
	raw, err := p.fd.SyscallConn()
	if err != nil {
		return false
	}
	_ = raw.Control(func(fd uintptr) { // a closed one has not ended
		fds := []unix.PollFd{{Fd: int32(fd), Events: unix.POLLIN}}
		for {
			n, err := unix.Poll(fds, int(max(0, time.Until(then)).Milliseconds()))
			if !errors.Is(err, unix.EINTR) {
				ended = n > 0 && err == nil
				return
			}
		}
	})
	return ended
}

// reapTime bounds the wait for the parent of an adopted process to collect it; only then does the kernel tell its exit status for sure.
const reapTime = 3 * time.Second

// foreignExit finds out how a process ended that is not our child. Until it is collected its status may be seen in /proc (a zero there
// may also mean that we may not see it); afterwards kernels from 6.15 on tell it by the pidfd. A wait for it ends with ctx.
func (p *process) foreignExit(ctx context.Context, raw syscall.RawConn) exit {
	if fields, err := statFields(p.PID); err == nil && fields[22] == strconv.FormatUint(p.Start, 10) {
		if status, err := strconv.ParseUint(fields[52], 10, 32); err == nil && status != 0 {
			return exit{known: true, status: unix.WaitStatus(status)}
		}
	}
	ctx, cancel := context.WithTimeout(ctx, reapTime)
	defer cancel()
	stop := context.AfterFunc(ctx, func() { _ = p.fd.SetReadDeadline(time.Unix(1, 0)) })
	defer stop()
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
