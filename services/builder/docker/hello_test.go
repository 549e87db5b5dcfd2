package docker_test

import (
	"bytes"
	"crypto/rand"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"fulmar/services/builder/docker"
	"fulmar/services/builder/docker/dockertest"
	"fulmar/services/builder/git"
	"fulmar/solo5"
)

// helloRepository makes a repository with the sources of examples/hello, and a file that no earlier run had.
func helloRepository(t *testing.T, root string) (url, commit string) {
	t.Helper()
	dir := filepath.Join(root, "repository", "hello")
	if err := os.CopyFS(dir, os.DirFS("../../../examples/hello")); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(dir, "unikernel", "nonce"), []byte(rand.Text()), 0o600); err != nil {
		t.Fatal(err)
	}
	run := func(args ...string) []byte {
		cmd := exec.Command("git", append([]string{"-C", filepath.Dir(dir), "-c", "user.name=a", "-c", "user.email=a@b"}, args...)...)
		out, err := cmd.Output()
		if err != nil {
			t.Fatalf("git %v: %v", args, err)
		}
		return bytes.TrimSpace(out)
	}
	run("init", "--quiet")
	run("add", "--all")
	run("commit", "--quiet", "--message=x")
	return "file://" + filepath.Dir(dir), string(run("rev-parse", "HEAD"))
}

func TestHelloIsCompiledFromARepositoryAndTheSameEveryTime(t *testing.T) {
	e, api := world(t, "")
	dockertest.Import(t, api, "fulmar-compiler:test", dockertest.Compiler(t)...)
	images := map[string]bool{}
	for range 2 {
		root := t.TempDir()
		url, commit := helloRepository(t, root)
		c, err := git.New(git.Config{FileRoot: root, Temp: t.TempDir(), MaxSize: 64 << 20, Ask: time.Minute, Fetch: time.Minute})
		if err != nil {
			t.Fatal(err)
		}
		checkout, err := c.Checkout(t.Context(), git.Repository{URL: url}, commit)
		if err != nil {
			t.Fatal(err)
		}
		in, out := io.Pipe()
		go func() { out.CloseWithError(checkout.Tar(t.Context(), git.Context{Directory: "hello"}, out)) }()
		r := &recorder{}
		b := with(docker.Build{Builder: docker.BuildKit, Args: map[string]string{"BASE": "fulmar-compiler:test", "TARGET": "hvt"}})
		id, err := e.Build(t.Context(), b, in, r.log)
		if err != nil {
			t.Fatalf("Build: %v\n%s", err, r)
		}
		if got := r.of("RUN make"); got[len(got)-1] != "done" {
			t.Errorf("it was not compiled: %q", got)
		}
		got, err := extract(t, e, id, "/unikernel")
		if err != nil {
			t.Fatal(err)
		}
		images[got] = true
		if err := e.Discard(t.Context(), id); err != nil {
			t.Error(err)
		}
		checkout.Close()
		if err := c.Close(); err != nil {
			t.Error(err)
		}
	}
	if len(images) != 1 {
		t.Fatalf("two builds gave %d images", len(images))
	}
	for image := range images {
		i, err := solo5.Read(strings.NewReader(image), int64(len(image)))
		if err != nil || i.Target != solo5.HVT {
			t.Errorf("the image is %v, %v", i, err)
		}
	}
}
