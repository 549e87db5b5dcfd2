// Package hosttest gives tests of host a network namespace of their own and real unikernels.
package hosttest

import (
	_ "embed"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"syscall"
	"testing"

	"fulmar/solo5"
)

//go:embed testdata/guest.c
var source []byte

//go:embed testdata/guest.lds
var script []byte

// insideKey tells a test binary that it runs in its namespaces already.
const insideKey = "FULMAR_HOSTTEST_INSIDE"

// Main is for TestMain: it runs the test binary again, in a network and a mount namespace that end with it, and there calls run. A test that
// is not root has none, and finds that out by [NeedRoot].
func Main(run func()) {
	solo5.HVTMain() // the test binary is the tender of virtual machines, too
	if os.Geteuid() != 0 || os.Getenv(insideKey) != "" {
		run()
		return
	}
	cmd := exec.Command("/proc/self/exe", os.Args[1:]...)
	cmd.Env = append(os.Environ(), insideKey+"=1")
	cmd.Stdin, cmd.Stdout, cmd.Stderr = os.Stdin, os.Stdout, os.Stderr
	cmd.SysProcAttr = &syscall.SysProcAttr{Cloneflags: syscall.CLONE_NEWNET | syscall.CLONE_NEWNS, Pdeathsig: syscall.SIGKILL}
	err := cmd.Run()
	var status *exec.ExitError
	switch {
	case errors.As(err, &status):
		os.Exit(max(status.ExitCode(), 1))
	case err != nil:
		fmt.Fprintln(os.Stderr, "enter namespaces:", err)
		os.Exit(1)
	}
}

// NeedRoot skips a test that cannot make taps and control groups.
func NeedRoot(t testing.TB) {
	t.Helper()
	if os.Geteuid() != 0 {
		t.Skip("needs root: makes network interfaces, users and control groups")
	}
}

// Guest compiles testdata/guest.c, which says what it can do, with so many network devices (net0, net1), and returns the image.
func Guest(t testing.TB, nets int) []byte {
	t.Helper()
	return compile(t, "-DNETS="+strconv.Itoa(nets))
}

// Recorded is Guest for one that does what those of the recorded sessions did, with a device service0 if nets is 1 and storage if blocks is.
func Recorded(t testing.TB, nets, blocks int) []byte {
	t.Helper()
	return compile(t, "-DRECORDED", "-DNETS="+strconv.Itoa(nets), "-DBLOCKS="+strconv.Itoa(blocks))
}

// compile compiles testdata/guest.c.
func compile(t testing.TB, defines ...string) []byte {
	t.Helper()
	dir := t.TempDir()
	for name, text := range map[string][]byte{"guest.c": source, "guest.lds": script} {
		if err := os.WriteFile(filepath.Join(dir, name), text, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	gcc := exec.Command("gcc", append(defines, "-std=c11", "-Wall", "-Wextra", "-Werror", "-O2",
		"-ffreestanding", "-nostdlib", "-static", "-no-pie", "-fno-pic", "-fno-stack-protector", "-fcf-protection=none",
		"-mno-red-zone", "-mgeneral-regs-only", "-fno-asynchronous-unwind-tables",
		"-Wl,-T,guest.lds", "-Wl,--build-id=none", "-Wl,-z,noexecstack", "-o", "guest.spt", "guest.c")...)
	gcc.Dir = dir
	if out, err := gcc.CombinedOutput(); err != nil {
		t.Fatalf("compile guest: %v\n%s", err, out)
	}
	image, err := os.ReadFile(filepath.Join(dir, "guest.spt"))
	if err != nil {
		t.Fatal(err)
	}
	return image
}
