package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"strings"
	"time"

	"fulmar/albatross"
)

// maxUncompressed is the largest image that is fetched.
const maxUncompressed = 1 << 30

// createArgs say what is created.
type createArgs struct {
	Name  string `arg:"" help:"Name: PATH:LABEL, or LABEL."`
	Image string `arg:"" help:"File of the image; - is standard input."`
	resourceFlags
	Force bool `help:"Stop the one that runs by that name first."`
	Level int  `name:"compression-level" default:"-1" placeholder:"0-9" help:"Of the image on its way (default: 6 to another machine, none on this one)."`
}

// config reads the image and says how it is to run.
func (c *createArgs) config(level int) (albatross.Config, error) {
	args, err := c.apply(albatross.Args{Memory: 32, CPUIDs: []int{0}, CPUs: 1})
	if err != nil {
		return albatross.Config{}, err
	}
	image, err := readFileOrStdin(c.Image)
	if err != nil {
		return albatross.Config{}, fmt.Errorf("read image: %w", err)
	}
	if len(image) == 0 {
		return albatross.Config{}, fmt.Errorf("image %s is empty", c.Image)
	}
	if c.Level >= 0 {
		level = c.Level
	}
	if level > 0 {
		if image, err = albatross.Compress(image, level); err != nil {
			return albatross.Config{}, err
		}
	}
	return albatross.Config{Image: image, Compressed: level > 0, Args: args}, nil
}

func readFileOrStdin(file string) ([]byte, error) {
	if file == "-" {
		return io.ReadAll(os.Stdin)
	}
	return os.ReadFile(file)
}

type albatrossCreateCmd struct{ createArgs }

// Run starts a unikernel.
func (c *albatrossCreateCmd) Run(e *env) error {
	return e.ask(func(ctx context.Context, d *target) error {
		name, err := d.one(c.Name)
		if err != nil {
			return err
		}
		level := 0
		if d.endpoint != nil {
			level = 6
		}
		cfg, err := c.config(level)
		if err != nil {
			return err
		}
		create := d.Create
		if c.Force {
			create = d.ForceCreate
		}
		if err := create(ctx, name, cfg); err != nil {
			return err
		}
		return e.done("created", name)
	})
}

type albatrossDestroyCmd struct {
	Name string `arg:"" help:"Name of the unikernel."`
}

// Run stops a unikernel.
func (c *albatrossDestroyCmd) Run(e *env) error {
	return e.ask(func(ctx context.Context, d *target) error {
		name, err := d.one(c.Name)
		if err != nil {
			return err
		}
		if err := d.Destroy(ctx, name); err != nil {
			return err
		}
		return e.done("destroyed", name)
	})
}

type albatrossRestartCmd struct {
	Name string `arg:"" help:"Name of the unikernel."`
	resourceFlags
}

// Run stops a unikernel and starts it again.
func (c *albatrossRestartCmd) Run(e *env) error {
	return e.ask(func(ctx context.Context, d *target) error {
		name, err := d.one(c.Name)
		if err != nil {
			return err
		}
		if err := c.restart(ctx, d, name); err != nil {
			return err
		}
		return e.done("restarted", name)
	})
}

func (c *albatrossRestartCmd) restart(ctx context.Context, d *target, name albatross.Name) error {
	if !c.given() {
		return d.Restart(ctx, name)
	}
	list, err := d.Info(ctx, name)
	if err != nil {
		return err
	}
	if len(list) == 0 {
		return fmt.Errorf("%v does not run", name)
	}
	args, err := c.apply(argsOf(list[0].Info))
	if err != nil {
		return err
	}
	return d.RestartWith(ctx, name, args)
}

type albatrossInfoCmd struct {
	Name string `arg:"" optional:"" help:"Name, or a path that ends in a colon (default: all)."`
}

// Run lists what runs.
func (c *albatrossInfoCmd) Run(e *env) error {
	return e.ask(func(ctx context.Context, d *target) error {
		name, err := d.name(c.Name)
		if err != nil {
			return err
		}
		list, err := d.Info(ctx, name)
		if err != nil {
			return err
		}
		if name.HasLabel() && len(list) == 0 {
			return fmt.Errorf("%v does not run", name)
		}
		return e.printRunning(list)
	})
}

// printRunning prints unikernels.
func (e *env) printRunning(list []albatross.Running) error {
	var rows []string
	for _, r := range list {
		if e.cli.JSON {
			if err := e.printWire(r); err != nil {
				return err
			}
			continue
		}
		var devices []string
		for _, b := range r.Bridges {
			devices = append(devices, fmt.Sprintf("%s:%s@%s", b.UnikernelDevice, b.HostDevice, b.MAC))
		}
		for _, b := range r.Blocks {
			devices = append(devices, fmt.Sprintf("%s:%s", b.UnikernelDevice, b.HostDevice))
		}
		started := "-"
		if r.Started.Unix() > 0 {
			started = r.Started.Local().Format(time.DateTime)
		}
		rows = append(rows, fmt.Sprintf("%s\t%s\t%d MB\t%s\t%s\t%s\t%.12x\t%s", r.Name, numbers(r.CPUIDs), r.Memory, orDash(strings.Join(devices, ",")),
			restarts(r.Fail), started, r.Digest, strings.Join(r.Arguments, " ")))
	}
	if e.cli.JSON {
		return nil
	}
	return e.table("NAME CPUS MEMORY DEVICES RESTART STARTED IMAGE ARGUMENTS", rows)
}

func numbers(list []int) string {
	return orDash(strings.Trim(strings.ReplaceAll(fmt.Sprint(list), " ", ","), "[]"))
}

