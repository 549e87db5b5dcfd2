package builder

import (
	"fmt"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"fulmar/messages"
	fulmarv1 "fulmar/messages/fulmar/v1"
)

func file(path string) *fulmarv1.Image {
	return &fulmarv1.Image{Source: &fulmarv1.Image_File{File: path}}
}

func object(digest string) *fulmarv1.Image {
	return &fulmarv1.Image{Source: &fulmarv1.Image_Object{Object: digest}}
}

func fromURL(url, digest string) *fulmarv1.Image {
	return &fulmarv1.Image{Source: &fulmarv1.Image_Url{Url: url}, Sha256: digest}
}

// got gets an image by a builder that knows none.
func (w *world) got(source *fulmarv1.Image) (image, error) { return w.gotBy(w.replica(), source) }

// gotBy gets an image by a builder.
func (w *world) gotBy(s *Service, source *fulmarv1.Image) (image, error) {
	i, _, err := s.image(w.t.Context(), source, w.log("web"))
	return i, err
}

// log is the log of a unit of web-1.
func (w *world) log(unit string) *log {
	return &log{bus: w.Bus, stack: "web", generation: 1, unit: unit, now: time.Now}
}

func (w *world) stored(digest string) bool {
	w.t.Helper()
	_, err := w.Images.GetInfo(w.t.Context(), digest)
	return err == nil
}

func TestAnImageOfAFile(t *testing.T) {
	w := newWorld(t)
	path, digest := w.image(1)
	if err := os.Symlink("guest.spt", filepath.Join(w.root, "latest.spt")); err != nil {
		t.Fatal(err)
	}
	for name, source := range map[string]*fulmarv1.Image{
		"by its path":            file(path),
		"by its path and digest": {Source: &fulmarv1.Image_File{File: path}, Sha256: digest},
		"by a link within":       file(filepath.Join(w.root, "latest.spt")),
		"by a way round":         file(w.root + "/x/../guest.spt"),
	} {
		got, err := w.got(source)
		if err != nil {
			t.Errorf("%s: %v", name, err)
			continue
		}
		if got.digest != digest || got.size == 0 || got.solo5 == nil || !w.stored(digest) {
			t.Errorf("%s: got %+v, stored: %v", name, got, w.stored(digest))
		}
	}
	if got, err := w.got(object(digest)); err != nil || got.digest != digest || got.solo5 == nil {
		t.Errorf("as an object, afterwards: got %+v, %v", got, err)
	}
}

func TestAnImageThatCannotBe(t *testing.T) {
	w := newWorld(t)
	path, digest := w.image(1)
	other := strings.Repeat("0", 64)
	text := w.file("notes.txt", []byte("these are not the bytes of an ELF file"))
	large := w.file("large.spt", make([]byte, 1<<20+1))
	pipe := filepath.Join(w.root, "pipe")
	if err := syscall.Mkfifo(pipe, 0o600); err != nil {
		t.Fatal(err)
	}
	outside := filepath.Join(t.TempDir(), "secret")
	if err := os.WriteFile(outside, []byte("x"), 0o600); err != nil {
		t.Fatal(err)
	}
	link := filepath.Join(w.root, "link")
	if err := os.Symlink(outside, link); err != nil {
		t.Fatal(err)
	}
	const (
		bad      = fulmarv1.ReasonCode_REASON_CODE_IMAGE
		notFound = fulmarv1.ReasonCode_REASON_CODE_NOT_FOUND
	)
	for name, c := range map[string]struct {
		source *fulmarv1.Image
		code   fulmarv1.ReasonCode
		want   string
	}{
		"a file that is not there":         {file(w.root + "/none"), notFound, "image: file " + w.root + "/none does not exist"},
		"a file outside":                   {file(outside), bad, "image: file " + outside + " is not below " + w.root + ", where this builder takes files from"},
		"a file outside, by a way round":   {file(w.root + "/../secret"), bad, "is not below " + w.root},
		"a file whose name begins as ours": {file(w.root + "x/secret"), bad, "is not below " + w.root},
		"a link that leads out":            {file(link), bad, "image: file " + link + ": "},
		"a directory":                      {file(w.root), bad, "image: file " + w.root + " is not a regular file"},
		"a pipe that nobody writes to":     {file(pipe), bad, "image: file " + pipe + " is not a regular file"},
		"a file that is too large":         {file(large), bad, "image: it has more than 1048576 bytes"},
		"a file that is no image":          {file(text), bad, "image: "},
		"a file with another digest":       {&fulmarv1.Image{Source: &fulmarv1.Image_File{File: path}, Sha256: other}, bad, "image: its SHA-256 is " + digest + ", not " + other + " as the request says"},
		"an object that is not there":      {object(other), notFound, "image: the store has no object " + other},
		"an object that is another":        {&fulmarv1.Image{Source: &fulmarv1.Image_Object{Object: other}, Sha256: digest}, bad, "image: object " + other + " is not the image with SHA-256 " + digest},
		"no source":                        {&fulmarv1.Image{}, bad, "image: the request names no source"},
	} {
		t.Run(name, func(t *testing.T) {
			_, err := w.got(c.source)
			refusal, ok := messages.AsRefusal(err)
			if !ok || refusal.Code != c.code || !strings.Contains(err.Error(), c.want) {
				t.Errorf("got  %v\nwant %s: %s", err, c.code, c.want)
			}
		})
	}
	if w.stored(digest) || w.stored(other) {
		t.Error("something was stored")
	}
	c := w.config()
	c.FileRoot = ""
	if _, err := w.gotBy(New(w.Bus, c, prometheus.NewRegistry()), file(path)); err == nil || !strings.Contains(err.Error(), "this builder takes no files (--file-root)") {
		t.Errorf("without a root it gives %v", err)
	}
}

