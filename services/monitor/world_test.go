package monitor

import (
	"fmt"
	"net"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/nats-io/nats.go/jetstream"
	"github.com/prometheus/client_golang/prometheus"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/durationpb"
	"google.golang.org/protobuf/types/known/timestamppb"

	"fulmar/bus"
	"fulmar/bus/bustest"
	"fulmar/messages"
	fulmarv1 "fulmar/messages/fulmar/v1"
)

const host = "host1"

// world is a bus with what the other services would say on it.
type world struct {
	t      *testing.T
	server *bus.Server
	vmm    *bus.Bus
	heard  jetstream.MessagesContext
}

func newWorld(t *testing.T) *world {
	t.Helper()
	w := &world{t: t, server: bustest.Server(t)}
	w.vmm = bustest.Open(t, w.server, bus.Options{Service: "vmm", Host: host})
	w.heard = w.listen()
	return w
}

func (w *world) listen() jetstream.MessagesContext {
	w.t.Helper()
	c, err := w.vmm.JS.OrderedConsumer(w.t.Context(), messages.EventStream, jetstream.OrderedConsumerConfig{})
	if err != nil {
		w.t.Fatal(err)
	}
	heard, err := c.Messages()
	if err != nil {
		w.t.Fatal(err)
	}
	w.t.Cleanup(heard.Stop)
	return heard
}

// monitor runs a monitor until the function it gives back is called, which waits for it.
func (w *world) monitor() (stop func()) {
	w.t.Helper()
	s, _ := w.idle()
	return bustest.Run(w.t, s.Run)
}

// idle makes a monitor that does not run.
func (w *world) idle() (*Service, *prometheus.Registry) {
	w.t.Helper()
	reg := prometheus.NewRegistry()
	s, err := New(bustest.Open(w.t, w.server, bus.Options{Service: "monitor", Host: host}), Config{Host: host}, reg)
	if err != nil {
		w.t.Fatal(err)
	}
	return s, reg
}

// spec is a unit with its checks, normalised as builder does it.
func spec(t *testing.T, name string, checks ...*fulmarv1.HealthCheck) *fulmarv1.UnitSpec {
	t.Helper()
	r, err := messages.Normalize("web", &fulmarv1.DeployRequest{Units: []*fulmarv1.UnitSpec{{
		Name: name, Image: &fulmarv1.Image{Source: &fulmarv1.Image_Object{Object: strings.Repeat("ab", 32)}}, Health: checks,
	}}})
	if err != nil {
		t.Fatal(err)
	}
	return r.GetUnits()[0]
}

// deployment is one of stack web whose units all live at 127.0.0.1.
func deployment(generation uint64, units ...*fulmarv1.UnitSpec) *fulmarv1.Deployment {
	d := &fulmarv1.Deployment{
		Stack: "web", Generation: generation, Content: &fulmarv1.Content{Units: units, Network: "default"},
		Network: &fulmarv1.Network{Name: "default", Host: host}, Deadline: timestamppb.New(time.Now().Add(time.Minute)),
	}
	for _, u := range units {
		d.Units = append(d.Units, &fulmarv1.Unit{Name: u.GetName(), Instance: &fulmarv1.Instance{
			Unit: u.GetName(), Name: messages.InstanceName("web", u.GetName(), generation), Network: "default", Address: "127.0.0.1",
		}})
	}
	return d
}

func tcp(port int) *fulmarv1.HealthCheck {
	return &fulmarv1.HealthCheck{Probe: &fulmarv1.HealthCheck_Tcp{Tcp: &fulmarv1.TcpProbe{Port: uint32(port)}}}
}

func get(port int) *fulmarv1.HealthCheck {
	return &fulmarv1.HealthCheck{Probe: &fulmarv1.HealthCheck_Http{Http: &fulmarv1.HttpProbe{Port: uint32(port)}}}
}

// every sets the interval and the rows of a check.
func every(c *fulmarv1.HealthCheck, interval time.Duration, successes, failures uint32) *fulmarv1.HealthCheck {
	c.Interval, c.Successes, c.Failures = durationpb.New(interval), successes, failures
	return c
}

func within(c *fulmarv1.HealthCheck, d time.Duration) *fulmarv1.HealthCheck {
	c.StartDeadline = durationpb.New(d)
	return c
}

// say says started of a deployment, as its first event.
func (w *world) say(d *fulmarv1.Deployment) {
	w.t.Helper()
	if err := w.vmm.Say(w.t.Context(), &fulmarv1.Event{Verb: string(messages.Started), Deployment: d}, 0); err != nil {
		w.t.Fatal(err)
	}
}

