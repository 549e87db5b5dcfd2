package main

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"io"
	"net"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/timestamppb"

	"fulmar/bus"
	"fulmar/messages"
	fulmarv1 "fulmar/messages/fulmar/v1"
)

// used is a sample at some seconds, of a process that was started at some second.
func used(instance string, at float64, started int64, cpu, memory, rx, tx uint64) *fulmarv1.Stats {
	return &fulmarv1.Stats{
		Host: "h1", Instance: instance, Time: timestamppb.New(time.UnixMilli(int64(1000 * at))), Started: &timestamppb.Timestamp{Seconds: started},
		UserCpuMicroseconds: cpu / 2, SystemCpuMicroseconds: cpu - cpu/2, ResidentBytes: memory,
		Interfaces: []*fulmarv1.InterfaceStats{{Device: "a", ReceiveBytes: rx}, {Device: "b", TransmitBytes: tx}},
	}
}

func TestWhatAnInstanceUses(t *testing.T) {
	for name, c := range map[string]struct {
		before, after *fulmarv1.Stats
		want          []string
	}{
		"rates are between two samples":    {used("a", 10, 1, 1e6, 5, 1000, 7), used("a", 20, 1, 1.5e6, 12_345_678, 21_000, 7), []string{"5.0 %", "12.3 MB", "2.0 kB/s", "0 B/s", "h1"}},
		"the first sample has none":        {nil, used("a", 20, 1, 1e6, 999, 0, 0), []string{"-", "999 B", "-", "-", "h1"}},
		"no sample tells nothing":          {nil, &fulmarv1.Stats{Host: "h1", Instance: "a"}, []string{"-", "-", "-", "-", "h1"}},
		"after none comes the first":       {&fulmarv1.Stats{Host: "h1"}, used("a", 20, 1, 1e6, 1e9, 0, 0), []string{"-", "1.0 GB", "-", "-", "h1"}},
		"a restart is no measure":          {used("a", 10, 1, 1e6, 5, 0, 0), used("a", 20, 11, 2e6, 1000, 0, 0), []string{"-", "1.0 kB", "-", "-", "h1"}},
		"counters that went back are none": {used("a", 10, 1, 0, 5, 10, 0), used("a", 20, 1, 0, 123_456, 9, 0), []string{"-", "123 kB", "-", "-", "h1"}},
		"the same sample is no measure":    {used("a", 10, 1, 0, 5, 10, 0), used("a", 10, 1, 0, 5, 10, 0), []string{"-", "5 B", "-", "-", "h1"}},
	} {
		t.Run(name, func(t *testing.T) {
			if diff := cmp.Diff(c.want, useOf(c.before, c.after).cells()); diff != "" {
				t.Errorf("cells (-want +got):\n%s", diff)
			}
		})
	}
}

func TestASampleIsDecoded(t *testing.T) {
	want := used("web.web.1", 10, 1, 3, 4, 5, 6)
	want.Hypervisor = map[string]int64{"vm exits": 7}
	body, err := proto.Marshal(want)
	if err != nil {
		t.Fatal(err)
	}
	if got, err := decode("auto", body); err != nil || !proto.Equal(got, want) {
		t.Errorf("a sample is decoded as %v, %v", got, err)
	}
}

// answerer answers for the vmm of host h1.
type answerer struct{ samples []*fulmarv1.Stats }

func (a *answerer) Run(ctx context.Context) error {
	<-ctx.Done()
	return nil
}

func (a *answerer) Endpoints() []bus.Endpoint {
	return []bus.Endpoint{{
		Name: "stats", Subject: messages.StatsQuery("h1"), Request: func() proto.Message { return &fulmarv1.StatsRequest{} },
		Handle: func(_ context.Context, m proto.Message) (proto.Message, error) {
			reply := &fulmarv1.StatsReply{}
			for _, s := range a.samples {
				if m.(*fulmarv1.StatsRequest).GetSamples() == 2 && strings.HasPrefix(s.GetInstance(), m.(*fulmarv1.StatsRequest).GetStack()) {
					reply.Samples = append(reply.Samples, s)
				}
			}
			return reply, nil
		},
	}}
}

