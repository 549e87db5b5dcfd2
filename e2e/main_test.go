// Package e2e_test shows the whole system at work, on real parts in network namespaces of its own: the commands as they
// are installed, a real bus, real unikernels, a real bridge, real iptables, and clients in another namespace. The
// process of the tests is on the host, so that it sees what the kernel there has.
package e2e_test

import (
	"context"
	"fmt"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"strings"
	"testing"
	"time"

	"fulmar/bus"
	"fulmar/e2e/lab"
	"fulmar/examples/hello"
	"fulmar/messages"
	fulmarv1 "fulmar/messages/fulmar/v1"
)

const (
	patience = 60 * time.Second // for everything that must happen
	rate     = 500              // new connections a second
)

// What TestMain has built, for the environment of the tests: directories.
const (
	binKey   = "FULMAR_E2E_BIN"
	imageKey = "FULMAR_E2E_IMAGE"
)

// TestMain moves into the host's namespace and builds the commands and the unikernel. With FULMAR_E2E_RACE set, the
// commands look for data races.
func TestMain(m *testing.M) {
	if os.Geteuid() != 0 {
		os.Exit(m.Run()) // each test is skipped, and says why
	}
	status, err := run(m)
	if err != nil {
		fmt.Fprintln(os.Stderr, "e2e:", err)
		status = 1
	}
	os.Exit(status)
}

func run(m *testing.M) (int, error) {
	if err := lab.Enter(); err != nil {
		return 0, err
	}
	dir, err := os.MkdirTemp("", "fulmar-e2e-*")
	if err != nil {
		return 0, err
	}
	defer os.RemoveAll(dir)
	var flags []string
	if os.Getenv("FULMAR_E2E_RACE") != "" {
		flags = []string{"-race"}
	}
	if err := lab.Build(context.Background(), dir, flags, "fulmar", "host", "builder", "ipam", "vmm", "monitor", "nat", "gc"); err != nil {
		return 0, err
	}
	image, err := hello.Build(context.Background(), dir)
	if err != nil {
		return 0, err
	}
	if err := os.Setenv(binKey, dir); err != nil {
		return 0, err
	}
	if err := os.Setenv(imageKey, image); err != nil {
		return 0, err
	}
	return m.Run(), nil
}

// world is a lab with what a test looks at it with.
type world struct {
	*lab.Lab
	t     *testing.T
	args  []string // of up
	image string
	bus   *bus.Bus
	log   *lab.Log
}

// newLab makes a lab in which nothing runs yet.
func newLab(t *testing.T) *world {
	t.Helper()
	if os.Geteuid() != 0 {
		t.Skip("needs root: makes network namespaces, taps, control groups and firewall rules")
	}
	dir, err := os.MkdirTemp("", "fulmar-e2e-*") // a short path: sockets lie in it
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = os.RemoveAll(dir) })
	l, err := lab.New(dir, os.Getenv(binKey))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := l.Close(); err != nil {
			t.Error(err)
		}
	})
	return &world{Lab: l, t: t, image: os.Getenv(imageKey)}
}

// newWorld makes a lab in which Fulmar is up.
func newWorld(t *testing.T) *world {
	t.Helper()
	w := newLab(t)
	w.up()
	w.connect()
	return w
}

// eachBackend runs a test in a lab of its own with each backend of the firewall.
func eachBackend(t *testing.T, test func(t *testing.T, w *world)) {
	for _, backend := range []string{"iptables", "nftables"} {
		t.Run(backend, func(t *testing.T) {
			w := newLab(t)
			w.args = []string{"--firewall-backend", backend}
			test(t, w)
		})
	}
}

// in is the world as a subtest looks at it.
func (w *world) in(t *testing.T) *world {
	sub := *w
	sub.t = t
	return &sub
}

// up starts Fulmar until the test ends.
func (w *world) up() *lab.Process {
	w.t.Helper()
	p, err := w.Up(w.args...)
	if err != nil {
		w.t.Fatal(err)
	}
	w.keep(p)
	return p
}

