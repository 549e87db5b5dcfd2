package host_test

import (
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"fulmar/albatross"
	"fulmar/services/host"
	"fulmar/solo5/solo5test"
)

// machineImage is a guest of the target hvt with so many network and block devices.
func machineImage(t testing.TB, nets, blocks int) []byte {
	t.Helper()
	kvm, err := os.OpenFile("/dev/kvm", os.O_RDWR, 0)
	if err != nil {
		t.Skipf("needs /dev/kvm: %v", err)
	}
	if err := kvm.Close(); err != nil {
		t.Fatal(err)
	}
	image, err := os.ReadFile(solo5test.BuildHVT(t, solo5test.Features{Nets: nets, Blocks: blocks}))
	if err != nil {
		t.Fatal(err)
	}
	return image
}

// machine is a configuration of a guest of the target hvt, with a block device that is called vol.
func machine(t testing.TB, args ...string) albatross.Config {
	t.Helper()
	cfg := unikernel(machineImage(t, 1, 1), 1, args...)
	cfg.Blocks = []albatross.Block{{Name: "disk0", Device: "vol"}}
	return cfg
}

// everybody makes the test binary one that every user may run, as an installed host is.
func everybody(t testing.TB, cfg *host.Config) {
	t.Helper()
	dir := filepath.Dir(cfg.RunDir)
	program, err := os.ReadFile("/proc/self/exe")
	if err != nil {
		t.Fatal(err)
	}
	cfg.Tender = filepath.Join(dir, "tender")
	if err := os.WriteFile(cfg.Tender, program, 0o755); err != nil {
		t.Fatal(err)
	}
}

func TestVirtualMachine(t *testing.T) {
	cfg := config(t)
	everybody(t, &cfg)
	bridge(t)
	d := start(t, cfg)
	n, waits := name(t, "web:hello"), machine(t, "echo", "18446744073709551615")
	if err := d.AddBlock(t.Context(), name(t, "web:vol"), albatross.BlockAdd{Size: 1}); err != nil {
		t.Fatal(err)
	}
	d.create(t, n, machine(t, "hello", "7"))
	if lines := d.await(t, n, ended); !strings.Contains(strings.Join(lines, "\n"), "hello") || lines[len(lines)-1] != "fulmar: exited with status 7" {
		t.Errorf("console is %q", lines)
	}
	d.create(t, n, waits)
	d.await(t, n, is("up"))
	if len(taps(t)) != 1 {
		t.Errorf("taps are %v", taps(t))
	}
	mismatch := machine(t, "hello", "0")
	mismatch.Bridges = nil
	if err := d.ForceCreate(t.Context(), n, mismatch); err == nil || !strings.Contains(err.Error(), "does not match with the manifest") {
		t.Errorf("without its network device: %v", err)
	}
	if err := d.stop(); err != nil {
		t.Fatal(err)
	}
	d = start(t, cfg) // adopts it
	list, err := d.Info(t.Context(), n)
	if err != nil || len(list) != 1 {
		t.Fatalf("%d unikernels, %v", len(list), err)
	}
	if err := errors.Join(d.Restart(t.Context(), n), d.Destroy(t.Context(), n)); err != nil {
		t.Error(err)
	}
	if got := strings.Join(d.await(t, n, is("fulmar: killed by signal SIGTERM")), "\n"); !strings.Contains(got, "exited with status 7") {
		t.Errorf("the console was not kept: %q", got)
	}
}
