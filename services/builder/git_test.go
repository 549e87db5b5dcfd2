package builder

import (
	"crypto/rand"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/docker/docker/client"

	"fulmar/bus"
	"fulmar/messages"
	fulmarv1 "fulmar/messages/fulmar/v1"
	"fulmar/services/builder/docker/dockertest"
)

const base = "fulmar-builder-base:test"

// hello is a repository of examples/hello with a Dockerfile that compiles it.
func (w *world) hello() (url string) {
	w.t.Helper()
	files := map[string]string{"Dockerfile": strings.Join([]string{
		"FROM " + base + " AS build", "COPY . /src", "ARG GREETING=none", "RUN echo says $GREETING && make -C /src hello.spt",
		"FROM scratch", "COPY --from=build /src/hello.spt /unikernel",
	}, "\n")}
	root := "../../examples/hello"
	for _, pattern := range []string{"Makefile", "unikernel/*"} {
		found, err := filepath.Glob(filepath.Join(root, pattern))
		if err != nil || len(found) == 0 {
			w.t.Fatalf("%s: %v", pattern, err)
		}
		for _, path := range found {
			text, err := os.ReadFile(path)
			if err != nil {
				w.t.Fatal(err)
			}
			name, err := filepath.Rel(root, path)
			if err != nil {
				w.t.Fatal(err)
			}
			files[name] = string(text)
		}
	}
	return w.repository("hello", files)
}

// slow is a repository whose build says that it began and goes on until it is ended, unless FAST is given.
func (w *world) slow() (url string) {
	w.t.Helper()
	return w.repository("slow", map[string]string{"Dockerfile": "FROM " + base + "\nARG FAST\nRUN echo begins; test -n \"$FAST\" || sleep 1000\n"})
}

// programs makes the base image.
func (w *world) programs(api *client.Client) {
	w.t.Helper()
	dockertest.Import(w.t, api, base, dockertest.Programs(w.t)...)
}

func TestAnImageIsBuiltFromGit(t *testing.T) {
	w := newWorld(t)
	none := w.engine
	api := w.withEngine()
	dockertest.Import(t, api, base, dockertest.Compiler(t)...)
	url := w.hello()
	stop := w.start()
	generation := w.request(deployKind, "web", deployFrom(dockerfileOf(url)))
	w.await(generation, messages.Accepted)
	first := w.await(generation, messages.Built).GetDeployment().GetUnits()[0]
	commit := w.git(filepath.Join(w.root, "hello"), "rev-parse", "HEAD")
	if b := first.GetBuild(); first.GetTarget() != "spt" || b.GetCommit() != commit || b.GetCached() || b.GetSource() != "git+"+url+"#main" || !strings.HasPrefix(b.GetImageDigest(), "sha256:") {
		t.Errorf("built %v", first)
	}
	log := strings.Join(w.kept("web-1.web"), "\n")
	for _, want := range []string{"#main is commit " + commit, "RUN echo says", "says none", "gcc @gcc.flags", "made image " + first.GetImage()} {
		if !strings.Contains(log, want) {
			t.Errorf("its log has no %q:\n%s", want, log)
		}
	}
	stop()

	w.engine = none // another builder, which has no engine, and the commit by its name
	stop = w.start()
	named := strings.Replace(dockerfileOf(url), `"main"`, `"`+commit+`"`, 1)
	generation = w.request(deployKind, "api", strings.Replace(deployFrom(named), `"port":80`, `"port":81`, 1))
	w.await(generation, messages.Accepted)
	if u := w.await(generation, messages.Built).GetDeployment().GetUnits()[0]; u.GetImage() != first.GetImage() || !u.GetBuild().GetCached() || u.GetBuild().GetKey() != first.GetBuild().GetKey() {
		t.Errorf("built %v", u)
	}
	stop()

	w.engine = ""
	w.start()
	keys := map[string]bool{first.GetBuild().GetKey(): true}
	for _, image := range []string{ // what is built anew: another recipe, and another commit
		strings.Replace(dockerfileOf(url), `"dockerfile":{}`, `"dockerfile":{"args":{"GREETING":"hi"}}`, 1),
		dockerfileOf(url),
	} {
		if len(keys) == 2 {
			w.commit("hello", map[string]string{"README": "changed"})
		}
		generation = w.request(deployKind, "web", deployFrom(image))
		w.await(generation, messages.Accepted)
		u := w.await(generation, messages.Built).GetDeployment().GetUnits()[0]
		keys[u.GetBuild().GetKey()] = true
		if u.GetBuild().GetCached() || u.GetBuild().GetDiffersFrom() != "" || u.GetImage() != first.GetImage() { // the same bytes nevertheless
			t.Errorf("%s: built %v", image, u)
		}
	}
	if len(keys) != 3 {
		t.Errorf("there are %d keys", len(keys))
	}

	if err := w.Images.Delete(t.Context(), first.GetImage()); err != nil {
		t.Fatal(err)
	}
	generation = w.request(deployKind, "web", deployFrom(named))
	w.await(generation, messages.Accepted)
	if u := w.await(generation, messages.Built).GetDeployment().GetUnits()[0]; u.GetBuild().GetCached() || u.GetBuild().GetDiffersFrom() != "" || u.GetImage() != first.GetImage() {
		t.Errorf("after its image was removed: built %v", u)
	}
}

