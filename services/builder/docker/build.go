package docker

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"strings"
	"sync"
	"time"

	"github.com/containerd/errdefs"
	"github.com/docker/docker/api/types/build"
	"github.com/docker/docker/api/types/versions"

	"fulmar/messages"
	fulmarv1 "fulmar/messages/fulmar/v1"
)

// maxError is how much of an error of a build is passed on, in bytes.
const maxError = 600

// Builder is what of an engine builds images.
type Builder string

// The builders of an engine.
const (
	BuildKit Builder = "buildkit" // with mounts for caches; it knows no limit of memory and CPUs
	Classic  Builder = "classic"  // every engine has it
)

// Build is a build that an engine is asked for.
type Build struct {
	// Name is the same for builds of the same source: what the classic builder keeps for the next is kept under it.
	Name       string
	Dockerfile string            // its path in the context
	Args       map[string]string // build arguments
	Target     string            // the stage to build; empty: the last
	Network    string            // of the commands: "none", "host", or empty for the engine's default
	Memory     int64             // bytes for each command; zero: no limit. Only the classic builder has limits
	MilliCPUs  int64             // for each command, in thousandths of one; zero: no limit
	Limit      time.Duration     // for the whole build
	Builder    Builder           // as [Engine.Builder] says; empty: ask it
}

// State is what a line of a log says of its step.
type State string

// What a line of a log can say of its step.
const (
	Output  State = ""        // the step said something
	Started State = "started" // it was begun
	Cached  State = "cached"  // it was done by an earlier build
	Done    State = "done"    // it was done
	Failed  State = "failed"  // it failed
)

// Line is one line of the log of a build.
type Line struct {
	Step  string        // of the build, as [build 2/5] RUN make; empty: none
	State State         // what happened to the step
	Text  string        // one line that the step said, or why it failed
	Took  time.Duration // of a step that is done
}

// String is the line as a person reads it.
func (l Line) String() string {
	switch l.State {
	case Started:
		return l.Step
	case Cached:
		return l.Step + ": cached"
	case Done:
		return fmt.Sprintf("%s: done in %s", l.Step, l.Took.Round(time.Millisecond))
	case Failed:
		return l.Step + ": failed: " + l.Text
	}
	return "  " + l.Text
}

// Builder says which builder takes a build: BuildKit where the engine has it, unless the build has limits that only the
// classic builder keeps.
func (e *Engine) Builder(ctx context.Context, b Build) (Builder, error) {
	if b.Builder != "" {
		return b.Builder, nil
	}
	engine, err := e.ping(ctx)
	if err != nil {
		return "", err
	}
	if b.Memory > 0 || b.MilliCPUs > 0 {
		return Classic, nil
	}
	if engine.OSType != "linux" || versions.LessThan(engine.APIVersion, "1.40") {
		return Classic, nil
	}
	return BuildKit, nil
}

// Build builds an image out of a context, a tar archive, and gives its id. The log gets every line of it, from one
// goroutine at a time. A Dockerfile that fails is a refusal; an engine that fails is not. When ctx ends, or the limit is
// reached, the engine ends the build. Whoever has taken from the image what it wants discards it.
func (e *Engine) Build(ctx context.Context, b Build, context io.Reader, log func(Line)) (id string, err error) {
	builder, err := e.Builder(ctx, b)
	if err != nil {
		return "", err
	}
	if b.Limit > 0 {
		var cancel func()
		ctx, cancel = withLimit(ctx, b.Limit)
		defer cancel()
	}
	r := &run{engine: e, build: b, source: &source{Reader: context}, log: log, ref: e.hold()}
	if builder == BuildKit {
		id, err = r.buildkit(ctx)
	} else {
		id, err = r.classic(ctx)
	}
	if err != nil {
		return "", errors.Join(err, e.drop(ctx, r.ref))
	}
	e.mu.Lock()
	defer e.mu.Unlock()
	e.built[id] = append(e.built[id], r.ref)
	return id, nil
}

func withLimit(ctx context.Context, limit time.Duration) (context.Context, func()) {
	return context.WithTimeoutCause(ctx, limit, messages.Refuse(fulmarv1.ReasonCode_REASON_CODE_BUILD, "the build took longer than its limit of %s", limit))
}

