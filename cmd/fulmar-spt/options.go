package main

import (
	"errors"
	"fmt"
	"net"
	"slices"
	"strconv"
	"strings"
)

// options are what the command line says.
type options struct {
	memory int // MB
	nets   []netOption
	image  string
	args   []string
}

// A netOption is a network device to attach: by the name of a tap or, if that
// is empty, by an open descriptor.
type netOption struct {
	name string
	tap  string
	fd   int
	mac  net.HardwareAddr // nil: a random one
}

const defaultMemory = 512

// firstFree is the least descriptor that can be a tap: those below are the
// standard streams.
const firstFree = 3

var (
	errHelp    = errors.New("help wanted")
	errVersion = errors.New("version wanted")
)

// parse reads the command line as solo5-spt does: options up to the first
// argument that is none or up to "--", each in one argument, in any order; then
// the image; all that follows is the unikernel's. --help and --version count
// wherever they stand among the options.
func parse(args []string) (options, error) {
	end, rest := split(args)
	if err := terminal(args[:end]); err != nil {
		return options{}, err
	}
	if len(rest) == 0 {
		return options{}, errors.New("the image is missing (see --help)")
	}
	o := options{memory: defaultMemory, image: rest[0], args: rest[1:]}
	macs := map[string]net.HardwareAddr{}
	for _, arg := range args[:end] {
		if err := o.set(arg, macs); err != nil {
			return options{}, err
		}
	}
	for i, n := range o.nets {
		o.nets[i].mac = macs[n.name]
		delete(macs, n.name)
	}
	for name := range macs {
		return options{}, fmt.Errorf("--net-mac:%s is given without --net:%s", name, name)
	}
	return o, nil
}

// split returns how many arguments are options, and what follows them.
func split(args []string) (int, []string) {
	end := slices.IndexFunc(args, func(a string) bool { return a == "--" || !strings.HasPrefix(a, "-") })
	switch {
	case end < 0:
		return len(args), nil
	case args[end] == "--":
		return end, args[end+1:]
	}
	return end, args[end:]
}

// terminal returns the error of the first option that asks for a text only.
func terminal(opts []string) error {
	for _, arg := range opts {
		switch arg {
		case "--help":
			return errHelp
		case "--version":
			return errVersion
		}
	}
	return nil
}

// set takes over one option.
func (o *options) set(arg string, macs map[string]net.HardwareAddr) error {
	key, value, ok := strings.Cut(arg, "=")
	kind, name, _ := strings.Cut(key, ":")
	switch kind {
	case "--mem", "--net", "--net-mac":
	case "--block", "--block-sector-size":
		return fmt.Errorf("%s: block devices are not supported", arg)
	default:
		return fmt.Errorf("unknown option %q (see --help)", arg)
	}
	if !ok || value == "" || (name == "") != (kind == "--mem") {
		return fmt.Errorf("malformed option %q (see --help)", arg)
	}
	switch kind {
	case "--mem":
		mb, err := strconv.Atoi(value)
		if err != nil || mb <= 0 {
			return fmt.Errorf("%s: the memory is a number of MB", arg)
		}
		o.memory = mb
	case "--net":
		n, err := parseNet(name, value)
		if err != nil {
			return fmt.Errorf("%s: %w", arg, err)
		}
		o.nets = append(o.nets, n)
	case "--net-mac":
		mac, err := net.ParseMAC(value)
		if err != nil || len(mac) != 6 {
			return fmt.Errorf("%s: the address is six bytes such as 02:00:00:00:00:01", arg)
		}
		macs[name] = mac
	}
	return nil
}

func parseNet(name, value string) (netOption, error) {
	number, isNumber := strings.CutPrefix(value, "@")
	if !isNumber {
		return netOption{name: name, tap: value}, nil
	}
	fd, err := strconv.ParseUint(number, 10, 31)
	if err != nil {
		return netOption{}, fmt.Errorf("%q is no number of a descriptor", number)
	}
	if fd < firstFree {
		return netOption{}, fmt.Errorf("descriptor %d is a standard stream", fd)
	}
	return netOption{name: name, fd: int(fd)}, nil
}
