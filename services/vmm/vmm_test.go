package vmm_test

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"
	"github.com/prometheus/client_golang/prometheus"
	"github.com/vishvananda/netlink"
	"go.uber.org/goleak"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/testing/protocmp"
	"google.golang.org/protobuf/types/known/timestamppb"

	"fulmar/albatross"
	"fulmar/bus"
	"fulmar/bus/bustest"
	"fulmar/messages"
	fulmarv1 "fulmar/messages/fulmar/v1"
	"fulmar/services/host"
	"fulmar/services/host/hosttest"
	"fulmar/services/vmm"
)

func TestMain(m *testing.M) {
	hosttest.Main(func() { goleak.VerifyTestMain(m) })
}

const patient = 20 * time.Second

// world is a host with its daemon and a bus.
type world struct {
	t      *testing.T
	server *bus.Server
	bus    *bus.Bus // in the name of everybody else
	daemon *albatross.Client
	dir    string
	image  string // digest of the guest
}

func newWorld(t *testing.T) *world {
	t.Helper()
	hosttest.NeedRoot(t)
	w := &world{t: t, server: bustest.Server(t)}
	w.bus = bustest.Open(t, w.server, bus.Options{Service: "test"})
	w.dir, w.daemon = runHost(t)
	guest := hosttest.Guest(t, 1)
	sum := sha256.Sum256(guest)
	w.image = hex.EncodeToString(sum[:])
	if _, err := w.bus.Images.PutBytes(t.Context(), w.image, guest); err != nil {
		t.Fatal(err)
	}
	return w
}

// runHost runs our daemon, with a bridge br0 for its guests, until the test ends.
func runHost(t *testing.T) (dir string, client *albatross.Client) {
	t.Helper()
	bridge := &netlink.Bridge{LinkAttrs: netlink.LinkAttrs{Name: "br0"}}
	if err := errors.Join(netlink.LinkAdd(bridge), netlink.LinkSetUp(bridge)); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = netlink.LinkDel(bridge) })
	dir, err := os.MkdirTemp("", "vmm") // short: the path of a socket has at most 107 bytes
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = os.RemoveAll(dir) })
	svc, err := host.New(host.Config{
		RunDir: filepath.Join(dir, "run"), StateDir: filepath.Join(dir, "state"),
		Cgroup: "fulmar-test-" + filepath.Base(dir), UIDBase: 710000,
	}, slog.New(slog.DiscardHandler), prometheus.NewRegistry())
	if err != nil {
		t.Fatal(err)
	}
	until(t, svc.Run)
	<-svc.Ready()
	client = &albatross.Client{Dir: filepath.Join(dir, "run")}
	t.Cleanup(func() {
		list, err := client.Info(context.Background(), albatross.Name{})
		if err != nil {
			t.Error(err)
		}
		for _, r := range list {
			if err := client.Destroy(context.Background(), r.Name); err != nil && !errors.Is(err, albatross.ErrNotFound) {
				t.Error(err)
			}
		}
	})
	return dir, client
}

// until runs a service until the test ends or the function that it gives is called.
func until(t *testing.T, serve func(context.Context) error) (stop func()) {
	t.Helper()
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- serve(ctx) }()
	stop = sync.OnceFunc(func() {
		cancel()
		if err := <-done; err != nil {
			t.Errorf("a service ended: %v", err)
		}
	})
	t.Cleanup(stop)
	return stop
}

// vmm runs a vmm of host h1.
func (w *world) vmm(change ...func(*vmm.Config)) (stop func()) {
	w.t.Helper()
	c := vmm.Config{Host: "h1", Dir: filepath.Join(w.dir, "run"), Cache: filepath.Join(w.dir, "cache"), Poll: 100 * time.Millisecond}
	for _, f := range change {
		f(&c)
	}
	b := bustest.Open(w.t, w.server, bus.Options{Service: "vmm", Host: c.Host, Log: slog.New(slog.NewTextHandler(logged{w.t}, nil))})
	svc, err := vmm.New(b, c, prometheus.NewRegistry())
	if err != nil {
		w.t.Fatal(err)
	}
	return until(w.t, func(ctx context.Context) error { return b.RunService(ctx, svc) })
}

