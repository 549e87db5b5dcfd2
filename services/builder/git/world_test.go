package git_test

import (
	"archive/tar"
	"bytes"
	"errors"
	"io"
	"net/http"
	"net/http/cgi"
	"net/http/httptest"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"go.uber.org/goleak"

	"fulmar/messages"
	fulmarv1 "fulmar/messages/fulmar/v1"
	"fulmar/services/builder/credential"
	"fulmar/services/builder/git"
)

func TestMain(m *testing.M) {
	if len(os.Args) > 1 && os.Args[1] == doomed {
		fetchForEver(os.Args[2], os.Args[3])
	}
	goleak.VerifyTestMain(m)
}

const secret = "s3cr%et/'\"x"

// world is a client with its directories, and repositories below one root.
type world struct {
	root   string // of the repositories
	temp   string // of the client
	known  string // hosts of ssh
	client *git.Client
	config git.Config
}

func newWorld(t *testing.T) *world {
	t.Helper()
	dir := t.TempDir()
	w := &world{root: filepath.Join(dir, "root"), known: filepath.Join(dir, "known hosts")}
	held := filepath.Join(dir, "credentials")
	for _, d := range []string{w.root, held} {
		if err := os.Mkdir(d, 0o700); err != nil {
			t.Fatal(err)
		}
	}
	for name, text := range map[string]string{
		"right": "host=127.0.0.1\nusername=jo\npassword=" + secret, "wrong": "host=127.0.0.1\nusername=jo\npassword=wr0ng-" + secret,
		"token": "host=127.0.0.1\npassword=" + secret, "webhook": "password=" + secret,
	} {
		write(t, filepath.Join(held, name), text)
	}
	w.config = git.Config{
		Credentials: credential.Directory(held), KnownHosts: w.known, FileRoot: w.root,
		MaxSize: 4 << 20, Ask: time.Minute, Fetch: time.Minute,
	}
	w.start(t)
	return w
}

// start gives the world a client of its configuration, which must leave nothing.
func (w *world) start(t *testing.T) {
	t.Helper()
	w.temp = t.TempDir()
	w.config.Temp = w.temp
	temp := w.temp
	c, err := git.New(w.config)
	if err != nil {
		t.Fatal(err)
	}
	w.client = c
	t.Cleanup(func() {
		if left := files(t, temp); len(left) != 0 {
			t.Errorf("the client left %v", left)
		}
		if err := c.Close(); err != nil {
			t.Error(err)
		}
		if left, err := os.ReadDir(temp); err != nil || len(left) != 0 {
			t.Errorf("the end of the client left %v, %v", left, err)
		}
	})
}

// files lists what a client has in its directory besides its settings.
func files(t *testing.T, temp string) []string {
	t.Helper()
	all, err := filepath.Glob(filepath.Join(temp, "*", "*"))
	if err != nil {
		t.Fatal(err)
	}
	var left []string
	for _, path := range all {
		if filepath.Base(path) != "config" {
			left = append(left, path)
		}
	}
	return left
}

// repository is one with a work tree.
type repository struct {
	t    *testing.T
	path string
}

func (w *world) repository(t *testing.T, name string) *repository {
	t.Helper()
	r := &repository{t: t, path: filepath.Join(w.root, name)}
	if err := os.MkdirAll(r.path, 0o700); err != nil {
		t.Fatal(err)
	}
	r.git("init", "--quiet", "--initial-branch=main")
	return r
}

func (r *repository) url() string { return "file://" + r.path }

// git runs git in the repository and gives what it prints.
func (r *repository) git(args ...string) string {
	r.t.Helper()
	cmd := exec.Command("git", args...)
	cmd.Dir = r.path
	cmd.Env = append(os.Environ(), "GIT_CONFIG_GLOBAL=/dev/null", "GIT_AUTHOR_NAME=a", "GIT_AUTHOR_EMAIL=a@b", "GIT_COMMITTER_NAME=a", "GIT_COMMITTER_EMAIL=a@b",
		"GIT_COMMITTER_DATE=1700000000 +0000", "GIT_AUTHOR_DATE=1700000000 +0000")
	out, err := cmd.CombinedOutput()
	if err != nil {
		r.t.Fatalf("git %v: %v\n%s", args, err, out)
	}
	return strings.TrimSpace(string(out))
}

