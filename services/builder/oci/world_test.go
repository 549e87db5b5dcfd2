package oci_test

import (
	"archive/tar"
	"bytes"
	"compress/gzip"
	"encoding/json"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/klauspost/compress/zstd"
	"github.com/opencontainers/go-digest"
	"github.com/opencontainers/image-spec/specs-go"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"fulmar/messages"
	fulmarv1 "fulmar/messages/fulmar/v1"
	"fulmar/services/builder/docker/dockertest"
	"fulmar/services/builder/oci"
)

const (
	badImage = fulmarv1.ReasonCode_REASON_CODE_IMAGE
	absent   = fulmarv1.ReasonCode_REASON_CODE_NOT_FOUND
)

// layout is a layout that a test writes, file by file.
type layout struct {
	tb    testing.TB
	files map[string][]byte
	index ocispec.Index
}

func newLayout(tb testing.TB) *layout {
	return &layout{tb: tb, files: map[string][]byte{}, index: ocispec.Index{Versioned: specs.Versioned{SchemaVersion: 2}}}
}

func (l *layout) blob(mediaType string, content []byte) ocispec.Descriptor {
	d := digest.FromBytes(content)
	l.files["blobs/sha256/"+d.Encoded()] = content
	return ocispec.Descriptor{MediaType: mediaType, Digest: d, Size: int64(len(content))}
}

func (l *layout) json(mediaType string, v any) ocispec.Descriptor {
	return l.blob(mediaType, marshal(l.tb, v))
}

func marshal(tb testing.TB, v any) []byte {
	text, err := json.Marshal(v)
	if err != nil {
		tb.Fatal(err)
	}
	return text
}

// image adds an image of layers, which are compressed in turn as the media type says.
func (l *layout) image(layers ...ocispec.Descriptor) ocispec.Descriptor {
	return l.json(ocispec.MediaTypeImageManifest, ocispec.Manifest{
		Versioned: specs.Versioned{SchemaVersion: 2}, MediaType: ocispec.MediaTypeImageManifest,
		Config: l.json(ocispec.MediaTypeImageConfig, ocispec.Image{}), Layers: layers,
	})
}

func (l *layout) layer(files ...dockertest.File) ocispec.Descriptor {
	return l.blob(ocispec.MediaTypeImageLayer, dockertest.Archive(l.tb, files...))
}

// tag makes an image one of the layout's.
func (l *layout) tag(d ocispec.Descriptor, name string) {
	if name != "" {
		d.Annotations = map[string]string{ocispec.AnnotationRefName: name}
	}
	l.index.Manifests = append(l.index.Manifests, d)
}

func (l *layout) finish() {
	l.files["oci-layout"] = []byte(`{"imageLayoutVersion":"1.0.0"}`)
	l.files["index.json"] = marshal(l.tb, l.index)
}

// write writes the files to a directory and gives its path.
func (l *layout) write() string {
	dir := l.tb.TempDir()
	for name, content := range l.files {
		path := filepath.Join(dir, name)
		if err := os.MkdirAll(filepath.Dir(path), 0o700); err != nil {
			l.tb.Fatal(err)
		}
		if err := os.WriteFile(path, content, 0o600); err != nil {
			l.tb.Fatal(err)
		}
	}
	return dir
}

// archive writes the files to an archive and gives its path.
func (l *layout) archive() string {
	var files []dockertest.File
	for name, content := range l.files {
		files = append(files, dockertest.File{Name: name, Body: content})
	}
	path := filepath.Join(l.tb.TempDir(), "image.tar")
	if err := os.WriteFile(path, dockertest.Archive(l.tb, files...), 0o600); err != nil {
		l.tb.Fatal(err)
	}
	return path
}

func gzipped(tb testing.TB, content []byte) []byte {
	var packed bytes.Buffer
	w := gzip.NewWriter(&packed)
	if _, err := w.Write(content); err != nil {
		tb.Fatal(err)
	}
	if err := w.Close(); err != nil {
		tb.Fatal(err)
	}
	return packed.Bytes()
}

func zstandard(tb testing.TB, content []byte) []byte {
	w, err := zstd.NewWriter(nil)
	if err != nil {
		tb.Fatal(err)
	}
	defer w.Close()
	return w.EncodeAll(content, nil)
}

// open opens a layout by its path.
func open(tb testing.TB, path string) (*oci.Layout, error) {
	root, err := os.OpenRoot(filepath.Dir(path))
	if err != nil {
		tb.Fatal(err)
	}
	tb.Cleanup(func() { root.Close() })
	l, err := oci.Open(root, filepath.Base(path))
	if err == nil {
		tb.Cleanup(func() { l.Close() })
	}
	return l, err
}

// extract gives the file at a path of an image.
func extract(tb testing.TB, layout, ref, path string) (oci.Image, string, error) {
	l, err := open(tb, layout)
	if err != nil {
		return oci.Image{}, "", err
	}
	i, err := l.Resolve(ref)
	if err != nil {
		return i, "", err
	}
	var got bytes.Buffer
	err = l.Extract(tb.Context(), i, path, &got, 1<<20)
	return i, got.String(), err
}

func wantRefusal(t *testing.T, err error, code fulmarv1.ReasonCode, text string) {
	t.Helper()
	if r, ok := messages.AsRefusal(err); !ok || r.Code != code || !strings.Contains(err.Error(), text) {
		t.Errorf("refused: %v, %v; want %v, %q", ok, err, code, text)
	}
}

// header makes an archive of headers that no honest program writes.
func header(tb testing.TB, headers ...tar.Header) []byte {
	var archive bytes.Buffer
	w := tar.NewWriter(&archive)
	for _, h := range headers {
		h.Mode = int64(fs.ModePerm)
		if err := w.WriteHeader(&h); err != nil {
			tb.Fatal(err)
		}
	}
	if err := w.Close(); err != nil {
		tb.Fatal(err)
	}
	return archive.Bytes()
}
