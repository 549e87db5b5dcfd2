package main

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"net"
	"strings"
	"sync"
	"testing"

	"github.com/nats-io/nats.go"

	"fulmar/bus"
	"fulmar/bus/bustest"
	"fulmar/messages"
	fulmarv1 "fulmar/messages/fulmar/v1"
)

// idle is a service that does nothing until it is stopped.
type idle struct{}

func (idle) Run(ctx context.Context) error {
	<-ctx.Done()
	return nil
}

// serve registers a service on the bus that does nothing, until the test ends or stop is called.
func (w *world) serve(service, host string) (stop func()) {
	w.t.Helper()
	b := bustest.Open(w.t, w.server, bus.Options{Service: service, Host: host})
	stop = bustest.Run(w.t, func(ctx context.Context) error { return b.RunService(ctx, idle{}) })
	e := &env{ctx: w.t.Context(), cli: &cli{}, err: w.t.Output()}
	for {
		found, err := e.serving(w.bus, service, host)
		if err != nil {
			w.t.Fatal(err)
		}
		if found[host] {
			return stop
		}
	}
}

// TestPsSaysHowUnitsAre has a deployment that is live with two units and one that drains, and goes by what is observed.
func TestPsSaysHowUnitsAre(t *testing.T) {
	w := newQuietWorld(t)
	ctx := t.Context()
	content := &fulmarv1.Content{Network: "lan", Units: []*fulmarv1.UnitSpec{
		{Name: "a", Cpus: []uint32{1, 3}, Restart: "always", Device: "service", Health: []*fulmarv1.HealthCheck{
			{Probe: &fulmarv1.HealthCheck_Tcp{Tcp: &fulmarv1.TcpProbe{Port: 80}}}, {Probe: &fulmarv1.HealthCheck_Http{Http: &fulmarv1.HttpProbe{Port: 8080, Path: "/live", Status: 204}}},
		}}, {Name: "b"},
	}}
	head := &fulmarv1.Head{Stack: "web", Newest: 2, Deployments: []*fulmarv1.HeadDeployment{
		{Generation: 1, State: fulmarv1.State_STATE_DRAINING, Host: "h1", Content: content, Instances: []*fulmarv1.Instance{{Unit: "a", Name: "web.a.1"}}},
		{Generation: 2, State: fulmarv1.State_STATE_LIVE, Host: "h1", Content: content, Instances: []*fulmarv1.Instance{{Unit: "a", Name: "web.a.2"}, {Unit: "b", Name: "web.b.2"}}},
	}}
	host := &fulmarv1.Host{Name: "h1"}
	for _, name := range []string{"web.a.1", "web.a.2", "web.b.2"} {
		host.Instances = append(host.Instances, &fulmarv1.HostInstance{Name: name, Running: true})
	}
	if err := w.bus.Heads.Put(ctx, "web", head, 0); err != nil {
		t.Fatal(err)
	}
	if err := w.bus.Hosts.Put(ctx, "h1", host, 0); err != nil {
		t.Fatal(err)
	}
	observe := func(verb messages.Verb) func() {
		return func() {
			d := &fulmarv1.Deployment{Stack: "web", Generation: 2, Network: &fulmarv1.Network{Host: "h1"}}
			if err := w.bus.Observe(ctx, verb, d, "a", "unit a failed 3 checks in a row: network is unreachable"); err != nil {
				t.Fatal(err)
			}
		}
	}
	var stop func()
	for _, c := range []struct {
		name  string
		do    func()
		wants [3]string // of the three rows
		json  string
	}{
		{"no monitor runs", func() {}, [3]string{"  -  ", "  unknown  ", "  unknown  "}, `"health":[{"instance":"web.a.2","health":"unknown"},{"instance":"web.b.2","health":"unknown"}]`},
		{"that of another host runs", func() { w.serve("monitor", "h2") }, [3]string{"  -  ", "  unknown  ", "  unknown  "}, `"health":"unknown"`},
		{"a monitor runs", func() { stop = w.serve("monitor", "h1") }, [3]string{"  -  ", "  healthy  ", "  healthy  "}, `{"instance":"web.a.2","health":"healthy"}`},
		{"one is unhealthy", observe(messages.Unhealthy), [3]string{"  -  ", "  unhealthy since 20", "  healthy  "}, `{"instance":"web.a.2","health":"unhealthy","since":"20`},
		{"it exited", observe(messages.Exited), [3]string{"  -  ", "  unhealthy since 20", "  healthy  "}, `"reason":"unit a failed 3 checks in a row: network is unreachable"`},
		{"it recovered", observe(messages.Recovered), [3]string{"  -  ", "  healthy  ", "  healthy  "}, `{"instance":"web.a.2","health":"healthy"}`},
		{"it is unhealthy, and nobody looks any more", func() { observe(messages.Unhealthy)(); stop() }, [3]string{"  -  ", "  unhealthy since 20", "  unknown  "}, `{"instance":"web.b.2","health":"unknown"}`},
	} {
		c.do()
		_, out, errout := w.run("ps")
		rows := strings.Split(out, "\n")
		for i, want := range c.wants {
			if len(rows) < 4 || !strings.Contains(rows[i+1], want) {
				t.Errorf("%s: row %d has not %q:\n%s%s", c.name, i+1, want, out, errout)
			}
		}
		for _, args := range [][]string{{"ps", "--json"}, {"describe", "web", "--json"}} {
			_, out, _ = w.run(args...)
			if !strings.Contains(out, c.json) || !json.Valid([]byte(out)) {
				t.Errorf("%s: %v says not %s:\n%s", c.name, args, c.json, out)
			}
		}
	}
	_, out, _ := w.run("describe", "web")
	for _, want := range []string{
		"instance web.a.2 at , runs: yes, health: unhealthy since 20", ": unit a failed 3 checks in a row: network is unreachable\n",
		"health tcp:80, http:8080/live=204; restart always; CPUs 1,3; net device service\n", "health none; restart never; CPUs any; net device the only one\n",
	} {
		if !strings.Contains(out, want) {
			t.Errorf("describe says not %q:\n%s", want, out)
		}
	}
}

