package host_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/vishvananda/netlink"

	"fulmar/albatross"
	"fulmar/services/host"
	"fulmar/services/host/hosttest"
)

// daemon is a host in this process.
type daemon struct {
	*albatross.Client
	cfg  host.Config
	stop func() error
}

// config is that of a host for one test.
func config(t testing.TB) host.Config {
	t.Helper()
	hosttest.NeedRoot(t)
	dir, err := os.MkdirTemp("", "host") // short: the path of a socket has at most 107 bytes
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = os.RemoveAll(dir) })
	cfg := host.Config{RunDir: filepath.Join(dir, "run"), StateDir: filepath.Join(dir, "state"), Cgroup: "fulmar-test-" + filepath.Base(dir), UIDBase: 1000000 + os.Getpid()%1000000*1000} // no other test's
	t.Cleanup(func() {
		checkNothingLeft(t, cfg)
		for _, dir := range controlGroupParents(cfg) {
			if err := os.Remove(dir); err == nil && !t.Failed() {
				t.Errorf("a control group was left: %s", dir)
			}
		}
	})
	return cfg
}

// start runs a host until the test ends or stop is called. What still runs then is destroyed.
func start(t testing.TB, cfg host.Config) *daemon {
	t.Helper()
	svc, err := host.New(cfg, slog.New(slog.NewTextHandler(testWriter{t}, nil)), prometheus.NewRegistry())
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- svc.Run(ctx) }()
	select {
	case <-svc.Ready():
	case err := <-done:
		t.Fatalf("host ended: %v", err)
	}
	d := &daemon{Client: &albatross.Client{Dir: cfg.RunDir}, cfg: cfg}
	d.stop = sync.OnceValue(func() error {
		cancel()
		return <-done
	})
	t.Cleanup(func() {
		if err := d.stop(); err != nil {
			t.Errorf("host ended: %v", err)
		}
	})
	return d
}

// testWriter logs what host logs.
type testWriter struct{ t testing.TB }

func (w testWriter) Write(p []byte) (int, error) {
	w.t.Logf("%s", bytes.TrimSpace(p))
	return len(p), nil
}

// destroyAll ends all that a test left running, when it ends.
func (d *daemon) destroyAll(t testing.TB) *daemon {
	t.Helper()
	t.Cleanup(func() {
		ctx := context.Background()
		list, err := d.Info(ctx, albatross.Name{})
		if err != nil {
			t.Error(err)
		}
		for _, r := range list {
			if err := d.Destroy(ctx, r.Name); err != nil && !errors.Is(err, albatross.ErrNotFound) {
				t.Error(err)
			}
		}
	})
	return d
}

// bridge makes a bridge for one test.
func bridge(t testing.TB) *netlink.Bridge {
	t.Helper()
	hosttest.NeedRoot(t)
	b := &netlink.Bridge{LinkAttrs: netlink.LinkAttrs{Name: "br0"}}
	if err := netlink.LinkAdd(b); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := netlink.LinkDel(b); err != nil {
			t.Error(err)
		}
	})
	if err := netlink.LinkSetUp(b); err != nil {
		t.Fatal(err)
	}
	return b
}

// checkNothingLeft looks for what a host must not leave behind when nothing runs.
func checkNothingLeft(t testing.TB, cfg host.Config) {
	t.Helper()
	if got := taps(t); len(got) > 0 {
		t.Errorf("taps are left: %v", got)
	}
	if got := unicast(t); got != nil {
		t.Errorf("a table of nftables is left, with %v", got)
	}
	for _, dir := range []string{
		filepath.Join(cfg.RunDir, "fifo"), filepath.Join(cfg.StateDir, "unikernels"), filepath.Join(cfg.StateDir, "processes"),
		filepath.Join(cfg.StateDir, "images"), filepath.Join(cfg.StateDir, "tmp"),
	} {
		files, err := os.ReadDir(dir)
		if err != nil && !errors.Is(err, os.ErrNotExist) {
			t.Error(err)
		}
		for _, f := range files {
			t.Errorf("a file is left: %s", filepath.Join(dir, f.Name()))
		}
	}
	for _, dir := range controlGroupParents(cfg) {
		files, err := os.ReadDir(dir)
		if err != nil {
			continue
		}
		for _, f := range files {
			if f.IsDir() {
				t.Errorf("a control group is left: %s", filepath.Join(dir, f.Name()))
			}
		}
	}
	for pid, uid := range processes(t) {
		if uid >= cfg.UIDBase && uid < cfg.UIDBase+1000 {
			t.Errorf("process %d of user %d is left", pid, uid)
		}
	}
}

