package host_test

import (
	"errors"
	"os"
	"path/filepath"
	"slices"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/prometheus/client_golang/prometheus"
	"golang.org/x/sys/unix"

	"fulmar/albatross"
	"fulmar/services/host"
	"fulmar/services/host/hosttest"
)

func path(t testing.TB, s string) albatross.Path {
	t.Helper()
	p, err := albatross.ParsePath(s)
	if err != nil {
		t.Fatal(err)
	}
	return p
}

// policies returns the policies of all paths by their names.
func (d *daemon) policies(t testing.TB) map[string]albatross.Policy {
	t.Helper()
	all, err := d.Policies(t.Context(), albatross.Path{})
	if err != nil {
		t.Fatal(err)
	}
	byName := make(map[string]albatross.Policy)
	for _, p := range all {
		byName[p.Name.String()] = p.Policy
	}
	return byName
}

func TestPoliciesStay(t *testing.T) {
	cfg := config(t)
	d := start(t, cfg)
	for p, policy := range map[string]albatross.Policy{
		"a":   {CPUIDs: []int{0}, Unikernels: 3, Memory: 64, Block: new(10), Bridges: []string{"br0"}},
		"a:b": {CPUIDs: []int{0}, Unikernels: 1, Memory: 16},
		"c":   {Unikernels: 1},
	} {
		if err := d.AddPolicy(t.Context(), path(t, p), policy); err != nil && !errors.Is(err, albatross.ErrPolicy) {
			t.Fatal(err)
		}
	}
	if err := d.RemovePolicy(t.Context(), path(t, "c")); err != nil {
		t.Fatal(err)
	}
	want := d.policies(t)
	if err := d.stop(); err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(want, start(t, cfg).policies(t)); diff != "" {
		t.Errorf("policies after a restart (-want +got):\n%s", diff)
	}
}

func TestHostDoesNotStartWithoutItsPolicies(t *testing.T) {
	cfg := config(t)
	if err := os.MkdirAll(cfg.StateDir, 0o700); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(cfg.StateDir, "policies"), []byte("[{"), 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := host.New(cfg, nil, prometheus.NewRegistry()); err == nil {
		t.Error("host started")
	}
}

func TestRootPolicyOfTheMachine(t *testing.T) {
	cfg := config(t)
	bridge(t)
	cfg.RootPolicy = true
	d := start(t, cfg)
	root := d.policies(t)[":"]
	if root.Memory < 100 || root.Unikernels != 1<<62-1 || root.Block == nil || *root.Block < 1 || len(root.CPUIDs) == 0 || !slices.Equal(root.Bridges, []string{"br0"}) {
		t.Errorf("policy of the root is %+v", root)
	}
	other := unikernel(hosttest.Guest(t, 1), 1, "wait")
	other.Bridges[0].Bridge = "br1"
	if err := d.Create(t.Context(), name(t, "x"), other); !errors.Is(err, albatross.ErrPolicy) {
		t.Errorf("create on another bridge: %v", err)
	}
	if err := d.AddPolicy(t.Context(), path(t, "big"), albatross.Policy{Memory: 1 << 40}); !errors.Is(err, albatross.ErrPolicy) {
		t.Errorf("add of a policy above the machine: %v", err)
	}
	for _, remove := range []bool{true, false} { // of the machine's, and not of one that was set
		root.Unikernels = 7
		var err error
		if remove {
			err = d.RemovePolicy(t.Context(), albatross.Path{})
		} else {
			err = d.AddPolicy(t.Context(), albatross.Path{}, root)
		}
		if err := errors.Join(err, d.stop()); err != nil {
			t.Fatal(err)
		}
		d = start(t, cfg)
		if got := d.policies(t)[":"].Unikernels; remove != (got == 1<<62-1) {
			t.Errorf("after a restart there may be %d unikernels", got)
		}
	}
}

