package gc_test

import (
	"context"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/netip"
	"os/exec"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/nats-io/nats.go/jetstream"
	"github.com/prometheus/client_golang/prometheus"
	"go.uber.org/goleak"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/testing/protocmp"
	"google.golang.org/protobuf/types/known/durationpb"
	"google.golang.org/protobuf/types/known/timestamppb"

	"fulmar/bus"
	"fulmar/bus/bustest"
	"fulmar/firewall/nstest"
	"fulmar/messages"
	fulmarv1 "fulmar/messages/fulmar/v1"
	"fulmar/services/gc"
)

func TestMain(m *testing.M) {
	nstest.Enter()
	goleak.VerifyTestMain(m)
}

const (
	patient = 20 * time.Second
	never   = time.Hour // between two sweeps

	underway  = fulmarv1.State_STATE_UNDERWAY
	live      = fulmarv1.State_STATE_LIVE
	draining  = fulmarv1.State_STATE_DRAINING
	condemned = fulmarv1.State_STATE_CONDEMNED
)

// world is a bus, and a host that is a network namespace of the test's own.
type world struct {
	t      *testing.T
	server *bus.Server
	bus    *bus.Bus // in the name of everybody else
}

func newWorld(t *testing.T) *world {
	t.Helper()
	nstest.NeedRoot(t)
	s := bustest.Server(t)
	return &world{t: t, server: s, bus: bustest.Open(t, s, bus.Options{Service: "test"})}
}

// gc runs a gc of host h1.
func (w *world) gc(sweep time.Duration) (stop func()) {
	w.t.Helper()
	b := bustest.Open(w.t, w.server, bus.Options{Service: "gc", Host: "h1", Log: slog.New(slog.NewTextHandler(logged{w.t}, nil))})
	svc, err := gc.New(b, gc.Config{Host: "h1", Sweep: sweep}, prometheus.NewRegistry())
	if err != nil {
		w.t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- b.RunService(ctx, svc) }()
	stop = sync.OnceFunc(func() {
		cancel()
		if err := <-done; err != nil {
			w.t.Errorf("gc ended: %v", err)
		}
	})
	w.t.Cleanup(stop)
	return stop
}

type logged struct{ t *testing.T }

func (l logged) Write(p []byte) (int, error) {
	l.t.Logf("%s", strings.TrimSpace(string(p)))
	return len(p), nil
}

func instance(generation uint64) *fulmarv1.Instance {
	return &fulmarv1.Instance{Unit: "web", Name: messages.InstanceName("web", "web", generation), Network: "n1", Address: fmt.Sprintf("10.9.0.%d", generation)}
}

// entry is a deployment in a head that has just got into a state, with a drain time of a minute.
func entry(generation uint64, state fulmarv1.State, instances ...*fulmarv1.Instance) *fulmarv1.HeadDeployment {
	return &fulmarv1.HeadDeployment{
		Generation: generation, State: state, Host: "h1", Leased: true, Instances: instances,
		Deadline: timestamppb.New(time.Now().Add(time.Minute)), DrainingSince: timestamppb.Now(),
		Content: &fulmarv1.Content{Network: "n1", Drain: durationpb.New(time.Minute)},
	}
}

// head writes the head of stack web.
func (w *world) head(newest uint64, entries ...*fulmarv1.HeadDeployment) {
	w.t.Helper()
	want := &fulmarv1.Head{Stack: "web", Newest: newest, Deployments: entries}
	if _, err := w.bus.Heads.Edit(w.t.Context(), "web", func(*fulmarv1.Head) (*fulmarv1.Head, error) { return want, nil }); err != nil {
		w.t.Fatal(err)
	}
}

func (w *world) state(generation uint64) fulmarv1.State {
	w.t.Helper()
	h, _, err := w.bus.Heads.Get(w.t.Context(), "web")
	if err != nil {
		w.t.Fatal(err)
	}
	return messages.Find(h, generation).GetState()
}

