package vmm_test

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/nats-io/nats.go"
	dto "github.com/prometheus/client_model/go"
	"github.com/vishvananda/netlink"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/timestamppb"

	"fulmar/albatross"
	"fulmar/albatross/influx"
	"fulmar/messages"
	fulmarv1 "fulmar/messages/fulmar/v1"
	"fulmar/services/vmm"
)

// live gives what is published of an instance from now on.
func (w *world) live(instance string) *nats.Subscription {
	w.t.Helper()
	sub, err := w.bus.NC.SubscribeSync(messages.StatsSubject("h1", instance))
	if err == nil {
		err = w.bus.NC.Flush()
	}
	if err != nil {
		w.t.Fatal(err)
	}
	return sub
}

// sample waits for a published sample that is as it should be.
func (w *world) sample(sub *nats.Subscription, fits func(*fulmarv1.Stats) bool) *fulmarv1.Stats {
	w.t.Helper()
	m := &fulmarv1.Stats{}
	for {
		msg, err := sub.NextMsg(patient)
		if err != nil {
			w.t.Fatalf("%v; last was %v", err, m)
		}
		m.Reset()
		if err := proto.Unmarshal(msg.Data, m); err != nil {
			w.t.Fatal(err)
		}
		if fits(m) {
			return m
		}
	}
}

// series gives what vmm tells Prometheus of unikernels, as name{label,...}.
func (w *world) series() map[string]float64 {
	w.t.Helper()
	families, err := w.reg.Gather()
	if err != nil {
		w.t.Fatal(err)
	}
	all := map[string]float64{}
	for _, f := range families {
		if !strings.HasPrefix(f.GetName(), "fulmar_unikernel_") {
			continue
		}
		for _, m := range f.GetMetric() {
			var labels []string
			for _, l := range m.GetLabel() {
				labels = append(labels, l.GetName()+"="+l.GetValue())
			}
			all[f.GetName()+"{"+strings.Join(labels, ",")+"}"] = value(m)
		}
	}
	return all
}

func value(m *dto.Metric) float64 {
	if m.GetCounter() != nil {
		return m.GetCounter().GetValue()
	}
	return m.GetGauge().GetValue()
}

// eventually asks again and again.
func (w *world) eventually(what string, holds func() bool) {
	w.t.Helper()
	ctx, cancel := context.WithTimeout(w.t.Context(), patient)
	defer cancel()
	tick := time.NewTicker(10 * time.Millisecond)
	defer tick.Stop()
	for !holds() {
		select {
		case <-tick.C:
		case <-ctx.Done():
			w.t.Fatalf("it never was that %s", what)
		}
	}
}

// knock sends something to everything on the bridge.
func (w *world) knock() {
	w.t.Helper()
	link, err := netlink.LinkByName("br0")
	if err != nil {
		w.t.Fatal(err)
	}
	if err := netlink.AddrReplace(link, &netlink.Addr{IPNet: &net.IPNet{IP: net.IPv4(10, 9, 0, 254), Mask: net.CIDRMask(24, 32)}}); err != nil {
		w.t.Fatal(err)
	}
	conn, err := net.Dial("udp", "10.9.0.77:9") // nobody has it: who has, is asked of all
	if err != nil {
		w.t.Fatal(err)
	}
	defer func() { _ = conn.Close() }()
	if _, err := conn.Write([]byte("hello")); err != nil {
		w.t.Fatal(err)
	}
}