func orDash(s string) string {
	if s == "" {
		return "-"
	}
	return s
}

// restarts says after which exits a unikernel is started again.
func restarts(f albatross.FailBehaviour) string {
	switch {
	case !f.Restart:
		return "no"
	case len(f.ExitCodes) == 0:
		return "yes"
	}
	return "after " + numbers(f.ExitCodes)
}

type albatrossGetCmd struct {
	Name  string `arg:"" help:"Name of the unikernel."`
	File  string `arg:"" optional:"" default:"-" help:"Where the image goes, uncompressed; - is standard output."`
	Level int    `name:"compression-level" default:"0" placeholder:"0-9" help:"Of the image on its way."`
}

// Run fetches an image.
func (c *albatrossGetCmd) Run(e *env) error {
	return e.ask(func(ctx context.Context, d *target) error {
		name, err := d.one(c.Name)
		if err != nil {
			return err
		}
		image, err := d.Image(ctx, name, albatross.UnikernelGet{Level: c.Level})
		if err != nil {
			return err
		}
		return e.writeImage(c.File, image.Compressed, image.Image)
	})
}

// writeImage writes an image to a file, uncompressed.
func (e *env) writeImage(file string, compressed bool, image []byte) error {
	if compressed {
		var err error
		if image, err = albatross.Uncompress(image, maxUncompressed); err != nil {
			return err
		}
	}
	if file == "-" {
		_, err := e.out.Write(image)
		return err
	}
	if err := os.WriteFile(file, image, 0o644); err != nil {
		return fmt.Errorf("write image: %w", err)
	}
	return nil
}

type albatrossConsoleCmd struct {
	Name  string    `arg:"" help:"Name of the unikernel."`
	Lines int       `short:"n" default:"20" help:"Last lines to print first."`
	Since time.Time `placeholder:"TIME" help:"Print the lines since then first, as 2026-11-22T12:00:00Z."`
}

// Run prints what a unikernel prints.
func (c *albatrossConsoleCmd) Run(e *env) error {
	return e.follow(func(ctx context.Context, d *target) error {
		name, err := d.one(c.Name)
		if err != nil {
			return err
		}
		from := albatross.ConsoleSubscribe{Count: c.Lines}
		if !c.Since.IsZero() {
			from = albatross.ConsoleSubscribe{Since: &c.Since}
		}
		return d.Subscribe(ctx, name, from, func(l albatross.ConsoleLine) error { return e.printLine(l.Name, l.ConsoleData) })
	})
}

// printLine prints a line of a console.
func (e *env) printLine(name albatross.Name, l albatross.ConsoleData) error {
	if e.cli.JSON {
		return e.printWire(albatross.ConsoleLine{Name: name, ConsoleData: l})
	}
	_, err := fmt.Fprintln(e.out, l.Time.Local().Format("15:04:05.000"), l.Line)
	return err
}

type albatrossConsolesCmd struct {
	Path string `arg:"" optional:"" help:"Path that they are in (default: all)."`
}

// Run lists the consoles of what runs no more.
func (c *albatrossConsolesCmd) Run(e *env) error {
	return e.ask(func(ctx context.Context, d *target) error {
		path, err := d.pathOf(c.Path)
		if err != nil {
			return err
		}
		list, err := d.InactiveConsoles(ctx, path)
		if err != nil {
			return err
		}
		for i := range list {
			list[i] = path.Join(list[i])
		}
		return e.printNames(list)
	})
}

func (e *env) printNames(list []albatross.Name) error {
	for _, n := range list {
		if e.cli.JSON {
			if err := e.printJSON(map[string]string{"name": n.String()}); err != nil {
				return err
			}
			continue
		}
		if _, err := fmt.Fprintln(e.out, n); err != nil {
			return err
		}
	}
	return nil
}

type albatrossStatsCmd struct {
	Name  string `arg:"" optional:"" help:"Name, or a path that ends in a colon (default: all)."`
	Count int    `short:"n" help:"End after so many measurements."`
}

// Run prints statistics.
func (c *albatrossStatsCmd) Run(e *env) error {
	return e.follow(func(ctx context.Context, d *target) error {
		name, err := d.name(c.Name)
		if err != nil {
			return err
		}
		n := 0
		err = d.SubscribeStats(ctx, name, func(about albatross.Name, s albatross.Stats) error {
			about = name.Path().Join(about) // daemons name it from there, even if it was asked for alone
			if n++; n == c.Count {
				return errors.Join(e.printStats(about, s), errEnough)
			}
			return e.printStats(about, s)
		})
		return err
	})
}

// printStats prints one measurement on a line.
func (e *env) printStats(name albatross.Name, s albatross.Stats) error {
	if e.cli.JSON {
		return e.printWire(struct {
			Name  albatross.Name
			Stats albatross.Stats
		}{name, s})
	}
	seconds := func(t albatross.Timeval) float64 { return float64(t.Sec) + float64(t.Usec)/1e6 }
	var line strings.Builder
	fmt.Fprintf(&line, "%s  cpu %.2fs user %.2fs system, memory %s at most", name, seconds(s.Rusage.UTime), seconds(s.Rusage.STime),
		bytesOf(float64(s.Rusage.MaxRSS)*float64(os.Getpagesize()))) // pages, where the daemon runs on Linux
	for _, i := range s.Interfaces {
		fmt.Fprintf(&line, ", %s in %d bytes out %d bytes", i.Bridge, i.InputBytes, i.OutputBytes)
	}
	_, err := fmt.Fprintln(e.out, line.String())
	return err
}
