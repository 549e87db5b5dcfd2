package builder

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/nats-io/nats.go/jetstream"

	"fulmar/messages"
	fulmarv1 "fulmar/messages/fulmar/v1"
	"fulmar/services/builder/buildlog"
)

func TestUnwanted(t *testing.T) {
	a := contentOf("a", 80)
	superseded := func(err error) bool {
		r, ok := messages.AsRefusal(err)
		return ok && r.Code == fulmarv1.ReasonCode_REASON_CODE_SUPERSEDED
	}
	late := func(err error) bool { return errors.Is(err, messages.ErrLate) }
	wanted := func(err error) bool { return err == nil }
	for name, c := range map[string]struct {
		head *fulmarv1.Head
		want func(error) bool
	}{
		"what is underway is wanted":                            {headOf(entry(3, underway, a)), wanted},
		"also beside what is live and older":                    {headOf(entry(2, live, a), entry(3, underway, a)), wanted},
		"and beside what is newer and underway, which may fail": {headOf(entry(3, underway, a), entry(4, underway, a)), wanted},
		"a view that does not know it yet says nothing":         {headOf(entry(2, live, a)), wanted},
		"it gives way to what is newer and live":                {headOf(entry(3, underway, a), entry(4, live, a)), superseded},
		"and to what is newer and staged":                       {headOf(entry(3, underway, a), entry(4, staged, a)), superseded},
		"what is condemned is over":                             {headOf(entry(3, condemned, a)), late},
		"so is what is retired":                                 {headOf(entry(4, live, a)), late},
	} {
		if err := unwanted(c.head, 3); !c.want(err) {
			t.Errorf("%s: got %v", name, err)
		}
	}
}

func TestTroublesAreCountedFromTheFirst(t *testing.T) {
	s := troubles{since: map[string]time.Time{}}
	for n, want := range []time.Duration{0, 10 * time.Second, 20 * time.Second} {
		if got := s.last("web-1", now.Add(time.Duration(n)*10*time.Second)); got != want {
			t.Errorf("after %d tries: %s, want %s", n, got, want)
		}
	}
	if got := s.last("api-2", now.Add(time.Minute)); got != 0 {
		t.Errorf("another deployment has had trouble for %s", got)
	}
	s.forget("web-1")
	if got := s.last("web-1", now.Add(time.Minute)); got != 0 {
		t.Errorf("after it went well there has been trouble for %s", got)
	}
	for n := range 2 * maxTroubles {
		s.last(fmt.Sprint(n), now)
	}
	if len(s.since) > maxTroubles {
		t.Errorf("%d are remembered", len(s.since))
	}
}

func TestKeyOf(t *testing.T) {
	seen := map[string][]string{}
	for _, words := range [][]string{{}, {""}, {"", ""}, {"a"}, {"ab"}, {"a", "b"}, {"b", "a"}, {"a", "", "b"}} {
		for _, kind := range []string{"git", "docker"} {
			k := keyOf(kind, words...)
			if other, ok := seen[k]; ok || !messages.IsDigest(k) || k != keyOf(kind, words...) {
				t.Errorf("%s %q has the key %s, as %q", kind, words, k, other)
			}
			seen[k] = append([]string{kind}, words...)
		}
	}
}

func TestTheKeyOfARecipe(t *testing.T) {
	s := &sources{}
	words := func(edit func(*fulmarv1.GitSource)) string {
		t.Helper()
		g := &fulmarv1.GitSource{Url: "https://git.example/www", Recipe: &fulmarv1.GitSource_Dockerfile{Dockerfile: &fulmarv1.DockerfileRecipe{
			File: "Dockerfile", Path: "/unikernel", Args: map[string]string{"A": "1", "B": "2", "C": "3"},
		}}}
		edit(g)
		r, err := s.recipe(g)
		if err != nil {
			t.Fatal(err)
		}
		return strings.Join(r.words, "|")
	}
	plain := words(func(*fulmarv1.GitSource) {})
	for name, c := range map[string]struct {
		edit func(*fulmarv1.GitSource)
		same bool
	}{
		"the URL is no part of it":       {func(g *fulmarv1.GitSource) { g.Url = "git@git.example:www" }, true},
		"nor does what limits the build": {func(g *fulmarv1.GitSource) { g.Memory, g.MilliCpus = 512, 100 }, true},
		"a build argument does":          {func(g *fulmarv1.GitSource) { g.GetDockerfile().Args["A"] = "2" }, false},
		"and the file":                   {func(g *fulmarv1.GitSource) { g.GetDockerfile().File = "b" }, false},
		"and the stage":                  {func(g *fulmarv1.GitSource) { g.GetDockerfile().Target = "b" }, false},
		"and the path":                   {func(g *fulmarv1.GitSource) { g.GetDockerfile().Path = "/b" }, false},
		"and another recipe": {func(g *fulmarv1.GitSource) {
			g.Recipe = &fulmarv1.GitSource_Mirage{Mirage: &fulmarv1.MirageRecipe{Mirage: 4, Config: "config.ml", Target: "hvt"}}
		}, false},
	} {
		if got := words(c.edit); (got == plain) != c.same {
			t.Errorf("%s: %s beside %s", name, got, plain)
		}
	}
}

func TestABuildWaitsForOneThatRuns(t *testing.T) {
	w := newWorld(t)
	s := newSources(Config{}, nil)
	release, err := s.slot(t.Context(), w.log("web"))
	if err != nil {
		t.Fatal(err)
	}
	if _, err := s.slot(t.Context(), w.log("api")); !errors.Is(err, errBusy) {
		t.Errorf("beside one that runs: %v", err)
	}
	late, cancel := context.WithCancelCause(t.Context())
	cancel(messages.ErrLate)
	if _, err := s.slot(late, w.log("api")); !errors.Is(err, messages.ErrLate) {
		t.Errorf("when nobody wants it any more: %v", err)
	}
	got := make(chan error)
	go func() {
		_, err := s.slot(t.Context(), w.log("api"))
		got <- err
	}()
	release()
	if err := <-got; err != nil {
		t.Errorf("after it ended: %v", err)
	}
}

func TestABuildThatWaitsHasNotFailed(t *testing.T) {
	w := newWorld(t)
	s, l := w.replica(), w.log("api")
	for range cap(s.sources.slots) {
		s.sources.slots <- struct{}{}
	}
	_, err := s.make(t.Context(), plan{kind: "git", facts: &fulmarv1.Build{}, make: func(ctx context.Context, l *log, _ *os.File) error {
		_, err := s.sources.slot(ctx, l)
		return err
	}}, l)
	if !errors.Is(err, errBusy) {
		t.Errorf("beside those that run: %v", err)
	}
	var said []string
	err = buildlog.Read(bytes.NewReader(l.pack()), func(line buildlog.Line) error {
		said = append(said, line.Text)
		return nil
	})
	if diff := cmp.Diff([]string{"waits: 2 builds run here"}, said); diff != "" || err != nil {
		t.Errorf("its log is wrong: %v (-want +got):\n%s", err, diff)
	}
	if kept, err := w.Logs.List(t.Context()); !errors.Is(err, jetstream.ErrNoObjectsFound) {
		t.Errorf("a log is kept: %v, %v", kept, err)
	}
}
