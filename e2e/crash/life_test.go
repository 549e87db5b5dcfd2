package crash_test

import (
	"context"
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"testing"
	"time"

	"fulmar/e2e/lab"
	"fulmar/messages"
	fulmarv1 "fulmar/messages/fulmar/v1"
)

// phase is a part of the life of a stack.
type phase string

// The phases, in their order.
const (
	first  phase = "deploy"
	update phase = "update"
	sick   phase = "unhealthy update"
	retire phase = "retire"
)

// life is a stack of two units from its first deployment until it is retired. The unit web serves a text and the address
// of the unit aux, which it is told of.
type life struct {
	*world
	t           *testing.T
	stack       string
	port        uint16
	file        string // image that the builder gets itself; empty: what is stored already
	generations []uint64
	serves      string // the text, empty if nothing is published
	failures    []string
	mayFail     bool // a deployment may fail, if that changes nothing
}

func (w *world) newLife(t *testing.T, stack string, port uint16) *life {
	return &life{world: w, t: t, stack: stack, port: port}
}

// body is the request for a text.
func (l *life) body(text string) string { return l.content(text, `"]`) }

// sickBody is the request for a text whose unit web never gets healthy.
func (l *life) sickBody(text string) string {
	return l.content(text, `","--unhealthy"],"health":[{"http":{},"interval":"0.1s","start_deadline":"1s"}]`)
}

// content is a request in which more ends the arguments of the unit web.
func (l *life) content(text, more string) string {
	source := fmt.Sprintf(`"object":%q`, l.object)
	if l.file != "" {
		source = fmt.Sprintf(`"file":%q`, l.file)
	}
	const net = `"--ipv4={{.IP}}/{{.PrefixLen}}","--ipv4-gateway={{.Gateway}}"`
	return fmt.Sprintf(`{"units":[{"name":"aux","image":{%[1]s},"memory":8,"args":[%[2]s,"--hello=%[3]s"]},`+
		`{"name":"web","image":{%[1]s},"memory":8,"args":[%[2]s,"--hello=%[3]s@{{ip \"aux\"}}%[5]s,"ports":[{"port":%[4]d,"target":80}]}]}`,
		source, net, text, l.port, more)
}

// go through a phase: ask, wait until it ends, look at what is served, and wait until what it replaces is retired. A
// deployment that fails is asked for once more, after it is seen to have changed nothing.
func (l *life) run(p phase, text string) {
	l.t.Helper()
	kind, body := fulmarv1.Kind_KIND_DEPLOY, l.body(text)
	switch p {
	case sick:
		body = l.sickBody(text)
	case retire:
		kind, body, text = fulmarv1.Kind_KIND_RETIRE, "", ""
	}
	for range 3 {
		g := l.request(l.t, kind, l.stack, fmt.Sprintf("%s-%d", l.stack, len(l.generations)), body)
		l.generations = append(l.generations, g)
		s := l.await(g, messages.Published, messages.Failed, messages.Rejected)
		takenBack := p == sick && s.Verb == messages.Failed && strings.Contains(s.Event.GetReason(), "was not healthy")
		switch {
		case s.Verb == messages.Published && p != sick:
			l.serves = text
		case !takenBack:
			l.failures = append(l.failures, fmt.Sprintf("%s of %s", s, p))
		}
		if p != retire { // the last rules of a retired stack go a little later
			l.served()
		}
		l.settled(s)
		l.served()
		if s.Verb == messages.Published || takenBack {
			return
		}
	}
	l.t.Fatalf("stack %s does not get through: %s", l.stack, l.failures)
}

// await waits until a generation says one of the verbs.
func (l *life) await(generation uint64, verbs ...messages.Verb) lab.Said {
	l.t.Helper()
	s, err := l.log.AwaitVerb(l.patient(l.t), l.stack, generation, verbs...)
	if err != nil {
		l.t.Fatalf("%v waits: %v", l.stack, err)
	}
	return s
}

// served fails the test unless clients are answered as the head says.
func (l *life) served() {
	l.t.Helper()
	live := messages.InState(l.head(l.t, l.stack), fulmarv1.State_STATE_LIVE)
	want := ""
	for _, i := range live.GetInstances() {
		if i.GetUnit() == "aux" {
			want = l.serves + "@" + i.GetAddress()
		}
	}
	if (want == "") != (l.serves == "") {
		l.t.Errorf("stack %s: live is %v, but %q should be served", l.stack, live, l.serves)
	}
	got, err := l.Clients.Get(netip.AddrPortFrom(netip.MustParseAddr(lab.HostAddr), l.port))
	if got != want || want != "" && err != nil {
		l.t.Errorf("stack %s answers %q, %v; its head says %q", l.stack, got, err, want)
	}
}

