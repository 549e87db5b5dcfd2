// Command fulmar-hvt runs a Solo5 unikernel of the target hvt, with the command
// line of solo5-hvt, so that it can stand in its place. It needs /dev/kvm.
//
// It replaces itself by the unikernel's tender, which is the same program
// without any right but to serve this unikernel: standard output is the console,
// the exit status the unikernel's. An error of fulmar-hvt's own, or a unikernel
// that does what it must not, is one line on standard error and exit status 1.
//
// A daemon that starts hvt unikernels can name this program as their tender: it
// is small, and starts quickly.
package main

import (
	"os"

	"fulmar/solo5"
	"fulmar/solo5/cmdline"
)

func main() {
	solo5.HVTMain()
	hvt := cmdline.Tender{Name: "fulmar-hvt", Prepare: prepare}
	os.Exit(hvt.Serve(os.Args[1:], os.Stderr))
}

// prepare makes this program the tender of the guest.
func prepare(g solo5.Guest) (*solo5.Tender, error) {
	self, err := os.Open("/proc/self/exe")
	if err != nil {
		return nil, err
	}
	return solo5.PrepareHVT(g, self)
}
