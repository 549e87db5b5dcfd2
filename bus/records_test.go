package bus_test

import (
	"context"
	"errors"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/nats-io/nats.go/jetstream"
	"google.golang.org/protobuf/testing/protocmp"

	"fulmar/bus"
	"fulmar/messages"
	fulmarv1 "fulmar/messages/fulmar/v1"
)

func leaseOf(instance string) *fulmarv1.Lease { return &fulmarv1.Lease{Instance: instance} }

func (w *world) put(key, instance string) (revision uint64) {
	w.t.Helper()
	_, rev, err := w.Leases.Get(w.t.Context(), key)
	if err == nil {
		err = w.Leases.Put(w.t.Context(), key, leaseOf(instance), rev)
	}
	if err == nil {
		_, rev, err = w.Leases.Get(w.t.Context(), key)
	}
	if err != nil {
		w.t.Fatal(err)
	}
	return rev
}

func TestARecordIsChangedByItsRevision(t *testing.T) {
	w := newWorld(t)
	ctx := t.Context()
	empty, rev, err := w.Leases.Get(ctx, "lan.10.0.0.7")
	if err != nil || rev != 0 || empty.GetInstance() != "" {
		t.Fatalf("an absent record is %v at %d, %v", empty, rev, err)
	}
	if err := w.Leases.Put(ctx, "lan.10.0.0.7", leaseOf("a"), 0); err != nil {
		t.Fatal(err)
	}
	if err := w.Leases.Put(ctx, "lan.10.0.0.7", leaseOf("b"), 0); !errors.Is(err, jetstream.ErrKeyRevisionMismatch) {
		t.Errorf("creating it twice gives %v", err)
	}
	have, rev, err := w.Leases.Get(ctx, "lan.10.0.0.7")
	if err != nil || have.GetInstance() != "a" {
		t.Fatalf("got %v, %v", have, err)
	}
	if err := w.Leases.Put(ctx, "lan.10.0.0.7", leaseOf("c"), rev); err != nil {
		t.Fatal(err)
	}
	if err := w.Leases.Put(ctx, "lan.10.0.0.7", leaseOf("d"), rev); !errors.Is(err, jetstream.ErrKeyRevisionMismatch) {
		t.Errorf("writing over a newer revision gives %v", err)
	}
	if err := w.Leases.Delete(ctx, "lan.10.0.0.7", rev); !errors.Is(err, jetstream.ErrKeyRevisionMismatch) {
		t.Errorf("deleting a newer revision gives %v", err)
	}
	_, rev, err = w.Leases.Get(ctx, "lan.10.0.0.7")
	if err == nil {
		err = w.Leases.Delete(ctx, "lan.10.0.0.7", rev)
	}
	if err != nil {
		t.Fatal(err)
	}
	if _, rev, err := w.Leases.Get(ctx, "lan.10.0.0.7"); err != nil || rev != 0 {
		t.Errorf("a deleted record is at revision %d, %v", rev, err)
	}
	if err := w.Leases.Put(ctx, "lan.10.0.0.7", leaseOf("e"), 0); err != nil {
		t.Errorf("a deleted record cannot be created again: %v", err)
	}
}

func TestEditMeetsAnotherWriter(t *testing.T) {
	w := newWorld(t)
	w.put("k", "a")
	var seen []string
	got, err := w.Leases.Edit(t.Context(), "k", func(l *fulmarv1.Lease) (*fulmarv1.Lease, error) {
		seen = append(seen, l.GetInstance())
		if len(seen) == 1 {
			w.put("k", "b") // between read and write
		}
		return leaseOf(l.GetInstance() + "!"), nil
	})
	if err != nil || got.GetInstance() != "b!" {
		t.Errorf("got %v, %v", got, err)
	}
	if diff := cmp.Diff([]string{"a", "b"}, seen); diff != "" {
		t.Errorf("edited (-want +got):\n%s", diff)
	}
}

