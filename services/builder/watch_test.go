package builder

import (
	"context"
	"fmt"
	"net/http"
	"net/http/httptest"
	"os"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"fulmar/bus"
	"fulmar/bus/bustest"
	"fulmar/messages"
	fulmarv1 "fulmar/messages/fulmar/v1"
	"fulmar/services/builder/watch"
	"fulmar/solo5/solo5test"
)

// artefact is an image on the web that changes.
type artefact struct {
	url  string
	body atomic.Pointer[[]byte]
}

func newArtefact(t *testing.T) *artefact {
	a := &artefact{}
	mux := http.NewServeMux()
	mux.HandleFunc("/www.spt", func(w http.ResponseWriter, _ *http.Request) { _, _ = w.Write(*a.body.Load()) })
	mux.HandleFunc("/www.spt.sha256", func(w http.ResponseWriter, _ *http.Request) {
		fmt.Fprintf(w, "%s  www.spt\n", digestOf(*a.body.Load()))
	})
	server := httptest.NewServer(mux)
	t.Cleanup(server.Close)
	a.url = server.URL + "/www.spt"
	return a
}

// push puts an image with some bytes behind it there, and gives its digest.
func (a *artefact) push(w *world, behind string) string {
	w.t.Helper()
	body := append(w.bytes(), behind...)
	a.body.Store(&body)
	return digestOf(body)
}

func (w *world) watching(a *artefact, watch bool) string {
	return fmt.Sprintf(`{"network":"lan","watch":%v,"units":[{"image":{"url":%q,"sha256_url":%q}}]}`, watch, a.url, a.url+".sha256")
}

// follow waits until the record of web's watch is as it should be.
func (w *world) follow(view *bus.View[*fulmarv1.Watch], ok func(*fulmarv1.Watch) bool) {
	w.t.Helper()
	limit := time.After(patience)
	for {
		changed := view.Changed()
		if ok(view.All()["web"]) {
			return
		}
		select {
		case <-changed:
		case <-limit:
			w.t.Fatalf("the record is %v", view.All()["web"])
		}
	}
}

func TestAnArtefactThatMovesIsDeployed(t *testing.T) {
	w := newWorld(t)
	a := newArtefact(t)
	first := a.push(w, "")
	config := w.config()
	config.Watch.Interval = 50 * time.Millisecond
	s := New(bustest.Open(t, w.server, bus.Options{Service: "builder", AckWait: time.Second}), config, prometheus.NewRegistry())
	w.background(s.Run)
	records := w.Watches.View()
	w.background(records.Run)

	generation := w.request(deployKind, "web", w.watching(a, true))
	w.await(generation, messages.Accepted)
	if u := w.await(generation, messages.Built).GetDeployment().GetUnits()[0]; u.GetImage() != first {
		t.Errorf("it is made of %s, want %s", u.GetImage(), first)
	}
	w.follow(records, func(r *fulmarv1.Watch) bool { return len(r.GetSources()) == 1 && r.GetSources()[0].GetSeen() == first })
	second := a.push(w, "two")
	w.await(generation+1, messages.Accepted)
	if u := w.await(generation+1, messages.Built).GetDeployment().GetUnits()[0]; u.GetImage() != second {
		t.Errorf("it is made of %s, want %s", u.GetImage(), second)
	}
	retired := w.request(retireKind, "web", "")
	w.await(retired, messages.Accepted)
	w.follow(records, func(r *fulmarv1.Watch) bool { return r.GetGeneration() == retired && !watch.Following(r) })
}

