package hello_test

import (
	"bufio"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"fulmar/examples/hello"
	"fulmar/solo5"
)

// newHVTLab is a lab in which the guest is a virtual machine.
func newHVTLab(t testing.TB) *lab {
	t.Helper()
	if kvm, err := os.OpenFile("/dev/kvm", os.O_RDWR, 0); err != nil {
		t.Skip("no virtual machines here:", err)
	} else {
		kvm.Close()
	}
	l, ctx := newLab(t), testContext(t)
	var err error
	if l.image, err = hello.BuildHVT(ctx, t.TempDir()); err != nil {
		t.Fatal(err)
	}
	path := filepath.Join(t.TempDir(), "fulmar-hvt")
	build := exec.CommandContext(ctx, "go", "build", "-trimpath", "-o", path, "fulmar/cmd/fulmar-hvt")
	build.Env = append(os.Environ(), "CGO_ENABLED=0")
	if out, err := build.CombinedOutput(); err != nil {
		t.Fatalf("build fulmar-hvt: %v\n%s", err, out)
	}
	program, err := os.Open(path)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { program.Close() })
	l.prepare = func(g solo5.Guest) (*solo5.Tender, error) { return solo5.PrepareHVT(g, program) }
	return l
}

// What differs from spt is only how the guest reaches its clock, its console
// and its device, so this is less than what the other tests look at.
func TestHVT(t *testing.T) {
	ctx, l := testContext(t), newHVTLab(t)
	g := l.start(ctx, `--hello="hello, machine"`)
	if got, want := g.console.String(), "hello: serving hello, machine at 10.9.0.7/24 port 80\n"; got != want {
		t.Errorf("console %q, want %q", got, want)
	}
	l.run(ctx, "ping", "-c", "3", "-i", "0.05", "-W", "5", guestIP)
	l.run(ctx, "ping", "-c", "1", "-s", "1472", "-W", "5", guestIP)
	client := l.client(1)
	for path, want := range map[string]struct {
		status int
		body   string
	}{
		"/":             {200, "hello, machine\n"},
		"/none":         {404, "Not Found\n"},
		"/sleep?ms=200": {200, "slept 200 ms\n"},
	} {
		if err := expect(ctx, client, path, want.status, want.body); err != nil {
			t.Error(err)
		}
	}
	l.manyAtOnce(t)
	g.expectAsleep()
	if err := expect(ctx, client, "/exit?code=77", 200, "exiting with status 77\n"); err != nil {
		t.Error(err)
	}
	client.CloseIdleConnections()
	if status := g.exitStatus(ctx); status != 77 {
		t.Errorf("exit status %d, want 77", status)
	}
}

// expectAsleep is expectIdle where an instruction may cost as much as a hundred
// do elsewhere: the guest has as little to do, and that takes it longer.
func (g *guest) expectAsleep() {
	g.t.Helper()
	ticks, switches := usage(g.t, g.cmd.Process.Pid)
	select {
	case <-time.After(time.Second):
	case <-g.ended:
		g.t.Fatal("guest ended")
	}
	ticksAfter, switchesAfter := usage(g.t, g.cmd.Process.Pid)
	if ticksAfter-ticks > 50 || switchesAfter-switches > 30 {
		g.t.Errorf("idle for a second, used %d ticks and woke %d times", ticksAfter-ticks, switchesAfter-switches)
	}
}

// manyAtOnce opens connections, and uses all of them.
func (l *lab) manyAtOnce(t *testing.T) {
	ctx := testContext(t)
	conns := make([]net.Conn, 50)
	for i := range conns {
		conns[i] = l.connect(ctx, "tcp", guestAddr)
	}
	var all sync.WaitGroup
	for i, conn := range conns {
		all.Go(func() {
			r := bufio.NewReader(conn)
			for range 3 {
				fmt.Fprint(conn, request)
				if status, _, err := readAnswer(r); status != 200 {
					t.Errorf("connection %d: %d %v", i, status, err)
				}
			}
		})
	}
	all.Wait()
}

func TestHVTEndsWithoutItsDevice(t *testing.T) {
	ctx, l := testContext(t), newHVTLab(t)
	g := l.start(ctx)
	l.run(ctx, "ip", "link", "delete", tapName)
	if status := g.exitStatus(ctx); status != 1 { // of the tender, which says it
		t.Errorf("exit status %d, want 1", status)
	}
	if said := g.console.String(); !strings.Contains(said, "\nfulmar-hvt: receive from the network device of handle 1: ") {
		t.Errorf("console: %s", said)
	}
}

func TestHVTBadOptions(t *testing.T) {
	ctx, l := testContext(t), newHVTLab(t)
	g := l.launch("--ipv4=nonsense")
	if status := g.exitStatus(ctx); status != 64 {
		t.Errorf("exit status %d, want 64; console %q", status, g.console)
	}
}

func BenchmarkHVTFirstAnswer(b *testing.B)   { newHVTLab(b).benchmarkFirstAnswer(b) }
func BenchmarkHVTKeepAlive(b *testing.B)     { newHVTLab(b).benchmarkKeepAlive(b) }
func BenchmarkHVTNewConnection(b *testing.B) { newHVTLab(b).benchmarkNewConnection(b) }
