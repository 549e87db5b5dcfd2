package main

import (
	"compress/zlib"
	"context"
	"errors"
	"fmt"
	"io"
	"os"

	"golang.org/x/sync/errgroup"

	"fulmar/albatross"
)

type albatrossBlockCmd struct {
	Ls     albatrossBlockLsCmd     `cmd:"" help:"List block devices."`
	Add    albatrossBlockAddCmd    `cmd:"" help:"Make a block device."`
	Set    albatrossBlockSetCmd    `cmd:"" help:"Fill a block device."`
	Dump   albatrossBlockDumpCmd   `cmd:"" help:"Fetch the content of a block device."`
	Remove albatrossBlockRemoveCmd `cmd:"" help:"Remove a block device."`
}

type albatrossBlockLsCmd struct {
	Name string `arg:"" optional:"" help:"Name, or a path that ends in a colon (default: all)."`
}

// Run lists block devices.
func (c *albatrossBlockLsCmd) Run(e *env) error {
	return e.ask(func(ctx context.Context, d *target) error {
		name, err := d.name(c.Name)
		if err != nil {
			return err
		}
		list, err := d.Blocks(ctx, name)
		if err != nil {
			return err
		}
		return e.printBlocks(list)
	})
}

func (e *env) printBlocks(list []albatross.BlockDevice) error {
	var rows []string
	for _, b := range list {
		if e.cli.JSON {
			if err := e.printWire(b); err != nil {
				return err
			}
			continue
		}
		used := "no"
		if b.Active {
			used = "yes"
		}
		rows = append(rows, fmt.Sprintf("%s\t%d MB\t%s", b.Name, b.Size, used))
	}
	if e.cli.JSON {
		return nil
	}
	return e.table("NAME SIZE USED", rows)
}

// blockAddArgs say what is made.
type blockAddArgs struct {
	Name string `arg:"" help:"Name of the block device."`
	Size int    `arg:"" help:"Size in MB."`
}

type albatrossBlockAddCmd struct{ blockAddArgs }

// Run makes a block device.
func (c *albatrossBlockAddCmd) Run(e *env) error {
	return e.ask(func(ctx context.Context, d *target) error {
		name, err := d.one(c.Name)
		if err != nil {
			return err
		}
		if err := d.AddBlock(ctx, name, albatross.BlockAdd{Size: c.Size}); err != nil {
			return err
		}
		return e.done("added block device", name)
	})
}

type albatrossBlockSetCmd struct {
	Name  string `arg:"" help:"Name of the block device."`
	File  string `arg:"" help:"File with the content; - is standard input."`
	Level int    `name:"compression-level" default:"0" placeholder:"0-9" help:"Of the content on its way."`
}

// Run fills a block device.
func (c *albatrossBlockSetCmd) Run(e *env) error {
	from := io.Reader(os.Stdin)
	if c.File != "-" {
		f, err := os.Open(c.File)
		if err != nil {
			return fmt.Errorf("read content: %w", err)
		}
		defer func() { _ = f.Close() }()
		from = f
	}
	return e.transfer(func(ctx context.Context, d *target) error {
		name, err := d.one(c.Name)
		if err != nil {
			return err
		}
		if c.Level == 0 {
			err = d.SetBlock(ctx, name, albatross.BlockSet{}, from)
		} else {
			err = d.setCompressed(ctx, name, from, c.Level)
		}
		if err != nil {
			return err
		}
		return e.done("filled block device", name)
	})
}

// setCompressed fills a block device with a zlib stream.
func (d *target) setCompressed(ctx context.Context, name albatross.Name, from io.Reader, level int) error {
	r, w := io.Pipe()
	z, err := zlib.NewWriterLevel(w, level)
	if err != nil {
		return fmt.Errorf("compress: %w", err)
	}
	var g errgroup.Group
	g.Go(func() error {
		_, err := io.Copy(z, from)
		if err = errors.Join(err, z.Close()); errors.Is(err, io.ErrClosedPipe) {
			err = nil // the other side says why
		}
		return w.CloseWithError(err)
	})
	err = d.SetBlock(ctx, name, albatross.BlockSet{Compressed: true}, r)
	return errors.Join(err, r.Close(), g.Wait())
}

type albatrossBlockDumpCmd struct {
	Name  string `arg:"" help:"Name of the block device."`
	File  string `arg:"" optional:"" default:"-" help:"Where the content goes; - is standard output."`
	Level int    `name:"compression-level" default:"0" placeholder:"0-9" help:"Of the content on its way."`
}

// Run fetches the content of a block device.
func (c *albatrossBlockDumpCmd) Run(e *env) error {
	return e.transfer(func(ctx context.Context, d *target) error {
		name, err := d.one(c.Name)
		if err != nil {
			return err
		}
		return e.writeTo(c.File, func(w io.Writer) error {
			if c.Level == 0 {
				_, err := d.DumpBlock(ctx, name, albatross.BlockDump{}, w)
				return err
			}
			return uncompressed(w, func(w io.Writer) error {
				_, err := d.DumpBlock(ctx, name, albatross.BlockDump{Level: c.Level}, w)
				return err
			})
		})
	})
}

// uncompressed writes to w what the zlib stream holds that f writes.
func uncompressed(w io.Writer, f func(io.Writer) error) error {
	from, to := io.Pipe()
	var g errgroup.Group
	g.Go(func() error {
		z, err := zlib.NewReader(from)
		if err == nil {
			_, err = io.Copy(w, z)
		}
		if err != nil {
			err = fmt.Errorf("uncompress: %w", err)
		}
		_ = from.CloseWithError(err)
		return err
	})
	err := f(to)
	_ = to.CloseWithError(err)
	if werr := g.Wait(); err == nil {
		err = werr
	}
	return err
}

// writeTo has f write to a file, or to standard output. A file that is not written whole is removed.
func (e *env) writeTo(file string, f func(io.Writer) error) error {
	if file == "-" {
		return f(e.out)
	}
	to, err := os.Create(file)
	if err != nil {
		return fmt.Errorf("write content: %w", err)
	}
	if err := errors.Join(f(to), to.Close()); err != nil {
		return errors.Join(err, os.Remove(file))
	}
	return nil
}

type albatrossBlockRemoveCmd struct {
	Name string `arg:"" help:"Name of the block device."`
}

// Run removes a block device.
func (c *albatrossBlockRemoveCmd) Run(e *env) error {
	return e.ask(func(ctx context.Context, d *target) error {
		name, err := d.one(c.Name)
		if err != nil {
			return err
		}
		if err := d.RemoveBlock(ctx, name); err != nil {
			return err
		}
		return e.done("removed block device", name)
	})
}
