package solo5_test

import (
	"bytes"
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"fulmar/solo5"
	"fulmar/solo5/solo5test"
)

// disk makes a file of so many bytes, each of which tells its sector.
func disk(t testing.TB, size int) string {
	t.Helper()
	contents := make([]byte, size)
	for n := range contents {
		contents[n] = byte('a' + n/512)
	}
	path := filepath.Join(t.TempDir(), "disk")
	if err := os.WriteFile(path, contents, 0o600); err != nil {
		t.Fatal(err)
	}
	return path
}

func openDisk(t testing.TB, path string) *os.File {
	t.Helper()
	f, err := solo5.OpenBlock(path)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { f.Close() })
	return f
}

func TestSPTBlockDevice(t *testing.T) {
	const killed = "signal: bad system call"
	image := solo5test.BuildSPT(t, solo5test.Features{Nets: 0, Blocks: 1})
	// Of six sectors of 512, or three of 1024.
	tests := map[string]struct {
		sector int
		args   string
		output string
		end    string
	}{
		"a sector is read":                     {512, "read 1024 512", "result=512\nbyte=99\n", "exit status 0"},
		"the last sector is read":              {512, "read 2560 512", "result=512\nbyte=102\n", "exit status 0"},
		"a sector is written":                  {512, "write 512 512 42", "result=512\nbyte=42\n", "exit status 0"},
		"a large sector is read":               {1024, "read 2048 1024", "result=1024\nbyte=101\n", "exit status 0"},
		"less than a sector":                   {512, "read 0 511", "", killed},
		"nothing":                              {512, "read 0 0", "", killed},
		"two sectors":                          {512, "read 0 1024", "", killed},
		"half a large sector":                  {1024, "read 0 512", "", killed},
		"between two sectors":                  {512, "read 256 512", "", killed},
		"between two large sectors":            {1024, "read 512 1024", "", killed},
		"behind the end":                       {512, "read 3072 512", "", killed},
		"over the end":                         {512, "read 2816 512", "", killed},
		"far behind the end":                   {512, "read 4294967296 512", "", killed},
		"far behind the end by its low half":   {512, "read 4294967808 512", "", killed},
		"before the start":                     {512, "read 18446744073709551104 512", "", killed},
		"more than a sector by its high half":  {512, "read 0 4294967808", "", killed},
		"written behind the end":               {512, "write 3072 512 42", "", killed},
		"written over the end":                 {1024, "write 2560 1024 42", "", killed},
		"written before the start":             {512, "write 18446744073709551104 512 42", "", killed},
		"written less than a sector":           {512, "write 0 1 42", "", killed},
		"written between two sectors":          {512, "write 100 512 42", "", killed},
		"written two sectors":                  {512, "write 0 1024 42", "", killed},
		"written at a great offset, truncated": {512, "write 4294967808 512 42", "", killed},
	}
	for name, tt := range tests {
		t.Run(name, func(t *testing.T) {
			path := disk(t, 6*512)
			before, err := os.ReadFile(path)
			if err != nil {
				t.Fatal(err)
			}
			file := openDisk(t, path)
			tender := prepare(t, solo5.Guest{
				Image: open(t, image), Memory: 2, Args: []string{"disk", tt.args},
				Blocks: []solo5.Block{{Name: "disk0", File: file, SectorSize: tt.sector}},
			})
			cmd, err := tender.Command()
			if err != nil {
				t.Fatal(err)
			}
			output, err := cmd.Output()
			if exit := (*exec.ExitError)(nil); err != nil && !errors.As(err, &exit) {
				t.Fatal(err)
			}
			if got := cmd.ProcessState.String(); string(output) != tt.output || !strings.HasPrefix(got, tt.end) {
				t.Errorf("%q and %q instead of %q and %q", output, got, tt.output, tt.end)
			}
			if strings.HasPrefix(tt.args, "write") && tt.end != killed {
				copy(before[512:], bytes.Repeat([]byte{42}, 512))
			}
			checkDisk(t, path, before)
		})
	}
}

func checkDisk(t testing.TB, path string, want []byte) {
	t.Helper()
	got, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	if !bytes.Equal(got, want) {
		t.Errorf("the disk has %d bytes %.8q... instead of %d %.8q...", len(got), got, len(want), want)
	}
}