func TestABuildThatFailsKeepsItsLog(t *testing.T) {
	w := newWorld(t)
	w.programs(w.withEngine())
	url := w.repository("broken", map[string]string{"Dockerfile": "FROM " + base + "\nRUN echo one; echo two; exit 7\n", "Text.Dockerfile": "FROM " + base + "\nRUN echo text >/unikernel\n", "Bad.Dockerfile": "FORM scratch\n"})
	w.start()
	for recipe, want := range map[string][]string{
		`"dockerfile":{}`:                         {"unit web: ", `"one", "two"`, "7", "fulmar logs --build web-"},
		`"dockerfile":{"file":"Text.Dockerfile"}`: {"unit web: "},
		`"dockerfile":{"file":"Bad.Dockerfile"}`:  {"unit web: ", "FORM"},
		`"dockerfile":{"file":"No.Dockerfile"}`:   {"unit web: ", "No.Dockerfile"},
		`"directory":"none","dockerfile":{}`:      {"unit web: ", "none"},
		`"ref":"none","dockerfile":{}`:            {"unit web: ", "none"},
	} {
		image := strings.Replace(strings.Replace(dockerfileOf(url), `"ref":"main",`, "", 1), `"dockerfile":{}`, recipe, 1)
		generation := w.request(deployKind, "web", deployFrom(image))
		w.await(generation, messages.Accepted)
		e := w.await(generation, messages.Failed)
		for _, want := range want {
			if !strings.Contains(e.GetReason(), want) {
				t.Errorf("%s failed because %s; want %q", recipe, e.GetReason(), want)
			}
		}
		if recipe == `"dockerfile":{}` {
			log := w.kept(e.GetDeployment().GetUnits()[0].GetBuild().GetLog())
			if text := strings.Join(log, "\n"); !strings.Contains(text, "one\n") || !strings.Contains(log[len(log)-1], "failed after ") {
				t.Errorf("the log is\n%s", text)
			}
			if e.GetReasonCode() != fulmarv1.ReasonCode_REASON_CODE_BUILD {
				t.Errorf("it failed with %s", e.GetReasonCode())
			}
		}
	}
	if builds, err := w.Builds.All(t.Context()); err != nil || len(builds) != 0 {
		t.Errorf("records of builds: %v, %v", builds, err)
	}
}