// settled waits until nothing of the stack is on its way any more: all but what is live is retired.
func (l *life) settled(last lab.Said) {
	l.t.Helper()
	for i, g := range l.generations {
		switch newest := i == len(l.generations)-1; {
		case newest && last.Verb != messages.Failed, l.verbs(g)[0] == messages.Rejected:
		case !newest && last.Verb != messages.Published && l.isLive(g):
		default:
			l.await(g, messages.Retired)
		}
	}
}

func (l *life) isLive(generation uint64) bool {
	return messages.InState(l.head(l.t, l.stack), fulmarv1.State_STATE_LIVE).GetGeneration() == generation
}

// verbs lists the steps that a deployment has said.
func (l *life) verbs(generation uint64) []messages.Verb {
	var said []messages.Verb
	for _, s := range l.log.All() {
		if s.Stack == l.stack && s.Generation == generation && !s.Verb.Observation() {
			said = append(said, s.Verb)
		}
	}
	return said
}

var (
	up   = []messages.Verb{messages.Accepted, messages.Built, messages.Leased, messages.Started, messages.Healthy}
	down = []messages.Verb{messages.Drained, messages.Stopped, messages.Retired}
)

// ended fails the test unless each deployment of the stack said each step once and in order, and ended.
func (l *life) ended() {
	l.t.Helper()
	for i, g := range l.generations {
		if said, last := l.verbs(g), i == len(l.generations)-1; !whole(said, last) {
			l.t.Errorf("%s says %q", messages.DeploymentName(l.stack, g), said)
		}
	}
}

// whole reports whether the steps of a deployment make a whole: rejected, or up to published or failed at any point, and
// down to retired; one that is live has not gone down.
func whole(said []messages.Verb, isLive bool) bool {
	if slices.Equal(said, []messages.Verb{messages.Rejected}) {
		return true
	}
	rest := said
	for _, v := range up {
		if len(rest) > 0 && rest[0] == v {
			rest = rest[1:]
			continue
		}
		break
	}
	n := len(said) - len(rest)
	switch {
	case n == 0 || len(rest) == 0:
		return false
	case rest[0] == messages.Published && n == len(up):
		return isLive && len(rest) == 1 || !isLive && slices.Equal(rest[1:], down)
	case rest[0] == messages.Failed:
		return slices.Equal(rest[1:], down)
	}
	return false
}

// timeline shows what the deployments of the stack said, and when.
func (l *life) timeline() {
	for _, g := range l.generations {
		var text strings.Builder
		var begin, last time.Time
		for _, s := range l.log.All() {
			if s.Stack != l.stack || s.Generation != g {
				continue
			}
			at := s.Event.GetTime().AsTime()
			if begin.IsZero() {
				begin = s.Event.GetDeployment().GetRequested().AsTime()
				last = begin
			}
			fmt.Fprintf(&text, " %s +%dms", s.Verb, at.Sub(last).Milliseconds())
			last = at
		}
		l.t.Logf("%s at %s:%s", messages.DeploymentName(l.stack, g), begin.Format("05.000"), text.String())
	}
}

// late is the time after the end of a phase in which its fault may still happen.
const late = 20 * time.Second

// fault is something bad that happens once in a phase.
type fault struct {
	trap *lab.Trap
	do   func(context.Context) error // when the trap has caught something
}

// through goes through the phases, each with its fault if it has one, and fails the test if a fault did not happen.
func (l *life) through(faults map[phase]func() fault) {
	l.t.Helper()
	for i, p := range []phase{first, update, sick, retire} {
		happens := func() error { return nil }
		if set, ok := faults[p]; ok {
			happens = l.set(set())
		}
		l.run(p, fmt.Sprintf("v%d", i+1))
		if err := happens(); err != nil {
			l.t.Errorf("in phase %s of stack %s: %v", p, l.stack, err)
		}
	}
	l.ended()
	l.judge()
}

// judge fails the test if a deployment failed that may not, and shows what happened if the test failed.
func (l *life) judge() {
	l.t.Helper()
	switch {
	case len(l.failures) > 0 && l.mayFail:
		l.t.Logf("stack %s failed cleanly: %s", l.stack, strings.Join(l.failures, "; "))
	case len(l.failures) > 0:
		l.t.Errorf("stack %s: %s", l.stack, strings.Join(l.failures, "; "))
	}
	if l.t.Failed() {
		l.timeline()
	}
}

// set makes a fault happen as soon as its trap has caught something, and gives a function that ends it.
func (l *life) set(f fault) func() error {
	ctx, cancel := context.WithCancel(l.patient(l.t))
	done := make(chan error, 1)
	go func() {
		defer f.trap.Drop()
		err := f.trap.Await(ctx)
		if err == nil {
			err = f.do(ctx)
		}
		done <- err
	}()
	return func() error {
		defer time.AfterFunc(late, cancel).Stop()
		return <-done
	}
}
