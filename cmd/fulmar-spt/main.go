// Command fulmar-spt runs a Solo5 unikernel of the target spt, with the command
// line of solo5-spt, so that it can stand in its place.
//
// It replaces itself by the unikernel: the process is the unikernel, its
// standard output the console, its exit status the unikernel's. An error of
// fulmar-spt's own is one line on standard error and exit status 1.
package main

import (
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"

	"fulmar/solo5"
)

const usage = `usage: fulmar-spt [OPTION...] [--] IMAGE [ARG...]
  --mem=MB              memory of the unikernel, 512 if not given
  --net:NAME=TAP        attach the tap TAP as the network device NAME
  --net:NAME=@FD        the same with an open descriptor
  --net-mac:NAME=MAC    its address, a random one if not given
  --version             print the version of the interface
  --help                print this
`

func main() {
	os.Exit(serve(os.Args[1:], os.Stderr))
}

// serve becomes the unikernel. It returns an exit status if it cannot, or if
// something else was asked for.
func serve(args []string, stderr io.Writer) int {
	o, err := parse(args)
	if err == nil {
		err = run(o)
	}
	switch {
	case errors.Is(err, errVersion):
		fmt.Fprintf(stderr, "fulmar-spt tender\nABI version %d\n", solo5.ABIVersion)
		return 0
	case errors.Is(err, errHelp):
		fmt.Fprint(stderr, usage)
	default:
		fmt.Fprintln(stderr, "fulmar-spt:", err)
	}
	return 1 // for the help too, as solo5-spt does
}

// run becomes the unikernel, or returns why it cannot.
func run(o options) error {
	image, err := os.Open(o.image)
	if err != nil {
		return err
	}
	guest := solo5.Guest{Image: image, Memory: o.memory, Args: o.args, Name: filepath.Base(o.image)}
	for _, n := range o.nets {
		net, err := attach(n)
		if err != nil {
			return err
		}
		guest.Nets = append(guest.Nets, net)
	}
	tender, err := solo5.PrepareSPT(guest)
	if err != nil {
		return fmt.Errorf("%s: %w", o.image, err)
	}
	return tender.Exec()
}

// attach opens the tap of a network device.
func attach(o netOption) (solo5.Net, error) {
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