func TestNothingIsFetchedForAnEngineThatIsNotThere(t *testing.T) {
	w := newWorld(t)
	url := w.repository("www", map[string]string{"Dockerfile": "FROM scratch\n"})
	w.start()
	generation := w.request(deployKind, "web", deployFrom(dockerfileOf(url)))
	w.await(generation, messages.Accepted)
	if e := w.await(generation, messages.Failed); !strings.Contains(e.GetReason(), "ask the docker engine: Cannot connect to the Docker daemon at "+w.engine) {
		t.Errorf("it failed because %s", e.GetReason())
	}
	if log := w.kept("web-1.web"); len(log) != 1 || !strings.Contains(log[0], "failed after ") {
		t.Errorf("the log is\n%s", strings.Join(log, "\n"))
	}
}

func TestABuildEndsWhenNobodyWantsIt(t *testing.T) {
	w := newWorld(t)
	w.programs(w.withEngine())
	url := w.slow()
	path, _ := w.image(1)
	w.start()
	until := w.hears("web")
	begin := func() uint64 {
		t.Helper()
		generation := w.request(deployKind, "web", deployFrom(dockerfileOf(url)))
		w.await(generation, messages.Accepted)
		until("begins")
		return generation
	}
	superseded := func(old, by uint64) {
		t.Helper()
		if e := w.await(old, messages.Failed); e.GetReasonCode() != fulmarv1.ReasonCode_REASON_CODE_SUPERSEDED || !strings.Contains(e.GetReason(), messages.DeploymentName("web", by)) {
			t.Errorf("it failed because %s", e.GetReason())
		}
	}
	old := begin()
	newer := w.request(deployKind, "web", deployOf(path))
	w.await(newer, messages.Accepted)
	w.serve(w.await(newer, messages.Built))
	superseded(old, newer)

	old = begin()
	retired := w.request(retireKind, "web", "")
	w.await(retired, messages.Accepted)
	w.serve(w.await(retired, messages.Built))
	superseded(old, retired)

	old = begin()
	ended := w.hears("web")
	if _, err := w.Heads.Edit(t.Context(), "web", func(h *fulmarv1.Head) (*fulmarv1.Head, error) {
		return messages.Expire(h, old, time.Now().Add(time.Hour), "late")
	}); err != nil {
		t.Fatal(err)
	}
	ended("failed after ")
	w.wantChain("web", old, messages.Accepted) // ipam says that it failed
	w.awaitNoRecord()
}

func TestABuildHasALimit(t *testing.T) {
	w := newWorld(t)
	w.programs(w.withEngine())
	w.start()
	image := strings.Replace(dockerfileOf(w.slow()), `"dockerfile"`, `"limit":"2s","dockerfile"`, 1)
	generation := w.request(deployKind, "web", deployFrom(image))
	w.await(generation, messages.Accepted)
	if e := w.await(generation, messages.Failed); !strings.Contains(e.GetReason(), "took longer than its limit of 2s") {
		t.Errorf("it failed because %s", e.GetReason())
	}
}

func TestEqualBuildsOfTwoReplicasRunOnce(t *testing.T) {
	w := newWorld(t)
	w.programs(w.withEngine())
	body, digest := w.guest()
	url := w.repository("equal", map[string]string{"Dockerfile": "FROM " + base + "\nCOPY guest /unikernel\nRUN sleep 1\n", "guest": string(body)})
	w.start()
	w.start()
	stacks := []string{"a", "b", "c", "d"}
	var all sync.WaitGroup
	for n, stack := range stacks {
		all.Go(func() {
			_, err := w.Request(t.Context(), deployKind, stack, []byte(strings.Replace(deployFrom(dockerfileOf(url)), `"port":80`, fmt.Sprintf(`"port":%d`, 80+n), 1)))
			if err != nil {
				t.Error(err)
			}
		})
	}
	all.Wait()
	built, cached := 0, 0
	for seen := 0; seen < len(stacks); {
		e := w.next()
		if e.GetVerb() == string(messages.Accepted) {
			continue
		}
		seen++
		u := e.GetDeployment().GetUnits()[0]
		if e.GetVerb() != string(messages.Built) || u.GetImage() != digest {
			t.Fatalf("%s: %s", e.GetVerb(), e.GetReason())
		}
		if built++; u.GetBuild().GetCached() {
			cached++
		}
	}
	if built-cached != 1 {
		t.Errorf("of %d, %d were cached", built, cached)
	}
	if logs, err := w.Logs.List(t.Context()); err != nil || len(logs) != 1 {
		t.Errorf("logs: %v, %v", logs, err)
	}
}

