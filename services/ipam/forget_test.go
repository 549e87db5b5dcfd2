package ipam

import (
	"fmt"
	"net/netip"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"golang.org/x/sync/errgroup"
	"google.golang.org/protobuf/types/known/timestamppb"

	fulmarv1 "fulmar/messages/fulmar/v1"
)

func restedSince(d time.Duration, instance string) *fulmarv1.Lease {
	return &fulmarv1.Lease{Instance: instance, RestingUntil: timestamppb.New(time.Now().Add(-d))}
}

func TestTheSweepDeletesLeasesThatHaveRestedLongSince(t *testing.T) {
	w := newWorld(t, lan())
	if err := w.Hosts.Put(t.Context(), "host1", &fulmarv1.Host{Instances: []*fulmarv1.HostInstance{
		{Name: "web.run.3", Running: true}, {Name: "web.exited.3"},
	}}, 0); err != nil {
		t.Fatal(err)
	}
	for address, l := range map[string]*fulmarv1.Lease{
		"10.0.0.2": restedSince(2*time.Hour, "web.a.3"),
		"10.0.0.3": restedSince(2*time.Hour, "web.run.3"), // a frozen worker has started it again
		"10.0.0.4": restedSince(2*time.Hour, "web.exited.3"),
		"10.0.0.5": restedSince(10*time.Minute, "web.b.3"),
		"10.0.0.6": restedSince(-time.Hour, "web.c.3"),
		"10.0.0.7": {Instance: "web.a.9"},
	} {
		w.lease(address, l)
	}
	if err := w.replica(calm()).sweep(t.Context()); err != nil {
		t.Fatal(err)
	}
	want := map[string]string{"10.0.0.3": "resting", "10.0.0.5": "resting", "10.0.0.6": "resting", "10.0.0.7": "web.a.9"}
	if diff := cmp.Diff(want, w.leases()); diff != "" {
		t.Errorf("leases (-want +got):\n%s", diff)
	}
}

// TestTheSweepDeletesNoLeaseThatIsClaimedMeanwhile claims every address of a pool of spent leases while it is swept.
func TestTheSweepDeletesNoLeaseThatIsClaimedMeanwhile(t *testing.T) {
	w := newWorld(t, lan())
	p, err := NewPool(w.network)
	if err != nil {
		t.Fatal(err)
	}
	free := 0
	for i := range p.size() {
		if a := p.at(i); p.leasable(a) {
			w.lease(a.String(), restedSince(2*time.Hour, "old.a.3"))
			free++
		}
	}
	claimer, sweeper := w.replica(calm()), w.replica(calm())
	var g errgroup.Group
	claimed := make([]netip.Addr, free)
	for i := range claimed {
		g.Go(func() error {
			var err error
			claimed[i], err = claimer.claim(t.Context(), p, fmt.Sprintf("web.a.%d", i+1), time.Now().Add(patience))
			return err
		})
	}
	for range 3 {
		if err := sweeper.sweep(t.Context()); err != nil {
			t.Error(err)
		}
	}
	if err := g.Wait(); err != nil {
		t.Fatal(err)
	}
	left := w.leases()
	for i, a := range claimed {
		if want := fmt.Sprintf("web.a.%d", i+1); left[a.String()] != want {
			t.Errorf("%s is of %q, want %s", a, left[a.String()], want)
		}
	}
}