// TestAnArtefactThatIsJustBeingReplaced has a text that is there before its image.
func TestAnArtefactThatIsJustBeingReplaced(t *testing.T) {
	w := newWorld(t)
	a := newArtefact(t)
	digest := a.push(w, "")
	early := httptest.NewServer(http.HandlerFunc(func(rw http.ResponseWriter, _ *http.Request) {
		fmt.Fprintln(rw, digestOf(append(w.bytes(), "two"...)))
	}))
	t.Cleanup(early.Close)
	s := w.replica()
	source := &fulmarv1.Image{Source: &fulmarv1.Image_Url{Url: a.url}, Sha256Url: early.URL}
	get := func() (image, error) {
		i, _, err := s.image(t.Context(), source, &log{bus: s.bus, stack: "web", generation: 1, now: time.Now})
		return i, err
	}
	if _, err := get(); err == nil || !strings.Contains(err.Error(), "its SHA-256 is "+digest) {
		t.Errorf("another image: %v", err)
	} else if _, refused := messages.AsRefusal(err); refused {
		t.Errorf("%v is final, and the image may be on its way", err)
	}
	want := a.push(w, "two")
	if i, err := get(); err != nil || i.digest != want {
		t.Errorf("once it is there: %v, %v", i, err)
	}
}

// bytes gives an image.
func (w *world) bytes() []byte {
	w.t.Helper()
	body, err := os.ReadFile(solo5test.Build(w.t, 1))
	if err != nil {
		w.t.Fatal(err)
	}
	return body
}

// TestAWatchIsEnteredWhateverCrashes has builders that die after the head is written, and ones that come too late.
func TestAWatchIsEnteredWhateverCrashes(t *testing.T) {
	w := newWorld(t)
	a := newArtefact(t)
	a.push(w, "")
	s := w.replica()
	request := func(generation uint64, kind fulmarv1.Kind, body string) bus.Request {
		return bus.Request{Generation: generation, Kind: kind, Stack: "web", Body: []byte(body), Time: time.Now()}
	}
	record := func() *fulmarv1.Watch {
		t.Helper()
		r, _, err := w.Watches.Get(t.Context(), "web")
		if err != nil {
			t.Fatal(err)
		}
		return r
	}
	accept := func(r bus.Request) {
		t.Helper()
		if _, err := s.accept(t.Context(), r); err != nil {
			t.Fatal(err)
		}
	}
	first := request(1, deployKind, w.watching(a, true))
	w.enter(s, first) // and dies
	if watch.Following(record()) {
		t.Fatal("the record is written before the head")
	}
	accept(first)
	accept(first)
	if r := record(); !watch.Following(r) || r.GetGeneration() != 1 {
		t.Errorf("after a crash the record is %v", r)
	}
	accept(request(2, deployKind, w.watching(a, false)))
	accept(first) // by a builder that was frozen
	if r := record(); watch.Following(r) || r.GetGeneration() != 2 {
		t.Errorf("it came back: %v", r)
	}
	third := request(3, deployKind, w.watching(a, true))
	accept(third)
	retire := request(5, retireKind, "")
	w.enter(s, retire)
	if r := record(); r.GetGeneration() != 3 || !watch.Following(r) {
		t.Errorf("before the retirement is accepted the record is %v", r)
	}
	accept(retire)
	accept(third)
	if r := record(); watch.Following(r) || r.GetGeneration() != 5 {
		t.Errorf("after the retirement the record is %v", r)
	}
	if _, err := s.accept(t.Context(), request(6, deployKind, `{"network":"none","watch":true,`+w.watching(a, true)[len(`{"network":"lan","watch":true,`):])); err == nil {
		t.Error("a network that is not there is accepted")
	}
	if r := record(); r.GetGeneration() != 5 {
		t.Errorf("a request that is rejected has a record: %v", r)
	}
}

// enter writes a request into the head, as a builder does that dies right after.
func (w *world) enter(s *Service, r bus.Request) {
	w.t.Helper()
	for _, caughtUp := range []func(context.Context) error{s.networks.CaughtUp, s.hosts.CaughtUp} {
		if err := caughtUp(w.t.Context()); err != nil {
			w.t.Fatal(err)
		}
	}
	nobody := func(*fulmarv1.Content) []*fulmarv1.Head { return nil }
	surroundings := Surroundings{Networks: s.networks.All(), Hosts: s.hosts.All(), Holding: nobody, Now: time.Now()}
	_, err := w.Heads.Edit(w.t.Context(), r.Stack, func(h *fulmarv1.Head) (*fulmarv1.Head, error) {
		d, err := Enter(h, r, surroundings)
		if err != nil {
			return nil, err
		}
		return messages.Accept(h, r.Stack, d)
	})
	if err != nil {
		w.t.Fatal(err)
	}
}
