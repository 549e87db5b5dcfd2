package solo5_test

import (
	"bytes"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"golang.org/x/sys/unix"

	"fulmar/solo5"
	"fulmar/solo5/solo5test"
)

func TestGate(t *testing.T) {
	image := solo5test.Build(t, 0)
	gated := func(t *testing.T) (*exec.Cmd, *solo5.Gate) {
		return atGate(t, prepare(t, solo5.Guest{Image: open(t, image), Memory: 64, Args: []string{"hello", "7"}}))
	}
	t.Run("an open gate lets the guest run", func(t *testing.T) {
		cmd, gate := gated(t)
		asNobody(t, cmd)
		console := started(t, cmd, "")
		maps, err := os.ReadFile(fmt.Sprintf("/proc/%d/maps", cmd.Process.Pid))
		if err != nil {
			t.Fatal(err)
		}
		if bytes.Contains(maps, []byte("00010000-04000000")) {
			t.Errorf("the guest's memory is mapped before the gate is open:\n%s", maps)
		}
		if err := gate.Open(); err != nil {
			t.Fatal(err)
		}
		ends(t, cmd, console, "hello\n", 7)
		if err := gate.Close(); err != nil {
			t.Errorf("closing an opened gate: %v", err)
		}
	})
	t.Run("a closed gate ends the process, and the guest never ran", func(t *testing.T) {
		cmd, gate := gated(t)
		asNobody(t, cmd)
		endsClosed(t, cmd, gate)
	})
	t.Run("what the kernel refuses behind the gate is one line", func(t *testing.T) {
		cmd, gate := gated(t)
		var stderr strings.Builder
		cmd.Stderr = &stderr
		started(t, cmd, "")
		if err := unix.Prlimit(cmd.Process.Pid, unix.RLIMIT_AS, &unix.Rlimit{Cur: 32 << 20, Max: 32 << 20}, nil); err != nil {
			t.Fatal(err)
		}
		if err := gate.Open(); err != nil {
			t.Fatal(err)
		}
		if cmd.Wait(); cmd.ProcessState.ExitCode() != 1 {
			t.Errorf("ended with %s", cmd.ProcessState)
		}
		if diff := cmp.Diff("fulmar-spt: map 64 MB of memory: errno 012\n", stderr.String()); diff != "" {
			t.Errorf("standard error (-want +got):\n%s", diff)
		}
	})
}

func TestWhatWasCheckedRuns(t *testing.T) {
	image := solo5test.Build(t, 0)
	tests := map[string]func(t *testing.T, f *os.File) *os.File{
		"an image that is overwritten after it was prepared": func(_ *testing.T, f *os.File) *os.File { return f },
		"an image that is overwritten after it was sealed": func(t *testing.T, f *os.File) *os.File {
			return unchangeable(t)(solo5.Seal(f))
		},
		"an image that was sealed from memory": func(t *testing.T, f *os.File) *os.File {
			contents, err := io.ReadAll(f)
			if err != nil {
				t.Fatal(err)
			}
			return unchangeable(t)(solo5.SealBytes(contents))
		},
	}
	for name, from := range tests {
		t.Run(name, func(t *testing.T) {
			contents, err := os.ReadFile(image)
			if err != nil {
				t.Fatal(err)
			}
			path := filepath.Join(t.TempDir(), "copy.spt")
			if err := os.WriteFile(path, contents, 0o600); err != nil {
				t.Fatal(err)
			}
			tender := prepare(t, solo5.Guest{Image: from(t, open(t, path)), Memory: 2, Args: []string{"hello"}})
			if err := os.WriteFile(path, make([]byte, len(contents)), 0o600); err != nil {
				t.Fatal(err)
			}
			cmd, err := tender.Command()
			if err != nil {
				t.Fatal(err)
			}
			if output, err := cmd.Output(); string(output) != "hello\n" {
				t.Errorf("the console said %q (%v)", output, err)
			}
		})
	}
}

// unchangeable returns a sealed image after it has tried to change it.
func unchangeable(t *testing.T) func(*os.File, error) *os.File {
	return func(sealed *os.File, err error) *os.File {
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { sealed.Close() })
		if _, err := sealed.WriteAt([]byte("x"), 0); err == nil {
			t.Error("a sealed image can be written to")
		}
		if err := sealed.Truncate(0); err == nil {
			t.Error("a sealed image can be cut off")
		}
		return sealed
	}
}

func BenchmarkStartToExit(b *testing.B) {
	image := open(b, solo5test.Build(b, 0))
	benchmarkStartToExit(b, func() *solo5.Tender {
		return prepare(b, solo5.Guest{Image: image, Memory: 32, Args: []string{"hello"}})
	})
}

// benchmarkStartToExit measures what tenders take from their start to their end.
func benchmarkStartToExit(b *testing.B, prepare func() *solo5.Tender) {
	for b.Loop() {
		tender := prepare()
		cmd, err := tender.Command()
		if err != nil {
			b.Fatal(err)
		}
		if err := cmd.Run(); err != nil {
			b.Fatal(err)
		}
		tender.Close()
	}
}

// atGate gives the command of a tender that waits at its gate, and the gate.
func atGate(t *testing.T, tender *solo5.Tender) (*exec.Cmd, *solo5.Gate) {
	t.Helper()
	cmd, gate, err := tender.GatedCommand()
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { gate.Close() })
	return cmd, gate
}

// ends checks what a tender still says on its console, and the status that it ends with.
func ends(t *testing.T, cmd *exec.Cmd, console io.Reader, said string, status int) {
	t.Helper()
	if output, err := io.ReadAll(console); string(output) != said || err != nil {
		t.Errorf("the console said %q (%v)", output, err)
	}
	if cmd.Wait(); cmd.ProcessState.ExitCode() != status {
		t.Errorf("ended with %s", cmd.ProcessState)
	}
}

// endsClosed starts a tender and closes its gate, which ends it without a word of the guest.
func endsClosed(t *testing.T, cmd *exec.Cmd, gate *solo5.Gate) {
	t.Helper()
	console := started(t, cmd, "")
	if err := gate.Close(); err != nil {
		t.Fatal(err)
	}
	ends(t, cmd, console, "", 1)
}
