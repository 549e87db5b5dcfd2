package docker_test

import (
	"bytes"
	"context"
	"errors"
	"strings"
	"testing"

	"github.com/docker/docker/api/types/container"
	"github.com/docker/docker/api/types/filters"
	"github.com/docker/docker/api/types/volume"
	"github.com/docker/docker/client"
	"go.uber.org/goleak"

	"fulmar/messages"
	fulmarv1 "fulmar/messages/fulmar/v1"
	"fulmar/services/builder/docker"
	"fulmar/services/builder/docker/dockertest"
)

const (
	invalid  = fulmarv1.ReasonCode_REASON_CODE_INVALID
	absent   = fulmarv1.ReasonCode_REASON_CODE_NOT_FOUND
	badImage = fulmarv1.ReasonCode_REASON_CODE_IMAGE
)

func TestMain(m *testing.M) {
	if waitAsVictim() {
		return
	}
	goleak.VerifyTestMain(dockertest.Main(m))
}

// world is an engine that nothing may be left in at the end of the test.
func world(t *testing.T, host string) (*docker.Engine, *client.Client) {
	t.Helper()
	e, err := docker.New(docker.Config{Host: host, Owner: t.Name()})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { e.Close() })
	api := dockertest.Client(t, host)
	before := volumes(t, api)
	t.Cleanup(func() {
		if left := containers(t, api, t.Name()); len(left) > 0 {
			t.Errorf("containers are left behind: %v", left)
		}
		if left := volumes(t, api); left > before {
			t.Errorf("%d volumes are left behind", left-before)
		}
	})
	return e, api
}

// containers lists what the builder of an owner has in an engine.
func containers(t *testing.T, api *client.Client, owner string) []string {
	t.Helper()
	found, err := api.ContainerList(context.WithoutCancel(t.Context()), container.ListOptions{All: true, Filters: filters.NewArgs(filters.Arg("label", docker.Label+"="+owner))})
	if err != nil {
		t.Fatal(err)
	}
	var names []string
	for _, c := range found {
		names = append(names, c.Names...)
	}
	return names
}

func volumes(t *testing.T, api *client.Client) int {
	t.Helper()
	v, err := api.VolumeList(context.WithoutCancel(t.Context()), volume.ListOptions{})
	if err != nil {
		t.Fatal(err)
	}
	return len(v.Volumes)
}

// extract gives the file at a path of an image.
func extract(t *testing.T, e *docker.Engine, id, path string) (string, error) {
	t.Helper()
	var got bytes.Buffer
	err := e.Extract(t.Context(), id, path, &got, 1<<20)
	return got.String(), err
}

// wantRefusal looks whether an error ends a deployment, for a reason.
func wantRefusal(t *testing.T, err error, code fulmarv1.ReasonCode, text string) {
	t.Helper()
	if r, ok := messages.AsRefusal(err); !ok || r.Code != code || !strings.Contains(err.Error(), text) {
		t.Errorf("refused: %v, %v; want %v, %q", ok, err, code, text)
	}
}

// wantRetry looks whether an error is worth another try.
func wantRetry(t *testing.T, err error, text string) {
	t.Helper()
	if _, ok := messages.AsRefusal(err); err == nil || ok || !strings.Contains(err.Error(), text) {
		t.Errorf("the error is %v (refused: %v), want one to try again, with %q", err, ok, text)
	}
}

func TestExtract(t *testing.T) {
	e, api := world(t, "")
	id := dockertest.Import(t, api, "fulmar-extract:test",
		dockertest.File{Name: "unikernel", Body: []byte("solo5")},
		dockertest.File{Name: "empty"},
		dockertest.File{Name: "secret", Body: []byte("secret"), Mode: 0o400},
		dockertest.File{Name: "srv/"},
		dockertest.File{Name: "srv/www", Body: []byte("www")},
		dockertest.File{Name: "srv/hard", Link: "srv/www", Type: '1'},
		dockertest.File{Name: "srv/up", Link: "../unikernel"},
		dockertest.File{Name: "link", Link: "/srv/www"},
		dockertest.File{Name: "links", Link: "link"},
		dockertest.File{Name: "dir", Link: "srv"},
		dockertest.File{Name: "a file: ö%2F?", Body: []byte("odd")},
		dockertest.File{Name: "srv/full", Body: make([]byte, 1<<20)},
	)
	for path, want := range map[string]string{
		"/unikernel":     "solo5",
		"/empty":         "",
		"/secret":        "secret",
		"/srv/www":       "www",
		"/srv/hard":      "www",
		"/srv/up":        "solo5",
		"/link":          "www",
		"/links":         "www",
		"/dir/www":       "www",
		"/dir/up":        "solo5",
		"/a file: ö%2F?": "odd",
		"/srv/full":      string(make([]byte, 1<<20)),
	} {
		if got, err := extract(t, e, id, path); err != nil || got != want {
			t.Errorf("Extract of %s = %.20q, %v, want %.20q", path, got, err, want)
		}
	}
}