type logged struct{ t *testing.T }

func (l logged) Write(p []byte) (int, error) {
	l.t.Logf("%s", strings.TrimSpace(string(p)))
	return len(p), nil
}

// leased makes a deployment of one unit as ipam leaves it, whose guest does what command says.
func (w *world) leased(generation uint64, command ...string) *fulmarv1.Deployment {
	instance := &fulmarv1.Instance{Unit: "web", Name: messages.InstanceName("web", "web", generation), Network: "n1", Address: fmt.Sprintf("10.9.0.%d", generation)}
	return &fulmarv1.Deployment{
		Stack: "web", Generation: generation,
		Content:  &fulmarv1.Content{Network: "n1", Units: []*fulmarv1.UnitSpec{{Name: "web", Memory: 16}}},
		Network:  &fulmarv1.Network{Name: "n1", Host: "h1", Bridge: "br0"},
		Deadline: timestamppb.New(time.Now().Add(patient)),
		Units:    []*fulmarv1.Unit{{Name: "web", Image: w.image, Device: "net0", Instance: instance, Args: command}},
	}
}

// enter writes a deployment into its head, as underway or whatever state is given.
func (w *world) enter(d *fulmarv1.Deployment, state fulmarv1.State) {
	w.t.Helper()
	var instances []*fulmarv1.Instance
	for _, u := range d.GetUnits() {
		instances = append(instances, u.GetInstance())
	}
	_, err := w.bus.Heads.Edit(w.t.Context(), d.GetStack(), func(h *fulmarv1.Head) (*fulmarv1.Head, error) {
		n := proto.CloneOf(h)
		n.Stack, n.Newest = d.GetStack(), max(n.GetNewest(), d.GetGeneration())
		n.Deployments = slices.DeleteFunc(n.Deployments, func(o *fulmarv1.HeadDeployment) bool { return o.GetGeneration() == d.GetGeneration() })
		n.Deployments = append(n.Deployments, &fulmarv1.HeadDeployment{
			Generation: d.GetGeneration(), State: state, Leased: true, Instances: instances, Host: "h1", Content: d.GetContent(), Deadline: d.GetDeadline(),
		})
		return n, nil
	})
	if err != nil {
		w.t.Fatal(err)
	}
}

// say says an event as the successor of whatever was last.
func (w *world) say(verb messages.Verb, d *fulmarv1.Deployment) {
	w.t.Helper()
	_, last, err := w.bus.Last(w.t.Context(), d.GetStack(), d.GetGeneration())
	if err == nil {
		err = w.bus.Say(w.t.Context(), &fulmarv1.Event{Verb: string(verb), Deployment: d}, last)
	}
	if err != nil {
		w.t.Fatal(err)
	}
}

// await waits for the next verb of a deployment after the one that is last.
func (w *world) await(d *fulmarv1.Deployment, after messages.Verb) *fulmarv1.Event {
	w.t.Helper()
	ctx, cancel := context.WithTimeout(w.t.Context(), patient)
	defer cancel()
	cons, err := w.bus.JS.OrderedConsumer(ctx, messages.EventStream, jetstream.OrderedConsumerConfig{FilterSubjects: []string{messages.ChainFilter(d.GetStack(), d.GetGeneration())}})
	if err != nil {
		w.t.Fatal(err)
	}
	found := false
	for {
		msg, err := cons.Next(jetstream.FetchContext(ctx))
		if err != nil {
			w.t.Fatalf("nothing followed %s of %s: %v", after, messages.DeploymentName(d.GetStack(), d.GetGeneration()), err)
		}
		e := &fulmarv1.Event{}
		if err := proto.Unmarshal(msg.Data(), e); err != nil {
			w.t.Fatal(err)
		}
		if found {
			return e
		}
		found = e.GetVerb() == string(after)
	}
}

