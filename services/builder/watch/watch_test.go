package watch

import (
	"strings"
	"testing"
	"time"

	fulmarv1 "fulmar/messages/fulmar/v1"
)

func TestAPushIsDeployedOnce(t *testing.T) {
	w := newWorld(t)
	w.start()
	w.start()
	first := w.following()
	for range 3 {
		w.pass()
	}
	w.wantRequests(1)
	second := w.repo.push("main")
	asked := w.repo.asked.Load()
	w.pass()
	r := w.await("the push is deployed", func(r *fulmarv1.Watch, s *fulmarv1.WatchedSource) bool {
		return r.GetGeneration() == 2 && s.GetSeen() == second
	})
	if n := w.repo.asked.Load() - asked; n != 1 {
		t.Errorf("two builders asked %d times", n)
	}
	sent := w.wantRequests(2)
	if want := "git+" + w.repo.url + "#main moved from " + first[:7] + " to " + second[:7]; sent.GetCause() != want || sent.GetIfNewest() != 1 || !sent.GetWatch() {
		t.Errorf("sent %v, want cause %q", sent, want)
	}
	if r.GetRequest().GetCause() != "" || r.GetRequest().IfNewest != nil || r.GetSent() != 0 {
		t.Errorf("the record is %v", r)
	}
	w.built(2, second)
	for range 3 {
		w.pass()
	}
	w.wantRequests(2)
}

func TestARefThatMovesDuringADeploymentEndsAtTheNewest(t *testing.T) {
	w := newWorld(t)
	w.start()
	w.following()
	w.repo.push("main")
	w.pass()
	w.await("the first push is accepted", func(r *fulmarv1.Watch, _ *fulmarv1.WatchedSource) bool { return r.GetGeneration() == 2 })
	third := w.repo.push("main") // generation 2 is underway
	w.pass()
	w.await("the second, too", func(r *fulmarv1.Watch, s *fulmarv1.WatchedSource) bool {
		return r.GetGeneration() == 3 && s.GetSeen() == third
	})
	fourth := w.repo.push("main") // and generation 3 has met it already when it was built
	w.built(3, fourth)
	w.pass()
	w.await("what was built is known", func(_ *fulmarv1.Watch, s *fulmarv1.WatchedSource) bool { return s.GetSeen() == fourth })
	w.wantRequests(3)
}

// TestWhatMovedBeforeTheFirstLookIsDeployed has a push between the build and the first look.
func TestWhatMovedBeforeTheFirstLookIsDeployed(t *testing.T) {
	w := newWorld(t)
	first := w.repo.push("main")
	w.built(w.deploy(w.www()), first)
	second := w.repo.push("main")
	w.start()
	w.await("it is deployed", func(r *fulmarv1.Watch, s *fulmarv1.WatchedSource) bool {
		return r.GetGeneration() == 2 && s.GetSeen() == second
	})
}

// TestAPersonWhoDeploysWhatMovedIsNotOverrun has a push that a person deploys before a look has found it.
func TestAPersonWhoDeploysWhatMovedIsNotOverrun(t *testing.T) {
	w := newWorld(t)
	w.start()
	w.following()
	second := w.repo.push("main")
	w.deploy(w.www())
	w.await("its first look", func(r *fulmarv1.Watch, s *fulmarv1.WatchedSource) bool {
		return r.GetGeneration() == 2 && s.GetSeen() == second
	})
	w.pass() // the build is underway
	w.built(2, second)
	w.pass()
	w.wantRequests(2)
}

func TestARejectedRequestIsSentAgainOnlyWhenThatMayHelp(t *testing.T) {
	w := newWorld(t)
	w.start()
	w.following()
	why := `network "lan" does not exist`
	w.refuse.Store(&why)
	w.repo.push("main")
	sent := func(generation uint64) {
		t.Helper()
		w.await("it is sent", func(r *fulmarv1.Watch, _ *fulmarv1.WatchedSource) bool { return r.GetSent() == generation })
		w.event(generation)
	}
	w.pass()
	sent(2)
	for range 3 {
		w.pass()
	}
	w.wantRequests(2)
	w.repo.push("main")
	w.pass()
	sent(3)
	w.refuse.Store(nil)
	w.request(fulmarv1.Kind_KIND_RENEW, nil) // the stack moves on by somebody else's hand
	w.pass()
	w.await("it is accepted", func(r *fulmarv1.Watch, _ *fulmarv1.WatchedSource) bool { return r.GetGeneration() == 5 })
	w.wantRequests(5)

	w.refuse.Store(&why)
	w.repo.push("main")
	w.pass()
	sent(6)
	w.refuse.Store(nil)
	if _, err := w.Watches.Edit(t.Context(), "web", func(r *fulmarv1.Watch) (*fulmarv1.Watch, error) {
		return Check(r, "a person", w.clock.Now()), nil
	}); err != nil {
		t.Fatal(err)
	}
	w.await("it is accepted when somebody asks", func(r *fulmarv1.Watch, _ *fulmarv1.WatchedSource) bool { return r.GetGeneration() == 7 })
	if last := w.wantRequests(7); !strings.HasSuffix(last.GetCause(), " (a person)") {
		t.Errorf("the cause is %s", last.GetCause())
	}
}