func TestWhatInstancesUseIsToldKeptAndMeasured(t *testing.T) {
	w := newWorld(t)
	live := w.live("web.web.4")
	w.vmm()
	begin := time.Now()
	w.start(w.leased(4, "touch", "0"))
	w.knock()
	first := w.sample(live, func(m *fulmarv1.Stats) bool {
		return m.GetResidentBytes() > 12<<20 && len(m.GetInterfaces()) == 1 && m.GetInterfaces()[0].GetReceivePackets() > 0
	})
	i := first.GetInterfaces()[0]
	if first.GetHost() != "h1" || first.GetInstance() != "web.web.4" || i.GetDevice() != "net0" || i.GetReceiveBytes() < 40*i.GetReceivePackets() ||
		first.GetResidentPeakBytes() < first.GetResidentBytes() || first.GetVirtualBytes() < 16<<20 || first.GetMinorFaults() < 12<<20>>12 {
		t.Errorf("a guest that touched its 16 MB: %v", first)
	}
	if started := first.GetStarted().AsTime(); started.Before(begin.Add(-2*time.Second)) || started.After(time.Now().Add(time.Second)) {
		t.Errorf("started %v, want about %v", started, begin)
	}
	last := w.sample(live, func(*fulmarv1.Stats) bool { return true })
	if !last.GetTime().AsTime().After(first.GetTime().AsTime()) {
		t.Errorf("the next sample is of %v after %v", last.GetTime().AsTime(), first.GetTime().AsTime())
	}

	w.start(w.leased(5, "wait"))
	w.sample(w.live("web.web.5"), func(*fulmarv1.Stats) bool { return true })
	all, err := w.bus.Stats(t.Context(), "h1", &fulmarv1.StatsRequest{})
	if err != nil || len(all) != 2 || all[0].GetInstance() != "web.web.4" || all[1].GetInstance() != "web.web.5" || all[0].GetTime().AsTime().Before(last.GetTime().AsTime()) {
		t.Errorf("the last of all: %v, %v", all, err)
	}
	some, err := w.bus.Stats(t.Context(), "h1", &fulmarv1.StatsRequest{Instance: "web.web.4", Since: timestamppb.New(last.GetTime().AsTime())})
	if err != nil || len(some) < 1 || !proto.Equal(some[0], last) {
		t.Errorf("since the last that was seen: %v, %v; want %v first", some, err, last)
	}

	series := w.series()
	labels := "host=h1,stack=web,unikernel=web.web.4,unit=web"
	for name, want := range map[string]float64{
		"fulmar_unikernel_resident_memory_bytes{" + labels + "}":                                     12 << 20,
		"fulmar_unikernel_page_faults_total{host=h1,kind=minor," + labels[len("host=h1,"):] + "}":    12 << 20 >> 12,
		"fulmar_unikernel_network_receive_bytes_total{device=net0," + labels + "}":                   42,
		"fulmar_unikernel_network_receive_packets_total{device=net0," + labels + "}":                 1,
		"fulmar_unikernel_start_time_seconds{" + labels + "}":                                        float64(begin.Unix() - 2),
		"fulmar_unikernel_cpu_seconds_total{host=h1,mode=system," + labels[len("host=h1,"):] + "}":   0,
		"fulmar_unikernel_network_transmit_errors_total{device=net0," + labels + "}":                 0,
		"fulmar_unikernel_context_switches_total{host=h1,kind=voluntary," + labels[8:] + "}":         0,
		"fulmar_unikernel_resident_memory_bytes{host=h1,stack=web,unikernel=web.web.5,unit=web}":     1,
		"fulmar_unikernel_resident_memory_max_bytes{host=h1,stack=web,unikernel=web.web.5,unit=web}": 1,
	} {
		if got, there := series[name]; !there || got < want {
			t.Errorf("%s is %v, %v; want at least %v", name, got, there, want)
		}
	}

	if err := w.daemon.Destroy(t.Context(), w.info("web.web.4").Name); err != nil {
		t.Fatal(err)
	}
	w.eventually("the series of one that is gone are gone", func() bool {
		gone, stay := true, false
		for name := range w.series() {
			gone = gone && !strings.Contains(name, "web.web.4")
			stay = stay || strings.Contains(name, "web.web.5")
		}
		return gone && stay
	})
	past, err := w.bus.Stats(t.Context(), "h1", &fulmarv1.StatsRequest{Stack: "web", Samples: 2})
	if err != nil || len(past) < 3 || past[1].GetInstance() != "web.web.4" || past[2].GetInstance() != "web.web.5" {
		t.Errorf("the last two of each, of one that is gone too: %v, %v", past, err)
	}
}

