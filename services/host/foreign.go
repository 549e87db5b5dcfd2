package host

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"time"

	"golang.org/x/sys/unix"

	"fulmar/albatross"
)

// foreignMax bounds the consoles that are read for others.
const foreignMax = 256

// addConsole reads the console of a unikernel that somebody else runs, such as albatross's daemon: its output is the FIFO of its name in the
// run directory. The name must be no unikernel's of ours. It ends with the last writer of the FIFO, or with host.
func (s *Service) addConsole(name albatross.Name) albatross.Payload {
	if !name.HasLabel() {
		return albatross.Failure("path used instead of name")
	}
	e, unlock := s.lock(name)
	defer unlock()
	if e.inst != nil {
		return albatross.Failure("this console is read already")
	}
	fifo, err := openForeign(s.fifoPath(name))
	if err != nil {
		s.log.Info("could not open a console", "unikernel", name.String(), "err", err)
		return albatross.Failure("opening")
	}
	con, ok := s.consoles.beginForeign(name)
	if !ok {
		_ = fifo.Close()
		return albatross.Failure("this console is read already, or too many are")
	}
	s.watching.Go(func() {
		defer s.consoles.endForeign(con)
		defer func() { _ = fifo.Close() }()
		if err := awaitWriter(s.watchCtx, fifo); err == nil {
			readFIFO(s.watchCtx, fifo, make(chan struct{}), con.add)
		}
	})
	return albatross.Empty{}
}

// openForeign is openFIFO for what is another's, and so may be anything.
func openForeign(path string) (*os.File, error) {
	f, err := openFIFO(path)
	if err != nil {
		return nil, err
	}
	if info, err := f.Stat(); err != nil || info.Mode().Type() != fs.ModeNamedPipe {
		return nil, errors.Join(fmt.Errorf("%s is no fifo", path), err, f.Close())
	}
	return f, nil
}

// awaitWriter waits until somebody has opened the FIFO and written, or has been there: before that a read finds its end.
func awaitWriter(ctx context.Context, fifo *os.File) error {
	stop := context.AfterFunc(ctx, func() { _ = fifo.SetReadDeadline(time.Unix(1, 0)) })
	defer stop()
	raw, err := fifo.SyscallConn()
	if err != nil {
		return err
	}
	return raw.Read(func(fd uintptr) bool { return polled(fd, unix.POLLIN|unix.POLLHUP) })
}

// beginForeign is begin for a console that is read for somebody else, if it is not read yet and there are not too many.
func (c *consoles) beginForeign(name albatross.Name) (*console, bool) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if con := c.byName[name]; c.foreign >= foreignMax || con != nil && !con.idleOrWaited() {
		return nil, false
	}
	c.foreign++
	con := c.get(name)
	con.setActive()
	return con, true
}

// endForeign ends what beginForeign began.
func (c *consoles) endForeign(con *console) {
	con.setEnded(time.Now())
	c.mu.Lock()
	defer c.mu.Unlock()
	c.foreign--
}
