package e2e_test

import (
	"context"
	"fmt"
	"net/netip"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/testing/protocmp"
	"google.golang.org/protobuf/types/known/durationpb"

	"fulmar/e2e/lab"
	"fulmar/messages"
	fulmarv1 "fulmar/messages/fulmar/v1"
)

// hello is a request for hello with a text at port 8080 of the host, edited.
func (w *world) hello(text string, edits ...func(*fulmarv1.DeployRequest)) string {
	w.t.Helper()
	m, err := messages.DecodeRequest(fulmarv1.Kind_KIND_DEPLOY, []byte(w.helloJSON(text)))
	if err != nil {
		w.t.Fatal(err)
	}
	r := m.(*fulmarv1.DeployRequest)
	for _, edit := range edits {
		edit(r)
	}
	body, err := proto.Marshal(r)
	if err != nil {
		w.t.Fatal(err)
	}
	return string(body)
}

// checked makes an HTTP request the health check of every unit.
func checked(path string) func(*fulmarv1.DeployRequest) {
	return func(r *fulmarv1.DeployRequest) {
		for _, u := range r.GetUnits() {
			u.Health = []*fulmarv1.HealthCheck{{
				Probe:   &fulmarv1.HealthCheck_Http{Http: &fulmarv1.HttpProbe{Path: path}},
				Timeout: durationpb.New(patience),
			}}
		}
	}
}

// slow makes a unit take its time to become healthy.
func slow(r *fulmarv1.DeployRequest) { checked("/sleep?ms=4000")(r) }

const deploy = fulmarv1.Kind_KIND_DEPLOY

func TestNewerDeployWinsThoughTheOlderIsSlow(t *testing.T) {
	w := newWorld(t)
	w.deploy("web", 8080, "v1")
	older := w.request(deploy, "web", w.hello("older", slow))
	newer := w.request(deploy, "web", w.hello("newer"))
	w.await("web", newer, messages.Published)
	w.answers(8080, "newer")
	s := w.await("web", older, messages.Failed, messages.Published)
	want := "superseded by " + messages.DeploymentName("web", newer)
	if s.Verb != messages.Failed || s.Event.GetReason() != want || s.Event.GetReasonCode() != fulmarv1.ReasonCode_REASON_CODE_SUPERSEDED {
		t.Errorf("the older ends as %v (%s), want failed: %s", s, s.Event.GetReasonCode(), want)
	}
	w.await("web", older, messages.Retired)
	w.await("web", 1, messages.Retired)
	w.answers(8080, "newer")
	w.onlyLive("web", newer)
}

func TestOlderDeployIsPublishedWhenTheNewerFails(t *testing.T) {
	w := newWorld(t)
	older := w.request(deploy, "web", w.hello("older", slow))
	newer := w.request(deploy, "web", w.hello("newer", func(r *fulmarv1.DeployRequest) { r.Units[0].Memory = 1 }))
	w.await("web", newer, messages.Failed)
	w.await("web", older, messages.Published)
	w.answers(8080, "older")
	w.await("web", newer, messages.Retired)
	w.onlyLive("web", older)
}

func TestNewestOfManyDeploysAtOnceWins(t *testing.T) {
	w := newWorld(t)
	w.deploy("web", 8080, "v1")
	load := w.Load(at(8080), rate/5)
	var last uint64
	for round := range 4 {
		var generations []uint64
		for i := range 3 {
			generations = append(generations, w.request(deploy, "web", w.hello(fmt.Sprintf("v%d.%d", round, i))))
		}
		for i, g := range generations {
			s := w.await("web", g, messages.Published, messages.Failed)
			if s.Verb == messages.Failed && (i == len(generations)-1 || s.Event.GetReasonCode() != fulmarv1.ReasonCode_REASON_CODE_SUPERSEDED) {
				t.Errorf("deploy %d of %d ends as %v", i+1, len(generations), s)
			}
		}
		w.answers(8080, fmt.Sprintf("v%d.2", round))
		last = generations[2]
	}
	for g := range last {
		if g > 0 {
			w.await("web", g, messages.Retired)
		}
	}
	w.unfailing(load)
	w.onlyLive("web", last)
}

// onlyLive fails the test unless a stack has one deployment, which is live, and the host holds its instances only.
func (w *world) onlyLive(stack string, generation uint64) {
	w.t.Helper()
	d := w.live(stack)
	if d.GetGeneration() != generation || len(w.head(stack).GetDeployments()) != 1 {
		w.t.Errorf("%s is not all that is there: %v", messages.DeploymentName(stack, generation), w.head(stack).GetDeployments())
	}
	want := map[string]string{}
	for _, i := range d.GetInstances() {
		want[messages.LeaseKey(i.GetNetwork(), i.GetAddress())] = i.GetName()
	}
	w.until(func(ctx context.Context) error {
		s, err := w.look(ctx)
		if err != nil {
			return err
		}
		if diff := cmp.Diff(want, s.Held); diff != "" {
			return differs(diff)
		}
		taps := 0
		for _, what := range s.Host {
			if strings.HasPrefix(what, "tap ") {
				taps++
			}
		}
		if taps != len(want) {
			return fmt.Errorf("%d taps for %d instances: %q", taps, len(want), s.Host)
		}
		return nil
	})
}