// Discard removes an image that was built, but not the layers that make the next build of the same name quick. Another
// build that gave the same image still has it.
func (e *Engine) Discard(ctx context.Context, id string) error {
	e.mu.Lock()
	refs := e.built[id]
	if len(refs) == 0 {
		e.mu.Unlock()
		return nil
	}
	ref := refs[0]
	if e.built[id] = refs[1:]; len(refs) == 1 {
		delete(e.built, id)
	}
	e.mu.Unlock()
	return e.drop(ctx, ref)
}

// run is a build on its way.
type run struct {
	engine *Engine
	build  Build
	source *source
	log    func(Line)
	ref    string // by which the image is held until it is discarded
}

// source is a context, and why it ended. The connection to the engine may read it longer than a build lasts.
type source struct {
	io.Reader

	mu  sync.Mutex
	err error
}

func (s *source) Read(p []byte) (int, error) {
	n, err := s.Reader.Read(p)
	if err != nil && !errors.Is(err, io.EOF) {
		s.mu.Lock()
		defer s.mu.Unlock()
		s.err = err
	}
	return n, err
}

func (s *source) failure() error {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.err
}

func (r *run) options() build.ImageBuildOptions {
	args := map[string]*string{}
	for name, value := range r.build.Args {
		args[name] = &value
	}
	return build.ImageBuildOptions{
		Dockerfile: r.build.Dockerfile, BuildArgs: args, Target: r.build.Target, NetworkMode: r.build.Network, Labels: map[string]string{Label: r.engine.owner},
	}
}

// message is what an engine says while it builds.
type message struct {
	ID     string          `json:"id"`
	Stream string          `json:"stream"`
	Status string          `json:"status"`
	Aux    json.RawMessage `json:"aux"`
	Error  string          `json:"error"`
}

// follow has the engine build, and hands on what it says until that ends.
func (r *run) follow(ctx context.Context, o build.ImageBuildOptions, hear func(message) error) error {
	response, err := r.engine.api.ImageBuild(ctx, r.source, o)
	if err != nil {
		return err
	}
	defer response.Body.Close()
	for lines := json.NewDecoder(response.Body); ; {
		var m message
		switch err := lines.Decode(&m); {
		case errors.Is(err, io.EOF):
			return nil
		case err != nil:
			return err
		case m.Error != "":
			return said(m.Error)
		}
		if err := hear(m); err != nil {
			return err
		}
	}
}

// said is an error that the engine says in the middle of a build.
type said string

func (s said) Error() string { return string(s) }

// judge says what the end of a build means: the step is the one that was underway.
func (r *run) judge(ctx context.Context, step string, err error) error {
	doing := "build an image"
	if step != "" {
		doing = "build an image: " + step
	}
	switch {
	case err == nil:
		return nil
	case ctx.Err() != nil:
		return fmt.Errorf("%s: %w", doing, context.Cause(ctx))
	case r.source.failure() != nil:
		return fmt.Errorf("read the context of a build: %w", r.source.failure())
	case fault(err):
		return messages.Refuse(fulmarv1.ReasonCode_REASON_CODE_BUILD, "%s: %w", doing, short(err))
	}
	return fmt.Errorf("%s: %w", doing, err)
}

// fault reports whether it is the Dockerfile that failed, which it would again, and not the engine or the network.
func fault(err error) bool {
	text := err.Error()
	for _, sign := range []string{"exit code: ", "returned a non-zero code: ", "Cannot locate specified Dockerfile"} {
		if strings.Contains(text, sign) {
			return true
		}
	}
	for _, sign := range []string{
		"no space left on device", "i/o timeout", "connection refused", "connection reset", "no such host", "network is unreachable", "no route to host", "handshake timeout",
		"Temporary failure in name resolution", "server misbehaving", "deadline exceeded", "context canceled", "Client.Timeout", "unexpected EOF", "toomanyrequests",
		"500 Internal", "502 Bad", "503 Service", "504 Gateway", "No such image", "Build cancelled", "transport is closing",
	} {
		if strings.Contains(text, sign) {
			return false
		}
	}
	if _, ok := errors.AsType[said](err); ok {
		return true
	}
	return errdefs.IsInvalidArgument(err)
}

// short bounds what an engine says.
func short(err error) error {
	if text := err.Error(); len(text) > maxError {
		return fmt.Errorf("%s... %s", strings.ToValidUTF8(text[:maxError/2], ""), strings.ToValidUTF8(text[len(text)-maxError/2:], "")) // how it begins and ends is what matters
	}
	return err
}
