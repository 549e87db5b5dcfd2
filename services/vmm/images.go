package vmm

import (
	"cmp"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"github.com/nats-io/nats.go/jetstream"

	"fulmar/messages"
	fulmarv1 "fulmar/messages/fulmar/v1"
)

const (
	unfinished    = ".fetch-" // begins the name of a file that is being written
	unfinishedAge = time.Hour // after which nobody is writing it any more
	dirMode       = fs.FileMode(0o700)
)

// images gives images by digest, from a directory if they lie there and else from the object store. What it gives has the
// digest: a file that was cut short or damaged is fetched again. A directory that does not work is no reason not to start.
type images struct {
	store   jetstream.ObjectStore
	log     *slog.Logger
	dir     string
	limit   int64 // bytes in the directory; the image in use may go above it
	metrics metrics
}

// get gives an image by its SHA-256.
func (i *images) get(ctx context.Context, digest string) ([]byte, error) {
	path := filepath.Join(i.dir, digest)
	image, err := os.ReadFile(path)
	if err == nil && digestOf(image) == digest {
		i.metrics.images.WithLabelValues("cached").Inc()
		now := time.Now()
		_ = os.Chtimes(path, now, now) // without it, it goes sooner
		return image, nil
	}
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		i.log.Error("cached image was unreadable", "err", err)
	}
	image, err = i.store.GetBytes(ctx, digest)
	switch {
	case errors.Is(err, jetstream.ErrObjectNotFound):
		return nil, messages.Refuse(fulmarv1.ReasonCode_REASON_CODE_NOT_FOUND, "image %s is not in the store", digest)
	case err != nil:
		return nil, fmt.Errorf("fetch image %s: %w", digest, err)
	case digestOf(image) != digest:
		return nil, messages.Refuse(fulmarv1.ReasonCode_REASON_CODE_IMAGE, "the store gives an image of SHA-256 %s by the name of %s", digestOf(image), digest)
	}
	i.metrics.images.WithLabelValues("fetched").Inc()
	if err := i.keep(path, image); err != nil {
		i.log.Error("image was not cached", "err", err)
	}
	return image, nil
}

func digestOf(image []byte) string {
	sum := sha256.Sum256(image)
	return hex.EncodeToString(sum[:])
}

// keep writes an image to the directory, whole or not at all, and lets the ones go that were used least lately. It is not
// synced: what a power cut leaves of it is found by its digest.
func (i *images) keep(path string, image []byte) error {
	f, err := os.CreateTemp(i.dir, unfinished)
	if err != nil {
		return fmt.Errorf("cache image: %w", err)
	}
	_, err = f.Write(image)
	if err = errors.Join(err, f.Close()); err == nil {
		err = os.Rename(f.Name(), path)
	}
	if err != nil {
		return errors.Join(fmt.Errorf("cache image: %w", err), os.Remove(f.Name()))
	}
	return i.prune(filepath.Base(path))
}

// cached is a file of the directory.
type cached struct {
	name string
	size int64
	used time.Time
}

// prune removes what surplus names.
func (i *images) prune(keep string) error {
	entries, err := os.ReadDir(i.dir)
	if err != nil {
		return fmt.Errorf("prune image cache: %w", err)
	}
	var files []cached
	for _, e := range entries {
		info, err := e.Info()
		if errors.Is(err, fs.ErrNotExist) {
			continue
		}
		if err != nil {
			return fmt.Errorf("prune image cache: %w", err)
		}
		files = append(files, cached{e.Name(), info.Size(), info.ModTime()})
	}
	for _, name := range surplus(files, keep, i.limit, time.Now()) {
		if err := os.Remove(filepath.Join(i.dir, name)); err != nil && !errors.Is(err, fs.ErrNotExist) {
			return fmt.Errorf("prune image cache: %w", err)
		}
	}
	return nil
}

// surplus names the files to remove: those that nobody finishes, and of the images, but for keep, as many of the least
// lately used as it takes to come down to the limit.
func surplus(files []cached, keep string, limit int64, now time.Time) []string {
	var names []string
	var total int64
	var images []cached
	for _, f := range files {
		switch {
		case strings.HasPrefix(f.name, unfinished):
			if now.Sub(f.used) > unfinishedAge {
				names = append(names, f.name)
			}
		case messages.IsDigest(f.name):
			images = append(images, f)
			total += f.size
		}
	}
	slices.SortFunc(images, func(a, b cached) int { return cmp.Or(a.used.Compare(b.used), strings.Compare(a.name, b.name)) })
	for _, f := range images {
		if total <= limit {
			break
		}
		if f.name != keep {
			names = append(names, f.name)
			total -= f.size
		}
	}
	return names
}