// start enters a deployment, says leased and waits for started.
func (w *world) start(d *fulmarv1.Deployment) {
	w.t.Helper()
	w.enter(d, fulmarv1.State_STATE_UNDERWAY)
	w.say(messages.Leased, d)
	if e := w.await(d, messages.Leased); e.GetVerb() != "started" {
		w.t.Fatalf("after leased came %s: %s", e.GetVerb(), e.GetReason())
	}
}

// record waits until the record of the host has these instances, seen or not.
func (w *world) record(want ...*fulmarv1.HostInstance) {
	w.t.Helper()
	view := w.bus.Hosts.View()
	ctx, cancel := context.WithTimeout(w.t.Context(), patient)
	var wg sync.WaitGroup
	defer wg.Wait()
	defer cancel()
	wg.Go(func() { _ = view.Run(ctx) })
	for {
		changed := view.Changed()
		diff := cmp.Diff(want, view.All()["h1"].GetInstances(), protocmp.Transform())
		if diff == "" {
			return
		}
		select {
		case <-changed:
		case <-ctx.Done():
			w.t.Fatalf("record of the host (-want +got):\n%s", diff)
		}
	}
}

func (w *world) running() []string {
	w.t.Helper()
	list, err := w.daemon.Info(w.t.Context(), albatross.Name{})
	if err != nil {
		w.t.Fatal(err)
	}
	var names []string
	for _, r := range list {
		names = append(names, r.Name.String())
	}
	slices.Sort(names)
	return names
}

func TestItStartsRecordsAndStops(t *testing.T) {
	w := newWorld(t)
	lines, err := w.bus.NC.SubscribeSync(messages.ConsoleSubject("h1", "web.web.4"))
	if err != nil {
		t.Fatal(err)
	}
	w.vmm()
	d := w.leased(4, "lines", "3")
	begin := time.Now()
	w.start(d)
	t.Logf("leased to started: %s", time.Since(begin))
	if diff := cmp.Diff([]string{":web.web.4"}, w.running()); diff != "" {
		t.Errorf("running (-want +got):\n%s", diff)
	}
	for i := range 3 {
		msg, err := lines.NextMsg(patient)
		if err != nil {
			t.Fatal(err)
		}
		if got, want := string(msg.Data), fmt.Sprintf("line %d", i); got != want {
			t.Errorf("console line %q, want %q", got, want)
		}
		if _, err := time.Parse(time.RFC3339Nano, msg.Header.Get(vmm.TimeHeader)); err != nil {
			t.Error(err)
		}
	}
	past, err := w.bus.Console(t.Context(), "h1", "web.web.4", 2)
	if err != nil {
		t.Fatal(err)
	}
	var got []string
	for _, l := range past {
		got = append(got, l.GetLine())
	}
	if diff := cmp.Diff([]string{"line 1", "line 2"}, got); diff != "" {
		t.Errorf("the past of the console (-want +got):\n%s", diff)
	}

	w.enter(d, fulmarv1.State_STATE_CONDEMNED)
	d.Dying = []*fulmarv1.Instance{d.GetUnits()[0].GetInstance(), {Unit: "web", Name: "web.web.3"}} // 3 is gone already
	w.say(messages.Drained, d)
	if e := w.await(d, messages.Drained); e.GetVerb() != "stopped" {
		t.Errorf("after drained came %s", e.GetVerb())
	}
	if got := w.running(); len(got) > 0 {
		t.Errorf("still running: %v", got)
	}
	w.record()
}

func TestAnExitIsRecordedWithItsStatus(t *testing.T) {
	w := newWorld(t)
	w.vmm(func(c *vmm.Config) { c.Poll = time.Hour }) // its console must tell
	d := w.leased(5, "later", "2100", "3")            // no look comes of itself any more by then
	w.start(d)
	w.record(&fulmarv1.HostInstance{Name: "web.web.5", Exit: "exited with status 3", LastLine: "up"})

	at := w.leased(6, "exit", "7")
	w.start(at)
	begin := time.Now()
	w.record(&fulmarv1.HostInstance{Name: "web.web.5", Exit: "exited with status 3", LastLine: "up"},
		&fulmarv1.HostInstance{Name: "web.web.6", Exit: "exited with status 7", LastLine: "exiting"})
	t.Logf("an exit right after the start was recorded within %s of started", time.Since(begin))
}

