package albatross

import (
	"context"
	"errors"
	"io"
	"net"
	"os"
	"path/filepath"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"
)

// serve answers the connections to a socket of a new run directory with handle, and returns the directory.
func serve(t *testing.T, socket string, handle func(net.Conn)) string {
	t.Helper()
	dir := t.TempDir()
	if err := os.Mkdir(filepath.Join(dir, "util"), 0o700); err != nil {
		t.Fatal(err)
	}
	l, err := net.Listen("unix", filepath.Join(dir, socket))
	if err != nil {
		t.Fatal(err)
	}
	var wg sync.WaitGroup
	wg.Go(func() {
		for {
			conn, err := l.Accept()
			if err != nil {
				return
			}
			wg.Go(func() {
				defer conn.Close()
				handle(conn)
			})
		}
	})
	t.Cleanup(func() {
		l.Close()
		wg.Wait()
	})
	return dir
}

// answer makes a handler of one command per connection. Without a payload it closes, as a daemon does that does not know a command.
func answer(t *testing.T, f func(Header, Command) Payload) func(net.Conn) {
	return func(conn net.Conn) {
		h, m, err := ReadRequest(conn, 1<<20)
		if err != nil {
			t.Errorf("read request: %v", err)
			return
		}
		if p := f(h, m); p != nil {
			if err := WriteReply(conn, h, p); err != nil {
				t.Errorf("write reply: %v", err)
			}
		}
	}
}

func testContext(t *testing.T) context.Context {
	ctx, cancel := context.WithTimeout(t.Context(), 10*time.Second)
	t.Cleanup(cancel)
	return ctx
}

func name(t *testing.T, s string) Name {
	t.Helper()
	n, err := ParseName(s)
	if err != nil {
		t.Fatal(err)
	}
	return n
}

func TestClientCommands(t *testing.T) {
	got := make(chan Command, 5)
	c := &Client{Dir: serve(t, VMMDSocket, answer(t, func(h Header, m Command) Payload {
		got <- m
		if h.Name.String() != "a:hello" || h.Sequence == 0 {
			t.Errorf("header %+v", h)
		}
		return Text("done")
	}))}
	ctx, n := testContext(t), name(t, "a:hello")
	cfg := Config{Image: []byte("ELF"), Args: Args{CPUIDs: []int{0}, Memory: 32, Arguments: []string{"--a"}}}
	sent := cfg
	sent.CPUs = 1
	for _, err := range []error{
		c.Create(ctx, n, cfg), c.ForceCreate(ctx, n, cfg), c.Destroy(ctx, n), c.Restart(ctx, n), c.RestartWith(ctx, n, cfg.Args),
	} {
		if err != nil {
			t.Error(err)
		}
	}
	want := []Command{
		UnikernelCreate{Config: sent},
		UnikernelCreate{Config: sent, Force: true},
		UnikernelDestroy{},
		UnikernelRestart{},
		UnikernelRestart{Args: &sent.Args},
	}
	for _, w := range want {
		if diff := cmp.Diff(w, <-got, names, cmpopts.EquateEmpty()); diff != "" {
			t.Errorf("command differs (-want +got):\n%s", diff)
		}
	}
}

func TestClientFailures(t *testing.T) {
	tests := map[string]error{
		"Unikernel with same name is already running":                            ErrExists,
		"destroy: not found":                                                     ErrNotFound,
		"bridges br7 not allowed by policy":                                      ErrPolicy,
		"maximum allowed memory (64, used 32) would be exceeded (requesting 33)": ErrPolicy,
		"remove block: is in use":                                                ErrInUse,
		"block device :storage not found":                                        nil,
	}
	for message, want := range tests {
		c := &Client{Dir: serve(t, VMMDSocket, answer(t, func(Header, Command) Payload { return Failure(message) }))}
		err := c.Create(testContext(t), name(t, "hello"), Config{Args: Args{CPUIDs: []int{0}}})
		var failure *FailureError
		if !errors.As(err, &failure) || failure.Message != message || failure.Command != "create" {
			t.Errorf("%q comes back as %v", message, err)
		}
		for _, sentinel := range []error{ErrExists, ErrNotFound, ErrInUse, ErrPolicy} {
			if errors.Is(err, sentinel) != errors.Is(want, sentinel) {
				t.Errorf("%q is %v: %v", message, sentinel, errors.Is(err, sentinel))
			}
		}
	}
}

