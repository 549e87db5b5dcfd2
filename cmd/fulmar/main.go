// Command fulmar is Fulmar's command line, and with `fulmar up` the whole of Fulmar in one process.
package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/signal"
	"syscall"

	"github.com/alecthomas/kong"
	"github.com/nats-io/nats.go"

	"fulmar/bus"
	"fulmar/solo5"
)

// cli is every command with its flags.
type cli struct {
	NATS  string `name:"nats" env:"NATS_URL" default:"nats://127.0.0.1:4222" help:"Bus to connect to."`
	Creds string `name:"creds" env:"NATS_CREDS" help:"File with the NATS credentials."`
	JSON  bool   `name:"json" help:"Print JSON, one object a line, for programs."`

	Up         upCmd         `cmd:"" help:"Run the bus, the host and all services in this process."`
	Bus        busCmd        `cmd:"" help:"Run the bus alone, for services that run each in its own process."`
	Deploy     deployCmd     `cmd:"" help:"Deploy new content of a stack and follow it until it is published."`
	Promote    promoteCmd    `cmd:"" help:"Publish what is staged."`
	Rollback   rollbackCmd   `cmd:"" help:"Publish the previous content again."`
	Renew      renewCmd      `cmd:"" help:"Replace every instance of the live content by a fresh one."`
	Discard    discardCmd    `cmd:"" help:"Take down what is staged."`
	Retire     retireCmd     `cmd:"" help:"Take a stack out of service."`
	Ps         psCmd         `cmd:"" help:"List the stacks and their instances."`
	Describe   describeCmd   `cmd:"" help:"Say everything about one stack."`
	Events     eventsCmd     `cmd:"" help:"Print what happened."`
	Logs       logsCmd       `cmd:"" help:"Print the console of a stack's instances."`
	Watch      watchCmd      `cmd:"" help:"List, pause and resume the following of sources."`
	Stats      statsCmd      `cmd:"" help:"Print what instances use: CPU, memory and network."`
	Network    networkCmd    `cmd:"" help:"List, add and remove networks."`
	Lease      leaseCmd      `cmd:"" help:"List the leases of addresses."`
	GC         gcCmd         `cmd:"" name:"gc" help:"Sweep the hosts, or say what a sweep would do."`
	Decode     decodeCmd     `cmd:"" help:"Read one message or record from standard input and print it as JSON; for nats sub --translate."`
	Wire       wireCmd       `cmd:"" help:"Read and write messages of albatross's protocol, for debugging a daemon."`
	Albatross  albatrossCmd  `cmd:"" help:"Manage unikernels of an albatross daemon or a Fulmar host directly, here or on another machine."`
	Completion completionCmd `cmd:"" help:"Print the completion script of a shell."`
	Version    versionCmd    `cmd:"" help:"Print the version."`
}

// env is what a command works with.
type env struct {
	ctx context.Context
	cli *cli
	out io.Writer
	err io.Writer
}

func main() {
	solo5.HVTMain() // if this process is to look after a virtual machine
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	os.Exit(execute(ctx, os.Args[1:], os.Stdout, os.Stderr))
}

// execute runs one command line and gives its exit status: 0 only on success, 2 for a command line that is none.
func execute(ctx context.Context, args []string, out, errout io.Writer) int {
	var c cli
	status := -1
	parser, err := kong.New(&c, kong.Name("fulmar"), kong.Description("Build, lease, start, check, publish and retire unikernels."),
		kong.Writers(out, errout), kong.Exit(func(code int) { status = code }),
		kong.Vars{"host": bus.HostName()})
	if err != nil {
		fmt.Fprintln(errout, "fulmar:", err)
		return 1
	}
	k, err := parser.Parse(args)
	if status >= 0 {
		return status // help was asked for
	}
	if err != nil {
		fmt.Fprintln(errout, "fulmar:", err)
		return 2
	}
	err = k.Run(&env{ctx: ctx, cli: &c, out: out, err: errout}, k.Model)
	var said saidError
	switch {
	case err == nil:
		return 0
	case errors.As(err, &said): // the command has told it where it belongs
	case errors.Is(err, bus.ErrNoBus):
		fmt.Fprintf(errout, "fulmar: %v; is `fulmar up` running, or --nats wrong?\n", err)
	default:
		fmt.Fprintln(errout, "fulmar:", err)
	}
	return 1
}

// saidError is an error that was told to the user already.
type saidError struct{ error }

// connect opens the bus for a command.
func (e *env) connect() (*bus.Bus, func(), error) {
	nc, err := bus.Connect(e.cli.NATS, e.cli.Creds, "fulmar")
	if err != nil {
		return nil, nil, err
	}
	b, err := e.open(nc)
	if err != nil {
		nc.Close()
		return nil, nil, err
	}
	return b, nc.Close, nil
}

func (e *env) open(nc *nats.Conn) (*bus.Bus, error) {
	return bus.Open(e.ctx, nc, bus.Options{Service: "fulmar"})
}

type versionCmd struct{}

// Run prints the version.
func (versionCmd) Run(e *env) error {
	if e.cli.JSON {
		return e.printJSON(map[string]string{"version": bus.Version})
	}
	_, err := fmt.Fprintln(e.out, "fulmar", bus.Version)
	return err
}