// controlGroupParents are the places where the parent of a host's control groups may be.
func controlGroupParents(cfg host.Config) (dirs []string) {
	for _, root := range []string{"/sys/fs/cgroup/memory", "/sys/fs/cgroup/pids", "/sys/fs/cgroup", "/sys/fs/cgroup/unified"} {
		dirs = append(dirs, filepath.Join(root, cfg.Cgroup))
	}
	return dirs
}

// processes lists the users of all processes that run.
func processes(t testing.TB) map[int]int {
	t.Helper()
	files, err := filepath.Glob("/proc/[0-9]*/status")
	if err != nil {
		t.Fatal(err)
	}
	uids := make(map[int]int)
	for _, f := range files {
		text, err := os.ReadFile(f)
		if err != nil {
			continue // it ended meanwhile
		}
		var pid, uid int
		var state string
		for line := range strings.Lines(string(text)) {
			_, _ = fmt.Sscanf(line, "Pid: %d", &pid)
			_, _ = fmt.Sscanf(line, "Uid: %d", &uid)
			_, _ = fmt.Sscanf(line, "State: %s", &state)
		}
		if state != "Z" { // that is its new parent's to collect
			uids[pid] = uid
		}
	}
	return uids
}

// taps lists the taps of the namespace.
func taps(t testing.TB) []string {
	t.Helper()
	links, err := netlink.LinkList()
	if err != nil {
		t.Fatal(err)
	}
	var names []string
	for _, l := range links {
		if l.Type() == "tuntap" {
			names = append(names, l.Attrs().Name)
		}
	}
	slices.Sort(names)
	return names
}

func name(t testing.TB, s string) albatross.Name {
	t.Helper()
	n, err := albatross.ParseName(s)
	if err != nil {
		t.Fatal(err)
	}
	return n
}

// unikernel is a configuration that runs image with the arguments, a network device on br0 for each net.
func unikernel(image []byte, nets int, args ...string) albatross.Config {
	cfg := albatross.Config{Image: image, Args: albatross.Args{Memory: 8, CPUs: 1, CPUIDs: []int{0}, Arguments: args}}
	for i := range nets {
		cfg.Bridges = append(cfg.Bridges, albatross.Bridge{Netif: fmt.Sprintf("net%d", i), Bridge: "br0"})
	}
	return cfg
}

// create starts a unikernel or fails the test.
func (d *daemon) create(t testing.TB, n albatross.Name, cfg albatross.Config) {
	t.Helper()
	if err := d.Create(t.Context(), n, cfg); err != nil {
		t.Fatal(err)
	}
}

// await returns once the console of n has had a line for which want is true, with all lines until then.
func (d *daemon) await(t testing.TB, n albatross.Name, want func(string) bool) []string {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
	defer cancel()
	found := errors.New("found")
	var lines []string
	err := d.Subscribe(ctx, n, albatross.ConsoleSubscribe{Count: 10000}, func(l albatross.ConsoleLine) error {
		lines = append(lines, l.Line)
		if want(l.Line) {
			return found
		}
		return nil
	})
	if !errors.Is(err, found) {
		t.Fatalf("console of %v: %v, after %q", n, err, lines[max(0, len(lines)-10):])
	}
	return lines
}

func is(want string) func(string) bool { return func(s string) bool { return s == want } }

func ended(s string) bool { return strings.HasPrefix(s, "fulmar: ") }

// dial connects to a socket of host.
func dial(t testing.TB, cfg host.Config, socket string) net.Conn {
	t.Helper()
	conn, err := net.Dial("unix", filepath.Join(cfg.RunDir, socket))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = conn.Close() })
	return conn
}

// ask sends one message and reads the reply, after which host closes.
func ask(t testing.TB, cfg host.Config, socket string, w albatross.Wire) albatross.Wire {
	t.Helper()
	conn := dial(t, cfg, socket)
	der, err := albatross.Marshal(w)
	if err != nil {
		t.Fatal(err)
	}
	if err := albatross.WriteFrame(conn, der); err != nil {
		t.Fatal(err)
	}
	reply := receive(t, conn)
	if rest, err := io.ReadAll(conn); err != nil || len(rest) > 0 {
		t.Errorf("after the reply came %q, %v", rest, err)
	}
	return reply
}

// receive reads one message.
func receive(t testing.TB, conn net.Conn) albatross.Wire {
	t.Helper()
	frame, err := albatross.ReadFrame(conn, 1<<20)
	if err != nil {
		t.Fatal(err)
	}
	reply, err := albatross.Unmarshal(frame)
	if err != nil {
		t.Fatal(err)
	}
	return reply
}
