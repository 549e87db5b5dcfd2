package watch

import (
	"context"
	"errors"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/timestamppb"

	"fulmar/messages"
	fulmarv1 "fulmar/messages/fulmar/v1"
)

// putOff has a builder put off the others, which is the first part of its look.
func (w *world) putOff(s *Service) *fulmarv1.Watch {
	w.t.Helper()
	record, rev, err := s.bus.Watches.Get(w.t.Context(), "web")
	if err != nil {
		w.t.Fatal(err)
	}
	record.Next = timestamppb.New(w.clock.Now().Add(claim))
	if err := s.bus.Watches.Put(w.t.Context(), "web", record, rev); err != nil {
		w.t.Fatal(err)
	}
	return record
}

// TestABuilderDiesInTheMiddle has builders that do a part of a look and are gone, and then another one.
func TestABuilderDiesInTheMiddle(t *testing.T) {
	for name, die := range map[string]func(ctx context.Context, s *Service, w *fulmarv1.Watch) error{
		"after it put off the others": func(context.Context, *Service, *fulmarv1.Watch) error { return nil },
		"after it wrote what it found": func(ctx context.Context, s *Service, w *fulmarv1.Watch) error {
			_, r, err := s.conclude(ctx, w, s.ask(ctx, w), s.config.Clock.Now())
			if r == nil && err == nil {
				err = errors.New("there was nothing to send")
			}
			return err
		},
		"after it sent the request": func(ctx context.Context, s *Service, w *fulmarv1.Watch) error {
			w, r, err := s.conclude(ctx, w, s.ask(ctx, w), s.config.Clock.Now())
			if err != nil {
				return err
			}
			_, err = s.send(ctx, w.GetStack(), r)
			return err
		},
	} {
		t.Run(name, func(t *testing.T) {
			w := newWorld(t)
			stop := w.start()
			w.following()
			stop()
			second := w.repo.push("main")
			w.clock.advance(2 * time.Minute)
			dead := w.replica()
			record := w.putOff(dead)
			if err := die(t.Context(), dead, record); err != nil {
				t.Fatal(err)
			}
			if n := uint64(len(w.requests())); n > 1 {
				w.event(n)
			}
			w.start()
			w.pass()
			w.await("the push is deployed", func(r *fulmarv1.Watch, s *fulmarv1.WatchedSource) bool {
				return r.GetGeneration() == 2 && s.GetSeen() == second
			})
			w.pass()
			w.wantRequests(2)
		})
	}
}

// TestAFrozenLookDoesNothing has a builder that is frozen while it asks, until another one has done its work, and that was
// told something old.
func TestAFrozenLookDoesNothing(t *testing.T) {
	for name, pushed := range map[string]bool{"with a push meanwhile": true, "with none": false} {
		t.Run(name, func(t *testing.T) {
			w := newWorld(t)
			seen := w.followingAlone()
			ask := w.lookers.Git
			frozen, thaw := make(chan struct{}), make(chan struct{})
			w.lookers.Git = func(context.Context, *fulmarv1.GitSource) (string, error) {
				close(frozen)
				<-thaw
				return strings.Repeat("0", 40), nil
			}
			late := w.replica()
			w.clock.advance(2 * time.Minute)
			done := make(chan error, 1)
			go func() { done <- late.look(context.WithoutCancel(t.Context()), "web") }()
			<-frozen
			w.lookers.Git = ask
			generation := uint64(1)
			if pushed {
				seen, generation = w.repo.push("main"), 2
			}
			w.start()
			w.pass()
			w.await("another one looks", func(r *fulmarv1.Watch, s *fulmarv1.WatchedSource) bool {
				return r.GetGeneration() == generation && s.GetSeen() == seen
			})
			close(thaw)
			if err := <-done; err != nil {
				t.Error(err)
			}
			w.wantRequests(int(generation))
		})
	}
}

// TestTwoThatSendAtOnceAreOneDeployment has a builder that is frozen right before it sends what another one sends, too.
func TestTwoThatSendAtOnceAreOneDeployment(t *testing.T) {
	w := newWorld(t)
	stop := w.start()
	w.following()
	stop()
	second := w.repo.push("main")
	w.clock.advance(2 * time.Minute)
	late := w.replica()
	record := w.putOff(late)
	record, request, err := late.conclude(t.Context(), record, late.ask(t.Context(), record), w.clock.Now())
	if err != nil || request == nil {
		t.Fatalf("%v, %v", request, err)
	}
	w.start()
	w.pass()
	w.await("the other one's is accepted", func(r *fulmarv1.Watch, s *fulmarv1.WatchedSource) bool {
		return r.GetGeneration() == 2 && s.GetSeen() == second
	})
	generation, err := late.send(t.Context(), "web", request)
	if err != nil {
		t.Fatal(err)
	}
	if e := w.event(generation); e.GetVerb() != "rejected" {
		t.Errorf("the second is %s", e.GetVerb())
	}
	if err := late.sent(t.Context(), record, request, generation); err != nil {
		t.Fatal(err)
	}
	if r := w.pass(); r.GetGeneration() != 2 || r.GetSent() != 0 {
		t.Errorf("the record is %v", r)
	}
	w.wantRequests(3)
}

