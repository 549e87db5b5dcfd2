package git_test

import (
	"bytes"
	"context"
	"errors"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	fulmarv1 "fulmar/messages/fulmar/v1"
	"fulmar/services/builder/git"
)

const (
	notFound = fulmarv1.ReasonCode_REASON_CODE_NOT_FOUND
	invalid  = fulmarv1.ReasonCode_REASON_CODE_INVALID
	policy   = fulmarv1.ReasonCode_REASON_CODE_POLICY
	build    = fulmarv1.ReasonCode_REASON_CODE_BUILD
)

// fetch gives the whole of a commit.
func (w *world) fetch(t *testing.T, r git.Repository, commit string, c git.Context) (map[string]string, error) {
	t.Helper()
	k, err := w.client.Checkout(t.Context(), r, commit)
	if err != nil {
		return nil, err
	}
	defer k.Close()
	var archive bytes.Buffer
	if err := k.Tar(t.Context(), c, &archive); err != nil {
		return nil, err
	}
	return contents(t, archive.Bytes()), nil
}

func TestResolveFindsWhatARefNames(t *testing.T) {
	w := newWorld(t)
	r := w.repository(t, "www")
	first := r.commit(map[string]string{"a": "1"})
	r.git("tag", "light")
	r.git("tag", "-a", "-m", "x", "heavy")
	r.git("tag", "-a", "-m", "x", "heaviest", "heavy")
	r.git("branch", "both")
	second := r.commit(map[string]string{"a": "2"})
	r.git("tag", "both")
	r.git("branch", "x/main", first)
	r.git("update-ref", "refs/pull/7/head", first)
	for ref, want := range map[string]string{
		"": second, "HEAD": second, "main": second, "refs/heads/main": second, "light": first, "heavy": first, "heaviest": first,
		"refs/tags/heavy": first, "both": first, "refs/tags/both": second, "refs/pull/7/head": first, "pull/7/head": first, "x/main": first,
		strings.Repeat("0", 40): strings.Repeat("0", 40),
	} {
		if got, err := w.client.Resolve(t.Context(), git.Repository{URL: r.url()}, ref); err != nil || got != want {
			t.Errorf("Resolve(%q) = %s, %v, want %s", ref, got, err, want)
		}
	}
	_, err := w.client.Resolve(t.Context(), git.Repository{URL: r.url()}, "mai")
	refused(t, err, notFound, "has no branch, tag or ref mai")
	_, err = w.client.Resolve(t.Context(), git.Repository{URL: w.repository(t, "empty").url()}, "")
	refused(t, err, notFound, "has no HEAD that names a commit")
}

func TestTarIsTheCommitAndTheSameEveryTime(t *testing.T) {
	w := newWorld(t)
	r := w.repository(t, "www")
	write(t, filepath.Join(r.path, "run"), "#!")
	if err := os.Chmod(filepath.Join(r.path, "run"), 0o755); err != nil {
		t.Fatal(err)
	}
	r.link("link", "../../etc/passwd")
	long := strings.Repeat("long/", 40) + "name"
	commit := r.commit(map[string]string{
		"Dockerfile": "FROM repository", "src/deep/a.c": "int a;", "empty": "", "name with\nnewline and ü": "x", long: "y",
		".gitattributes": "*.c export-ignore\n*.txt eol=crlf\n", "dos.txt": "a\nb\n", "skip/b": "no",
	})
	r.commit(map[string]string{"src/deep/a.c": "later"})
	c := git.Context{
		Keep: func(path string) bool { return !strings.HasPrefix(path, "skip/") },
		Add:  []git.File{{Name: "Dockerfile", Text: []byte("FROM added")}, {Name: "new", Text: []byte("n")}},
	}
	want := map[string]string{
		"Dockerfile": "FROM added", "new": "n", "run": "+x #!", "link": "-> ../../etc/passwd", "src/": "", "src/deep/": "", "src/deep/a.c": "int a;",
		"empty": "", "name with\nnewline and ü": "x", long: "y", ".gitattributes": "*.c export-ignore\n*.txt eol=crlf\n", "dos.txt": "a\nb\n",
	}
	for i := range strings.Split(long, "/")[1:] {
		want[strings.Repeat("long/", i+1)] = ""
	}
	got, err := w.fetch(t, git.Repository{URL: r.url()}, commit, c)
	if diff := cmp.Diff(want, got); err != nil || diff != "" {
		t.Errorf("the context is wrong: %v (-want +got):\n%s", err, diff)
	}
	k, err := w.client.Checkout(t.Context(), git.Repository{URL: r.url()}, commit)
	if err != nil {
		t.Fatal(err)
	}
	defer k.Close()
	var one, two bytes.Buffer
	if err := errors.Join(k.Tar(t.Context(), c, &one), k.Tar(t.Context(), c, &two)); err != nil || !bytes.Equal(one.Bytes(), two.Bytes()) {
		t.Errorf("two contexts of one commit differ: %v", err)
	}
}