func TestRollback(t *testing.T) {
	w := newWorld(t)
	w.deploy("web", 8080, "v1")
	first := w.live("web")
	w.deploy("web", 8080, "v2")
	load := w.Load(at(8080), rate)
	for _, want := range []string{"v1", "v2", "v1"} {
		w.cli("rollback", "web", "--wait")
		w.answers(8080, want)
		w.flowing(load, want, rate/5)
	}
	w.unfailing(load)
	if diff := cmp.Diff(first.GetContent(), w.live("web").GetContent(), protocmp.Transform()); diff != "" {
		t.Errorf("content after the rollback (-first +now):\n%s", diff)
	}
	w.onlyLive("web", 5)
}

func TestStagedIsReachableButNotPublishedUntilItIsPromoted(t *testing.T) {
	w := newWorld(t)
	w.deploy("web", 8080, "v1")
	load := w.Load(at(8080), rate)
	out := w.deploy("web", 8080, "v2", "--staged")
	if !strings.Contains(out, "web-2 staged") {
		t.Errorf("the command line does not say that it is staged: %s", out)
	}
	staged := messages.InState(w.head("web"), fulmarv1.State_STATE_STAGED)
	own := netip.AddrPortFrom(netip.MustParseAddr(staged.GetInstances()[0].GetAddress()), 80)
	if got, err := lab.Get(own); err != nil || got != "v2" {
		t.Errorf("what is staged answers %q, %v at its own address %s", got, err, own)
	}
	w.flowing(load, "v1", rate/5)
	if n := load.Seen("v2"); n > 0 {
		t.Errorf("what is staged answered %d clients", n)
	}
	w.cli("promote", "web", "--wait")
	w.answers(8080, "v2")
	w.unfailing(load)
	if diff := cmp.Diff(staged.GetInstances(), w.live("web").GetInstances(), protocmp.Transform()); diff != "" {
		t.Errorf("instances after the promotion (-staged +live):\n%s", diff)
	}
	w.onlyLive("web", 3)
}

func TestStagedIsDiscarded(t *testing.T) {
	w := newWorld(t)
	w.deploy("web", 8080, "v1")
	before := w.live("web").GetInstances()
	w.deploy("web", 8080, "v2", "--staged")
	w.deploy("web", 8080, "v3", "--staged")
	w.await("web", 2, messages.Retired) // what is staged is replaced by what is staged after it
	load := w.Load(at(8080), rate)
	w.cli("discard", "web", "--wait")
	w.await("web", 3, messages.Retired)
	w.flowing(load, "v1", rate/5)
	r := w.unfailing(load)
	if diff := cmp.Diff(map[string]int{"v1": r.Requests}, r.Bodies); diff != "" {
		t.Errorf("answers (-want +got):\n%s", diff)
	}
	if diff := cmp.Diff(before, w.live("web").GetInstances(), protocmp.Transform()); diff != "" {
		t.Errorf("instances (-before +after):\n%s", diff)
	}
	w.onlyLive("web", 4)
}

func TestRenewGivesFreshInstancesOfTheSameContent(t *testing.T) {
	w := newWorld(t)
	w.deploy("web", 8080, "v1")
	before := w.live("web")
	load := w.Load(at(8080), rate)
	w.flowing(load, "v1", rate/5)
	w.cli("renew", "web", "--wait")
	w.flowing(load, "v1", rate/5)
	w.unfailing(load)
	after := w.live("web")
	if diff := cmp.Diff(before.GetContent(), after.GetContent(), protocmp.Transform()); diff != "" {
		t.Errorf("content (-before +after):\n%s", diff)
	}
	if b, a := before.GetInstances()[0], after.GetInstances()[0]; a.GetName() != "web.web.2" || a.GetAddress() == b.GetAddress() {
		t.Errorf("the instance is %v, was %v", a, b)
	}
	w.onlyLive("web", 2)
}

