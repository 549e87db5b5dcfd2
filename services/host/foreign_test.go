package host_test

import (
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"golang.org/x/sys/unix"

	"fulmar/albatross"
	"fulmar/services/host/hosttest"
)

// TestConsolesOfOthers reads what somebody else than host runs writes to a FIFO, as albatross's own daemon asks for.
func TestConsolesOfOthers(t *testing.T) {
	cfg := config(t)
	d := start(t, cfg).destroyAll(t)
	add := func(text string) albatross.Payload {
		t.Helper()
		return ask(t, cfg, albatross.ConsoleSocket, albatross.Wire{Header: albatross.Header{Sequence: 3, Name: name(t, text)}, Payload: albatross.ConsoleAdd{Count: 1}}).Payload
	}
	fifo := filepath.Join(cfg.RunDir, "fifo", "a:other")
	if err := unix.Mkfifo(fifo, 0o600); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(cfg.RunDir, "fifo", ":file"), nil, 0o600); err != nil {
		t.Fatal(err)
	}
	own := name(t, "a:own")
	d.create(t, own, unikernel(hosttest.Guest(t, 0), 0, "wait"))
	var got []albatross.Payload
	for _, n := range []string{"a:other", "a:other", "a:own", "a:missing", "a:", ":file"} {
		got = append(got, add(n))
	}
	if diff := cmp.Diff([]albatross.Payload{
		albatross.Empty{},
		albatross.Failure("this console is read already, or too many are"), albatross.Failure("this console is read already"),
		albatross.Failure("opening"), albatross.Failure("path used instead of name"), albatross.Failure("opening"),
	}, got); diff != "" {
		t.Errorf("replies (-want +got):\n%s", diff)
	}
	w, err := os.OpenFile(fifo, os.O_WRONLY, 0)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := w.WriteString("one\ntwo\n"); err != nil {
		t.Fatal(err)
	}
	other := name(t, "a:other")
	if lines := d.await(t, other, is("two")); len(lines) != 2 || lines[0] != "one" {
		t.Errorf("lines are %q", lines)
	}
	if _, err := w.WriteString("end"); err != nil {
		t.Fatal(err)
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	d.await(t, other, is("end"))
	tick := time.NewTicker(time.Millisecond)
	defer tick.Stop()
	for range 5000 { // until the end of the first is known
		if got = []albatross.Payload{add("a:other")}; got[0] == (albatross.Empty{}) {
			break
		}
		<-tick.C
	}
	if got[0] != (albatross.Empty{}) { // it waits for a writer when host ends
		t.Errorf("a second time: %v", got)
	}
	if err := os.Remove(filepath.Join(cfg.RunDir, "fifo", ":file")); err != nil {
		t.Error(err)
	}
	if err := os.Remove(fifo); err != nil {
		t.Error(err)
	}
}
