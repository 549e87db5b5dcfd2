package main

import (
	"context"
	"log/slog"
	"time"

	"golang.org/x/sync/errgroup"

	"fulmar/albatross"
	"fulmar/albatross/influx"
)

// From the end of one subscription to statistics to the next: it doubles as long as none of them tells anything.
const (
	firstSubscribe = time.Second
	lastSubscribe  = 30 * time.Second
)

type albatrossInfluxCmd struct {
	Target     string `arg:"" help:"Where the lines go: HOST[:PORT] (default port 8094), or http(s)://HOST:PORT/write?db=NAME."`
	Name       string `arg:"" optional:"" help:"Name, or a path that ends in a colon (default: all)."`
	NoDropPath bool   `help:"Call unikernels by their full names, not by their labels."`
	Token      string `env:"ALBATROSS_INFLUX_TOKEN" placeholder:"TOKEN" help:"Token of InfluxDB 2, over HTTP."`
}

// Help says what it stands for.
func (*albatrossInfluxCmd) Help() string {
	return `It does what albatross-influx does, with the same measurements and fields, until it is stopped. A real albatross daemon
tells its statistics of a name to one subscriber only, the last: a vmm on the same path is thrown out by it, and has --influx of its own.`
}

// Run sends statistics until the user has seen enough.
func (c *albatrossInfluxCmd) Run(e *env) error {
	log := slog.New(slog.NewTextHandler(e.err, nil))
	sink, err := influx.New(influx.Config{Target: c.Target, Token: c.Token, Log: log})
	if err != nil {
		return err
	}
	d, err := e.cli.Albatross.target()
	if err != nil {
		return err
	}
	name, err := d.name(c.Name)
	if err != nil {
		return err
	}
	g, ctx := errgroup.WithContext(e.ctx)
	g.Go(func() error { return sink.Run(ctx) })
	g.Go(func() error { return c.feed(ctx, log, sink, d, name) })
	return g.Wait()
}

// feed subscribes to statistics again and again until ctx ends.
func (c *albatrossInfluxCmd) feed(ctx context.Context, log *slog.Logger, sink *influx.Sink, d *target, name albatross.Name) error {
	t := time.NewTimer(0)
	defer t.Stop()
	for wait := firstSubscribe; ; wait = min(2*wait, lastSubscribe) {
		select {
		case <-ctx.Done():
			return nil
		case <-t.C:
		}
		told := false
		err := d.SubscribeStats(ctx, name, func(about albatross.Name, s albatross.Stats) error {
			told = true
			sink.Add(c.vm(name, about), s, time.Now())
			return nil
		})
		if ctx.Err() != nil {
			return nil
		}
		if told {
			wait = firstSubscribe
		}
		log.Warn("statistics ended, they are asked for again", "dur", wait, "err", err)
		t.Reset(wait)
	}
}

// vm is what a unikernel is called: its label, or its full name. Daemons name it from the path that was asked for.
func (c *albatrossInfluxCmd) vm(asked, about albatross.Name) string {
	switch {
	case !c.NoDropPath && about.HasLabel():
		return about.Label()
	case asked.HasLabel():
		return asked.String()
	}
	return asked.Path().Join(about).String()
}
