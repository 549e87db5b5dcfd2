package oci_test

import (
	"archive/tar"
	"bytes"
	"context"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"

	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"fulmar/messages"
	"fulmar/services/builder/docker/dockertest"
	"fulmar/services/builder/oci"
)

// hostileLayer is a layout of one image whose only layer is not what an honest program writes.
func hostileLayer(t *testing.T, content []byte) string {
	l := newLayout(t)
	l.tag(l.image(l.blob(ocispec.MediaTypeImageLayer, content)), "live")
	l.finish()
	return l.write()
}

func TestAHostileLayerIsRefused(t *testing.T) {
	long := strings.Repeat("a", 5000)
	for name, c := range map[string]struct {
		layer []byte
		want  string
	}{
		"a name that leads out":        {header(t, tar.Header{Name: "../../etc/passwd"}), `entry "../../etc/passwd" is not in the image`},
		"a name that goes up":          {header(t, tar.Header{Name: "/a/../../etc/passwd"}), `entry "/a/../../etc/passwd" is not in the image`},
		"a hard link that leads out":   {header(t, tar.Header{Name: "unikernel", Typeflag: tar.TypeLink, Linkname: "../../etc/passwd"}), `entry "../../etc/passwd" is not in the image`},
		"a hard link to nothing":       {header(t, tar.Header{Name: "unikernel", Typeflag: tar.TypeLink, Linkname: "absent"}), `is a hard link to "absent", which is no file`},
		"a hard link to a directory":   {header(t, tar.Header{Name: "unikernel", Typeflag: tar.TypeLink, Linkname: "/"}), "which is no file"},
		"a link that leads out":        {header(t, tar.Header{Name: "unikernel", Typeflag: tar.TypeSymlink, Linkname: "../etc/passwd"}), "/unikernel leads out of the image by a link"},
		"a link without an end":        {header(t, tar.Header{Name: "unikernel", Typeflag: tar.TypeSymlink, Linkname: "unikernel"}), "more than 40 links"},
		"a long link":                  {header(t, tar.Header{Name: "unikernel", Typeflag: tar.TypeSymlink, Linkname: long}), "a link of more than 4096 bytes"},
		"a long name":                  {header(t, tar.Header{Name: long}), "a name of more than 4096 bytes"},
		"a device":                     {header(t, tar.Header{Name: "unikernel", Typeflag: tar.TypeBlock}), "is a device, a pipe or a socket"},
		"a directory":                  {header(t, tar.Header{Name: "unikernel/", Typeflag: tar.TypeDir}), "is a directory, not a file"},
		"a file beyond the limit":      {dockertest.Archive(t, dockertest.File{Name: "unikernel", Body: make([]byte, 1<<20+1)}), "has 1048577 bytes, more than 1048576"},
		"no archive":                   {bytes.Repeat([]byte("x"), 2048), "invalid tar header"},
		"an archive that is cut":       {dockertest.Archive(t, file("unikernel", long))[:2000], "unexpected EOF"},
		"gzip that is cut":             {gzipped(t, dockertest.Archive(t, file("unikernel", "www")))[:50], "unexpected EOF"},
		"gzip with more behind it":     {append(gzipped(t, dockertest.Archive(t, file("unikernel", "www"))), "more and more and more"...), "gzip: invalid header"},
		"zstd that is damaged":         {append(zstandard(t, nil)[:5], "damaged"...), "layer blobs/sha256/"},
		"more below a file than above": {header(t, tar.Header{Name: "unikernel"}, tar.Header{Name: "unikernel/a"}), "is a directory, not a file"},
	} {
		t.Run(name, func(t *testing.T) {
			_, got, err := extract(t, hostileLayer(t, c.layer), "live", "/unikernel")
			wantRefusal(t, err, badImage, c.want)
			if got != "" {
				t.Errorf("it gives %q", got)
			}
		})
	}
}

