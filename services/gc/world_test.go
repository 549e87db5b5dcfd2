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
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/durationpb"
	"google.golang.org/protobuf/types/known/timestamppb"

	"fulmar/bus"
	"fulmar/bus/bustest"
	"fulmar/firewall/nstest"
	"fulmar/messages"
	fulmarv1 "fulmar/messages/fulmar/v1"
	"fulmar/services/gc"
)

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
	return bustest.Run(w.t, func(ctx context.Context) error { return b.RunService(ctx, svc) })
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

// unpublish takes the chain of generation 5 out of the kernel.
func unpublish(t *testing.T) {
	t.Helper()
	iptables(t, "-D", "PREROUTING", "-p", "tcp", "--dport", "8080", "-j", "FULMAR-5")
	iptables(t, "-F", "FULMAR-5")
	iptables(t, "-X", "FULMAR-5")
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
