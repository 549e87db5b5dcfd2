package albatross

import (
	"context"
	"errors"
	"fmt"
	"net"
	"strings"
	"sync/atomic"
)

// Client asks the daemons of one run directory. Each call is a connection of its own, so a Client can be used by several
// goroutines. The zero value but for Dir is ready.
//
// A dial that finds the daemon busy is tried again until the context ends. An error is a [*FailureError] if the daemon refused,
// [ErrNoReply] if it closed the connection instead, and the cause of the context's end if that came first: what was asked may
// then have happened or not. "Created" means that a process was started, not that it lives: ask [Client.Info].
type Client struct {
	Dir      string // run directory, which holds util/vmmd.sock and util/console.sock
	MaxFrame int    // largest reply to read, in bytes; 0 means DefaultMaxFrame

	// Open, if set, asks in place of the sockets of Dir, for a daemon that is reached in another way: package remote has one.
	// It returns a connection on which the answer comes, and which takes what follows a [BlockSet]. What sequence the answer
	// has does not matter then.
	Open func(ctx context.Context, name Name, m Command) (net.Conn, error)

	sequence   atomic.Uint64
	generation atomic.Int32 // of the server: 0 while unknown, else one more
}

// Create starts a unikernel. It is [ErrExists] if one of the name runs.
func (c *Client) Create(ctx context.Context, name Name, cfg Config) error {
	return c.create(ctx, "create", name, UnikernelCreate{Config: cfg})
}

// ForceCreate starts a unikernel and stops the one of the name first, if the new one is allowed to run.
func (c *Client) ForceCreate(ctx context.Context, name Name, cfg Config) error {
	return c.create(ctx, "force create", name, UnikernelCreate{Config: cfg, Force: true})
}

func (c *Client) create(ctx context.Context, what string, name Name, m UnikernelCreate) error {
	m.Config.CPUs = max(m.Config.CPUs, 1)
	_, err := c.negotiate(ctx, what, name, func(g Generation) Command {
		m.Generation = g
		return m
	})
	return err
}

// Destroy stops a unikernel. It is [ErrNotFound] if none of the name runs or waits to be started again, but daemons answer one more destroy of
// what was stopped with a success.
func (c *Client) Destroy(ctx context.Context, name Name) error {
	_, err := c.ask(ctx, "destroy", name, UnikernelDestroy{})
	return err
}

// Restart stops a unikernel and starts it again with the arguments that it had. It is [ErrNotFound] if none of the name runs.
func (c *Client) Restart(ctx context.Context, name Name) error {
	return c.restart(ctx, name, func(g Generation) Command { return UnikernelRestart{Generation: g} })
}

// RestartWith stops a unikernel and starts it again with other arguments. If the policy does not allow them a real daemon
// finds out too late, and the unikernel stays stopped.
func (c *Client) RestartWith(ctx context.Context, name Name, args Args) error {
	args.CPUs = max(args.CPUs, 1)
	return c.restart(ctx, name, func(g Generation) Command { return UnikernelRestart{Args: &args, Generation: g} })
}

// restart tells a success from the one that a daemon answers when nothing runs, once after a unikernel was stopped.
func (c *Client) restart(ctx context.Context, name Name, command func(Generation) Command) error {
	reply, err := c.negotiate(ctx, "restart", name, command)
	if text, ok := reply.(Text); ok && strings.HasPrefix(string(text), "destroyed: ") {
		return fmt.Errorf("restart %v: %w", name, ErrNotFound)
	}
	return err
}

// Info returns the unikernel of a name, or all that run in a path and below, by their full names. That nothing runs is no error.
func (c *Client) Info(ctx context.Context, name Name) ([]Running, error) {
	reply, err := c.negotiate(ctx, "info", name, func(g Generation) Command { return UnikernelInfo{Generation: g} })
	if err != nil {
		return nil, err
	}
	m, ok := reply.(Unikernels)
	if !ok {
		return nil, unexpected("info", name, reply)
	}
	if !name.HasLabel() {
		for i := range m.List { // a daemon answers with names relative to the path that was asked for
			m.List[i].Name = name.Path().Join(m.List[i].Name)
		}
	}
	return m.List, nil
}

// Image returns the image of a unikernel, compressed if the level is not 0.
func (c *Client) Image(ctx context.Context, name Name, get UnikernelGet) (Image, error) {
	reply, err := c.ask(ctx, "get", name, get)
	if err != nil {
		return Image{}, err
	}
	m, ok := reply.(Image)
	if !ok {
		return Image{}, unexpected("get", name, reply)
	}
	return m, nil
}

// Speaks returns the generation of the server, and false as long as nothing has shown that it is older than [V5].
func (c *Client) Speaks() (Generation, bool) {
	g := c.generation.Load()
	return Generation(max(g-1, 0)), g > 0
}

// Speak sets the generation of the server, for those that cannot be asked. It is corrected if it turns out to be wrong.
func (c *Client) Speak(g Generation) { c.generation.Store(int32(g) + 1) }

// ask sends a command for one unikernel to vmmd and returns the success.
func (c *Client) ask(ctx context.Context, what string, name Name, m Command) (Success, error) {
	switch m.(type) {
	case UnikernelCreate, UnikernelDestroy, UnikernelRestart, UnikernelGet:
		if !name.HasLabel() {
			return nil, fmt.Errorf("%s %v: %w", what, name, ErrNoLabel)
		}
	}
	return c.exchange(ctx, VMMDSocket, what, name, m)
}

// exchange sends a command and returns the one reply.
func (c *Client) exchange(ctx context.Context, socket, what string, name Name, m Command) (Success, error) {
	k, err := c.open(ctx, socket, what, name, m)
	if err != nil {
		return nil, err
	}
	reply, err := k.reply()
	return reply, errors.Join(err, k.Close())
}

// negotiate sends a command in the form that the server understands. An older one closes the connection on a newer form; so
// does one that ends, and one that has been replaced by a newer one may fail in any way: then it is asked again what it speaks.
func (c *Client) negotiate(ctx context.Context, what string, name Name, command func(Generation) Command) (Success, error) {
	g, _ := c.Speaks()
	reply, err := c.ask(ctx, what, name, command(g))
	if err == nil || ctx.Err() != nil || g == V5 && !errors.Is(err, ErrNoReply) {
		return reply, err
	}
	spoken, lerr := c.learn(ctx, name)
	if lerr != nil || spoken == g {
		return nil, err
	}
	return c.ask(ctx, what, name, command(spoken))
}

// learn finds the newest generation that the server answers to. It looks twice: a daemon that ended and was started again while
// it was asked seems to know less than it does.
func (c *Client) learn(ctx context.Context, name Name) (Generation, error) {
	spoken := V2
	for range 2 {
		g, err := c.newest(ctx, name)
		if err != nil {
			return V5, err
		}
		spoken = min(spoken, g)
	}
	c.Speak(spoken)
	return spoken, nil
}

// newest asks from the newest generation to the oldest until there is an answer, by a command that changes nothing.
func (c *Client) newest(ctx context.Context, name Name) (Generation, error) {
	for g := V5; g <= V2; g++ {
		_, err := c.ask(ctx, "info", name, UnikernelInfo{Generation: g})
		var failure *FailureError
		if err == nil || errors.As(err, &failure) {
			return g, nil
		}
		if !errors.Is(err, ErrNoReply) {
			return V5, err
		}
	}
	return V5, fmt.Errorf("learn what the daemon speaks: %w", ErrNoReply)
}

func unexpected(what string, name Name, reply Success) error {
	return fmt.Errorf("%s %v: %w: %T", what, name, ErrUnexpected, reply)
}
