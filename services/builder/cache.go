package builder

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"time"

	"github.com/nats-io/nats.go/jetstream"
	"github.com/nats-io/nuid"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/timestamppb"

	"fulmar/bus"
	"fulmar/messages"
	fulmarv1 "fulmar/messages/fulmar/v1"
)

const (
	claimTerm    = 15 * time.Second // after it the claim of a builder that died is anybody's
	prolongings  = 5                // of a claim in its term
	releaseLimit = 5 * time.Second  // for giving a claim back when a build ends
	maxWaiters   = 32               // for builds of others at once, so that what needs no build is not held up

	recordAge = 90 * 24 * time.Hour // for which a record outlives its image
)

// errLost reports that a claim was taken over by somebody else, who builds now.
var errLost = errors.New("another builder has taken this build over")

// cache keeps what was built by its key, and lets one builder at a time build a key. A claim saves work and nothing rests
// on it: if two build a key nevertheless, the record that is written first stands.
type cache struct {
	bus  *bus.Bus
	view *bus.View[*fulmarv1.BuildRecord]
	now  func() time.Time
	term time.Duration

	waiters chan struct{}
}

func newCache(b *bus.Bus) *cache {
	return &cache{bus: b, view: b.Builds.View(), now: time.Now, term: claimTerm, waiters: make(chan struct{}, maxWaiters)}
}

// order asks the cache for a build.
type order struct {
	key string
	log *log
	// make builds the image into the store, and gives its record.
	make func(context.Context) (*fulmarv1.BuildRecord, error)
}

// delivery is what the cache gives for an order.
type delivery struct {
	*fulmarv1.BuildRecord
	cached  bool
	differs string // SHA-256 of another image with the same key
}

// turn is what to do about a key.
type turn int

const (
	turnUse   turn = iota + 1 // the image is there
	turnAwait                 // somebody else builds it
	turnBuild                 // nobody does
)

// decide tells what to do about a key: from its record, whether its image is in the store, and for which log it is wanted. A
// claim for the same log is of an earlier try, which is over or frozen: the bus would not ask again otherwise.
func decide(r *fulmarv1.BuildRecord, stored bool, log string, now time.Time) turn {
	switch {
	case r.GetClaimedBy() != "" && r.GetClaimedFor() != log && now.Before(r.GetClaimedUntil().AsTime()):
		return turnAwait
	case r.GetClaimedBy() == "" && stored:
		return turnUse
	}
	return turnBuild
}

// get delivers an order: from the record of its key if there is one, else it builds, unless somebody else just does so, who
// is awaited.
func (c *cache) get(ctx context.Context, o order) (delivery, error) {
	for {
		changed := c.view.Changed()
		r, rev, err := c.bus.Builds.Get(ctx, o.key)
		if err != nil {
			return delivery{}, err
		}
		stored, err := c.stored(ctx, r.GetImage())
		if err != nil {
			return delivery{}, err
		}
		switch decide(r, stored, o.log.name(), c.now()) {
		case turnUse:
			return delivery{BuildRecord: r, cached: true}, nil
		case turnAwait:
			err = c.await(ctx, o, r, changed)
		case turnBuild:
			var d delivery
			if d, err = c.build(ctx, o, r, rev); err == nil {
				return d, nil
			}
		}
		if err != nil && !errors.Is(err, errLost) && !errors.Is(err, jetstream.ErrKeyRevisionMismatch) {
			return delivery{}, err
		}
	}
}

// stored reports whether the store has an image, which it keeps for a while then.
func (c *cache) stored(ctx context.Context, image string) (bool, error) {
	if image == "" {
		return false, nil
	}
	err := c.bus.KeepImage(ctx, image, bus.ImageGrace/2)
	if errors.Is(err, jetstream.ErrObjectNotFound) {
		return false, nil
	}
	if err != nil {
		return false, fmt.Errorf("keep image %s: %w", image, err)
	}
	return true, nil
}

// await waits until a claim has changed hands or lapsed, and meanwhile repeats what its builder says.
func (c *cache) await(ctx context.Context, o order, claim *fulmarv1.BuildRecord, changed <-chan struct{}) error {
	select {
	case c.waiters <- struct{}{}:
		defer func() { <-c.waiters }()
	default:
		return errBusy
	}
	stop, err := o.log.repeat(claim.GetClaimedFor())
	if err != nil {
		return err
	}
	defer stop()
	if stack, generation, _, ok := messages.ParseBuildLogName(claim.GetClaimedFor()); ok {
		o.log.sayf("%s builds the same just now", messages.DeploymentName(stack, generation))
	}
	for r := claim; r.GetClaimedBy() == claim.GetClaimedBy(); changed = c.view.Changed() {
		left := r.GetClaimedUntil().AsTime().Sub(c.now())
		if left <= 0 {
			return nil
		}
		lapsed := time.NewTimer(left)
		select {
		case <-changed:
		case <-lapsed.C:
		case <-ctx.Done():
			lapsed.Stop()
			return context.Cause(ctx)
		}
		lapsed.Stop()
		if r, _, err = c.bus.Builds.Get(ctx, o.key); err != nil {
			return err
		}
	}
	return nil
}

