package bus

import (
	"context"
	"fmt"
	"maps"
	"sync"
	"time"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"
	"google.golang.org/protobuf/proto"
)

// View is a local copy of a bucket that a watch keeps fresh. Its records must not be changed.
type View[M proto.Message] struct {
	bucket *Bucket[M]
	terms  func(M) []string // that a record is found by; nil: none

	mu      sync.Mutex
	records map[string]M
	having  map[string]map[string]bool // keys of records by term
	seen    uint64                     // revision up to which the view has caught up
	moved   chan struct{}              // closed when the view changes
	ready   bool
	over    bool // Run has ended
}

// View makes an empty view of the bucket; [View.Run] fills it.
func (b *Bucket[M]) View() *View[M] {
	return b.ViewBy(nil)
}

// ViewBy makes an empty view whose records are found by terms, too: see [View.Having].
func (b *Bucket[M]) ViewBy(terms func(M) []string) *View[M] {
	return &View[M]{bucket: b, terms: terms, records: map[string]M{}, having: map[string]map[string]bool{}, moved: make(chan struct{})}
}

// Run keeps the view fresh until ctx ends, which is no error. A watch does not outlive the bus it was made on, and would
// find that out only after many seconds, so Run makes a new one as soon as it is connected again.
func (v *View[M]) Run(ctx context.Context) error {
	v.end(false)
	defer v.end(true)
	connected := v.bucket.nc.StatusChanged(nats.CONNECTED)
	defer v.bucket.nc.RemoveStatusListener(connected)
	for {
		err := v.watch(ctx, connected)
		if ctx.Err() != nil {
			return nil
		}
		v.bucket.log.Warn("bucket was watched anew", "bucket", v.bucket.kv.Bucket(), "err", err)
		if err == nil {
			continue
		}
		select {
		case <-ctx.Done():
			return nil
		case <-connected:
		case <-time.After(reopenDelay):
		}
	}
}

// end notes whether anybody keeps the view fresh.
func (v *View[M]) end(over bool) {
	v.mu.Lock()
	defer v.mu.Unlock()
	v.over = over
	v.move()
}

// watch keeps the view fresh until ctx or the watch ends, or the bus is connected anew.
func (v *View[M]) watch(ctx context.Context, connected <-chan nats.Status) error {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	info, err := v.bucket.stream.Info(ctx)
	if err != nil {
		return fmt.Errorf("watch bucket %s: %w", v.bucket.kv.Bucket(), err)
	}
	w, err := v.bucket.kv.WatchAll(ctx)
	if err != nil {
		return fmt.Errorf("watch bucket %s: %w", v.bucket.kv.Bucket(), err)
	}
	defer func() { _ = w.Stop() }() // if ctx has not stopped it
	found := map[string]M{}
	seen := info.State.LastSeq // even if what stood there is gone
	for {
		select {
		case e, open := <-w.Updates():
			switch {
			case !open:
				return fmt.Errorf("watch bucket %s: the watch ended", v.bucket.kv.Bucket())
			case found == nil:
				v.apply(e)
			case e == nil: // all that was there when the watch began is read
				v.replace(found, seen)
				found = nil
			default:
				v.read(found, e)
				seen = max(seen, e.Revision())
			}
		case _, open := <-connected:
			if !open {
				connected = nil // the connection was closed for good
				continue
			}
			return nil
		case <-ctx.Done():
			return nil
		}
	}
}

// read takes an entry into records. One that cannot be read is none: whoever needs it finds out by its key.
func (v *View[M]) read(records map[string]M, e jetstream.KeyValueEntry) {
	delete(records, e.Key())
	if e.Operation() != jetstream.KeyValuePut {
		return
	}
	m, err := v.bucket.decode(e)
	if err != nil {
		v.bucket.log.Error("record was unreadable", "bucket", e.Bucket(), "key", e.Key(), "err", err)
		return
	}
	records[e.Key()] = m
}

func (v *View[M]) apply(e jetstream.KeyValueEntry) {
	v.mu.Lock()
	defer v.mu.Unlock()
	v.unlist(e.Key())
	v.read(v.records, e)
	v.list(e.Key())
	v.seen = max(v.seen, e.Revision())
	v.move()
}

func (v *View[M]) replace(records map[string]M, seen uint64) {
	v.mu.Lock()
	defer v.mu.Unlock()
	v.records, v.seen, v.ready = records, seen, true
	clear(v.having)
	for key := range records {
		v.list(key)
	}
	v.move()
}

// list has the record of a key found by its terms. The caller holds the lock.
func (v *View[M]) list(key string) {
	m, ok := v.records[key]
	if !ok || v.terms == nil {
		return
	}
	for _, term := range v.terms(m) {
		if v.having[term] == nil {
			v.having[term] = map[string]bool{}
		}
		v.having[term][key] = true
	}
}

// unlist is the reverse of list.
func (v *View[M]) unlist(key string) {
	m, ok := v.records[key]
	if !ok || v.terms == nil {
		return
	}
	for _, term := range v.terms(m) {
		delete(v.having[term], key)
		if len(v.having[term]) == 0 {
			delete(v.having, term)
		}
	}
}

// Having gives the records that have one of some terms, as the view has them now, each once.
func (v *View[M]) Having(terms ...string) []M {
	v.mu.Lock()
	defer v.mu.Unlock()
	keys := map[string]bool{}
	for _, term := range terms {
		maps.Copy(keys, v.having[term])
	}
	all := make([]M, 0, len(keys))
	for key := range keys {
		all = append(all, v.records[key])
	}
	return all
}

// move tells who waits that the view has changed. The caller holds the lock.
func (v *View[M]) move() {
	close(v.moved)
	v.moved = make(chan struct{})
}

// All gives every record by its key, as the view has it now.
func (v *View[M]) All() map[string]M {
	v.mu.Lock()
	defer v.mu.Unlock()
	return maps.Clone(v.records)
}

// Get gives the record of a key, as the view has it now; an absent one is nil.
func (v *View[M]) Get(key string) M {
	v.mu.Lock()
	defer v.mu.Unlock()
	return v.records[key]
}

// Changed gives a channel that is closed at the next change of the view. Take it before reading what it guards.
func (v *View[M]) Changed() <-chan struct{} {
	v.mu.Lock()
	defer v.mu.Unlock()
	return v.moved
}

// CaughtUp waits until the view holds everything that was in the bucket when it was called. After [View.Run] has ended it
// never will, and a handler that is still at work then had better hand back what it holds.
func (v *View[M]) CaughtUp(ctx context.Context) error {
	info, err := v.bucket.stream.Info(ctx)
	if err != nil {
		return fmt.Errorf("catch up with bucket %s: %w", v.bucket.kv.Bucket(), err)
	}
	for {
		v.mu.Lock()
		done, over, moved := v.ready && v.seen >= info.State.LastSeq, v.over, v.moved
		v.mu.Unlock()
		if done {
			return nil
		}
		if over {
			return fmt.Errorf("catch up with bucket %s: its view has ended", v.bucket.kv.Bucket())
		}
		select {
		case <-moved:
		case <-ctx.Done():
			return fmt.Errorf("catch up with bucket %s: %w", v.bucket.kv.Bucket(), ctx.Err())
		}
	}
}
