package host_test

import (
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"fulmar/albatross"
	"fulmar/services/host/hosttest"
)

// TestProcessesAreAnnounced asks as albatross's own daemon of statistics does, and is told what runs, as it comes and goes.
func TestProcessesAreAnnounced(t *testing.T) {
	cfg := config(t)
	bridge(t)
	d := start(t, cfg).destroyAll(t)
	image := hosttest.Guest(t, 1)
	first, second := name(t, "a:first"), name(t, "second")
	d.create(t, first, unikernel(image, 1, "wait"))
	conn := dial(t, cfg, albatross.VMMDSocket)
	if err := conn.SetDeadline(time.Now().Add(20 * time.Second)); err != nil {
		t.Fatal(err)
	}
	if err := albatross.WriteFrame(conn, mustMarshal(t, albatross.Wire{Header: albatross.Header{Sequence: 9}, Payload: albatross.StatsInitial{}})); err != nil {
		t.Fatal(err)
	}
	if got := receive(t, conn); got.Payload != (albatross.Empty{}) || got.Sequence != 9 {
		t.Errorf("reply is %+v", got)
	}
	hears := func(n albatross.Name, want albatross.Payload) {
		t.Helper()
		got := receive(t, conn)
		if diff := cmp.Diff(want, got.Payload); diff != "" || got.Name != n {
			t.Errorf("of %v (-want +got):\n%s", got.Name, diff)
		}
		if err := albatross.WriteReply(conn, got.Header, albatross.Text("added")); err != nil {
			t.Fatal(err)
		}
	}
	added := func(n albatross.Name) albatross.StatsAdd {
		t.Helper()
		list := taps(t)
		return albatross.StatsAdd{PID: stored(t, cfg, n).PID, Taps: []albatross.Tap{{Bridge: "net0", Tap: list[len(list)-1]}}}
	}
	hears(first, added(first))
	d.create(t, second, unikernel(image, 1, "wait"))
	hears(second, added(second))
	if err := d.Destroy(t.Context(), second); err != nil {
		t.Fatal(err)
	}
	hears(second, albatross.StatsRemove{})
	if err := d.Restart(t.Context(), first); err != nil {
		t.Fatal(err)
	}
	hears(first, albatross.StatsRemove{})
	hears(first, added(first))
}