// commit writes files and commits all that the work tree has.
func (r *repository) commit(files map[string]string) string {
	r.t.Helper()
	for name, text := range files {
		write(r.t, filepath.Join(r.path, name), text)
	}
	r.git("add", "--all")
	r.git("commit", "--quiet", "--allow-empty", "--message=x")
	return r.git("rev-parse", "HEAD")
}

func (r *repository) link(name, target string) {
	r.t.Helper()
	if err := os.Symlink(target, filepath.Join(r.path, name)); err != nil {
		r.t.Fatal(err)
	}
}

func write(t *testing.T, path, text string) {
	t.Helper()
	if err := os.MkdirAll(filepath.Dir(path), 0o700); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
}

// serve serves the root over http by git's own CGI program; with a secret, only for jo who knows it. The version is of
// git's protocol.
func (w *world) serve(t *testing.T, secret, version string) string {
	t.Helper()
	backend := &cgi.Handler{
		Path: "/usr/lib/git-core/git-http-backend", Stderr: io.Discard,
		Env: []string{"GIT_PROJECT_ROOT=" + w.root, "GIT_HTTP_EXPORT_ALL=1", "GIT_CONFIG_COUNT=1", "GIT_CONFIG_KEY_0=safe.directory", "GIT_CONFIG_VALUE_0=*"},
	}
	server := httptest.NewServer(http.HandlerFunc(func(out http.ResponseWriter, r *http.Request) {
		if user, password, _ := r.BasicAuth(); secret != "" && (password != secret || user != "jo" && user != "oauth2") {
			out.Header().Set("WWW-Authenticate", `Basic realm="git"`)
			http.Error(out, "who are you?", http.StatusUnauthorized)
			return
		}
		if b := *backend; version == "2" {
			b.Env = append(slices.Clip(b.Env), "GIT_PROTOCOL=version=2")
			b.ServeHTTP(out, r)
			return
		}
		backend.ServeHTTP(out, r)
	}))
	t.Cleanup(server.Close)
	return server.URL
}

// contents are the names of an archive, with the text of files, the mode of programs and the targets of links.
func contents(t *testing.T, archive []byte) map[string]string {
	t.Helper()
	got := map[string]string{}
	for r := tar.NewReader(bytes.NewReader(archive)); ; {
		h, err := r.Next()
		if errors.Is(err, io.EOF) {
			return got
		}
		if err != nil {
			t.Fatal(err)
		}
		text, err := io.ReadAll(r)
		if err != nil {
			t.Fatal(err)
		}
		if h.ModTime.Unix() != 1700000000 || h.Uid != 0 || h.Gid != 0 {
			t.Errorf("%s is of %v and %d:%d, want the time of the commit and root", h.Name, h.ModTime, h.Uid, h.Gid)
		}
		if _, twice := got[h.Name]; twice {
			t.Errorf("%s is there twice", h.Name)
		}
		switch {
		case h.Typeflag == tar.TypeSymlink:
			got[h.Name] = "-> " + h.Linkname
		case h.Typeflag == tar.TypeReg && h.Mode == 0o755:
			got[h.Name] = "+x " + string(text)
		default:
			got[h.Name] = string(text)
		}
	}
}

// refused sees that an error is a refusal of a code that says what it should and no secret.
func refused(t *testing.T, err error, code fulmarv1.ReasonCode, want string) {
	t.Helper()
	if r, ok := messages.AsRefusal(err); !ok || r.Code != code || !strings.Contains(err.Error(), want) {
		t.Errorf("the error is %v, want a refusal %v with %q", err, code, want)
	}
	quiet(t, err)
}

// transient sees that another try may follow.
func transient(t *testing.T, err error, want string) {
	t.Helper()
	if _, ok := messages.AsRefusal(err); ok || err == nil || !strings.Contains(err.Error(), want) {
		t.Errorf("the error is %v, want one that may pass, with %q", err, want)
	}
	quiet(t, err)
}

func quiet(t *testing.T, err error) {
	t.Helper()
	if err != nil && strings.Contains(err.Error(), "s3cr") {
		t.Errorf("the error has the secret in it: %v", err)
	}
}
