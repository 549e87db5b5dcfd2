package docker

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"strings"
	"time"

	"github.com/docker/docker/api/types/build"
)

// period is that of the quota of CPU time, in microseconds.
const period = 100_000

// What lines of the classic builder's own begin with.
const (
	arrow    = " ---> "
	removing = "Removing intermediate container "
)

// classic builds by the classic builder, whose layers are images: those that a stage ends with are kept for the next
// build of the same name, also when this one fails.
func (r *run) classic(ctx context.Context) (string, error) {
	r.engine.classic(1)
	defer r.engine.classic(-1)
	o := r.options()
	o.Version, o.Remove, o.ForceRemove = build.BuilderV1, true, true
	o.Memory, o.MemorySwap = r.build.Memory, r.build.Memory // none of it on disk
	if r.build.MilliCPUs > 0 {
		o.CPUPeriod, o.CPUQuota = period, max(r.build.MilliCPUs*period/1000, 1000) // less the engine does not take
	}
	s := &stages{log: r.log, now: time.Now}
	err := r.follow(ctx, o, s.hear)
	if err != nil {
		s.fail(err)
	}
	err = r.judge(ctx, s.current, err)
	id := s.last()
	if err == nil && id == "" {
		err = errors.New("build an image: the engine names none")
	}
	whole, cancel := context.WithTimeout(context.WithoutCancel(ctx), patience)
	defer cancel()
	if err == nil {
		if err = r.engine.api.ImageTag(whole, id, r.ref); err != nil {
			err = fmt.Errorf("hold the image that was built: %w", err)
		}
	}
	if kerr := r.engine.keep(whole, r.build.Name, s.images); kerr != nil && err == nil {
		err = kerr
	}
	return id, err
}

// stages turns what the classic builder says into the lines of a log, and knows the image that each stage ends with.
type stages struct {
	log     func(Line)
	now     func() time.Time
	partial lines
	current string    // step
	begun   time.Time // the step
	cached  bool
	images  []string // one a stage: what it has come to
}

func (s *stages) hear(m message) error {
	switch {
	case m.Stream != "":
		if strings.HasPrefix(m.Stream, removing) || strings.HasPrefix(m.Stream, arrow) { // the command had not ended its line
			s.partial.end(s.line)
		}
		s.partial.add([]byte(m.Stream), s.line)
	case m.Status != "" && m.ID == "":
		s.log(Line{Step: s.current, Text: plain(m.Status)})
	case m.Aux != nil:
		var result build.Result
		if err := json.Unmarshal(m.Aux, &result); err != nil {
			return fmt.Errorf("read the result of a build: %w", err)
		}
		s.reach(result.ID)
	}
	return nil
}

// line reads a line: Step 2/5 : RUN make, then what the step says, then the image that it made.
func (s *stages) line(text string) {
	if step, ok := strings.CutPrefix(text, "Step "); ok {
		if number, instruction, ok := strings.Cut(step, " : "); ok {
			s.done()
			s.current, s.begun, s.cached = "["+number+"] "+instruction, s.now(), false
			if strings.HasPrefix(strings.ToUpper(instruction), "FROM ") {
				s.images = append(s.images, "")
			}
			s.log(Line{Step: s.current, State: Started})
			return
		}
	}
	what, ok := strings.CutPrefix(text, arrow)
	switch {
	case ok && what == "Using cache":
		s.cached = true
	case ok && (strings.HasPrefix(what, "Running in ") || what == ""):
	case ok && isShortID(what):
		s.reach(what)
	case strings.HasPrefix(text, removing), strings.HasPrefix(text, "Successfully built "), strings.HasPrefix(text, "Successfully tagged "):
	default:
		s.log(Line{Step: s.current, Text: text})
	}
}

// reach notes the image that a stage has come to.
func (s *stages) reach(id string) {
	if len(s.images) > 0 && id != "" {
		s.images[len(s.images)-1] = id
	}
	s.done()
}

func (s *stages) done() {
	switch {
	case s.begun.IsZero():
		return
	case s.cached:
		s.log(Line{Step: s.current, State: Cached})
	default:
		s.log(Line{Step: s.current, State: Done, Took: s.now().Sub(s.begun)})
	}
	s.begun = time.Time{}
}

func (s *stages) fail(err error) {
	s.partial.end(s.line)
	if !s.begun.IsZero() {
		s.log(Line{Step: s.current, State: Failed, Text: plain(short(err).Error())})
	}
}

func (s *stages) last() string {
	if len(s.images) == 0 {
		return ""
	}
	return s.images[len(s.images)-1]
}

func isShortID(s string) bool { return len(s) == 12 && strings.Trim(s, "0123456789abcdef") == "" }
