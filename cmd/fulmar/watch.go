package main

import (
	"fmt"
	"maps"
	"slices"
	"strings"
	"time"

	"fulmar/bus"
	"fulmar/messages"
	fulmarv1 "fulmar/messages/fulmar/v1"
	"fulmar/services/builder/watch"
)

type watchCmd struct {
	Ls     watchLsCmd     `cmd:"" help:"List the sources that are followed, and what came of them."`
	Pause  watchPauseCmd  `cmd:"" help:"Keep a stack from following its sources until it is resumed."`
	Resume watchResumeCmd `cmd:"" help:"Follow the sources of a stack again, beginning at once."`
	Check  watchCheckCmd  `cmd:"" help:"Look at the sources of a stack now."`
}

type watchLsCmd struct{}

// Run lists the watches.
func (watchLsCmd) Run(e *env) error {
	b, closeBus, err := e.connect()
	if err != nil {
		return err
	}
	defer closeBus()
	all, err := readable(e, b.Watches)
	if err != nil {
		return err
	}
	var rows []string
	for _, stack := range slices.Sorted(maps.Keys(all)) {
		w := all[stack]
		if !watch.Following(w) {
			continue
		}
		if e.cli.JSON {
			if err := e.printProto(w); err != nil {
				return err
			}
			continue
		}
		became, err := became(e, b, w)
		if err != nil {
			e.leftOut(err)
		}
		rows = append(rows, watchRows(w, became, time.Now())...)
	}
	if e.cli.JSON {
		return nil
	}
	return e.table("STACK UNIT SOURCE SEEN LOOKED NEXT STATE", rows)
}

// became says what became of the last request of a watch, if that is worth a word.
func became(e *env, b *bus.Bus, w *fulmarv1.Watch) (string, error) {
	generation := max(w.GetGeneration(), w.GetSent())
	last, _, err := b.Last(e.ctx, w.GetStack(), generation)
	if err != nil {
		return "", err
	}
	name, verb := messages.DeploymentName(w.GetStack(), generation), messages.Verb(last.GetVerb())
	switch {
	case verb == messages.Failed || verb == messages.Rejected:
		return name + " " + string(verb) + ": " + last.GetReason(), nil
	case last == nil && generation == w.GetSent():
		return name + " sent", nil
	case verb.Awaited() != "":
		return name + " " + string(verb), nil
	}
	return "", nil
}

func watchRows(w *fulmarv1.Watch, became string, now time.Time) []string {
	next := max(w.GetNext().AsTime().Sub(now), 0).Round(time.Second).String()
	if w.GetPaused() {
		next = "-"
	}
	var rows []string
	for _, s := range w.GetSources() {
		seen, looked := "-", "-"
		if s.GetSeen() != "" {
			seen = strings.TrimPrefix(s.GetSeen(), "sha256:")
			seen = seen[:min(len(seen), 12)]
		}
		if s.GetLooked() != nil {
			looked = s.GetLooked().AsTime().Local().Format(time.DateTime)
		}
		rows = append(rows, strings.Join([]string{w.GetStack(), s.GetUnit(), s.GetSource(), seen, looked, next, watchState(w, s, became)}, "\t"))
	}
	return rows
}

// watchState says how it stands with a source: what keeps it from being followed comes first.
func watchState(w *fulmarv1.Watch, s *fulmarv1.WatchedSource, became string) string {
	state := "followed"
	if w.GetPaused() {
		state = "paused"
	}
	if s.GetError() != "" {
		state += fmt.Sprintf(", look failed %d times: %s", s.GetFailures(), s.GetError())
	}
	if became != "" {
		state += ", " + became
	}
	return state
}

type watchPauseCmd struct {
	Stack string `arg:"" help:"Name of the stack."`
}

// Run pauses a watch.
func (c *watchPauseCmd) Run(e *env) error { return e.editWatch(c.Stack, watch.Pause) }

type watchResumeCmd struct {
	Stack string `arg:"" help:"Name of the stack."`
}

// Run resumes a watch.
func (c *watchResumeCmd) Run(e *env) error {
	return e.editWatch(c.Stack, func(w *fulmarv1.Watch) *fulmarv1.Watch { return watch.Resume(w, time.Now()) })
}

type watchCheckCmd struct {
	Stack string `arg:"" help:"Name of the stack."`
}

// Run asks for a look.
func (c *watchCheckCmd) Run(e *env) error {
	return e.editWatch(c.Stack, func(w *fulmarv1.Watch) *fulmarv1.Watch {
		return watch.Check(w, "fulmar watch check", time.Now())
	})
}

// editWatch changes the watch of a stack, which must have one.
func (e *env) editWatch(stack string, edit func(*fulmarv1.Watch) *fulmarv1.Watch) error {
	if err := messages.CheckName("stack", stack); err != nil {
		return err
	}
	b, closeBus, err := e.connect()
	if err != nil {
		return err
	}
	defer closeBus()
	_, err = b.Watches.Edit(e.ctx, stack, func(w *fulmarv1.Watch) (*fulmarv1.Watch, error) {
		if !watch.Following(w) {
			return nil, fmt.Errorf("stack %s follows no source: deploy it with watch: true; fulmar watch ls lists those that do", stack)
		}
		return edit(w), nil
	})
	return err
}
