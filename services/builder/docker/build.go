package docker

import (
	"context"
	"errors"
	"fmt"
	"io"
	"time"
)

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
	return "", errors.New("not yet")
}

// Build builds an image out of a context, a tar archive, and gives its id. The log gets every line of it, from one
// goroutine at a time. Whoever has taken from the image what it wants discards it.
func (e *Engine) Build(ctx context.Context, b Build, context io.Reader, log func(Line)) (id string, err error) {
	return "", errors.New("not yet")
}

// Discard removes an image that was built, but not the layers that make the next build of the same name quick.
func (e *Engine) Discard(ctx context.Context, id string) error {
	return errors.New("not yet")
}

// KeepFile reads a .dockerignore file and gives what of a context it lets through, which always has the Dockerfile.
func KeepFile(ignore []byte, dockerfile string) (func(path string) bool, error) {
	return nil, errors.New("not yet")
}
