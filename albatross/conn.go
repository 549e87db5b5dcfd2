package albatross

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"path/filepath"
	"syscall"
	"time"
)

// The sockets of a daemon, below its run directory.
const (
	VMMDSocket    = "util/vmmd.sock"
	ConsoleSocket = "util/console.sock"
	StatsSocket   = "util/stat.sock"
)

// Between two tries of a dial that the daemon's backlog of one refuses. A create blocks the daemon for some milliseconds.
const (
	firstBackoff = time.Millisecond
	maxBackoff   = 50 * time.Millisecond
)

// conn is one question to a daemon.
type conn struct {
	net.Conn
	ctx    context.Context
	stop   func() bool
	what   string
	header Header
	limit  int
	echoes bool // replies have the header's sequence
}

// Dial connects to one of the sockets in Dir, for those who speak with the daemon themselves, as a relay does. While the daemon
// is busy it is tried again until ctx ends.
func (c *Client) Dial(ctx context.Context, socket string) (net.Conn, error) {
	var d net.Dialer
	for wait := firstBackoff; ; wait = min(2*wait, maxBackoff) {
		nc, err := d.DialContext(ctx, "unix", filepath.Join(c.Dir, socket))
		if !errors.Is(err, syscall.EAGAIN) {
			return nc, err
		}
		timer := time.NewTimer(wait)
		select {
		case <-ctx.Done():
			timer.Stop()
			return nil, fmt.Errorf("%w while %s was busy", context.Cause(ctx), socket)
		case <-timer.C:
		}
	}
}

// open connects and sends a command. If the daemon does not read it all, its reply tells more than the error of the write.
func (c *Client) open(ctx context.Context, socket, what string, name Name, m Command) (*conn, error) {
	k := &conn{ctx: ctx, what: what, header: Header{Sequence: c.sequence.Add(1), Name: name}, limit: c.MaxFrame, echoes: c.Open == nil}
	if k.limit == 0 {
		k.limit = DefaultMaxFrame
	}
	if c.Open != nil {
		var err error
		if k.Conn, err = c.Open(ctx, name, m); err != nil {
			return nil, fmt.Errorf("%s %v: %w", what, name, err)
		}
		k.guard()
		return k, nil
	}
	der, err := Marshal(Wire{Header: k.header, Payload: m})
	if err != nil {
		return nil, err
	}
	if k.Conn, err = c.Dial(ctx, socket); err != nil {
		return nil, fmt.Errorf("dial albatross: %w", err)
	}
	k.guard()
	if err := WriteFrame(k, der); err != nil {
		return nil, errors.Join(k.refusal(err), k.Close())
	}
	return k, nil
}

// guard ends what is read and written when the context ends.
func (k *conn) guard() {
	k.stop = context.AfterFunc(k.ctx, func() { _ = k.SetDeadline(time.Unix(1, 0)) })
}

// Close ends the question.
func (k *conn) Close() error {
	k.stop()
	return k.Conn.Close()
}

// refusal returns the daemon's reason not to read on, if it gave one, or else the error of the write.
func (k *conn) refusal(err error) error {
	var failure *FailureError
	if _, rerr := k.reply(); errors.As(rerr, &failure) {
		return failure
	}
	return k.wrap(err)
}

// wrap tells what failed: the context's end rather than the deadline that it sets, and a connection without an answer as ErrNoReply.
func (k *conn) wrap(err error) error {
	switch {
	case k.ctx.Err() != nil:
		err = context.Cause(k.ctx)
	case errors.Is(err, io.EOF), errors.Is(err, syscall.ECONNRESET), errors.Is(err, syscall.EPIPE):
		err = ErrNoReply
	}
	return fmt.Errorf("%s %v: %w", k.what, k.header.Name, err)
}

// receive reads one message.
func (k *conn) receive() (Wire, error) {
	frame, err := ReadFrame(k, k.limit)
	if err != nil {
		return Wire{}, err
	}
	if len(frame) == 0 {
		return Wire{}, io.EOF
	}
	return Unmarshal(frame)
}

// reply reads the answer to the command: what it says, or a FailureError.
func (k *conn) reply() (Success, error) {
	w, err := k.receive()
	if err != nil {
		return nil, k.wrap(err)
	}
	if k.echoes && w.Sequence != k.header.Sequence {
		return nil, k.wrap(fmt.Errorf("%w: sequence %d, want %d", ErrUnexpected, w.Sequence, k.header.Sequence))
	}
	switch p := w.Payload.(type) {
	case Success:
		return p, nil
	case Failure:
		return nil, &FailureError{Command: k.what, Name: k.header.Name, Message: string(p)}
	}
	return nil, k.wrap(fmt.Errorf("%w: %T", ErrUnexpected, w.Payload))
}

// stream gives what follows the reply to f until the daemon closes, f fails or the context ends.
func (k *conn) stream(f func(Wire) error) error {
	for {
		w, err := k.receive()
		if errors.Is(err, io.EOF) && k.ctx.Err() == nil {
			return nil
		}
		if err != nil {
			return k.wrap(err)
		}
		if err := f(w); err != nil {
			return err
		}
	}
}
