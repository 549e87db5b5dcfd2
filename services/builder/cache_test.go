package builder

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"google.golang.org/protobuf/testing/protocmp"
	"google.golang.org/protobuf/types/known/timestamppb"

	"fulmar/bus"
	"fulmar/bus/bustest"
	fulmarv1 "fulmar/messages/fulmar/v1"
)

const key = "0123456789abcdef"

func TestDecide(t *testing.T) {
	claimed := func(by, log string, left time.Duration) *fulmarv1.BuildRecord {
		return &fulmarv1.BuildRecord{ClaimedBy: by, ClaimedFor: log, ClaimedUntil: timestamppb.New(now.Add(left))}
	}
	anew := claimed("b", "api-7.api", time.Second)
	anew.Image = "i"
	for name, c := range map[string]struct {
		record *fulmarv1.BuildRecord
		stored bool
		want   turn
	}{
		"what nobody knows is built":                     {&fulmarv1.BuildRecord{}, false, turnBuild},
		"what was built is used":                         {&fulmarv1.BuildRecord{Image: "i"}, true, turnUse},
		"what was built and is gone is built":            {&fulmarv1.BuildRecord{Image: "i"}, false, turnBuild},
		"what somebody builds is awaited":                {claimed("b", "api-7.api", time.Second), false, turnAwait},
		"what somebody builds anew is awaited":           {anew, false, turnAwait},
		"what somebody who died was building is built":   {claimed("b", "api-7.api", 0), false, turnBuild},
		"what an earlier try of the same built is built": {claimed("b", "web-42.web", time.Second), false, turnBuild},
	} {
		t.Run(name, func(t *testing.T) {
			if got := decide(c.record, c.stored, "web-42.web", now); got != c.want {
				t.Errorf("got %d, want %d", got, c.want)
			}
		})
	}
}

// caching is a cache with a connection of its own.
func (w *world) caching() *cache {
	w.t.Helper()
	c := newCache(bustest.Open(w.t, w.server, bus.Options{Service: "builder"}))
	w.background(c.view.Run)
	return c
}

// store puts bytes into the store that are no image, and gives the record of a build that made them.
func (w *world) store(text string) *fulmarv1.BuildRecord {
	w.t.Helper()
	r := &fulmarv1.BuildRecord{Image: digestOf([]byte(text)), Made: timestamppb.New(now)}
	if err := w.StoreImage(w.t.Context(), r.GetImage(), strings.NewReader(text)); err != nil {
		w.t.Fatal(err)
	}
	return r
}

func (w *world) record() *fulmarv1.BuildRecord {
	w.t.Helper()
	r, _, err := w.Builds.Get(w.t.Context(), key)
	if err != nil {
		w.t.Fatal(err)
	}
	return r
}

func TestEqualBuildsThatAreWantedAtOnceAreBuiltOnce(t *testing.T) {
	w := newWorld(t)
	made := w.store("image")
	var builds, cached atomic.Int32
	var all sync.WaitGroup
	for r, c := range []*cache{w.caching(), w.caching()} {
		for n := range 5 {
			all.Go(func() {
				d, err := c.get(t.Context(), order{key: key, log: w.log(fmt.Sprintf("unit%d-%d", r, n)), make: func(context.Context) (*fulmarv1.BuildRecord, error) {
					builds.Add(1)
					return made, nil
				}})
				if err != nil || d.GetImage() != made.GetImage() {
					t.Errorf("it got %v, %v", d, err)
				}
				if d.cached {
					cached.Add(1)
				}
			})
		}
	}
	all.Wait()
	if builds.Load() != 1 || cached.Load() != 9 {
		t.Errorf("it was built %d times and taken %d times", builds.Load(), cached.Load())
	}
}

func TestWhoeverWaitsForABuildHearsItsLog(t *testing.T) {
	w := newWorld(t)
	made := w.store("image")
	heard, err := w.NC.SubscribeSync("fulmar.log.build.web.2")
	if err != nil {
		t.Fatal(err)
	}
	builder := w.log("api")
	other := w.log("web")
	other.generation = 2
	says := make(chan struct{})
	var both sync.WaitGroup
	both.Go(func() {
		_, err := w.caching().get(t.Context(), order{key: key, log: builder, make: func(context.Context) (*fulmarv1.BuildRecord, error) {
			both.Go(func() {
				d, err := w.caching().get(t.Context(), order{key: key, log: other})
				if err != nil || !d.cached {
					t.Errorf("it got %v, %v", d, err)
				}
			})
			<-says
			builder.sayf("compiles")
			if m, err := heard.NextMsg(patience); err != nil || string(m.Data) != "compiles" || m.Header.Get("Fulmar-Unit") != "web" || m.Header.Get("Fulmar-Line") != "2" {
				t.Errorf("it heard %v, %v", m, err)
			}
			return made, nil
		}})
		if err != nil {
			t.Error(err)
		}
	})
	m, err := heard.NextMsg(patience)
	if err != nil || string(m.Data) != "web-1 builds the same just now" {
		t.Errorf("it heard %v, %v", m, err)
	}
	close(says)
	both.Wait()
}

