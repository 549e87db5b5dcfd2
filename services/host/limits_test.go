package host_test

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"fulmar/albatross"
	"fulmar/services/host/hosttest"
)

// proc reads a file of a process.
func proc(t testing.TB, pid int, file string) string {
	t.Helper()
	text, err := os.ReadFile(fmt.Sprintf("/proc/%d/%s", pid, file))
	if err != nil {
		t.Fatal(err)
	}
	return string(text)
}

// field is the value of a line "key: value".
func field(text, key string) string {
	for line := range strings.Lines(text) {
		if k, v, ok := strings.Cut(line, ":"); ok && k == key {
			return strings.Join(strings.Fields(v), " ")
		}
	}
	return ""
}

func TestTheProcessHasNoMoreRightsThanItNeeds(t *testing.T) {
	cfg := config(t)
	bridge(t)
	d := start(t, cfg).destroyAll(t)
	n := name(t, "a:b")
	ucfg := unikernel(hosttest.Guest(t, 1), 1, "wait")
	ucfg.CPUIDs = []int{1}
	d.create(t, n, ucfg)
	d.await(t, n, is("up"))
	pid := stored(t, cfg, n).PID
	status := proc(t, pid, "status")
	ids := strings.TrimSpace(strings.Repeat(fmt.Sprint(cfg.UIDBase, " "), 4))
	for key, want := range map[string]string{
		"Uid": ids, "Gid": ids, "Groups": "", "CapEff": "0000000000000000",
		"CapPrm": "0000000000000000", "NoNewPrivs": "1", "Seccomp": "2", "Cpus_allowed_list": "1", "Threads": "1",
	} {
		if got := field(status, key); got != want {
			t.Errorf("%s is %q, want %q", key, got, want)
		}
	}
	files, err := filepath.Glob(fmt.Sprintf("/proc/%d/fd/*", pid))
	if err != nil {
		t.Fatal(err)
	}
	var open []string
	for _, f := range files {
		to, err := os.Readlink(f)
		if err != nil {
			t.Fatal(err)
		}
		open = append(open, to)
	}
	if len(open) > 5 { // stdout, its tap, epoll, timer, perhaps stderr
		t.Errorf("open files: %v", open)
	}
	info := proc(t, pid, "fdinfo/1")
	if flags := field(info, "flags"); !strings.HasSuffix(flags, "4002") && !strings.HasSuffix(flags, "4000") { // O_NONBLOCK
		t.Errorf("standard output has the flags %s: it may block the unikernel", flags)
	}
}

func TestMemoryIsLimited(t *testing.T) {
	cfg := config(t)
	d := start(t, cfg).destroyAll(t)
	image := hosttest.Guest(t, 0)
	fits := name(t, ":fits")
	ucfg := unikernel(image, 0, "touch")
	ucfg.Memory = 64
	d.create(t, fits, ucfg)
	d.await(t, fits, is("touched"))

	if got := read(t, controlFile(t, stored(t, cfg, fits).PID, "memory", "memory.limit_in_bytes", "memory.max")); got != fmt.Sprint(72<<20) {
		t.Errorf("the memory limit is %s", got)
	}
	if got := read(t, controlFile(t, stored(t, cfg, fits).PID, "pids", "pids.max", "pids.max")); got != "1" {
		t.Errorf("pids.max is %s", got)
	}

	greedy := name(t, ":greedy")
	ucfg.Arguments = []string{"touch", "3000"}
	d.create(t, greedy, ucfg)
	limit := controlFile(t, stored(t, cfg, greedy).PID, "memory", "memory.limit_in_bytes", "memory.max")
	if err := os.WriteFile(limit, []byte("16777216"), 0); err != nil {
		t.Fatal(err)
	}
	if lines := d.await(t, greedy, ended); lines[len(lines)-1] != "fulmar: killed by signal SIGKILL" {
		t.Errorf("a unikernel that takes more than its limit: %q", lines)
	}
}

// controlFile is a file of a process's control group, by its name in v1 or v2.
func controlFile(t testing.TB, pid int, controller, v1, v2 string) string {
	t.Helper()
	unified := ""
	for line := range strings.Lines(proc(t, pid, "cgroup")) {
		switch parts := strings.SplitN(strings.TrimSpace(line), ":", 3); parts[1] {
		case controller:
			return filepath.Join("/sys/fs/cgroup", controller, parts[2], v1)
		case "":
			unified = parts[2]
		}
	}
	return filepath.Join("/sys/fs/cgroup", unified, v2)
}

