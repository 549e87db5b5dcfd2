package host_test

import (
	"bytes"
	"fmt"
	"os"
	"slices"
	"strings"
	"syscall"
	"testing"

	"fulmar/albatross"
	"fulmar/services/host/hosttest"
)

// TestWhatIsNotRunIsNotKeptInMemory starts an image whose file is mostly of no use to who runs it, as with the symbols of a program.
func TestWhatIsNotRunIsNotKeptInMemory(t *testing.T) {
	cfg := config(t)
	d := start(t, cfg).destroyAll(t)
	image := hosttest.Guest(t, 0)
	image = slices.Concat(image, bytes.Repeat([]byte("symbols "), 1<<20))
	n := name(t, ":a")
	d.create(t, n, unikernel(image, 0, "wait"))
	d.await(t, n, is("up"))
	pid := stored(t, cfg, n).PID
	found := false
	for line := range strings.Lines(proc(t, pid, "maps")) {
		if !strings.Contains(line, "solo5-image") {
			continue
		}
		found = true
		var from, to uint64
		if _, err := fmt.Sscanf(line, "%x-%x", &from, &to); err != nil {
			t.Fatal(err)
		}
		info, err := os.Stat(fmt.Sprintf("/proc/%d/map_files/%x-%x", pid, from, to))
		if err != nil {
			t.Fatal(err)
		}
		if kept := info.Sys().(*syscall.Stat_t).Blocks * 512; kept > 1<<20 {
			t.Errorf("%d bytes are kept of an image of %d", kept, len(image))
		}
	}
	if !found {
		t.Error("the unikernel maps no image")
	}
	got, err := d.Image(t.Context(), n, albatross.UnikernelGet{})
	if err != nil || !bytes.Equal(got.Image, image) {
		t.Errorf("the image that comes back has %d bytes of %d, %v", len(got.Image), len(image), err)
	}
}