func TestAnExitIsFoundAfterARestart(t *testing.T) {
	w := newWorld(t)
	stop := w.vmm()
	d := w.leased(5, "later", "300", "3")
	w.start(d)
	w.instances([]*fulmarv1.HostInstance{{Name: "web.web.5", Running: true}})
	stop()
	for len(w.running()) > 0 { // polls the daemon: nobody else may tell when it is gone
		if t.Context().Err() != nil {
			t.Fatal("it runs on")
		}
	}
	w.vmm()
	w.record(&fulmarv1.HostInstance{Name: "web.web.5", Exit: "exited with status 3", LastLine: "up"})
}

func TestTheSameEventTwiceStartsOnce(t *testing.T) {
	w := newWorld(t)
	stop := w.vmm()
	d := w.leased(8, "wait")
	w.enter(d, fulmarv1.State_STATE_UNDERWAY)
	w.say(messages.Leased, d)
	w.await(d, messages.Leased)
	stop()
	before := w.info("web.web.8")
	if err := w.bus.JS.DeleteConsumer(t.Context(), messages.EventStream, "vmm-start-h1"); err != nil { // every ack is forgotten
		t.Fatal(err)
	}
	w.vmm()
	other := w.leased(9, "wait")
	other.Stack = "other" // its own lane: that it starts shows that the first event was delivered before it
	other.Units[0].Instance.Name = "other.web.9"
	w.start(other)
	if after := w.info("web.web.8"); !after.Started.Equal(before.Started) {
		t.Error("it was started again")
	}
	if n := w.count(d, messages.Started); n != 1 {
		t.Errorf("started was said %d times", n)
	}
}

func TestACrashBetweenCreateAndStartedStartsOnce(t *testing.T) {
	w := newWorld(t)
	d := w.leased(8, "wait")
	w.create("web.web.8", "wait") // as a vmm did that died before it could say so
	before := w.info("web.web.8")
	w.vmm()
	w.start(d)
	if after := w.info("web.web.8"); !after.Started.Equal(before.Started) {
		t.Error("it was started again")
	}
}

func TestTwoReplicasStartOnceAndKeepOneRecord(t *testing.T) {
	w := newWorld(t)
	w.vmm()
	w.vmm()
	var want []*fulmarv1.HostInstance
	for g := uint64(1); g <= 5; g++ {
		d := w.leased(g, "wait")
		w.start(d)
		if n := w.count(d, messages.Started); n != 1 {
			t.Errorf("started was said %d times of generation %d", n, g)
		}
		want = append(want, &fulmarv1.HostInstance{Name: messages.InstanceName("web", "web", g), Running: true, LastLine: "up"})
	}
	if got := len(w.running()); got != 5 {
		t.Errorf("%d run, want 5", got)
	}
	w.instances(want)
}

// instances waits for a record of instances whatever their last lines.
func (w *world) instances(want []*fulmarv1.HostInstance) {
	w.t.Helper()
	ctx, cancel := context.WithTimeout(w.t.Context(), patient)
	defer cancel()
	tick := time.NewTicker(10 * time.Millisecond)
	defer tick.Stop()
	for {
		h, _, err := w.bus.Hosts.Get(ctx, "h1")
		diff := cmp.Diff(want, h.GetInstances(), protocmp.Transform(), protocmp.IgnoreFields(&fulmarv1.HostInstance{}, "last_line"))
		if err == nil && diff == "" {
			return
		}
		select {
		case <-tick.C:
		case <-ctx.Done():
			w.t.Fatalf("record of the host (-want +got):\n%s", diff)
		}
	}
}

