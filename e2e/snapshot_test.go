package e2e_test

import (
	"context"
	"maps"
	"slices"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"

	"fulmar/e2e/lab"
	"fulmar/messages"
)

// snapshot is what deployments hold, as far as it can be compared.
type snapshot struct {
	Host    []string            // taps, control groups and processes
	Rules   []string            // of the firewall, all of them
	Held    map[string]string   // addresses that are held, and the instances
	Resting map[string]string   // addresses that rest, and the instances
	Heads   map[string][]string // deployments by stack, with their states
}

func (w *world) snapshot() snapshot {
	w.t.Helper()
	s, err := w.look(w.patient())
	if err != nil {
		w.t.Fatal(err)
	}
	return s
}

func (w *world) look(ctx context.Context) (snapshot, error) {
	s := snapshot{Held: map[string]string{}, Resting: map[string]string{}, Heads: map[string][]string{}}
	var err error
	if s.Host, err = w.Left(); err != nil {
		return s, err
	}
	if s.Rules, err = lab.Rules(); err != nil {
		return s, err
	}
	leases, err := w.bus.Leases.All(ctx)
	if err != nil {
		return s, err
	}
	for key, l := range leases {
		if l.GetRestingUntil() == nil {
			s.Held[key] = l.GetInstance()
		} else {
			s.Resting[key] = l.GetInstance()
		}
	}
	heads, err := w.bus.Heads.All(ctx)
	if err != nil {
		return s, err
	}
	for _, stack := range slices.Sorted(maps.Keys(heads)) {
		for _, d := range heads[stack].GetDeployments() {
			s.Heads[stack] = append(s.Heads[stack], messages.DeploymentName(stack, d.GetGeneration())+" "+d.GetState().String())
		}
	}
	return s, nil
}

// same fails the test unless deployments come to hold what they held at a snapshot, and nothing else. Addresses may
// rest that did not.
func (w *world) same(before snapshot) {
	w.t.Helper()
	w.compare(before, cmpopts.IgnoreFields(snapshot{}, "Resting"))
}

// untouched fails the test unless deployments come to hold what they held at a snapshot, and not even an address was
// leased meanwhile.
func (w *world) untouched(before snapshot) {
	w.t.Helper()
	w.compare(before)
}

func (w *world) compare(before snapshot, options ...cmp.Option) {
	w.t.Helper()
	w.until(func(ctx context.Context) error {
		now, err := w.look(ctx)
		if err != nil {
			return err
		}
		if diff := cmp.Diff(before, now, options...); diff != "" {
			return differs(diff)
		}
		return nil
	})
}

// differs is an error that shows how two snapshots differ.
type differs string

func (d differs) Error() string { return "what is held (-before +now):\n" + string(d) }
