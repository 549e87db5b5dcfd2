package solo5_test

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"testing"
	"time"

	"fulmar/solo5"
)

// tender is fulmar-hvt, built once by TestMain as it is built to be installed:
// this test binary could be the tender too, but with the race detector in it
// it takes long to start.
var tender string

func TestMain(m *testing.M) {
	if _, isTender := os.LookupEnv("FULMAR_HVT"); isTender { // in the one test in which the test binary is it
		go disturb()
	}
	solo5.HVTMain()
	os.Exit(func() int {
		dir, err := os.MkdirTemp("", "solo5-test-")
		if err != nil {
			fmt.Fprintln(os.Stderr, err)
			return 1
		}
		defer os.RemoveAll(dir)
		if err := os.Chmod(dir, 0o755); err != nil {
			fmt.Fprintln(os.Stderr, err)
			return 1
		}
		tender = filepath.Join(dir, "fulmar-hvt")
		build := exec.Command("go", "build", "-trimpath", "-o", tender, "fulmar/cmd/fulmar-hvt")
		build.Env = append(os.Environ(), "CGO_ENABLED=0")
		if out, err := build.CombinedOutput(); err != nil {
			fmt.Fprintf(os.Stderr, "build fulmar-hvt: %v\n%s", err, out)
			return 1
		}
		return m.Run()
	}())
}

// disturb is what a package may have started before main: it waits, allocates,
// and wants to open a file, as the one of nats-server that looks at its own process.
func disturb() {
	var kept [][]byte
	for range time.Tick(time.Millisecond) {
		contents, _ := os.ReadFile("/proc/self/stat")
		kept = append(kept, contents, make([]byte, 1<<16))
		if len(kept) > 100 {
			kept = nil
		}
		time.AfterFunc(time.Microsecond, runtime.Gosched)
	}
}
