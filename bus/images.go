package bus

import (
	"context"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"time"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"

	"fulmar/messages"
)

// ImageGrace is how long an image that nothing refers to stays in the store after it was stored or asked for last.
const ImageGrace = 24 * time.Hour

// images is the stream below the object store: what the store's own interface cannot do, a removal that gives way to
// whoever wants the image at the same time, is done there by sequence.
type images struct {
	js     jetstream.JetStream
	stream jetstream.Stream
}

// stored is the record of an object, as the store keeps it.
type stored struct {
	jetstream.ObjectInfo
	body     []byte
	sequence uint64
}

func objectSubject(name string) string {
	return "$O." + messages.ImageStore + ".M." + base64.URLEncoding.EncodeToString([]byte(name))
}

func chunkSubject(id string) string { return "$O." + messages.ImageStore + ".C." + id }

// find gives the record of an object; without one it is [jetstream.ErrObjectNotFound].
func (i images) find(ctx context.Context, name string) (stored, error) {
	raw, err := i.stream.GetLastMsgForSubject(ctx, objectSubject(name))
	if errors.Is(err, jetstream.ErrMsgNotFound) {
		return stored{}, jetstream.ErrObjectNotFound
	}
	if err != nil {
		return stored{}, err
	}
	s := stored{body: raw.Data, sequence: raw.Sequence}
	if err := json.Unmarshal(raw.Data, &s.ObjectInfo); err != nil {
		return stored{}, err
	}
	if s.ModTime = raw.Time; s.Deleted {
		return stored{}, jetstream.ErrObjectNotFound
	}
	return s, nil
}

// StoreImage puts an image into the store under its SHA-256 in hexadecimal. One that is there is kept as [Bus.KeepImage]
// keeps it.
func (b *Bus) StoreImage(ctx context.Context, digest string, image io.Reader) error {
	err := b.KeepImage(ctx, digest, ImageGrace/2)
	if errors.Is(err, jetstream.ErrObjectNotFound) {
		_, err = b.Images.Put(ctx, jetstream.ObjectMeta{Name: digest}, image)
	}
	if err != nil {
		return fmt.Errorf("store image %s: %w", digest, err)
	}
	return nil
}

// KeepImage sees to it that an image of the store counts as asked for within a time, so that it stays for the rest of the
// grace at least. One that is not there, or is just being removed, is [jetstream.ErrObjectNotFound].
func (b *Bus) KeepImage(ctx context.Context, digest string, within time.Duration) error {
	for {
		have, err := b.images.find(ctx, digest)
		if err == nil && time.Since(have.ModTime) > within {
			msg := &nats.Msg{Subject: objectSubject(digest), Header: nats.Header{jetstream.MsgRollup: {jetstream.MsgRollupSubject}}, Data: have.body}
			_, err = b.images.js.PublishMsg(ctx, msg, jetstream.WithExpectLastSequencePerSubject(have.sequence))
		}
		if !wrongSequence(err) {
			return err
		}
	}
}

// StaleImages gives the images that were not asked for since a time.
func (b *Bus) StaleImages(ctx context.Context, since time.Time) ([]*jetstream.ObjectInfo, error) {
	all, err := b.Images.List(ctx)
	if errors.Is(err, jetstream.ErrNoObjectsFound) {
		return nil, nil
	}
	if err != nil {
		return nil, fmt.Errorf("list images: %w", err)
	}
	var stale []*jetstream.ObjectInfo
	for _, o := range all {
		if messages.IsDigest(o.Name) && o.ModTime.Before(since) {
			stale = append(stale, o)
		}
	}
	return stale, nil
}

// RemoveImage removes an image from the store if nobody asked for it since a time, and reports whether it did.
func (b *Bus) RemoveImage(ctx context.Context, digest string, since time.Time) (bool, error) {
	have, err := b.images.find(ctx, digest)
	if errors.Is(err, jetstream.ErrObjectNotFound) || err == nil && !have.ModTime.Before(since) {
		return false, nil
	}
	if err == nil {
		err = b.images.stream.DeleteMsg(ctx, have.sequence) // this record, and not one that replaced it
		if now, nerr := b.images.find(ctx, digest); err != nil && (errors.Is(nerr, jetstream.ErrObjectNotFound) || nerr == nil && now.sequence != have.sequence) {
			return false, nil // somebody keeps it, or removed it
		}
	}
	if err == nil {
		err = b.images.stream.Purge(ctx, jetstream.WithPurgeSubject(chunkSubject(have.NUID)))
	}
	if err != nil {
		return false, fmt.Errorf("remove image %s: %w", digest, err)
	}
	return true, nil
}

// RemoveScraps removes the bytes that belong to no object and to which none were added since a time: of a store or a
// removal that was cut short. It gives how many objects' they were.
func (b *Bus) RemoveScraps(ctx context.Context, since time.Time) (int, error) {
	info, err := b.images.stream.Info(ctx, jetstream.WithSubjectFilter(chunkSubject("*")))
	if err != nil {
		return 0, fmt.Errorf("list the bytes of images: %w", err)
	}
	objects, err := b.Images.List(ctx) // after the bytes, which are stored before their object
	if err != nil && !errors.Is(err, jetstream.ErrNoObjectsFound) {
		return 0, fmt.Errorf("list images: %w", err)
	}
	scraps := info.State.Subjects
	for _, o := range objects {
		delete(scraps, chunkSubject(o.NUID))
	}
	n := 0
	for subject := range scraps {
		last, err := b.images.stream.GetLastMsgForSubject(ctx, subject)
		if errors.Is(err, jetstream.ErrMsgNotFound) || err == nil && !last.Time.Before(since) {
			continue
		}
		if err == nil {
			err = b.images.stream.Purge(ctx, jetstream.WithPurgeSubject(subject))
		}
		if err != nil {
			return n, fmt.Errorf("remove the bytes of no image: %w", err)
		}
		n++
	}
	return n, nil
}