func TestExtractRefuses(t *testing.T) {
	e, api := world(t, "")
	id := dockertest.Import(t, api, "fulmar-refuse:test",
		dockertest.File{Name: "unikernel", Body: []byte("solo5")},
		dockertest.File{Name: "srv/"},
		dockertest.File{Name: "srv/out", Link: "../../etc/hostname"},
		dockertest.File{Name: "tosrv", Link: "srv"},
		dockertest.File{Name: "nowhere", Link: "/srv/absent"},
		dockertest.File{Name: "loop", Link: "loop"},
		dockertest.File{Name: "loop2", Link: "loop2/x"},
		dockertest.File{Name: "null", Type: '3'},
		dockertest.File{Name: "pipe", Type: '6'},
		dockertest.File{Name: "huge", Body: make([]byte, 1<<20+1)},
	)
	for path, want := range map[string]struct {
		code fulmarv1.ReasonCode
		text string
	}{
		"/absent":      {absent, "the image has no file /absent"},
		"/srv/a/b":     {absent, "the image has no file /srv/a/b"},
		"/unikernel/a": {absent, "the image has no file /unikernel/a"},
		"/nowhere":     {absent, "the image has no file /srv/absent, to which its link /nowhere leads"},
		"/srv":         {badImage, "/srv of the image is a directory, not a file"},
		"/tosrv":       {badImage, "/srv, to which its link /tosrv leads, of the image is a directory, not a file"},
		"/srv/out":     {badImage, "/srv/out leads out of the image by a link"},
		"/loop":        {badImage, "/loop leads through more than 40 links of the image"},
		"/loop2":       {badImage, "/loop2 leads through more than 40 links of the image"},
		"/null":        {badImage, "/null of the image is a device, a pipe or a socket, not a file"},
		"/pipe":        {badImage, "/pipe of the image is a device, a pipe or a socket, not a file"},
		"/huge":        {badImage, "/huge of the image has 1048577 bytes, more than 1048576"},
	} {
		got, err := extract(t, e, id, path)
		wantRefusal(t, err, want.code, want.text)
		if got != "" {
			t.Errorf("Extract of %s writes %.20q", path, got)
		}
	}
}

func TestAVolumeOfAnImageIsNotLeftBehind(t *testing.T) {
	e, api := world(t, "")
	var context bytes.Buffer
	context.Write(dockertest.Archive(t,
		dockertest.File{Name: "Dockerfile", Body: []byte("FROM scratch\nCOPY www /srv/www\nVOLUME /srv\n")},
		dockertest.File{Name: "www", Body: []byte("www")}))
	built, err := api.ImageBuild(t.Context(), &context, buildOptions("fulmar-volume:test"))
	if err != nil {
		t.Fatal(err)
	}
	dockertest.Finish(t, built.Body)
	dockertest.RemoveImage(t, api, "fulmar-volume:test")
	i, err := e.Resolve(t.Context(), docker.Reference{Image: "fulmar-volume:test"})
	if err != nil {
		t.Fatal(err)
	}
	if got, err := extract(t, e, i.ID, "/srv/www"); err != nil || got != "www" {
		t.Errorf("Extract = %q, %v", got, err)
	}
}

func TestAnImageThatWasRemovedIsWorthAnotherTry(t *testing.T) {
	e, _ := world(t, "")
	_, err := extract(t, e, "sha256:"+strings.Repeat("0", 64), "/unikernel")
	wantRetry(t, err, "No such image")
}

func TestAWriterThatFailsIsToldAsItIs(t *testing.T) {
	e, api := world(t, "")
	id := dockertest.Import(t, api, "fulmar-writer:test", dockertest.File{Name: "unikernel", Body: []byte("solo5")})
	err := e.Extract(t.Context(), id, "/unikernel", failing{}, 1<<20)
	wantRetry(t, err, "copy /unikernel")
	if !errors.Is(err, errFailing) {
		t.Errorf("the error of the writer is lost: %v", err)
	}
}

var errFailing = errors.New("no more")

type failing struct{}

func (failing) Write([]byte) (int, error) { return 0, errFailing }