func TestStatisticsAreAskedForInBothForms(t *testing.T) {
	w := newWorld(t)
	w.vmm()
	live := w.live("web.web.4")
	w.start(w.leased(4, "wait"))
	w.sample(live, func(*fulmarv1.Stats) bool { return true })
	for request, want := range map[string]string{
		`{"stack":"web"}`:     "web.web.4",
		`{"stack":"we"}`:      "",
		`{"instance":"web"}`:  `instance "web": want STACK.UNIT.GENERATION`,
		`{"instances":"web"}`: `unknown field "instances"`,
	} {
		msg, err := w.bus.NC.Request(messages.StatsQuery("h1"), []byte(request), patient)
		if err != nil {
			t.Fatal(err)
		}
		var reply struct{ Samples []struct{ Instance string } }
		got := msg.Header.Get("Nats-Service-Error")
		if got == "" {
			if err := json.Unmarshal(msg.Data, &reply); err != nil {
				t.Fatal(err)
			}
			for _, s := range reply.Samples {
				got += s.Instance
			}
		}
		if !strings.Contains(got, want) || want == "" && got != "" {
			t.Errorf("%s: %s; want %s", request, got, want)
		}
	}
}

func TestADaemonWithoutStatisticsIsNoFault(t *testing.T) {
	w := newWorld(t)
	bare := w.bare()
	w.vmm(func(c *vmm.Config) { c.Dir = bare })
	live := w.live("web.web.4")
	w.start(w.leased(4, "wait"))
	if all, err := w.bus.Stats(t.Context(), "h1", &fulmarv1.StatsRequest{}); err != nil || len(all) != 0 {
		t.Errorf("statistics: %v, %v; want none", all, err)
	}
	if err := os.Symlink(filepath.Join(w.dir, "run", albatross.StatsSocket), filepath.Join(bare, albatross.StatsSocket)); err != nil {
		t.Fatal(err)
	}
	w.sample(live, func(*fulmarv1.Stats) bool { return true })
}

// bare is a run directory with the daemon's sockets but for that of statistics.
func (w *world) bare() string {
	w.t.Helper()
	dir := filepath.Join(w.dir, "bare")
	if err := os.MkdirAll(filepath.Join(dir, "util"), 0o700); err != nil {
		w.t.Fatal(err)
	}
	for _, socket := range []string{albatross.VMMDSocket, albatross.ConsoleSocket} {
		if err := os.Symlink(filepath.Join(w.dir, "run", socket), filepath.Join(dir, socket)); err != nil {
			w.t.Fatal(err)
		}
	}
	return dir
}

// teller is a daemon's statistics socket that tells what a test wants, to one subscriber after the other.
func teller(t *testing.T, dir string, tell func(net.Conn)) {
	t.Helper()
	l, err := net.Listen("unix", filepath.Join(dir, albatross.StatsSocket))
	if err != nil {
		t.Fatal(err)
	}
	done := make(chan struct{})
	t.Cleanup(func() {
		_ = l.Close()
		<-done
	})
	go func() {
		defer close(done)
		for {
			conn, err := l.Accept()
			if err != nil {
				return
			}
			h, m, err := albatross.ReadRequest(conn, 1<<20)
			if _, ok := m.(albatross.StatsSubscribe); err == nil && ok && h.Name.IsRoot() {
				_ = albatross.WriteReply(conn, h, albatross.Text("subscribed"))
				tell(conn)
			}
			_ = conn.Close()
		}
	}()
}

