package builder

import (
	"bytes"
	"context"
	"fmt"
	"strconv"
	"sync"
	"time"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"

	"fulmar/bus"
	"fulmar/messages"
	"fulmar/services/builder/buildlog"
)

// quoted is how many of the last lines of its log the failure of a build quotes.
const quoted = 5

// log is the log of the build of one unit's image: every line is said on the bus as it comes, and while the build runs
// whoever asks is answered with what there is so far.
type log struct {
	bus        *bus.Bus
	stack      string
	generation uint64
	unit       string
	now        func() time.Time

	mu  sync.Mutex
	log buildlog.Log
}

// name is the name under which the log is kept.
func (l *log) name() string { return messages.BuildLogName(l.stack, l.generation, l.unit) }

// say adds a line. Nothing rests on whether anybody hears it.
func (l *log) say(line buildlog.Line) {
	line.Time = l.now()
	l.mu.Lock()
	defer l.mu.Unlock()
	line = l.log.Add(line)
	_ = l.bus.NC.PublishMsg(&nats.Msg{
		Subject: messages.BuildLogSubject(l.stack, l.generation), Data: []byte(line.Text),
		Header: nats.Header{
			messages.TimeHeader: {line.Time.Format(time.RFC3339Nano)}, messages.UnitHeader: {l.unit}, messages.LineHeader: {strconv.Itoa(line.Number)},
			messages.StepHeader: {line.Step}, messages.StateHeader: {line.State},
		},
	})
}

// sayf says a line of the builder itself.
func (l *log) sayf(format string, args ...any) {
	l.say(buildlog.Line{Text: fmt.Sprintf(format, args...)})
}

// last gives the last lines that steps said.
func (l *log) last() []string {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.log.Last(quoted)
}

func (l *log) pack() []byte {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.log.Pack()
}

// answer gives whoever asks the log so far, until it is stopped.
func (l *log) answer() (stop func(), err error) {
	return l.listen(messages.BuildLogQuery(l.stack, l.generation), func(m *nats.Msg) {
		_ = m.RespondMsg(&nats.Msg{Data: l.pack(), Header: nats.Header{messages.UnitHeader: {l.unit}}}) // who asked is gone when it fails
	})
}

// repeat says what is said of another build, by the name of its log, until it is stopped.
func (l *log) repeat(name string) (stop func(), err error) {
	stack, generation, unit, ok := messages.ParseBuildLogName(name)
	if !ok {
		return func() {}, nil
	}
	return l.listen(messages.BuildLogSubject(stack, generation), func(m *nats.Msg) {
		if m.Header.Get(messages.UnitHeader) == unit {
			l.say(buildlog.Line{Step: m.Header.Get(messages.StepHeader), State: m.Header.Get(messages.StateHeader), Text: string(m.Data)})
		}
	})
}

func (l *log) listen(subject string, heard nats.MsgHandler) (stop func(), err error) {
	sub, err := l.bus.NC.Subscribe(subject, heard)
	if err != nil {
		return nil, fmt.Errorf("listen on %s: %w", subject, err)
	}
	return func() { _ = sub.Unsubscribe() }, nil // at worst the connection is closed
}

// keep stores the log.
func (l *log) keep(ctx context.Context) error {
	meta := jetstream.ObjectMeta{Name: l.name(), Description: "Log of a build, compressed by gzip."}
	if _, err := l.bus.Logs.Put(ctx, meta, bytes.NewReader(l.pack())); err != nil {
		return fmt.Errorf("keep the log of a build: %w", err)
	}
	return nil
}