// build claims a key whose record stands at a revision, builds it, and writes its record. A build that failed leaves none.
func (c *cache) build(ctx context.Context, o order, r *fulmarv1.BuildRecord, rev uint64) (delivery, error) {
	id := nuid.Next()
	claim := proto.CloneOf(r)
	claim.ClaimedBy, claim.ClaimedFor, claim.ClaimedUntil = id, o.log.name(), timestamppb.New(c.now().Add(c.term))
	if err := c.bus.Builds.Put(ctx, o.key, claim, rev); err != nil {
		return delivery{}, err
	}
	work, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	var prolonging sync.WaitGroup
	prolonging.Go(func() { cancel(c.prolong(work, o.key, id)) })
	made, err := o.make(work)
	lost := errors.Is(context.Cause(work), errLost)
	cancel(nil)
	prolonging.Wait()
	switch {
	case lost:
		return delivery{}, errLost
	case err != nil:
		c.release(ctx, o.key, id)
		return delivery{}, err
	}
	return c.finish(ctx, o.key, id, made)
}

// prolong prolongs a claim until ctx ends, or until somebody else has it, which is [errLost].
func (c *cache) prolong(ctx context.Context, key, id string) error {
	t := time.NewTicker(c.term / prolongings)
	defer t.Stop()
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-t.C:
		}
		_, err := c.bus.Builds.Edit(ctx, key, func(r *fulmarv1.BuildRecord) (*fulmarv1.BuildRecord, error) {
			if r.GetClaimedBy() != id {
				return nil, errLost
			}
			n := proto.CloneOf(r)
			n.ClaimedUntil = timestamppb.New(c.now().Add(c.term))
			return n, nil
		})
		if errors.Is(err, errLost) {
			return err
		}
		if err != nil && ctx.Err() == nil {
			c.bus.Log.Warn("claim of a build was not prolonged", "key", key, "err", err)
		}
	}
}

// finish writes the record of what was made. If somebody else was first, theirs stands.
func (c *cache) finish(ctx context.Context, key, id string, made *fulmarv1.BuildRecord) (delivery, error) {
	var before string
	r, err := c.bus.Builds.Edit(ctx, key, func(r *fulmarv1.BuildRecord) (*fulmarv1.BuildRecord, error) {
		before = r.GetImage()
		if r.GetClaimedBy() == "" && r.GetImage() != "" {
			return r, nil
		}
		return made, nil
	})
	if err != nil {
		c.release(ctx, key, id)
		return delivery{}, err
	}
	d := delivery{BuildRecord: r, cached: r != made}
	switch {
	case d.cached && made.GetImage() != r.GetImage():
		d.differs = made.GetImage()
	case !d.cached && before != "" && before != made.GetImage():
		d.differs = before
	}
	return d, nil
}

// release gives a claim back, also when ctx has ended. If it cannot, the claim lapses.
func (c *cache) release(ctx context.Context, key, id string) {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), releaseLimit)
	defer cancel()
	for {
		err := c.tryRelease(ctx, key, id)
		if errors.Is(err, jetstream.ErrKeyRevisionMismatch) {
			continue
		}
		if err != nil {
			c.bus.Log.Warn("claim of a build was not given back", "key", key, "err", err)
		}
		return
	}
}

func (c *cache) tryRelease(ctx context.Context, key, id string) error {
	r, rev, err := c.bus.Builds.Get(ctx, key)
	switch {
	case err != nil || r.GetClaimedBy() != id:
		return err
	case r.GetImage() == "":
		return c.bus.Builds.Delete(ctx, key, rev)
	}
	n := proto.CloneOf(r)
	n.ClaimedBy, n.ClaimedFor, n.ClaimedUntil = "", "", nil
	return c.bus.Builds.Put(ctx, key, n, rev)
}

// forget removes the records that are old and whose image is gone.
func (c *cache) forget(ctx context.Context) error {
	for key := range c.view.All() {
		r, rev, err := c.bus.Builds.Get(ctx, key)
		if err != nil {
			return err
		}
		if rev == 0 || c.now().Sub(r.GetMade().AsTime()) < recordAge || c.now().Sub(r.GetClaimedUntil().AsTime()) < recordAge {
			continue
		}
		_, err = c.bus.Images.GetInfo(ctx, r.GetImage())
		if r.GetImage() == "" || errors.Is(err, jetstream.ErrObjectNotFound) {
			err = c.bus.Builds.Delete(ctx, key, rev)
		}
		if err != nil && !errors.Is(err, jetstream.ErrKeyRevisionMismatch) {
			return fmt.Errorf("forget build %s: %w", key, err)
		}
	}
	return nil
}