func TestADirectoryIsTheContext(t *testing.T) {
	w := newWorld(t)
	r := w.repository(t, "www")
	r.link("inside", "src/deep")
	r.link("outside", "../other")
	r.link("absolute", "/etc")
	r.link("circle", "circle")
	commit := r.commit(map[string]string{"src/deep/a.c": "a", "src/b.c": "b"})
	for directory, want := range map[string]map[string]string{
		"src":      {"b.c": "b", "deep/": "", "deep/a.c": "a"},
		"src/deep": {"a.c": "a"},
		"inside":   {"a.c": "a"},
	} {
		got, err := w.fetch(t, git.Repository{URL: r.url()}, commit, git.Context{Directory: directory})
		if diff := cmp.Diff(want, got); err != nil || diff != "" {
			t.Errorf("the context of %s is wrong: %v (-want +got):\n%s", directory, err, diff)
		}
	}
	for directory, want := range map[string]string{
		"absent": "directory absent in commit " + commit, "src/b.c": "directory src/b.c in commit " + commit + " is a file", "outside": "it is a link out of the repository",
		"absolute": "it is a link out of the repository", "circle": "its links lead in a circle", "src/b.c/x": "directory src/b.c/x in commit",
	} {
		_, err := w.fetch(t, git.Repository{URL: r.url()}, commit, git.Context{Directory: directory})
		refused(t, err, notFound, want)
	}
}

func TestReadFileGivesOneFile(t *testing.T) {
	w := newWorld(t)
	r := w.repository(t, "www")
	r.link("link", "src/a.c")
	r.link("outside", "../../etc/passwd")
	commit := r.commit(map[string]string{"src/a.c": "a", ".dockerignore": "a", "large": strings.Repeat("x", 1<<20+1)})
	k, err := w.client.Checkout(t.Context(), git.Repository{URL: r.url()}, commit)
	if err != nil {
		t.Fatal(err)
	}
	defer k.Close()
	for _, name := range []string{"src/a.c", "link", ".dockerignore", "./src/../src/a.c"} {
		if got, err := k.ReadFile(t.Context(), name); err != nil || string(got) != "a" {
			t.Errorf("ReadFile(%s) = %q, %v", name, got, err)
		}
	}
	for _, name := range []string{"absent", "outside", "src"} {
		if _, err := k.ReadFile(t.Context(), name); !errors.Is(err, os.ErrNotExist) {
			t.Errorf("ReadFile(%s) gives %v, want that it does not exist", name, err)
		}
	}
	_, err = k.ReadFile(t.Context(), "large")
	refused(t, err, build, "large has more than 1048576 bytes")
}

func TestACommitThatIsNoTip(t *testing.T) {
	w := newWorld(t)
	r := w.repository(t, "www")
	first := r.commit(map[string]string{"a": "1"})
	r.commit(map[string]string{"a": "2"})
	r.git("tag", "-a", "-m", "x", "heavy")
	for name, url := range map[string]string{"http, by its name": w.serve(t, "", "2"), "http, with all the history": w.serve(t, "", "0"), "file": "file://" + w.root} {
		repository := git.Repository{URL: url + "/www"}
		got, err := w.fetch(t, repository, first, git.Context{})
		if diff := cmp.Diff(map[string]string{"a": "1"}, got); err != nil || diff != "" {
			t.Errorf("%s: %v (-want +got):\n%s", name, err, diff)
		}
		_, err = w.fetch(t, repository, strings.Repeat("1", 40), git.Context{})
		refused(t, err, notFound, "commit "+strings.Repeat("1", 40))
		_, err = w.fetch(t, repository, r.git("rev-parse", "heavy"), git.Context{})
		refused(t, err, notFound, "is a tag, not a commit")
		_, err = w.fetch(t, repository, r.git("rev-parse", "HEAD:a"), git.Context{})
		refused(t, err, notFound, "")
	}
}

