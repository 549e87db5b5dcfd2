package dockertest

import (
	"archive/tar"
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"io"
	"testing"

	"github.com/containerd/errdefs"
	"github.com/docker/docker/api/types/image"
	"github.com/docker/docker/client"
)

// Client gives a test its own connection to an engine. Host is as DOCKER_HOST has it; empty: the engine of [Main].
func Client(tb testing.TB, host string) *client.Client {
	tb.Helper()
	options := []client.Opt{client.FromEnv, client.WithAPIVersionNegotiation()}
	if host != "" {
		options = append(options, client.WithHost(host))
	}
	api, err := client.NewClientWithOpts(options...)
	if err != nil {
		tb.Fatal(err)
	}
	tb.Cleanup(func() { _ = api.Close() })
	return api
}

// File is an entry of an image.
type File struct {
	Name string // without a slash before it
	Type byte   // as in [tar.Header]. Zero: a regular file, a directory if the name ends in a slash, or a symbolic link if Link is set
	Link string
	Mode int64 // zero: 0755
	Body []byte
}

// Archive makes the tar archive of files.
func Archive(tb testing.TB, files ...File) []byte {
	tb.Helper()
	var archive bytes.Buffer
	w := tar.NewWriter(&archive)
	for _, f := range files {
		h := &tar.Header{Name: f.Name, Typeflag: f.Type, Linkname: f.Link, Mode: f.Mode, Size: int64(len(f.Body))}
		if h.Mode == 0 {
			h.Mode = 0o755
		}
		if h.Typeflag == tar.TypeChar {
			h.Devmajor, h.Devminor = 1, 3 // /dev/null; 0, 0 means that a file was removed
		}
		if h.Typeflag == 0 && h.Linkname != "" {
			h.Typeflag = tar.TypeSymlink
		}
		if err := w.WriteHeader(h); err != nil {
			tb.Fatal(err)
		}
		if _, err := w.Write(f.Body); err != nil {
			tb.Fatal(err)
		}
	}
	if err := w.Close(); err != nil {
		tb.Fatal(err)
	}
	return archive.Bytes()
}

// Import makes an image of one layer with a tag, and gives its id. It is removed at the end of the test.
func Import(tb testing.TB, api *client.Client, tag string, files ...File) string {
	tb.Helper()
	source := image.ImportSource{Source: bytes.NewReader(Archive(tb, files...)), SourceName: "-"}
	progress, err := api.ImageImport(tb.Context(), source, tag, image.ImportOptions{})
	if err != nil {
		tb.Fatal(err)
	}
	Finish(tb, progress)
	RemoveImage(tb, api, tag)
	made, err := api.ImageInspect(tb.Context(), tag)
	if err != nil {
		tb.Fatal(err)
	}
	return made.ID
}

// RemoveImage removes an image at the end of the test, if it is there.
func RemoveImage(tb testing.TB, api *client.Client, ref string) {
	tb.Cleanup(func() {
		_, err := api.ImageRemove(context.WithoutCancel(tb.Context()), ref, image.RemoveOptions{Force: true, PruneChildren: true})
		if err != nil && !errdefs.IsNotFound(err) && !client.IsErrConnectionFailed(err) {
			tb.Error(err)
		}
	})
}

// Finish reads what an engine says while it works, to the end.
func Finish(tb testing.TB, progress io.ReadCloser) {
	tb.Helper()
	defer progress.Close()
	for lines := json.NewDecoder(progress); ; {
		var line struct {
			Error string `json:"error"`
		}
		err := lines.Decode(&line)
		if errors.Is(err, io.EOF) {
			return
		}
		if err != nil {
			tb.Fatal(err)
		}
		if line.Error != "" {
			tb.Fatal(line.Error)
		}
	}
}
