package bus

import (
	"context"
	"errors"
	"fmt"
	"io"

	"github.com/nats-io/nats.go/jetstream"
)

// StoreImage puts an image into the store under its SHA-256 in hexadecimal, unless it is there.
func (b *Bus) StoreImage(ctx context.Context, digest string, image io.Reader) error {
	_, err := b.Images.GetInfo(ctx, digest)
	if errors.Is(err, jetstream.ErrObjectNotFound) {
		_, err = b.Images.Put(ctx, jetstream.ObjectMeta{Name: digest}, image)
	}
	if err != nil {
		return fmt.Errorf("store image %s: %w", digest, err)
	}
	return nil
}
