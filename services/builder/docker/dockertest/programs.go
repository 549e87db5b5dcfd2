package dockertest

import (
	"io/fs"
	"maps"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
)

// Programs gives the files of a base image with a shell, some small programs and those that are named, by name or path:
// each as this machine has it, with the libraries that it needs.
func Programs(tb testing.TB, names ...string) []File {
	tb.Helper()
	paths := map[string]bool{}
	for _, name := range append([]string{"sh", "cat", "cp", "env", "ls", "mkdir", "sleep", "touch", "true"}, names...) {
		path, err := exec.LookPath(name)
		if err != nil {
			tb.Fatal(err)
		}
		paths[path] = true
		needed, err := exec.Command("ldd", path).Output()
		if err != nil {
			continue // it needs none, or is a script
		}
		for word := range strings.FieldsSeq(string(needed)) {
			if strings.HasPrefix(word, "/") {
				paths[word] = true
			}
		}
	}
	files := []File{{Name: "tmp/", Mode: 0o1777}}
	for _, path := range slices.Sorted(maps.Keys(paths)) {
		files = append(files, read(tb, path, path))
	}
	if !paths["/bin/sh"] {
		files = append(files, read(tb, "/bin/sh", "/bin/sh"))
	}
	return files
}

// Compiler gives the files of a base image with gcc and make for programs that need no library, as a unikernel does.
func Compiler(tb testing.TB) []File {
	tb.Helper()
	ask := func(args ...string) string {
		out, err := exec.Command("gcc", args...).Output()
		if err != nil {
			tb.Fatal(err)
		}
		return filepath.Clean(strings.TrimSpace(string(out)))
	}
	names := []string{"gcc", "make", ask("-print-prog-name=cc1"), ask("-print-prog-name=collect2")}
	for _, tool := range []string{"as", "ld"} {
		names = append(names, ask("-print-prog-name="+tool))
	}
	plugin := ask("-print-file-name=liblto_plugin.so")
	files := append(Programs(tb, names...), read(tb, plugin, plugin))
	headers := ask("-print-file-name=include")
	err := filepath.WalkDir(headers, func(path string, d fs.DirEntry, err error) error {
		if err == nil && d.Type().IsRegular() {
			files = append(files, read(tb, path, path))
		}
		return err
	})
	if err != nil {
		tb.Fatal(err)
	}
	return files
}

// read gives a file of this machine, wherever links lead, under a name.
func read(tb testing.TB, name, path string) File {
	tb.Helper()
	body, err := os.ReadFile(path)
	if err != nil {
		tb.Fatal(err)
	}
	return File{Name: strings.TrimPrefix(name, "/"), Body: body}
}
