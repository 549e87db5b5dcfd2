// Command fulmar-spt runs a Solo5 unikernel of the target spt, with the command
// line of solo5-spt, so that it can stand in its place.
//
// It replaces itself by the unikernel: the process is the unikernel, its
// standard output the console, its exit status the unikernel's. An error of
// fulmar-spt's own is one line on standard error and exit status 1.
package main

import (
	"os"

	"fulmar/solo5"
	"fulmar/solo5/cmdline"
)

func main() {
	spt := cmdline.Tender{Name: "fulmar-spt", Prepare: solo5.PrepareSPT}
	os.Exit(spt.Serve(os.Args[1:], os.Stderr))
}