func TestRefusals(t *testing.T) {
	w := newWorld(t)
	w.vmm()
	w.create("web.web.5", "wait")
	cases := []struct {
		name       string
		generation uint64
		change     func(*fulmarv1.Deployment)
		code       fulmarv1.ReasonCode
		reason     string
	}{
		{"no such bridge", 1, func(d *fulmarv1.Deployment) { d.Network.Bridge = "br9" }, fulmarv1.ReasonCode_REASON_CODE_START, "unit web cannot be started: interface br9 does not exist"},
		{"another device", 2, func(d *fulmarv1.Deployment) { d.Units[0].Device = "eth0" }, fulmarv1.ReasonCode_REASON_CODE_START, `unit web cannot be started: specified bridge(s) does not match with the manifest. Devices present in manifest: net "net0"`},
		{"an image that is nowhere", 3, func(d *fulmarv1.Deployment) { d.Units[0].Image = strings.Repeat("0", 64) }, fulmarv1.ReasonCode_REASON_CODE_NOT_FOUND, "unit web: image " + strings.Repeat("0", 64) + " is not in the store"},
		{"a CPU that is not there", 4, func(d *fulmarv1.Deployment) { d.Content.Units[0].Cpus = []uint32{999} }, fulmarv1.ReasonCode_REASON_CODE_START, "unit web cannot be started: CPUids 999 are not allowed by policy"},
		{"its name runs something else", 5, func(d *fulmarv1.Deployment) { d.Units[0].Args = []string{"lines", "1"} }, fulmarv1.ReasonCode_REASON_CODE_START, `unit web cannot be started: web.web.5 runs already and is not the same: its arguments are "wait"`},
	}
	for _, c := range cases {
		d := w.leased(c.generation, "wait")
		c.change(d)
		w.enter(d, fulmarv1.State_STATE_UNDERWAY)
		w.say(messages.Leased, d)
		e := w.await(d, messages.Leased)
		if e.GetVerb() != "failed" || e.GetReason() != c.reason || e.GetReasonCode() != c.code {
			t.Errorf("%s: %s, %v, %q; want failed, %v, %q", c.name, e.GetVerb(), e.GetReasonCode(), e.GetReason(), c.code, c.reason)
		}
	}
	if diff := cmp.Diff([]string{":web.web.5"}, w.running()); diff != "" {
		t.Errorf("running (-want +got):\n%s", diff)
	}
}

func TestNothingIsCreatedPastTheDeadline(t *testing.T) {
	w := newWorld(t)
	w.vmm()
	late := w.leased(1, "wait")
	late.Deadline = timestamppb.New(time.Now().Add(-time.Millisecond))
	w.enter(late, fulmarv1.State_STATE_UNDERWAY)
	w.say(messages.Leased, late)
	w.start(w.leased(2, "wait")) // the same lane: the late one was tried before it
	if diff := cmp.Diff([]string{":web.web.2"}, w.running()); diff != "" {
		t.Errorf("running (-want +got):\n%s", diff)
	}
	if e, _, err := w.bus.Last(t.Context(), "web", 1); err != nil || e.GetVerb() != "leased" {
		t.Errorf("last event of the late one: %v, %v; want leased, for ipam to fail", e.GetVerb(), err)
	}
}

func TestAKeptInstanceRunsOn(t *testing.T) {
	w := newWorld(t)
	w.vmm()
	first := w.leased(1, "wait")
	w.start(first)
	before := w.info("web.web.1")
	again := w.leased(2, "wait")
	again.Units[0].Instance, again.Units[0].Kept = first.GetUnits()[0].GetInstance(), true
	image := w.loseImage()
	w.start(again)
	if after := w.info("web.web.1"); !after.Started.Equal(before.Started) {
		t.Error("it was started again")
	}

	// One that has exited is started again, and the record has forgotten its exit before anybody is told.
	if err := w.daemon.Destroy(t.Context(), before.Name); err != nil {
		t.Fatal(err)
	}
	w.record(&fulmarv1.HostInstance{Name: "web.web.1", Exit: "killed by signal SIGTERM", LastLine: "up"})
	if _, err := w.bus.Images.PutBytes(t.Context(), w.image, image); err != nil {
		t.Fatal(err)
	}
	third := w.leased(3, "wait")
	third.Units[0].Instance, third.Units[0].Kept = first.GetUnits()[0].GetInstance(), true
	w.start(third)
	h, _, err := w.bus.Hosts.Get(t.Context(), "h1")
	if err != nil || len(h.GetInstances()) != 1 || !h.GetInstances()[0].GetRunning() {
		t.Errorf("record: %v, %v; want one instance that runs", h.GetInstances(), err)
	}
}