// hear gives the next event that is not started, and checks its verb.
func (w *world) hear(want messages.Verb) *fulmarv1.Event {
	w.t.Helper()
	for {
		msg, err := w.heard.Next(jetstream.NextMaxWait(10 * time.Second))
		if err != nil {
			w.t.Fatalf("waiting for %s: %v", want, err)
		}
		e := &fulmarv1.Event{}
		if err := proto.Unmarshal(msg.Data(), e); err != nil {
			w.t.Fatal(err)
		}
		if e.GetVerb() == string(messages.Started) {
			continue
		}
		if e.GetVerb() != string(want) {
			w.t.Fatalf("heard %s %q, want %s", e.GetVerb(), e.GetReason(), want)
		}
		return e
	}
}

// silent checks that nothing more was said than what was heard, once everything before is settled.
func (w *world) silent() {
	w.t.Helper()
	mark := deployment(999)
	mark.Stack = "mark"
	w.say(mark)
	last := w.listen()
	for {
		msg, err := last.Next(jetstream.NextMaxWait(10 * time.Second))
		if err != nil {
			w.t.Fatal(err)
		}
		if s, err := messages.ParseEventSubject(msg.Subject()); err == nil && s.Stack == "mark" && s.Verb == messages.Healthy {
			break // those of other stacks are handled beside it, but this one came last
		}
	}
	w.hear(messages.Healthy)
}

// count gives how often a verb stands in the log of stack web.
func (w *world) count(verb messages.Verb) uint64 {
	w.t.Helper()
	s, err := w.vmm.JS.Stream(w.t.Context(), messages.EventStream)
	if err != nil {
		w.t.Fatal(err)
	}
	info, err := s.Info(w.t.Context(), jetstream.WithSubjectFilter("fulmar.event.web.>"))
	if err != nil {
		w.t.Fatal(err)
	}
	var n uint64
	for subject, count := range info.State.Subjects {
		if p, err := messages.ParseEventSubject(subject); err == nil && p.Verb == verb {
			n += count
		}
	}
	return n
}

// head writes a deployment into its head as the other services would, in a state.
func (w *world) head(d *fulmarv1.Deployment, state fulmarv1.State) {
	w.t.Helper()
	_, err := w.vmm.Heads.Edit(w.t.Context(), d.GetStack(), func(h *fulmarv1.Head) (*fulmarv1.Head, error) {
		h = proto.CloneOf(h)
		h.Stack, h.Newest = d.GetStack(), max(h.GetNewest(), d.GetGeneration())
		entry := messages.Find(h, d.GetGeneration())
		if entry == nil {
			entry = &fulmarv1.HeadDeployment{
				Generation: d.GetGeneration(), Deadline: d.GetDeadline(), Content: d.GetContent(), Host: d.GetNetwork().GetHost(), Leased: true,
			}
			for _, u := range d.GetUnits() {
				entry.Instances = append(entry.Instances, u.GetInstance())
			}
			h.Deployments = append(h.Deployments, entry)
		}
		entry.State = state
		return h, nil
	})
	if err != nil {
		w.t.Fatal(err)
	}
}

// record writes what vmm saw of an instance.
func (w *world) record(instance string, running bool, exit, line string) {
	w.t.Helper()
	_, err := w.vmm.Hosts.Edit(w.t.Context(), host, func(h *fulmarv1.Host) (*fulmarv1.Host, error) {
		return &fulmarv1.Host{Name: host, Instances: []*fulmarv1.HostInstance{
			{Name: "other.other.1", Exit: "exited with status 0"},
			{Name: instance, Running: running, Exit: exit, LastLine: line},
		}}, nil
	})
	if err != nil {
		w.t.Fatal(err)
	}
}

// web is a unit's HTTP server that can be ill.
type web struct {
	*httptest.Server
	port  int
	ill   atomic.Bool
	asked atomic.Int64
	conns atomic.Int64
}

func newWeb(t *testing.T) *web {
	t.Helper()
	w := &web{}
	w.Server = httptest.NewUnstartedServer(http.HandlerFunc(func(rw http.ResponseWriter, _ *http.Request) {
		w.asked.Add(1)
		if w.ill.Load() {
			http.Error(rw, "ill", http.StatusServiceUnavailable)
			return
		}
		fmt.Fprintln(rw, "hello")
	}))
	w.Config.ConnState = func(_ net.Conn, s http.ConnState) {
		if s == http.StateNew {
			w.conns.Add(1)
		}
	}
	w.Start()
	t.Cleanup(w.Close)
	w.port = w.Listener.Addr().(*net.TCPAddr).Port
	return w
}

// unused is a port that nobody listens at.
func unused(t *testing.T) int {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	return l.Addr().(*net.TCPAddr).Port
}

// wait polls until a condition holds.
func wait(t *testing.T, what string, holds func() bool) {
	t.Helper()
	tick := time.NewTicker(2 * time.Millisecond)
	defer tick.Stop()
	end := time.After(10 * time.Second)
	for !holds() {
		select {
		case <-tick.C:
		case <-end:
			t.Fatalf("%s did not come", what)
		}
	}
}