func TestABombIsBounded(t *testing.T) {
	bomb := dockertest.Archive(t, dockertest.File{Name: "zeros", Body: make([]byte, 1<<24)}, file("unikernel", "www"))
	for name, packed := range map[string][]byte{"gzip": gzipped(t, bomb), "zstd": zstandard(t, bomb)} {
		t.Run(name, func(t *testing.T) {
			l, err := open(t, hostileLayer(t, packed))
			if err != nil {
				t.Fatal(err)
			}
			i, err := l.Resolve("")
			if err != nil {
				t.Fatal(err)
			}
			if err := l.Extract(t.Context(), i, "/unikernel", new(bytes.Buffer), 1<<20); err != nil {
				t.Fatalf("within the bounds: %v", err)
			}
			l.Bound(1<<20, 100)
			wantRefusal(t, l.Extract(t.Context(), i, "/unikernel", new(bytes.Buffer), 1<<20), badImage, "it unpacks to too many bytes")
		})
	}
	deep := header(t, tar.Header{Name: strings.Repeat("a/", 101)})
	l, err := open(t, hostileLayer(t, deep))
	if err != nil {
		t.Fatal(err)
	}
	l.Bound(1<<20, 100)
	i, err := l.Resolve("")
	if err != nil {
		t.Fatal(err)
	}
	wantRefusal(t, l.Extract(t.Context(), i, "/unikernel", new(bytes.Buffer), 1<<20), badImage, "the image has more than 100 files")
}

func TestALayoutThatIsNotWhatItSaysIsRefused(t *testing.T) {
	for name, c := range map[string]struct {
		change func(l *layout, layer, image ocispec.Descriptor)
		want   string
	}{
		"another layer": {func(l *layout, layer, _ ocispec.Descriptor) {
			l.files["blobs/sha256/"+layer.Digest.Encoded()] = dockertest.Archive(l.tb, file("unikernel", "wwx"))
		}, "is not what its digest sha256:"},
		"a shorter layer": {func(l *layout, layer, _ ocispec.Descriptor) {
			l.files["blobs/sha256/"+layer.Digest.Encoded()] = nil
		}, "has 0 bytes, not 2048"},
		"another manifest": {func(l *layout, _, image ocispec.Descriptor) {
			name := "blobs/sha256/" + image.Digest.Encoded()
			l.files[name] = bytes.ToUpper(l.files[name])
		}, "is not what its digest sha256:"},
		"no layer": {func(l *layout, layer, _ ocispec.Descriptor) {
			delete(l.files, "blobs/sha256/"+layer.Digest.Encoded())
		}, "it lacks the file blobs/sha256/"},
		"a digest that leads out": {func(l *layout, _, image ocispec.Descriptor) {
			image.Digest = "sha256:../../../etc/passwd"
			l.index.Manifests = nil
			l.tag(image, "live")
			l.finish()
		}, "invalid checksum digest"},
		"an index that is none":  {func(l *layout, _, _ ocispec.Descriptor) { l.files["index.json"] = []byte("[]") }, "index.json: json:"},
		"an index that is large": {func(l *layout, _, _ ocispec.Descriptor) { l.files["index.json"] = make([]byte, 4<<20+1) }, "index.json has more than 4194304 bytes"},
		"no index":               {func(l *layout, _, _ ocispec.Descriptor) { delete(l.files, "index.json") }, "it has neither index.json nor manifest.json"},
		"layers of another kind": {func(l *layout, layer, _ ocispec.Descriptor) {
			layer.MediaType = "application/vnd.oci.image.layer.v1.tar+gzip+encrypted"
			l.index.Manifests = nil
			l.tag(l.image(layer), "live")
			l.finish()
		}, "which is no archive of files that we can read"},
	} {
		t.Run(name, func(t *testing.T) {
			l := newLayout(t)
			layer := l.layer(file("unikernel", "www"))
			image := l.image(layer)
			l.tag(image, "live")
			l.finish()
			c.change(l, layer, image)
			for _, path := range []string{l.write(), l.archive()} {
				_, _, err := extract(t, path, "live", "/unikernel")
				wantRefusal(t, err, badImage, c.want)
			}
		})
	}
}

