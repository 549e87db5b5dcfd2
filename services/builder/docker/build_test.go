package docker_test

import (
	"bytes"
	"context"
	"crypto/rand"
	"errors"
	"io"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"testing"
	"testing/iotest"
	"time"

	"github.com/docker/docker/api/types/container"
	"github.com/docker/docker/api/types/events"
	"github.com/docker/docker/api/types/filters"
	"github.com/docker/docker/api/types/image"
	"github.com/docker/docker/client"
	"github.com/google/go-cmp/cmp"

	"fulmar/messages"
	fulmarv1 "fulmar/messages/fulmar/v1"
	"fulmar/services/builder/docker"
	"fulmar/services/builder/docker/dockertest"
)

const base = "fulmar-base:test"

// recorder keeps the lines of a log.
type recorder struct {
	mu    sync.Mutex
	lines []docker.Line
	wait  map[string]chan struct{} // closed when a line has the text
}

func (r *recorder) log(l docker.Line) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.lines = append(r.lines, l)
	for text, seen := range r.wait {
		if strings.Contains(l.Text, text) {
			delete(r.wait, text)
			close(seen)
		}
	}
}

// saying gives a channel that is closed when a line has the text.
func (r *recorder) saying(text string) chan struct{} {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.wait == nil {
		r.wait = map[string]chan struct{}{}
	}
	r.wait[text] = make(chan struct{})
	return r.wait[text]
}

// of lists what became of the step whose name has the text.
func (r *recorder) of(text string) (got []string) {
	r.mu.Lock()
	defer r.mu.Unlock()
	for _, l := range r.lines {
		if strings.Contains(l.Step, text) {
			got = append(got, strings.TrimSpace(string(l.State)+" "+l.Text))
		}
	}
	return got
}

func (r *recorder) String() string {
	var s strings.Builder
	for _, l := range r.lines {
		s.WriteString(l.String() + "\n")
	}
	return s.String()
}

// site is a world for builds: an engine with a base image, of whose images a build may leave none but those that are said.
type site struct {
	*docker.Engine
	api    *client.Client
	before map[string]bool
}

func newSite(t *testing.T, host string) *site {
	t.Helper()
	e, api := world(t, host)
	dockertest.Import(t, api, base, dockertest.Programs(t)...)
	s := &site{Engine: e, api: api, before: map[string]bool{}}
	for _, i := range s.images(t) {
		s.before[i] = true
	}
	return s
}

// images lists the references of images; one without is an id.
func (s *site) images(t *testing.T) (found []string) {
	t.Helper()
	all, err := s.api.ImageList(context.WithoutCancel(t.Context()), image.ListOptions{})
	if err != nil {
		t.Fatal(err)
	}
	for _, i := range all {
		if found = append(found, i.RepoTags...); len(i.RepoTags) == 0 || i.RepoTags[0] == "<none>:<none>" {
			found = append(found, i.ID)
		}
	}
	return found
}

// left lists the images that were not there before, but those that the classic builder keeps.
func (s *site) left(t *testing.T) (left []string) {
	t.Helper()
	for _, i := range s.images(t) {
		if !s.before[i] && !strings.HasPrefix(i, "fulmar-cache:") {
			left = append(left, i)
		}
	}
	return left
}

// kept lists what the classic builder keeps, and removes it at the end of the test.
func (s *site) kept(t *testing.T) (kept []string) {
	t.Helper()
	for _, i := range s.images(t) {
		if strings.HasPrefix(i, "fulmar-cache:") {
			kept = append(kept, i)
			dockertest.RemoveImage(t, s.api, i)
		}
	}
	return kept
}

// try builds a Dockerfile with some files beside it.
func (s *site) try(t *testing.T, b docker.Build, dockerfile string, files ...dockertest.File) (*recorder, string, error) {
	t.Helper()
	r := &recorder{}
	id, err := s.Build(t.Context(), with(b), archive(t, dockerfile, files...), r.log)
	return r, id, err
}

func with(b docker.Build) docker.Build {
	b.Network, b.Limit = "none", time.Minute
	if b.Name == "" {
		b.Name = "test"
	}
	if b.Dockerfile == "" {
		b.Dockerfile = "Dockerfile"
	}
	return b
}

func archive(t *testing.T, dockerfile string, files ...dockertest.File) io.Reader {
	t.Helper()
	return bytes.NewReader(dockertest.Archive(t, append(files, dockertest.File{Name: "Dockerfile", Body: []byte(dockerfile)})...))
}

