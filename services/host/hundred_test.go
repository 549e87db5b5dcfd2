package host_test

import (
	"fmt"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"fulmar/albatross"
	"fulmar/services/host"
	"fulmar/services/host/hosttest"
)

// TestAHundredUnikernels creates a hundred at once, kills host, and looks at what the next one adopts. The bounds on time are generous: what it
// really takes is in docs/PERFORMANCE.md.
func TestAHundredUnikernels(t *testing.T) {
	const count = 100
	path := program(t)
	cfg := config(t)
	bridge(t)
	image := hosttest.Guest(t, 1)
	h := startChild(t, path, cfg)
	h.all(t, "creates", count, func(n albatross.Name) error { return h.Create(t.Context(), n, unikernel(image, 1, "wait")) })
	before := h.pids(t, cfg, count)

	h.end(t, syscall.SIGKILL)
	if got := len(taps(t)); got != count {
		t.Errorf("%d taps while host is down", got)
	}
	begin := time.Now()
	h = startChild(t, path, cfg)
	if took := time.Since(begin); took > 10*time.Second {
		t.Errorf("host took %v until it had adopted all", took)
	}
	if diff := cmp.Diff(before, h.pids(t, cfg, count)); diff != "" {
		t.Errorf("processes (-before +after):\n%s", diff)
	}
	h.all(t, "destroys", count, func(n albatross.Name) error { return h.Destroy(t.Context(), n) })
	checkNothingLeft(t, cfg)
	h.end(t, syscall.SIGTERM)
}

func hundredth(t testing.TB, i int) albatross.Name {
	t.Helper()
	return name(t, fmt.Sprintf("many:u%d", i))
}

// all does something to so many unikernels at once, in bounded time.
func (d *daemon) all(t testing.TB, what string, count int, do func(albatross.Name) error) {
	t.Helper()
	begin := time.Now()
	var clients sync.WaitGroup
	for i := range count {
		n := hundredth(t, i)
		clients.Go(func() {
			if err := do(n); err != nil {
				t.Error(err)
			}
		})
	}
	clients.Wait()
	if took := time.Since(begin); took > 30*time.Second {
		t.Errorf("%d %s took %v", count, what, took)
	}
}

// pids are the processes of all that run, as many as there must be.
func (c *child) pids(t testing.TB, cfg host.Config, count int) map[string]int {
	t.Helper()
	list, err := c.Info(t.Context(), name(t, "many:"))
	if err != nil || len(list) != count {
		t.Fatalf("%d unikernels run, %v", len(list), err)
	}
	all := make(map[string]int)
	for _, r := range list {
		all[r.Name.String()] = stored(t, cfg, r.Name).PID
	}
	return all
}
