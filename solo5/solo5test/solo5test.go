// Package solo5test makes real Solo5 guests for tests, with gcc.
package solo5test

import (
	_ "embed"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"testing"
)

//go:embed testdata/guest.c
var source []byte

//go:embed testdata/guest.lds
var script []byte

// Build compiles the guest of testdata/guest.c with so many network devices (net0, net1;
// at most 2) and returns the path of the image. Its target is spt, and it runs
// in 2 MB. The first word of its command line says what it does, among others:
//
//	hello N        prints hello and exits with status N
//	say TEXT       prints the text
//	boot           prints the boot information and the manifest
//	sleep SECONDS  prints up, waits and exits
//	echo N         prints up, sends back N frames and exits
//	misbehave HOW  does what a guest must not, see guest.c
func Build(t testing.TB, nets int) string {
	t.Helper()
	image, err := Compile(t.TempDir(), nets)
	if err != nil {
		t.Fatal(err)
	}
	return image
}

// Compile is Build for examples: the image lies in dir.
func Compile(dir string, nets int) (string, error) {
	image := filepath.Join(dir, fmt.Sprintf("guest%d.spt", nets))
	for name, contents := range map[string][]byte{"guest.c": source, "guest.lds": script} {
		if err := os.WriteFile(filepath.Join(dir, name), contents, 0o600); err != nil {
			return "", err
		}
	}
	gcc := exec.Command("gcc", "-std=c11", "-Wall", "-Wextra", "-Werror", "-O2",
		"-ffreestanding", "-nostdlib", "-static", "-no-pie", "-fno-pic", "-fno-stack-protector",
		"-fcf-protection=none", "-mno-red-zone", "-fno-asynchronous-unwind-tables",
		"-Wl,-T,guest.lds", "-Wl,--build-id=none", "-Wl,-z,noexecstack",
		fmt.Sprintf("-DNETS=%d", nets), "-o", image, "guest.c")
	gcc.Dir = dir
	if out, err := gcc.CombinedOutput(); err != nil {
		return "", fmt.Errorf("compile the guest: %w\n%s", err, out)
	}
	return image, nil
}