// What is refused changes nothing: not what runs, and not what is booked.
func TestPolicyBindsWhatRuns(t *testing.T) {
	cfg := config(t)
	d := start(t, cfg)
	image := hosttest.Guest(t, 0)
	if err := d.AddPolicy(t.Context(), path(t, "a"), albatross.Policy{CPUIDs: []int{0}, Unikernels: 2, Memory: 20}); err != nil {
		t.Fatal(err)
	}
	first, second := name(t, "a:first"), name(t, "a:b:second")
	anyCPU := unikernel(image, 0, "wait")
	anyCPU.CPUIDs = nil
	d.create(t, first, anyCPU)
	d.create(t, second, unikernel(image, 0, "wait"))

	larger := unikernel(image, 0, "wait")
	larger.Memory = 13
	err := errors.Join(
		d.wantPolicyError(t, d.Create(t.Context(), name(t, "a:third"), unikernel(image, 0, "wait"))),
		d.wantPolicyError(t, d.ForceCreate(t.Context(), second, larger)),
		d.wantPolicyError(t, d.RestartWith(t.Context(), second, larger.Args)),
	)
	if err != nil {
		t.Error(err)
	}
	list, err := d.Info(t.Context(), path(t, "a").Name())
	if err != nil || len(list) != 2 || list[0].Memory != 8 || list[1].Memory != 8 {
		t.Errorf("runs: %+v, %v", list, err)
	}
	larger.Memory = 12 // as much as may be
	if err := d.RestartWith(t.Context(), second, larger.Args); err != nil {
		t.Error(err)
	}
	if err := d.AddPolicy(t.Context(), path(t, "a"), albatross.Policy{CPUIDs: []int{0}, Unikernels: 2, Memory: 19}); !errors.Is(err, albatross.ErrPolicy) {
		t.Errorf("shrunk below what runs: %v", err)
	}
	for pid, uid := range processes(t) {
		if uid < cfg.UIDBase || uid >= cfg.UIDBase+1<<16 {
			continue
		}
		var set unix.CPUSet
		if err := unix.SchedGetaffinity(pid, &set); err != nil || set.Count() != 1 || !set.IsSet(0) {
			t.Errorf("process %d may run on %d CPUs, %v", pid, set.Count(), err)
		}
	}

	if err := d.stop(); err != nil { // it is known to the next host, too
		t.Fatal(err)
	}
	d = start(t, cfg).destroyAll(t)
	if err := d.Create(t.Context(), name(t, "a:third"), unikernel(image, 0, "wait")); !errors.Is(err, albatross.ErrPolicy) {
		t.Errorf("create after a restart: %v", err)
	}
	for _, n := range []albatross.Name{first, second} {
		if err := d.Destroy(t.Context(), n); err != nil {
			t.Error(err)
		}
	}
	d.create(t, name(t, "a:third"), unikernel(image, 0, "exit", "0"))
}

// wantPolicyError returns an error unless err is one of policy.
func (d *daemon) wantPolicyError(t testing.TB, err error) error {
	t.Helper()
	if !errors.Is(err, albatross.ErrPolicy) {
		return errors.Join(errors.New("policy did not forbid it"), err)
	}
	return nil
}

func TestPolicyAddKeepsTheConnection(t *testing.T) {
	d := start(t, config(t))
	conn := dial(t, d.cfg, albatross.VMMDSocket)
	say := func(p albatross.Payload, sequence uint64) albatross.Payload {
		t.Helper()
		w := albatross.Wire{Header: albatross.Header{Sequence: sequence, Name: path(t, "a").Name()}, Payload: p}
		if err := albatross.WriteFrame(conn, mustMarshal(t, w)); err != nil {
			t.Fatal(err)
		}
		reply := receive(t, conn)
		if reply.Header != w.Header {
			t.Errorf("reply to %+v, want %+v", reply.Header, w.Header)
		}
		return reply.Payload
	}
	policy := albatross.PolicyAdd{Policy: albatross.Policy{Unikernels: 1}}
	if got := say(policy, 1); got != albatross.Text("added policy") {
		t.Errorf("first: %v", got)
	}
	if got := say(policy, 2); got != albatross.Text("no modification of policy") {
		t.Errorf("second: %v", got)
	}
	if got, ok := say(albatross.PolicyInfo{}, 3).(albatross.Policies); !ok || len(got) != 1 {
		t.Errorf("third: %v", got)
	}
	if n, err := conn.Read(make([]byte, 1)); n != 0 || err == nil {
		t.Errorf("after a command of another kind: %d bytes, %v", n, err)
	}
}
