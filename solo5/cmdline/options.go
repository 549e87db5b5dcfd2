package cmdline

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
	blocks []blockOption
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

// A blockOption is a block device to attach.
type blockOption struct {
	name   string
	file   string
	sector int // bytes; 0: as is usual
}

const defaultMemory = 512

// firstFree is the least descriptor that can be a tap: those below are the
// standard streams.
const firstFree = 3

var (
	errHelp    = errors.New("help wanted")
	errVersion = errors.New("version wanted")
)

// parse reads the command line as Solo5's tenders do: options up to the first
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
	extra := refinements{macs: map[string]net.HardwareAddr{}, sectors: map[string]int{}}
	for _, arg := range args[:end] {
		if err := o.set(arg, extra); err != nil {
			return options{}, err
		}
	}
	return o, o.refine(extra)
}

// refinements are options on devices, by their names: they may stand before
// the options that name the devices.
type refinements struct {
	macs    map[string]net.HardwareAddr
	sectors map[string]int
}

// refine gives the devices what was said of them.
func (o *options) refine(extra refinements) error {
	for i, n := range o.nets {
		o.nets[i].mac = extra.macs[n.name]
		delete(extra.macs, n.name)
	}
	for name := range extra.macs {
		return fmt.Errorf("--net-mac:%s is given without --net:%s", name, name)
	}
	for i, b := range o.blocks {
		o.blocks[i].sector = extra.sectors[b.name]
		delete(extra.sectors, b.name)
	}
	for name := range extra.sectors {
		return fmt.Errorf("--block-sector-size:%s is given without --block:%s", name, name)
	}
	return nil
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
func (o *options) set(arg string, extra refinements) error {
	key, value, ok := strings.Cut(arg, "=")
	kind, name, _ := strings.Cut(key, ":")
	switch kind {
	case "--mem", "--net", "--net-mac", "--block", "--block-sector-size":
	default:
		return fmt.Errorf("unknown option %q (see --help)", arg)
	}
	if !ok || value == "" || (name == "") != (kind == "--mem") {
		return fmt.Errorf("malformed option %q (see --help)", arg)
	}
	var err error
	switch kind {
	case "--mem":
		o.memory, err = parseMemory(value)
	case "--net":
		var n netOption
		n, err = parseNet(name, value)
		o.nets = append(o.nets, n)
	case "--net-mac":
		extra.macs[name], err = parseMAC(value)
	case "--block":
		o.blocks = append(o.blocks, blockOption{name: name, file: value})
	case "--block-sector-size":
		extra.sectors[name], err = parseSector(value)
	}
	if err != nil {
		return fmt.Errorf("%s: %w", arg, err)
	}
	return nil
}

func parseMemory(value string) (int, error) {
	mb, err := strconv.Atoi(value)
	if err != nil || mb <= 0 {
		return 0, errors.New("the memory is a number of MB")
	}
	return mb, nil
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

func parseMAC(value string) (net.HardwareAddr, error) {
	mac, err := net.ParseMAC(value)
	if err != nil || len(mac) != 6 {
		return nil, errors.New("the address is six bytes such as 02:00:00:00:00:01")
	}
	return mac, nil
}

func parseSector(value string) (int, error) {
	n, err := strconv.Atoi(value)
	if err != nil || n <= 0 {
		return 0, errors.New("the size of a sector is a number of bytes")
	}
	return n, nil
}