// say says an event of stack web as the successor of whatever was last.
func (w *world) say(verb messages.Verb, generation uint64) {
	w.t.Helper()
	_, last, err := w.bus.Last(w.t.Context(), "web", generation)
	if err == nil {
		err = w.bus.Say(w.t.Context(), &fulmarv1.Event{Verb: string(verb), Deployment: &fulmarv1.Deployment{
			Stack: "web", Generation: generation, Network: &fulmarv1.Network{Name: "n1", Host: "h1", Bridge: "br0"},
		}}, last)
	}
	if err != nil {
		w.t.Fatal(err)
	}
}

// follow gives the events of a generation of stack web, from the first on, one a call.
func (w *world) follow(generation uint64) func() *fulmarv1.Event {
	w.t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), patient)
	w.t.Cleanup(cancel)
	cons, err := w.bus.JS.OrderedConsumer(ctx, messages.EventStream, jetstream.OrderedConsumerConfig{FilterSubjects: []string{messages.ChainFilter("web", generation)}})
	if err != nil {
		w.t.Fatal(err)
	}
	return func() *fulmarv1.Event {
		w.t.Helper()
		msg, err := cons.Next(jetstream.FetchContext(ctx))
		if err != nil {
			w.t.Fatalf("no further event of web-%d: %v", generation, err)
		}
		e := &fulmarv1.Event{}
		if err := proto.Unmarshal(msg.Data(), e); err != nil {
			w.t.Fatal(err)
		}
		return e
	}
}

// chain expects the verbs of a generation of stack web, from the first on, and gives the last event.
func (w *world) chain(generation uint64, verbs ...messages.Verb) *fulmarv1.Event {
	w.t.Helper()
	next := w.follow(generation)
	var e *fulmarv1.Event
	for _, v := range verbs {
		if e = next(); e.GetVerb() != string(v) {
			w.t.Fatalf("web-%d: %s, want %s", generation, e.GetVerb(), v)
		}
	}
	return e
}

// last expects a verb to be the last one of a generation of stack web.
func (w *world) last(generation uint64, want messages.Verb) {
	w.t.Helper()
	if e, _, err := w.bus.Last(w.t.Context(), "web", generation); err != nil || e.GetVerb() != string(want) {
		w.t.Errorf("last event of web-%d: %s, %v; want %s", generation, e.GetVerb(), err, want)
	}
}

// awaitPlan waits until a sweep of the host would do, report or wait with just this.
func (w *world) awaitPlan(want ...string) {
	w.t.Helper()
	ctx, cancel := context.WithTimeout(w.t.Context(), patient)
	defer cancel()
	tick := time.NewTicker(20 * time.Millisecond)
	defer tick.Stop()
	for {
		items, err := w.bus.Sweep(ctx, "h1", true)
		var got []string
		for _, i := range items {
			reason, _, _ := strings.Cut(i.GetReason(), ", for at most ") // and no time
			got = append(got, i.GetSubject()+" "+i.GetAction()+": "+reason)
		}
		diff := cmp.Diff(want, got)
		if err == nil && diff == "" {
			return
		}
		select {
		case <-tick.C:
		case <-ctx.Done():
			w.t.Fatalf("plan of a sweep: %v (-want +got):\n%s", err, diff)
		}
	}
}

// iptables changes the table nat of the test's own network namespace.
func iptables(t *testing.T, args ...string) {
	t.Helper()
	if out, err := exec.Command("iptables", append([]string{"-w", "-t", "nat"}, args...)...).CombinedOutput(); err != nil {
		t.Fatalf("iptables %v: %v: %s", args, err, out)
	}
}

