// Package crash_test shows what crashes leave: nothing. Every service, the host and the bus is a process of its own, as in
// an installation, and a test stands on the wire between them, so that each can be killed or frozen at an exact step of
// its work: when it has sent what it says or writes and nobody has it yet, and when that is taken and it does not know.
//
// After each crash the deployment must end, once, the stack must serve what its head says, and with all stacks retired
// nothing may be left: no lease, tap, process, control group, FIFO, file, rule or record.
package crash_test

import (
	"context"
	"fmt"
	"os"
	"testing"
	"time"

	"fulmar/e2e/lab"
	"fulmar/examples/hello"
)

// patience is for one thing that must happen, with crashes in between.
const patience = 90 * time.Second

// What TestMain has built, for the environment of the tests: directories.
const (
	binKey   = "FULMAR_CRASH_BIN"
	imageKey = "FULMAR_CRASH_IMAGE"
)

// TestMain moves into the host's namespace and builds the commands and the unikernel.
func TestMain(m *testing.M) {
	if os.Geteuid() != 0 {
		os.Exit(m.Run()) // each test is skipped, and says why
	}
	if families := os.Getenv(confineKey); families != "" {
		fmt.Fprintln(os.Stderr, "crash:", confine(families, os.Args[1:]))
		os.Exit(1)
	}
	status, err := run(m)
	if err != nil {
		fmt.Fprintln(os.Stderr, "crash:", err)
		status = 1
	}
	os.Exit(status)
}

func run(m *testing.M) (int, error) {
	if err := lab.Enter(); err != nil {
		return 0, err
	}
	dir, err := os.MkdirTemp("", "fulmar-crash-*")
	if err != nil {
		return 0, err
	}
	defer os.RemoveAll(dir)
	if err := os.Chmod(dir, 0o755); err != nil { // services without rights are started from it
		return 0, err
	}
	var flags []string
	if os.Getenv("FULMAR_E2E_RACE") != "" {
		flags = []string{"-race"}
	}
	if err := lab.Build(context.Background(), dir, flags, "fulmar", "host", "builder", "ipam", "vmm", "monitor", "nat", "gc"); err != nil {
		return 0, err
	}
	image, err := hello.Build(context.Background(), dir)
	if err != nil {
		return 0, err
	}
	for key, value := range map[string]string{binKey: dir, imageKey: image} {
		if err := os.Setenv(key, value); err != nil {
			return 0, err
		}
	}
	return m.Run(), nil
}
