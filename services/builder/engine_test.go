package builder

import (
	"context"
	"crypto/rand"
	"encoding/json"
	"fmt"
	"io"
	"log/slog"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/docker/docker/api/types/container"
	"github.com/docker/docker/client"
	"github.com/nats-io/nats.go"
	"github.com/prometheus/client_golang/prometheus"

	"fulmar/bus"
	"fulmar/messages"
	fulmarv1 "fulmar/messages/fulmar/v1"
	"fulmar/services/builder/buildlog"
	"fulmar/services/builder/docker/dockertest"
)

// withEngine gives the builders of a world the engine of the tests, in which they may leave no container, and no file of
// this machine.
func (w *world) withEngine() *client.Client {
	w.t.Helper()
	w.engine = ""
	return w.watched("")
}

// watched sees at the end of the test that nothing is left in an engine.
func (w *world) watched(host string) *client.Client {
	api := dockertest.Client(w.t, host)
	w.t.Cleanup(func() {
		left, err := api.ContainerList(context.WithoutCancel(w.t.Context()), container.ListOptions{All: true})
		if err != nil || len(left) != 0 {
			w.t.Errorf("containers are left: %v, %v", left, err)
		}
		files, err := filepath.Glob(w.temp + "/*/*/*")
		if err != nil || len(files) != 0 {
			w.t.Errorf("files are left: %v, %v", files, err)
		}
	})
	return api
}

// guest is a Solo5 image.
func (w *world) guest() (body []byte, digest string) {
	w.t.Helper()
	path, digest := w.image(1)
	body, err := os.ReadFile(path)
	if err != nil {
		w.t.Fatal(err)
	}
	return body, digest
}

// repository makes a repository of files below the root and gives its URL. Its Dockerfiles are unlike all others, of which
// the engine may know the layers.
func (w *world) repository(name string, files map[string]string) string {
	w.t.Helper()
	for file, text := range files {
		if strings.HasSuffix(file, "Dockerfile") {
			files[file] = strings.Replace(text, "\n", "\nENV UNIQUE="+rand.Text()+"\n", 1)
		}
	}
	path := filepath.Join(w.root, name)
	w.git("", "init", "-q", "-b", "main", path)
	w.commit(name, files)
	return "file://" + path
}

// commit writes files into a repository and commits them.
func (w *world) commit(name string, files map[string]string) (commit string) {
	w.t.Helper()
	path := filepath.Join(w.root, name)
	for file, text := range files {
		if err := os.MkdirAll(filepath.Dir(filepath.Join(path, file)), 0o700); err != nil {
			w.t.Fatal(err)
		}
		if err := os.WriteFile(filepath.Join(path, file), []byte(text), 0o600); err != nil {
			w.t.Fatal(err)
		}
	}
	w.git(path, "add", "-A")
	w.git(path, "commit", "-q", "--allow-empty", "-m", "test")
	return w.git(path, "rev-parse", "HEAD")
}

func (w *world) git(dir string, args ...string) string {
	w.t.Helper()
	cmd := exec.Command("git", args...)
	cmd.Dir = dir
	cmd.Env = []string{
		"PATH=" + os.Getenv("PATH"), "HOME=" + w.temp, "GIT_CONFIG_NOSYSTEM=1",
		"GIT_AUTHOR_NAME=a", "GIT_AUTHOR_EMAIL=a@b", "GIT_COMMITTER_NAME=a", "GIT_COMMITTER_EMAIL=a@b",
	}
	out, err := cmd.CombinedOutput()
	if err != nil {
		w.t.Fatalf("git %v: %v: %s", args, err, out)
	}
	return strings.TrimSpace(string(out))
}

// deployFrom is a request for a unit whose image is JSON.
func deployFrom(image string) string {
	return `{"network":"lan","units":[{"image":` + image + `,"ports":[{"port":80}]}]}`
}

func dockerfileOf(url string) string {
	return fmt.Sprintf(`{"git":{"url":%q,"ref":"main","dockerfile":{}}}`, url)
}

// kept reads the log of a build that is kept, a line each.
func (w *world) kept(name string) (lines []string) {
	w.t.Helper()
	in, err := w.Logs.Get(w.t.Context(), name)
	if err != nil {
		w.t.Fatalf("log %s: %v", name, err)
	}
	defer in.Close()
	if err := buildlog.Read(in, func(l buildlog.Line) error { lines = append(lines, l.String()); return nil }); err != nil {
		w.t.Fatal(err)
	}
	return lines
}

// hears listens to the log of the builds of a stack, and gives what waits until a line has a text.
func (w *world) hears(stack string) (until func(text string)) {
	w.t.Helper()
	sub, err := w.NC.SubscribeSync(messages.BuildLogFilter(stack))
	if err != nil {
		w.t.Fatal(err)
	}
	if err := w.NC.Flush(); err != nil {
		w.t.Fatal(err)
	}
	return func(text string) {
		w.t.Helper()
		for {
			m, err := sub.NextMsg(patience)
			if err != nil {
				w.t.Fatalf("nobody said %q: %v", text, err)
			}
			if strings.HasPrefix(string(m.Data), text) {
				return
			}
		}
	}
}

