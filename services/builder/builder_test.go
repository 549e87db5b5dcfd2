package builder

import (
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/prometheus/client_golang/prometheus"
	"google.golang.org/protobuf/testing/protocmp"

	"fulmar/bus"
	"fulmar/bus/bustest"
	"fulmar/messages"
	fulmarv1 "fulmar/messages/fulmar/v1"
)

func deployOf(path string) string {
	return fmt.Sprintf(`{"network":"lan","units":[{"image":{"file":%q},"ports":[{"port":80}]}]}`, path)
}

func TestARequestIsAcceptedAndBuilt(t *testing.T) {
	w := newWorld(t)
	path, digest := w.image(1)
	w.start()
	generation := w.request(deployKind, "web", deployOf(path))
	accepted := w.await(generation, messages.Accepted).GetDeployment()
	if accepted.GetStack() != "web" || accepted.GetKind() != deployKind || accepted.GetNetwork().GetBridge() != "br0" ||
		accepted.GetRequested() == nil || accepted.GetDeadline() == nil || accepted.GetContent().GetUnits()[0].GetName() != "web" {
		t.Errorf("accepted %v", accepted)
	}
	h := w.head("web")
	if d := messages.Find(h, generation); h.GetNewest() != generation || d.GetState() != underway || d.GetHost() != "host1" {
		t.Errorf("the head is %v", h)
	}
	built := w.await(generation, messages.Built).GetDeployment()
	u := built.GetUnits()[0]
	if u.GetName() != "web" || u.GetImage() != digest || u.GetTarget() != "spt" || u.GetDevice() == "" || u.GetImageSize() == 0 {
		t.Errorf("built %v", u)
	}
	pinned := &fulmarv1.Image{Source: &fulmarv1.Image_Object{Object: digest}, Sha256: digest}
	if diff := cmp.Diff(pinned, built.GetContent().GetUnits()[0].GetImage(), protocmp.Transform()); diff != "" {
		t.Errorf("the image is pinned (-want +got):\n%s", diff)
	}
	if !w.stored(digest) {
		t.Error("the image is not in the store")
	}
}

// TestEveryKindOfRequest walks a stack through all of them.
func TestEveryKindOfRequest(t *testing.T) {
	w := newWorld(t)
	path, digest := w.image(1)
	w.start()
	step := func(kind fulmarv1.Kind, body string) *fulmarv1.Deployment {
		t.Helper()
		generation := w.request(kind, "web", body)
		w.await(generation, messages.Accepted)
		built := w.await(generation, messages.Built)
		w.serve(built)
		return built.GetDeployment()
	}
	image := func(d *fulmarv1.Deployment) string {
		return d.GetContent().GetUnits()[0].GetImage().GetObject() + " " + strings.Join(d.GetContent().GetUnits()[0].GetArgs(), " ")
	}
	first := step(deployKind, deployOf(path))
	second := step(deployKind, strings.Replace(deployOf(path), `"ports"`, `"args":["two"],"ports"`, 1))
	if got := step(rollbackKind, ""); image(got) != image(first) || got.GetKind() != rollbackKind {
		t.Errorf("a rollback has %s, want %s", image(got), image(first))
	}
	if got := step(rollbackKind, ""); image(got) != image(second) {
		t.Errorf("a rollback of the rollback has %s, want %s", image(got), image(second))
	}
	if got := step(renewKind, ""); image(got) != image(second) || got.GetUnits()[0].GetImage() != digest {
		t.Errorf("a renewal has %v", got)
	}
	third := step(deployKind, strings.Replace(deployOf(path), `"network"`, `"staged":true,"network"`, 1))
	if !third.GetStaged() || messages.InState(w.head("web"), staged).GetGeneration() != third.GetGeneration() {
		t.Errorf("staged %v", third)
	}
	if got := step(promoteKind, ""); image(got) != image(third) || got.GetStaged() {
		t.Errorf("a promotion has %v", got)
	}
	step(deployKind, strings.Replace(deployOf(path), `"network"`, `"staged":true,"network"`, 1))
	if got := step(discardKind, ""); image(got) != image(third) || messages.InState(w.head("web"), staged) != nil {
		t.Errorf("a discard has %v, and %v is staged", got, messages.InState(w.head("web"), staged))
	}
	if got := step(retireKind, ""); len(got.GetContent().GetUnits()) != 0 || len(got.GetUnits()) != 0 || got.GetContent().GetNetwork() != "lan" {
		t.Errorf("a retirement has %v", got)
	}
	if got := step(rollbackKind, ""); image(got) != image(third) {
		t.Errorf("a rollback of the retirement has %s, want %s", image(got), image(third))
	}
}

