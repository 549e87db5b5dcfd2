package e2e_test

import (
	"syscall"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"google.golang.org/protobuf/testing/protocmp"
	"google.golang.org/protobuf/types/known/durationpb"

	"fulmar/e2e/lab"
	"fulmar/messages"
	fulmarv1 "fulmar/messages/fulmar/v1"
)

// soon bounds what must happen at once: it is much less than any deadline, and much more than it takes.
const soon = 5 * time.Second

// hopeless makes a unit that never becomes healthy, and gives it an hour.
func hopeless(r *fulmarv1.DeployRequest) {
	checked("/")(r)
	r.Units[0].Args = append(r.Units[0].Args, "--unhealthy")
	r.Deadline = durationpb.New(time.Hour)
}

// tried stores a request for what never becomes healthy, and waits until it is started.
func (w *world) tried() uint64 {
	w.t.Helper()
	g := w.request(deploy, "web", w.hello("hopeless", hopeless))
	if s := w.await("web", g, messages.Started, messages.Failed, messages.Rejected); s.Verb != messages.Started {
		w.t.Fatal(s)
	}
	return g
}

// givenWay waits until an older deployment has failed because a newer one took its place, soon after that, and is gone.
func (w *world) givenWay(older uint64, took lab.Said) {
	w.t.Helper()
	s := w.await("web", older, messages.Failed, messages.Published)
	want := "superseded by " + took.Name()
	if s.Verb != messages.Failed || s.Event.GetReason() != want || s.Event.GetReasonCode() != fulmarv1.ReasonCode_REASON_CODE_SUPERSEDED {
		w.t.Errorf("%s ends as %v (%s), want failed: %s", s.Name(), s, s.Event.GetReasonCode(), want)
	}
	s = w.await("web", older, messages.Retired)
	if after := s.Event.GetTime().AsTime().Sub(took.Event.GetTime().AsTime()); after > soon {
		w.t.Errorf("%s was retired %s after %s took its place", s.Name(), after, took.Name())
	}
}

func TestWhatNeverBecomesHealthyGivesWayToWhatIsNewer(t *testing.T) {
	for name, edit := range map[string]func(*fulmarv1.DeployRequest){
		"published": func(*fulmarv1.DeployRequest) {},
		"staged":    func(r *fulmarv1.DeployRequest) { r.Staged = true },
	} {
		t.Run(name, func(t *testing.T) {
			w := newWorld(t)
			w.deploy("web", 8080, "v1")
			older := w.tried()
			newer := w.request(deploy, "web", w.hello("newer", edit))
			w.givenWay(older, w.await("web", newer, messages.Published, messages.Staged))
			if name == "staged" {
				w.answers(8080, "v1")
				w.cli("promote", "web", "--wait")
				newer++
			}
			w.answers(8080, "newer")
			w.await("web", 1, messages.Retired)
			w.onlyLive("web", newer)
			if pids := w.pids(); len(pids) != 1 {
				t.Errorf("unikernels run as %v, want one", pids)
			}
		})
	}
}

func TestWhatNeverBecomesHealthyGivesWayWhenItsStackIsRetired(t *testing.T) {
	w := newWorld(t)
	w.deploy("web", 8080, "v1")
	older := w.tried()
	w.cli("retire", "web", "--wait")
	w.givenWay(older, w.await("web", older+1, messages.Published))
	w.retired()
}

// TestWhatIsKeptAndHasEndedIsStartedAgain deploys the same content once more after its unikernel ended, and nobody had it
// started again.
func TestWhatIsKeptAndHasEndedIsStartedAgain(t *testing.T) {
	for name, end := range map[string]func(w *world) error{
		"by itself": func(w *world) error {
			_, err := lab.Ask(w.dial("tcp", at(8080)), "/exit?code=0", false)
			return err
		},
		"by kill -9": func(w *world) error { return syscall.Kill(w.pids()[0], syscall.SIGKILL) },
	} {
		t.Run(name, func(t *testing.T) {
			w := newWorld(t)
			w.deploy("web", 8080, "v1")
			before := w.live("web").GetInstances()
			if err := end(w); err != nil {
				t.Fatal(err)
			}
			w.await("web", 1, messages.Exited)
			w.deploy("web", 8080, "v1")
			s := w.await("web", 2, messages.Published)
			if u := s.Event.GetDeployment().GetUnits()[0]; u.GetKept() || s.Event.GetUnchanged() {
				t.Errorf("published says that it was kept (%v), unchanged (%v), and it was started again", u.GetKept(), s.Event.GetUnchanged())
			}
			w.await("web", 2, messages.Recovered)
			w.answers(8080, "v1")
			if diff := cmp.Diff(before, w.live("web").GetInstances(), protocmp.Transform()); diff != "" {
				t.Errorf("instances (-before +after):\n%s", diff)
			}
			w.deploy("web", 8080, "v1")
			s = w.await("web", 3, messages.Published)
			if u := s.Event.GetDeployment().GetUnits()[0]; !u.GetKept() || !s.Event.GetUnchanged() {
				t.Errorf("nothing changed, and published does not say so: %v", s)
			}
			w.await("web", 2, messages.Retired)
			w.onlyLive("web", 3)
			w.cli("retire", "web", "--wait")
			w.retired()
		})
	}
}