func TestASavedImageThatIsNotWhatItSaysIsRefused(t *testing.T) {
	const config = `{"rootfs":{"type":"layers","diff_ids":["sha256:0000000000000000000000000000000000000000000000000000000000000000"]}}`
	const zeros = "0000000000000000000000000000000000000000000000000000000000000000.json"
	for manifest, want := range map[string]string{
		`[{"Config":"c.json","Layers":["l.tar"]}]`:               "layer l.tar is not what its digest sha256:0000",
		`[{"Config":"` + zeros + `","Layers":["l.tar"]}]`:        zeros + " is not what its name says",
		`[{"Config":"c.json","Layers":["l.tar","l.tar"]}]`:       "manifest.json has 2 layers, and the configuration of the image 1",
		`[{"Config":"c.json","Layers":["absent.tar"]}]`:          "it lacks the file absent.tar",
		`[{"Config":"absent.json","Layers":["l.tar"]}]`:          "it lacks the file absent.json",
		`[{"Config":"../../../etc/passwd","Layers":["l.tar"]}]`:  "",
		`[{"Config":"c.json","Layers":["../../../etc/passwd"]}]`: "",
		`{}`: "manifest.json: json:",
	} {
		l := newLayout(t)
		l.files["manifest.json"] = []byte(manifest)
		l.files["c.json"] = []byte(config)
		l.files[zeros] = []byte(config)
		l.files["l.tar"] = dockertest.Archive(t, file("unikernel", "www"))
		for _, path := range []string{l.write(), l.archive()} {
			_, got, err := extract(t, path, "", "/unikernel")
			if want != "" {
				wantRefusal(t, err, badImage, want)
			}
			if err == nil || got != "" {
				t.Errorf("%s gives %q", manifest, got)
			}
		}
	}
}