func TestEditThatChangesNothingWritesNothing(t *testing.T) {
	w := newWorld(t)
	before := w.put("k", "a")
	same := func(l *fulmarv1.Lease) (*fulmarv1.Lease, error) { return l, nil }
	if got, err := w.Leases.Edit(t.Context(), "k", same); err != nil || got.GetInstance() != "a" {
		t.Errorf("got %v, %v", got, err)
	}
	if _, err := w.Leases.Edit(t.Context(), "absent", same); err != nil {
		t.Error(err)
	}
	refuse := errors.New("no")
	if _, err := w.Leases.Edit(t.Context(), "k", func(*fulmarv1.Lease) (*fulmarv1.Lease, error) { return nil, refuse }); !errors.Is(err, refuse) {
		t.Errorf("got %v", err)
	}
	if _, after, err := w.Leases.Get(t.Context(), "k"); err != nil || after != before {
		t.Errorf("the revision went from %d to %d, %v", before, after, err)
	}
	if _, rev, err := w.Leases.Get(t.Context(), "absent"); err != nil || rev != 0 {
		t.Errorf("an absent record was written at %d, %v", rev, err)
	}
}

func TestAll(t *testing.T) {
	w := newWorld(t)
	if all, err := w.Leases.All(t.Context()); err != nil || len(all) != 0 {
		t.Errorf("an empty bucket has %v, %v", all, err)
	}
	w.put("a", "1")
	rev := w.put("b", "2")
	w.put("c", "3")
	if err := w.Leases.Delete(t.Context(), "b", rev); err != nil {
		t.Fatal(err)
	}
	all, err := w.Leases.All(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(map[string]*fulmarv1.Lease{"a": leaseOf("1"), "c": leaseOf("3")}, all, protocmp.Transform()); diff != "" {
		t.Errorf("records (-want +got):\n%s", diff)
	}
}

func TestAViewCatchesUp(t *testing.T) {
	w := newWorld(t)
	ctx := t.Context()
	v := w.Leases.View()
	w.start(v.Run)
	if err := v.CaughtUp(ctx); err != nil || len(v.All()) != 0 {
		t.Fatalf("an empty bucket: %v, %v", v.All(), err)
	}
	other := w.replica(busOptions("writer"))
	for i := range 50 {
		key := messages.LeaseKey("lan", string(rune('a'+i%26)))
		if err := edit(ctx, other, key, string(rune('A'+i))); err != nil {
			t.Fatal(err)
		}
		if err := v.CaughtUp(ctx); err != nil {
			t.Fatal(err)
		}
		if got := v.All()[key].GetInstance(); got != string(rune('A'+i)) {
			t.Fatalf("after write %d the view has %q", i, got)
		}
	}
	changed := v.Changed()
	_, rev, err := w.Leases.Get(ctx, "lan.a")
	if err == nil {
		err = other.Leases.Delete(ctx, "lan.a", rev)
	}
	if err != nil {
		t.Fatal(err)
	}
	<-changed
	if err := v.CaughtUp(ctx); err != nil { // the last thing in the bucket is a deletion
		t.Fatal(err)
	}
	if _, there := v.All()["lan.a"]; there {
		t.Error("the view has a record that was deleted")
	}
	late := w.Leases.View() // begins with a deletion as the newest thing in the bucket
	w.start(late.Run)
	if err := late.CaughtUp(ctx); err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(v.All(), late.All(), protocmp.Transform()); diff != "" {
		t.Errorf("two views differ:\n%s", diff)
	}
}

func TestAViewFindsRecordsByTheirTerms(t *testing.T) {
	w := newWorld(t)
	ctx := t.Context()
	v := w.Leases.ViewBy(func(l *fulmarv1.Lease) []string { return strings.Split(l.GetInstance(), "+") })
	w.start(v.Run)
	want := func(what string, terms string, instances ...string) {
		t.Helper()
		if err := v.CaughtUp(ctx); err != nil {
			t.Fatal(err)
		}
		got := []string{}
		for _, l := range v.Having(strings.Split(terms, "+")...) {
			got = append(got, l.GetInstance())
		}
		slices.Sort(got)
		if !slices.Equal(got, instances) {
			t.Errorf("%s, having %s: %q, want %q", what, terms, got, instances)
		}
	}
	w.put("a", "x+y+x")
	rev := w.put("b", "y")
	want("two records", "x", "x+y+x")
	want("two records", "x+y+none", "x+y+x", "y")
	want("two records", "none")
	if err := edit(ctx, w.Bus, "a", "z"); err != nil {
		t.Fatal(err)
	}
	want("one is changed", "x")
	want("one is changed", "z+y", "y", "z")
	if err := w.Leases.Delete(ctx, "b", rev); err != nil {
		t.Fatal(err)
	}
	want("one is deleted", "y+z", "z")
}

// TestAViewCatchesUpWithWhatIsGone begins after the newest entry, the mark of a deletion, was removed for good.
func TestAViewCatchesUpWithWhatIsGone(t *testing.T) {
	w := newWorld(t)
	ctx := t.Context()
	w.put("a", "1")
	rev := w.put("b", "2")
	kv, err := w.JS.KeyValue(ctx, messages.LeaseBucket)
	if err == nil {
		err = w.Leases.Delete(ctx, "b", rev)
	}
	if err == nil {
		err = kv.PurgeDeletes(ctx, jetstream.DeleteMarkersOlderThan(-1))
	}
	if err != nil {
		t.Fatal(err)
	}
	v := w.Leases.View()
	w.start(v.Run)
	if err := v.CaughtUp(ctx); err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(map[string]*fulmarv1.Lease{"a": leaseOf("1")}, v.All(), protocmp.Transform()); diff != "" {
		t.Errorf("records (-want +got):\n%s", diff)
	}
}

func TestAViewThatDoesNotRunNeverCatchesUp(t *testing.T) {
	w := newWorld(t)
	w.put("k", "a")
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error)
	go func() { done <- w.Leases.View().CaughtUp(ctx) }()
	cancel()
	if err := <-done; !errors.Is(err, context.Canceled) {
		t.Errorf("got %v", err)
	}
}

