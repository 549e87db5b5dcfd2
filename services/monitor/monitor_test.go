package monitor

import (
	"context"
	"fmt"
	"net"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/nats-io/nats.go/jetstream"
	"github.com/prometheus/client_golang/prometheus"
	"go.uber.org/goleak"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/durationpb"
	"google.golang.org/protobuf/types/known/timestamppb"

	"fulmar/bus"
	"fulmar/bus/bustest"
	"fulmar/messages"
	fulmarv1 "fulmar/messages/fulmar/v1"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

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
	return run(w.t, s)
}

func run(t *testing.T, s *Service) (stop func()) {
	t.Helper()
	ctx, cancel := context.WithCancel(context.Background())
	var wg sync.WaitGroup
	wg.Go(func() {
		if err := s.Run(ctx); err != nil {
			t.Errorf("monitor: %v", err)
		}
	})
	stop = func() {
		cancel()
		wg.Wait()
	}
	t.Cleanup(stop)
	return stop
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

func TestHealthyOnceAllChecksAreGood(t *testing.T) {
	w, a, b := newWorld(t), newWeb(t), newWeb(t)
	w.monitor()
	d := deployment(42, spec(t, "web", tcp(a.port), every(get(a.port), 10*time.Millisecond, 3, 3)), spec(t, "signer", get(b.port)))
	w.say(d)
	e := w.hear(messages.Healthy)
	if !proto.Equal(e.GetDeployment(), d) {
		t.Errorf("the deployment changed on its way: %v", e.GetDeployment())
	}
	if n := a.asked.Load(); n != 3 {
		t.Errorf("unit web was asked %d times, want 3", n)
	}
}

func TestADeploymentWithoutUnitsIsHealthy(t *testing.T) {
	w := newWorld(t)
	w.monitor()
	w.say(deployment(42))
	w.hear(messages.Healthy)
}

func TestAUnitMayTakeItsTime(t *testing.T) {
	w, a := newWorld(t), newWeb(t)
	a.ill.Store(true)
	w.monitor()
	w.say(deployment(42, spec(t, "web", get(a.port))))
	w.say(deployment(43, spec(t, "web", tcp(a.port)))) // not held up by the one before
	if e := w.hear(messages.Healthy); e.GetDeployment().GetGeneration() != 43 {
		t.Errorf("%v was healthy first", e.GetDeployment().GetGeneration())
	}
	a.ill.Store(false)
	w.hear(messages.Healthy)
}

func TestUnhealthyByADeadline(t *testing.T) {
	a := newWeb(t)
	a.ill.Store(true)
	for name, c := range map[string]struct {
		check    *fulmarv1.HealthCheck
		deadline time.Duration
		want     string
	}{
		"the start deadline of the check": {
			within(get(a.port), 300*time.Millisecond), time.Minute,
			fmt.Sprintf("unit web at 127.0.0.1 was not healthy within 300ms: http GET :%d/: status 503", a.port),
		},
		"the deadline of the deployment": {
			get(a.port), 500 * time.Millisecond,
			fmt.Sprintf("unit web at 127.0.0.1 was not healthy before the deadline of the deployment: http GET :%d/: status 503", a.port),
		},
		"a start deadline after that of the deployment": {
			within(get(a.port), time.Hour), 500 * time.Millisecond,
			fmt.Sprintf("unit web at 127.0.0.1 was not healthy before the deadline of the deployment: http GET :%d/: status 503", a.port),
		},
		"too few good checks": {
			within(every(tcp(a.port), time.Second, 3, 3), 300*time.Millisecond), time.Minute,
			fmt.Sprintf("unit web at 127.0.0.1 was not healthy within 300ms: tcp port %d: 1 of 3 good checks in a row", a.port),
		},
		"nobody listens": {
			within(tcp(1), 100*time.Millisecond), time.Minute,
			"unit web at 127.0.0.1 was not healthy within 100ms: tcp port 1: connection refused",
		},
	} {
		t.Run(name, func(t *testing.T) {
			w := newWorld(t)
			w.monitor()
			d := deployment(42, spec(t, "web", c.check))
			d.Deadline = timestamppb.New(time.Now().Add(c.deadline))
			w.say(d)
			e := w.hear(messages.Failed)
			if e.GetReason() != c.want || e.GetReasonCode() != fulmarv1.ReasonCode_REASON_CODE_UNHEALTHY {
				t.Errorf("failed with %v %q\nwant %q", e.GetReasonCode(), e.GetReason(), c.want)
			}
		})
	}
}

func TestExitBeforeHealthy(t *testing.T) {
	w := newWorld(t)
	w.monitor()
	w.say(deployment(42, spec(t, "web", tcp(unused(t)))))
	w.record("web.web.42", true, "", "")
	w.record("web.web.42", false, "exited with status 1", "no such disk")
	e := w.hear(messages.Failed)
	if want := "unit web exited with status 1 before it was healthy: no such disk"; e.GetReason() != want {
		t.Errorf("failed with %q, want %q", e.GetReason(), want)
	}
}

func TestAnExitedUnitIsNotHealthyThoughItsAddressAnswers(t *testing.T) {
	w, a := newWorld(t), newWeb(t)
	w.record("web.web.42", false, "exited with status 1", "")
	s, _ := w.idle()
	ctx, cancel := context.WithCancel(t.Context())
	var wg sync.WaitGroup
	wg.Go(func() { _ = s.hosts.Run(ctx) })
	defer wg.Wait()
	defer cancel()
	if err := s.hosts.CaughtUp(ctx); err != nil {
		t.Fatal(err)
	}
	e := &fulmarv1.Event{Time: timestamppb.Now(), Deployment: deployment(42, spec(t, "web", tcp(a.port)))}
	_, err := s.check(ctx, e)
	if want := "unit web exited with status 1 before it was healthy"; err == nil || err.Error() != want {
		t.Errorf("check gives %v, want %q", err, want)
	}
}

func TestTheSameEventTwiceAndTwoReplicas(t *testing.T) {
	w, a := newWorld(t), newWeb(t)
	d := deployment(42, spec(t, "web", every(get(a.port), 20*time.Millisecond, 5, 3)))
	w.say(d)
	w.monitor()
	w.monitor()
	for range 2 { // beside the durable consumer, as if it had been delivered again
		s, _ := w.idle()
		e := &fulmarv1.Event{Time: timestamppb.Now(), Deployment: d}
		if verb, err := s.check(t.Context(), e); err == nil && verb != messages.Healthy {
			t.Errorf("a second delivery gives %q", verb)
		}
		s.trials.stop()
	}
	w.hear(messages.Healthy)
	w.silent()
	if n := w.count(messages.Healthy); n != 1 {
		t.Errorf("healthy was said %d times", n)
	}
}

func TestACrashBetweenTheChecksAndTheirEvent(t *testing.T) {
	w, a := newWorld(t), newWeb(t)
	d := deployment(42, spec(t, "web", get(a.port)))
	w.say(d)
	s, _ := w.idle()
	if verb, err := s.check(t.Context(), &fulmarv1.Event{Time: timestamppb.Now(), Deployment: d}); verb != messages.Healthy || err != nil {
		t.Fatalf("check gives %q, %v", verb, err)
	}
	w.monitor() // what was found is lost, and found again
	w.hear(messages.Healthy)
	w.silent()
	if n := w.count(messages.Healthy); n != 1 {
		t.Errorf("healthy was said %d times", n)
	}
}

func TestAStopInTheMiddleOfATrialHandsItBack(t *testing.T) {
	w, a := newWorld(t), newWeb(t)
	a.ill.Store(true)
	stop := w.monitor()
	w.say(deployment(42, spec(t, "web", get(a.port))))
	wait(t, "the first check", func() bool { return a.asked.Load() > 0 })
	begin := time.Now()
	stop()
	if took := time.Since(begin); took > 3*time.Second {
		t.Errorf("the monitor took %s to stop", took)
	}
	if n := w.count(messages.Failed); n != 0 {
		t.Fatal("a monitor that stopped failed the deployment")
	}
	a.ill.Store(false)
	w.monitor()
	w.hear(messages.Healthy)
}

func TestAfterTheDeadlineNothingIsSaid(t *testing.T) {
	w, a := newWorld(t), newWeb(t)
	s, _ := w.idle()
	d := deployment(42, spec(t, "web", get(a.port)))
	d.Deadline = timestamppb.New(time.Now().Add(-time.Millisecond))
	_, err := s.check(t.Context(), &fulmarv1.Event{Time: timestamppb.Now(), Deployment: d})
	if _, refused := messages.AsRefusal(err); err == nil || refused {
		t.Errorf("check gives %v, want an error for another try", err)
	}
	if n := a.asked.Load(); n != 0 {
		t.Errorf("it was probed %d times", n)
	}
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