func TestAnImageOfDocker(t *testing.T) {
	w := newWorld(t)
	api := w.withEngine()
	body, digest := w.guest()
	id := dockertest.Import(t, api, "fulmar-www:live", dockertest.File{Name: "unikernel.spt", Body: body})
	w.start()
	request := deployFrom(`{"docker":{"image":"fulmar-www:live","path":"/unikernel.spt"}}`)
	var first *fulmarv1.Build
	for n := range 2 {
		generation := w.request(deployKind, "web", request)
		w.await(generation, messages.Accepted)
		u := w.await(generation, messages.Built).GetDeployment().GetUnits()[0]
		b := u.GetBuild()
		if u.GetImage() != digest || b.GetImageDigest() != id || b.GetSource() != "docker:fulmar-www:live#/unikernel.spt" || b.GetKey() == "" || b.GetCached() != (n > 0) || b.GetDuration() == nil {
			t.Errorf("built %v", u)
		}
		if n == 0 {
			first = b
			if lines := w.kept(b.GetLog()); len(lines) != 3 || !strings.Contains(lines[1], "take /unikernel.spt out of docker image "+id) || !strings.Contains(lines[2], digest) {
				t.Errorf("its log is %q", lines)
			}
		} else if b.GetLog() != first.GetLog() || b.GetKey() != first.GetKey() {
			t.Errorf("cached %v, not %v", b, first)
		}
	}
	for image, want := range map[string]string{
		`{"docker":{"image":"fulmar-www:live","path":"/none"}}`:                                                     "unit web: ",
		`{"docker":{"image":"fulmar-none:live","pull":"never"}}`:                                                    "the engine does not have it",
		`{"docker":{"image":"fulmar-www:live","path":"/unikernel.spt"},"sha256":"` + strings.Repeat("0", 64) + `"}`: "its SHA-256 is " + digest,
		`{"docker":{"image":"fulmar-www:live","path":"/unikernel.spt","credential":"none","pull":"always"}}`:        "credential none",
		`{"docker":{"image":"registry.invalid/www:live","path":"/unikernel.spt"}}`:                                  "registry.invalid",
	} {
		generation := w.request(deployKind, "web", deployFrom(image))
		w.await(generation, messages.Accepted)
		if e := w.await(generation, messages.Failed); !strings.Contains(e.GetReason(), want) {
			t.Errorf("%s failed because %s", image, e.GetReason())
		}
	}
	builds, err := w.Builds.All(t.Context())
	if err != nil || len(builds) != 1 {
		t.Errorf("records of builds: %v, %v", builds, err)
	}
}

func TestABuilderWithoutAnEngineTakesWhatAnotherBuilt(t *testing.T) {
	w := newWorld(t)
	body, digest := w.guest()
	const secret = "s3cr3t-of-the-registry"
	registry := dockertest.NewRegistry(t, "jo", secret)
	api := dockertest.Client(t, "")
	named := registry.Host + "/www@" + registry.Push(t, api, "www:live", dockertest.File{Name: "unikernel", Body: body})
	dockertest.RemoveImage(t, api, named)
	if err := os.WriteFile(filepath.Join(w.held, "ci"), []byte("host=127.0.0.1\nusername=jo\npassword="+secret), 0o600); err != nil {
		t.Fatal(err)
	}
	request := deployFrom(fmt.Sprintf(`{"docker":{"image":%q,"credential":"ci"}}`, named))
	none := w.engine
	w.withEngine()
	stop := w.start()
	generation := w.request(deployKind, "web", request)
	w.await(generation, messages.Accepted)
	if u := w.await(generation, messages.Built).GetDeployment().GetUnits()[0]; u.GetImage() != digest || u.GetBuild().GetCached() {
		t.Errorf("built %v", u)
	}
	stop()
	w.engine = none
	w.start()
	generation = w.request(deployKind, "api", strings.Replace(request, `"port":80`, `"port":81`, 1))
	w.await(generation, messages.Accepted)
	if u := w.await(generation, messages.Built).GetDeployment().GetUnits()[0]; u.GetImage() != digest || !u.GetBuild().GetCached() || u.GetBuild().GetLog() != "web-1.web" {
		t.Errorf("built %v", u)
	}
	w.saysNothingOf(secret)
}

// awaitNoRecord waits until there is no record of a build.
func (w *world) awaitNoRecord() {
	w.t.Helper()
	v := w.Builds.View()
	w.background(v.Run)
	if err := v.CaughtUp(w.t.Context()); err != nil {
		w.t.Fatal(err)
	}
	late := time.After(patience)
	for {
		changed := v.Changed()
		if len(v.All()) == 0 {
			return
		}
		select {
		case <-changed:
		case <-late:
			w.t.Fatalf("records of builds are left: %v", v.All())
		}
	}
}

