package bus_test

import (
	"bytes"
	"log/slog"
	"strings"
	"testing"

	"fulmar/bus"
	"fulmar/messages"
)

// TestWhatWentWrongIsLoggedAsAWarning has every verb said in one way or the other.
func TestWhatWentWrongIsLoggedAsAWarning(t *testing.T) {
	w := newWorld(t)
	for verb, warns := range map[messages.Verb]bool{
		messages.Rejected: true, messages.Failed: true, messages.Unhealthy: true, messages.Exited: true,
		messages.Accepted: false, messages.Published: false, messages.Retired: false, messages.Recovered: false,
	} {
		t.Run(string(verb), func(t *testing.T) {
			var log bytes.Buffer
			b := w.replica(bus.Options{Service: "ipam", Log: slog.New(slog.NewTextHandler(&log, &slog.HandlerOptions{Level: slog.LevelWarn}))})
			e := event(string(verb), 7, verb)
			e.Reason = "unit web went wrong"
			var err error
			if verb.Observation() {
				err = b.Observe(t.Context(), verb, e.GetDeployment(), "web", e.GetReason())
			} else {
				err = b.Say(t.Context(), e, 0)
			}
			if err != nil {
				t.Fatal(err)
			}
			said := log.String()
			if warns != strings.Contains(said, "verb="+string(verb)) || warns != strings.Contains(said, `reason="unit web went wrong"`) || warns != strings.Contains(said, "deployment="+string(verb)+"-7") {
				t.Errorf("the log says %q", said)
			}
		})
	}
}