// keep stops a process when the test ends, and shows its log if the test failed.
func (w *world) keep(p *lab.Process) {
	w.t.Cleanup(func() {
		if err := p.Stop(); err != nil {
			w.t.Error(err)
		}
		if text, err := os.ReadFile(p.Log()); w.t.Failed() && err == nil {
			w.t.Logf("%s:\n%s", p.Log(), text)
		}
	})
}

// connect opens the bus and follows its log until the test ends.
func (w *world) connect() {
	w.t.Helper()
	nc, err := bus.Connect("nats://127.0.0.1:4222", "", "e2e")
	if err != nil {
		w.t.Fatal(err)
	}
	w.t.Cleanup(nc.Close)
	if w.bus, err = bus.Open(w.t.Context(), nc, bus.Options{Service: "e2e"}); err != nil {
		w.t.Fatal(err)
	}
	if w.log, err = lab.Follow(context.WithoutCancel(w.t.Context()), w.bus); err != nil {
		w.t.Fatal(err)
	}
	w.t.Cleanup(w.log.Close)
	w.t.Cleanup(w.explain)
}

// explain shows, if the test failed, what a person would look at.
func (w *world) explain() {
	if !w.t.Failed() {
		return
	}
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	defer cancel()
	for _, args := range [][]string{{"ps", "--all"}, {"gc", "--dry-run"}} {
		out, err := w.Fulmar(ctx, args...)
		w.t.Logf("fulmar %s: %v\n%s", strings.Join(args, " "), err, out)
	}
	rules, err := lab.Rules()
	w.t.Logf("rules: %v\n%s", err, strings.Join(rules, "\n"))
	table, err := exec.CommandContext(ctx, "conntrack", "-L", "-p", "tcp").Output() // with the state of each, which decides about a drain
	w.t.Logf("connections: %v", err)
	for line := range strings.Lines(string(table)) {
		if !strings.Contains(line, "src=127.0.0.1") { // those of the bus
			w.t.Log(strings.TrimSpace(line))
		}
	}
}

// patient gives a context for what must happen.
func (w *world) patient() context.Context {
	ctx, cancel := context.WithTimeout(w.t.Context(), patience)
	w.t.Cleanup(cancel)
	return ctx
}

// cli runs the command line, which must succeed, and gives what it printed.
func (w *world) cli(args ...string) string {
	w.t.Helper()
	out, err := w.Fulmar(w.patient(), args...)
	if err != nil {
		w.t.Fatalf("%v\n%s", err, out)
	}
	return out
}

// deployArgs is the command line that deploys hello with a text at a port of the host.
func (w *world) deployArgs(stack string, port int, text string, more ...string) []string {
	args := []string{"deploy", stack, w.image, "--port", fmt.Sprintf("%d:80/tcp", port), "--memory", "16"}
	return append(append(args, lab.HelloArgs(text)...), more...)
}

// deploy deploys hello with a text at a port of the host.
func (w *world) deploy(stack string, port int, text string, more ...string) string {
	w.t.Helper()
	return w.cli(w.deployArgs(stack, port, text, more...)...)
}

// request stores a request as any program would, and gives its generation.
func (w *world) request(kind fulmarv1.Kind, stack, body string) uint64 {
	w.t.Helper()
	generation, err := w.bus.Request(w.patient(), kind, stack, []byte(body))
	if err != nil {
		w.t.Fatal(err)
	}
	return generation
}

// await waits until a deployment says one of the verbs.
func (w *world) await(stack string, generation uint64, verbs ...messages.Verb) lab.Said {
	w.t.Helper()
	s, err := w.log.AwaitVerb(w.patient(), stack, generation, verbs...)
	if err != nil {
		w.t.Fatal(err)
	}
	return s
}

// verbs lists what a deployment has said so far, without observations.
func (w *world) verbs(stack string, generation uint64) []messages.Verb {
	var said []messages.Verb
	for _, s := range w.log.All() {
		if s.Stack == stack && s.Generation == generation && !s.Verb.Observation() {
			said = append(said, s.Verb)
		}
	}
	return said
}

// head reads the head of a stack.
func (w *world) head(stack string) *fulmarv1.Head {
	w.t.Helper()
	h, _, err := w.bus.Heads.Get(w.patient(), stack)
	if err != nil {
		w.t.Fatal(err)
	}
	return h
}