func TestBlockDeviceInTheManifest(t *testing.T) {
	image := solo5test.BuildSPT(t, solo5test.Features{Nets: 0, Blocks: 2})
	tender := prepare(t, solo5.Guest{
		Image: open(t, image), Memory: 2, Args: []string{"boot"},
		Blocks: []solo5.Block{
			{Name: "disk1", File: openDisk(t, disk(t, 1<<20)), SectorSize: 4096},
			{Name: "disk0", File: openDisk(t, disk(t, 1024))},
		},
	})
	cmd, err := tender.Command()
	if err != nil {
		t.Fatal(err)
	}
	output, err := cmd.Output()
	if err != nil {
		t.Fatal(err)
	}
	_, manifest, _ := strings.Cut(string(output), "entry=1\n")
	want := "disk0=1\ncapacity=1024\nblock_size=512\nattached=1\nentry=2\ndisk1=1\ncapacity=1048576\nblock_size=4096\nattached=1\n"
	if diff := cmp.Diff(want, manifest); diff != "" {
		t.Errorf("manifest (-want +got):\n%s", diff)
	}
}

func TestBlockDeviceMustFit(t *testing.T) {
	image := solo5test.BuildSPT(t, solo5test.Features{Nets: 0, Blocks: 1})
	name := func(f *os.File) string { return f.Name() }
	good, odd, empty := openDisk(t, disk(t, 4096)), openDisk(t, disk(t, 1000)), openDisk(t, disk(t, 0))
	readOnly, null := open(t, disk(t, 512)), openDisk(t, "/dev/null")
	tests := map[string]struct {
		blocks []solo5.Block
		want   string
	}{
		"not attached":      {nil, `the image declares the block device "disk0", and it is not attached`},
		"not declared":      {[]solo5.Block{{Name: "disk0", File: good}, {Name: "other", File: good}}, `the block device "other" is attached, and the image does not declare it`},
		"attached twice":    {[]solo5.Block{{Name: "disk0", File: good}, {Name: "disk0", File: good}}, `the block device "disk0" is attached twice`},
		"a sector too much": {[]solo5.Block{{Name: "disk0", File: good, SectorSize: 8192}}, `block device "disk0": ` + name(good) + ` has 4096 bytes, which are no whole sectors of 8192`},
		"half a sector":     {[]solo5.Block{{Name: "disk0", File: odd}}, `block device "disk0": ` + name(odd) + ` has 1000 bytes, which are no whole sectors of 512`},
		"nothing on it":     {[]solo5.Block{{Name: "disk0", File: empty}}, `block device "disk0": ` + name(empty) + ` has 0 bytes, which are no whole sectors of 512`},
		"an odd sector":     {[]solo5.Block{{Name: "disk0", File: good, SectorSize: 1000}}, `block device "disk0": a sector of 1000 bytes is not a power of two from 512 to 32768`},
		"a small sector":    {[]solo5.Block{{Name: "disk0", File: good, SectorSize: 256}}, `block device "disk0": a sector of 256 bytes is not a power of two from 512 to 32768`},
		"a large sector":    {[]solo5.Block{{Name: "disk0", File: good, SectorSize: 65536}}, `block device "disk0": a sector of 65536 bytes is not a power of two from 512 to 32768`},
		"not to be written": {[]solo5.Block{{Name: "disk0", File: readOnly}}, `block device "disk0": ` + name(readOnly) + ` is not open for reading and writing`},
		"no block device":   {[]solo5.Block{{Name: "disk0", File: null}}, `block device "disk0": /dev/null is neither a regular file nor a block device`},
	}
	for name, tt := range tests {
		t.Run(name, func(t *testing.T) {
			_, err := solo5.PrepareSPT(solo5.Guest{Image: open(t, image), Memory: 2, Blocks: tt.blocks})
			if mismatch := (*solo5.MismatchError)(nil); !errors.As(err, &mismatch) || mismatch.Problem != tt.want {
				t.Errorf("got %v instead of %q", err, tt.want)
			}
		})
	}
	if _, err := solo5.OpenBlock(filepath.Join(t.TempDir(), "none")); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("a file that is not there: %v", err)
	}
}
