package host

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"time"

	"golang.org/x/sys/unix"
	"golang.org/x/time/rate"
)

const (
	fifoSize     = 256 << 10 // bytes that a unikernel can write while nobody reads
	consoleRate  = 1 << 20   // bytes a second that are read of one console
	consoleBurst = fifoSize  // and at once
)

// makeFIFO makes the FIFO that is a unikernel's standard output and opens the unikernel's end.
//
// That end is open for reading too, so writing never raises SIGPIPE while host is down; and it is non-blocking, so a full FIFO
// (a flood, or a long time without host) makes the unikernel lose lines and never waits. What was written and not read when the
// unikernel ends while host is down is lost too.
func makeFIFO(path string) (*os.File, error) {
	if err := os.Remove(path); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return nil, fmt.Errorf("remove old fifo: %w", err)
	}
	if err := unix.Mkfifo(path, 0o600); err != nil {
		return nil, fmt.Errorf("make fifo %s: %w", path, err)
	}
	fd, err := unix.Open(path, unix.O_RDWR|unix.O_NONBLOCK|unix.O_CLOEXEC, 0)
	if err != nil {
		return nil, errors.Join(fmt.Errorf("open fifo: %w", err), os.Remove(path))
	}
	_, _ = unix.FcntlInt(uintptr(fd), unix.F_SETPIPE_SZ, fifoSize) // smaller is no error: lines are lost sooner
	return os.NewFile(uintptr(fd), path), nil
}

// openFIFO opens the reading end. The unikernel's end is open already, or its process is adopted.
func openFIFO(path string) (*os.File, error) {
	fd, err := unix.Open(path, unix.O_RDONLY|unix.O_NONBLOCK|unix.O_CLOEXEC, 0)
	if err != nil {
		return nil, fmt.Errorf("open fifo %s: %w", path, err)
	}
	return os.NewFile(uintptr(fd), path), nil
}

// readFIFO hands every line to add until the unikernel has ended or ctx has. Ended is closed when the process is gone: what it left is
// then read without a bound on the rate.
func readFIFO(ctx context.Context, fifo *os.File, ended <-chan struct{}, add func(line)) {
	stop := context.AfterFunc(ctx, func() { _ = fifo.SetReadDeadline(time.Unix(1, 0)) })
	defer stop()
	limit := rate.NewLimiter(consoleRate, consoleBurst)
	var lines splitter
	buf := make([]byte, 16<<10)
	for {
		n, err := fifo.Read(buf)
		now := time.Now()
		for _, l := range lines.split(buf[:n], now) {
			add(l)
		}
		if err != nil {
			if errors.Is(err, io.EOF) {
				for _, l := range lines.flush(now) {
					add(l)
				}
			}
			return
		}
		throttle(ctx, limit, n, ended)
	}
}

// throttle waits until n more bytes may be read, but not after ended or ctx.
func throttle(ctx context.Context, limit *rate.Limiter, n int, ended <-chan struct{}) {
	delay := limit.ReserveN(time.Now(), n).Delay()
	if delay == 0 {
		return
	}
	timer := time.NewTimer(delay)
	defer timer.Stop()
	select {
	case <-timer.C:
	case <-ended:
	case <-ctx.Done():
	}
}