// live gives the one live deployment of a stack.
func (w *world) live(stack string) *fulmarv1.HeadDeployment {
	w.t.Helper()
	d := messages.InState(w.head(stack), fulmarv1.State_STATE_LIVE)
	if d == nil {
		w.t.Fatalf("nothing of stack %s is live: %v", stack, w.head(stack))
	}
	return d
}

// address gives the address of the only instance of what is live.
func (w *world) address(stack string) netip.Addr {
	w.t.Helper()
	instances := w.live(stack).GetInstances()
	if len(instances) != 1 {
		w.t.Fatalf("stack %s has instances %v, not one", stack, instances)
	}
	return netip.MustParseAddr(instances[0].GetAddress())
}

// at is a published port as clients see it.
func at(port uint16) netip.AddrPort {
	return netip.AddrPortFrom(netip.MustParseAddr(lab.HostAddr), port)
}

// answers fails the test unless a client is answered with a text at a published port.
func (w *world) answers(port uint16, text string) {
	w.t.Helper()
	if got, err := w.Clients.Get(at(port)); err != nil || got != text {
		w.t.Fatalf("port %d answers %q, %v; want %q", port, got, err, text)
	}
}

// dial opens a connection from the clients until the test ends.
func (w *world) dial(network string, to netip.AddrPort) net.Conn {
	w.t.Helper()
	c, err := w.Clients.Dial(net.Dialer{Timeout: patience}, network, to)
	if err != nil {
		w.t.Fatal(err)
	}
	w.t.Cleanup(func() { _ = c.Close() })
	return c
}

// until polls until f is nil.
func (w *world) until(f func(ctx context.Context) error) {
	w.t.Helper()
	ctx := w.patient()
	if err := lab.Until(ctx, func() error { return f(ctx) }); err != nil {
		w.t.Fatal(err)
	}
}

// flowing waits until a load has had so many more answers with a text.
func (w *world) flowing(load *lab.Load, text string, more int) {
	w.t.Helper()
	before := load.Seen(text)
	w.until(func(context.Context) error {
		if n := load.Seen(text) - before; n < more {
			return fmt.Errorf("%d more answers %q, want %d", n, text, more)
		}
		return nil
	})
}

// unfailing ends a load and fails the test if a request failed, or was answered only because a packet was sent again.
func (w *world) unfailing(load *lab.Load) lab.Result {
	w.t.Helper()
	r := load.Stop()
	if r.Failed > 0 {
		w.t.Errorf("of %d requests %d failed: %v", r.Requests, r.Failed, r.Errors)
	}
	if err := r.Dropped(); err != nil {
		w.t.Error(err)
	}
	w.t.Logf("answers %v, the slowest took %v, %d late, %d packets sent again", r.Bodies, r.Slowest, r.Behind, r.Resent)
	return r
}

// retired fails the test unless nothing is left when all stacks are retired: on the host, in the leases, in the heads.
func (w *world) retired() {
	w.t.Helper()
	if err := w.Clean(w.patient()); err != nil {
		w.t.Error(err)
	}
	w.until(func(ctx context.Context) error {
		var held []string
		leases, err := w.bus.Leases.All(ctx)
		if err != nil {
			return err
		}
		for key, l := range leases {
			if l.GetRestingUntil() == nil {
				held = append(held, key+" by "+l.GetInstance())
			}
		}
		heads, err := w.bus.Heads.All(ctx)
		if err != nil {
			return err
		}
		for stack, h := range heads {
			for _, d := range h.GetDeployments() {
				if d.GetState() != fulmarv1.State_STATE_LIVE || len(d.GetContent().GetUnits()) > 0 {
					held = append(held, "deployment "+messages.DeploymentName(stack, d.GetGeneration())+" "+d.GetState().String())
				}
			}
		}
		hosts, err := w.bus.Hosts.All(ctx)
		if err != nil {
			return err
		}
		for _, h := range hosts {
			for _, i := range h.GetInstances() {
				held = append(held, "host record of "+i.GetName())
			}
		}
		if len(held) > 0 {
			return fmt.Errorf("left behind: %s", strings.Join(held, ", "))
		}
		return nil
	})
}
