package vmm_test

import (
	"net"
	"os"
	"path/filepath"
	"sync"
	"testing"

	"fulmar/albatross"
	"fulmar/messages"
	fulmarv1 "fulmar/messages/fulmar/v1"
	"fulmar/services/vmm"
)

// superseded waits for the end of web-4, which comes long before its deadline and because of web-5.
func (w *world) superseded(d *fulmarv1.Deployment) {
	w.t.Helper()
	e := w.await(d, messages.Leased)
	if e.GetVerb() != "failed" || e.GetReason() != "superseded by web-5" || e.GetReasonCode() != fulmarv1.ReasonCode_REASON_CODE_SUPERSEDED {
		w.t.Errorf("after leased came %s, %v, %q; want failed: superseded by web-5", e.GetVerb(), e.GetReasonCode(), e.GetReason())
	}
	if n := w.count(d, messages.Failed); n != 1 {
		w.t.Errorf("failed was said %d times", n)
	}
}

// TestAStartGivesWayToWhatIsNewer has daemons that cannot start anything.
func TestAStartGivesWayToWhatIsNewer(t *testing.T) {
	for name, daemon := range map[string]func(t *testing.T, socket string) (asked <-chan struct{}){
		"while a create is not answered": func(t *testing.T, socket string) <-chan struct{} {
			l, err := net.Listen("unix", socket)
			if err != nil {
				t.Fatal(err)
			}
			asked := make(chan struct{}, 1000) // by looks as well
			var accepting sync.WaitGroup
			accepting.Go(func() {
				for {
					c, err := l.Accept()
					if err != nil {
						return
					}
					defer c.Close()
					asked <- struct{}{}
				}
			})
			t.Cleanup(func() {
				_ = l.Close()
				accepting.Wait()
			})
			return asked
		},
		"while it is tried again": func(*testing.T, string) <-chan struct{} {
			asked := make(chan struct{})
			close(asked)
			return asked
		},
	} {
		t.Run(name, func(t *testing.T) {
			w := newWorld(t)
			dir := filepath.Join(w.dir, "other")
			if err := os.MkdirAll(filepath.Join(dir, "util"), 0o700); err != nil {
				t.Fatal(err)
			}
			asked := daemon(t, filepath.Join(dir, albatross.VMMDSocket))
			w.vmm(func(c *vmm.Config) { c.Dir = dir })
			w.vmm(func(c *vmm.Config) { c.Dir = dir })
			d := w.leased(4, "wait")
			d.Deadline.Seconds += 3600
			w.enter(d, fulmarv1.State_STATE_UNDERWAY)
			w.say(messages.Leased, d)
			for range 3 { // two looks and the create
				<-asked
			}
			w.enter(w.leased(5, "wait"), fulmarv1.State_STATE_LIVE)
			w.superseded(d)
		})
	}
}

func TestWhatIsSupersededIsNotStarted(t *testing.T) {
	w := newWorld(t)
	d, newer := w.leased(4, "wait"), w.leased(5, "wait")
	w.enter(d, fulmarv1.State_STATE_UNDERWAY)
	w.say(messages.Leased, d)
	w.enter(newer, fulmarv1.State_STATE_STAGED)
	stop := w.vmm()
	w.superseded(d)
	stop()
	if got := w.running(); len(got) > 0 {
		t.Errorf("running: %v", got)
	}
}
