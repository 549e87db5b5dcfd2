package vmm_test

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"go.uber.org/goleak"
	"google.golang.org/protobuf/types/known/timestamppb"

	"fulmar/albatross"
	"fulmar/messages"
	fulmarv1 "fulmar/messages/fulmar/v1"
	"fulmar/services/host/hosttest"
	"fulmar/services/vmm"
)

func TestMain(m *testing.M) {
	hosttest.Main(func() { goleak.VerifyTestMain(m) })
}

func TestItStartsRecordsAndStops(t *testing.T) {
	w := newWorld(t)
	lines, err := w.bus.NC.SubscribeSync(messages.ConsoleSubject("h1", "web.web.4"))
	if err != nil {
		t.Fatal(err)
	}
	w.vmm()
	d := w.leased(4, "lines", "3")
	begin := time.Now()
	w.start(d)
	t.Logf("leased to started: %s", time.Since(begin))
	if diff := cmp.Diff([]string{":web.web.4"}, w.running()); diff != "" {
		t.Errorf("running (-want +got):\n%s", diff)
	}
	for i := range 3 {
		msg, err := lines.NextMsg(patient)
		if err != nil {
			t.Fatal(err)
		}
		if got, want := string(msg.Data), fmt.Sprintf("line %d", i); got != want {
			t.Errorf("console line %q, want %q", got, want)
		}
		if _, err := time.Parse(time.RFC3339Nano, msg.Header.Get(vmm.TimeHeader)); err != nil {
			t.Error(err)
		}
	}
	past, err := w.bus.Console(t.Context(), "h1", "web.web.4", 2)
	if err != nil {
		t.Fatal(err)
	}
	var got []string
	for _, l := range past {
		got = append(got, l.GetLine())
	}
	if diff := cmp.Diff([]string{"line 1", "line 2"}, got); diff != "" {
		t.Errorf("the past of the console (-want +got):\n%s", diff)
	}

	w.enter(d, fulmarv1.State_STATE_CONDEMNED)
	d.Dying = []*fulmarv1.Instance{d.GetUnits()[0].GetInstance(), {Unit: "web", Name: "web.web.3"}} // 3 is gone already
	w.say(messages.Drained, d)
	if e := w.await(d, messages.Drained); e.GetVerb() != "stopped" {
		t.Errorf("after drained came %s", e.GetVerb())
	}
	if got := w.running(); len(got) > 0 {
		t.Errorf("still running: %v", got)
	}
	w.record()
}

func TestAnExitIsRecordedWithItsStatus(t *testing.T) {
	w := newWorld(t)
	w.vmm(func(c *vmm.Config) { c.Poll = time.Hour }) // its console must tell
	d := w.leased(5, "later", "2100", "3")            // no look comes of itself any more by then
	w.start(d)
	w.record(&fulmarv1.HostInstance{Name: "web.web.5", Exit: "exited with status 3", LastLine: "up"})

	at := w.leased(6, "exit", "7")
	w.start(at)
	begin := time.Now()
	w.record(&fulmarv1.HostInstance{Name: "web.web.5", Exit: "exited with status 3", LastLine: "up"},
		&fulmarv1.HostInstance{Name: "web.web.6", Exit: "exited with status 7", LastLine: "exiting"})
	t.Logf("an exit right after the start was recorded within %s of started", time.Since(begin))
}

// A real daemon does not tell on the console that somebody exited.
func TestAnEarlyExitIsFoundByItself(t *testing.T) {
	w := newWorld(t)
	bare := filepath.Join(w.dir, "bare")
	if err := os.MkdirAll(filepath.Join(bare, "util"), 0o700); err != nil {
		t.Fatal(err)
	}
	if err := os.Symlink(filepath.Join(w.dir, "run", albatross.VMMDSocket), filepath.Join(bare, albatross.VMMDSocket)); err != nil {
		t.Fatal(err)
	}
	w.vmm(func(c *vmm.Config) { c.Dir, c.Poll = bare, time.Hour })
	w.start(w.leased(5, "wait"))
	want := []*fulmarv1.HostInstance{{Name: "web.web.5", Running: true}}
	for g := range uint64(5) { // on a slow machine it may be old by then
		name := fmt.Sprintf("web.web.%d", 6+g)
		w.start(w.leased(6+g, "later", "400", "3"))
		if w.missed(3*time.Second, append(want, &fulmarv1.HostInstance{Name: name, Exit: "exited"})...) == "" {
			return
		}
		want = append(want, &fulmarv1.HostInstance{Name: name, Exit: "exited"}) // now it is known by the next look
	}
	t.Error("no early exit was found")
}

