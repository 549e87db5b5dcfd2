package e2e_test

import (
	"maps"
	"slices"

	"github.com/google/go-cmp/cmp"

	"fulmar/e2e/lab"
	"fulmar/messages"
)

// snapshot is what deployments hold, as far as it can be compared.
type snapshot struct {
	Host   []string            // taps, control groups and processes
	Rules  []string            // of the firewall, all of them
	Leases map[string]string   // held addresses and their instances
	Heads  map[string][]string // deployments by stack, with their states
}

func (w *world) snapshot() snapshot {
	w.t.Helper()
	s, err := w.look()
	if err != nil {
		w.t.Fatal(err)
	}
	return s
}

func (w *world) look() (snapshot, error) {
	s := snapshot{Leases: map[string]string{}, Heads: map[string][]string{}}
	var err error
	if s.Host, err = w.Left(); err != nil {
		return s, err
	}
	if s.Rules, err = lab.Rules(); err != nil {
		return s, err
	}
	leases, err := w.bus.Leases.All(w.patient())
	if err != nil {
		return s, err
	}
	for key, l := range leases {
		if l.GetRestingUntil() == nil {
			s.Leases[key] = l.GetInstance()
		}
	}
	heads, err := w.bus.Heads.All(w.patient())
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

// same fails the test unless deployments come to hold what they held at a snapshot, and nothing else.
func (w *world) same(before snapshot) {
	w.t.Helper()
	w.until(func() error {
		now, err := w.look()
		if err != nil {
			return err
		}
		if diff := cmp.Diff(before, now); diff != "" {
			return differs(diff)
		}
		return nil
	})
}

// differs is an error that shows how two snapshots differ.
type differs string

func (d differs) Error() string { return "what is held (-before +now):\n" + string(d) }