func TestAnUnreadableRecordIsAnError(t *testing.T) {
	w := newWorld(t)
	kv, err := w.JS.KeyValue(t.Context(), messages.LeaseBucket)
	if err == nil {
		_, err = kv.Put(t.Context(), "lan.10.0.0.7", []byte("\xff"))
	}
	if err != nil {
		t.Fatal(err)
	}
	w.put("lan.10.0.0.8", "web.web.1")
	_, rev, err := w.Leases.Get(t.Context(), "lan.10.0.0.7")
	if unreadable, ok := errors.AsType[*bus.UnreadableError](err); !ok || unreadable.Key != "lan.10.0.0.7" || unreadable.Revision != rev {
		t.Errorf("got revision %d, %v", rev, err)
	}
	if _, err := w.Leases.All(t.Context()); err == nil {
		t.Error("it was read with all")
	}
	all, bad, err := w.Leases.Readable(t.Context())
	if err != nil || len(bad) != 1 || bad[0].Key != "lan.10.0.0.7" {
		t.Errorf("those that cannot be read are %v, %v", bad, err)
	}
	if diff := cmp.Diff(map[string]*fulmarv1.Lease{"lan.10.0.0.8": leaseOf("web.web.1")}, all, protocmp.Transform()); diff != "" {
		t.Errorf("those that can (-want +got):\n%s", diff)
	}
	v := w.Leases.View()
	w.start(v.Run)
	if err := v.CaughtUp(t.Context()); err != nil {
		t.Errorf("a view stands still before it: %v", err)
	}
}

func TestAViewThatHasEndedCatchesUpWithNothing(t *testing.T) {
	w := newWorld(t)
	v := w.Leases.View()
	stop := w.start(v.Run)
	if err := v.CaughtUp(t.Context()); err != nil {
		t.Fatal(err)
	}
	stop()
	if err := v.CaughtUp(t.Context()); err != nil {
		t.Errorf("it holds everything, but: %v", err)
	}
	if err := edit(t.Context(), w.Bus, "lan.10.0.0.7", "web.web.1"); err != nil {
		t.Fatal(err)
	}
	if err := v.CaughtUp(t.Context()); err == nil {
		t.Error("it has caught up with what it never saw")
	}
}