// TestAPauseDuringALookWins has a person who pauses while a builder asks.
func TestAPauseDuringALookWins(t *testing.T) {
	w := newWorld(t)
	w.followingAlone()
	ask := w.lookers.Git
	var once atomic.Bool
	w.lookers.Git = func(ctx context.Context, g *fulmarv1.GitSource) (string, error) {
		if once.CompareAndSwap(false, true) {
			if _, err := w.Watches.Edit(ctx, "web", func(r *fulmarv1.Watch) (*fulmarv1.Watch, error) { return Pause(r), nil }); err != nil {
				return "", err
			}
		}
		return ask(ctx, g)
	}
	w.repo.push("main")
	w.clock.advance(2 * time.Minute)
	if err := w.replica().look(t.Context(), "web"); err != nil {
		t.Fatal(err)
	}
	w.wantRequests(1)
}

// TestAWishDuringALookIsNotLost has a webhook that comes while a builder asks, and a push that comes after the answer.
func TestAWishDuringALookIsNotLost(t *testing.T) {
	w := newWorld(t)
	w.followingAlone()
	ask := w.lookers.Git
	w.lookers.Git = func(ctx context.Context, g *fulmarv1.GitSource) (string, error) {
		commit, err := ask(ctx, g)
		if err != nil {
			return "", err
		}
		_, err = w.Watches.Edit(ctx, "web", func(r *fulmarv1.Watch) (*fulmarv1.Watch, error) { return Ask(r, "a webhook", w.clock.Now()), nil })
		return commit, err
	}
	w.clock.advance(2 * time.Minute)
	if err := w.replica().look(t.Context(), "web"); err != nil {
		t.Fatal(err)
	}
	r, _, err := w.Watches.Get(t.Context(), "web")
	if err != nil {
		t.Fatal(err)
	}
	if due, _ := Due(r, w.clock.Now()); !due || r.GetAsked() != "a webhook" || !r.GetSources()[0].GetLooked().AsTime().Equal(w.clock.Now()) {
		t.Errorf("the record is %v", r)
	}
}

// followingAlone is following, with no builder that looks any more.
func (w *world) followingAlone() (commit string) {
	w.t.Helper()
	stop := w.start()
	commit = w.following()
	stop()
	return commit
}

// TestARequestThatIsJustBeingAcceptedIsWaitedFor has a builder that is frozen between the head and the record.
func TestARequestThatIsJustBeingAcceptedIsWaitedFor(t *testing.T) {
	w := newWorld(t)
	w.followingAlone()
	w.repo.push("main")
	frozen, thaw := make(chan struct{}), make(chan struct{})
	freeze := func() {
		close(frozen)
		<-thaw
	}
	w.entered.Store(&freeze)
	unwatched := w.www()
	unwatched.Watch = false
	body, err := proto.Marshal(unwatched)
	if err != nil {
		t.Fatal(err)
	}
	generation, err := w.Request(t.Context(), fulmarv1.Kind_KIND_DEPLOY, "web", body)
	if err != nil {
		t.Fatal(err)
	}
	<-frozen
	w.clock.advance(2 * time.Minute)
	if err := w.replica().look(t.Context(), "web"); err != nil {
		t.Fatal(err)
	}
	close(thaw)
	w.event(generation)
	w.wantRequests(2)
	if r, _, err := w.Watches.Get(t.Context(), "web"); err != nil || Following(r) {
		t.Errorf("the record is %v, %v", r, err)
	}
}

// TestWhatTheLogHasForgottenHoldsNothingUp has a stack whose events are gone, all but its first.
func TestWhatTheLogHasForgottenHoldsNothingUp(t *testing.T) {
	w := newWorld(t)
	w.start()
	w.following()
	why := "the network is gone"
	w.refuse.Store(&why)
	w.repo.push("main")
	w.pass()
	w.await("it is sent", func(r *fulmarv1.Watch, _ *fulmarv1.WatchedSource) bool { return r.GetSent() == 2 })
	w.event(2)
	w.refuse.Store(nil)
	renewed := w.request(fulmarv1.Kind_KIND_RENEW, nil)
	if _, err := w.Heads.Edit(t.Context(), "web", func(h *fulmarv1.Head) (*fulmarv1.Head, error) {
		n := proto.CloneOf(h)
		n.Deployments = nil // it is retired
		return n, nil
	}); err != nil {
		t.Fatal(err)
	}
	stream, err := w.JS.Stream(t.Context(), messages.EventStream)
	if err != nil {
		t.Fatal(err)
	}
	if err := stream.Purge(t.Context()); err != nil {
		t.Fatal(err)
	}
	w.pass()
	w.await("it is sent again", func(r *fulmarv1.Watch, _ *fulmarv1.WatchedSource) bool { return r.GetGeneration() == renewed+1 })
}

// TestSomebodyElsesRequestComesFirst has a request without watch that enters the head while a builder is about to send.
func TestSomebodyElsesRequestComesFirst(t *testing.T) {
	w := newWorld(t)
	w.followingAlone()
	w.repo.push("main")
	ask := w.lookers.Git
	w.lookers.Git = func(ctx context.Context, g *fulmarv1.GitSource) (string, error) {
		unwatched := w.www()
		unwatched.Watch = false
		w.deploy(unwatched)
		return ask(ctx, g)
	}
	w.clock.advance(2 * time.Minute)
	if err := w.replica().look(t.Context(), "web"); err != nil {
		t.Fatal(err)
	}
	w.wantRequests(2)
	if r, _, err := w.Watches.Get(t.Context(), "web"); err != nil || Following(r) {
		t.Errorf("the record is %v, %v", r, err)
	}
}
