package bus

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/nats-io/nats.go/jetstream"

	"fulmar/messages"
	fulmarv1 "fulmar/messages/fulmar/v1"
)

const (
	// Requests are kept for people to read once they are accepted. What goes by age or size takes no generation with it:
	// the stream's sequence goes on.
	requestAge   = 90 * 24 * time.Hour
	requestBytes = 1 << 30
	logAge       = requestAge // logs of builds are kept as long as requests
	eventBytes   = 1 << 30    // the system's log; the records, not the log, say what should be
)

// declare makes the streams, buckets and the store that are not there. An existing one is left as its owner set it.
func (b *Bus) declare(ctx context.Context) error {
	var err error
	if b.Heads, err = declareBucket[*fulmarv1.Head](ctx, b, messages.HeadBucket, "One record a stack: the only lock and the only root."); err != nil {
		return err
	}
	if b.Leases, err = declareBucket[*fulmarv1.Lease](ctx, b, messages.LeaseBucket, "Addresses that are held or rest."); err != nil {
		return err
	}
	if b.Networks, err = declareBucket[*fulmarv1.Network](ctx, b, messages.NetworkBucket, "Networks that give addresses."); err != nil {
		return err
	}
	if b.Hosts, err = declareBucket[*fulmarv1.Host](ctx, b, messages.HostBucket, "What each host runs, as its vmm saw it last."); err != nil {
		return err
	}
	if b.Builds, err = declareBucket[*fulmarv1.BuildRecord](ctx, b, messages.BuildBucket, "Builds that were made, by what went into them."); err != nil {
		return err
	}
	if b.Watches, err = declareBucket[*fulmarv1.Watch](ctx, b, messages.WatchBucket, "Sources that are followed, one record a stack."); err != nil {
		return err
	}
	if b.Images, err = b.declareStore(ctx, jetstream.ObjectStoreConfig{Bucket: messages.ImageStore, Description: "Images, named by SHA-256."}); err != nil {
		return err
	}
	if b.Logs, err = b.declareStore(ctx, jetstream.ObjectStoreConfig{Bucket: messages.LogStore, Description: "Logs of builds, compressed.", TTL: logAge}); err != nil {
		return err
	}
	b.images.js = b.JS
	if b.images.stream, err = b.JS.Stream(ctx, "OBJ_"+messages.ImageStore); err != nil {
		return fmt.Errorf("declare store %s: %w", messages.ImageStore, err)
	}
	return b.declareStreams(ctx)
}

// declareStore gives an object store, and makes it if it is not there.
func (b *Bus) declareStore(ctx context.Context, c jetstream.ObjectStoreConfig) (jetstream.ObjectStore, error) {
	s, err := b.JS.ObjectStore(ctx, c.Bucket)
	if errors.Is(err, jetstream.ErrBucketNotFound) {
		s, err = b.JS.CreateObjectStore(ctx, c)
		if errors.Is(err, jetstream.ErrBucketExists) {
			s, err = b.JS.ObjectStore(ctx, c.Bucket)
		}
	}
	if err != nil {
		return nil, fmt.Errorf("declare store %s: %w", c.Bucket, err)
	}
	return s, nil
}

func (b *Bus) declareStreams(ctx context.Context) error {
	var err error
	b.events, err = b.declareStream(ctx, func() (jetstream.StreamConfig, error) {
		return jetstream.StreamConfig{
			Name: messages.EventStream, Description: "Every step of every deployment, and observations.",
			Subjects: messages.EventSubjects(), Storage: jetstream.FileStorage, Discard: jetstream.DiscardOld,
			MaxBytes: eventBytes, AllowDirect: true,
		}, nil
	}, messages.EventStream)
	if err != nil {
		return err
	}
	_, err = b.declareStream(ctx, func() (jetstream.StreamConfig, error) {
		newest, err := b.newest(ctx)
		return jetstream.StreamConfig{
			Name: messages.RequestStream, Description: "Requests; the sequence of one is its deployment's generation.",
			Subjects: messages.RequestSubjects(), Storage: jetstream.FileStorage, Discard: jetstream.DiscardOld,
			MaxAge: requestAge, MaxBytes: requestBytes, FirstSeq: newest + 1, AllowDirect: true,
		}, err
	}, messages.RequestStream)
	return err
}

// declareStream gives a stream, and makes it if it is not there.
func (b *Bus) declareStream(ctx context.Context, config func() (jetstream.StreamConfig, error), name string) (jetstream.Stream, error) {
	s, err := b.JS.Stream(ctx, name)
	if !errors.Is(err, jetstream.ErrStreamNotFound) {
		return s, wrapDeclare(name, err)
	}
	c, err := config()
	if err != nil {
		return nil, wrapDeclare(name, err)
	}
	s, err = b.JS.CreateStream(ctx, c)
	if errors.Is(err, jetstream.ErrStreamNameAlreadyInUse) {
		s, err = b.JS.Stream(ctx, name)
	}
	return s, wrapDeclare(name, err)
}

func wrapDeclare(name string, err error) error {
	if err != nil {
		return fmt.Errorf("declare stream %s: %w", name, err)
	}
	return nil
}

// newest is the greatest generation that any head knows: a request stream that was lost goes on above it, because a
// generation is never used twice.
func (b *Bus) newest(ctx context.Context) (uint64, error) {
	heads, err := b.Heads.All(ctx)
	var newest uint64
	for _, h := range heads {
		newest = max(newest, h.GetNewest())
	}
	return newest, err
}