// A daemon answers a restart of what was stopped before with a success, once, and starts nothing.
func TestClientFindsThatNothingWasRestarted(t *testing.T) {
	for reply, want := range map[Text]error{
		"created unikernel": nil, "destroyed: removed from restarting": ErrNotFound, "destroyed: removed waiter": ErrNotFound,
	} {
		c := &Client{Dir: serve(t, VMMDSocket, answer(t, func(Header, Command) Payload { return reply }))}
		for what, err := range map[string]error{
			"as it was":          c.Restart(testContext(t), name(t, "hello")),
			"with new arguments": c.RestartWith(testContext(t), name(t, "hello"), Args{CPUIDs: []int{0}}),
		} {
			if !errors.Is(err, want) {
				t.Errorf("restart %s, %q: %v", what, reply, err)
			}
		}
	}
}

// A create of a path makes every later create of a real daemon fail, so it is never sent.
func TestClientNeedsALabel(t *testing.T) {
	c := &Client{Dir: serve(t, VMMDSocket, func(net.Conn) { t.Error("connected") })}
	ctx := testContext(t)
	for _, s := range []string{":", "a:"} {
		for what, err := range map[string]error{
			"create": c.Create(ctx, name(t, s), Config{}), "force create": c.ForceCreate(ctx, name(t, s), Config{}),
			"destroy": c.Destroy(ctx, name(t, s)), "restart": c.Restart(ctx, name(t, s)),
			"subscribe": c.Subscribe(ctx, name(t, s), ConsoleSubscribe{}, nil),
		} {
			if !errors.Is(err, ErrNoLabel) {
				t.Errorf("%s %s: %v", what, s, err)
			}
		}
	}
}

// Names in a reply are relative to the path that was asked for, and full if one thing was.
func TestClientInfoGivesFullNames(t *testing.T) {
	tests := map[string]struct{ replied, want []string }{
		":":       {[]string{":hello", "foo:bar"}, []string{":hello", "foo:bar"}},
		"foo:":    {[]string{":net", "sub:x"}, []string{"foo:net", "foo:sub:x"}},
		"foo:net": {[]string{"foo:net"}, []string{"foo:net"}},
		"gone":    {nil, nil},
	}
	for asked, tt := range tests {
		c := &Client{Dir: serve(t, VMMDSocket, answer(t, func(Header, Command) Payload {
			reply := Unikernels{}
			for _, s := range tt.replied {
				reply.List = append(reply.List, Running{Name: name(t, s)})
			}
			return reply
		}))}
		list, err := c.Info(testContext(t), name(t, asked))
		if err != nil {
			t.Fatal(err)
		}
		var got []string
		for _, r := range list {
			got = append(got, r.Name.String())
		}
		if diff := cmp.Diff(tt.want, got); diff != "" {
			t.Errorf("info %s differs (-want +got):\n%s", asked, diff)
		}
	}
}

func TestClientWithoutReply(t *testing.T) {
	c := &Client{Dir: serve(t, VMMDSocket, func(conn net.Conn) {
		if _, err := ReadFrame(conn, 1<<20); err != nil {
			t.Error(err)
		}
	})}
	if err := c.Destroy(testContext(t), name(t, "hello")); !errors.Is(err, ErrNoReply) {
		t.Errorf("destroy: %v", err)
	}
	if err := c.Create(testContext(t), name(t, "hello"), Config{Args: Args{CPUIDs: []int{0}}}); !errors.Is(err, ErrNoReply) {
		t.Errorf("create: %v", err)
	}
	if g, ok := c.Speaks(); ok {
		t.Errorf("learnt %v of a daemon that does not answer", g)
	}
}

// A daemon that refuses a large command before it has read it all is heard.
func TestClientHearsAnEarlyRefusal(t *testing.T) {
	c := &Client{Dir: serve(t, VMMDSocket, func(conn net.Conn) {
		if _, err := io.ReadFull(conn, make([]byte, 4)); err != nil {
			t.Error(err)
		}
		if err := WriteReply(conn, Header{Sequence: 1}, Failure("too large")); err != nil {
			t.Error(err)
		}
	})}
	err := c.Create(testContext(t), name(t, "hello"), Config{Image: make([]byte, 8<<20), Args: Args{CPUIDs: []int{0}}})
	var failure *FailureError
	if !errors.As(err, &failure) || failure.Message != "too large" {
		t.Errorf("got %v", err)
	}
}

func TestClientRefusesAnotherSequence(t *testing.T) {
	c := &Client{Dir: serve(t, VMMDSocket, func(conn net.Conn) {
		h, _, err := ReadRequest(conn, 1<<20)
		if err != nil {
			t.Error(err)
		}
		h.Sequence++
		if err := WriteReply(conn, h, Text("done")); err != nil {
			t.Error(err)
		}
	})}
	if err := c.Destroy(testContext(t), name(t, "hello")); !errors.Is(err, ErrUnexpected) {
		t.Errorf("got %v", err)
	}
}

