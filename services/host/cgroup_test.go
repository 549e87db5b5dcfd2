package host_test

import (
	"cmp"
	"fmt"
	"io/fs"
	"log/slog"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"github.com/prometheus/client_golang/prometheus"
	"golang.org/x/sys/unix"

	"fulmar/services/host"
	"fulmar/services/host/hosttest"
)

func TestWhatNothingExplainsIsSweptAtStart(t *testing.T) {
	for version, c := range groupVersions() {
		t.Run(version, func(t *testing.T) {
			if c.groups == "" {
				t.Skipf("control groups %s are not mounted here", version)
			}
			cfg := config(t)
			cfg.CgroupRoot = c.root
			group := filepath.Join(c.groups, cfg.Cgroup, "a:orphan")
			if err := os.MkdirAll(filepath.Dir(group), 0o755); err != nil {
				t.Fatal(err)
			}
			if err := os.Mkdir(group, fs.ModeSticky|0o755); err != nil {
				t.Fatal(err)
			}
			orphan := sleepIn(t, group)
			foreign := filepath.Join(filepath.Dir(group), "a:foreign")
			if err := os.Mkdir(foreign, 0o755); err != nil {
				t.Fatal(err)
			}
			stranger := sleepIn(t, foreign)
			for _, file := range []string{"run/fifo/a:orphan", "state/images/0123", "state/processes/a:orphan", "state/tmp/half"} {
				path := filepath.Join(filepath.Dir(cfg.RunDir), file)
				if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
					t.Fatal(err)
				}
				if err := os.WriteFile(path, []byte("{"), 0o600); err != nil {
					t.Fatal(err)
				}
			}
			ended := make(chan error, 1)
			go func() { ended <- orphan.Wait() }() // or it stays in its group
			start(t, cfg)
			if err := <-ended; err == nil || err.Error() != "signal: killed" {
				t.Errorf("the orphan ended with %v", err)
			}
			leave(t, stranger, foreign)
			checkNothingLeft(t, cfg)
		})
	}
}

// groupVersions are the versions of control groups, with where host is to look for them and where a group is then. groups is empty if this
// machine does not have them.
func groupVersions() map[string]struct{ root, groups string } {
	return map[string]struct{ root, groups string }{
		"v1": {"/sys/fs/cgroup", mounted("/sys/fs/cgroup/memory", unix.CGROUP_SUPER_MAGIC)},
		"v2": {unifiedRoot(), unifiedRoot()},
	}
}

// sleepIn runs a process in a control group, which ends with the test at the latest.
func sleepIn(t *testing.T, group string) *exec.Cmd {
	t.Helper()
	cmd := exec.Command("sleep", "1000")
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		_ = cmd.Process.Kill()
		_ = cmd.Wait()
	})
	if err := os.WriteFile(filepath.Join(group, "cgroup.procs"), fmt.Appendln(nil, cmd.Process.Pid), 0); err != nil {
		t.Fatal(err)
	}
	return cmd
}

// leave ends a process that has to run still, and removes its control group.
func leave(t *testing.T, cmd *exec.Cmd, group string) {
	t.Helper()
	if err := cmd.Process.Signal(unix.SIGTERM); err != nil {
		t.Error(err)
	}
	if err := cmd.Wait(); err == nil || err.Error() != "signal: terminated" {
		t.Errorf("a process that is not host's ended with %v", err)
	}
	until(t, "the group is empty", func() bool { return os.Remove(group) == nil })
}

