package host_test

import (
	"bufio"
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"fulmar/albatross"
	"fulmar/services/host"
	"fulmar/services/host/hosttest"
)

// program builds cmd/host.
func program(t testing.TB) string {
	t.Helper()
	hosttest.NeedRoot(t)
	path := filepath.Join(t.TempDir(), "host")
	if out, err := exec.Command("go", "build", "-o", path, "fulmar/cmd/host").CombinedOutput(); err != nil {
		t.Fatalf("build host: %v\n%s", err, out)
	}
	return path
}

// child is a host in a process of its own.
type child struct {
	*daemon
	cmd *exec.Cmd
}

// startChild starts the program and waits until it is ready.
func startChild(t testing.TB, path string, cfg host.Config) *child {
	t.Helper()
	cmd := exec.Command(path, "--run-dir", cfg.RunDir, "--state-dir", cfg.StateDir, "--cgroup", cfg.Cgroup, "--uid-base", strconv.Itoa(cfg.UIDBase))
	log, err := cmd.StderrPipe()
	if err != nil {
		t.Fatal(err)
	}
	cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	ready, done := make(chan struct{}), make(chan struct{})
	go func() {
		defer close(done)
		for lines := bufio.NewScanner(log); lines.Scan(); {
			t.Logf("%s", lines.Bytes())
			var entry struct{ Msg string }
			if json.Unmarshal(lines.Bytes(), &entry) == nil && entry.Msg == "host started" {
				close(ready)
			}
		}
	}()
	t.Cleanup(func() {
		if cmd.ProcessState == nil {
			_ = cmd.Process.Signal(syscall.SIGTERM)
			_ = cmd.Wait()
		}
		<-done
	})
	select {
	case <-ready:
	case <-done:
		t.Fatal("host ended before it was ready")
	}
	return &child{daemon: &daemon{Client: &albatross.Client{Dir: cfg.RunDir}, cfg: cfg}, cmd: cmd}
}

// end sends a signal and waits for the end.
func (c *child) end(t testing.TB, sig syscall.Signal) {
	t.Helper()
	if err := c.cmd.Process.Signal(sig); err != nil {
		t.Fatal(err)
	}
	err := c.cmd.Wait()
	var status *exec.ExitError
	if sig != syscall.SIGKILL && err != nil || sig == syscall.SIGKILL && !errors.As(err, &status) {
		t.Errorf("host ended with %v", err)
	}
}

// stored reads the state file of a unikernel's process.
func stored(t testing.TB, cfg host.Config, n albatross.Name) (h struct {
	PID  int
	Boot string
},
) {
	t.Helper()
	text, err := os.ReadFile(filepath.Join(cfg.StateDir, "processes", n.String()))
	if err == nil {
		err = json.Unmarshal(text, &h)
	}
	if err != nil {
		t.Fatal(err)
	}
	return h
}

func TestUnikernelsOutliveTheDaemon(t *testing.T) {
	path := program(t)
	for sigName, sig := range map[string]syscall.Signal{"stopped": syscall.SIGTERM, "killed": syscall.SIGKILL} {
		t.Run(sigName, func(t *testing.T) {
			cfg := config(t)
			bridge(t)
			image := hosttest.Guest(t, 1)
			counting, waiting, dying := name(t, "a:counting"), name(t, "a:waiting"), name(t, "a:dying")
			h := startChild(t, path, cfg)
			begin := time.Now()
			h.create(t, counting, unikernel(image, 1, "count", "10"))
			h.create(t, waiting, unikernel(image, 1, "wait"))
			h.create(t, dying, unikernel(image, 1, "later", "8000", "7"))
			h.await(t, counting, is("count 3"))
			h.await(t, dying, is("up"))
			pid := stored(t, cfg, counting).PID
			before, err := h.Info(t.Context(), counting)
			if err != nil {
				t.Fatal(err)
			}
			h.end(t, sig)
			most := int(time.Since(begin) / (10 * time.Millisecond)) // which it can have counted to by now
			if len(taps(t)) != 3 {
				t.Fatalf("taps while host is down: %v", taps(t))
			}

			h = startChild(t, path, cfg)
			after, err := h.Info(t.Context(), albatross.Name{})
			if err != nil || len(after) != 3 {
				t.Fatalf("info after: %+v, %v", after, err)
			}
			i := slices.IndexFunc(after, func(r albatross.Running) bool { return r.Name == counting })
			if fmt.Sprint(after[i]) != fmt.Sprint(before[0]) || stored(t, cfg, counting).PID != pid {
				t.Errorf("the unikernel is another: %+v, was %+v", after, before)
			}
			last := most + 20
			lines := h.await(t, counting, is(fmt.Sprintf("count %d", last)))
			for _, l := range lines {
				if !strings.HasPrefix(l, "count ") {
					t.Errorf("line %q", l)
				}
			}
			first, err := strconv.Atoi(strings.TrimPrefix(lines[0], "count "))
			if err != nil || first > most+1 || len(lines) != last+1-first { // the killed one may have read all until then
				t.Errorf("lines were lost: %d from %q to %d, which had counted to %d at most", len(lines), lines[0], last, most)
			}
			got := h.await(t, dying, ended)
			if got := got[len(got)-1]; got != "fulmar: exited with status 7" {
				t.Errorf("an adopted unikernel's end: %q", got)
			}
			for _, n := range []albatross.Name{counting, waiting} {
				if err := h.Destroy(t.Context(), n); err != nil {
					t.Error(err)
				}
			}
			checkNothingLeft(t, cfg)
			h.end(t, syscall.SIGTERM)
		})
	}
}