// crowd is a connection to the bus whose answers wait from the first question for a stored message until atOnce of them were asked.
type crowd struct {
	net.Conn
	mu     sync.Mutex
	asked  int
	begun  bool // nothing waits before
	enough chan struct{}
}

func (c *crowd) Dial(network, address string) (net.Conn, error) {
	conn, err := net.Dial(network, address)
	c.Conn = conn
	return c, err
}

func (c *crowd) Write(b []byte) (int, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	before := c.asked
	if c.begun {
		c.asked += bytes.Count(b, []byte("DIRECT.GET."))
	}
	if before < atOnce && c.asked >= atOnce {
		close(c.enough)
	}
	return c.Conn.Write(b)
}

func (c *crowd) Read(b []byte) (int, error) {
	n, err := c.Conn.Read(b)
	c.mu.Lock()
	waits := c.asked > 0
	c.mu.Unlock()
	if waits && err == nil {
		<-c.enough
	}
	return n, err
}

func (c *crowd) begin() {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.begun = true
}

// end lets the answers through that wait in a test that fails.
func (c *crowd) end() {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.asked < atOnce {
		c.asked = atOnce
		close(c.enough)
	}
}

// TestHealthsAreAskedForTogether has a bus that answers nobody who waits for one answer before the next question.
func TestHealthsAreAskedForTogether(t *testing.T) {
	w := newQuietWorld(t)
	c := &crowd{enough: make(chan struct{})}
	nc, err := nats.Connect(w.url, nats.SetCustomDialer(c))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(nc.Close)
	b, err := bus.Open(t.Context(), nc, bus.Options{Service: "test"})
	if err != nil {
		t.Fatal(err)
	}
	const units = 3*atOnce + 1
	d := &fulmarv1.HeadDeployment{Generation: 2, State: fulmarv1.State_STATE_LIVE, Host: "h1"}
	for i := range units {
		unit := fmt.Sprintf("u%d", i)
		d.Instances = append(d.Instances, &fulmarv1.Instance{Unit: unit, Name: "web." + unit + ".2"})
		said := &fulmarv1.Deployment{Stack: "web", Generation: 2, Network: &fulmarv1.Network{Host: "h1"}}
		if err := w.bus.Observe(t.Context(), messages.Unhealthy, said, unit, "of "+unit); err != nil {
			t.Fatal(err)
		}
	}
	t.Cleanup(c.end)
	c.begin()
	e := &env{ctx: t.Context(), cli: &cli{}, err: t.Output()}
	all, err := e.healths(b, map[string]*fulmarv1.Head{"web": {Stack: "web", Newest: 2, Deployments: []*fulmarv1.HeadDeployment{d}}}, nil)
	if err != nil {
		t.Fatal(err)
	}
	if len(all) != units {
		t.Errorf("%d of %d are known", len(all), units)
	}
	for name, h := range all {
		if unit := strings.Split(name, ".")[1]; h.Instance != name || h.Health != "unhealthy" || h.Reason != "of "+unit || h.Since == nil {
			t.Errorf("%s: %+v", name, h)
		}
	}
}