func TestABuilderIsKilledWhileItBuilds(t *testing.T) {
	server, err := bus.StartServer(t.TempDir(), "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(server.Stop)
	w := newWorldOn(t, server)
	w.programs(w.withEngine())
	body, digest := w.guest()
	url := w.repository("killed", map[string]string{"Dockerfile": "FROM " + base + "\nCOPY guest /unikernel\nRUN echo begins; sleep 2\n", "guest": string(body)})
	kill := w.process()
	until := w.hears("web")
	generation := w.request(deployKind, "web", deployFrom(dockerfileOf(url)))
	w.await(generation, messages.Accepted)
	until("begins")
	begin := time.Now()
	kill()
	w.start()
	if u := w.await(generation, messages.Built).GetDeployment().GetUnits()[0]; u.GetImage() != digest {
		t.Errorf("built %v", u)
	}
	if took := time.Since(begin); took > claimTerm {
		t.Errorf("it took %s, although nobody else wanted it", took)
	}
	w.wantChain("web", generation, messages.Accepted, messages.Built)
}

func TestTheEngineIsStartedAgainWhileItBuilds(t *testing.T) {
	w := newWorld(t)
	engine := dockertest.Start(t)
	w.engine, w.patience = engine.Host(), time.Minute
	w.programs(w.watched(w.engine))
	body, digest := w.guest()
	url := w.repository("restarted", map[string]string{"Dockerfile": "FROM " + base + "\nCOPY guest /unikernel\nRUN echo begins; sleep 2\n", "guest": string(body)})
	w.start()
	until := w.hears("web")
	generation := w.request(deployKind, "web", deployFrom(dockerfileOf(url)))
	w.await(generation, messages.Accepted)
	until("begins")
	engine.Kill(t)
	until("failed after ")
	engine.Restart(t)
	if u := w.await(generation, messages.Built).GetDeployment().GetUnits()[0]; u.GetImage() != digest {
		t.Errorf("built %v", u)
	}
}

// TestARecipeOfMirage builds by the recipe, with commands of their names in the place of opam and mirage.
func TestARecipeOfMirage(t *testing.T) {
	w := newWorld(t)
	script := func(name, text string) dockertest.File {
		return dockertest.File{Name: "bin/" + name, Body: []byte("#!/bin/sh\n" + text + "\n")}
	}
	dockertest.Import(t, w.withEngine(), base, append(dockertest.Programs(t),
		dockertest.File{Name: "home/opam/", Mode: 0o1777}, script("sudo", "true"), script("make", "true"),
		script("opam", `case $1 in --version) echo 2.1.0 ;; exec) shift 2; exec "$@" ;; esac`),
		script("mirage", `echo mirage "$@"; case $1 in build) mkdir -p dist && cp guest dist/unikernel.spt ;; esac`),
	)...)
	body, digest := w.guest()
	url := w.repository("mirage", map[string]string{"config.ml": "", "guest": string(body)})
	w.start()
	unlike := "--unlike=" + rand.Text() // other recipes, whose layers the engine may know
	image := fmt.Sprintf(`{"git":{"url":%q,"mirage":{"mirage":4,"target":"spt","args":[%q],"base":%q}}}`, url, unlike, base)
	for _, cached := range []bool{false, true} {
		generation := w.request(deployKind, "web", deployFrom(image))
		w.await(generation, messages.Accepted)
		if u := w.await(generation, messages.Built).GetDeployment().GetUnits()[0]; u.GetImage() != digest || u.GetBuild().GetCached() != cached {
			t.Errorf("built %v", u)
		}
	}
	if log := strings.Join(w.kept("web-1.web"), "\n"); !strings.Contains(log, "mirage configure -f config.ml -o unikernel -t spt "+unlike+"\n") {
		t.Errorf("the log is\n%s", log)
	}
}
