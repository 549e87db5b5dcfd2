package builder

import (
	"context"
	"errors"
	"fmt"
	"time"

	"google.golang.org/protobuf/proto"

	"fulmar/bus"
	"fulmar/messages"
	fulmarv1 "fulmar/messages/fulmar/v1"
)

// defaultCollect is the time between two collections of images unless a configuration names another.
const defaultCollect = time.Hour

// acceptor is the consumer of requests.
const acceptor = "builder-accept"

// collects removes, at once and then periodically, images that nobody needs and old records of builds, until ctx ends.
func (s *Service) collects(ctx context.Context) error {
	every := s.config.Collect
	if every <= 0 {
		every = defaultCollect
	}
	t := time.NewTicker(every)
	defer t.Stop()
	for {
		_, err := s.collect(ctx, false)
		if err = errors.Join(err, s.cache.forget(ctx)); err != nil && ctx.Err() == nil {
			s.bus.Log.Warn("collection was incomplete", "err", err)
		}
		select {
		case <-ctx.Done():
			return nil
		case <-t.C:
		}
	}
}

// collect removes the images to which nothing refers and for which nobody has asked during the grace, or only says which
// they are. The order makes it safe: first the images are listed, then every request that is stored must be in a head, and
// then the heads are read. Whoever asks for one of the images after that keeps it by its record in the store, or finds that
// it is gone: either the builder does so, or who stores it again.
func (s *Service) collect(ctx context.Context, dryRun bool) ([]*fulmarv1.SweepItem, error) {
	since := s.now().Add(-bus.ImageGrace)
	stale, err := s.bus.StaleImages(ctx, since)
	if err != nil {
		return nil, err
	}
	waiting, err := s.bus.RequestsWait(ctx, acceptor)
	if waiting || err != nil {
		return nil, err // the next time
	}
	heads, err := s.bus.Heads.All(ctx)
	if err != nil {
		return nil, err
	}
	used := referred(heads)
	var items []*fulmarv1.SweepItem
	var errs []error
	for _, o := range stale {
		if used[o.Name] {
			continue
		}
		removed := true
		if !dryRun {
			if removed, err = s.bus.RemoveImage(ctx, o.Name, since); err != nil {
				errs = append(errs, err)
			}
		}
		if removed {
			s.bus.Log.Info("image was not needed", "image", o.Name, "bytes", o.Size, "removed", !dryRun)
			items = append(items, &fulmarv1.SweepItem{
				Subject: o.Name, Action: "remove", Reason: fmt.Sprintf("image of %d KB: nothing refers to it, and nobody asked for it since %s", (o.Size+1023)/1024, o.ModTime.UTC().Format(time.RFC3339)),
			})
		}
	}
	if !dryRun {
		_, err = s.bus.RemoveScraps(ctx, since)
		errs = append(errs, err)
	}
	return items, errors.Join(errs...)
}

// referred gives the images to which a head refers: those of every deployment that is not retired, and those of the content
// that a rollback brings back.
func referred(heads map[string]*fulmarv1.Head) map[string]bool {
	used := map[string]bool{}
	add := func(c *fulmarv1.Content) {
		for _, u := range c.GetUnits() {
			used[u.GetImage().GetSha256()] = true
			used[u.GetImage().GetObject()] = true
		}
	}
	for _, h := range heads {
		add(h.GetPrevious())
		for _, d := range h.GetDeployments() {
			add(d.GetContent())
		}
	}
	return used
}

// sweepEndpoint answers what a collection would remove, and collects on request.
func (s *Service) sweepEndpoint() bus.Endpoint {
	return bus.Endpoint{
		Name: "sweep", Subject: messages.SweepQuery(messages.NoHost),
		Request: func() proto.Message { return &fulmarv1.SweepRequest{} },
		Handle: func(ctx context.Context, request proto.Message) (proto.Message, error) {
			items, err := s.collect(ctx, request.(*fulmarv1.SweepRequest).GetDryRun())
			return &fulmarv1.SweepReply{Items: items}, err
		},
	}
}

// Endpoints are the questions that a builder answers.
func (s *Service) Endpoints() []bus.Endpoint { return []bus.Endpoint{s.sweepEndpoint()} }
