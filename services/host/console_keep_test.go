package host_test

import (
	"os"
	"path/filepath"
	"slices"
	"syscall"
	"testing"

	"github.com/google/go-cmp/cmp"

	"fulmar/albatross"
	"fulmar/services/host/hosttest"
)

// TestConsolesOutliveAnUpgrade stops host, and looks at the consoles of the next one; then it kills that, after which they are gone.
func TestConsolesOutliveAnUpgrade(t *testing.T) {
	host := program(t)
	cfg := config(t)
	image := hosttest.Guest(t, 0)
	runs, gone := name(t, "a:runs"), name(t, "a:gone")
	h := startChild(t, host, cfg)
	h.create(t, runs, unikernel(image, 0, "lines", "5"))
	h.create(t, gone, unikernel(image, 0, "exit", "3"))
	h.await(t, gone, ended)
	before := h.await(t, runs, is("line 4"))
	at := h.past(t, runs, albatross.ConsoleSubscribe{Count: 5}, "line 4")
	h.end(t, syscall.SIGTERM)

	h = startChild(t, host, cfg)
	if diff := cmp.Diff(before, h.await(t, runs, is("line 4"))); diff != "" {
		t.Errorf("lines of what runs (-before +after):\n%s", diff)
	}
	if after := h.past(t, runs, albatross.ConsoleSubscribe{Count: 5}, "line 4"); !slices.EqualFunc(at, after, func(a, b albatross.ConsoleData) bool { return a.Time.Equal(b.Time) && a.Line == b.Line }) {
		t.Errorf("lines are %v, were %v", after, at)
	}
	if diff := cmp.Diff([]string{"exiting", "fulmar: exited with status 3"}, h.await(t, gone, ended)); diff != "" {
		t.Errorf("lines of what runs no more (-want +got):\n%s", diff)
	}
	list, err := h.InactiveConsoles(t.Context(), path(t, "a"))
	if err != nil || len(list) != 1 || list[0] != name(t, "gone") {
		t.Errorf("inactive: %v, %v", list, err)
	}
	h.end(t, syscall.SIGKILL)

	h = startChild(t, host, cfg)
	if got := h.past(t, runs, albatross.ConsoleSubscribe{Count: 5}, ""); len(got) != 0 {
		t.Errorf("a host that was killed left %v", got)
	}
	if err := h.Destroy(t.Context(), runs); err != nil {
		t.Error(err)
	}
	h.end(t, syscall.SIGTERM)

	kept := filepath.Join(cfg.RunDir, "consoles")
	if err := os.WriteFile(kept, []byte("{"), 0o600); err != nil {
		t.Fatal(err)
	}
	h = startChild(t, host, cfg) // what is damaged is no reason not to start
	h.end(t, syscall.SIGTERM)
	if info, err := os.Stat(kept); err != nil || info.Mode().Perm() != 0o600 {
		t.Errorf("what host leaves: %v, %v", info, err)
	}
}