func TestBadRequestsAreRejected(t *testing.T) {
	w := newWorld(t)
	w.start()
	for stack, c := range map[string]struct{ body, want string }{
		"unknown-field":   {`{"imag":1}`, `unknown field "imag"`},
		"unknown-network": {strings.Replace(deployOf("/a"), "lan", "wan", 1), `network "wan" does not exist`},
		"Bad-Name":        {deployOf("/a"), `stack "Bad-Name"`},
		"bad_name!":       {deployOf("/a"), `stack "bad_name!"`},
		"moved":           {`{"if_newest":"7"}`, "its newest is 0"},
	} {
		generation := w.request(deployKind, stack, c.body)
		e := w.await(generation, messages.Rejected)
		if !strings.Contains(e.GetReason(), c.want) || e.GetDeployment().GetStack() != stack {
			t.Errorf("got %v, want %q", e, c.want)
		}
	}
	if all, err := w.Heads.All(t.Context()); err != nil || len(all) != 0 {
		t.Errorf("heads were made: %v, %v", all, err)
	}
	path, _ := w.image(1)
	w.await(w.request(deployKind, "web", deployOf(path)), messages.Accepted) // nobody blocks the next
}

func TestABadImageFailsItsDeployment(t *testing.T) {
	w := newWorld(t)
	two, _ := w.image(2)
	text := w.file("notes.txt", []byte("no image"))
	w.start()
	for path, want := range map[string]string{
		text: "unit web: image: ", w.root + "/none": "unit web: image: file " + w.root + "/none does not exist",
		two: `its manifest has devices that the request does not name: net device "net`,
	} {
		generation := w.request(deployKind, "web", deployOf(path))
		w.await(generation, messages.Accepted)
		e := w.await(generation, messages.Failed)
		if !strings.Contains(e.GetReason(), want) || e.GetDeployment().GetNetwork().GetHost() != "host1" {
			t.Errorf("got %v, want %q", e, want)
		}
	}
}

func TestAHostThatNeverReportedIsRefused(t *testing.T) {
	w := newWorld(t)
	path, _ := w.image(1)
	w.addNetwork("far", "host2")
	w.start()
	far := strings.Replace(deployOf(path), "lan", "far", 1)
	if e := w.await(w.request(deployKind, "web", far), messages.Rejected); !strings.Contains(e.GetReason(), "host host2, which has never reported") {
		t.Errorf("it was rejected because %s", e.GetReason())
	}
	if err := w.Hosts.Put(t.Context(), "host2", &fulmarv1.Host{Name: "host2", Targets: []string{"spt"}}, 0); err != nil {
		t.Fatal(err)
	}
	generation := w.request(deployKind, "web", far)
	w.await(generation, messages.Accepted)
	w.await(generation, messages.Built)
}

func TestARequestForEveryStackIsRejectedAndHoldsNobodyUp(t *testing.T) {
	w := newWorld(t)
	path, _ := w.image(1)
	w.start()
	for _, stack := range []string{">", "*"} {
		generation := w.request(deployKind, stack, deployOf(path))
		if e := w.await(generation, messages.Rejected); e.GetDeployment().GetStack() != messages.NoStack {
			t.Errorf("a request for %q is %v", stack, e)
		}
	}
	w.await(w.request(deployKind, "web", deployOf(path)), messages.Accepted)
}

func TestAStackThatIsDeployedFasterThanItRetiresIsRefusedAndHoldsNobodyUp(t *testing.T) {
	w := newWorld(t)
	path, _ := w.image(1)
	big := strings.Replace(deployOf(path), `"units":[{`, `"units":[{"health":[{"http":{"body":"`+strings.Repeat("x", 60_000)+`"}}],`, 1)
	w.start()
	for n := 0; ; n++ {
		if n == 100 {
			t.Fatal("a head of 6 MB was taken")
		}
		generation := w.request(deployKind, "web", big)
		e := w.first(generation)
		if e.GetVerb() == string(messages.Rejected) {
			if !strings.Contains(e.GetReason(), "deployments that are not retired yet") {
				t.Errorf("it was rejected because %s", e.GetReason())
			}
			break
		}
	}
	w.await(w.request(deployKind, "other", deployOf(path)), messages.Accepted)
}

// requestOf is what the bus gives of a request that was stored.
func (w *world) requestOf(generation uint64, kind fulmarv1.Kind, stack, body string) bus.Request {
	return bus.Request{Generation: generation, Kind: kind, Stack: stack, Body: []byte(body), Time: now}
}

func TestAcceptAfterACrash(t *testing.T) {
	w := newWorld(t)
	path, _ := w.image(1)
	generation := w.request(deployKind, "web", deployOf(path))
	died := w.replica() // it enters the request, and dies before it says so
	first, err := died.accept(t.Context(), w.requestOf(generation, deployKind, "web", deployOf(path)))
	if err != nil {
		t.Fatal(err)
	}
	before := w.head("web")
	w.start()
	second := w.await(generation, messages.Accepted)
	if diff := cmp.Diff(first.GetDeployment(), second.GetDeployment(), protocmp.Transform(), protocmp.IgnoreFields(&fulmarv1.Deployment{}, "requested")); diff != "" {
		t.Errorf("accepted (-first try +second):\n%s", diff)
	}
	if diff := cmp.Diff(before, w.head("web"), protocmp.Transform()); diff != "" {
		t.Errorf("the head changed again:\n%s", diff)
	}
	w.await(generation, messages.Built)
	w.wantChain("web", generation, messages.Accepted, messages.Built)
}