// connect opens a connection of a client through the host to an instance at 10.9.0.5, as the kernel leads it there by the
// chain of generation 5.
func connect(t *testing.T) (open net.Conn) {
	t.Helper()
	bridge := nstest.Bridge(t, "br0", netip.MustParsePrefix("10.9.0.1/24"))
	unikernel, client := nstest.New(t), nstest.New(t)
	unikernel.Attach(t, "tap0", bridge, netip.MustParsePrefix("10.9.0.5/24"), netip.MustParseAddr("10.9.0.1"))
	client.Connect(t, "out0", netip.MustParsePrefix("192.0.2.1/24"), netip.MustParsePrefix("192.0.2.2/24"))
	if out, err := exec.Command("sysctl", "-qw", "net.ipv4.ip_forward=1").CombinedOutput(); err != nil {
		t.Fatalf("sysctl: %v: %s", err, out)
	}
	iptables(t, "-N", "FULMAR-5")
	iptables(t, "-A", "FULMAR-5", "-p", "tcp", "-j", "DNAT", "--to-destination", "10.9.0.5:80")
	iptables(t, "-A", "PREROUTING", "-p", "tcp", "--dport", "8080", "-j", "FULMAR-5")
	iptables(t, "-A", "POSTROUTING", "-s", "10.9.0.0/24", "!", "-o", "br0", "-j", "MASQUERADE") // keeps connections tracked
	t.Cleanup(func() {
		_ = exec.Command("iptables", "-w", "-t", "nat", "-F").Run()
		_ = exec.Command("iptables", "-w", "-t", "nat", "-X").Run()
	})
	l := unikernel.Listen(t, netip.MustParseAddrPort("10.9.0.5:80"))
	var wg sync.WaitGroup
	wg.Go(func() {
		c, err := l.Accept()
		if err != nil {
			return
		}
		_, _ = io.Copy(c, c)
		_ = c.Close()
	})
	t.Cleanup(wg.Wait)
	err := client.Do(func() (err error) {
		open, err = net.DialTimeout("tcp4", "192.0.2.1:8080", patient)
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = open.Close() })
	return open
}

func TestADrainWaitsForKernelAndConnections(t *testing.T) {
	w := newWorld(t)
	open := connect(t)
	long := entry(5, draining, instance(5))
	long.Content.Drain = durationpb.New(24 * time.Hour)
	w.head(6, long, entry(6, live, instance(6)))
	w.say(messages.Published, 5)
	w.say(messages.Published, 6)
	w.gc(never)
	w.awaitPlan("web-5 wait: the kernel still leads clients to it")

	iptables(t, "-D", "PREROUTING", "-p", "tcp", "--dport", "8080", "-j", "FULMAR-5")
	iptables(t, "-F", "FULMAR-5")
	iptables(t, "-X", "FULMAR-5")
	w.awaitPlan("web-5 wait: 1 connections are open")
	if s := w.state(5); s != draining {
		t.Errorf("with an open connection it is %v", s)
	}
	w.last(5, messages.Published)

	if err := open.Close(); err != nil {
		t.Fatal(err)
	}
	e := w.chain(5, messages.Published, messages.Drained)
	if diff := cmp.Diff([]*fulmarv1.Instance{instance(5)}, e.GetDeployment().GetDying(), protocmp.Transform()); diff != "" {
		t.Errorf("dying (-want +got):\n%s", diff)
	}
	if s := w.state(5); s != condemned {
		t.Errorf("drained was said while it is %v", s)
	}
}

func TestADrainEndsWithItsTime(t *testing.T) {
	w := newWorld(t)
	connect(t)
	iptables(t, "-D", "PREROUTING", "-p", "tcp", "--dport", "8080", "-j", "FULMAR-5")
	iptables(t, "-F", "FULMAR-5")
	iptables(t, "-X", "FULMAR-5")
	short := entry(5, draining, instance(5))
	short.Content.Drain = durationpb.New(600 * time.Millisecond)
	w.head(6, short, entry(6, live, instance(6)))
	w.say(messages.Published, 6)
	w.gc(never)
	w.chain(5, messages.Drained)
	if early := time.Until(short.GetDrainingSince().AsTime().Add(600 * time.Millisecond)); early > 0 {
		t.Errorf("it was drained %s before its time was over, with a connection open", early)
	}
}

func TestWhatIsKeptIsNotWaitedFor(t *testing.T) {
	w := newWorld(t)
	w.head(6, entry(5, draining, instance(5)), entry(6, live, instance(5)))
	w.say(messages.Published, 6)
	w.gc(never)
	if e := w.chain(5, messages.Drained); len(e.GetDeployment().GetDying()) > 0 {
		t.Errorf("dying: %v, which generation 6 refers to", e.GetDeployment().GetDying())
	}
}