// A real daemon tells of everything below the path, names devices by their bridges, and throws out who subscribed before.
func TestWhatARealDaemonTells(t *testing.T) {
	w := newWorld(t)
	bare := w.bare()
	round := int64(0)
	teller(t, bare, func(conn net.Conn) {
		round++
		for _, name := range []string{"stranger", "sub:web.web.2", "web.web.1"} {
			n, err := albatross.ParseName(name)
			if err != nil {
				t.Error(err)
			}
			_ = albatross.WriteData(conn, n, albatross.Stats{
				Rusage:     albatross.Rusage{UTime: albatross.Timeval{Sec: round, Usec: 500000}, NVCSw: -1},
				Interfaces: []albatross.Interface{{Bridge: "br\xff", OutputBytes: 10, InputBytes: 3}, {Bridge: "br\xff", OutputBytes: 5}},
				VMM:        []albatross.Counter{{Key: "vm exits", Value: 7}},
			})
		}
		if round > 1 {
			_, _ = conn.Read(make([]byte, 1)) // until it is not wanted any more
		}
	})
	loopback(t)
	endpoint, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = endpoint.Close() }()
	live := w.live(">")
	w.create("web.web.1", "wait")
	w.vmm(func(c *vmm.Config) {
		c.Dir, c.Influx = bare, influx.Config{Target: endpoint.Addr().String()}
	})
	for want := range uint64(2) { // it was thrown out after the first
		m := w.sample(live, func(*fulmarv1.Stats) bool { return true })
		m.Time = nil
		diff := cmp.Diff((&fulmarv1.Stats{
			Host: "h1", Instance: "web.web.1", UserCpuMicroseconds: 1_500_000 + want*1_000_000, Hypervisor: map[string]int64{"vm exits": 7},
			Interfaces: []*fulmarv1.InterfaceStats{{Device: "br\uFFFD", ReceiveBytes: 10, TransmitBytes: 3}, {Device: "br\uFFFD", ReceiveBytes: 5}},
		}).String(), m.String())
		if diff != "" {
			t.Errorf("sample %d (-want +got):\n%s", want, diff)
		}
	}
	w.eventually("the devices on one bridge are added up", func() bool {
		return w.series()["fulmar_unikernel_network_receive_bytes_total{device=br\uFFFD,host=h1,stack=web,unikernel=web.web.1,unit=web}"] == 15
	})
	conn, err := endpoint.Accept()
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = conn.Close() }()
	lines := bufio.NewScanner(conn)
	for _, want := range []string{
		"resource_usage,vm=stranger utime=1.500000,stime=0.000000,maxrss=0i,", `vmm,vm=stranger vm\ exits=7i `, "interface,vm=stranger,bridge=br", "interface,vm=stranger,bridge=br",
		"resource_usage,vm=web.web.2 ", "vmm,vm=web.web.2 ", "interface,", "interface,", "resource_usage,vm=web.web.1 ",
	} {
		if !lines.Scan() || !strings.HasPrefix(lines.Text(), want) {
			t.Errorf("line for influx is %q, %v; want %s...", lines.Text(), lines.Err(), want)
		}
	}
}

// What nobody tells any more is not known: the last that was told would look as if it went on.
func TestSeriesGoWithTheDaemonsStatistics(t *testing.T) {
	w := newWorld(t)
	bare := w.bare()
	cut, rounds := make(chan struct{}), 0
	teller(t, bare, func(conn net.Conn) {
		if rounds++; rounds > 1 {
			_, _ = conn.Read(make([]byte, 1)) // until it is not wanted any more
			return
		}
		n, err := albatross.ParseName("web.web.1")
		if err != nil {
			t.Error(err)
		}
		_ = albatross.WriteData(conn, n, albatross.Stats{})
		<-cut
	})
	end := sync.OnceFunc(func() { close(cut) })
	t.Cleanup(end)
	live := w.live("web.web.1")
	w.create("web.web.1", "wait")
	w.vmm(func(c *vmm.Config) { c.Dir = bare })
	w.sample(live, func(*fulmarv1.Stats) bool { return true })
	if len(w.series()) == 0 {
		t.Error("there are no series")
	}
	end()
	w.eventually("there are no series", func() bool { return len(w.series()) == 0 })
	if all, err := w.bus.Stats(t.Context(), "h1", &fulmarv1.StatsRequest{}); err != nil || len(all) != 1 {
		t.Errorf("what was told before: %v, %v", all, err)
	}
}

func TestABadEndpointOfInfluxIsRefused(t *testing.T) {
	w := newWorld(t)
	_, err := vmm.New(w.bus, vmm.Config{Host: "h1", Cache: t.TempDir(), Influx: influx.Config{Target: "http://u:secret@h"}}, nil)
	if !errors.Is(err, influx.ErrTarget) || strings.Contains(fmt.Sprint(err), "secret") {
		t.Errorf("error is %v", err)
	}
}