// file gives a file of an image that was built, and discards the image.
func (s *site) file(t *testing.T, id, path string) string {
	t.Helper()
	var got bytes.Buffer
	if err := s.Extract(t.Context(), id, path, &got, 1<<20); err != nil {
		t.Error(err)
	}
	if err := s.Discard(t.Context(), id); err != nil {
		t.Error(err)
	}
	return got.String()
}

// builders runs a test with each builder of the engine.
func builders(t *testing.T, test func(*testing.T, docker.Builder)) {
	for _, b := range []docker.Builder{docker.BuildKit, docker.Classic} {
		t.Run(string(b), func(t *testing.T) { test(t, b) })
	}
}

func TestABuildGivesAnImageAndItsLog(t *testing.T) {
	builders(t, func(t *testing.T, builder docker.Builder) {
		s := newSite(t, "")
		dockerfile := "FROM " + base + " AS build\nARG NAME=nobody\nCOPY text /src/text\nRUN cat /src/text && echo $NAME && cp /src/text /result && echo -n no end\n" +
			"FROM scratch AS last\nCOPY --from=build /result /unikernel\nFROM scratch AS other\nCOPY text /other\n"
		b := docker.Build{Builder: builder, Args: map[string]string{"NAME": "jo"}, Target: "last"}
		word := rand.Text() // that no earlier run has cached
		text := dockertest.File{Name: "text", Body: []byte(word + "\n")}
		r, id, err := s.try(t, b, dockerfile, text)
		if err != nil {
			t.Fatalf("Build: %v\n%s", err, r)
		}
		if diff := cmp.Diff([]string{"started", word, "jo", "no end", "done"}, r.of("RUN cat")); diff != "" {
			t.Errorf("the log of the command is wrong (-want +got):\n%s\n%s", diff, r)
		}
		if got := s.file(t, id, "/unikernel"); got != word+"\n" {
			t.Errorf("the file in the image is %q", got)
		}
		r, again, err := s.try(t, b, dockerfile, text)
		if err != nil {
			t.Fatal(err)
		}
		if diff := cmp.Diff([]string{"started", "cached"}, r.of("RUN cat")); diff != "" {
			t.Errorf("the same again is not cached (-want +got):\n%s\n%s", diff, r)
		}
		if got := s.file(t, again, "/unikernel"); got != word+"\n" {
			t.Errorf("the file in the image is %q", got)
		}
		if left := s.left(t); len(left) != 0 {
			t.Errorf("images are left: %v", left)
		}
		if kept := s.kept(t); builder == docker.Classic && len(kept) != 2 || builder == docker.BuildKit && len(kept) != 0 {
			t.Errorf("for the next build are kept: %v", kept)
		}
	})
}

func TestADockerfileThatFailsIsRefused(t *testing.T) {
	builders(t, func(t *testing.T, builder docker.Builder) {
		s := newSite(t, "")
		for dockerfile, want := range map[string]string{
			"FROM " + base + "\nRUN echo " + t.Name() + " && echo why && exit 3\n": "RUN echo",
			"FROM " + base + "\nCOPY absent /x\n":                                  "absent",
			"FROM " + base + "\nNONSENSE\n":                                        "unknown instruction: NONSENSE",
			"":                                                                     "",
		} {
			r, _, err := s.try(t, docker.Build{Builder: builder}, dockerfile)
			if refusal, ok := messages.AsRefusal(err); !ok || refusal.Code != fulmarv1.ReasonCode_REASON_CODE_BUILD || !strings.Contains(err.Error(), want) {
				t.Errorf("Build of %q = %v, want that it is refused with %q", dockerfile, err, want)
			}
			if strings.Contains(dockerfile, "exit 3") {
				got := r.of("RUN echo")
				if len(got) != 4 || got[1] != t.Name() || got[2] != "why" || !strings.HasPrefix(got[3], "failed ") || !strings.Contains(got[3], ": 3") {
					t.Errorf("the log of the failure is %q", got)
				}
			}
		}
		for want, b := range map[string]docker.Build{"absent.Dockerfile": {Dockerfile: "absent.Dockerfile"}, "nowhere": {Target: "nowhere"}} {
			b.Builder = builder
			_, _, err := s.try(t, b, "FROM "+base+"\n")
			if refusal, ok := messages.AsRefusal(err); !ok || refusal.Code != fulmarv1.ReasonCode_REASON_CODE_BUILD || !strings.Contains(err.Error(), want) {
				t.Errorf("Build of %+v = %v, want that it is refused with %q", b, err, want)
			}
		}
		if left := s.left(t); len(left) != 0 {
			t.Errorf("images are left: %v", left)
		}
		s.kept(t)
	})
}