func TestWhatIsKeptIsNotRenewed(t *testing.T) {
	w := newWorld(t)
	w.deploy("web", 8080, "v1")
	before, pids := w.live("web").GetInstances(), w.pids()
	load := w.Load(at(8080), rate)
	w.flowing(load, "v1", rate/5)
	out := w.deploy("web", 8080, "v1", "--wait")
	if diff := cmp.Diff(firstSteps(messages.Published), w.verbs("web", 2)); diff != "" {
		t.Errorf("steps (-want +got):\n%s", diff)
	}
	if s := w.await("web", 2, messages.Published); !s.Event.GetUnchanged() || !strings.Contains(out, "nothing changed") {
		t.Errorf("published does not say that nothing changed: %s\n%s", s, out)
	}
	w.await("web", 1, messages.Retired)
	w.flowing(load, "v1", rate/5)
	w.unfailing(load)

	// Ports are no part of what runs: they move to the running instance.
	if s := w.deploy("web", 8081, "v1", "--wait"); strings.Contains(s, "nothing changed") {
		t.Errorf("a port moved, and published says that nothing changed: %s", s)
	}
	w.answers(8081, "v1")
	if got, err := w.Clients.Get(at(8080)); err == nil {
		t.Errorf("the port that was left answers %q", got)
	}
	if diff := cmp.Diff(before, w.live("web").GetInstances(), protocmp.Transform()); diff != "" {
		t.Errorf("instances (-before +after):\n%s", diff)
	}
	if diff := cmp.Diff(pids, w.pids()); diff != "" {
		t.Errorf("processes (-before +after):\n%s", diff)
	}
	w.onlyLive("web", 3)
	w.cli("retire", "web", "--wait")
	w.retired()
}

func (w *world) pids() []int {
	w.t.Helper()
	pids, err := w.Unikernels()
	if err != nil {
		w.t.Fatal(err)
	}
	return pids
}

func TestRequestsAsAnyProgramSendsThem(t *testing.T) {
	w := newWorld(t)
	if g := w.send("fulmar.deploy.web", w.helloJSON("v1")); g != 1 {
		t.Errorf("the first request is generation %d", g)
	}
	w.await("web", 1, messages.Published)
	w.answers(8080, "v1")
	if err := w.bus.NC.Publish("fulmar.deploy.web", []byte(w.helloJSON("v2"))); err != nil { // nobody is told where it is stored
		t.Fatal(err)
	}
	w.await("web", 2, messages.Published)
	w.answers(8080, "v2")
	retire := w.send("fulmar.retire.web", "{}")
	w.await("web", retire, messages.Published)
	for g := range retire {
		if g > 0 {
			w.await("web", g, messages.Retired)
		}
	}
	w.retired()
}

// pair is a stack of a front that answers with the address of its back, and of that back.
func (w *world) pair(front, back string) string {
	const unit = `{"name":%q,"image":{"file":%q},"memory":16,"ports":[{"port":%d,"target":80}],` +
		`"args":["--ipv4={{.IP}}/{{.PrefixLen}}","--ipv4-gateway={{.Gateway}}","--hello=%s"]}`
	return `{"units":[` + fmt.Sprintf(unit, "front", w.image, 8080, front) + "," + fmt.Sprintf(unit, "back", w.image, 8081, back) + "]}"
}

func TestUnitsOfAStackKnowOneAnother(t *testing.T) {
	w := newWorld(t)
	instances := func() map[string]*fulmarv1.Instance {
		all := map[string]*fulmarv1.Instance{}
		for _, i := range w.live("duo").GetInstances() {
			all[i.GetUnit()] = i
		}
		return all
	}
	update := func(front, back string) map[string]*fulmarv1.Instance {
		t.Helper()
		g := w.send("fulmar.deploy.duo", w.pair(front, back))
		if s := w.await("duo", g, messages.Published, messages.Failed, messages.Rejected); s.Verb != messages.Published {
			t.Fatal(s)
		}
		i := instances()
		w.answers(8080, strings.ReplaceAll(front, `{{ip \"back\"}}`, i["back"].GetAddress()))
		w.answers(8081, back)
		return i
	}
	first := update(`{{ip \"back\"}}`, "b1")
	second := update(`to-{{ip \"back\"}}`, "b1") // only the front changes
	if first["back"].GetName() != second["back"].GetName() || first["front"].GetName() == second["front"].GetName() {
		t.Errorf("the front changed, and instances %v became %v", first, second)
	}
	third := update(`to-{{ip \"back\"}}`, "b2") // the back moves, so the front must know
	if third["back"].GetName() == second["back"].GetName() || third["front"].GetName() == second["front"].GetName() {
		t.Errorf("the back changed, and instances %v became %v", second, third)
	}
	w.cli("retire", "duo", "--wait")
	w.retired()
}

func TestTheHostReachesPublishedPorts(t *testing.T) { eachBackend(t, theHostReachesPublishedPorts) }

func theHostReachesPublishedPorts(t *testing.T, w *world) {
	w.up()
	w.connect()
	w.deploy("web", 8080, "v1")
	hosts := []string{"127.0.0.1", lab.HostAddr, "10.80.0.1"}
	for _, text := range []string{"v1", "v2"} {
		for _, host := range hosts {
			if got, err := lab.Get(netip.AddrPortFrom(netip.MustParseAddr(host), 8080)); err != nil || got != text {
				t.Errorf("the host is answered %q, %v at %s; want %s", got, err, host, text)
			}
		}
		if text == "v1" {
			w.deploy("web", 8080, "v2")
		}
	}
}