func TestAcceptByTwoReplicasAtOnce(t *testing.T) {
	w := newWorld(t)
	path, _ := w.image(1)
	generation := w.request(deployKind, "web", deployOf(path))
	events, errs := make(chan *fulmarv1.Event), make(chan error)
	for _, s := range []*Service{w.replica(), w.replica()} {
		go func() {
			e, err := s.accept(t.Context(), w.requestOf(generation, deployKind, "web", deployOf(path)))
			events <- e
			errs <- err
		}()
	}
	a, b := <-events, <-events
	for range 2 {
		if err := <-errs; err != nil {
			t.Fatal(err)
		}
	}
	if diff := cmp.Diff(a.GetDeployment(), b.GetDeployment(), protocmp.Transform()); diff != "" {
		t.Errorf("two replicas accept differently:\n%s", diff)
	}
	if h := w.head("web"); len(h.GetDeployments()) != 1 {
		t.Errorf("the head is %v", h)
	}
}

func TestARequestThatHasBeenThroughSaysNothing(t *testing.T) {
	w := newWorld(t)
	if err := w.Heads.Put(t.Context(), "web", headOf(entry(9, live, contentOf("a", 80))), 0); err != nil {
		t.Fatal(err)
	}
	e, err := w.replica().accept(t.Context(), w.requestOf(7, deployKind, "web", "{}"))
	if e != nil || err != nil {
		t.Errorf("it says %v, %v", e, err)
	}
}

func TestForgottenAcksAcceptNothingTwice(t *testing.T) {
	w := newWorld(t)
	path, _ := w.image(1)
	stop := w.start()
	first := w.request(deployKind, "web", deployOf(path))
	w.await(first, messages.Accepted)
	w.await(first, messages.Built)
	stop()
	before := w.head("web")
	for stream, consumer := range map[string]string{messages.RequestStream: "builder-accept", messages.EventStream: "builder-build"} {
		if err := w.JS.DeleteConsumer(t.Context(), stream, consumer); err != nil {
			t.Fatal(err)
		}
	}
	w.start()
	w.await(w.request(deployKind, "dns", strings.Replace(deployOf(path), "80", "53", 1)), messages.Accepted) // after the old one
	w.wantChain("web", first, messages.Accepted, messages.Built)
	if diff := cmp.Diff(before, w.head("web"), protocmp.Transform()); diff != "" {
		t.Errorf("the head changed again:\n%s", diff)
	}
}

func TestANetworkThatWasDeletedMeanwhile(t *testing.T) {
	w := newWorld(t)
	path, _ := w.image(1)
	s := w.replica()
	r := w.requestOf(1, deployKind, "web", deployOf(path))
	if _, err := s.accept(t.Context(), r); err != nil {
		t.Fatal(err)
	}
	_, rev, err := w.Networks.Get(t.Context(), "lan")
	if err == nil {
		err = w.Networks.Delete(t.Context(), "lan", rev)
	}
	if err != nil {
		t.Fatal(err)
	}
	e, err := s.accept(t.Context(), r)
	if err != nil || e.GetDeployment().GetNetwork().GetHost() != "host1" {
		t.Errorf("nobody on its host hears of %v, %v", e, err)
	}
}

// TestABuilderThatHasJustBegunWaitsForItsView is handed an accepted deployment before its view of the hosts has any.
func TestABuilderThatHasJustBegunWaitsForItsView(t *testing.T) {
	w := newWorld(t)
	path, _ := w.image(1)
	before := w.replica()
	e, err := before.accept(t.Context(), w.requestOf(1, deployKind, "web", deployOf(path)))
	if err != nil {
		t.Fatal(err)
	}
	s := New(bustest.Open(t, w.server, bus.Options{Service: "builder"}), w.config(), prometheus.NewRegistry()) // none of its views runs
	w.background(s.cache.view.Run)
	built := make(chan error, 1)
	go func() {
		verb, err := s.build(t.Context(), e)
		if err == nil && verb != messages.Built {
			err = fmt.Errorf("it says %s", verb)
		}
		built <- err
	}()
	select {
	case err := <-built:
		t.Fatalf("it did not wait: %v", err)
	case <-time.After(100 * time.Millisecond): // long enough for one that does not
	}
	w.background(s.hosts.Run)
	if err := <-built; err != nil {
		t.Error(err)
	}
}
