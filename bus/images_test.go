package bus_test

import (
	"bytes"
	"errors"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/nats-io/nats.go/jetstream"

	"fulmar/bus"
)

var digest = strings.Repeat("0a", 32)

func (w *world) wantImage(want string) {
	w.t.Helper()
	got, err := w.Images.GetString(w.t.Context(), digest)
	if errors.Is(err, jetstream.ErrObjectNotFound) {
		got, err = "nothing", nil
	}
	if err != nil || got != want {
		w.t.Errorf("the store has %q, %v; want %q", got, err, want)
	}
}

func (w *world) store(image string) {
	w.t.Helper()
	if err := w.StoreImage(w.t.Context(), digest, strings.NewReader(image)); err != nil {
		w.t.Fatal(err)
	}
}

func (w *world) remove(since time.Time, want bool) {
	w.t.Helper()
	if removed, err := w.RemoveImage(w.t.Context(), digest, since); err != nil || removed != want {
		w.t.Errorf("removed: %t, %v; want %t", removed, err, want)
	}
}

func TestAnImageIsRemovedUnlessSomebodyAsksForIt(t *testing.T) {
	w := newWorld(t)
	w.store("image")
	stored := time.Now()
	w.remove(stored.Add(-time.Hour), false)
	if err := w.KeepImage(t.Context(), digest, 0); err != nil {
		t.Fatal(err)
	}
	w.remove(stored, false)
	w.wantImage("image")
	w.remove(time.Now(), true)
	w.wantImage("nothing")
	w.remove(time.Now(), false)
	if err := w.KeepImage(t.Context(), digest, 0); !errors.Is(err, jetstream.ErrObjectNotFound) {
		t.Errorf("keeping what is gone: %v", err)
	}
	w.store("image")
	w.wantImage("image")
	if err := w.Images.Delete(t.Context(), digest); err != nil { // as a person does
		t.Fatal(err)
	}
	w.remove(time.Now(), false)
	w.store("image")
	w.wantImage("image")
}

func TestStaleImagesAreThoseOfUsThatNobodyAskedFor(t *testing.T) {
	w := newWorld(t)
	if stale, err := w.StaleImages(t.Context(), time.Now()); len(stale) != 0 || err != nil {
		t.Errorf("an empty store has %v, %v", stale, err)
	}
	if _, err := w.Images.PutString(t.Context(), "notes", "of a person"); err != nil {
		t.Fatal(err)
	}
	w.store("image")
	stale, err := w.StaleImages(t.Context(), time.Now())
	if err != nil || len(stale) != 1 || stale[0].Name != digest {
		t.Errorf("got %v, %v", stale, err)
	}
	if stale, err := w.StaleImages(t.Context(), time.Now().Add(-time.Minute)); len(stale) != 0 || err != nil {
		t.Errorf("younger ones are %v, %v", stale, err)
	}
}

// TestAnImageIsKeptWholeOrGone lets many keep, store and remove the same image at once: whoever was told that it is kept
// after the last removal finds it, with its bytes.
func TestAnImageIsKeptWholeOrGone(t *testing.T) {
	w := newWorld(t)
	image := strings.Repeat("image", 50000) // of several chunks
	for range 20 {
		w.store(image)
		since := time.Now()
		others := []*bus.Bus{w.replica(bus.Options{}), w.replica(bus.Options{}), w.replica(bus.Options{})}
		var g sync.WaitGroup
		var kept, removed bool
		g.Go(func() { kept = others[0].KeepImage(t.Context(), digest, 0) == nil })
		g.Go(func() { removed, _ = others[1].RemoveImage(t.Context(), digest, since) })
		g.Go(func() { _ = others[2].KeepImage(t.Context(), digest, 0) })
		g.Wait()
		switch {
		case kept == removed && kept:
			// It was kept before its record was looked at or removed: then that one was younger.
			t.Fatal("it was kept and removed")
		case kept:
			w.wantImage(image)
		case removed:
			w.wantImage("nothing")
		default:
			t.Fatal("it was neither kept nor removed")
		}
	}
}

func TestBytesOfNoImageAreRemoved(t *testing.T) {
	w := newWorld(t)
	w.store("image")
	if _, err := w.JS.Publish(t.Context(), "$O.fulmar-images.C.cut", bytes.Repeat([]byte("x"), 100)); err != nil { // and its writer died
		t.Fatal(err)
	}
	if n, err := w.RemoveScraps(t.Context(), time.Now().Add(-time.Minute)); n != 0 || err != nil {
		t.Errorf("of somebody who may still write %d were removed, %v", n, err)
	}
	if n, err := w.RemoveScraps(t.Context(), time.Now()); n != 1 || err != nil {
		t.Errorf("%d were removed, %v", n, err)
	}
	if n, err := w.RemoveScraps(t.Context(), time.Now()); n != 0 || err != nil {
		t.Errorf("then %d more, %v", n, err)
	}
	w.wantImage("image")
}
