// Package dockertest gives tests a real Docker engine, images made from scratch and a registry, all without a network.
//
// An engine of the tests' own has its data, its sockets and its processes below one temporary directory, touches no
// firewall and no bridge, and ends with the process of the tests, however that ends.
package dockertest

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/docker/docker/client"
	"golang.org/x/sys/unix"
)

// patience bounds the start and the end of an engine.
const patience = 2 * time.Minute

// Engine is a dockerd of the tests' own.
type Engine struct {
	dir     string
	args    []string
	lock    *os.File
	process *exec.Cmd
	exited  chan struct{}
}

// Start starts an engine for one test. Further arguments go to dockerd.
func Start(tb testing.TB, args ...string) *Engine {
	tb.Helper()
	e, err := start(args...)
	if err != nil {
		tb.Fatal(err)
	}
	tb.Cleanup(func() {
		if err := e.close(); err != nil {
			tb.Error(err)
		}
	})
	return e
}

func start(args ...string) (*Engine, error) {
	if err := removeDead(); err != nil {
		return nil, err
	}
	dir, err := os.MkdirTemp("", prefix) // short: the path of a socket has 107 bytes at most
	if err != nil {
		return nil, fmt.Errorf("make the directory of an engine: %w", err)
	}
	e := &Engine{dir: dir, args: args}
	if e.lock, err = lock(dir); err == nil {
		err = os.WriteFile(filepath.Join(dir, "daemon.json"), []byte("{}"), 0o600) // not the one of this machine
	}
	if err == nil {
		err = e.run()
	}
	if err != nil {
		return nil, errors.Join(err, e.close())
	}
	return e, nil
}

// Host is where the engine is, as DOCKER_HOST has it.
func (e *Engine) Host() string { return "unix://" + filepath.Join(e.dir, "docker.sock") }

// Kill ends the engine as a crash does. What it had stays for Restart.
func (e *Engine) Kill(tb testing.TB) {
	tb.Helper()
	if err := e.end(syscall.SIGKILL); err != nil {
		tb.Fatal(err)
	}
}

// Restart starts the engine again after Kill.
func (e *Engine) Restart(tb testing.TB) {
	tb.Helper()
	if err := e.run(); err != nil {
		tb.Fatal(err)
	}
}

// run starts dockerd and waits until it says that it is ready.
func (e *Engine) run() error {
	address := filepath.Join(e.dir, "notify.sock")
	ready, err := net.ListenUnixgram("unixgram", &net.UnixAddr{Name: address, Net: "unixgram"})
	if err != nil {
		return fmt.Errorf("hear from dockerd: %w", err)
	}
	defer func() { _ = os.Remove(address) }()
	defer ready.Close()
	said, err := os.OpenFile(filepath.Join(e.dir, "log"), os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o600)
	if err != nil {
		return fmt.Errorf("open the log of dockerd: %w", err)
	}
	defer said.Close()
	e.process = exec.Command("dockerd", append([]string{
		"--host", e.Host(), "--config-file", filepath.Join(e.dir, "daemon.json"),
		"--data-root", filepath.Join(e.dir, "data"), "--exec-root", filepath.Join(e.dir, "run"), "--pidfile", filepath.Join(e.dir, "pid"),
		"--iptables=false", "--ip6tables=false", "--ip-forward=false", "--ip-masq=false", "--bridge=none",
		"--exec-opt", "native.cgroupdriver=cgroupfs", "--cgroup-parent", "/" + filepath.Base(e.dir),
	}, e.args...)...)
	e.process.Env = append(os.Environ(), "NOTIFY_SOCKET="+address)
	e.process.Stdout, e.process.Stderr = said, said
	e.process.SysProcAttr = &syscall.SysProcAttr{Setpgid: true, Pdeathsig: syscall.SIGTERM} // the end of a terminal is not its end
	e.exited = make(chan struct{})
	started := make(chan error)
	go func() {
		defer close(e.exited)
		runtime.LockOSThread() // its death is what Pdeathsig means; the thread lives as long as the process does
		defer runtime.UnlockOSThread()
		err := e.process.Start()
		started <- err
		if err == nil {
			_ = e.process.Wait() // that it was killed is no news
		}
	}()
	if err := <-started; err != nil {
		return fmt.Errorf("start dockerd: %w", err)
	}
	return e.awaitReady(ready)
}