func TestOpenRefuses(t *testing.T) {
	dir := t.TempDir()
	write := func(name string, content []byte) {
		if err := os.WriteFile(filepath.Join(dir, name), content, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	write("packed.tar.gz", gzipped(t, make([]byte, 1024)))
	write("packed.tar.zst", zstandard(t, make([]byte, 1024)))
	write("text", bytes.Repeat([]byte("text "), 1000))
	write("empty", nil)
	write("out.tar", header(t, tar.Header{Name: "../index.json"}))
	if err := syscall.Mkfifo(filepath.Join(dir, "pipe"), 0o600); err != nil {
		t.Fatal(err)
	}
	for name, want := range map[string]string{
		"packed.tar.gz": "the archive is compressed as a whole", "packed.tar.zst": "the archive is compressed as a whole",
		"text": "it is not a tar archive", "empty": "it has no file", "pipe": "it is neither a directory nor a file", "out.tar": "is not in the image",
	} {
		_, err := open(t, filepath.Join(dir, name))
		wantRefusal(t, err, badImage, want)
	}
	_, err := open(t, filepath.Join(dir, "absent"))
	wantRefusal(t, err, absent, "it does not exist")
	if err := os.Symlink("/etc", filepath.Join(dir, "etc")); err != nil {
		t.Fatal(err)
	}
	_, err = open(t, filepath.Join(dir, "etc"))
	wantRefusal(t, err, badImage, "escapes")
}

func TestALinkInALayoutDoesNotLeadOut(t *testing.T) {
	l := newLayout(t)
	layer := l.layer(file("unikernel", "www"))
	l.tag(l.image(layer), "live")
	l.finish()
	path := l.write()
	blob := filepath.Join(path, "blobs/sha256", layer.Digest.Encoded())
	if err := os.Rename(blob, filepath.Join(filepath.Dir(path), "layer")); err != nil {
		t.Fatal(err)
	}
	if err := os.Symlink("../../../layer", blob); err != nil {
		t.Fatal(err)
	}
	_, _, err := extract(t, path, "", "/unikernel")
	wantRefusal(t, err, badImage, "escapes")
}

func TestErrorsThatATryMayCure(t *testing.T) {
	l, err := open(t, hostileLayer(t, dockertest.Archive(t, file("unikernel", "www"))))
	if err != nil {
		t.Fatal(err)
	}
	i, err := l.Resolve("")
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	for want, err := range map[error]error{
		context.Canceled: l.Extract(ctx, i, "/unikernel", new(bytes.Buffer), 1<<20),
		errFull:          l.Extract(t.Context(), i, "/unikernel", full{}, 1<<20),
	} {
		if _, ok := messages.AsRefusal(err); ok || !errors.Is(err, want) {
			t.Errorf("the error is %v (refused: %v), want %v", err, ok, want)
		}
	}
}

var errFull = errors.New("full")

type full struct{}

func (full) Write([]byte) (int, error) { return 0, errFull }

// FuzzExtract reads hostile layers: whatever they are, the image is refused or the file is of the layer.
func FuzzExtract(f *testing.F) {
	f.Add(dockertest.Archive(f, file("unikernel", "www"), link("a", "unikernel"), file(".wh.b", ""), file("c/.wh..wh..opq", "")))
	f.Add(gzipped(f, dockertest.Archive(f, file("unikernel", "www"))))
	f.Add(zstandard(f, dockertest.Archive(f, file("unikernel", "www"))))
	f.Add(header(f, tar.Header{Name: "d/unikernel", Typeflag: tar.TypeSymlink, Linkname: ".."}, tar.Header{Name: "unikernel", Typeflag: tar.TypeSymlink, Linkname: "d/unikernel/d/unikernel"}))
	base := newLayout(f)
	lower := base.layer(file("unikernel", "lower"), file("c/old", "old"))
	f.Fuzz(func(t *testing.T, content []byte) {
		l := newLayout(t)
		l.files["blobs/sha256/"+lower.Digest.Encoded()] = base.files["blobs/sha256/"+lower.Digest.Encoded()]
		l.tag(l.image(lower, l.blob(ocispec.MediaTypeImageLayer, content)), "")
		l.finish()
		opened, err := open(t, l.archive())
		if err != nil {
			t.Fatal(err)
		}
		i, err := opened.Resolve("")
		if err != nil {
			t.Fatal(err)
		}
		opened.Bound(1<<20, 1000)
		var got bytes.Buffer
		err = opened.Extract(t.Context(), i, "/unikernel", &got, 1<<10)
		if _, ok := messages.AsRefusal(err); err != nil && !ok {
			t.Errorf("an error that is no refusal: %v", err)
		}
		if err == nil && got.Len() > 1<<10 {
			t.Errorf("it gives %d bytes", got.Len())
		}
	})
}

// FuzzOpen reads hostile archives.
func FuzzOpen(f *testing.F) {
	l := newLayout(f)
	l.tag(l.image(l.layer(file("unikernel", "www"))), "live")
	l.finish()
	whole, err := os.ReadFile(l.archive())
	if err != nil {
		f.Fatal(err)
	}
	f.Add(whole)
	l.files = map[string][]byte{"manifest.json": []byte(`[{"Config":"c.json","Layers":["l.tar"]}]`), "c.json": []byte(`{"rootfs":{"diff_ids":["sha256:` + strings.Repeat("0", 64) + `"]}}`)}
	if whole, err = os.ReadFile(l.archive()); err != nil {
		f.Fatal(err)
	}
	f.Add(whole)
	f.Fuzz(func(t *testing.T, content []byte) {
		path := filepath.Join(t.TempDir(), "image.tar")
		if err := os.WriteFile(path, content, 0o600); err != nil {
			t.Fatal(err)
		}
		opened, err := open(t, path)
		var i oci.Image
		if err == nil {
			i, err = opened.Resolve("")
		}
		if err == nil {
			opened.Bound(1<<20, 1000)
			err = opened.Extract(t.Context(), i, "/unikernel", new(bytes.Buffer), 1<<10)
		}
		if _, ok := messages.AsRefusal(err); err != nil && !ok {
			t.Errorf("an error that is no refusal: %v", err)
		}
	})
}
