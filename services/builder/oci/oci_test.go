package oci_test

import (
	"bytes"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/google/go-containerregistry/pkg/name"
	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/empty"
	gcrlayout "github.com/google/go-containerregistry/pkg/v1/layout"
	"github.com/google/go-containerregistry/pkg/v1/mutate"
	"github.com/google/go-containerregistry/pkg/v1/tarball"
	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
	"go.uber.org/goleak"

	"fulmar/services/builder/docker"
	"fulmar/services/builder/docker/dockertest"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

func file(name, body string) dockertest.File { return dockertest.File{Name: name, Body: []byte(body)} }

func link(name, to string) dockertest.File { return dockertest.File{Name: name, Link: to} }

func TestLayersAreApplied(t *testing.T) {
	l := newLayout(t)
	first := []dockertest.File{
		file("kept", "kept"), file("changed", "old"), file("gone", "gone"), file("dir/gone", "gone"), file("dir/kept", "kept"),
		file("opaque/old", "old"), file("opaque/sub/old", "old"), file("tofile/below", "below"), file("todir", "file"),
		link("tolink", "kept"), file("whole/a/b", "b"), file("again", "old"),
	}
	second := []dockertest.File{
		file("changed", "new"), file(".wh.gone", ""), file("dir/.wh.gone", ""), file("./dir/new", "new"),
		file("opaque/sub/new", "new"), file("opaque/.wh..wh..opq", ""), file("opaque/new", "new"),
		file("tofile", "file"), file("todir/below", "below"), file("tolink/below", "below"), file(".wh.whole", ""),
		file("again", "new"), file(".wh.again", ""), // a whiteout is about the layers below
		link("absolute", "/dir/kept"), link("dir/up", "../kept"),
		{Name: "hard", Link: "dir/kept", Type: '1'},
		link("linked", "dir"),
	}
	third := []dockertest.File{file(".wh.never-there", ""), {Name: "dir/"}, file("/rooted", "rooted"), file(".wh.tofile", "")}
	gz := func(f ...dockertest.File) ocispec.Descriptor {
		return l.blob(ocispec.MediaTypeImageLayerGzip, gzipped(t, dockertest.Archive(t, f...)))
	}
	l.tag(l.image(l.layer(first...), gz(second...), l.blob(ocispec.MediaTypeImageLayerZstd, zstandard(t, dockertest.Archive(t, third...)))), "live")
	l.finish()
	for _, path := range []string{l.write(), l.archive()} {
		for name, want := range map[string]string{
			"/kept": "kept", "/changed": "new", "/dir/kept": "kept", "/dir/new": "new", "/opaque/new": "new", "/opaque/sub/new": "new",
			"/todir/below": "below", "/tolink/below": "below", "/absolute": "kept", "/dir/up": "kept", "/hard": "kept", "/linked/kept": "kept",
			"/again": "new", "/rooted": "rooted",
		} {
			if _, got, err := extract(t, path, "live", name); err != nil || got != want {
				t.Errorf("%s is %q, %v, want %q", name, got, err, want)
			}
		}
		for _, name := range []string{"/gone", "/dir/gone", "/opaque/old", "/opaque/sub/old", "/tofile", "/tofile/below", "/whole/a/b", "/whole", "/.wh.gone", "/opaque/.wh..wh..opq"} {
			_, _, err := extract(t, path, "live", name)
			wantRefusal(t, err, absent, "the image has no file "+name)
		}
	}
}

func TestAnImageIsFoundByItsReference(t *testing.T) {
	l := newLayout(t)
	www, dns := l.image(l.layer(file("unikernel", "www"))), l.image(l.layer(file("unikernel", "dns")))
	arm := l.image(l.layer(file("unikernel", "arm")))
	arm.Platform = &ocispec.Platform{OS: "linux", Architecture: "arm64"}
	amd := www
	amd.Platform = &ocispec.Platform{OS: "linux", Architecture: "amd64"}
	proof := l.image(l.layer(file("unikernel", "proof")))
	proof.Platform = &ocispec.Platform{OS: "unknown", Architecture: "unknown"}
	index := func(d ...ocispec.Descriptor) ocispec.Descriptor {
		return l.json(ocispec.MediaTypeImageIndex, ocispec.Index{MediaType: ocispec.MediaTypeImageIndex, Manifests: d})
	}
	l.tag(www, "live")
	l.tag(dns, "docker.io/library/dns:latest")
	l.tag(index(arm, amd, proof), "platforms")
	l.tag(index(index(arm, index(amd))), "nested")
	l.tag(index(index(index(index(amd)))), "deep")
	l.tag(index(arm), "arm")
	l.finish()
	path := l.write()
	for ref, want := range map[string]string{"live": "www", string(www.Digest): "www", "dns": "dns", "dns:latest": "dns", "docker.io/library/dns": "dns", "platforms": "www", "nested": "www"} {
		if i, got, err := extract(t, path, ref, "/unikernel"); err != nil || got != want || !strings.HasPrefix(i.Digest, "sha256:") {
			t.Errorf("%s is %v, %q, %v, want %q", ref, i, got, err, want)
		}
	}
	for ref, want := range map[string]string{
		"":     `reference "" names 6 images: name one of live, docker.io/library/dns:latest, platforms, nested, deep, arm`,
		"deep": "it has more than 4 indexes within one another",
	} {
		_, _, err := extract(t, path, ref, "/unikernel")
		wantRefusal(t, err, badImage, want)
	}
	for ref, want := range map[string]string{
		"other": "it has no image other, only live, docker.io/library/dns:latest, platforms, nested, deep, arm",
		"arm":   "it has no image for linux/amd64, only for linux/arm64",
	} {
		_, _, err := extract(t, path, ref, "/unikernel")
		wantRefusal(t, err, absent, want)
	}
}

func TestTheOnlyImageNeedsNoReference(t *testing.T) {
	l := newLayout(t)
	d := l.image(l.layer(file("unikernel", "www")))
	l.tag(d, "a")
	l.tag(d, "b")
	l.finish()
	if i, got, err := extract(t, l.archive(), "", "/unikernel"); err != nil || got != "www" || i.Digest != string(d.Digest) {
		t.Errorf("it is %v, %q, %v", i, got, err)
	}
}

// TestWhatOthersWrite reads what go-containerregistry writes.
func TestWhatOthersWrite(t *testing.T) {
	layer, err := tarball.LayerFromOpener(func() (io.ReadCloser, error) {
		return io.NopCloser(bytes.NewReader(dockertest.Archive(t, file("unikernel", "www")))), nil
	})
	if err != nil {
		t.Fatal(err)
	}
	image, err := mutate.AppendLayers(empty.Image, layer)
	if err != nil {
		t.Fatal(err)
	}
	dir := t.TempDir()
	index := mutate.AppendManifests(empty.Index, mutate.IndexAddendum{Add: image, Descriptor: v1.Descriptor{Platform: &v1.Platform{OS: "linux", Architecture: "amd64"}}})
	if _, err := gcrlayout.Write(filepath.Join(dir, "layout"), index); err != nil {
		t.Fatal(err)
	}
	tag, err := name.NewTag("registry.example/www:live")
	if err != nil {
		t.Fatal(err)
	}
	if err := tarball.WriteToFile(filepath.Join(dir, "saved.tar"), tag, image); err != nil {
		t.Fatal(err)
	}
	for file, refs := range map[string][]string{"layout": {""}, "saved.tar": {"", "registry.example/www:live"}} {
		for _, ref := range refs {
			if _, got, err := extract(t, filepath.Join(dir, file), ref, "/unikernel"); err != nil || got != "www" {
				t.Errorf("%s of %s is %q, %v", ref, file, got, err)
			}
		}
	}
}

// TestWhatDockerSaves reads what docker save writes of two images that share a layer.
func TestWhatDockerSaves(t *testing.T) {
	own := dockertest.Start(t)
	api := dockertest.Client(t, own.Host())
	ids := map[string]string{}
	for _, tag := range []string{"fulmar-www:live", "fulmar-dns:live"} {
		ids[tag] = dockertest.Import(t, api, tag, file("unikernel", tag), link("linked", "unikernel"))
	}
	saved, err := api.ImageSave(t.Context(), []string{"fulmar-www:live", "fulmar-dns:live"})
	if err != nil {
		t.Fatal(err)
	}
	defer saved.Close()
	path := filepath.Join(t.TempDir(), "saved.tar")
	f, err := os.Create(path)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := io.Copy(f, saved); err != nil {
		t.Fatal(err)
	}
	f.Close()
	for tag, id := range ids {
		for _, ref := range []string{tag, id} {
			if i, got, err := extract(t, path, ref, "/linked"); err != nil || got != tag || i.Digest != id {
				t.Errorf("%s is %v, %q, %v, want %s", ref, i, got, err, id)
			}
		}
	}
	_, _, err = extract(t, path, "", "/unikernel")
	wantRefusal(t, err, badImage, "names 2 images: name one of")
	_, _, err = extract(t, path, "fulmar-other:live", "/unikernel")
	wantRefusal(t, err, absent, "it has no image fulmar-other:live, only fulmar-")
}

// TestAnEngineAgrees gives an engine the layers that we read, as docker save writes them, and compares.
func TestAnEngineAgrees(t *testing.T) {
	layers := [][]dockertest.File{
		{
			{Name: "a/"},
			file("a/kept", "kept"), file("a/gone", "gone"),
			{Name: "b/"},
			{Name: "b/c/"},
			file("b/c/old", "old"), file("b/old", "old"),
			file("changed", "old"), link("link", "a/kept"),
			{Name: "hard", Link: "a/kept", Type: '1'},
			{Name: "d/"},
			file("d/e", "e"), file("tofile", "f"),
			{Name: "todir/"},
			file("todir/x", "x"),
		},
		{
			{Name: "a/"},
			file("a/.wh.gone", ""), file("a/new", "new"),
			{Name: "b/"},
			file("b/.wh..wh..opq", ""), file("b/new", "new"),
			{Name: "b/c/"},
			file("b/c/new", "new"),
			file("changed", "new"), file(".wh.d", ""), link("todir", "a"), link("up", "b/../../x"), link("around", "/a/../link"),
		},
		{{Name: "d/"}, file("d/f", "f"), {Name: "tofile/"}, file("tofile/y", "y"), {Name: "a/"}, link("a/gone", "/hard"), link("b", "a")},
	}
	l := newLayout(t)
	var saved struct {
		Config   string
		RepoTags []string
		Layers   []string
	}
	config := ocispec.Image{Platform: ocispec.Platform{OS: "linux", Architecture: "amd64"}, RootFS: ocispec.RootFS{Type: "layers"}}
	for n, files := range layers {
		archive, name := dockertest.Archive(t, files...), fmt.Sprintf("%d/layer.tar", n)
		l.files[name] = archive
		saved.Layers = append(saved.Layers, name)
		config.RootFS.DiffIDs = append(config.RootFS.DiffIDs, digest.FromBytes(archive))
	}
	saved.Config, saved.RepoTags = digest.FromBytes(marshal(t, config)).Encoded()+".json", []string{"fulmar-agree:test"}
	l.files[saved.Config], l.files["manifest.json"] = marshal(t, config), marshal(t, []any{saved})
	path := l.archive()

	own := dockertest.Start(t)
	e, err := docker.New(docker.Config{Host: own.Host(), Owner: t.Name()})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { e.Close() })
	archive, err := os.Open(path)
	if err != nil {
		t.Fatal(err)
	}
	defer archive.Close()
	loaded, err := dockertest.Client(t, own.Host()).ImageLoad(t.Context(), archive)
	if err != nil {
		t.Fatal(err)
	}
	dockertest.Finish(t, loaded.Body)
	i, err := e.Resolve(t.Context(), docker.Reference{Image: saved.RepoTags[0], Pull: docker.PullNever})
	if err != nil {
		t.Fatal(err)
	}
	for _, name := range []string{
		"/a/kept", "/a/gone", "/a/new", "/b/c/old", "/b/old", "/b/new", "/b/kept", "/b/c/new", "/changed", "/link", "/hard", "/d/e", "/d/f", "/d", "/tofile", "/tofile/y", "/todir/x",
		"/todir/kept", "/up", "/around", "/.wh.d", "/absent/x",
	} {
		var theirs bytes.Buffer
		theirErr := e.Extract(t.Context(), i.ID, name, &theirs, 1<<20)
		ours, got, err := extract(t, path, "", name)
		if fmt.Sprint(err) != fmt.Sprint(theirErr) || got != theirs.String() || ours.Digest != i.ID {
			t.Errorf("%s is %q, %v; an engine says %q, %v", name, got, err, theirs.String(), theirErr)
		}
	}
}