// read reads a file of one line.
func read(t testing.TB, path string) string {
	t.Helper()
	text, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	return strings.TrimSpace(string(text))
}

func TestRestartAfterAnExit(t *testing.T) {
	cfg := config(t)
	d := start(t, cfg).destroyAll(t)
	image := hosttest.Guest(t, 0)
	restarting := func(codes []int, args ...string) albatross.Config {
		ucfg := unikernel(image, 0, args...)
		ucfg.Fail = albatross.FailBehaviour{Restart: true, ExitCodes: codes}
		return ucfg
	}
	t.Run("again and again with longer and longer pauses", func(t *testing.T) {
		n := name(t, ":again")
		begin := time.Now()
		d.create(t, n, restarting(nil, "exit", "3"))
		count := 0
		d.await(t, n, func(s string) bool {
			if ended(s) {
				count++
			}
			return count == 4
		})
		if dur := time.Since(begin); dur < 700*time.Millisecond || dur > 10*time.Second { // 100 + 200 + 400 ms
			t.Errorf("three restarts took %v", dur)
		}
		if err := d.Destroy(t.Context(), n); err != nil {
			t.Error(err)
		}
		checkNothingLeft(t, cfg)
	})
	t.Run("not after other codes", func(t *testing.T) {
		n := name(t, ":other")
		d.create(t, n, restarting([]int{4}, "exit", "3"))
		d.await(t, n, ended)
		d.awaitForgotten(t, n)
	})
	t.Run("destroyed while it waits", func(t *testing.T) {
		n := name(t, ":waits")
		d.create(t, n, restarting([]int{7}, "exit", "7"))
		count := 0
		d.await(t, n, func(s string) bool {
			if ended(s) {
				count++
			}
			return count == 4 // now it waits 800 ms
		})
		reply := ask(t, cfg, albatross.VMMDSocket, albatross.Wire{Header: albatross.Header{Name: n}, Payload: albatross.UnikernelDestroy{}})
		if reply.Payload != albatross.Text("destroyed: removed from restarting") {
			t.Errorf("destroy: %+v", reply)
		}
		checkNothingLeft(t, cfg)
	})
	t.Run("though another could not take its place while it waited", func(t *testing.T) {
		n := name(t, ":kept")
		kept := restarting([]int{7}, "exit", "7")
		d.create(t, n, kept)
		count := 0
		d.await(t, n, func(s string) bool {
			if ended(s) {
				count++
			}
			return count == 4 // now it waits 800 ms
		})
		blocked := filepath.Join(cfg.RunDir, "fifo", n.String()) // where the console of whatever is started has to be
		if err := os.MkdirAll(filepath.Join(blocked, "x"), 0o700); err != nil {
			t.Fatal(err)
		}
		if err := d.ForceCreate(t.Context(), n, restarting(nil, "wait")); err == nil {
			t.Fatal("it was created")
		}
		if err := os.RemoveAll(blocked); err != nil {
			t.Fatal(err)
		}
		d.await(t, n, func(s string) bool {
			if ended(s) {
				count++
			}
			return count == 9 // the console begins with the four of before
		})
		if err := d.Destroy(t.Context(), n); err != nil {
			t.Error(err)
		}
		checkNothingLeft(t, cfg)
	})
	t.Run("without --name if that is not known", func(t *testing.T) {
		n := name(t, "x:labelled")
		ucfg := unikernel(image, 0, "wait")
		ucfg.AddName = true
		d.create(t, n, ucfg)
		lines := d.await(t, n, is("up"))
		if lines[0] != "fulmar: exited with status 64" {
			t.Errorf("console %q", lines)
		}
		ucfg.Arguments = []string{"args"}
		if err := d.ForceCreate(t.Context(), n, ucfg); err != nil {
			t.Fatal(err)
		}
		d.await(t, n, is("--name=labelled args"))
	})
}

// awaitForgotten waits until n is nothing's name any more.
func (d *daemon) awaitForgotten(t testing.TB, n albatross.Name) {
	t.Helper()
	tick := time.NewTicker(time.Millisecond)
	defer tick.Stop()
	for range 5000 {
		if _, err := d.Image(t.Context(), n, albatross.UnikernelGet{}); errors.Is(err, albatross.ErrNotFound) {
			return
		}
		<-tick.C
	}
	t.Fatalf("%v is not forgotten", n)
}
