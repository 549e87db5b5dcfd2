package host_test

import (
	"context"
	"os"
	"path/filepath"
	"syscall"
	"testing"
	"time"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"fulmar/albatross"
	"fulmar/services/host"
	"fulmar/services/host/hosttest"
)

// TestKilledAtAnyMomentOfCreateNothingStays kills host while it creates and destroys, at ever later moments, and looks at what the next one makes of it.
func TestKilledAtAnyMomentOfCreateNothingStays(t *testing.T) {
	cfg := config(t)
	bridge(t)
	path := program(t)
	image := hosttest.Guest(t, 1)
	n := name(t, "a:x")
	for delay := time.Duration(0); delay < 45*time.Millisecond; delay += 1500 * time.Microsecond {
		h := startChild(t, path, cfg)
		ctx, cancel := context.WithCancel(t.Context())
		acknowledged := make(chan bool, 1)
		go func() {
			defer cancel()
			for i := range 3 { // create, destroy, create
				var err error
				if i == 1 {
					err = h.Destroy(ctx, n)
				} else {
					err = h.Create(ctx, n, unikernel(image, 1, "wait"))
				}
				if err != nil {
					acknowledged <- false // what was asked last may have happened or not
					return
				}
			}
			acknowledged <- true
		}()
		timer := time.NewTimer(delay)
		<-timer.C
		h.end(t, syscall.SIGKILL)
		up := <-acknowledged
		h = startChild(t, path, cfg)
		list, err := h.Info(t.Context(), albatross.Name{})
		if err != nil {
			t.Fatal(err)
		}
		if up && len(list) != 1 {
			t.Errorf("killed after %v: an acknowledged unikernel is gone", delay)
		}
		if len(taps(t)) > len(list) { // fewer, if the unikernel is about to end
			t.Errorf("killed after %v: %d unikernels, taps %v", delay, len(list), taps(t))
		}
		for _, r := range list {
			if err := h.Destroy(t.Context(), r.Name); err != nil {
				t.Error(err)
			}
		}
		checkNothingLeft(t, cfg)
		h.end(t, syscall.SIGTERM)
		if t.Failed() {
			return
		}
	}
}

// TestAHostWaitsForWhatAKilledOneHadLocked has each lock held for a moment longer, as by a process that a killed host has begun to start.
func TestAHostWaitsForWhatAKilledOneHadLocked(t *testing.T) {
	c := groupVersions()["v1"]
	if c.groups == "" {
		c = groupVersions()["v2"]
	}
	for what, where := range map[string]func(host.Config) string{
		"the state directory": func(cfg host.Config) string { return filepath.Join(cfg.StateDir, "lock") },
		"the run directory":   func(cfg host.Config) string { return cfg.RunDir },
		"the control group":   func(cfg host.Config) string { return filepath.Join(c.groups, cfg.Cgroup) },
	} {
		t.Run(what, func(t *testing.T) {
			cfg := config(t)
			path := where(cfg)
			if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
				t.Fatal(err)
			}
			if filepath.Base(path) == "lock" {
				if err := os.WriteFile(path, nil, 0o600); err != nil {
					t.Fatal(err)
				}
			} else if err := os.Mkdir(path, 0o755); err != nil {
				t.Fatal(err)
			}
			f, err := os.Open(path)
			if err == nil {
				err = unix.Flock(int(f.Fd()), unix.LOCK_EX)
			}
			if err != nil {
				t.Fatal(err)
			}
			free := time.AfterFunc(200*time.Millisecond, func() { _ = f.Close() })
			start(t, cfg)
			if free.Stop() {
				t.Error("host began while it was locked")
			}
		})
	}
}

// TestADueRestartSurvivesTheDaemon kills host while a unikernel waits to be started again, twice.
func TestADueRestartSurvivesTheDaemon(t *testing.T) {
	cfg := config(t)
	path := program(t)
	n := name(t, ":again")
	h := startChild(t, path, cfg)
	ucfg := unikernel(hosttest.Guest(t, 0), 0, "exit", "3")
	ucfg.Fail.Restart = true
	h.create(t, n, ucfg)
	for range 2 {
		count := 0
		h.await(t, n, func(s string) bool {
			if ended(s) {
				count++
			}
			return count == 2
		})
		h.end(t, syscall.SIGKILL)
		h = startChild(t, path, cfg)
	}
	h.await(t, n, is("exiting"))
	reply := ask(t, cfg, albatross.VMMDSocket, albatross.Wire{Header: albatross.Header{Name: n}, Payload: albatross.UnikernelDestroy{}})
	if _, ok := reply.Payload.(albatross.Text); !ok {
		t.Errorf("destroy: %+v", reply)
	}
	checkNothingLeft(t, cfg)
}

// TestACreateThatFailsLeavesWhatIsDueSinceTheDaemonBegan has the bridge missing when host begins, so that what ended while it did not run is not started yet.
func TestACreateThatFailsLeavesWhatIsDueSinceTheDaemonBegan(t *testing.T) {
	cfg := config(t)
	path := program(t)
	br := anew(t, false)
	n := name(t, ":due")
	h := startChild(t, path, cfg)
	ucfg := unikernel(hosttest.Guest(t, 1), 1, "wait")
	ucfg.Fail.Restart = true
	h.create(t, n, ucfg)
	h.await(t, n, is("up"))
	h.end(t, syscall.SIGKILL)
	endProcess(t, stored(t, cfg, n).PID)
	if err := netlink.LinkDel(br); err != nil {
		t.Fatal(err)
	}
	h = startChild(t, path, cfg)
	blocked := filepath.Join(cfg.RunDir, "fifo", n.String()) // where the console of whatever is started has to be
	if err := os.MkdirAll(filepath.Join(blocked, "x"), 0o700); err != nil {
		t.Fatal(err)
	}
	if err := h.ForceCreate(t.Context(), n, unikernel(hosttest.Guest(t, 0), 0, "wait")); err == nil {
		t.Fatal("it was created")
	}
	if err := os.RemoveAll(blocked); err != nil {
		t.Fatal(err)
	}
	anew(t, false)
	h.await(t, n, is("up"))
	if err := h.Destroy(t.Context(), n); err != nil {
		t.Error(err)
	}
	checkNothingLeft(t, cfg)
}
