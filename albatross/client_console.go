package albatross

import (
	"context"
	"errors"
	"fmt"
)

// ConsoleLine is a line that a unikernel wrote.
type ConsoleLine struct {
	Name Name
	ConsoleData
}

// Subscribe gives the lines of a unikernel to f, the past ones asked for first, until the daemon closes the connection (then it
// returns nil), f returns an error, or the context ends. The unikernel may start later. A daemon drops the oldest of more than
// five subscribers of a unikernel.
func (c *Client) Subscribe(ctx context.Context, name Name, from ConsoleSubscribe, f func(ConsoleLine) error) error {
	if !name.HasLabel() {
		return fmt.Errorf("subscribe to console of %v: %w", name, ErrNoLabel)
	}
	return c.follow(ctx, ConsoleSocket, "subscribe to console of", name, from, func(w Wire) error {
		line, ok := w.Payload.(ConsoleData)
		if !ok {
			return fmt.Errorf("console of %v: %w: %T", name, ErrUnexpected, w.Payload)
		}
		return f(ConsoleLine{Name: w.Name, ConsoleData: line})
	})
}

// SubscribeStats gives the statistics of a unikernel to f as they are gathered, until the daemon closes the connection (then it
// returns nil), f returns an error, or the context ends. A real daemon throws out the subscriber of a name for the next one. The name that f is
// given is seen from the path of the one that was asked for.
func (c *Client) SubscribeStats(ctx context.Context, name Name, f func(Name, Stats) error) error {
	return c.follow(ctx, StatsSocket, "subscribe to statistics of", name, StatsSubscribe{}, func(w Wire) error {
		stats, ok := w.Payload.(Stats)
		if !ok {
			return fmt.Errorf("statistics of %v: %w: %T", name, ErrUnexpected, w.Payload)
		}
		return f(w.Name, stats)
	})
}

// AddStats has a process that is none of the daemon's unikernels watched under a name, for those who subscribe to its statistics. That there is no such
// process is no error.
func (c *Client) AddStats(ctx context.Context, name Name, add StatsAdd) error {
	_, err := c.exchange(ctx, StatsSocket, "add statistics of", name, add)
	return err
}

// RemoveStats ends what AddStats began. That nothing is watched under the name is no error.
func (c *Client) RemoveStats(ctx context.Context, name Name) error {
	_, err := c.exchange(ctx, StatsSocket, "remove statistics of", name, StatsRemove{})
	return err
}

// InactiveConsoles returns the unikernels of a path that do not run and whose lines are still kept, named from there.
func (c *Client) InactiveConsoles(ctx context.Context, path Path) ([]Name, error) {
	reply, err := c.exchange(ctx, ConsoleSocket, "list inactive consoles of", path.Name(), ConsoleListInactive{})
	if err != nil {
		return nil, err
	}
	m, ok := reply.(Consoles)
	if !ok {
		return nil, unexpected("list inactive consoles of", path.Name(), reply)
	}
	return m, nil
}

// follow sends a command and gives what follows the success to f.
func (c *Client) follow(ctx context.Context, socket, what string, name Name, m Command, f func(Wire) error) error {
	k, err := c.open(ctx, socket, what, name, m)
	if err != nil {
		return err
	}
	if _, err = k.reply(); err == nil {
		err = k.stream(f)
	}
	return errors.Join(err, k.Close())
}
