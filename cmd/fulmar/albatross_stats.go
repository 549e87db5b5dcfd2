package main

import (
	"context"
	"errors"
	"fmt"
	"strings"

	"fulmar/albatross"
)

// errLocalStats is what an endpoint does not do.
var errLocalStats = errors.New("an endpoint watches no other processes: do it on the machine of the daemon")

type albatrossStatsAddCmd struct {
	Name string   `arg:"" help:"Name under which it is told of."`
	PID  int      `arg:"" name:"pid" help:"Its process."`
	Tap  []string `placeholder:"NETIF:TAP" help:"A network interface of it, and the name under which that is told of."`
}

// Run has a process watched.
func (c *albatrossStatsAddCmd) Run(e *env) error {
	add := albatross.StatsAdd{PID: c.PID}
	for _, text := range c.Tap {
		netif, tap, ok := strings.Cut(text, ":")
		if !ok || netif == "" || tap == "" {
			return fmt.Errorf("tap %q: want NETIF:TAP", text)
		}
		add.Taps = append(add.Taps, albatross.Tap{Bridge: netif, Tap: tap})
	}
	return e.stats("watched", c.Name, func(ctx context.Context, d *target, name albatross.Name) error { return d.AddStats(ctx, name, add) })
}

type albatrossStatsRemoveCmd struct {
	Name string `arg:"" help:"Name under which it was told of."`
}

// Run has a process watched no more.
func (c *albatrossStatsRemoveCmd) Run(e *env) error {
	return e.stats("watched no more", c.Name, func(ctx context.Context, d *target, name albatross.Name) error { return d.RemoveStats(ctx, name) })
}

// stats carries out a command for a process that is watched.
func (e *env) stats(what, of string, do func(context.Context, *target, albatross.Name) error) error {
	return e.ask(func(ctx context.Context, d *target) error {
		if d.endpoint != nil {
			return errLocalStats
		}
		name, err := d.one(of)
		if err != nil {
			return err
		}
		if err := do(ctx, d, name); err != nil {
			return err
		}
		return e.done(what, name)
	})
}