func TestClientEndsWithItsContext(t *testing.T) {
	ctx, cancel := context.WithCancel(testContext(t))
	c := &Client{Dir: serve(t, VMMDSocket, func(conn net.Conn) {
		if _, _, err := ReadRequest(conn, 1<<20); err != nil {
			t.Error(err)
		}
		cancel()
		_, _ = io.Copy(io.Discard, conn) // until the client closes
	})}
	if err := c.Destroy(ctx, name(t, "hello")); !errors.Is(err, context.Canceled) {
		t.Errorf("got %v", err)
	}
}

// busyListener listens with the kernel's smallest backlog, as the real daemon does, so that dials answer EAGAIN.
func busyListener(t *testing.T) (dir string, fd int, first net.Conn) {
	t.Helper()
	dir = t.TempDir()
	if err := os.Mkdir(filepath.Join(dir, "util"), 0o700); err != nil {
		t.Fatal(err)
	}
	fd, err := syscall.Socket(syscall.AF_UNIX, syscall.SOCK_STREAM|syscall.SOCK_CLOEXEC, 0)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = syscall.Close(fd) })
	if err := syscall.Bind(fd, &syscall.SockaddrUnix{Name: filepath.Join(dir, VMMDSocket)}); err != nil {
		t.Fatal(err)
	}
	if err := syscall.Listen(fd, 0); err != nil {
		t.Fatal(err)
	}
	first, err = net.Dial("unix", filepath.Join(dir, VMMDSocket))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { first.Close() })
	if conn, err := net.Dial("unix", filepath.Join(dir, VMMDSocket)); !errors.Is(err, syscall.EAGAIN) {
		if err == nil {
			conn.Close()
		}
		t.Fatalf("the second dial does not find the backlog full: %v", err)
	}
	return dir, fd, first
}

func TestClientWaitsForABusyDaemon(t *testing.T) {
	dir, fd, first := busyListener(t)
	c := &Client{Dir: dir}
	ctx, cancel := context.WithTimeout(t.Context(), 100*time.Millisecond)
	defer cancel()
	if err := c.Destroy(ctx, name(t, "hello")); !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("while the daemon is busy: %v", err)
	}

	done := make(chan error, 1)
	go func() { done <- c.Destroy(testContext(t), name(t, "hello")) }()
	var serving sync.WaitGroup
	for range 2 { // the connection that filled the backlog, and the client's
		nfd, _, err := syscall.Accept4(fd, syscall.SOCK_CLOEXEC)
		if err != nil {
			t.Fatal(err)
		}
		conn := os.NewFile(uintptr(nfd), "accepted")
		defer conn.Close()
		serving.Go(func() {
			if h, _, err := ReadRequest(conn, 1<<20); err == nil {
				_ = WriteReply(conn, h, Text("destroyed unikernel"))
			}
		})
	}
	if err := <-done; err != nil {
		t.Errorf("when the daemon is ready again: %v", err)
	}
	first.Close()
	serving.Wait()
}

func TestClientSubscribes(t *testing.T) {
	at := time.Date(2026, 11, 21, 20, 49, 11, 123e6, time.UTC)
	c := &Client{Dir: serve(t, ConsoleSocket, func(conn net.Conn) {
		h, m, err := ReadRequest(conn, 1<<20)
		if err != nil || !cmp.Equal(m, Command(ConsoleSubscribe{Count: 2})) {
			t.Errorf("got %+v, %v", m, err)
		}
		if err := WriteReply(conn, h, Text("subscribed")); err != nil {
			t.Error(err)
		}
		for _, line := range []string{"one", "two"} {
			if err := WriteData(conn, h.Name, ConsoleData{Time: at, Line: line}); err != nil {
				t.Error(err)
			}
		}
	})}
	var got []ConsoleLine
	err := c.Subscribe(testContext(t), name(t, "hello"), ConsoleSubscribe{Count: 2}, func(line ConsoleLine) error {
		got = append(got, line)
		return nil
	})
	want := []ConsoleLine{{name(t, "hello"), ConsoleData{at, "one"}}, {name(t, "hello"), ConsoleData{at, "two"}}}
	if diff := cmp.Diff(want, got, names); err != nil || diff != "" {
		t.Errorf("error %v, lines differ (-want +got):\n%s", err, diff)
	}

	stop := errors.New("enough")
	err = c.Subscribe(testContext(t), name(t, "hello"), ConsoleSubscribe{Count: 2}, func(line ConsoleLine) error {
		if line.Line == "two" { // the last, or the daemon would write to nobody
			return stop
		}
		return nil
	})
	if !errors.Is(err, stop) {
		t.Errorf("the receiver's error is %v", err)
	}
}