func TestTheClaimOfABuilderThatDiedLapses(t *testing.T) {
	w := newWorld(t)
	made := w.store("image")
	c := w.caching()
	until := time.Now().Add(500 * time.Millisecond)
	if err := w.Builds.Put(t.Context(), key, &fulmarv1.BuildRecord{ClaimedBy: "dead", ClaimedFor: "api-7.api", ClaimedUntil: timestamppb.New(until)}, 0); err != nil {
		t.Fatal(err)
	}
	d, err := c.get(t.Context(), order{key: key, log: w.log("web"), make: func(context.Context) (*fulmarv1.BuildRecord, error) {
		if time.Now().Before(until) {
			t.Error("the claim was taken over before its time")
		}
		return made, nil
	}})
	if err != nil || d.cached {
		t.Errorf("it got %v, %v", d, err)
	}
	if diff := cmp.Diff(made, w.record(), protocmp.Transform()); diff != "" {
		t.Errorf("the record (-want +got):\n%s", diff)
	}
}

func TestAClaimIsProlongedWhileItsBuilderBuilds(t *testing.T) {
	w := newWorld(t)
	made := w.store("image")
	c := w.caching()
	c.term = 5 * time.Second
	_, err := c.get(t.Context(), order{key: key, log: w.log("web"), make: func(context.Context) (*fulmarv1.BuildRecord, error) {
		terms := map[time.Time]bool{}
		for len(terms) < 4 { // it was prolonged three times
			changed := c.view.Changed()
			if r := c.view.Get(key); r.GetClaimedBy() != "" {
				until := r.GetClaimedUntil().AsTime()
				terms[until] = true
				if !time.Now().Before(until) {
					t.Error("the claim lapsed")
				}
			}
			select {
			case <-changed:
			case <-time.After(patience):
				return nil, errors.New("the claim is not prolonged")
			}
		}
		return made, nil
	}})
	if err != nil {
		t.Error(err)
	}
}

func TestABuildThatFailedLeavesNoRecord(t *testing.T) {
	w := newWorld(t)
	c := w.caching()
	broken := errors.New("broken")
	for _, before := range []*fulmarv1.BuildRecord{{}, {Image: digestOf([]byte("gone")), Log: "web-1.web"}} {
		_, rev, err := w.Builds.Get(t.Context(), key)
		if err == nil && before.GetImage() != "" {
			err = w.Builds.Put(t.Context(), key, before, rev)
		}
		if err != nil {
			t.Fatal(err)
		}
		ctx, cancel := context.WithCancel(t.Context())
		_, err = c.get(ctx, order{key: key, log: w.log("web"), make: func(context.Context) (*fulmarv1.BuildRecord, error) {
			cancel() // and even so
			return nil, broken
		}})
		if !errors.Is(err, broken) {
			t.Errorf("it ended with %v", err)
		}
		if diff := cmp.Diff(before, w.record(), protocmp.Transform()); diff != "" {
			t.Errorf("the record (-want +got):\n%s", diff)
		}
	}
}

func TestABuildWhoseImageIsGoneIsComparedWithItsNext(t *testing.T) {
	w := newWorld(t)
	c := w.caching()
	images := []*fulmarv1.BuildRecord{w.store("one"), w.store("one"), w.store("two")}
	var got []string
	for _, made := range images {
		if r := w.record(); r.GetImage() != "" {
			if err := w.Images.Delete(t.Context(), r.GetImage()); err != nil {
				t.Fatal(err)
			}
		}
		d, err := c.get(t.Context(), order{key: key, log: w.log("web"), make: func(context.Context) (*fulmarv1.BuildRecord, error) {
			return w.store(map[string]string{images[0].GetImage(): "one", images[2].GetImage(): "two"}[made.GetImage()]), nil
		}})
		if err != nil || d.cached {
			t.Fatalf("it got %v, %v", d, err)
		}
		got = append(got, d.differs)
	}
	if want := []string{"", "", images[0].GetImage()}; !slices.Equal(got, want) {
		t.Errorf("they differ from %q, want %q", got, want)
	}
}