func TestStats(t *testing.T) {
	w := newWorld(t)
	for host, instances := range map[string][]string{"h1": {"web.web.1", "web.web.3", "mail.mta.2"}, "h2": nil} {
		h := &fulmarv1.Host{Name: host}
		for _, i := range instances {
			h.Instances = append(h.Instances, &fulmarv1.HostInstance{Name: i, Running: true})
		}
		if err := w.bus.Hosts.Put(t.Context(), host, h, 0); err != nil {
			t.Fatal(err)
		}
	}
	if err := w.bus.Heads.Put(t.Context(), "web", &fulmarv1.Head{Stack: "web", Newest: 3}, 0); err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error, 1)
	go func() {
		done <- w.bus.RunService(ctx, &answerer{samples: []*fulmarv1.Stats{
			used("mail.mta.2", 20, 1, 0, 1, 0, 0), used("web.gone.1", 20, 1, 0, 1, 0, 0), used("web.web.1", 10, 1, 0, 1, 0, 0), used("web.web.1", 20, 1, 1e6, 2e6, 1e4, 0),
		}})
	}()
	defer func() {
		cancel()
		if err := <-done; err != nil {
			t.Error(err)
		}
	}()

	var status int
	var out, errout string
	for status = 1; !strings.Contains(out, "2.0 MB"); { // until the service has registered
		status, out, errout = w.run("stats", "web")
	}
	want := "INSTANCE   CPU     MEMORY  RX        TX     HOST\nweb.web.1  10.0 %  2.0 MB  1.0 kB/s  0 B/s  h1\nweb.web.3  -       -       -         -      h1\n"
	if diff := cmp.Diff(want, out); diff != "" || status != 1 || !strings.Contains(errout, "statistics of host h2: its vmm does not run") {
		t.Errorf("status %d (-want +got):\n%s\n%s", status, diff, errout)
	}
	_, out, _ = w.run("stats", "--json")
	var lines []map[string]any
	for line := range strings.Lines(out) {
		var m map[string]any
		if err := json.Unmarshal([]byte(line), &m); err != nil {
			t.Fatal(err)
		}
		delete(m, "sample")
		lines = append(lines, m)
	}
	if diff := cmp.Diff([]map[string]any{
		{"host": "h1", "instance": "mail.mta.2", "time": "1970-01-01T00:00:20Z", "memory_bytes": 1.},
		{"host": "h1", "instance": "web.web.1", "time": "1970-01-01T00:00:20Z", "memory_bytes": 2e6, "cpu_percent": 10., "receive_bytes_per_second": 1000., "transmit_bytes_per_second": 0.},
		{"host": "h1", "instance": "web.web.3"},
	}, lines); diff != "" {
		t.Errorf("stats --json (-want +got):\n%s", diff)
	}
	if status, _, errout := w.run("stats", "nobody"); status != 1 || !strings.Contains(errout, `no stack "nobody"`) {
		t.Errorf("status %d: %s", status, errout)
	}
}

func TestStatsAreFollowed(t *testing.T) {
	w := newWorld(t)
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	r, out := io.Pipe()
	ended := make(chan int, 1)
	go func() {
		ended <- execute(ctx, []string{"--nats", w.url, "stats", "-f"}, out, io.Discard)
		_ = out.Close()
	}()
	lines := bufio.NewScanner(r)
	next := func(want string) {
		t.Helper()
		if !lines.Scan() || !strings.Contains(strings.Join(strings.Fields(lines.Text()), " "), want) {
			t.Fatalf("line %q, %v; want %s", lines.Text(), lines.Err(), want)
		}
	}
	next("TIME INSTANCE CPU MEMORY RX TX HOST") // it is subscribed by then
	for _, m := range []*fulmarv1.Stats{
		used("web.web.1", 10, 1, 0, 1e6, 0, 0), used("web.web.1", 10, 1, 0, 1e6, 0, 0), used("web.web.1", 20, 1, 1e6, 2e6, 0, 5e9),
	} {
		body, err := proto.Marshal(m)
		if err == nil {
			err = w.bus.NC.Publish(messages.StatsSubject("h1", "web.web.1"), body)
		}
		if err != nil {
			t.Fatal(err)
		}
	}
	next("web.web.1 - 1.0 MB - - h1")
	next("web.web.1 10.0 % 2.0 MB 0 B/s 500 MB/s h1") // what came twice is told once
	cancel()
	if status := <-ended; status != 0 {
		t.Errorf("status %d", status)
	}
}

func TestInfluxOfADaemon(t *testing.T) {
	l := newAlbatrossLab(t)
	endpoint, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = endpoint.Close() }()
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	ended := make(chan int, 1)
	var o, e bytes.Buffer
	go func() {
		ended <- execute(ctx, []string{"albatross", "--dir", l.dir, "influx", endpoint.Addr().String(), "user:", "--no-drop-path"}, &o, &e)
	}()
	conn, err := endpoint.Accept()
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = conn.Close() }()
	lines := bufio.NewScanner(conn)
	for _, want := range []string{"maxrss=77i", "maxrss=78i", "maxrss=77i"} { // the daemon ends each subscription after two
		if !lines.Scan() || !strings.HasPrefix(lines.Text(), "resource_usage,vm=user:hello ") || !strings.Contains(lines.Text(), want) {
			t.Errorf("line %q, %v; want %s", lines.Text(), lines.Err(), want)
		}
	}
	cancel()
	if status := <-ended; status != 0 || o.Len() > 0 || !strings.Contains(e.String(), "statistics ended") {
		t.Errorf("status %d: %s%s", status, o.String(), e.String())
	}
	l.fails("want tcp://HOST:PORT", "influx", "udp://127.0.0.1:1")
}