func TestAnExitIsFoundAfterARestart(t *testing.T) {
	w := newWorld(t)
	stop := w.vmm()
	d := w.leased(5, "later", "3000", "3")
	w.start(d)
	w.instances([]*fulmarv1.HostInstance{{Name: "web.web.5", Running: true}})
	stop()
	tick := time.NewTicker(20 * time.Millisecond)
	defer tick.Stop()
	for len(w.running()) > 0 { // polls the daemon: nobody else may tell when it is gone
		<-tick.C
	}
	w.vmm()
	w.record(&fulmarv1.HostInstance{Name: "web.web.5", Exit: "exited with status 3", LastLine: "up"})
}

func TestTheSameEventTwiceStartsOnce(t *testing.T) {
	w := newWorld(t)
	stop := w.vmm()
	d := w.leased(8, "wait")
	w.enter(d, fulmarv1.State_STATE_UNDERWAY)
	w.say(messages.Leased, d)
	w.await(d, messages.Leased)
	stop()
	before := w.info("web.web.8")
	if err := w.bus.JS.DeleteConsumer(t.Context(), messages.EventStream, "vmm-start-h1"); err != nil { // every ack is forgotten
		t.Fatal(err)
	}
	w.vmm()
	other := w.leased(9, "wait")
	other.Stack = "other" // its own lane: that it starts shows that the first event was delivered before it
	other.Units[0].Instance.Name = "other.web.9"
	w.start(other)
	if after := w.info("web.web.8"); !after.Started.Equal(before.Started) {
		t.Error("it was started again")
	}
	if n := w.count(d, messages.Started); n != 1 {
		t.Errorf("started was said %d times", n)
	}
}

func TestACrashBetweenCreateAndStartedStartsOnce(t *testing.T) {
	w := newWorld(t)
	d := w.leased(8, "wait")
	w.create("web.web.8", "wait") // as a vmm did that died before it could say so
	before := w.info("web.web.8")
	w.vmm()
	w.start(d)
	if after := w.info("web.web.8"); !after.Started.Equal(before.Started) {
		t.Error("it was started again")
	}
}

func TestTwoReplicasStartOnceAndKeepOneRecord(t *testing.T) {
	w := newWorld(t)
	w.vmm()
	w.vmm()
	var want []*fulmarv1.HostInstance
	for g := uint64(1); g <= 5; g++ {
		d := w.leased(g, "wait")
		w.start(d)
		if n := w.count(d, messages.Started); n != 1 {
			t.Errorf("started was said %d times of generation %d", n, g)
		}
		want = append(want, &fulmarv1.HostInstance{Name: messages.InstanceName("web", "web", g), Running: true, LastLine: "up"})
	}
	if got := len(w.running()); got != 5 {
		t.Errorf("%d run, want 5", got)
	}
	w.instances(want)
}

func TestRefusals(t *testing.T) {
	w := newWorld(t)
	w.vmm()
	w.create("web.web.5", "wait")
	cases := []struct {
		name       string
		generation uint64
		change     func(*fulmarv1.Deployment)
		code       fulmarv1.ReasonCode
		reason     string
	}{
		{"no such bridge", 1, func(d *fulmarv1.Deployment) { d.Network.Bridge = "br9" }, fulmarv1.ReasonCode_REASON_CODE_START, "unit web cannot be started: interface br9 does not exist, and its network needs it on this host: make that bridge, or let fulmar up do so"},
		{"another device", 2, func(d *fulmarv1.Deployment) { d.Units[0].Device = "eth0" }, fulmarv1.ReasonCode_REASON_CODE_START, `unit web cannot be started: specified bridge(s) does not match with the manifest. Devices present in manifest: net "net0"`},
		{"an image that is nowhere", 3, func(d *fulmarv1.Deployment) { d.Units[0].Image = strings.Repeat("0", 64) }, fulmarv1.ReasonCode_REASON_CODE_NOT_FOUND, "unit web: image " + strings.Repeat("0", 64) + " is not in the store"},
		{"a CPU that is not there", 4, func(d *fulmarv1.Deployment) { d.Content.Units[0].Cpus = []uint32{999} }, fulmarv1.ReasonCode_REASON_CODE_START, "unit web cannot be started: CPUids 999 are not allowed by policy"},
		{"its name runs something else", 5, func(d *fulmarv1.Deployment) { d.Units[0].Args = []string{"lines", "1"} }, fulmarv1.ReasonCode_REASON_CODE_START, `unit web cannot be started: web.web.5 runs already and is not the same: its arguments are "wait"`},
	}
	for _, c := range cases {
		d := w.leased(c.generation, "wait")
		c.change(d)
		w.enter(d, fulmarv1.State_STATE_UNDERWAY)
		w.say(messages.Leased, d)
		e := w.await(d, messages.Leased)
		if e.GetVerb() != "failed" || e.GetReason() != c.reason || e.GetReasonCode() != c.code {
			t.Errorf("%s: %s, %v, %q; want failed, %v, %q", c.name, e.GetVerb(), e.GetReasonCode(), e.GetReason(), c.code, c.reason)
		}
	}
	if diff := cmp.Diff([]string{":web.web.5"}, w.running()); diff != "" {
		t.Errorf("running (-want +got):\n%s", diff)
	}
}

