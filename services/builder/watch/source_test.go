package watch

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	fulmarv1 "fulmar/messages/fulmar/v1"
)

var sumOf = map[int]string{1: strings.Repeat("1", 64), 2: strings.Repeat("2", 64)}

// TestAnArtefactIsAskedForOnCondition has a server that counts what it sends in full.
func TestAnArtefactIsFollowedOnCondition(t *testing.T) {
	w := newWorld(t)
	var current, full, same atomic.Int32
	current.Store(1)
	server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		etag := fmt.Sprintf(`"v%d"`, current.Load())
		w.Header().Set("ETag", etag)
		if r.Header.Get("If-None-Match") == etag {
			same.Add(1)
			w.WriteHeader(http.StatusNotModified)
			return
		}
		full.Add(1)
		fmt.Fprintf(w, "%s  www.spt\n", sumOf[int(current.Load())])
	}))
	t.Cleanup(server.Close)
	w.lookers.HTTP = server.Client()
	w.start()
	w.deploy(deployOf(urlUnit("", server.URL+"/www.spt", server.URL+"/www.spt.sha256")))
	w.awaitLook()
	w.say(1, "built", &fulmarv1.Unit{Name: "web", Image: sumOf[1]})
	for range 3 {
		w.pass()
	}
	if full.Load() != 1 || same.Load() != 3 {
		t.Errorf("%d answers in full and %d without, want 1 and 3", full.Load(), same.Load())
	}
	current.Store(2)
	w.pass()
	w.await("it is deployed", func(r *fulmarv1.Watch, s *fulmarv1.WatchedSource) bool {
		return r.GetGeneration() == 2 && s.GetSeen() == sumOf[2]
	})
	if got, want := w.wantRequests(2).GetCause(), server.URL+"/www.spt.sha256 moved from 1111111 to 2222222"; got != want {
		t.Errorf("the cause is %s, want %s", got, want)
	}
}

func TestASourceThatCannotBeRead(t *testing.T) {
	w := newWorld(t)
	mux := http.NewServeMux()
	text := func(path, body string) {
		mux.HandleFunc(path, func(w http.ResponseWriter, _ *http.Request) { _, _ = w.Write([]byte(body)) })
	}
	text("/none", "")
	text("/html", "<html>sign in</html>")
	text("/short", sumOf[1][:63]+"  www.spt\n")
	text("/long", strings.Repeat("1", 1<<20))
	text("/good", "\\"+strings.ToUpper(strings.Repeat("ab", 32))+" *a\\nb\n")
	text("/alone", sumOf[1])
	mux.HandleFunc("/busy", func(w http.ResponseWriter, _ *http.Request) {
		w.Header().Set("Retry-After", "7200")
		http.Error(w, "", http.StatusTooManyRequests)
	})
	mux.HandleFunc("/later", func(rw http.ResponseWriter, _ *http.Request) {
		rw.Header().Set("Retry-After", w.clock.Now().Add(3*time.Hour).UTC().Format(http.TimeFormat))
		http.Error(rw, "", http.StatusServiceUnavailable)
	})
	mux.HandleFunc("/unasked", func(w http.ResponseWriter, _ *http.Request) { w.WriteHeader(http.StatusNotModified) })
	server := httptest.NewTLSServer(mux)
	t.Cleanup(server.Close)
	closed := httptest.NewServer(mux)
	closed.Close()
	w.repo.push("main")
	w.lookers.HTTP = server.Client()
	trusting := &http.Client{Transport: &http.Transport{DisableKeepAlives: true}} // of nobody whom this machine does not know
	l := w.lookers
	l.Docker = func(context.Context, *fulmarv1.DockerSource) (string, error) {
		return "", errors.New("the registry is gone")
	}
	sums := func(client *http.Client) Lookers { return Lookers{HTTP: client} }
	artefact := func(path string) *fulmarv1.Image { return urlUnit("", server.URL, server.URL+path).GetImage() }
	for name, c := range map[string]struct {
		l     Lookers
		image *fulmarv1.Image
		value string
		err   string
		after time.Duration
	}{
		"a sum as sha256sum prints it":       {l, artefact("/good"), strings.Repeat("ab", 32), "", 0},
		"a sum alone":                        {l, artefact("/alone"), sumOf[1], "", 0},
		"an empty text":                      {l, artefact("/none"), "", "the text is empty", 0},
		"a page":                             {l, artefact("/html"), "", `begins with "<html>sign" and not with a SHA-256`, 0},
		"a sum that is cut off":              {l, artefact("/short"), "", "and not with a SHA-256 of 64 hexadecimal digits", 0},
		"a sum that is too long":             {l, artefact("/long"), "", "and not with a SHA-256", 0},
		"a text that is not there":           {l, artefact("/nothing"), "", "the server answers 404", 0},
		"a server that is busy":              {l, artefact("/busy"), "", "the server answers 429", 2 * time.Hour},
		"a server that is busy until then":   {l, artefact("/later"), "", "the server answers 503", 3 * time.Hour},
		"unchanged, where nobody asked":      {l, artefact("/unasked"), "", "the server answers 304", 0},
		"a certificate of nobody":            {sums(trusting), artefact("/good"), "", "certificate", 0},
		"a server that is not there":         {l, urlUnit("", closed.URL, closed.URL).GetImage(), "", "connection refused", 0},
		"a branch":                           {l, gitUnit("", w.repo.url, "main").GetImage(), w.repo.git("-C", w.repo.dir, "rev-parse", "main"), "", 0},
		"a branch that is not there":         {l, gitUnit("", w.repo.url, "gone").GetImage(), "", "has no branch, tag or ref gone", 0},
		"a repository that is not there":     {l, gitUnit("", strings.Replace(w.repo.url, "www", "none", 1), "main").GetImage(), "", "none.git", 0},
		"a repository of a server that left": {l, gitUnit("", closed.URL+"/www.git", "main").GetImage(), "", "www.git", 0},
		"a credential that nobody holds":     {l, withCredential(w.repo.url), "", "credential deploy", 0},
		"a registry that is gone":            {l, dockerUnit("", "registry.example/www:live").GetImage(), "", "the registry is gone", 0},
		"no engine":                          {Lookers{}, dockerUnit("", "registry.example/www:live").GetImage(), "", "this builder has no Docker engine", 0},
		"no git":                             {Lookers{}, gitUnit("", w.repo.url, "main").GetImage(), "", "this builder has no git", 0},
		"what cannot move":                   {l, &fulmarv1.Image{}, "", "it cannot be followed", 0},
	} {
		t.Run(name, func(t *testing.T) {
			a := c.l.look(t.Context(), c.image, &fulmarv1.WatchedSource{}, w.clock.Now())
			if c.err == "" {
				if a.Err != nil || a.Value != c.value {
					t.Errorf("got %+v, want %s", a, c.value)
				}
				return
			}
			if a.Err == nil || a.Value != "" || wait(a.Err) != c.after {
				t.Fatalf("got %+v, which asks to stay away for %s", a, wait(a.Err))
			}
			if text := sentence(a.Err); !strings.Contains(text, c.err) || strings.Contains(text, "\n") {
				t.Errorf("it says %s, want %s", text, c.err)
			}
		})
	}
}