func TestAControlGroupThatIsNotForUnikernelsAloneIsRefused(t *testing.T) {
	for version, c := range groupVersions() {
		if c.groups == "" {
			continue // the other one is
		}
		for what, where := range map[string]string{"a child": "ssh.service", "itself": ""} {
			t.Run(version+" "+what, func(t *testing.T) {
				cfg := config(t)
				cfg.CgroupRoot = c.root
				parent := filepath.Join(c.groups, cfg.Cgroup)
				group := filepath.Join(parent, where)
				if err := os.MkdirAll(group, 0o755); err != nil {
					t.Fatal(err)
				}
				stranger := sleepIn(t, group)
				_, err := host.New(cfg, slog.New(slog.DiscardHandler), prometheus.NewRegistry())
				want := fmt.Sprintf("the control group %s holds %s, which is no unikernel", cfg.Cgroup, cmp.Or(where, fmt.Sprint("process ", stranger.Process.Pid)))
				if err == nil || !strings.HasPrefix(err.Error(), want) {
					t.Errorf("host began, or with another error: %v, want %s", err, want)
				}
				leave(t, stranger, group)
				if where != "" {
					until(t, "the parent is empty", func() bool { return os.Remove(parent) == nil })
				}
			})
		}
	}
}

func TestACreateTakesNoControlGroupOfAnother(t *testing.T) {
	cfg := config(t)
	d := start(t, cfg).destroyAll(t)
	c := groupVersions()["v1"]
	if c.groups == "" {
		c = groupVersions()["v2"]
	}
	group := filepath.Join(c.groups, cfg.Cgroup, ":x")
	if err := os.MkdirAll(group, 0o755); err != nil {
		t.Fatal(err)
	}
	stranger := sleepIn(t, group)
	n := name(t, ":x")
	err := d.Create(t.Context(), n, unikernel(hosttest.Guest(t, 0), 0, "wait"))
	if want := "make control group " + cfg.Cgroup + "/:x: somebody else has made it: remove it"; err == nil || !strings.Contains(err.Error(), want) {
		t.Errorf("create: %v, want %s", err, want)
	}
	for _, parent := range controlGroupParents(cfg) {
		if other := filepath.Join(parent, ":x"); other != group && isThere(other) {
			t.Errorf("a control group is left: %s", other)
		}
	}
	leave(t, stranger, group)
	d.create(t, n, unikernel(hosttest.Guest(t, 0), 0, "wait"))
	if info, err := os.Lstat(group); err != nil || info.Mode()&fs.ModeSticky == 0 {
		t.Errorf("the group that host made has no mark: %v, %v", info, err)
	}
}

func isThere(path string) bool {
	_, err := os.Lstat(path)
	return err == nil
}

// unifiedRoot is where control groups v2 are mounted, or empty.
func unifiedRoot() string {
	if path := mounted("/sys/fs/cgroup", unix.CGROUP2_SUPER_MAGIC); path != "" {
		return path
	}
	return mounted("/sys/fs/cgroup/unified", unix.CGROUP2_SUPER_MAGIC)
}

// mounted is path if a file system of the type is there, or else empty.
func mounted(path string, magic int64) string {
	var st unix.Statfs_t
	if unix.Statfs(path, &st) != nil || st.Type != magic {
		return ""
	}
	return path
}

// TestUnifiedControlGroups runs on v2 as far as the machine has it; on the build machines it has no controllers there.
func TestUnifiedControlGroups(t *testing.T) {
	cfg := config(t)
	root := unifiedRoot()
	if root == "" {
		t.Skip("no control groups v2 mounted")
	}
	cfg.CgroupRoot = root
	d := start(t, cfg)
	n := name(t, "a:b")
	d.create(t, n, unikernel(hosttest.Guest(t, 0), 0, "wait"))
	pid := stored(t, cfg, n).PID
	if got := field("x"+strings.ReplaceAll(proc(t, pid, "cgroup"), "0::", "0:"), "0"); !strings.HasSuffix(got, cfg.Cgroup+"/a:b") {
		t.Errorf("control groups of the process: %s", proc(t, pid, "cgroup"))
	}
	if limit, err := os.ReadFile(filepath.Join(root, cfg.Cgroup, "a:b", "memory.max")); err == nil && strings.TrimSpace(string(limit)) != fmt.Sprint(16<<20) {
		t.Errorf("memory.max is %s", limit)
	}
	if err := d.Destroy(t.Context(), n); err != nil {
		t.Error(err)
	}
	if err := d.stop(); err != nil {
		t.Error(err)
	}
	checkNothingLeft(t, cfg)
}