func TestNothingIsCreatedPastTheDeadline(t *testing.T) {
	w := newWorld(t)
	w.vmm()
	late := w.leased(1, "wait")
	late.Deadline = timestamppb.New(time.Now().Add(-time.Millisecond))
	w.enter(late, fulmarv1.State_STATE_UNDERWAY)
	w.say(messages.Leased, late)
	w.start(w.leased(2, "wait")) // the same lane: the late one was tried before it
	if diff := cmp.Diff([]string{":web.web.2"}, w.running()); diff != "" {
		t.Errorf("running (-want +got):\n%s", diff)
	}
	if e, _, err := w.bus.Last(t.Context(), "web", 1); err != nil || e.GetVerb() != "leased" {
		t.Errorf("last event of the late one: %v, %v; want leased, for ipam to fail", e.GetVerb(), err)
	}
}

func TestAKeptInstanceRunsOn(t *testing.T) {
	w := newWorld(t)
	w.vmm()
	first := w.leased(1, "wait")
	w.start(first)
	before := w.info("web.web.1")
	again := w.leased(2, "wait")
	again.Units[0].Instance, again.Units[0].Kept = first.GetUnits()[0].GetInstance(), true
	image := w.loseImage()
	w.start(again)
	if after := w.info("web.web.1"); !after.Started.Equal(before.Started) {
		t.Error("it was started again")
	}

	// One that has exited is started again, and the record has forgotten its exit before anybody is told.
	if err := w.daemon.Destroy(t.Context(), before.Name); err != nil {
		t.Fatal(err)
	}
	w.record(&fulmarv1.HostInstance{Name: "web.web.1", Exit: "killed by signal SIGTERM", LastLine: "up"})
	if _, err := w.bus.Images.PutBytes(t.Context(), w.image, image); err != nil {
		t.Fatal(err)
	}
	third := w.leased(3, "wait")
	third.Units[0].Instance, third.Units[0].Kept = first.GetUnits()[0].GetInstance(), true
	w.start(third)
	h, _, err := w.bus.Hosts.Get(t.Context(), "h1")
	if err != nil || len(h.GetInstances()) != 1 || !h.GetInstances()[0].GetRunning() {
		t.Errorf("record: %v, %v; want one instance that runs", h.GetInstances(), err)
	}
	for d, want := range map[*fulmarv1.Deployment]bool{again: true, third: false} {
		if got := w.await(d, messages.Leased).GetDeployment().GetUnits()[0].GetKept(); got != want {
			t.Errorf("started of %d says that it was kept: %v, want %v", d.GetGeneration(), got, want)
		}
	}
}

// TestACrashAfterAKeptInstanceWasStartedAgain has a vmm that died before it could say started, also before it could look.
func TestACrashAfterAKeptInstanceWasStartedAgain(t *testing.T) {
	w := newWorld(t)
	stop := w.vmm()
	first := w.leased(1, "wait")
	w.start(first)
	before := w.info("web.web.1")
	if err := w.daemon.Destroy(t.Context(), before.Name); err != nil {
		t.Fatal(err)
	}
	w.record(&fulmarv1.HostInstance{Name: "web.web.1", Exit: "killed by signal SIGTERM", LastLine: "up"})
	stop()
	again := w.leased(2, "wait")
	again.Units[0].Instance, again.Units[0].Kept = first.GetUnits()[0].GetInstance(), true
	w.enter(again, fulmarv1.State_STATE_UNDERWAY)
	w.say(messages.Leased, again)
	w.create("web.web.1", "wait")
	before = w.info("web.web.1")
	w.vmm()
	e := w.await(again, messages.Leased)
	if e.GetVerb() != string(messages.Started) || e.GetDeployment().GetUnits()[0].GetKept() {
		t.Errorf("after leased came %s, and the unit was kept: %v", e.GetVerb(), e.GetDeployment().GetUnits()[0].GetKept())
	}
	h, _, err := w.bus.Hosts.Get(t.Context(), "h1")
	if err != nil || len(h.GetInstances()) != 1 || !h.GetInstances()[0].GetRunning() {
		t.Errorf("record: %v, %v; want one instance that runs", h.GetInstances(), err)
	}
	if after := w.info("web.web.1"); !after.Started.Equal(before.Started) {
		t.Error("it was started once more")
	}
	if n := w.count(again, messages.Started); n != 1 {
		t.Errorf("started was said %d times", n)
	}
}

