package builder

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"os"
	"sync"

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

	mu    sync.Mutex
	known map[string]image // by digest; an image never changes
}

func newImages(b *bus.Bus, c Config) *images {
	return &images{bus: b, config: c, known: map[string]image{}}
}

// get gives an image, which is in the store then: the one wanted if it is there, else the one that fetch writes to a file.
func (i *images) get(ctx context.Context, want string, fetch func(context.Context, *os.File) error) (image, error) {
	if known, ok := i.lookup(want); ok {
		if err := i.bus.KeepImage(ctx, want, bus.ImageGrace/2); err == nil {
			return known, nil
		}
	}
	return i.fetch(ctx, want, fetch)
}

// fetch gives the image that fetch writes to a file, which must be the one wanted, and stores it.
func (i *images) fetch(ctx context.Context, want string, fetch func(context.Context, *os.File) error) (image, error) {
	f, err := scratch()
	if err != nil {
		return image{}, err
	}
	defer f.Close()
	if err := fetch(ctx, f); err != nil {
		return image{}, err
	}
	got, err := inspect(f, want)
	if err != nil {
		return image{}, err
	}
	return got, i.put(ctx, f, got)
}

// scratch gives a file that is gone when it is closed.
func scratch() (*os.File, error) {
	f, err := os.CreateTemp("", "fulmar-image-*")
	if err != nil {
		return nil, fmt.Errorf("get an image: %w", err)
	}
	if err := os.Remove(f.Name()); err != nil {
		f.Close()
		return nil, fmt.Errorf("get an image: %w", err)
	}
	return f, nil
}

// fetched gives an image that is in the store.
func (i *images) fetched(ctx context.Context, digest string) (image, error) {
	return i.get(ctx, digest, func(ctx context.Context, f *os.File) error { return i.fromStore(ctx, digest, f) })
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
		return image{}, wrongImage(digest, want)
	}
	s, err := solo5.Read(f, size)
	if err != nil {
		return image{}, badImage("%w", err)
	}
	return image{digest: digest, size: uint64(size), solo5: s}, nil
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
	return copyImage(f, in, i.config.MaxImage)
}

// copyImage copies at most limit bytes of an image.
func copyImage(f *os.File, in io.Reader, limit int64) error {
	n, err := io.Copy(f, io.LimitReader(in, limit+1))
	if err != nil {
		return fmt.Errorf("get an image: %w", err)
	}
	if n > limit {
		return badImage("it has more than %d bytes", limit)
	}
	return nil
}

func badImage(format string, args ...any) error {
	return messages.Refuse(fulmarv1.ReasonCode_REASON_CODE_IMAGE, "image: "+format, args...)
}

func wrongImage(digest, want string) error {
	return badImage("%w", wrongDigest{digest, want})
}

// wrongDigest is an image that is not the one that was asked for.
type wrongDigest struct{ digest, want string }

func (w wrongDigest) Error() string {
	return fmt.Sprintf("its SHA-256 is %s, not %s as the request says", w.digest, w.want)
}
