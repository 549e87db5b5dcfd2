package main

import (
	"cmp"
	"fmt"
	"net"
	"strconv"
	"strings"

	"fulmar/albatross"
)

// resourceFlags are what a unikernel gets. What is not given stays as it is, or as a create sets it.
type resourceFlags struct {
	Memory        *int     `short:"m" placeholder:"MB" help:"Memory (default 32)."`
	CPU           []int    `name:"cpu" placeholder:"ID" help:"CPUs that it may run on (default 0)."`
	Net           []string `sep:"none" placeholder:"NETIF[:BRIDGE][@MAC]" help:"Network device of the image's manifest, and the bridge that it is plugged into (default: of the same name)."`
	Block         []string `sep:"none" placeholder:"NAME[:DEVICE][@SECTORSIZE]" help:"Block device of the manifest, and that of the daemon (default: of the same name)."`
	Arg           []string `short:"a" sep:"none" placeholder:"ARG" help:"Argument."`
	RestartOnFail *bool    `help:"Start it again when it exits: with any status but those that say that it cannot run, or with those of --exit-code."`
	ExitCode      []int    `placeholder:"N" help:"Exit status after which it is started again."`
	Startup       *int     `placeholder:"N" help:"Place in the order of start after a boot, 0 to 100 (default 50)."`
	AddName       *bool    `negatable:"" help:"Tell it its name, with --name=LABEL (default: yes; one that exits with 64 is started again without)."`
}

// given says whether any flag is.
func (f *resourceFlags) given() bool {
	return f.Memory != nil || f.CPU != nil || f.Net != nil || f.Block != nil || f.Arg != nil || f.RestartOnFail != nil || f.ExitCode != nil || f.Startup != nil || f.AddName != nil
}

// apply puts what was given in place of what stands in args.
func (f *resourceFlags) apply(args albatross.Args) (albatross.Args, error) {
	if f.Memory != nil {
		args.Memory = *f.Memory
	}
	if f.CPU != nil {
		args.CPUIDs = f.CPU
	}
	if f.Arg != nil {
		args.Arguments = f.Arg
	}
	if f.RestartOnFail != nil {
		args.Fail = albatross.FailBehaviour{Restart: *f.RestartOnFail}
	}
	if f.ExitCode != nil {
		args.Fail = albatross.FailBehaviour{Restart: true, ExitCodes: f.ExitCode}
	}
	if f.Startup != nil {
		args.Startup = f.Startup
	}
	args.AddName = f.AddName == nil || *f.AddName
	var err error
	if f.Net != nil {
		if args.Bridges, err = parseEach(f.Net, parseBridge); err != nil {
			return args, err
		}
	}
	if f.Block != nil {
		if args.Blocks, err = parseEach(f.Block, parseBlock); err != nil {
			return args, err
		}
	}
	return args, nil
}

func parseEach[T any](list []string, f func(string) (T, error)) ([]T, error) {
	var all []T
	for _, s := range list {
		one, err := f(s)
		if err != nil {
			return nil, err
		}
		all = append(all, one)
	}
	return all, nil
}

// parseBridge reads NETIF[:BRIDGE][@MAC].
func parseBridge(s string) (b albatross.Bridge, err error) {
	names, mac, fixed := strings.Cut(s, "@")
	b.Netif, b.Bridge, _ = strings.Cut(names, ":")
	if fixed {
		b.MAC, err = net.ParseMAC(mac)
	}
	if err != nil || b.Netif == "" || fixed && len(b.MAC) != 6 {
		return b, fmt.Errorf("net %q: want NETIF[:BRIDGE][@MAC], as service:br0@02:00:00:00:00:01", s)
	}
	return b, nil
}

// parseBlock reads NAME[:DEVICE][@SECTORSIZE].
func parseBlock(s string) (b albatross.Block, err error) {
	names, size, sized := strings.Cut(s, "@")
	b.Name, b.Device, _ = strings.Cut(names, ":")
	if sized {
		b.SectorSize, err = strconv.Atoi(size)
	}
	if err != nil || b.Name == "" || sized && b.SectorSize <= 0 {
		return b, fmt.Errorf("block %q: want NAME[:DEVICE][@SECTORSIZE], as storage:disk@512", s)
	}
	return b, nil
}

// argsOf are the arguments that a unikernel runs with. Whether it is told its name nobody says.
func argsOf(i albatross.Info) albatross.Args {
	args := albatross.Args{
		Fail: i.Fail, Startup: i.Startup, CPUIDs: i.CPUIDs, Memory: i.Memory, Arguments: i.Arguments, CPUs: i.CPUs, LinuxBootPartition: i.LinuxBootPartition,
	}
	for _, b := range i.Bridges {
		args.Bridges = append(args.Bridges, albatross.Bridge{Netif: b.UnikernelDevice, Bridge: cmp.Or(b.HostDevice, b.UnikernelDevice), MAC: b.MAC})
	}
	for _, b := range i.Blocks {
		args.Blocks = append(args.Blocks, albatross.Block{Name: b.UnikernelDevice, Device: b.HostDevice, SectorSize: b.SectorSize})
	}
	return args
}
