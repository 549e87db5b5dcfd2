package monitor

import (
	"testing"

	"fulmar/messages"
	fulmarv1 "fulmar/messages/fulmar/v1"
)

const underway = fulmarv1.State_STATE_UNDERWAY

// superseded hears that web-42 failed because of web-43, and that nothing else is said of it.
func (w *world) superseded() {
	w.t.Helper()
	e := w.hear(messages.Failed)
	if e.GetDeployment().GetGeneration() != 42 || e.GetReason() != "superseded by web-43" || e.GetReasonCode() != fulmarv1.ReasonCode_REASON_CODE_SUPERSEDED {
		w.t.Errorf("%d failed with %v %q, want superseded by web-43", e.GetDeployment().GetGeneration(), e.GetReasonCode(), e.GetReason())
	}
	w.silent()
	if n := w.count(messages.Failed); n != 1 {
		w.t.Errorf("failed was said %d times", n)
	}
}

// TestATrialGivesWayToWhatIsNewer has a deployment that would be tried for a minute.
func TestATrialGivesWayToWhatIsNewer(t *testing.T) {
	for name, c := range map[string]struct {
		state fulmarv1.State
		units bool
	}{
		"that is live":   {live, true},
		"that is staged": {staged, true},
		"that retires":   {live, false},
	} {
		t.Run(name, func(t *testing.T) {
			w, a := newWorld(t), newWeb(t)
			a.ill.Store(true)
			w.monitor()
			w.monitor()
			older, newer := deployment(42, spec(t, "web", get(a.port))), deployment(43)
			if c.units {
				newer = deployment(43, spec(t, "web", tcp(a.port)))
			}
			w.head(older, underway)
			w.say(older)
			wait(t, "the first checks", func() bool { return a.asked.Load() > 3 })
			w.head(newer, c.state)
			w.superseded()
		})
	}
}

func TestATrialThatBeginsTooLateGivesWay(t *testing.T) {
	w, a := newWorld(t), newWeb(t)
	a.ill.Store(true)
	older := deployment(42, spec(t, "web", get(a.port)))
	w.head(older, underway)
	w.say(older)
	w.head(deployment(43), live)
	w.monitor()
	w.superseded()
}

func TestATrialDoesNotGiveWayToWhatMayFail(t *testing.T) {
	w, a := newWorld(t), newWeb(t)
	a.ill.Store(true)
	w.monitor()
	older, newer := deployment(42, spec(t, "web", get(a.port))), deployment(43, spec(t, "web", tcp(unused(t))))
	w.head(older, underway)
	w.say(older)
	w.head(newer, underway)
	w.head(newer, fulmarv1.State_STATE_CONDEMNED)
	before := a.asked.Load()
	wait(t, "more checks", func() bool { return a.asked.Load() > before+5 })
	a.ill.Store(false)
	if e := w.hear(messages.Healthy); e.GetDeployment().GetGeneration() != 42 {
		t.Errorf("heard of %d", e.GetDeployment().GetGeneration())
	}
}
