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

// FuzzExtract reads hostile layers: whatever they are, the image is refused or gives a file within the limit. An entry
// is a line of its type as tar has it, its name and where it leads; an empty line ends a layer.
func FuzzExtract(f *testing.F) {
	f.Add("0 unikernel\n2 a unikernel\n0 c/old\n\n0 .wh.b\n0 c/.wh..wh..opq\n1 unikernel a\n0 c/new")
	f.Add("5 d\n2 d/unikernel ..\n2 unikernel d/unikernel/d/unikernel\n\n0 d\n3 .wh.d\n0 d/e")
	f.Add("0 ../a\n1 a /../b\n")
	f.Fuzz(func(t *testing.T, text string) {
		l := newLayout(t)
		var layers []ocispec.Descriptor
		for entries := range strings.SplitSeq(text, "\n\n") {
			var content bytes.Buffer
			w := tar.NewWriter(&content)
			for entry := range strings.SplitSeq(entries, "\n") {
				kind, rest, _ := strings.Cut(entry, " ")
				name, to, _ := strings.Cut(rest, " ")
				if len(kind) == 1 && strings.Contains("0123456", kind) {
					w.WriteHeader(&tar.Header{Typeflag: kind[0], Name: name, Linkname: to, Mode: 0o755}) // what tar cannot say is left out
				}
			}
			w.Close()
			layers = append(layers, l.blob(ocispec.MediaTypeImageLayer, content.Bytes()))
		}
		l.tag(l.image(layers...), "")
		l.finish()
		read(t, l)
	})
}

// FuzzResolve reads hostile texts of an image. DIGEST stands for the digest of the manifest.
func FuzzResolve(f *testing.F) {
	f.Add(`{"manifests":[{"mediaType":"application/vnd.oci.image.manifest.v1+json","digest":"DIGEST","size":-1}]}`, `{"layers":[{"mediaType":"application/vnd.oci.image.layer.v1.tar","digest":"sha256:../..","size":1}]}`)
	f.Add(`{"manifests":[{"mediaType":"application/vnd.oci.image.index.v1+json","digest":"DIGEST","size":2}]}`, `{"manifests":[{"platform":{"os":"linux"}}]}`)
	f.Add("", `[{"Config":"manifest.json","RepoTags":["a"],"Layers":["manifest.json"]}]`)
	f.Fuzz(func(t *testing.T, index, manifest string) {
		l := newLayout(t)
		d := l.blob("", []byte(manifest))
		if l.files["manifest.json"] = []byte(manifest); index != "" {
			l.files["index.json"] = []byte(strings.ReplaceAll(index, "DIGEST", string(d.Digest)))
		}
		read(t, l)
	})
}

// read reads a hostile layout. It may be refused, and nothing else.
func read(t *testing.T, l *layout) {
	opened, err := open(t, l.archive())
	if err != nil {
		t.Fatal(err)
	}
	opened.Bound(1<<20, 1000)
	i, err := opened.Resolve("")
	var got bytes.Buffer
	if err == nil {
		err = opened.Extract(t.Context(), i, "/unikernel", &got, 1<<10)
	}
	if _, ok := messages.AsRefusal(err); err != nil && !ok {
		t.Errorf("an error that is no refusal: %v", err)
	}
	if got.Len() > 1<<10 {
		t.Errorf("it gives %d bytes", got.Len())
	}
}
