package host_test

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"syscall"
	"testing"

	"fulmar/albatross"
	"fulmar/services/host"
	"fulmar/services/host/hosttest"
)

// TestEveryKindOfExit runs a unikernel of each target into each kind of end, told to start it again whatever that is: what it says last on
// the console, and whether it is started again.
func TestEveryKindOfExit(t *testing.T) {
	const again, killed = true, "killed by signal SIGKILL"
	statuses := map[int]bool{0: again, 1: !again, 2: again, 59: again, 60: !again, 61: !again, 62: !again, 63: !again, 64: !again, 65: again, 255: again}
	for target, with := range targets() {
		t.Run(target, func(t *testing.T) {
			run := with(t)
			cfg := config(t)
			everybody(t, &cfg)
			d := start(t, cfg).destroyAll(t)
			for status, restarts := range statuses {
				checkExit(t, d, fmt.Sprintf("status-%d", status), run.exits(status), fmt.Sprintf("exited with status %d", status), restarts)
			}
			checkExit(t, d, "forbidden", run.misbehaves, run.caught, !again)

			n := name(t, "killed")
			cfgKilled := run.waits
			cfgKilled.Fail.Restart = true
			d.create(t, n, cfgKilled)
			d.await(t, n, is("up"))
			if err := syscall.Kill(stored(t, d.cfg, n).PID, syscall.SIGKILL); err != nil {
				t.Fatal(err)
			}
			if lines := d.await(t, n, ended); lines[len(lines)-1] != "fulmar: "+killed {
				t.Errorf("killed, it says %q", lines[len(lines)-1])
			}
			d.awaitForgotten(t, n)
		})
	}
}

// checkExit runs a unikernel to its end.
func checkExit(t *testing.T, d *daemon, what string, cfg albatross.Config, want string, again bool) {
	t.Helper()
	cfg.Fail.Restart = true
	n := name(t, "ends:"+what)
	d.create(t, n, cfg)
	lines := d.await(t, n, ended)
	if got := lines[len(lines)-1]; got != "fulmar: "+want {
		t.Errorf("%s: it says %q, want %q", what, lines, want)
	}
	if !again {
		d.awaitForgotten(t, n)
		return
	}
	count := 0
	d.await(t, n, func(s string) bool {
		if ended(s) {
			count++
		}
		return count == 2
	})
	if err := d.Destroy(t.Context(), n); err != nil {
		t.Errorf("%s: %v", what, err)
	}
}

// kinds are unikernels of one target.
type kinds struct {
	exits      func(status int) albatross.Config
	waits      albatross.Config // says up and waits
	misbehaves albatross.Config // does what it must not
	caught     string           // and how it ends then
}

// targets has those of both targets.
func targets() map[string]func(*testing.T) kinds {
	return map[string]func(*testing.T) kinds{
		"spt": func(t *testing.T) kinds {
			image := hosttest.Guest(t, 0)
			return kinds{
				exits:      func(status int) albatross.Config { return unikernel(image, 0, "exit", fmt.Sprint(status)) },
				waits:      unikernel(image, 0, "wait"),
				misbehaves: unikernel(image, 0, "die"), caught: "killed by signal SIGSYS",
			}
		},
		"hvt": func(t *testing.T) kinds {
			image := machineImage(t, 0, 0)
			return kinds{
				exits:      func(status int) albatross.Config { return unikernel(image, 0, "hello", fmt.Sprint(status)) },
				waits:      unikernel(image, 0, "wait", "18446744073709551615"),
				misbehaves: unikernel(image, 0, "misbehave", "write-boot"), caught: "exited with status 1",
			}
		},
	}
}

// TestVirtualMachinesOutliveTheDaemon kills host while three virtual machines run, one of which then ends.
func TestVirtualMachinesOutliveTheDaemon(t *testing.T) {
	image := machineImage(t, 1, 0)
	cfg := config(t)
	bridge(t)
	path := tendedProgram(t, cfg)
	h := startChild(t, path, cfg)
	var names []albatross.Name
	before := map[albatross.Name]int{}
	for _, text := range []string{"a:first", "a:second", "a:ending"} {
		n := name(t, text)
		h.create(t, n, unikernel(image, 1, "echo", "18446744073709551615"))
		h.await(t, n, is("up"))
		names, before[n] = append(names, n), stored(t, cfg, n).PID
	}
	for pid, uid := range processes(t) { // of the small program beside host
		if uid < cfg.UIDBase || uid >= cfg.UIDBase+3 {
			continue
		}
		if exe, err := os.Readlink(fmt.Sprintf("/proc/%d/exe", pid)); err != nil || filepath.Base(exe) != "fulmar-hvt" {
			t.Errorf("process %d of a virtual machine is of %s, %v", pid, exe, err)
		}
	}
	h.end(t, syscall.SIGKILL)
	endProcess(t, before[names[2]])
	if got := len(taps(t)); got != 2 {
		t.Errorf("%d taps while host is down, one of three has ended", got)
	}
	h = startChild(t, path, cfg)
	list, err := h.Info(t.Context(), albatross.Name{})
	if err != nil || len(list) != 2 {
		t.Fatalf("%d unikernels run, %v", len(list), err)
	}
	for _, n := range names[:2] {
		if got := stored(t, cfg, n).PID; got != before[n] {
			t.Errorf("%v is process %d, was %d", n, got, before[n])
		}
	}
	if err := h.Restart(t.Context(), names[0]); err != nil {
		t.Error(err)
	}
	h.await(t, names[0], is("up"))
	for _, n := range names[:2] {
		if err := h.Destroy(t.Context(), n); err != nil {
			t.Error(err)
		}
	}
	checkNothingLeft(t, cfg)
	h.end(t, syscall.SIGTERM)
}

// tendedProgram is host with fulmar-hvt beside it, where every user may run that.
func tendedProgram(t *testing.T, cfg host.Config) string {
	t.Helper()
	dir := filepath.Dir(cfg.RunDir)
	if out, err := exec.Command("go", "build", "-o", dir+"/bin/", "fulmar/cmd/host", "fulmar/cmd/fulmar-hvt").CombinedOutput(); err != nil {
		t.Fatalf("build: %v\n%s", err, out)
	}
	return filepath.Join(dir, "bin/host")
}
