package mirage_test

import (
	"bytes"
	"context"
	"crypto/rand"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"go.uber.org/goleak"

	fulmarv1 "fulmar/messages/fulmar/v1"
	"fulmar/services/builder/docker"
	"fulmar/services/builder/docker/dockertest"
	"fulmar/services/builder/mirage"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(dockertest.Main(m)) }

const base = "fulmar-opam:test"

// record is the script of a command that writes down how it was called, and goes on as it is told.
const record = `#!/bin/sh -e
{ printf '%s' "${0##*/}"; for a; do printf ' <%s>' "$a"; done; echo; } >> /home/opam/calls
`

// standIn makes a base image that has the names of the commands of a recipe, whose unikernel is the list of their calls
// and the sources that it was built from.
func standIn(t *testing.T) {
	t.Helper()
	api := dockertest.Client(t, "")
	files := append(dockertest.Programs(t, "chmod", "chown"),
		dockertest.File{Name: "etc/passwd", Body: []byte("root:x:0:0::/root:/bin/sh\nopam:x:1000:1000::/home/opam:/bin/sh\n")})
	for name, script := range map[string]string{
		"sudo": "", "git": "", "dune": "",
		"opam": `case "$1" in
			--version) echo 2.1.5;;
			exec) shift 2; exec "$@";;
			install) touch /home/opam/.opam/download-cache/archive /home/opam/.cache/dune/rule;;
			esac`,
		"mirage": `case "$1" in
			build) mkdir dist; cat /home/opam/calls main.ml config.ml > dist/unikernel.${TARGET:-hvt};;
			esac`,
		"make": `case "$1" in
			depend) ls /home/opam/.opam/download-cache; test ! -e main.ml;;
			*) cat /home/opam/calls main.ml config.ml > www.${TARGET:-hvt};;
			esac`,
	} {
		files = append(files, dockertest.File{Name: "usr/local/bin/" + name, Body: []byte(record + script + "\n")})
	}
	dockertest.Import(t, api, "fulmar-root:test", files...)
	e := engine(t)
	r := &recorder{}
	id, err := e.Build(t.Context(), docker.Build{Name: t.Name(), Dockerfile: "Dockerfile", Network: "none", Limit: time.Minute, Builder: docker.BuildKit}, bytes.NewReader(dockertest.Archive(t, dockertest.File{
		Name: "Dockerfile", Body: []byte("FROM fulmar-root:test\nRUN mkdir -p /home/opam/.opam /home/opam/opam-repository && chown -R 1000:1000 /home/opam\n"),
	})), r.log)
	if err != nil {
		t.Fatal(err)
	}
	if err := api.ImageTag(t.Context(), id, base); err != nil {
		t.Fatal(err)
	}
	dockertest.RemoveImage(t, api, base)
	if err := e.Discard(t.Context(), id); err != nil {
		t.Fatal(err)
	}
}

func engine(t *testing.T) *docker.Engine {
	t.Helper()
	e, err := docker.New(docker.Config{Owner: t.Name()})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { e.Close() })
	return e
}

// recorder keeps what became of the steps of a build.
type recorder struct {
	mu    sync.Mutex
	lines []docker.Line
}

func (r *recorder) log(l docker.Line) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.lines = append(r.lines, l)
}

// states lists the states of the steps whose instruction has a text.
func (r *recorder) states(text string) (states []docker.State) {
	r.mu.Lock()
	defer r.mu.Unlock()
	for _, l := range r.lines {
		if strings.Contains(l.Step, text) && l.State != docker.Output && l.State != docker.Started {
			states = append(states, l.State)
		}
	}
	return states
}

func (r *recorder) said(text string) bool {
	r.mu.Lock()
	defer r.mu.Unlock()
	for _, l := range r.lines {
		if l.State == docker.Output && l.Text == text {
			return true
		}
	}
	return false
}

// project is a repository of a unikernel.
type project struct {
	engine  *docker.Engine
	builder docker.Builder
	recipe  *fulmarv1.MirageRecipe
	config  string
	sources string
}