func TestWhatIsNotThereOrNotAllowed(t *testing.T) {
	w := newWorld(t)
	r := w.repository(t, "www")
	commit := r.commit(map[string]string{"a": "1"})
	open := w.serve(t, "", "2")
	outside := t.TempDir()
	if err := os.Symlink(outside, filepath.Join(w.root, "out")); err != nil {
		t.Fatal(err)
	}
	for url, want := range map[string]struct {
		code fulmarv1.ReasonCode
		text string
	}{
		open + "/absent":                   {notFound, "is not there, or not for somebody without a credential"},
		"file://" + w.root + "/absent":     {notFound, "does not exist"},
		"file://" + w.root:                 {notFound, "does not appear to be a git repository"},
		"file://" + outside:                {invalid, "is not below " + w.root},
		"file://" + w.root + "/out":        {invalid, "is not below " + w.root},
		"file://" + w.root + "/../x":       {notFound, "does not exist"},
		"ext::sh -c whoami":                {invalid, "is not the URL of a repository"},
		"ext::sh@-c:whoami":                {invalid, "is not the URL of a repository"},
		"-oProxyCommand=x@h:p":             {invalid, "is not the URL of a repository"},
		"ssh://-oProxyCommand=x/p":         {invalid, "URL of a repository"},
		"git://h/p":                        {invalid, "is not the http, https, ssh or file URL"},
		"https://jo:" + "s3cret" + "@h/p":  {invalid, "https://xxxxx@h/p has a credential in it"},
		"https://s3cret@h/p":               {invalid, "https://xxxxx@h/p has a credential in it"}, // a submodule's, say
		"https://jo:s3cret%zz@h/p":         {invalid, "xxxxx@h/p\" is not the URL of a repository"},
		strings.Replace(open, "h", "H", 1): {invalid, "URL of a repository"},
	} {
		_, err := w.client.Resolve(t.Context(), git.Repository{URL: url}, "main")
		refused(t, err, want.code, want.text)
		_, err = w.client.Checkout(t.Context(), git.Repository{URL: url}, commit)
		refused(t, err, want.code, want.text)
	}
	w.config.FileRoot = ""
	w.start(t)
	_, err := w.client.Resolve(t.Context(), git.Repository{URL: r.url()}, "main")
	refused(t, err, invalid, "this builder takes no files (--file-root)")
}

func TestAServerThatIsAwayMayComeBack(t *testing.T) {
	w := newWorld(t)
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	address := l.Addr().String()
	l.Close()
	for _, url := range []string{"http://" + address + "/www", "ssh://git@" + address + "/www"} {
		_, err = w.client.Resolve(t.Context(), git.Repository{URL: url}, "main")
		transient(t, err, "ask for its refs: ")
		_, err = w.client.Checkout(t.Context(), git.Repository{URL: url}, strings.Repeat("1", 40))
		transient(t, err, "fetch commit 1111")
	}
}

