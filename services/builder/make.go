package builder

import (
	"context"
	"errors"
	"fmt"
	"os"
	"strings"
	"time"

	"google.golang.org/protobuf/types/known/durationpb"
	"google.golang.org/protobuf/types/known/timestamppb"

	"fulmar/messages"
	fulmarv1 "fulmar/messages/fulmar/v1"
)

const (
	keepLimit = 10 * time.Second // for storing the log of a build, also of one that was cancelled
	maxQuote  = 160              // bytes of a line that the failure of a build quotes
)

// image gets the image of a source into the store. Its provenance comes with it, and with an error as much as is known.
func (s *Service) image(ctx context.Context, source *fulmarv1.Image, l *log) (image, *fulmarv1.Build, error) {
	p, err := s.sources.plan(ctx, source, l)
	if err != nil {
		return image{}, nil, err
	}
	i, facts, err := s.carryOut(ctx, p, l)
	if w, ok := errors.AsType[wrongDigest](err); ok && source.GetSha256Url() != "" { // one of the two is just being replaced
		err = fmt.Errorf("image: its SHA-256 is %s, and not %s as the text of sha256_url says", w.digest, w.want)
	}
	return i, facts, err
}

// carryOut gets the image of a plan into the store: it is there already, another builder makes it, or this one does.
func (s *Service) carryOut(ctx context.Context, p plan, l *log) (image, *fulmarv1.Build, error) {
	if p.key == "" {
		get := s.images.get
		if s.config.Policy != nil && p.kind != "object" { // it is about where the image comes from, not only what it is
			get = s.images.fetch
		}
		i, err := get(ctx, p.want, func(ctx context.Context, f *os.File) error { return p.make(ctx, l, f) })
		return i, nil, err
	}
	made, err := s.cache.get(ctx, order{key: p.key, log: l, make: func(ctx context.Context) (*fulmarv1.BuildRecord, error) { return s.make(ctx, p, l) }})
	if err != nil {
		return image{}, p.facts, err
	}
	s.told(p, made, l)
	if p.want != "" && made.GetImage() != p.want {
		return image{}, p.facts, wrongImage(made.GetImage(), p.want)
	}
	i, err := s.images.fetched(ctx, made.GetImage())
	return i, p.facts, err
}

// told takes what is known of a build into its facts, and tells of it.
func (s *Service) told(p plan, d delivery, l *log) {
	f := p.facts
	f.ImageDigest, f.Duration, f.Log, f.Cached, f.DiffersFrom = d.GetImageDigest(), d.GetDuration(), d.GetLog(), d.cached, d.differs
	if d.cached {
		s.metrics.builds.WithLabelValues(p.kind, "cached").Inc()
		l.sayf("cached: it was built %s ago in %s", s.now().Sub(d.GetMade().AsTime()).Round(time.Second), d.GetDuration().AsDuration().Round(time.Millisecond))
	}
	if d.differs != "" {
		s.metrics.differing.Inc()
		l.sayf("the image %s differs from %s, which was built from the same: the build cannot be reproduced", d.GetImage(), d.differs)
		s.bus.Log.Warn("build was different", "source", f.GetSource(), "key", p.key, "image", d.GetImage(), "before", d.differs)
	}
}

// make makes the image of a plan into the store and keeps its log, whatever comes of it.
func (s *Service) make(ctx context.Context, p plan, l *log) (*fulmarv1.BuildRecord, error) {
	stop, err := l.answer()
	if err != nil {
		return nil, err
	}
	defer stop()
	s.metrics.running.Inc()
	defer s.metrics.running.Dec()
	begin := s.now()
	i, err := s.images.get(ctx, "", func(ctx context.Context, f *os.File) error { return p.make(ctx, l, f) })
	took := s.now().Sub(begin)
	if errors.Is(err, errBusy) {
		return nil, err // nothing was begun
	}
	if err != nil {
		l.sayf("failed after %s: %s", took.Round(time.Millisecond), err)
	} else {
		l.sayf("made image %s, %d KB, in %s", i.digest, (i.size+1023)/1024, took.Round(time.Millisecond))
	}
	name := s.keepLog(ctx, l)
	s.metrics.made(ctx, p.kind, took, err)
	if err != nil {
		p.facts.Log = name
		return nil, failed(p, l, err)
	}
	return &fulmarv1.BuildRecord{
		Image: i.digest, Size: i.size, Commit: p.facts.GetCommit(), ImageDigest: p.facts.GetImageDigest(), Duration: durationpb.New(took),
		Log: name, Made: timestamppb.New(s.now()),
	}, nil
}

// keepLog stores a log and gives its name, or none if it could not be stored: a build does not fail for that.
func (s *Service) keepLog(ctx context.Context, l *log) string {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), keepLimit)
	defer cancel()
	if err := l.keep(ctx); err != nil {
		s.bus.Log.Warn("log of a build was lost", "log", l.name(), "err", err)
		return ""
	}
	return l.name()
}

// failed adds to the refusal of a build what its log ends with, and where the whole is.
func failed(p plan, l *log, err error) error {
	refusal, ok := messages.AsRefusal(err)
	if !ok || refusal.Code != fulmarv1.ReasonCode_REASON_CODE_BUILD {
		return err
	}
	var ends []string
	for _, line := range l.last() {
		if len(line) > maxQuote {
			line = line[:maxQuote] + "…"
		}
		ends = append(ends, fmt.Sprintf("%q", line))
	}
	where := ""
	if p.facts.GetLog() != "" {
		where = "; fulmar logs --build " + messages.DeploymentName(l.stack, l.generation) + " shows all of it"
	}
	if len(ends) == 0 {
		return err
	}
	return messages.Refuse(refusal.Code, "%w; its log ends with %s%s", err, strings.Join(ends, ", "), where)
}