// build gives the unikernel and how it was built.
func (p *project) build(t *testing.T) (string, *recorder) {
	t.Helper()
	text, err := mirage.Dockerfile(p.recipe, mirage.Options{Base: base, Mounts: p.builder == docker.BuildKit})
	if err != nil {
		t.Fatal(err)
	}
	files := dockertest.Archive(t, dockertest.File{Name: ".fulmar.Dockerfile", Body: []byte(text)},
		dockertest.File{Name: "src/config.ml", Body: []byte(p.config)}, dockertest.File{Name: "src/main.ml", Body: []byte(p.sources)})
	b := docker.Build{Name: t.Name(), Dockerfile: ".fulmar.Dockerfile", Network: "none", Limit: time.Minute, Builder: p.builder}
	r := &recorder{}
	id, err := p.engine.Build(t.Context(), b, bytes.NewReader(files), r.log)
	if err != nil {
		t.Fatalf("Build: %v\n%v", err, r.lines)
	}
	defer p.engine.Discard(context.WithoutCancel(t.Context()), id)
	var got bytes.Buffer
	if err := p.engine.Extract(t.Context(), id, mirage.Result(p.recipe), &got, 1<<20); err != nil {
		t.Fatal(err)
	}
	return got.String(), r
}

func TestRecipesRunOnAnEngine(t *testing.T) {
	standIn(t)
	commit := strings.Repeat("0123456789", 4)
	evil := `; rm -rf / $(id) ` + "`id`" + ` "' \`
	install := map[uint32]string{3: "<ocaml-freestanding> <mirage<4.0.0>", 4: "<mirage>=4.0.0> <opam-monorepo>"}
	for _, builder := range []docker.Builder{docker.BuildKit, docker.Classic} {
		for version, target := range map[uint32]string{3: "hvt", 4: "spt"} {
			t.Run(string(builder)+" mirage "+string('0'+rune(version)), func(t *testing.T) {
				p := &project{engine: engine(t), builder: builder, config: rand.Text() + "\n", sources: "one\n", recipe: &fulmarv1.MirageRecipe{
					Mirage: version, Config: "src/config.ml", Target: target, Args: []string{"--name=a b", evil}, OpamRepository: commit,
					Instructions: []string{"ENV TARGET=" + target, "RUN dune extra"},
				}}
				configure := "mirage <configure> <-f> <config.ml> <-t> <hvt> <--name=a b> <" + evil + ">"
				build, first, second := "make", "dune <extra>", "opam <exec> <--> "+bracket(configure)+"\n"+configure
				if version == 4 {
					configure = "mirage <configure> <-f> <config.ml> <-o> <unikernel> <-t> <spt> <--name=a b> <" + evil + ">"
					build, second, first = "mirage <build>", first, "opam <exec> <--> "+bracket(configure)+"\n"+configure
				}
				want := strings.Join([]string{
					"sudo <apt-get> <update>", "sudo <apt-get> <install> <-y> <m4> <pkg-config>",
					"git <fetch> <origin> <" + commit + ">", "git <reset> <--hard> <" + commit + ">", "opam <update>", "opam <--version>", "opam <install> " + install[version],
					first, second, "opam <exec> <--> <make> <depend>\nmake <depend>",
					"opam <exec> <--> " + bracket(configure) + "\n" + configure,
					"opam <exec> <--> " + bracket(build) + "\n" + build,
				}, "\n") + "\n"
				got, _ := p.build(t)
				if diff := cmp.Diff(want+p.sources+p.config, got); diff != "" {
					t.Errorf("the commands are wrong (-want +got):\n%s", diff)
				}
				p.sources = "two\n"
				got, r := p.build(t)
				if !strings.HasSuffix(got, p.sources+p.config) {
					t.Errorf("the new sources are not in %q", got)
				}
				if diff := cmp.Diff([]docker.State{docker.Cached}, r.states(`"depend"`)); diff != "" {
					t.Errorf("new sources make dependencies anew (-want +got):\n%s", diff)
				}
				if builder == docker.Classic {
					return // what is kept over a new configuration is for BuildKit to show
				}
				p.config += "more\n"
				_, r = p.build(t)
				if diff := cmp.Diff([]docker.State{docker.Done}, r.states(`"depend"`)); diff != "" || !r.said("archive") {
					t.Errorf("a new configuration does not make dependencies anew, or without what is kept (-want +got):\n%s", diff)
				}
			})
		}
	}
}

// bracket writes the words of a call as arguments of another.
func bracket(call string) string {
	name, args, _ := strings.Cut(call, " ")
	return strings.TrimSpace("<" + name + "> " + args)
}
