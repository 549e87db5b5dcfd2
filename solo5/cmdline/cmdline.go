// Package cmdline is the command line of solo5-spt and solo5-hvt, for programs
// that stand in their place.
//
// [Tender.Serve] reads the arguments, opens what they name and becomes the
// unikernel: the process is the unikernel's from then on, its standard output
// the console, its exit status the unikernel's. An error of the tender's own is
// one line on standard error and exit status 1. The package keeps no state, and
// nothing is opened before the whole command line has been understood.
package cmdline

import (
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"

	"fulmar/solo5"
)

const usage = `usage: %s [OPTION...] [--] IMAGE [ARG...]
  --mem=MB                    memory of the unikernel, 512 if not given
  --net:NAME=TAP              attach the tap TAP as the network device NAME
  --net:NAME=@FD              the same with an open descriptor
  --net-mac:NAME=MAC          its address, a random one if not given
  --block:NAME=FILE           attach the file FILE as the block device NAME
  --block-sector-size:NAME=N  its sectors have N bytes, 512 if not given
  --version                   print the version of the interface
  --help                      print this
`

// A Tender is a program with this command line.
type Tender struct {
	Name    string // as in messages
	Prepare func(solo5.Guest) (*solo5.Tender, error)
}

// Serve becomes the unikernel. It returns an exit status if it cannot, or if
// something else was asked for.
func (t Tender) Serve(args []string, stderr io.Writer) int {
	o, err := parse(args)
	if err == nil {
		err = t.run(o)
	}
	switch {
	case errors.Is(err, errVersion):
		fmt.Fprintf(stderr, "%s tender\nABI version %d\n", t.Name, solo5.ABIVersion)
		return 0
	case errors.Is(err, errHelp):
		fmt.Fprintf(stderr, usage, t.Name)
	default:
		fmt.Fprintf(stderr, "%s: %v\n", t.Name, err)
	}
	return 1 // for the help too, as Solo5's tenders do
}

// run becomes the unikernel, or returns why it cannot.
func (t Tender) run(o options) error {
	image, err := os.Open(o.image)
	if err != nil {
		return err
	}
	guest := solo5.Guest{Image: image, Memory: o.memory, Args: o.args, Name: filepath.Base(o.image)}
	for _, n := range o.nets {
		net, err := n.open()
		if err != nil {
			return err
		}
		guest.Nets = append(guest.Nets, net)
	}
	for _, b := range o.blocks {
		f, err := solo5.OpenBlock(b.file)
		if err != nil {
			return err
		}
		guest.Blocks = append(guest.Blocks, solo5.Block{Name: b.name, File: f, SectorSize: b.sector})
	}
	tender, err := t.Prepare(guest)
	if err != nil {
		return fmt.Errorf("%s: %w", o.image, err)
	}
	return tender.Exec()
}

// open opens the tap of a network device.
func (o netOption) open() (solo5.Net, error) {
	n := solo5.Net{Name: o.name, MAC: o.mac}
	var err error
	if o.tap != "" {
		n.Tap, n.MTU, err = solo5.OpenTap(o.tap)
		return n, err
	}
	n.Tap = os.NewFile(uintptr(o.fd), fmt.Sprintf("descriptor %d", o.fd))
	n.MTU, err = solo5.TapMTU(n.Tap)
	return n, err
}