func TestAnImageOfAURL(t *testing.T) {
	w := newWorld(t)
	path, digest := w.image(1)
	body, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	var busy atomic.Int32
	mux := http.NewServeMux()
	mux.HandleFunc("/image", func(w http.ResponseWriter, _ *http.Request) { _, _ = w.Write(body) })
	mux.HandleFunc("/busy", func(w http.ResponseWriter, _ *http.Request) {
		if busy.Add(1) == 1 {
			http.Error(w, "come back later", http.StatusInternalServerError)
			return
		}
		_, _ = w.Write(body)
	})
	mux.HandleFunc("/cut", func(w http.ResponseWriter, _ *http.Request) {
		w.Header().Set("Content-Length", fmt.Sprint(len(body)))
		_, _ = w.Write(body[:100])
	})
	mux.HandleFunc("/endless", func(w http.ResponseWriter, _ *http.Request) {
		for {
			if _, err := w.Write(make([]byte, 1<<16)); err != nil {
				return
			}
		}
	})
	mux.Handle("/moved", http.RedirectHandler("/image", http.StatusFound))
	server := httptest.NewServer(mux)
	t.Cleanup(server.Close)

	for _, path := range []string{"/image", "/moved"} {
		if got, err := w.got(fromURL(server.URL+path, digest)); err != nil || got.digest != digest {
			t.Errorf("%s: got %+v, %v", path, got, err)
		}
	}
	again := w.replica()
	if _, err := w.gotBy(again, fromURL(server.URL+"/busy", digest)); err == nil {
		t.Error("a server that fails gives an image")
	} else if _, refused := messages.AsRefusal(err); refused {
		t.Errorf("%v is final, and a server may recover", err)
	}
	if _, err := w.gotBy(again, fromURL(server.URL+"/busy", digest)); err != nil {
		t.Errorf("after it recovered: %v", err)
	}
	if _, err := w.got(fromURL(server.URL+"/cut", digest)); err == nil {
		t.Error("a body that is cut off gives an image")
	} else if _, refused := messages.AsRefusal(err); refused {
		t.Errorf("%v is final, and the next try may be whole", err)
	}
	secret := strings.Replace(server.URL, "http://", "http://user:secret@", 1)
	for name, c := range map[string]struct{ url, sum, want string }{
		"what is not there":  {secret + "/none", digest, "the server answers 404 Not Found"},
		"another image":      {server.URL + "/image", strings.Repeat("0", 64), "image: its SHA-256 is " + digest},
		"one without an end": {server.URL + "/endless", digest, "image: it has more than 1048576 bytes"},
		"a URL that is none": {"http://[", digest, "image: "},
	} {
		_, err := w.got(fromURL(c.url, c.sum))
		if _, refused := messages.AsRefusal(err); !refused || !strings.Contains(err.Error(), c.want) || strings.Contains(err.Error(), "secret") {
			t.Errorf("%s: got %v, want %q", name, err, c.want)
		}
	}
}

func TestAKnownImageIsNotFetchedAgain(t *testing.T) {
	w := newWorld(t)
	path, digest := w.image(1)
	body, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	var asked atomic.Int32
	server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		asked.Add(1)
		_, _ = w.Write(body)
	}))
	t.Cleanup(server.Close)
	i := w.replica()
	for range 3 {
		if _, err := w.gotBy(i, fromURL(server.URL, digest)); err != nil {
			t.Fatal(err)
		}
	}
	if asked.Load() != 1 {
		t.Errorf("it was fetched %d times", asked.Load())
	}
	if err := w.Images.Delete(t.Context(), digest); err != nil {
		t.Fatal(err)
	}
	if _, err := w.gotBy(i, fromURL(server.URL, digest)); err != nil || !w.stored(digest) {
		t.Errorf("an image that was deleted is not stored again: %v", err)
	}
}