func (e *Engine) awaitReady(ready *net.UnixConn) error {
	if err := ready.SetReadDeadline(time.Now().Add(patience)); err != nil {
		return fmt.Errorf("hear from dockerd: %w", err)
	}
	done := make(chan struct{})
	defer func() { <-done }()
	over := make(chan struct{})
	defer close(over)
	go func() {
		defer close(done)
		select {
		case <-e.exited:
			_ = ready.SetReadDeadline(time.Unix(1, 0)) // it will say nothing more
		case <-over:
		}
	}()
	for buffer := make([]byte, 4096); ; {
		n, err := ready.Read(buffer)
		if err != nil {
			return fmt.Errorf("dockerd did not start: %w\n%s", err, e.tail())
		}
		if strings.Contains(string(buffer[:n]), "READY=1") {
			return nil
		}
	}
}

// tail is the end of what dockerd said.
func (e *Engine) tail() string {
	text, err := os.ReadFile(filepath.Join(e.dir, "log"))
	if err != nil {
		return err.Error()
	}
	return string(text[max(0, len(text)-4096):])
}

// end ends dockerd and what it started, and waits for both.
func (e *Engine) end(signal syscall.Signal) error {
	if e.process == nil || e.process.Process == nil {
		return nil
	}
	pid := e.process.Process.Pid
	children := descendants(pid)
	if err := e.process.Process.Signal(signal); err != nil && !errors.Is(err, os.ErrProcessDone) {
		return fmt.Errorf("end dockerd: %w", err)
	}
	select {
	case <-e.exited:
	case <-time.After(patience):
		_ = e.process.Process.Kill()
		<-e.exited
	}
	var err error
	for _, child := range children { // a dockerd that was killed ends none of them
		err = errors.Join(err, child.end())
	}
	if gone := os.Remove(filepath.Join(e.dir, "run/containerd/containerd.pid")); gone != nil && !errors.Is(gone, fs.ErrNotExist) {
		err = errors.Join(err, gone) // the next dockerd would take whoever has the number for its containerd
	}
	return err
}

func (e *Engine) close() error {
	err := e.end(syscall.SIGTERM)
	err = errors.Join(err, removeRemains(e.dir))
	if e.lock != nil {
		e.lock.Close()
	}
	return err
}

// answers reports whether an engine is at the host that the environment names, or at the usual one.
func answers() bool {
	api, err := client.NewClientWithOpts(client.FromEnv, client.WithAPIVersionNegotiation())
	if err != nil {
		return false
	}
	defer func() { _ = api.Close() }()
	ctx, cancel := context.WithTimeout(context.Background(), 5*time.Second)
	defer cancel()
	_, err = api.Ping(ctx)
	return err == nil
}

// tests is what package testing runs.
type tests interface{ Run() int }

// Main lets the tests of a package run with an engine: the one that is there already, else one of their own. Either
// way the environment names it, so that a client that is told nothing else uses it:
//
//	func TestMain(m *testing.M) { goleak.VerifyTestMain(dockertest.Main(m)) }
func Main(m tests) tests { return &main{m} }

type main struct{ tests }

// Run runs the tests.
func (m *main) Run() int {
	if answers() {
		return m.tests.Run()
	}
	e, err := start()
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
	if err := os.Setenv(client.EnvOverrideHost, e.Host()); err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
	code := m.tests.Run()
	if err := e.close(); err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
	return code
}

// lock takes the lock that says that a directory is in use, for as long as this process lives.
func lock(dir string) (*os.File, error) {
	f, err := os.OpenFile(filepath.Join(dir, "lock"), os.O_CREATE|os.O_RDWR, 0o600)
	if err != nil {
		return nil, fmt.Errorf("lock the directory of an engine: %w", err)
	}
	if err := unix.Flock(int(f.Fd()), unix.LOCK_EX|unix.LOCK_NB); err != nil {
		f.Close()
		return nil, fmt.Errorf("lock %s: %w", dir, err)
	}
	return f, nil
}
