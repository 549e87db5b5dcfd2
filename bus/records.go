package bus

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"slices"
	"strings"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"
	"google.golang.org/protobuf/proto"

	"fulmar/messages"
	fulmarv1 "fulmar/messages/fulmar/v1"
)

// Bucket keeps one record a key. Records are changed by revision only: a conflict is
// [jetstream.ErrKeyRevisionMismatch], and whoever meets it reads again.
type Bucket[M proto.Message] struct {
	nc     *nats.Conn
	log    *slog.Logger
	kv     jetstream.KeyValue
	stream jetstream.Stream
}

func declareBucket[M proto.Message](ctx context.Context, b *Bus, name, description string) (*Bucket[M], error) {
	js := b.JS
	kv, err := js.KeyValue(ctx, name)
	if errors.Is(err, jetstream.ErrBucketNotFound) {
		kv, err = js.CreateKeyValue(ctx, jetstream.KeyValueConfig{Bucket: name, Description: description, History: 1, Storage: jetstream.FileStorage})
		if errors.Is(err, jetstream.ErrBucketExists) {
			kv, err = js.KeyValue(ctx, name)
		}
	}
	if err != nil {
		return nil, fmt.Errorf("declare bucket %s: %w", name, err)
	}
	stream, err := js.Stream(ctx, "KV_"+name)
	if err != nil {
		return nil, fmt.Errorf("declare bucket %s: %w", name, err)
	}
	return &Bucket[M]{nc: b.NC, log: b.Log, kv: kv, stream: stream}, nil
}

func (b *Bucket[M]) empty() M {
	var zero M
	return zero.ProtoReflect().New().Interface().(M)
}

// decode reads an entry; the only error is an [UnreadableError].
func (b *Bucket[M]) decode(e jetstream.KeyValueEntry) (M, *UnreadableError) {
	m := b.empty()
	if err := proto.Unmarshal(e.Value(), m); err != nil {
		return b.empty(), &UnreadableError{Bucket: e.Bucket(), Key: e.Key(), Revision: e.Revision(), Err: err}
	}
	return m, nil
}

// UnreadableError reports a record that is there and cannot be decoded.
type UnreadableError struct {
	Bucket, Key string
	Revision    uint64
	Err         error
}

// Error names the record.
func (u *UnreadableError) Error() string {
	return fmt.Sprintf("record %s of bucket %s cannot be read at revision %d: %s", u.Key, u.Bucket, u.Revision, u.Err)
}

// Unwrap gives why it cannot be read.
func (u *UnreadableError) Unwrap() error { return u.Err }

// Get gives the record of a key and its revision. An absent one is empty; its revision is what [Bucket.Put] takes to
// create it. Of one that is an [UnreadableError] it gives the revision too, with which it can be replaced or deleted.
func (b *Bucket[M]) Get(ctx context.Context, key string) (M, uint64, error) {
	e, err := b.kv.Get(ctx, key)
	if errors.Is(err, jetstream.ErrKeyNotFound) {
		return b.empty(), 0, nil
	}
	if err != nil {
		return b.empty(), 0, fmt.Errorf("get %s of bucket %s: %w", key, b.kv.Bucket(), err)
	}
	m, unreadable := b.decode(e)
	if unreadable != nil {
		return m, e.Revision(), unreadable
	}
	return m, e.Revision(), nil
}

// Put writes the record of a key if its revision is still rev; 0 means that there is none.
func (b *Bucket[M]) Put(ctx context.Context, key string, m M, rev uint64) error {
	body, err := proto.Marshal(m)
	if err != nil {
		return fmt.Errorf("put %s of bucket %s: %w", key, b.kv.Bucket(), err)
	}
	if rev == 0 {
		_, err = b.kv.Create(ctx, key, body)
		if errors.Is(err, jetstream.ErrKeyExists) {
			err = jetstream.ErrKeyRevisionMismatch
		}
	} else {
		_, err = b.kv.Update(ctx, key, body, rev)
	}
	if errors.Is(err, nats.ErrMaxPayload) { // and would be the next time
		err = messages.Refuse(fulmarv1.ReasonCode_REASON_CODE_INVALID, "%d bytes are too large for a record", len(body))
	}
	if err != nil {
		return fmt.Errorf("put %s of bucket %s at revision %d: %w", key, b.kv.Bucket(), rev, err)
	}
	return nil
}

// Delete removes the record of a key if its revision is still rev.
func (b *Bucket[M]) Delete(ctx context.Context, key string, rev uint64) error {
	if err := b.kv.Delete(ctx, key, jetstream.LastRevision(rev)); err != nil {
		return fmt.Errorf("delete %s of bucket %s at revision %d: %w", key, b.kv.Bucket(), rev, err)
	}
	return nil
}

// Edit reads the record of a key, lets a pure function edit it, and writes it if it became another one; a conflict
// reads again. It gives the record as it stands then.
func (b *Bucket[M]) Edit(ctx context.Context, key string, edit func(M) (M, error)) (M, error) {
	for {
		have, rev, err := b.Get(ctx, key)
		if err != nil {
			return have, err
		}
		want, err := edit(have)
		if err != nil {
			return have, err
		}
		if any(want) == any(have) {
			return have, nil
		}
		err = b.Put(ctx, key, want, rev)
		if err == nil || !errors.Is(err, jetstream.ErrKeyRevisionMismatch) {
			return want, err
		}
		if ctx.Err() != nil {
			return have, ctx.Err()
		}
	}
}

// All gives every record by its key. One that cannot be read is an error.
func (b *Bucket[M]) All(ctx context.Context) (map[string]M, error) {
	all, bad, err := b.Readable(ctx)
	if err == nil && len(bad) > 0 {
		err = bad[0]
	}
	if err != nil {
		return nil, err
	}
	return all, nil
}

// Readable gives every record that can be read, by its key, and tells of those that cannot, in the order of their keys.
func (b *Bucket[M]) Readable(ctx context.Context) (all map[string]M, bad []*UnreadableError, err error) {
	w, err := b.kv.WatchAll(ctx, jetstream.IgnoreDeletes())
	if err != nil {
		return nil, nil, fmt.Errorf("read bucket %s: %w", b.kv.Bucket(), err)
	}
	all = map[string]M{}
	for {
		select {
		case e, open := <-w.Updates():
			if !open {
				return nil, nil, fmt.Errorf("read bucket %s: the watch ended", b.kv.Bucket())
			}
			if e == nil {
				slices.SortFunc(bad, func(a, b *UnreadableError) int { return strings.Compare(a.Key, b.Key) })
				return all, bad, w.Stop()
			}
			m, unreadable := b.decode(e)
			if unreadable != nil {
				bad = append(bad, unreadable)
				continue
			}
			all[e.Key()] = m
		case <-ctx.Done():
			return nil, nil, errors.Join(ctx.Err(), w.Stop())
		}
	}
}
