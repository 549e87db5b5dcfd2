package main

import (
	"bytes"
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"
	"google.golang.org/protobuf/proto"

	"fulmar/messages"
	fulmarv1 "fulmar/messages/fulmar/v1"
	"fulmar/services/builder/buildlog"
)

// build is a build of web-7 that a test says in the place of a builder.
type build struct {
	w   *world
	log buildlog.Log
}

func (b *build) say(text string) {
	b.w.t.Helper()
	line := b.log.Add(buildlog.Line{Time: time.Now(), Step: "[1/1] RUN make", Text: text})
	err := b.w.bus.NC.PublishMsg(&nats.Msg{
		Subject: messages.BuildLogSubject("web", 7), Data: []byte(line.Text),
		Header: nats.Header{messages.UnitHeader: {"www"}, messages.StepHeader: {line.Step}, messages.LineHeader: {fmt.Sprint(line.Number)}},
	})
	if err != nil {
		b.w.t.Fatal(err)
	}
}

func (b *build) event(verb messages.Verb, cause uint64, units ...*fulmarv1.Unit) uint64 {
	b.w.t.Helper()
	e := &fulmarv1.Event{Verb: string(verb), Deployment: &fulmarv1.Deployment{
		Stack: "web", Generation: 7, Content: &fulmarv1.Content{Units: []*fulmarv1.UnitSpec{{Name: "www"}}}, Units: units,
	}}
	if err := b.w.bus.Say(b.w.t.Context(), e, cause); err != nil {
		b.w.t.Fatal(err)
	}
	_, seq, err := b.w.bus.Last(b.w.t.Context(), "web", 7)
	if err != nil {
		b.w.t.Fatal(err)
	}
	return seq
}

// TestWhoComesLateToABuildMissesNothing asks for the log of a build that has said something already and says more while it
// answers.
func TestWhoComesLateToABuildMissesNothing(t *testing.T) {
	w := newQuietWorld(t)
	b := &build{w: w}
	accepted := b.event(messages.Accepted, 0)
	b.say("one")
	answered := make(chan struct{})
	sub, err := w.bus.NC.Subscribe(messages.BuildLogQuery("web", 7), func(m *nats.Msg) {
		b.say("two") // which the answer has too
		_ = m.RespondMsg(&nats.Msg{Data: b.log.Pack(), Header: nats.Header{messages.UnitHeader: {"www"}}})
		b.say("three")
		b.event(messages.Built, accepted)
		close(answered)
	})
	if err == nil {
		err = w.bus.NC.Flush()
	}
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = sub.Unsubscribe() }()
	status, out, errout := w.run("logs", "--build", "-f", "web-7")
	<-answered
	if want := "www | one\nwww | two\nwww | three\n"; status != 0 || out != want {
		t.Errorf("it ended with %d, %q and printed\n%s", status, errout, out)
	}
}

func TestALogThatIsKeptIsFoundWithoutItsEvent(t *testing.T) {
	w := newQuietWorld(t)
	b := &build{w: w}
	b.event(messages.Failed, b.event(messages.Accepted, 0))
	if status, _, errout := w.run("logs", "--build", "web-7"); status != 1 || !strings.Contains(errout, "no log of a build of web-7 is kept") {
		t.Errorf("without one it ended with %d: %s", status, errout)
	}
	b.say("one")
	if _, err := w.bus.Logs.Put(t.Context(), jetstream.ObjectMeta{Name: "web-7.www"}, bytes.NewReader(b.log.Pack())); err != nil {
		t.Fatal(err)
	}
	if status, out, errout := w.run("logs", "--build", "web-7"); status != 0 || out != "www | one\n" {
		t.Errorf("it ended with %d, %q and printed\n%s", status, errout, out)
	}
	if status, out, _ := w.run("logs", "--build", "-u", "other", "web-7"); status != 1 || out != "" {
		t.Errorf("of another unit it ended with %d and printed\n%s", status, out)
	}
	if status, _, errout := w.run("logs", "--build", "web"); status != 1 || !strings.Contains(errout, "web-42") {
		t.Errorf("for a stack it ended with %d: %s", status, errout)
	}
}

func TestTheRecordOfABuildIsDecoded(t *testing.T) {
	want := &fulmarv1.BuildRecord{Image: strings.Repeat("0a", 32), Size: 7, Commit: strings.Repeat("0b", 20), Log: "web-7.www"}
	body, err := proto.Marshal(want)
	if err != nil {
		t.Fatal(err)
	}
	if got, err := decode("auto", body); err != nil || !proto.Equal(got, want) {
		t.Errorf("it is decoded as %v, %v", got, err)
	}
}
