package bus

import (
	"context"
	"errors"
	"fmt"
	"log/slog"

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

func (b *Bucket[M]) decode(e jetstream.KeyValueEntry) (M, error) {
	m := b.empty()
	if err := proto.Unmarshal(e.Value(), m); err != nil {
		return m, fmt.Errorf("record %s of bucket %s at revision %d: %w", e.Key(), e.Bucket(), e.Revision(), err)
	}
	return m, nil
}

// Get gives the record of a key and its revision. An absent one is empty; its revision is what [Bucket.Put] takes to
// create it.
func (b *Bucket[M]) Get(ctx context.Context, key string) (M, uint64, error) {
	e, err := b.kv.Get(ctx, key)
	if errors.Is(err, jetstream.ErrKeyNotFound) {
		return b.empty(), 0, nil
	}
	if err != nil {
		return b.empty(), 0, fmt.Errorf("get %s of bucket %s: %w", key, b.kv.Bucket(), err)
	}
	m, err := b.decode(e)
	return m, e.Revision(), err
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

// All gives every record by its key.
func (b *Bucket[M]) All(ctx context.Context) (map[string]M, error) {
	w, err := b.kv.WatchAll(ctx, jetstream.IgnoreDeletes())
	if err != nil {
		return nil, fmt.Errorf("read bucket %s: %w", b.kv.Bucket(), err)
	}
	all := map[string]M{}
	for {
		select {
		case e, open := <-w.Updates():
			if !open {
				return nil, fmt.Errorf("read bucket %s: the watch ended", b.kv.Bucket())
			}
			if e == nil {
				return all, w.Stop()
			}
			m, err := b.decode(e)
			if err != nil {
				return nil, errors.Join(err, w.Stop())
			}
			all[e.Key()] = m
		case <-ctx.Done():
			return nil, errors.Join(ctx.Err(), w.Stop())
		}
	}
}
