// Package hello carries the sources of a unikernel that answers ping, UDP and
// HTTP, and builds it with gcc. It is the project's demonstration and test
// load; README.md says what the unikernel does and how to run it by hand.
//
// The invariant: the same sources and the same gcc make the same bytes, so an
// image's digest changes only when one of them does.
package hello

import (
	"context"
	"embed"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
)

// The C sources lie in a folder of their own, because the go command takes C
// files beside Go files for cgo.
//
//go:embed unikernel
var sources embed.FS

// Build compiles the unikernel for the target spt and returns the path of the
// image, hello.spt in the folder dir. It needs gcc, and takes about a second.
func Build(ctx context.Context, dir string) (string, error) {
	return build(ctx, dir, "spt")
}

// BuildHVT is [Build] for the target hvt, and the image is hello.hvt.
func BuildHVT(ctx context.Context, dir string) (string, error) {
	return build(ctx, dir, "hvt")
}

// build compiles the files that are the same for all targets, and the one of
// this target.
func build(ctx context.Context, dir, target string) (string, error) {
	dir, err := filepath.Abs(dir)
	if err != nil {
		return "", fmt.Errorf("build hello in %q: %w", dir, err)
	}
	work, err := os.MkdirTemp(dir, "hello-sources-")
	if err != nil {
		return "", fmt.Errorf("build hello: %w", err)
	}
	defer os.RemoveAll(work)
	unikernel, err := fs.Sub(sources, "unikernel")
	if err != nil {
		return "", fmt.Errorf("build hello: %w", err)
	}
	if err := os.CopyFS(work, unikernel); err != nil {
		return "", fmt.Errorf("build hello: write the sources: %w", err)
	}
	files, err := fs.Glob(unikernel, "*.c")
	if err != nil {
		return "", fmt.Errorf("build hello: %w", err)
	}
	files = slices.DeleteFunc(files, func(f string) bool { return (f == "spt.c" || f == "hvt.c") && f != target+".c" })

	// gcc writes beside the sources, and a rename makes the image appear whole.
	built, image := filepath.Join(work, "hello."+target), filepath.Join(dir, "hello."+target)
	cmd := exec.CommandContext(ctx, "gcc", append([]string{"@gcc.flags", "-o", built}, files...)...)
	cmd.Dir = work
	if out, err := cmd.CombinedOutput(); err != nil {
		return "", fmt.Errorf("build hello with gcc: %w\n%s", err, out)
	}
	if err := os.Rename(built, image); err != nil {
		return "", fmt.Errorf("build hello: %w", err)
	}
	return image, nil
}
