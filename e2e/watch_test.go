package e2e_test

import (
	"bytes"
	"context"
	"crypto/hmac"
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"io"
	"net/http"
	"net/http/cgi"
	"net/http/httptest"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"fulmar/messages"
	fulmarv1 "fulmar/messages/fulmar/v1"
	"fulmar/services/builder/docker/dockertest"
)

const (
	hooks      = "127.0.0.1:9180"
	hookSecret = "of the harbour"
)

// project is a repository on the web whose Dockerfile gives hello, each commit another image.
type project struct {
	w         *world
	bare, dir string
	url       string
	pushes    int
}

func (w *world) project() *project {
	w.t.Helper()
	root := filepath.Join(w.Dir, "git")
	p := &project{w: w, bare: filepath.Join(root, "www.git"), dir: filepath.Join(w.Dir, "www")}
	p.git("init", "--quiet", "--bare", "--initial-branch=main", p.bare)
	p.git("init", "--quiet", "--initial-branch=main", p.dir)
	p.write("Dockerfile", []byte("FROM scratch\nCOPY hello.spt /unikernel\n"))
	out, err := exec.CommandContext(w.t.Context(), "git", "--exec-path").Output()
	if err != nil {
		w.t.Fatal(err)
	}
	server := httptest.NewServer(&cgi.Handler{
		Path: filepath.Join(strings.TrimSpace(string(out)), "git-http-backend"), Stderr: io.Discard,
		Env: []string{"GIT_PROJECT_ROOT=" + root, "GIT_HTTP_EXPORT_ALL=1"},
	})
	w.t.Cleanup(server.Close)
	p.url = server.URL + "/www.git"
	return p
}

func (p *project) git(args ...string) string {
	p.w.t.Helper()
	cmd := exec.CommandContext(p.w.t.Context(), "git", args...)
	cmd.Env = append(os.Environ(), "GIT_CONFIG_GLOBAL=/dev/null", "GIT_CONFIG_SYSTEM=/dev/null",
		"GIT_AUTHOR_NAME=a", "GIT_AUTHOR_EMAIL=a@example.org", "GIT_COMMITTER_NAME=a", "GIT_COMMITTER_EMAIL=a@example.org")
	out, err := cmd.CombinedOutput()
	if err != nil {
		p.w.t.Fatalf("git %s: %v\n%s", strings.Join(args, " "), err, out)
	}
	return strings.TrimSpace(string(out))
}

func (p *project) write(name string, body []byte) {
	p.w.t.Helper()
	if err := os.WriteFile(filepath.Join(p.dir, name), body, 0o600); err != nil {
		p.w.t.Fatal(err)
	}
}

// push pushes a commit with another image, and gives it.
func (p *project) push() string {
	p.w.t.Helper()
	p.pushes++
	p.write("hello.spt", append(p.w.imageBytes(), fmt.Sprint(p.pushes)...))
	p.git("-C", p.dir, "add", ".")
	p.git("-C", p.dir, "commit", "--quiet", "-m", fmt.Sprint(p.pushes))
	p.git("-C", p.dir, "push", "--quiet", p.bare, "main")
	return p.git("-C", p.dir, "rev-parse", "HEAD")
}

// hook tells of a push as GitHub does, and gives what is answered.
func (p *project) hook() string {
	p.w.t.Helper()
	body := fmt.Appendf(nil, `{"ref":"refs/heads/main","repository":{"clone_url":%q}}`, p.url)
	mac := hmac.New(sha256.New, []byte(hookSecret))
	mac.Write(body)
	r, err := http.NewRequestWithContext(p.w.patient(), http.MethodPost, "http://"+hooks+"/webhook/github", bytes.NewReader(body))
	if err != nil {
		p.w.t.Fatal(err)
	}
	r.Header.Set("X-GitHub-Event", "push")
	r.Header.Set("X-Hub-Signature-256", "sha256="+hex.EncodeToString(mac.Sum(nil)))
	answer, err := http.DefaultClient.Do(r)
	if err != nil {
		p.w.t.Fatal(err)
	}
	defer answer.Body.Close()
	text, err := io.ReadAll(answer.Body)
	if err != nil {
		p.w.t.Fatal(err)
	}
	return answer.Status + ": " + strings.TrimSpace(string(text))
}

// spec is the request for a stack that follows the project, as a person writes it.
func (p *project) spec() string {
	p.w.t.Helper()
	path := filepath.Join(p.w.Dir, "web.yaml")
	text := fmt.Sprintf(`watch: true
units:
  - image:
      git: {url: %q, ref: main, dockerfile: {}}
    memory: 16
    args: ["--ipv4={{.IP}}/{{.PrefixLen}}", "--ipv4-gateway={{.Gateway}}", "--hello=v1"]
    ports: [{port: 8080, target: 80}]
`, p.url)
	if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
		p.w.t.Fatal(err)
	}
	return path
}