// A create that a crash of the daemon cuts short may leave an instance for a moment, whose end is recorded; the next try
// makes another one of the same name, and nobody may take that end for its own.
func TestAnEndBeforeTheCreateIsForgotten(t *testing.T) {
	w := newWorld(t)
	w.vmm()
	d := w.leased(1, "wait")
	w.enter(d, fulmarv1.State_STATE_UNDERWAY)
	w.create("web.web.1", "wait")
	w.instances([]*fulmarv1.HostInstance{{Name: "web.web.1", Running: true}})
	if err := w.daemon.Destroy(t.Context(), w.info("web.web.1").Name); err != nil {
		t.Fatal(err)
	}
	w.record(&fulmarv1.HostInstance{Name: "web.web.1", Exit: "killed by signal SIGTERM", LastLine: "up"})
	w.start(d)
	h, _, err := w.bus.Hosts.Get(t.Context(), "h1")
	if err != nil || len(h.GetInstances()) != 1 || !h.GetInstances()[0].GetRunning() {
		t.Errorf("record: %v, %v; want one instance that runs", h.GetInstances(), err)
	}
}

func TestAPathKeepsApartWhatIsOurs(t *testing.T) {
	w := newWorld(t)
	w.create("web.web.1", "wait") // not below the path
	w.create("stranger", "wait")
	w.create("fulmar:h1:sub:web.web.3", "wait")
	w.vmm(func(c *vmm.Config) { c.Path = "fulmar:h1" })
	w.start(w.leased(2, "wait"))
	if diff := cmp.Diff([]string{":stranger", ":web.web.1", "fulmar:h1:sub:web.web.3", "fulmar:h1:web.web.2"}, w.running()); diff != "" {
		t.Errorf("running (-want +got):\n%s", diff)
	}
	w.instances([]*fulmarv1.HostInstance{{Name: "web.web.2", Running: true}})
}

func TestADamagedImageIsFetchedAgain(t *testing.T) {
	w := newWorld(t)
	w.vmm()
	w.start(w.leased(1, "wait"))
	path := filepath.Join(w.dir, "cache", w.image)
	if err := os.Truncate(path, 100); err != nil {
		t.Fatal(err)
	}
	w.start(w.leased(2, "wait"))
	if info, err := os.Stat(path); err != nil || info.Size() == 100 {
		t.Errorf("the damaged image is still there: %v, %v", info, err)
	}
}

func TestARecordThatCannotBeReadIsWrittenAnew(t *testing.T) {
	w := newWorld(t)
	kv, err := w.bus.JS.KeyValue(t.Context(), messages.HostBucket)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := kv.PutString(t.Context(), "h1", "garbage"); err != nil {
		t.Fatal(err)
	}
	w.vmm()
	w.start(w.leased(1, "wait"))
	w.instances([]*fulmarv1.HostInstance{{Name: "web.web.1", Running: true}})
}

func TestAHeadThatCannotBeReadHidesNoOtherStacksEnd(t *testing.T) {
	w := newWorld(t)
	w.vmm()
	w.start(w.leased(1, "wait"))
	kv, err := w.bus.JS.KeyValue(t.Context(), messages.HeadBucket)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := kv.PutString(t.Context(), "web", "garbage"); err != nil {
		t.Fatal(err)
	}
	n, err := albatross.ParseName("web.web.1")
	if err == nil {
		err = w.daemon.Destroy(t.Context(), n)
	}
	if err != nil {
		t.Fatal(err)
	}
	w.instances([]*fulmarv1.HostInstance{{Name: "web.web.1", Exit: "killed by signal SIGTERM"}})
}

func TestTheRecordSaysWhatTheMachineHasAndWhenWhatRunsWasStarted(t *testing.T) {
	w := newWorld(t)
	w.vmm()
	begin := time.Now().Add(-time.Second)
	w.start(w.leased(1, "wait"))
	w.instances([]*fulmarv1.HostInstance{{Name: "web.web.1", Running: true}})
	h, _, err := w.bus.Hosts.Get(t.Context(), "h1")
	if err != nil || len(h.GetCpus()) == 0 || h.GetMemoryMb() == 0 || h.GetInstances()[0].GetStarted().AsTime().Before(begin) {
		t.Errorf("got %v, %v", h, err)
	}
}