func TestWhatHasFailedGoes(t *testing.T) {
	w := newWorld(t)
	w.gc(never)
	w.head(6, entry(5, live, instance(5)), entry(6, underway, instance(5), instance(6)), entry(7, underway))
	w.say(messages.Started, 6)
	w.say(messages.Started, 7)
	w.say(messages.Failed, 6)
	e := w.chain(6, messages.Started, messages.Failed, messages.Drained)
	if diff := cmp.Diff([]*fulmarv1.Instance{instance(6)}, e.GetDeployment().GetDying(), protocmp.Transform()); diff != "" {
		t.Errorf("dying (-want +got):\n%s", diff)
	}
	if w.state(5) != live || w.state(7) != underway {
		t.Errorf("the others are %v and %v", w.state(5), w.state(7))
	}
}

func TestTheSweepNeedsNoEvents(t *testing.T) {
	w := newWorld(t)
	expired := entry(5, condemned, instance(5))
	expired.Expired = "not healthy within 1m0s"
	lost := entry(6, condemned, instance(6)) // nothing is left of its log
	elsewhere := entry(8, condemned, instance(8))
	elsewhere.Host = "h2"
	w.head(9, expired, lost, entry(7, underway, instance(7)), elsewhere, entry(9, draining, instance(9)))
	w.say(messages.Started, 5)
	w.say(messages.Failed, 7)
	if err := w.bus.JS.DeleteConsumer(t.Context(), messages.EventStream, "gc-h1"); err == nil {
		t.Fatal("there is a consumer already")
	}
	w.gc(50 * time.Millisecond)

	next := w.follow(5)
	next()
	if e := next(); e.GetVerb() != "failed" || e.GetReason() != expired.GetExpired() || e.GetReasonCode() != fulmarv1.ReasonCode_REASON_CODE_DEADLINE || len(e.GetDeployment().GetDying()) > 0 {
		t.Errorf("first came %v", e)
	}
	if e := next(); e.GetVerb() != "drained" || len(e.GetDeployment().GetDying()) != 1 {
		t.Errorf("then came %v", e)
	}
	e := w.chain(6, messages.Drained)
	want := &fulmarv1.Deployment{
		Stack: "web", Generation: 6, Network: &fulmarv1.Network{Name: "n1", Host: "h1"}, Content: lost.GetContent(),
		Deadline: lost.GetDeadline(), Dying: []*fulmarv1.Instance{instance(6)},
	}
	if diff := cmp.Diff(want, e.GetDeployment(), protocmp.Transform()); diff != "" {
		t.Errorf("the deployment whose log is lost (-want +got):\n%s", diff)
	}
	w.chain(7, messages.Failed, messages.Drained)
	w.chain(9, messages.Drained)
	if e, _, err := w.bus.Last(t.Context(), "web", 8); e != nil || err != nil {
		t.Errorf("of a deployment on another host: %v, %v", e, err)
	}
}

func TestACrashBeforeDrainedAndForgottenAcksDrainOnce(t *testing.T) {
	w := newWorld(t)
	w.head(6, entry(5, condemned, instance(5)), entry(6, live, instance(6))) // condemned by a gc that died then
	w.say(messages.Published, 5)
	w.say(messages.Published, 6)
	stop := w.gc(never)
	w.chain(5, messages.Published, messages.Drained)
	stop()
	if err := w.bus.JS.DeleteConsumer(t.Context(), messages.EventStream, "gc-h1"); err != nil { // every ack is forgotten
		t.Fatal(err)
	}
	w.gc(50 * time.Millisecond)
	w.head(8, entry(5, condemned, instance(5)), entry(6, live, instance(6)), entry(8, underway, instance(8)))
	w.say(messages.Failed, 8) // comes after those that are delivered again
	w.chain(8, messages.Failed, messages.Drained)
	w.last(5, messages.Drained)
	if n := w.count(5, messages.Drained); n != 1 {
		t.Errorf("drained was said %d times", n)
	}
}

