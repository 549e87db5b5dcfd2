package builder

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"syscall"

	"github.com/nats-io/nats.go/jetstream"

	"fulmar/bus"
	"fulmar/messages"
	fulmarv1 "fulmar/messages/fulmar/v1"
	"fulmar/solo5"
)

const keep = 4096 // images whose facts are remembered

// images gets images into the object store and knows their facts.
type images struct {
	bus    *bus.Bus
	config Config
	client *http.Client

	mu    sync.Mutex
	known map[string]image // by digest; an image never changes
}

func newImages(b *bus.Bus, c Config) *images {
	once := &http.Transport{Proxy: http.ProxyFromEnvironment, DisableKeepAlives: true} // nobody fetches an image twice
	return &images{bus: b, config: c, client: &http.Client{Transport: once, Timeout: c.Fetch}, known: map[string]image{}}
}

// get gives the image of a source, which is in the store then.
func (i *images) get(ctx context.Context, source *fulmarv1.Image) (image, error) {
	want := source.GetSha256()
	if object := source.GetObject(); object != "" {
		if want != "" && want != object {
			return image{}, badImage("object %s is not the image with SHA-256 %s", object, want)
		}
		want = object
	}
	if known, ok := i.lookup(want); ok {
		if err := i.bus.KeepImage(ctx, want, bus.ImageGrace/2); err == nil {
			return known, nil
		}
	}
	f, err := os.CreateTemp("", "fulmar-image-*")
	if err != nil {
		return image{}, fmt.Errorf("get an image: %w", err)
	}
	defer f.Close()
	if err := os.Remove(f.Name()); err != nil {
		return image{}, fmt.Errorf("get an image: %w", err)
	}
	if err := i.fetch(ctx, source, f); err != nil {
		return image{}, err
	}
	got, err := inspect(f, want)
	if err != nil {
		return image{}, err
	}
	return got, i.put(ctx, f, got)
}

func (i *images) lookup(digest string) (image, bool) {
	i.mu.Lock()
	defer i.mu.Unlock()
	known, ok := i.known[digest]
	return known, ok
}

// put stores an image under its digest, once, and remembers its facts.
func (i *images) put(ctx context.Context, f *os.File, got image) error {
	if err := i.bus.StoreImage(ctx, got.digest, io.NewSectionReader(f, 0, int64(got.size))); err != nil {
		return err
	}
	i.mu.Lock()
	defer i.mu.Unlock()
	if len(i.known) >= keep {
		clear(i.known)
	}
	i.known[got.digest] = got
	return nil
}

// inspect reads what an image is, and refuses one that is not the image wanted or no Solo5 image.
func inspect(f *os.File, want string) (image, error) {
	h := sha256.New()
	size, err := io.Copy(h, io.NewSectionReader(f, 0, 1<<62))
	if err != nil {
		return image{}, fmt.Errorf("read an image: %w", err)
	}
	digest := hex.EncodeToString(h.Sum(nil))
	if want != "" && digest != want {
		return image{}, badImage("its SHA-256 is %s, not %s as the request says", digest, want)
	}
	s, err := solo5.Read(f, size)
	if err != nil {
		return image{}, badImage("%w", err)
	}
	return image{digest: digest, size: uint64(size), solo5: s}, nil
}

// fetch writes the bytes of a source to f.
func (i *images) fetch(ctx context.Context, source *fulmarv1.Image, f *os.File) error {
	switch s := source.GetSource().(type) {
	case *fulmarv1.Image_File:
		return i.fromFile(s.File, f)
	case *fulmarv1.Image_Object:
		return i.fromStore(ctx, s.Object, f)
	case *fulmarv1.Image_Url:
		return i.fromURL(ctx, s.Url, f)
	}
	return badImage("the request names no source")
}

func (i *images) fromFile(path string, f *os.File) error {
	if i.config.FileRoot == "" {
		return badImage("file %s: this builder takes no files (--file-root)", path)
	}
	inside, err := filepath.Rel(i.config.FileRoot, filepath.Clean(path))
	if err != nil || inside == ".." || strings.HasPrefix(inside, "../") {
		return badImage("file %s is not below %s, where this builder takes files from", path, i.config.FileRoot)
	}
	root, err := os.OpenRoot(i.config.FileRoot) // no link leads out of it
	if err != nil {
		return fmt.Errorf("open the root of image files: %w", err)
	}
	defer root.Close()
	in, err := root.OpenFile(inside, os.O_RDONLY|syscall.O_NONBLOCK, 0) // a pipe that nobody writes to is no reason to wait
	if errors.Is(err, fs.ErrNotExist) {
		return messages.Refuse(fulmarv1.ReasonCode_REASON_CODE_NOT_FOUND, "image: file %s does not exist", path)
	}
	if err != nil {
		return badImage("file %s: %w", path, err)
	}
	defer in.Close()
	if info, err := in.Stat(); err != nil || !info.Mode().IsRegular() {
		return badImage("file %s is not a regular file", path)
	}
	return i.copy(f, in)
}

func (i *images) fromStore(ctx context.Context, object string, f *os.File) error {
	in, err := i.bus.Images.Get(ctx, object)
	if errors.Is(err, jetstream.ErrObjectNotFound) {
		return messages.Refuse(fulmarv1.ReasonCode_REASON_CODE_NOT_FOUND, "image: the store has no object %s", object)
	}
	if err != nil {
		return fmt.Errorf("get image %s: %w", object, err)
	}
	defer in.Close()
	return i.copy(f, in)
}

func (i *images) fromURL(ctx context.Context, url string, f *os.File) error {
	ctx, cancel := context.WithTimeout(ctx, i.config.Fetch)
	defer cancel()
	r, err := http.NewRequestWithContext(ctx, http.MethodGet, url, nil)
	if err != nil {
		return badImage("%w", err)
	}
	url = r.URL.Redacted()
	in, err := i.client.Do(r)
	if err != nil {
		return fmt.Errorf("get image: %w", err)
	}
	defer in.Body.Close()
	switch {
	case in.StatusCode == http.StatusOK:
		return i.copy(f, in.Body)
	case in.StatusCode >= 500 || in.StatusCode == http.StatusTooManyRequests:
		return fmt.Errorf("get image %s: the server answers %s", url, in.Status)
	}
	return messages.Refuse(fulmarv1.ReasonCode_REASON_CODE_NOT_FOUND, "image: url %s: the server answers %s", url, in.Status)
}

func (i *images) copy(f *os.File, in io.Reader) error {
	n, err := io.Copy(f, io.LimitReader(in, i.config.MaxImage+1))
	if err != nil {
		return fmt.Errorf("get an image: %w", err)
	}
	if n > i.config.MaxImage {
		return badImage("it has more than %d bytes", i.config.MaxImage)
	}
	return nil
}

func badImage(format string, args ...any) error {
	return messages.Refuse(fulmarv1.ReasonCode_REASON_CODE_IMAGE, "image: "+format, args...)
}
