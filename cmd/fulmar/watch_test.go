package main

import (
	"context"
	"encoding/json"
	"fmt"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"golang.org/x/sync/errgroup"
	"google.golang.org/protobuf/types/known/timestamppb"

	"fulmar/bus"
	fulmarv1 "fulmar/messages/fulmar/v1"
)

// record waits until the record of web's watch is as it should be, and gives it.
func (w *world) record(view *bus.View[*fulmarv1.Watch], what string, ok func(*fulmarv1.Watch) bool) *fulmarv1.Watch {
	w.t.Helper()
	limit := time.After(20 * time.Second)
	for {
		changed := view.Changed()
		if r := view.All()["web"]; ok(r) {
			return r
		}
		select {
		case <-changed:
		case <-limit:
			w.t.Fatalf("%s: the record is %v", what, view.All()["web"])
		}
	}
}

func TestAWatchIsListedPausedAndResumed(t *testing.T) {
	w := newWorld(t)
	var sum atomic.Pointer[string]
	push := func(digit string) string {
		s := strings.Repeat(digit, 64)
		sum.Store(&s)
		return s
	}
	first := push("1")
	server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) { fmt.Fprintln(w, *sum.Load()) }))
	t.Cleanup(server.Close)
	if status, _, errout := w.run("network", "add", "lan", "10.9.0.1/24", "--bridge", "br0", "--host", "h1"); status != 0 {
		t.Fatal(errout)
	}
	if err := w.bus.Hosts.Put(t.Context(), "h1", &fulmarv1.Host{Name: "h1"}, 0); err != nil {
		t.Fatal(err)
	}
	view := w.bus.Watches.View()
	ctx, cancel := context.WithCancel(t.Context())
	var g errgroup.Group
	g.Go(func() error { return view.Run(ctx) })
	t.Cleanup(func() {
		cancel()
		if err := g.Wait(); err != nil {
			t.Error(err)
		}
	})
	if _, out, _ := w.run("watch", "ls"); strings.Count(out, "\n") != 1 {
		t.Errorf("without a watch there is one:\n%s", out)
	}
	spec := filepath.Join(t.TempDir(), "web.yaml")
	text := fmt.Sprintf("watch: true\nunits:\n  - image: {url: %q, sha256_url: %q}\n", server.URL+"/www.spt", server.URL+"/www.sum")
	if err := os.WriteFile(spec, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	if status, _, errout := w.run("deploy", "web", "-f", spec, "--detach"); status != 0 {
		t.Fatal(errout)
	}
	w.record(view, "its first look", func(r *fulmarv1.Watch) bool {
		return len(r.GetSources()) > 0 && r.GetSources()[0].GetFound() == first
	})
	_, out, _ := w.run("watch", "ls")
	for _, want := range []string{"web", server.URL + "/www.sum", "111111111111 ", "followed, web-1 "} {
		if !strings.Contains(out, want) {
			t.Errorf("watch ls lacks %q:\n%s", want, out)
		}
	}
	must := func(args ...string) {
		t.Helper()
		if status, _, errout := w.run(args...); status != 0 {
			t.Fatalf("fulmar %s: %s", strings.Join(args, " "), errout)
		}
	}
	must("watch", "pause", "web")
	if _, out, _ := w.run("watch", "ls"); !strings.Contains(out, "paused") {
		t.Errorf("it is not paused:\n%s", out)
	}
	second := push("2")
	must("watch", "resume", "web")
	r := w.record(view, "what moved meanwhile", func(r *fulmarv1.Watch) bool { return r.GetSources()[0].GetFound() == second })
	if r.GetPaused() {
		t.Errorf("it is still paused: %v", r)
	}
	w.record(view, "its request", func(r *fulmarv1.Watch) bool { return r.GetGeneration() == 2 })
	third := push("3")
	must("watch", "check", "web")
	w.record(view, "what moved before a check", func(r *fulmarv1.Watch) bool { return r.GetSources()[0].GetFound() == third })
	_, out, _ = w.run("--json", "watch", "ls")
	var said map[string]any
	if err := json.Unmarshal([]byte(out), &said); err != nil || said["stack"] != "web" {
		t.Errorf("watch ls --json: %v\n%s", err, out)
	}
	for _, args := range [][]string{{"watch", "pause", "nobody"}, {"watch", "resume", "nobody"}, {"watch", "check", "nobody"}} {
		if status, _, errout := w.run(args...); status != 1 || !strings.Contains(errout, "stack nobody follows no source") {
			t.Errorf("fulmar %s: %d %s", strings.Join(args, " "), status, errout)
		}
	}
	if status, _, errout := w.run("watch", "pause", "No Body"); status != 1 || !strings.Contains(errout, `stack "No Body"`) {
		t.Errorf("%d %s", status, errout)
	}
}

func TestWatchRowsSayWhatKeepsASourceFromBeingFollowed(t *testing.T) {
	now := time.Unix(1_700_000_000, 0)
	source := &fulmarv1.WatchedSource{Unit: "web", Source: "git+https://git.example/www#main", Seen: strings.Repeat("ab", 20)}
	w := &fulmarv1.Watch{Stack: "web", Sources: []*fulmarv1.WatchedSource{source}, Next: timestamppb.New(now.Add(90 * time.Second))}
	row := func() string { return strings.Join(watchRows(w, "web-7 failed: it does not compile", now), "\n") }
	if got, want := row(), "web\tweb\tgit+https://git.example/www#main\tabababababab\t-\t1m30s\tfollowed, web-7 failed: it does not compile"; got != want {
		t.Errorf("got  %q\nwant %q", got, want)
	}
	source.Seen, source.Error, source.Failures, w.Paused = "sha256:cdcdcdcdcdcdcdcd", "no route to host", 3, true
	if got, want := row(), "web\tweb\tgit+https://git.example/www#main\tcdcdcdcdcdcd\t-\t-\tpaused, look failed 3 times: no route to host, web-7 failed: it does not compile"; got != want {
		t.Errorf("got  %q\nwant %q", got, want)
	}
	w.Next, w.Paused = timestamppb.New(now.Add(-time.Hour)), false
	if got := row(); !strings.Contains(got, "\t0s\t") {
		t.Errorf("what is due is shown as %q", got)
	}
}