func TestABuildHasItsTimeAndLeavesNothing(t *testing.T) {
	builders(t, func(t *testing.T, builder docker.Builder) {
		s := newSite(t, "")
		ended := s.ends(t)
		b := with(docker.Build{Builder: builder})
		b.Limit = 2 * time.Second
		_, err := s.Build(t.Context(), b, archive(t, "FROM "+base+"\nRUN sleep "+nap()+"\n"), func(docker.Line) {})
		if refusal, ok := messages.AsRefusal(err); !ok || refusal.Code != fulmarv1.ReasonCode_REASON_CODE_BUILD || !strings.Contains(err.Error(), "the build took longer than its limit of 2s") {
			t.Errorf("Build = %v, want that its time was over", err)
		}
		if builder == docker.Classic { // BuildKit has ended when Build does
			<-ended
		}
		s.quiet(t)
	})
}

func TestABuildThatIsBrokenOffEndsInTheEngine(t *testing.T) {
	builders(t, func(t *testing.T, builder docker.Builder) {
		s := newSite(t, "")
		ended := s.ends(t)
		ctx, cancel := context.WithCancelCause(t.Context())
		defer cancel(nil)
		r := &recorder{}
		begun := r.saying("begun")
		go func() {
			<-begun
			cancel(errors.New("a newer one is there"))
		}()
		_, err := s.Build(ctx, with(docker.Build{Builder: builder}), archive(t, "FROM "+base+"\nRUN touch /x && echo begun && sleep "+nap()+"\nRUN true\n"), r.log)
		if err == nil || !strings.Contains(err.Error(), "a newer one is there") {
			t.Errorf("Build = %v, want why it was broken off\n%s", err, r)
		}
		if builder == docker.Classic {
			<-ended
		}
		s.quiet(t)
	})
}

// ends gives a channel that tells when the engine has removed a container.
func (s *site) ends(t *testing.T) chan struct{} {
	t.Helper()
	ctx, cancel := context.WithCancel(context.WithoutCancel(t.Context()))
	messages, failures := s.api.Events(ctx, eventsOf("destroy"))
	ended, over := make(chan struct{}), make(chan struct{})
	go func() {
		defer close(over)
		for first := true; ; first = false {
			select {
			case <-messages:
				if first {
					close(ended)
				}
			case <-failures:
				return
			}
		}
	}()
	t.Cleanup(func() {
		cancel()
		<-over
	})
	return ended
}

// quiet sees that the engine is left as it was.
func (s *site) quiet(t *testing.T) {
	t.Helper()
	if found := processes(t); len(found) != 0 {
		t.Errorf("there still are %q", found)
	}
	if left := s.left(t); len(left) != 0 {
		t.Errorf("images are left: %v", left)
	}
	s.kept(t)
	all, err := s.api.ContainerList(t.Context(), container.ListOptions{All: true, Filters: filters.NewArgs(filters.Arg("ancestor", base))})
	if err != nil || len(all) != 0 {
		t.Errorf("containers are left: %v, %v", all, err)
	}
}

func TestAContextThatEndsTooEarlySaysWhy(t *testing.T) {
	builders(t, func(t *testing.T, builder docker.Builder) {
		s := newSite(t, "")
		broken := io.MultiReader(io.LimitReader(archive(t, "FROM "+base+"\n"), 600), iotest.ErrReader(errors.New("the repository is gone")))
		_, err := s.Build(t.Context(), with(docker.Build{Builder: builder}), broken, func(docker.Line) {})
		if _, ok := messages.AsRefusal(err); ok || err == nil || !strings.Contains(err.Error(), "the repository is gone") {
			t.Errorf("Build = %v, want why its context ended", err)
		}
		s.quiet(t)
	})
}

func eventsOf(action string) events.ListOptions {
	return events.ListOptions{Filters: filters.NewArgs(filters.Arg("type", "container"), filters.Arg("event", action))}
}

// nap is a number of seconds that no other test sleeps.
func nap() string { return strconv.Itoa(1_000_000 + os.Getpid()) }

// processes lists those that sleep in builds of this test.
func processes(t *testing.T) (found []string) {
	t.Helper()
	all, err := filepath.Glob("/proc/[0-9]*/cmdline")
	if err != nil {
		t.Fatal(err)
	}
	for _, path := range all {
		if line, err := os.ReadFile(path); err == nil && strings.HasPrefix(string(line), "sleep\x00"+nap()) {
			found = append(found, strings.ReplaceAll(string(line), "\x00", " "))
		}
	}
	return found
}
