package remote

import (
	"context"
	"fmt"
	"io"
	"net"
	"sync/atomic"
	"time"

	"fulmar/albatross"
)

// answer has a request carried out by the daemon and relays what it says. The client has been told if there is an error that
// it can be told.
func (s *Server) answer(ctx context.Context, k *client, r Request) error {
	header := albatross.Header{Name: r.Name}
	subscription, socket := false, albatross.VMMDSocket
	switch r.Command.(type) {
	case albatross.ConsoleSubscribe:
		subscription, socket = true, albatross.ConsoleSocket
	case albatross.StatsSubscribe:
		subscription, socket = true, albatross.StatsSocket
	case albatross.ConsoleListInactive:
		socket = albatross.ConsoleSocket
	}
	command, release, err := s.complete(ctx, k, r)
	defer release()
	if err != nil {
		k.fail(header, err)
		k.linger()
		return err
	}
	if !subscription {
		var cancel context.CancelFunc
		ctx, cancel = grace(ctx)
		defer cancel()
	}
	daemon, err := s.dial(ctx, socket)
	if err != nil {
		k.fail(header, err)
		return err
	}
	defer func() { _ = daemon.Close() }()
	stop := context.AfterFunc(ctx, func() {
		_ = daemon.Close()
		if !subscription { // which ends by what the daemon does
			_ = k.Close()
		}
	})
	defer stop()
	if socket == albatross.VMMDSocket {
		if err := addPolicies(daemon, r.Policies, s.cfg.MaxImage); err != nil {
			k.fail(header, err)
			k.linger()
			return err
		}
	}
	if err := send(daemon, albatross.Wire{Header: header, Payload: command}); err != nil {
		return s.explain(k, daemon, header, err)
	}
	switch {
	case subscription:
		return s.relaySubscription(k, daemon)
	case is[albatross.BlockSet](command):
		return s.relayBlock(k, daemon, header)
	case is[albatross.BlockDump](command):
		return s.relayAll(k, daemon, replyTime)
	}
	_ = daemon.SetReadDeadline(time.Now().Add(replyTime))
	return s.relay(k.writer(), daemon)
}

func is[T albatross.Command](m albatross.Command) bool {
	_, ok := m.(T)
	return ok
}

// explain gives the client the daemon's reason not to take all that it was sent, or else the error.
func (s *Server) explain(k *client, daemon net.Conn, to albatross.Header, err error) error {
	_ = daemon.SetReadDeadline(time.Now().Add(lingerTime))
	if s.relay(k.writer(), daemon) != nil {
		k.fail(to, err)
	}
	k.linger()
	return err
}

// grace returns a context that ends some time after ctx.
func grace(ctx context.Context) (context.Context, context.CancelFunc) {
	longer, cancel := context.WithCancel(context.WithoutCancel(ctx))
	stop := context.AfterFunc(ctx, func() {
		timer := time.NewTimer(graceTime)
		defer timer.Stop()
		select {
		case <-timer.C:
			cancel()
		case <-longer.Done():
		}
	})
	return longer, func() { stop(); cancel() }
}

// complete returns the command with what the client sends after it: the image of a create that has none. What it holds until
// release counts towards the budget of all clients.
func (s *Server) complete(ctx context.Context, k *client, r Request) (command albatross.Command, release func(), err error) {
	create, ok := r.Command.(albatross.UnikernelCreate)
	if ok && !r.Name.HasLabel() {
		return nil, func() {}, fmt.Errorf("create %v: %w", r.Name, albatross.ErrNoLabel)
	}
	if !ok || len(create.Config.Image) > 0 {
		return r.Command, func() {}, nil
	}
	stop := context.AfterFunc(ctx, func() { _ = k.Close() })
	defer stop()
	k.paced.expect(s.cfg.speak, minRate)
	image := &budgetReader{r: albatross.NewBlockReader(k), used: &s.images, limit: int64(s.cfg.MaxImage), all: budgetImages * int64(s.cfg.MaxImage)}
	create.Config.Image, err = io.ReadAll(image)
	if err != nil {
		err = fmt.Errorf("read image: %w", err)
	}
	return create, image.release, err
}

// budgetReader reads an image of at most limit bytes, if the images of all clients together stay within their budget.
type budgetReader struct {
	r          io.Reader
	used       *atomic.Int64
	limit, all int64
	read       int64
	taken      int64
}

// Read implements io.Reader.
func (b *budgetReader) Read(p []byte) (int, error) {
	n, err := b.r.Read(p)
	b.read += int64(n)
	if b.read > b.limit {
		return 0, fmt.Errorf("%w: more than %d bytes", ErrTooLarge, b.limit)
	}
	if want := b.read - freeBytes - b.taken; want > 0 {
		b.taken += want
		if b.used.Add(want) > b.all {
			return 0, ErrBusy
		}
	}
	return n, err
}

// release gives back what was taken of the budget.
func (b *budgetReader) release() { b.used.Add(-b.taken) }

// dial connects to a socket of the daemon.
func (s *Server) dial(ctx context.Context, socket string) (net.Conn, error) {
	ctx, cancel := context.WithTimeout(ctx, replyTime)
	defer cancel()
	conn, err := s.daemon.Dial(ctx, socket)
	if err != nil {
		return nil, fmt.Errorf("%w: %w", ErrNoDaemon, err)
	}
	return conn, nil
}

// policyError is a policy that the daemon did not add.
type policyError struct {
	name   albatross.Name
	reason string
}

// Error returns what albatross says then.
func (e *policyError) Error() string {
	return fmt.Sprintf("expected success when adding policy, got: host [unikernel: %v]: command failed %s", e.name, e.reason)
}

// addPolicies adds the policies of a chain. The daemon keeps the connection open for what comes after.
func addPolicies(daemon net.Conn, policies []albatross.NamedPolicy, limit int) error {
	for _, p := range policies {
		if err := send(daemon, albatross.Wire{Header: albatross.Header{Name: p.Name}, Payload: albatross.PolicyAdd{Policy: p.Policy}}); err != nil {
			return fmt.Errorf("add policy of %v: %w", p.Name, err)
		}
		_ = daemon.SetReadDeadline(time.Now().Add(replyTime))
		frame, err := albatross.ReadFrame(daemon, limit)
		if err != nil {
			return fmt.Errorf("%w: add policy of %v: %w", ErrNoDaemon, p.Name, err)
		}
		w, err := albatross.Unmarshal(frame)
		if err != nil {
			return fmt.Errorf("add policy of %v: %w", p.Name, err)
		}
		switch reply := w.Payload.(type) {
		case albatross.Success:
		case albatross.Failure:
			return &policyError{name: p.Name, reason: string(reply)}
		default:
			return fmt.Errorf("add policy of %v: %w: %T", p.Name, albatross.ErrUnexpected, reply)
		}
	}
	return nil
}

// send says something to the daemon.
func send(daemon net.Conn, w albatross.Wire) error {
	der, err := albatross.Marshal(w)
	if err != nil {
		return err
	}
	// A large image takes a daemon that does much at once a while.
	_ = daemon.SetWriteDeadline(time.Now().Add(writeTime + time.Duration(len(der))*time.Second/(1<<20)))
	if err := albatross.WriteFrame(daemon, der); err != nil {
		return fmt.Errorf("%w: %w", ErrNoDaemon, err)
	}
	return nil
}