// saysNothingOf sees that a secret is in no event and no log.
func (w *world) saysNothingOf(secret string) {
	w.t.Helper()
	for _, name := range []string{messages.RequestStream, messages.EventStream, "KV_" + messages.BuildBucket, "KV_" + messages.HeadBucket} {
		stream, err := w.JS.Stream(w.t.Context(), name)
		if err != nil {
			w.t.Fatal(err)
		}
		for n := uint64(1); n <= stream.CachedInfo().State.LastSeq; n++ {
			if raw, err := stream.GetMsg(w.t.Context(), n); err == nil && strings.Contains(string(raw.Data), secret) {
				w.t.Errorf("it is in %s, %s", name, raw.Subject)
			}
		}
	}
	logs, err := w.Logs.List(w.t.Context())
	if err != nil {
		w.t.Fatal(err)
	}
	for _, l := range logs {
		if strings.Contains(strings.Join(w.kept(l.Name), "\n"), secret) {
			w.t.Errorf("it is in the log %s", l.Name)
		}
	}
}

func TestWithoutAnEngineADeploymentFailsInTime(t *testing.T) {
	w := newWorld(t)
	w.patience = 0
	w.start()
	generation := w.request(deployKind, "web", deployFrom(`{"docker":{"image":"www"}}`))
	w.await(generation, messages.Accepted)
	if e := w.await(generation, messages.Failed); !strings.Contains(e.GetReason(), "unit web: ") || !strings.Contains(e.GetReason(), w.engine) {
		t.Errorf("it failed because %s", e.GetReason())
	}
}

// builderProcess is the variable that makes a process of these tests a builder, at the URL of a bus.
const (
	builderProcess = "FULMAR_TEST_BUILDER"
	builderOptions = "FULMAR_TEST_OPTIONS"
)

// beBuilder is a builder in a process of its own, until it is killed.
func beBuilder(url string) int {
	var o options
	err := json.Unmarshal([]byte(os.Getenv(builderOptions)), &o)
	var nc *nats.Conn
	if err == nil {
		nc, err = nats.Connect(url)
	}
	var b *bus.Bus
	if err == nil {
		b, err = bus.Open(context.Background(), nc, bus.Options{Service: "builder", Log: slog.New(slog.NewTextHandler(os.Stderr, nil))})
	}
	var c Config
	if err == nil {
		c, err = o.config()
	}
	if err == nil {
		err = New(b, c, prometheus.NewRegistry()).Run(context.Background())
	}
	fmt.Fprintln(os.Stderr, err)
	return 1
}

// process starts a builder in a process of its own, and gives what kills it.
func (w *world) process() (kill func()) {
	w.t.Helper()
	text, err := json.Marshal(w.options())
	if err != nil {
		w.t.Fatal(err)
	}
	cmd := exec.Command(os.Args[0])
	cmd.Env = append(os.Environ(), builderProcess+"="+w.server.URL(), builderOptions+"="+string(text))
	cmd.Stderr = io.Discard
	if testing.Verbose() {
		cmd.Stderr = os.Stderr
	}
	if err := cmd.Start(); err != nil {
		w.t.Fatal(err)
	}
	killed := false
	kill = func() {
		if !killed {
			killed = true
			_ = cmd.Process.Kill() // SIGKILL
			_ = cmd.Wait()         // and so it ends with an error
		}
	}
	w.t.Cleanup(kill)
	return kill
}

func TestAnImageOfAnArchiveNeedsNoEngine(t *testing.T) {
	w := newWorld(t)
	body, digest := w.guest()
	api := dockertest.Client(t, "")
	id := dockertest.Import(t, api, "fulmar-saved:test", dockertest.File{Name: "unikernel", Body: body})
	archive, err := api.ImageSave(t.Context(), []string{id})
	if err != nil {
		t.Fatal(err)
	}
	defer archive.Close()
	text, err := io.ReadAll(archive)
	if err != nil {
		t.Fatal(err)
	}
	path := w.file("www.tar", text)
	w.start()
	for _, cached := range []bool{false, true} {
		generation := w.request(deployKind, "web", deployFrom(fmt.Sprintf(`{"oci":{"layout":%q}}`, path)))
		w.await(generation, messages.Accepted)
		if u := w.await(generation, messages.Built).GetDeployment().GetUnits()[0]; u.GetImage() != digest || u.GetBuild().GetCached() != cached || u.GetBuild().GetSource() != "oci:"+path+"#/unikernel" {
			t.Errorf("built %v", u)
		}
	}
	for layout, want := range map[string]string{
		w.root + "/none":      "layout " + w.root + "/none: ",
		w.root + "/guest.spt": "layout " + w.root + "/guest.spt: ",
		"/etc":                "not below " + w.root,
	} {
		generation := w.request(deployKind, "web", deployFrom(fmt.Sprintf(`{"oci":{"layout":%q}}`, layout)))
		w.await(generation, messages.Accepted)
		if e := w.await(generation, messages.Failed); !strings.Contains(e.GetReason(), want) {
			t.Errorf("%s failed because %s", layout, e.GetReason())
		}
	}
}