func TestWhatEndsWhileTheDaemonIsDownIsForgottenOrStartedAgain(t *testing.T) {
	path := program(t)
	cfg := config(t)
	image := hosttest.Guest(t, 0)
	quits, restarts, picky := name(t, ":quits"), name(t, ":restarts"), name(t, ":picky")
	h := startChild(t, path, cfg)
	config := unikernel(image, 0, "wait")
	h.create(t, quits, config)
	config.Fail.Restart = true
	h.create(t, restarts, config)
	config.Fail.ExitCodes = []int{3}
	h.create(t, picky, config)
	h.end(t, syscall.SIGKILL)
	for _, n := range []albatross.Name{quits, restarts, picky} {
		endProcess(t, stored(t, cfg, n).PID)
	}
	h = startChild(t, path, cfg)
	h.await(t, restarts, is("up"))
	list, err := h.Info(t.Context(), albatross.Name{})
	if err != nil || len(list) != 1 || list[0].Name != restarts {
		t.Errorf("info: %+v, %v", list, err)
	}
	if err := h.Destroy(t.Context(), restarts); err != nil {
		t.Error(err)
	}
	checkNothingLeft(t, cfg)
}

// endProcess kills a process and waits until its parent has collected it: nobody can tell any more how it ended.
func endProcess(t testing.TB, pid int) {
	t.Helper()
	fd, err := unix.PidfdOpen(pid, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = unix.Close(fd) }()
	if err := unix.PidfdSendSignal(fd, unix.SIGKILL, nil, 0); err != nil {
		t.Fatal(err)
	}
	fds := []unix.PollFd{{Fd: int32(fd)}} // for POLLHUP alone
	for n := 0; n == 0; {
		if n, err = unix.Poll(fds, 10000); err != nil && !errors.Is(err, unix.EINTR) {
			t.Fatal(err)
		}
	}
}

func TestAfterABootUnikernelsAreStartedAgainInTheirOrder(t *testing.T) {
	cfg := config(t)
	path := program(t)
	image := hosttest.Guest(t, 0)
	h := startChild(t, path, cfg)
	var names []albatross.Name
	for i, startup := range []int{60, 10, 50} {
		n := name(t, fmt.Sprintf(":u%d", i))
		ucfg := unikernel(image, 0, "wait")
		ucfg.Startup = &startup
		if startup == 50 {
			ucfg.Startup = nil // the default
		}
		names = append(names, n)
		h.create(t, n, ucfg)
	}
	gone := name(t, ":gone")
	h.create(t, gone, unikernel(image, 0, "wait"))
	if err := h.Destroy(t.Context(), gone); err != nil {
		t.Fatal(err)
	}
	h.end(t, syscall.SIGKILL)
	for _, n := range names {
		endProcess(t, stored(t, cfg, n).PID)
	}
	reboot(t, cfg)
	if err := os.RemoveAll(cfg.RunDir); err != nil { // a tmpfs
		t.Fatal(err)
	}
	h = startChild(t, path, cfg)
	var started []time.Time
	for _, n := range names {
		h.await(t, n, is("up"))
		list, err := h.Info(t.Context(), n)
		if err != nil || len(list) != 1 {
			t.Fatalf("info of %v: %+v, %v", n, list, err)
		}
		started = append(started, list[0].Started)
	}
	if !started[1].Before(started[2]) || !started[2].Before(started[0]) {
		t.Errorf("started at %v: not in the order of startup", started)
	}
	if list, err := h.Info(t.Context(), albatross.Name{}); err != nil || len(list) != 3 {
		t.Errorf("info: %+v, %v", list, err)
	}
	h.destroyAll(t)
}

// reboot makes all state one of another boot.
func reboot(t testing.TB, cfg host.Config) {
	t.Helper()
	boot, err := os.ReadFile("/proc/sys/kernel/random/boot_id")
	if err != nil {
		t.Fatal(err)
	}
	files, err := filepath.Glob(filepath.Join(cfg.StateDir, "*", ":*"))
	if err != nil || len(files) == 0 {
		t.Fatalf("no state: %v", err)
	}
	for _, f := range files {
		text, err := os.ReadFile(f)
		if err != nil {
			t.Fatal(err)
		}
		text = bytes.ReplaceAll(text, bytes.TrimSpace(boot), []byte("11111111-2222-3333-4444-555555555555"))
		if err := os.WriteFile(f, text, 0o600); err != nil {
			t.Fatal(err)
		}
	}
}

func TestAReusedPidIsNotAdopted(t *testing.T) {
	cfg := config(t)
	path := program(t)
	h := startChild(t, path, cfg)
	n := name(t, ":x")
	h.create(t, n, unikernel(hosttest.Guest(t, 0), 0, "wait"))
	h.end(t, syscall.SIGKILL)
	state := filepath.Join(cfg.StateDir, "processes", ":x")
	endProcess(t, stored(t, cfg, n).PID)
	text, err := os.ReadFile(state)
	if err != nil {
		t.Fatal(err)
	}
	var saved map[string]any
	if err := json.Unmarshal(text, &saved); err != nil {
		t.Fatal(err)
	}
	stranger := exec.Command("cat")
	in, err := stranger.StdinPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := stranger.Start(); err != nil {
		t.Fatal(err)
	}
	saved["PID"] = stranger.Process.Pid
	if text, err = json.Marshal(saved); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(state, text, 0o600); err != nil {
		t.Fatal(err)
	}
	h = startChild(t, path, cfg)
	if list, err := h.Info(t.Context(), n); err != nil || len(list) != 0 {
		t.Errorf("info: %+v, %v", list, err)
	}
	h.end(t, syscall.SIGTERM)
	if err := in.Close(); err != nil {
		t.Fatal(err)
	}
	if err := stranger.Wait(); err != nil {
		t.Errorf("the stranger ended with %v", err)
	}
}
