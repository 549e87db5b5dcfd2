package main

import (
	"errors"
	"fmt"
	"io"
	"strconv"
	"strings"
	"time"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"

	"fulmar/bus"
	"fulmar/messages"
	fulmarv1 "fulmar/messages/fulmar/v1"
	"fulmar/services/builder/buildlog"
)

const (
	logQueue  = 4096            // lines of a build that may wait to be printed
	logAnswer = 3 * time.Second // for the log of a build that runs
	stepWidth = 120             // characters of a step that are printed
)

// buildLogs prints the logs of the builds of a deployment: what is kept, or what there is so far of one that runs.
type buildLogs struct {
	env        *env
	bus        *bus.Bus
	stack      string
	generation uint64
	unit       string // only of this one; empty: of all

	printed map[string]int // lines by unit
}

// run prints them, and follows the build until it ends if it is to be followed.
func (l *buildLogs) run(follow bool) error {
	l.printed = map[string]int{}
	live := make(chan *nats.Msg, logQueue)
	sub, err := l.bus.NC.ChanSubscribe(messages.BuildLogSubject(l.stack, l.generation), live) // before the rest, so that no line falls between
	if err != nil {
		return fmt.Errorf("follow the build of %s: %w", l.name(), err)
	}
	defer func() { _ = sub.Unsubscribe() }()
	last, _, err := l.bus.Last(l.env.ctx, l.stack, l.generation)
	if err != nil {
		return err
	}
	if last == nil {
		return fmt.Errorf("nothing is known of %s; fulmar events %s says what is there", l.name(), l.stack)
	}
	if last.GetVerb() != string(messages.Accepted) {
		return l.kept(last.GetDeployment())
	}
	if err := l.sofar(); err != nil || !follow {
		return err
	}
	return l.follow(live)
}

func (l *buildLogs) name() string { return messages.DeploymentName(l.stack, l.generation) }

// kept prints the logs that are kept.
func (l *buildLogs) kept(d *fulmarv1.Deployment) error {
	names := map[string]string{}
	for _, u := range d.GetUnits() {
		names[u.GetName()] = u.GetBuild().GetLog()
	}
	found := 0
	for _, u := range d.GetContent().GetUnits() {
		if l.unit != "" && l.unit != u.GetName() {
			continue
		}
		name := names[u.GetName()]
		if name == "" { // it may have ended before anybody could say so
			name = messages.BuildLogName(l.stack, l.generation, u.GetName())
		}
		in, err := l.bus.Logs.Get(l.env.ctx, name)
		if errors.Is(err, jetstream.ErrObjectNotFound) {
			continue
		}
		if err != nil {
			return fmt.Errorf("read the log %s: %w", name, err)
		}
		found++
		err = l.read(u.GetName(), in)
		if cerr := in.Close(); err == nil {
			err = cerr
		}
		if err != nil {
			return err
		}
	}
	if found == 0 {
		return fmt.Errorf("no log of a build of %s is kept", l.name())
	}
	return nil
}

// sofar prints what there is of the log of a build that runs.
func (l *buildLogs) sofar() error {
	msg, err := l.bus.NC.Request(messages.BuildLogQuery(l.stack, l.generation), nil, logAnswer)
	if errors.Is(err, nats.ErrNoResponders) || errors.Is(err, nats.ErrTimeout) {
		return nil // nothing is built just now
	}
	if err != nil {
		return fmt.Errorf("ask for the log of %s: %w", l.name(), err)
	}
	return l.read(msg.Header.Get(messages.UnitHeader), strings.NewReader(string(msg.Data)))
}

func (l *buildLogs) read(unit string, in io.Reader) error {
	return buildlog.Read(in, func(line buildlog.Line) error { return l.print(unit, line) })
}

// follow prints what is said until the build has ended.
func (l *buildLogs) follow(live <-chan *nats.Msg) error {
	ended := make(chan error, 1)
	go func() {
		ended <- l.env.followLog(l.env.ctx, l.bus, 0, func(s said) (bool, error) { return s.subject.Verb != messages.Accepted, nil }, messages.ChainFilter(l.stack, l.generation))
	}()
	for {
		select {
		case m := <-live:
			if err := l.print(lineOf(m)); err != nil {
				return err
			}
		case err := <-ended:
			for len(live) > 0 {
				if err := l.print(lineOf(<-live)); err != nil {
					return err
				}
			}
			if l.env.ctx.Err() != nil {
				return nil // the user has seen enough
			}
			return err
		}
	}
}

// lineOf reads a line that is said.
func lineOf(m *nats.Msg) (unit string, line buildlog.Line) {
	line = buildlog.Line{Step: m.Header.Get(messages.StepHeader), State: m.Header.Get(messages.StateHeader), Text: string(m.Data)}
	line.Number, _ = strconv.Atoi(m.Header.Get(messages.LineHeader)) // 0 is no number of a line
	line.Time, _ = time.Parse(time.RFC3339Nano, m.Header.Get(messages.TimeHeader))
	return m.Header.Get(messages.UnitHeader), line
}

// print prints a line, once. A log that begins anew is of another try.
func (l *buildLogs) print(unit string, line buildlog.Line) error {
	if l.unit != "" && l.unit != unit || line.Number <= l.printed[unit] && line.Number != 1 {
		return nil
	}
	l.printed[unit] = line.Number
	if l.env.cli.JSON {
		return l.env.printJSON(map[string]any{
			"unit": unit, "number": line.Number, "time": line.Time.Format(time.RFC3339Nano), "step": line.Step, "state": line.State, "text": line.Text,
		})
	}
	_, err := fmt.Fprintf(l.env.out, "%s | %s\n", unit, line)
	return err
}

// printStep prints a line of a build while its deployment is followed: what happens to the steps of its Dockerfile, but not
// what they say, nor what the engine does beside them.
func (f *follower) printStep(m *nats.Msg) error {
	unit, line := lineOf(m)
	beside := line.Step != "" && (line.State == "" || !strings.HasPrefix(line.Step, "[") || strings.HasPrefix(line.Step, "[internal]"))
	if m.Subject != messages.BuildLogSubject(f.stack, f.generation) || beside {
		return nil
	}
	text := []rune(line.String())
	if len(text) > stepWidth {
		text = append(text[:stepWidth], '…')
	}
	_, err := fmt.Fprintf(f.env.out, "    %s: %s\n", unit, string(text))
	return err
}
