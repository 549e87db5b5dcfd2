// Package solo5test makes real Solo5 guests for tests, with gcc.
package solo5test

import (
	"embed"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"testing"
)

//go:embed testdata
var sources embed.FS

// Features are what a guest has beside its code.
type Features struct {
	Nets      int // devices net0 and net1, at most 2
	Blocks    int // devices disk0 and disk1, at most 2
	Constants int // MB, before its data; only of the target hvt
}

// Build is BuildSPT for a guest with so many network devices and no others.
func Build(t testing.TB, nets int) string {
	t.Helper()
	return BuildSPT(t, Features{Nets: nets})
}

// BuildSPT compiles the guest of testdata/spt.c and returns the path of the
// image. It runs in 2 MB. The first word of its command line says what it does,
// among others:
//
//	hello N        prints hello and exits with status N
//	say TEXT       prints the text
//	boot           prints the boot information and the manifest
//	sleep SECONDS  prints up, waits and exits
//	echo N         prints up, sends back N frames and exits
//	disk HOW       reads or writes disk0
//	misbehave HOW  does what a guest must not, see spt.c
func BuildSPT(t testing.TB, f Features) string {
	t.Helper()
	return build(t, "spt", f)
}

// BuildHVT is BuildSPT for testdata/hvt.c, whose target is hvt. It runs in 4 MB.
// Other than the one above it has:
//
//	wait NSECS     prints up, polls, and prints what came of it
//	walltime       prints the time
//	call N WORDS   makes any hypercall, see hvt.c
func BuildHVT(t testing.TB, f Features) string {
	t.Helper()
	return build(t, "hvt", f)
}

func build(t testing.TB, target string, f Features) string {
	t.Helper()
	image, err := compile(t.TempDir(), target, f)
	if err != nil {
		t.Fatal(err)
	}
	return image
}

// Compile is Build for examples: the image lies in dir.
func Compile(dir string, nets int) (string, error) {
	return compile(dir, "spt", Features{Nets: nets})
}

func compile(dir, target string, f Features) (string, error) {
	if err := os.CopyFS(dir, sources); err != nil {
		return "", err
	}
	image := filepath.Join(dir, "guest."+target)
	gcc := exec.Command("gcc", "-std=c11", "-Wall", "-Wextra", "-Werror", "-O2", "-mgeneral-regs-only",
		"-ffreestanding", "-nostdlib", "-static", "-no-pie", "-fno-pic", "-fno-stack-protector",
		"-fcf-protection=none", "-mno-red-zone", "-fno-asynchronous-unwind-tables", "-fno-tree-loop-distribute-patterns",
		"-Wl,-T,guest.lds", "-Wl,--build-id=none", "-Wl,-z,noexecstack",
		fmt.Sprintf("-DNETS=%d", f.Nets), fmt.Sprintf("-DBLOCKS=%d", f.Blocks), fmt.Sprintf("-DCONSTANTS=%d", f.Constants), "-o", image, target+".c")
	gcc.Dir = filepath.Join(dir, "testdata")
	if out, err := gcc.CombinedOutput(); err != nil {
		return "", fmt.Errorf("compile the guest: %w\n%s", err, out)
	}
	return image, nil
}