func withCredential(url string) *fulmarv1.Image {
	u := gitUnit("", url, "main")
	u.GetImage().GetGit().Credential = "deploy"
	return u.GetImage()
}

// TestASourceThatFailsIsShownAndBacksOff has a repository that is down for a while, and a push meanwhile.
func TestASourceThatFailsIsShownAndBacksOff(t *testing.T) {
	w := newWorld(t)
	w.start()
	w.following()
	w.repo.down.Store(true)
	second := w.repo.push("main")
	r := w.pass()
	s := r.GetSources()[0]
	if wait := r.GetNext().AsTime().Sub(w.clock.Now()); s.GetFailures() != 1 || s.GetError() == "" || wait < 100*time.Second || wait > 140*time.Second {
		t.Errorf("after a failure: %v", r)
	}
	w.clock.advance(3 * time.Minute)
	if s := w.awaitLook().GetSources()[0]; s.GetFailures() != 2 {
		t.Errorf("after two: %v", s)
	}
	w.repo.down.Store(false)
	w.clock.advance(5 * time.Minute)
	w.await("it is deployed when it is back", func(r *fulmarv1.Watch, s *fulmarv1.WatchedSource) bool {
		return r.GetGeneration() == 2 && s.GetSeen() == second && s.GetError() == ""
	})
}

// TestABranchThatIsDeletedIsNoMove has a branch that goes and comes back.
func TestABranchThatIsDeletedIsNoMove(t *testing.T) {
	w := newWorld(t)
	w.start()
	first := w.following()
	w.repo.git("-C", w.repo.dir, "update-ref", "-d", "refs/heads/main")
	if s := w.pass().GetSources()[0]; !strings.Contains(s.GetError(), "has no branch, tag or ref main") || s.GetSeen() != first {
		t.Errorf("it is gone: %v", s)
	}
	w.repo.git("-C", w.repo.dir, "update-ref", "refs/heads/main", first)
	if s := w.pass().GetSources()[0]; s.GetError() != "" {
		t.Errorf("it is back: %v", s)
	}
	w.wantRequests(1)
}