func TestCredentialsOverHTTP(t *testing.T) {
	w := newWorld(t)
	commit := w.repository(t, "www").commit(map[string]string{"a": "1"})
	url := w.serve(t, secret, "2")
	for _, name := range []string{"right", "token"} {
		r := git.Repository{URL: url + "/www", Credential: name}
		if got, err := w.client.Resolve(t.Context(), r, "main"); err != nil || got != commit {
			t.Errorf("Resolve with %s = %s, %v", name, got, err)
		}
		if got, err := w.fetch(t, r, commit, git.Context{}); err != nil || got["a"] != "1" {
			t.Errorf("Checkout with %s = %v, %v", name, got, err)
		}
	}
	for name, want := range map[string]string{
		"":       "asks for a credential, and the request names none",
		"wrong":  "does not let credential wrong in",
		"absent": "credential absent: this builder holds none of that name",
	} {
		_, err := w.client.Resolve(t.Context(), git.Repository{URL: url + "/www", Credential: name}, "main")
		refused(t, err, notFound, want)
		_, err = w.client.Checkout(t.Context(), git.Repository{URL: url + "/www", Credential: name}, commit)
		refused(t, err, notFound, want)
	}
	moved := httptest.NewServer(http.RedirectHandler(url+"/www/info/refs?service=git-upload-pack", http.StatusFound))
	t.Cleanup(moved.Close)
	_, err := w.client.Resolve(t.Context(), git.Repository{URL: moved.URL + "/www", Credential: "right"}, "main")
	refused(t, err, notFound, "it is redirected to another server, which asks for a credential, and credential right is not for that")
	_, err = w.client.Resolve(t.Context(), git.Repository{URL: url + "/www", Credential: "webhook"}, "main")
	refused(t, err, policy, "credential webhook: it is not for "+strings.TrimPrefix(url, "http://"))
	_, err = w.client.Resolve(t.Context(), git.Repository{URL: "http://git.example/www", Credential: "right"}, "main")
	refused(t, err, invalid, "it would be sent in clear text: use https")
	_, err = w.client.Resolve(t.Context(), git.Repository{URL: "ssh://git.example/www", Credential: "right"}, "main")
	refused(t, err, invalid, "it has no private key, which ssh needs")
}

func TestWhatIsTooLargeIsRefused(t *testing.T) {
	w := newWorld(t)
	noise := make([]byte, 5<<20)
	for i, x := 0, uint32(1); i < len(noise); i++ {
		x = x*1664525 + 1013904223
		noise[i] = byte(x >> 24)
	}
	packed := w.repository(t, "packed").commit(map[string]string{"noise": string(noise)})
	inflated := w.repository(t, "inflated").commit(map[string]string{"zeros": strings.Repeat("0", 5<<20)})
	url := w.serve(t, "", "2")
	for _, url := range []string{url, "file://" + w.root} {
		_, err := w.fetch(t, git.Repository{URL: url + "/packed"}, packed, git.Context{})
		refused(t, err, build, "it has more than 4 MB")
		_, err = w.fetch(t, git.Repository{URL: url + "/inflated"}, inflated, git.Context{})
		refused(t, err, build, "its files are more than this builder takes")
	}
	got, err := w.fetch(t, git.Repository{URL: url + "/inflated"}, inflated, git.Context{Keep: func(string) bool { return false }})
	if err != nil || len(got) != 0 {
		t.Errorf("what is left out counts: %v, %v", got, err)
	}
}

func TestTheBuildersOwnConfigurationDoesNotCount(t *testing.T) {
	w := newWorld(t)
	r := w.repository(t, "www")
	commit := r.commit(map[string]string{"a": "1"})
	home := t.TempDir()
	write(t, filepath.Join(home, ".gitconfig"), "[url \"file:///nowhere\"]\n\tinsteadOf = file://\n[core]\n\tfsmonitor = false\n")
	t.Setenv("HOME", home)
	t.Setenv("GIT_DIR", "/nowhere")
	t.Setenv("GIT_TRACE", filepath.Join(home, "trace"))
	if got, err := w.fetch(t, git.Repository{URL: r.url()}, commit, git.Context{}); err != nil || got["a"] != "1" {
		t.Errorf("Checkout = %v, %v", got, err)
	}
	if _, err := os.Stat(filepath.Join(home, "trace")); err == nil {
		t.Error("git traced")
	}
}

func TestACanceledCallSaysSo(t *testing.T) {
	w := newWorld(t)
	r := w.repository(t, "www")
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	_, err := w.client.Resolve(ctx, git.Repository{URL: r.url()}, "main")
	if !errors.Is(err, context.Canceled) {
		t.Errorf("Resolve = %v, want that it was canceled", err)
	}
}
