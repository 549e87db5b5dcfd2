package main

import (
	"bytes"
	"context"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"fulmar/albatross"
	"fulmar/services/host/hosttest"
)

func TestMain(m *testing.M) { hosttest.Main(func() { os.Exit(m.Run()) }) }

// TestUnderSystemd starts the program as systemd does: with sockets, and a socket for notifications.
func TestUnderSystemd(t *testing.T) {
	hosttest.NeedRoot(t)
	dir, err := os.MkdirTemp("", "host")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = os.RemoveAll(dir) })
	program := filepath.Join(dir, "program")
	if out, err := exec.Command("go", "build", "-o", program, ".").CombinedOutput(); err != nil {
		t.Fatalf("build: %v\n%s", err, out)
	}
	if err := os.MkdirAll(filepath.Join(dir, "run/util"), 0o755); err != nil {
		t.Fatal(err)
	}
	notify, err := net.ListenUnixgram("unixgram", &net.UnixAddr{Name: filepath.Join(dir, "notify"), Net: "unixgram"})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = notify.Close() })

	var log bytes.Buffer
	cmd := exec.Command("sh", "-c", `LISTEN_PID=$$ WATCHDOG_PID=$$ exec "$0"`, program)
	cmd.Env = append(os.Environ(), "HOST_RUN_DIR="+dir+"/run", "HOST_STATE_DIR="+dir+"/state", "HOST_CGROUP=fulmar-test-"+filepath.Base(dir),
		"HOST_UID_BASE=710000", "HOST_HTTP=127.0.0.1:9177", "NOTIFY_SOCKET="+dir+"/notify", "WATCHDOG_USEC=300000",
		"LISTEN_FDS=2", "LISTEN_FDNAMES=console:vmmd")
	cmd.ExtraFiles = []*os.File{listen(t, dir, albatross.ConsoleSocket), listen(t, dir, albatross.VMMDSocket)}
	cmd.Stderr = &log
	cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	if err := exec.Command("ip", "link", "set", "lo", "up").Run(); err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if cmd.ProcessState == nil {
			_ = cmd.Process.Kill()
			_ = cmd.Wait()
			t.Log(log.String())
		}
		for _, controller := range []string{"memory", "pids", ""} {
			_ = os.Remove(filepath.Join("/sys/fs/cgroup", controller, "fulmar-test-"+filepath.Base(dir)))
		}
	})
	for _, want := range []string{"READY=1", "WATCHDOG=1", "WATCHDOG=1"} {
		if err := notify.SetReadDeadline(time.Now().Add(20 * time.Second)); err != nil {
			t.Fatal(err)
		}
		buf := make([]byte, 100)
		n, err := notify.Read(buf)
		if err != nil || string(buf[:n]) != want {
			t.Fatalf("systemd was told %q, %v; want %q", buf[:n], err, want)
		}
	}
	ctx, cancel := context.WithTimeout(t.Context(), 10*time.Second)
	defer cancel()
	client := &albatross.Client{Dir: filepath.Join(dir, "run")}
	if _, err := client.Info(ctx, albatross.Name{}); err != nil {
		t.Error(err)
	}
	for path, want := range map[string]string{"/healthz": "", "/metrics": "fulmar_host_commands_total"} {
		if got, err := get("http://127.0.0.1:9177" + path); err != nil || !strings.Contains(got, want) {
			t.Errorf("%s: %.200s, %v", path, got, err)
		}
	}
	if err := cmd.Process.Signal(syscall.SIGTERM); err != nil {
		t.Fatal(err)
	}
	if err := cmd.Wait(); err != nil {
		t.Errorf("after SIGTERM: %v\n%s", err, log.String())
	}
}

// listen makes a socket as systemd would.
func listen(t *testing.T, dir, socket string) *os.File {
	t.Helper()
	l, err := net.ListenUnix("unix", &net.UnixAddr{Name: filepath.Join(dir, "run", socket), Net: "unix"})
	if err != nil {
		t.Fatal(err)
	}
	l.SetUnlinkOnClose(false)
	f, err := l.File()
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = f.Close() })
	if err := l.Close(); err != nil {
		t.Fatal(err)
	}
	return f
}

// get reads a page that is there.
func get(url string) (string, error) {
	reply, err := http.Get(url)
	if err != nil {
		return "", err
	}
	text, err := io.ReadAll(reply.Body)
	if err == nil && reply.StatusCode != http.StatusOK {
		err = fmt.Errorf("status %s", reply.Status)
	}
	_ = reply.Body.Close()
	return string(text), err
}