// TestABuilderThatWasFrozen takes the claim of a builder away, as another does when it lapses, and finishes first.
func TestABuilderThatWasFrozen(t *testing.T) {
	w := newWorld(t)
	theirs, ours := w.store("theirs"), w.store("ours")
	take := func(r *fulmarv1.BuildRecord) {
		if _, err := w.Builds.Edit(t.Context(), key, func(*fulmarv1.BuildRecord) (*fulmarv1.BuildRecord, error) { return r, nil }); err != nil {
			t.Error(err)
		}
	}
	t.Run("stops when it finds out", func(t *testing.T) {
		c := w.caching()
		c.term = time.Second // it soon looks
		d, err := c.get(t.Context(), order{key: key, log: w.log("web"), make: func(ctx context.Context) (*fulmarv1.BuildRecord, error) {
			take(&fulmarv1.BuildRecord{ClaimedBy: "other", ClaimedFor: "api-7.api", ClaimedUntil: timestamppb.New(time.Now().Add(time.Minute))})
			<-ctx.Done()
			take(theirs)
			return nil, ctx.Err()
		}})
		if err != nil || !d.cached || d.GetImage() != theirs.GetImage() {
			t.Errorf("it got %v, %v", d, err)
		}
	})
	t.Run("does not replace what was made first", func(t *testing.T) {
		take(&fulmarv1.BuildRecord{Log: "no image"})
		c := w.caching()
		c.term = time.Hour // it does not look
		d, err := c.get(t.Context(), order{key: key, log: w.log("web"), make: func(context.Context) (*fulmarv1.BuildRecord, error) {
			take(theirs)
			return ours, nil
		}})
		if err != nil || d.GetImage() != theirs.GetImage() || d.differs != ours.GetImage() {
			t.Errorf("it got %v, %v", d, err)
		}
	})
}

func TestOldRecordsWhoseImageIsGoneAreForgotten(t *testing.T) {
	w := newWorld(t)
	c := w.caching()
	there := w.store("there").GetImage()
	gone := digestOf([]byte("gone"))
	old, young := timestamppb.New(time.Now().Add(-recordAge-time.Hour)), timestamppb.New(time.Now().Add(-recordAge+time.Hour))
	records := map[string]*fulmarv1.BuildRecord{
		"old-there":    {Image: there, Made: old},
		"young-gone":   {Image: gone, Made: young},
		"old-claimed":  {Image: gone, Made: old, ClaimedBy: "b", ClaimedUntil: young},
		"old-gone":     {Image: gone, Made: old},
		"claimed-once": {ClaimedBy: "dead", ClaimedUntil: old},
	}
	for key, r := range records {
		if err := w.Builds.Put(t.Context(), key, r, 0); err != nil {
			t.Fatal(err)
		}
	}
	if err := c.view.CaughtUp(t.Context()); err != nil {
		t.Fatal(err)
	}
	if err := c.forget(t.Context()); err != nil {
		t.Fatal(err)
	}
	delete(records, "old-gone")
	delete(records, "claimed-once")
	left, err := w.Builds.All(t.Context())
	if diff := cmp.Diff(records, left, protocmp.Transform()); err != nil || diff != "" {
		t.Errorf("left: %v (-want +got):\n%s", err, diff)
	}
}

func TestNotAllWaitForTheBuildsOfOthers(t *testing.T) {
	w := newWorld(t)
	c := w.caching()
	c.waiters = make(chan struct{}, 1)
	claim := &fulmarv1.BuildRecord{ClaimedBy: "other", ClaimedFor: "api-7.api", ClaimedUntil: timestamppb.New(time.Now().Add(time.Hour))}
	if err := w.Builds.Put(t.Context(), key, claim, 0); err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	errs := make(chan error, 2)
	for _, unit := range []string{"a", "b"} {
		go func() {
			_, err := c.get(ctx, order{key: key, log: w.log(unit)})
			errs <- err
		}()
	}
	if err := <-errs; !errors.Is(err, errBusy) {
		t.Errorf("the one too many ended with %v", err)
	}
	cancel()
	if err := <-errs; !errors.Is(err, context.Canceled) {
		t.Errorf("the one that waits ended with %v", err)
	}
}
