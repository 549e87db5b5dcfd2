package monitor

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"time"

	"golang.org/x/sys/unix"
)

// lookUp is how often a knock without an answer looks whether it should end.
const lookUp = 100 * time.Millisecond

// knock opens a connection to each address and resets it, all at the same time, and says how each ended as soon as it
// has. It does what [tcpProbe] does, for the price of its system calls alone.
func knock(ctx context.Context, to []netip.AddrPort, timeouts []time.Duration, ended func(i int, err error)) {
	begin := time.Now()
	polled := make([]unix.PollFd, len(to))
	left := 0
	for i := range to {
		fd, err := connect(to[i])
		if err != nil {
			ended(i, plain(err))
		} else {
			left++
		}
		polled[i] = unix.PollFd{Fd: int32(fd), Events: unix.POLLOUT}
	}
	for left > 0 {
		_, err := unix.Poll(polled, int(patience(polled, timeouts, time.Since(begin)).Milliseconds())+1)
		if errors.Is(err, unix.EINTR) {
			continue
		}
		spent := time.Since(begin)
		for i := range polled {
			p := &polled[i]
			over := err != nil || ctx.Err() != nil || spent >= timeouts[i]
			if p.Fd < 0 || (p.Revents == 0 && !over) {
				continue
			}
			result := errNoAnswer
			if p.Revents != 0 {
				result = outcome(int(p.Fd))
			}
			_ = unix.Close(int(p.Fd)) // it is reset: nothing can be lost
			p.Fd = -1
			left--
			ended(i, result)
		}
	}
}

// connect begins a connection and gives its socket, or -1.
func connect(to netip.AddrPort) (int, error) {
	fd, err := unix.Socket(unix.AF_INET, unix.SOCK_STREAM|unix.SOCK_NONBLOCK|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return -1, fmt.Errorf("socket: %w", err)
	}
	err = unix.SetsockoptLinger(fd, unix.SOL_SOCKET, unix.SO_LINGER, &unix.Linger{Onoff: 1})
	if err == nil {
		err = unix.Connect(fd, &unix.SockaddrInet4{Port: int(to.Port()), Addr: to.Addr().As4()})
	}
	if err == nil || errors.Is(err, unix.EINPROGRESS) {
		return fd, nil
	}
	return -1, errors.Join(err, unix.Close(fd))
}

// outcome says how a connection ended that was waited for.
func outcome(fd int) error {
	code, err := unix.GetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_ERROR)
	if err != nil {
		return err
	}
	if code != 0 {
		return plain(unix.Errno(code))
	}
	return nil
}

// patience is how long to wait for the next answer, given the time that was spent.
func patience(polled []unix.PollFd, timeouts []time.Duration, spent time.Duration) time.Duration {
	wait := lookUp
	for i := range polled {
		if polled[i].Fd >= 0 {
			wait = min(wait, max(0, timeouts[i]-spent))
		}
	}
	return wait
}
