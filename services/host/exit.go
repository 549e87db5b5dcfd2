package host

import (
	"fmt"
	"slices"
	"strconv"

	"golang.org/x/sys/unix"
)

// exit says how a unikernel's process ended.
type exit struct {
	known  bool
	status unix.WaitStatus
}

// code is the exit code, and whether there is one: not after a signal, nor when nobody could read it.
func (e exit) code() (int, bool) {
	if !e.known || !e.status.Exited() {
		return 0, false
	}
	return e.status.ExitStatus(), true
}

// kind is the exit as a label of a metric: zero, nonzero, signal or unknown.
func (e exit) kind() string {
	code, exited := e.code()
	switch {
	case !e.known:
		return "unknown"
	case !exited:
		return "signal"
	case code == 0:
		return "zero"
	}
	return "nonzero"
}

// String is the last line of the unikernel's console.
func (e exit) String() string {
	if !e.known {
		return "fulmar: exited, status unknown"
	}
	if e.status.Signaled() {
		name := unix.SignalName(e.status.Signal())
		if name == "" {
			name = strconv.Itoa(int(e.status.Signal()))
		}
		return "fulmar: killed by signal " + name
	}
	return fmt.Sprintf("fulmar: exited with status %d", e.status.ExitStatus())
}

// restarts says whether a unikernel that is to be restarted on failure is started again after e: never after a signal, nor after
// the codes by which a unikernel says that another try is of no use (1, and 60 to 64), else if codes is empty or holds its code.
// An unknown status counts as none of the codes, so it restarts only what is restarted after all of them.
func (e exit) restarts(codes []int) bool {
	code, exited := e.code()
	switch {
	case !e.known:
		return len(codes) == 0
	case !exited, code == 1, code >= 60 && code <= 64:
		return false
	}
	return len(codes) == 0 || slices.Contains(codes, code)
}
