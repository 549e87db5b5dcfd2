package main

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"net"
	"os"

	"fulmar/albatross"
	"fulmar/albatross/remote"
)

type albatrossCertificateCmd struct {
	File string `arg:"" optional:"" default:"-" help:"What the command is given (an image, or the content of a block device), or where its answer goes (likewise). - is standard input or output."`
}

// errUsed keeps a certificate from being used twice: its command would be carried out again.
var errUsed = errors.New("the certificate carries one command")

// Run has the command of a certificate carried out.
func (c *albatrossCertificateCmd) Run(e *env) error {
	a := &e.cli.Albatross
	if a.Remote == "" || a.Cert == "" || a.Key == "" {
		return errors.New("give the endpoint with --remote, and the certificate of the command with --cert and --key")
	}
	chain, err := remote.LoadCertificates(a.Cert)
	if err != nil {
		return err
	}
	name, command, err := remote.ReadLeaf(chain)
	if err != nil {
		return fmt.Errorf("certificate %s: %w", a.Cert, err)
	}
	roots, err := a.roots(chain)
	if err != nil {
		return err
	}
	pair, err := tls.LoadX509KeyPair(a.Cert, a.Key)
	if err != nil {
		return fmt.Errorf("read certificate and key: %w", err)
	}
	d := c.once(&remote.Endpoint{Address: a.Remote, Roots: roots}, pair, command)
	switch m := command.(type) {
	case albatross.ConsoleSubscribe:
		return e.followDaemon(d, func(ctx context.Context, d *target) error {
			return d.Subscribe(ctx, name, m, func(l albatross.ConsoleLine) error { return e.printLine(l.Name, l.ConsoleData) })
		})
	case albatross.StatsSubscribe:
		return e.followDaemon(d, func(ctx context.Context, d *target) error {
			return d.SubscribeStats(ctx, name, func(about albatross.Name, s albatross.Stats) error {
				return e.printStats(name.Path().Join(about), s)
			})
		})
	case albatross.BlockSet, albatross.BlockDump:
		return explain(c.transfer(e, d, name, command))
	}
	return e.askDaemon(d, func(ctx context.Context, d *target) error { return c.ask(ctx, e, d, name, command) })
}

// once is a daemon that the certificate's command can be given to, and that once.
func (c *albatrossCertificateCmd) once(endpoint *remote.Endpoint, pair tls.Certificate, command albatross.Command) *target {
	used := false
	open := func(ctx context.Context, _ albatross.Name, m albatross.Command) (net.Conn, error) {
		if used {
			return nil, errUsed
		}
		used = true
		conn, err := endpoint.Dial(ctx, pair)
		if err != nil {
			return nil, err
		}
		create, ok := m.(albatross.UnikernelCreate)
		if carried, _ := command.(albatross.UnikernelCreate); ok && len(carried.Config.Image) == 0 {
			return remote.SendImage(ctx, conn, create.Config.Image), nil
		}
		return conn, nil
	}
	return &target{Client: &albatross.Client{Open: open}, endpoint: endpoint}
}

// ask has a command carried out that has one answer.
func (c *albatrossCertificateCmd) ask(ctx context.Context, e *env, d *target, name albatross.Name, command albatross.Command) error {
	switch m := command.(type) {
	case albatross.UnikernelInfo:
		list, err := d.Info(ctx, name)
		return errors.Join(err, e.printRunning(list))
	case albatross.UnikernelGet:
		image, err := d.Image(ctx, name, m)
		if err != nil {
			return err
		}
		return e.writeImage(c.File, image.Compressed, image.Image)
	case albatross.PolicyInfo:
		list, err := d.Policies(ctx, name.Path())
		return errors.Join(err, e.printPolicies(list))
	case albatross.BlockInfo:
		list, err := d.Blocks(ctx, name)
		return errors.Join(err, e.printBlocks(list))
	case albatross.ConsoleListInactive:
		list, err := d.InactiveConsoles(ctx, name.Path())
		for i := range list {
			list[i] = name.Path().Join(list[i])
		}
		return errors.Join(err, e.printNames(list))
	}
	what, err := c.change(ctx, d, name, command)
	if err != nil {
		return err
	}
	return e.done(what, name)
}

// change has a command carried out that changes something, and says what it did.
func (c *albatrossCertificateCmd) change(ctx context.Context, d *target, name albatross.Name, command albatross.Command) (string, error) {
	switch m := command.(type) {
	case albatross.UnikernelCreate:
		if len(m.Config.Image) == 0 {
			var err error
			if m.Config.Image, err = c.image(m.Config.Compressed); err != nil {
				return "", err
			}
		}
		return "created", d.Create(ctx, name, m.Config) // forced, if the certificate says so
	case albatross.UnikernelDestroy:
		return "destroyed", d.Destroy(ctx, name)
	case albatross.UnikernelRestart:
		return "restarted", d.Restart(ctx, name)
	case albatross.BlockAdd:
		return "added block device", d.AddBlock(ctx, name, m)
	case albatross.BlockRemove:
		return "removed block device", d.RemoveBlock(ctx, name)
	}
	return "", fmt.Errorf("a certificate with a %T is not known here", command)
}

// image reads the image that a create is given.
func (c *albatrossCertificateCmd) image(compressed bool) ([]byte, error) {
	image, err := readFileOrStdin(c.File)
	if err != nil {
		return nil, fmt.Errorf("read image: %w", err)
	}
	if !compressed {
		return image, nil
	}
	return albatross.Compress(image, 9)
}

// transfer fills a block device from the file, or dumps it there. A stream that is compressed stays so.
func (c *albatrossCertificateCmd) transfer(e *env, d *target, name albatross.Name, command albatross.Command) error {
	if dump, ok := command.(albatross.BlockDump); ok {
		return e.writeTo(c.File, func(w io.Writer) error {
			if dump.Level == 0 {
				_, err := d.DumpBlock(e.ctx, name, dump, w)
				return err
			}
			return uncompressed(w, func(w io.Writer) error {
				_, err := d.DumpBlock(e.ctx, name, dump, w)
				return err
			})
		})
	}
	from := io.Reader(os.Stdin)
	if c.File != "-" {
		f, err := os.Open(c.File)
		if err != nil {
			return fmt.Errorf("read content: %w", err)
		}
		defer func() { _ = f.Close() }()
		from = f
	}
	set, _ := command.(albatross.BlockSet)
	if err := d.SetBlock(e.ctx, name, set, from); err != nil {
		return err
	}
	return e.done("filled block device", name)
}