// loseImage removes the image from the store and the cache, and gives it.
func (w *world) loseImage() []byte {
	w.t.Helper()
	image, err := w.bus.Images.GetBytes(w.t.Context(), w.image)
	if err == nil {
		err = errors.Join(w.bus.Images.Delete(w.t.Context(), w.image), os.Remove(filepath.Join(w.dir, "cache", w.image)))
	}
	if err != nil {
		w.t.Fatal(err)
	}
	return image
}

func TestAPathKeepsApartWhatIsOurs(t *testing.T) {
	w := newWorld(t)
	w.create("web.web.1", "wait") // not below the path
	w.create("stranger", "wait")
	w.create("fulmar:h1:sub:web.web.3", "wait")
	w.vmm(func(c *vmm.Config) { c.Path = "fulmar:h1" })
	w.start(w.leased(2, "wait"))
	if diff := cmp.Diff([]string{":stranger", ":web.web.1", "fulmar:h1:sub:web.web.3", "fulmar:h1:web.web.2"}, w.running()); diff != "" {
		t.Errorf("running (-want +got):\n%s", diff)
	}
	w.instances([]*fulmarv1.HostInstance{{Name: "web.web.2", Running: true}})
}

func TestADamagedImageIsFetchedAgain(t *testing.T) {
	w := newWorld(t)
	w.vmm()
	w.start(w.leased(1, "wait"))
	path := filepath.Join(w.dir, "cache", w.image)
	if err := os.Truncate(path, 100); err != nil {
		t.Fatal(err)
	}
	w.start(w.leased(2, "wait"))
	if info, err := os.Stat(path); err != nil || info.Size() == 100 {
		t.Errorf("the damaged image is still there: %v, %v", info, err)
	}
}

// create starts the guest by hand.
func (w *world) create(name string, command ...string) {
	w.t.Helper()
	image, err := w.bus.Images.GetBytes(w.t.Context(), w.image)
	if err != nil {
		w.t.Fatal(err)
	}
	n, err := albatross.ParseName(name)
	if err == nil {
		err = w.daemon.Create(w.t.Context(), n, albatross.Config{Image: image, Args: albatross.Args{
			Memory: 16, CPUs: 1, Bridges: []albatross.Bridge{{Netif: "net0", Bridge: "br0"}}, Arguments: command,
		}})
	}
	if err != nil {
		w.t.Fatal(err)
	}
}

func (w *world) info(name string) albatross.Running {
	w.t.Helper()
	n, err := albatross.MakeName(name)
	if err != nil {
		w.t.Fatal(err)
	}
	list, err := w.daemon.Info(w.t.Context(), n)
	if err != nil || len(list) != 1 {
		w.t.Fatalf("%s: %v, %v; want it to run", name, list, err)
	}
	return list[0]
}

// count counts how often a verb was said of a deployment.
func (w *world) count(d *fulmarv1.Deployment, verb messages.Verb) uint64 {
	w.t.Helper()
	s, err := w.bus.JS.Stream(w.t.Context(), messages.EventStream)
	if err != nil {
		w.t.Fatal(err)
	}
	subject := messages.StepSubject(d.GetStack(), d.GetGeneration(), verb, "h1")
	info, err := s.Info(w.t.Context(), jetstream.WithSubjectFilter(subject))
	if err != nil && !errors.Is(err, nats.ErrNoResponders) {
		w.t.Fatal(err)
	}
	return info.State.Subjects[subject]
}
