package host_test

import (
	"crypto/rand"
	"errors"
	"os"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"fulmar/albatross"
	"fulmar/services/host/hosttest"
)

// TestAFullDiskIsToldAndHurtsNobody has the state on a disk of 1 MB.
func TestAFullDiskIsToldAndHurtsNobody(t *testing.T) {
	cfg := config(t)
	if err := os.MkdirAll(cfg.StateDir, 0o700); err != nil {
		t.Fatal(err)
	}
	if err := errors.Join(unix.Mount("", "/", "", unix.MS_REC|unix.MS_PRIVATE, ""), unix.Mount("tmpfs", cfg.StateDir, "tmpfs", 0, "size=1m")); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = unix.Unmount(cfg.StateDir, unix.MNT_DETACH) })
	d := start(t, cfg).destroyAll(t)
	image := hosttest.Guest(t, 0)
	running := name(t, "running")
	d.create(t, running, unikernel(image, 0, "wait"))
	d.await(t, running, is("up"))
	pid := stored(t, cfg, running).PID
	large := append(image, make([]byte, 2<<20)...)
	if _, err := rand.Read(large[len(image):]); err != nil {
		t.Fatal(err)
	}
	for what, err := range map[string]error{
		"create":       d.Create(t.Context(), name(t, "large"), unikernel(large, 0, "wait")),
		"force create": d.ForceCreate(t.Context(), running, unikernel(large, 0, "wait")),
		"block device": d.AddBlock(t.Context(), name(t, "vol"), albatross.BlockAdd{Size: 5}),
	} {
		var failure *albatross.FailureError
		if !errors.As(err, &failure) || !strings.Contains(failure.Message, "no space left on device") || strings.Contains(failure.Message, "\n") {
			t.Errorf("%s: %v", what, err)
		}
	}
	list, err := d.Info(t.Context(), albatross.Name{})
	if err != nil || len(list) != 1 || list[0].Name != running || stored(t, cfg, running).PID != pid {
		t.Errorf("runs: %+v, %v", list, err)
	}
	if blocks, err := d.Blocks(t.Context(), albatross.Name{}); err != nil || len(blocks) != 0 {
		t.Errorf("block devices: %v, %v", blocks, err)
	}
	other := name(t, "other")
	d.create(t, other, unikernel(image, 0, "wait"))
	d.await(t, other, is("up"))
	for _, n := range []albatross.Name{running, other} {
		if err := d.Destroy(t.Context(), n); err != nil {
			t.Error(err)
		}
	}
	checkNothingLeft(t, cfg)
}