func TestAFailedBuildIsNotTriedAgain(t *testing.T) {
	w := newWorld(t)
	w.start()
	w.following()
	w.repo.push("main")
	w.pass()
	w.await("it is accepted", func(r *fulmarv1.Watch, _ *fulmarv1.WatchedSource) bool { return r.GetGeneration() == 2 })
	w.failed(2)
	for range 3 {
		w.pass()
	}
	w.wantRequests(2)
	w.repo.push("main")
	w.pass()
	w.await("the next is deployed", func(r *fulmarv1.Watch, _ *fulmarv1.WatchedSource) bool { return r.GetGeneration() == 3 })
}

func TestWhatEndsAWatchAndWhatDoesNot(t *testing.T) {
	w := newWorld(t)
	w.start()
	w.following()
	for i, kind := range []fulmarv1.Kind{fulmarv1.Kind_KIND_ROLLBACK, fulmarv1.Kind_KIND_RENEW, fulmarv1.Kind_KIND_PROMOTE, fulmarv1.Kind_KIND_DISCARD} {
		w.request(kind, nil)
		if r := w.pass(); r.GetGeneration() != 1 {
			t.Errorf("after %s the record is %v", kind, r)
		}
		w.wantRequests(2 + i) // a rollback is not undone
	}
	second := w.repo.push("main")
	w.pass()
	w.await("it still follows", func(r *fulmarv1.Watch, s *fulmarv1.WatchedSource) bool {
		return r.GetGeneration() == 6 && s.GetSeen() == second
	})
	ended := func(generation uint64) {
		t.Helper()
		w.await("it is ended", func(r *fulmarv1.Watch, _ *fulmarv1.WatchedSource) bool {
			return r.GetGeneration() == generation && !Following(r)
		})
	}
	unwatched := w.www()
	unwatched.Watch = false
	ended(w.deploy(unwatched))
	w.deploy(w.www())
	w.awaitLook()
	retired := w.request(fulmarv1.Kind_KIND_RETIRE, nil)
	ended(retired)
	asked := w.repo.asked.Load()
	w.repo.push("main")
	w.clock.advance(time.Hour)
	w.deploy(unwatched) // and once it is accepted, the builder has had its time
	ended(retired)
	if n := w.repo.asked.Load() - asked; n != 0 {
		t.Errorf("it is still looked at: %d times", n)
	}
}

func TestAPausedWatchDoesNotLook(t *testing.T) {
	w := newWorld(t)
	stop := w.start()
	w.following()
	edit := func(f func(*fulmarv1.Watch) *fulmarv1.Watch) {
		t.Helper()
		if _, err := w.Watches.Edit(t.Context(), "web", func(r *fulmarv1.Watch) (*fulmarv1.Watch, error) { return f(r), nil }); err != nil {
			t.Fatal(err)
		}
	}
	edit(Pause)
	asked := w.repo.asked.Load()
	second := w.repo.push("main")
	stop()
	stop = w.start() // it survives that
	w.clock.advance(time.Hour)
	w.built(w.deploy(w.www()), second)
	third := w.repo.push("main")
	w.await("a deployment keeps the pause", func(r *fulmarv1.Watch, _ *fulmarv1.WatchedSource) bool {
		return r.GetGeneration() == 2 && r.GetPaused()
	})
	stop()
	if n := w.repo.asked.Load() - asked; n != 0 {
		t.Errorf("it looked %d times", n)
	}
	w.start()
	edit(func(r *fulmarv1.Watch) *fulmarv1.Watch { return Resume(r, w.clock.Now()) })
	w.await("it is deployed at once", func(r *fulmarv1.Watch, s *fulmarv1.WatchedSource) bool {
		return r.GetGeneration() == 3 && s.GetSeen() == third
	})
}
