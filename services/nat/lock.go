package nat

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"

	"golang.org/x/sys/unix"
)

// lockName is the abstract socket whose holder acts in a network namespace: abstract names belong to one, and the kernel
// frees them with the process.
const lockName = "@fulmar-nat"

// waitAlone waits until no other nat acts in the network namespace, and gives the lock, which is held until it is closed.
// Those who wait are connected to it, unaccepted, for as long. It gives nil when ctx ends before.
func waitAlone(ctx context.Context, name string, log *slog.Logger) (io.Closer, error) {
	for {
		listener, err := net.Listen("unix", name)
		if err == nil {
			return listener, nil
		}
		if !errors.Is(err, unix.EADDRINUSE) {
			return nil, fmt.Errorf("take the lock of the network namespace: %w", err)
		}
		if err := standby(ctx, name, log); err != nil {
			return nil, err
		}
		if ctx.Err() != nil {
			return nil, nil
		}
	}
}

// standby waits until the holder of the lock is gone, or ctx ends.
func standby(ctx context.Context, name string, log *slog.Logger) error {
	var d net.Dialer
	conn, err := d.DialContext(ctx, "unix", name)
	switch {
	case ctx.Err() != nil, errors.Is(err, unix.ECONNREFUSED): // it is gone already
		return nil
	case err != nil:
		return fmt.Errorf("wait for the lock of the network namespace: %w", err)
	}
	defer conn.Close()
	defer context.AfterFunc(ctx, func() { _ = conn.Close() })()
	log.Warn("another nat acts in this network namespace", "pid", holder(conn))
	_, _ = conn.Read(make([]byte, 1)) // it never says anything: this ends when it ends
	return nil
}

// holder is the process that holds the lock, or 0.
func holder(conn net.Conn) int32 {
	raw, err := conn.(*net.UnixConn).SyscallConn()
	if err != nil {
		return 0
	}
	pid := int32(0)
	err = raw.Control(func(fd uintptr) {
		if cred, err := unix.GetsockoptUcred(int(fd), unix.SOL_SOCKET, unix.SO_PEERCRED); err == nil {
			pid = cred.Pid
		}
	})
	if err != nil {
		return 0
	}
	return pid
}
