package docker

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"time"

	"github.com/docker/docker/api/types/build"
	"google.golang.org/protobuf/encoding/protowire"
)

// mercy is how long the engine has to end a build that is broken off, before nobody listens any more.
const mercy = 20 * time.Second

// buildkit builds by BuildKit. When ctx ends, the engine is told and heard to the end, so that it has no image that
// nobody knows of.
func (r *run) buildkit(ctx context.Context) (id string, err error) {
	o := r.options()
	o.Version, o.BuildID, o.Tags = build.BuilderBuildKit, r.ref, []string{r.ref}
	whole, hang := context.WithCancel(context.WithoutCancel(ctx))
	defer hang()
	stop := context.AfterFunc(ctx, func() {
		over, cancel := context.WithTimeout(whole, mercy)
		defer cancel()
		if r.engine.api.BuildCancel(over, r.ref) == nil {
			<-over.Done()
		}
		hang()
	})
	defer stop()
	p := newProgress(r.log)
	err = r.follow(whole, o, func(m message) error {
		switch m.ID {
		case "moby.buildkit.trace":
			var raw []byte
			if err := json.Unmarshal(m.Aux, &raw); err != nil {
				return fmt.Errorf("read the progress of a build: %w", err)
			}
			return p.take(raw)
		case "moby.image.id":
			var result build.Result
			if err := json.Unmarshal(m.Aux, &result); err != nil {
				return fmt.Errorf("read the result of a build: %w", err)
			}
			id = result.ID
		}
		return nil
	})
	if err == nil && ctx.Err() != nil {
		err = ctx.Err()
	}
	if err == nil && id == "" {
		err = errors.New("the engine names no image")
	}
	return id, r.judge(ctx, p.failed, err)
}

// progress turns the trace of BuildKit into the lines of a log.
type progress struct {
	log    func(Line)
	steps  map[string]*step // by the digests of their definitions
	failed string           // the step that failed
}

type step struct {
	name    string
	started bool
	ended   bool
	partial lines
}

func newProgress(log func(Line)) *progress {
	return &progress{log: log, steps: map[string]*step{}}
}

func (p *progress) step(digest string) *step {
	s := p.steps[digest]
	if s == nil {
		s = &step{}
		p.steps[digest] = s
	}
	return s
}

// take reads one message StatusResponse of BuildKit's control.proto, of which the fields that are of use: 1, the steps
// that changed, and 3, what they said.
func (p *progress) take(raw []byte) error {
	var changed []vertex
	err := fields(raw, func(n protowire.Number, v []byte) error {
		switch n {
		case 1:
			c, err := parseVertex(v)
			changed = append(changed, c)
			return err
		case 3:
			return p.said(v)
		}
		return nil
	})
	for _, v := range changed { // what a step said goes before its end
		p.change(v)
	}
	return err
}

// vertex is a step as BuildKit tells of it.
type vertex struct {
	digest, name, failure string
	cached                bool
	started, completed    time.Time
}

// parseVertex reads a message Vertex: 1 digest, 3 name, 4 cached, 5 started, 6 completed, 7 error.
func parseVertex(raw []byte) (v vertex, err error) {
	err = walk(raw, func(n protowire.Number, value uint64, bytes []byte) (err error) {
		switch n {
		case 1:
			v.digest = string(bytes)
		case 3:
			v.name = plain(string(bytes))
		case 4:
			v.cached = value != 0
		case 5:
			v.started, err = parseTime(bytes)
		case 6:
			v.completed, err = parseTime(bytes)
		case 7:
			v.failure = plain(string(bytes))
		}
		return err
	})
	return v, err
}

func (p *progress) change(v vertex) {
	s := p.step(v.digest)
	if v.name != "" {
		s.name = v.name
	}
	if !v.started.IsZero() && !s.started {
		s.started = true
		p.log(Line{Step: s.name, State: Started})
	}
	if v.completed.IsZero() || s.ended {
		return
	}
	s.ended = true
	s.partial.end(func(text string) { p.log(Line{Step: s.name, Text: text}) })
	switch {
	case v.failure != "":
		p.failed = s.name
		p.log(Line{Step: s.name, State: Failed, Text: v.failure})
	case v.cached:
		p.log(Line{Step: s.name, State: Cached})
	default:
		p.log(Line{Step: s.name, State: Done, Took: max(v.completed.Sub(v.started), 0)})
	}
}

// said reads a message VertexLog: 1 the digest of the step, 4 the text.
func (p *progress) said(raw []byte) error {
	var digest string
	var text []byte
	err := fields(raw, func(n protowire.Number, v []byte) error {
		switch n {
		case 1:
			digest = string(v)
		case 4:
			text = v
		}
		return nil
	})
	if err != nil {
		return err
	}
	s := p.step(digest)
	s.partial.add(text, func(text string) { p.log(Line{Step: s.name, Text: text}) })
	return nil
}

// parseTime reads a message Timestamp: 1 seconds, 2 nanoseconds.
func parseTime(raw []byte) (time.Time, error) {
	var seconds, nanos int64
	err := walk(raw, func(n protowire.Number, value uint64, _ []byte) error {
		switch n {
		case 1:
			seconds = int64(value)
		case 2:
			nanos = int64(value)
		}
		return nil
	})
	return time.Unix(seconds, nanos), err
}

// fields gives the fields of a message that are bytes, strings or messages.
func fields(raw []byte, each func(protowire.Number, []byte) error) error {
	return walk(raw, func(n protowire.Number, _ uint64, bytes []byte) error {
		if bytes == nil {
			return nil
		}
		return each(n, bytes)
	})
}

// walk gives the fields of a message: a number, or bytes that are not nil.
func walk(raw []byte, each func(n protowire.Number, value uint64, bytes []byte) error) error {
	for len(raw) > 0 {
		n, kind, size := protowire.ConsumeTag(raw)
		if size < 0 {
			return fmt.Errorf("read the progress of a build: %w", protowire.ParseError(size))
		}
		raw = raw[size:]
		var value uint64
		var bytes []byte
		switch kind {
		case protowire.VarintType:
			value, size = protowire.ConsumeVarint(raw)
		case protowire.BytesType:
			bytes, size = protowire.ConsumeBytes(raw)
		default:
			size = protowire.ConsumeFieldValue(n, kind, raw)
		}
		if size < 0 {
			return fmt.Errorf("read the progress of a build: %w", protowire.ParseError(size))
		}
		raw = raw[size:]
		if err := each(n, value, bytes); err != nil {
			return err
		}
	}
	return nil
}