// TestAPushDeploys has a repository that is built by a Docker engine, and a webhook for each push. Nobody looks of itself.
func TestAPushDeploys(t *testing.T) {
	w := newLab(t)
	engine := dockertest.Start(t)
	secret := filepath.Join(w.Dir, "secret")
	if err := os.WriteFile(secret, []byte(hookSecret+"\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	up, err := w.Up("--docker-host", engine.Host(), "--watch-interval", "1h", "--webhooks", hooks, "--webhook-secret-file", secret)
	if err != nil {
		t.Fatal(err)
	}
	w.keep(up)
	w.connect()
	p := w.project()
	first := p.push()
	w.cli("deploy", "web", "-f", p.spec())
	w.answers(8080, "v1")
	w.until(w.looked(0))

	load := w.Load(at(8080), rate)
	w.flowing(load, "v1", rate/5)
	second := p.push()
	if got, want := p.hook(), "202 Accepted: asked for a look at the sources of web"; got != want {
		t.Errorf("a push is answered %q, want %q", got, want)
	}
	built := w.await("web", 2, messages.Built, messages.Failed, messages.Rejected)
	if u := built.Event.GetDeployment().GetUnits(); len(u) != 1 || u[0].GetBuild().GetCommit() != second {
		t.Errorf("it is built of %v, want commit %s", u, second)
	}
	w.await("web", 2, messages.Published, messages.Failed)
	w.flowing(load, "v1", rate/5)
	w.unfailing(load)
	cause := "git+" + p.url + "#main moved from " + first[:7] + " to " + second[:7] + " (webhook of GitHub)"
	if got := w.cause(2); got != cause {
		t.Errorf("the cause is %q, want %q", got, cause)
	}

	w.cli("rollback", "web") // 3
	looked := w.lookedAt()
	p.hook()
	w.until(w.looked(looked)) // and finds that nothing has moved since
	w.cli("watch", "pause", "web")
	third := p.push()
	p.hook()
	if out := w.cli("watch", "ls"); !strings.Contains(out, "paused") {
		t.Errorf("it is not paused:\n%s", out)
	}
	w.onlyLive("web", 3)
	w.cli("watch", "resume", "web")
	built = w.await("web", 4, messages.Built, messages.Failed, messages.Rejected)
	if u := built.Event.GetDeployment().GetUnits(); len(u) != 1 || u[0].GetBuild().GetCommit() != third {
		t.Errorf("it is built of %v, want commit %s", u, third)
	}
	w.await("web", 4, messages.Published, messages.Failed)
	if out := w.cli("watch", "ls"); !strings.Contains(out, third[:12]) || !strings.Contains(out, "followed") {
		t.Errorf("watch ls does not show %s:\n%s", third, out)
	}
	w.cli("retire", "web", "--wait")
	if out := w.cli("watch", "ls"); strings.Contains(out, "web") {
		t.Errorf("it is followed although it is retired:\n%s", out)
	}
	w.retired()
}

// cause is what the request of a generation says why it was sent.
func (w *world) cause(generation uint64) string {
	w.t.Helper()
	stream, err := w.bus.JS.Stream(w.patient(), messages.RequestStream)
	if err != nil {
		w.t.Fatal(err)
	}
	msg, err := stream.GetMsg(w.patient(), generation)
	if err != nil {
		w.t.Fatal(err)
	}
	m, err := messages.DecodeRequest(fulmarv1.Kind_KIND_DEPLOY, msg.Data)
	if err != nil {
		w.t.Fatal(err)
	}
	return m.(*fulmarv1.DeployRequest).GetCause()
}

// lookedAt is when web's source was looked at last, in nanoseconds.
func (w *world) lookedAt() int64 {
	w.t.Helper()
	r, _, err := w.bus.Watches.Get(w.patient(), "web")
	if err != nil || len(r.GetSources()) != 1 {
		w.t.Fatalf("the record is %v, %v", r, err)
	}
	return r.GetSources()[0].GetLooked().AsTime().UnixNano()
}

// looked gives what fails until web's source was looked at after a time.
func (w *world) looked(after int64) func(context.Context) error {
	return func(ctx context.Context) error {
		r, _, err := w.bus.Watches.Get(ctx, "web")
		if err == nil && (len(r.GetSources()) != 1 || r.GetSources()[0].GetLooked().AsTime().UnixNano() <= after) {
			err = fmt.Errorf("it was not looked at: %v", r)
		}
		return err
	}
}
