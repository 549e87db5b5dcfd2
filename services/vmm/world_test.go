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

const patient = 20 * time.Second

// world is a host with its daemon and a bus.
type world struct {
	t      *testing.T
	server *bus.Server
	bus    *bus.Bus // in the name of everybody else
	daemon *albatross.Client
	dir    string
	image  string               // digest of the guest
	reg    *prometheus.Registry // of the vmm that was started last
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
		Cgroup: "fulmar-test-" + filepath.Base(dir), UIDBase: 710000, StatsEvery: 50 * time.Millisecond,
	}, slog.New(slog.DiscardHandler), prometheus.NewRegistry())
	if err != nil {
		t.Fatal(err)
	}
	bustest.Run(t, svc.Run)
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

// vmm runs a vmm of host h1.
func (w *world) vmm(change ...func(*vmm.Config)) (stop func()) {
	w.t.Helper()
	c := vmm.Config{Host: "h1", Dir: filepath.Join(w.dir, "run"), Cache: filepath.Join(w.dir, "cache"), Poll: 100 * time.Millisecond}
	for _, f := range change {
		f(&c)
	}
	b := bustest.Open(w.t, w.server, bus.Options{Service: "vmm", Host: c.Host, Log: slog.New(slog.NewTextHandler(logged{w.t}, nil))})
	w.reg = prometheus.NewRegistry()
	svc, err := vmm.New(b, c, w.reg)
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

// record waits until the record of the host has these instances, seen or not, whenever they were started.
func (w *world) record(want ...*fulmarv1.HostInstance) {
	w.t.Helper()
	if diff := w.missed(patient, want...); diff != "" {
		w.t.Fatalf("record of the host (-want +got):\n%s", diff)
	}
}

// missed is record within a time, and gives what was different all that time.
func (w *world) missed(within time.Duration, want ...*fulmarv1.HostInstance) string {
	w.t.Helper()
	view := w.bus.Hosts.View()
	ctx, cancel := context.WithTimeout(w.t.Context(), within)
	var wg sync.WaitGroup
	defer wg.Wait()
	defer cancel()
	wg.Go(func() { _ = view.Run(ctx) })
	for {
		changed := view.Changed()
		diff := cmp.Diff(want, view.All()["h1"].GetInstances(), protocmp.Transform(), protocmp.IgnoreFields(&fulmarv1.HostInstance{}, "started", "restarts"))
		if diff == "" {
			return ""
		}
		select {
		case <-changed:
		case <-ctx.Done():
			return diff
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

// instances waits for a record of instances whatever their last lines.
func (w *world) instances(want []*fulmarv1.HostInstance) {
	w.t.Helper()
	ctx, cancel := context.WithTimeout(w.t.Context(), patient)
	defer cancel()
	tick := time.NewTicker(10 * time.Millisecond)
	defer tick.Stop()
	for {
		h, _, err := w.bus.Hosts.Get(ctx, "h1")
		diff := cmp.Diff(want, h.GetInstances(), protocmp.Transform(), protocmp.IgnoreFields(&fulmarv1.HostInstance{}, "last_line", "started", "restarts"))
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