func TestTwoReplicasDrainOnce(t *testing.T) {
	w := newWorld(t)
	w.gc(never)
	w.gc(never)
	w.awaitPlan()
	for g := uint64(1); g <= 20; g++ {
		w.head(g, entry(g, underway, instance(g)))
		w.say(messages.Failed, g)
		if _, err := w.bus.Sweep(t.Context(), "h1", false); err != nil { // both hear it, and both sweep
			t.Fatal(err)
		}
		w.chain(g, messages.Failed, messages.Drained)
	}
	for g := uint64(1); g <= 20; g++ {
		if n := w.count(g, messages.Drained); n != 1 {
			t.Errorf("drained was said %d times of web-%d", n, g)
		}
	}
}

func TestOnlyProvenOrphansAreSwept(t *testing.T) {
	w := newWorld(t)
	w.head(6, entry(6, live, instance(6)))
	w.say(messages.Retired, 3)
	running := func(names ...string) *fulmarv1.Host {
		h := &fulmarv1.Host{Name: "h1", Instances: []*fulmarv1.HostInstance{{Name: "web.web.2", Exit: "exited"}}}
		for _, n := range names {
			h.Instances = append(h.Instances, &fulmarv1.HostInstance{Name: n, Running: true})
		}
		return h
	}
	if err := w.bus.Hosts.Put(t.Context(), "h1", running("web.web.3", "web.web.6", "web.web.7", "dns.dns.1", "stranger"), 0); err != nil {
		t.Fatal(err)
	}
	if err := w.bus.Leases.Put(t.Context(), messages.LeaseKey("n1", "10.9.0.3"), &fulmarv1.Lease{Instance: "web.web.3"}, 0); err != nil {
		t.Fatal(err)
	}
	plan := func(first string) []string {
		return []string{
			first,
			"web.web.7 report: the head of stack web knows no generation after 6",
			"dns.dns.1 report: stack dns has no head",
			"stranger report: no deployment made it: its name is not STACK.UNIT.GENERATION",
		}
	}
	b := bustest.Open(t, w.server, bus.Options{Service: "gc", Host: "h1"})
	svc, err := gc.New(b, gc.Config{Host: "h1"}, prometheus.NewRegistry())
	if err != nil {
		t.Fatal(err)
	}
	items, err := svc.Plan(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	var got []string
	for _, i := range items {
		got = append(got, fmt.Sprintf("%s %s: %s", i.Subject, i.Do, i.Why))
	}
	if diff := cmp.Diff(plan("web.web.3 drain: no deployment refers to it"), got); diff != "" {
		t.Errorf("plan (-want +got):\n%s", diff)
	}
	w.last(3, messages.Retired) // a plan does nothing

	w.gc(50 * time.Millisecond)
	e := w.chain(3, messages.Retired, messages.Drained)
	if diff := cmp.Diff([]*fulmarv1.Instance{instance(3)}, e.GetDeployment().GetDying(), protocmp.Transform()); diff != "" {
		t.Errorf("dying (-want +got):\n%s", diff)
	}
	w.awaitPlan(plan("web.web.3 wait: it is being stopped")...)
	for _, stack := range []string{"dns", "stranger"} {
		if e, _, err := w.bus.Last(t.Context(), stack, 1); e != nil || err != nil {
			t.Errorf("of what nobody can explain: %v, %v", e, err)
		}
	}
	if n := w.count(3, messages.Drained); n != 1 {
		t.Errorf("drained was said %d times", n)
	}
}

// count counts how often a verb was said of a generation of stack web.
func (w *world) count(generation uint64, verb messages.Verb) uint64 {
	w.t.Helper()
	s, err := w.bus.JS.Stream(w.t.Context(), messages.EventStream)
	if err != nil {
		w.t.Fatal(err)
	}
	subject := messages.StepSubject("web", generation, verb, "h1")
	info, err := s.Info(w.t.Context(), jetstream.WithSubjectFilter(subject))
	if err != nil {
		w.t.Fatal(err)
	}
	return info.State.Subjects[subject]
}
