package model

import (
	"fmt"
	"iter"
	"math"
	"slices"
	"strings"

	"fulmar/messages"

	fulmarv1 "fulmar/messages/fulmar/v1"
)

// services are the steps, by what they hear.
var services = []struct {
	name  string
	hears []messages.Verb
}{
	{"build", []messages.Verb{messages.Accepted}},
	{"lease", []messages.Verb{messages.Built}},
	{"start", []messages.Verb{messages.Leased}},
	{"check", []messages.Verb{messages.Started}},
	{"publish", []messages.Verb{messages.Healthy}},
	{"drain", []messages.Verb{messages.Published, messages.Staged, messages.Failed}},
	{"stop", []messages.Verb{messages.Drained}},
	{"retire", []messages.Verb{messages.Stopped}},
}

func handler(name string) func(*world, *event, func()) outcome {
	switch name {
	case "build":
		return build
	case "lease":
		return lease
	case "start":
		return start
	case "check":
		return check
	case "publish":
		return publish
	case "drain":
		return drain
	case "stop":
		return stop
	}
	return retire
}

// request is one message of the request stream.
type request struct {
	generation uint64
	kind       fulmarv1.Kind
	stack      string
	body       []byte
	bad        bool // never healthy
}

func (w *world) bad(generation uint64) bool {
	return slices.ContainsFunc(w.requests, func(r request) bool { return r.generation == generation && r.bad })
}

// ask makes the requests of a schedule.
func (w *world) ask() {
	stacks := []string{"web", "dns"}[:1+w.IntN(3)/2]
	shared := w.chance(0.2) // both stacks want the same port
	generation := uint64(0)
	images := 1 + w.IntN(3) // the fewer, the more is kept
	for range 2 + w.IntN(7) {
		generation += uint64(1 + w.IntN(3))
		r := request{generation: generation, stack: stacks[w.IntN(len(stacks))], kind: w.kind()}
		if r.kind == fulmarv1.Kind_KIND_DEPLOY {
			port := 80
			if r.stack == "dns" && !shared {
				port = 53
			}
			r.bad, r.body = w.chance(0.25), w.deploy(port, images)
		}
		w.requests = append(w.requests, r)
	}
}

func (w *world) kind() fulmarv1.Kind {
	switch n := w.IntN(15); {
	case n < 8:
		return fulmarv1.Kind_KIND_DEPLOY
	case n < 9:
		return fulmarv1.Kind_KIND_RETIRE
	case n < 11:
		return fulmarv1.Kind_KIND_ROLLBACK
	case n < 13:
		return fulmarv1.Kind_KIND_PROMOTE
	case n < 14:
		return fulmarv1.Kind_KIND_RENEW
	}
	return fulmarv1.Kind_KIND_DISCARD
}

// deploy makes a request for units a and b, or one of them, of so many images. Unit a may use the address of b.
func (w *world) deploy(port, images int) []byte {
	names := [][]string{{"a"}, {"b"}, {"a", "b"}, {"a", "b"}}[w.IntN(4)]
	var units []string
	for i, name := range names {
		u := fmt.Sprintf(`{"name":%q,"image":{"object":%q}`, name, strings.Repeat(string("abc"[w.IntN(images)]), 64))
		if i == 0 {
			u += fmt.Sprintf(`,"ports":[{"port":%d}]`, port)
		}
		if len(names) == 2 && name == "a" && w.chance(0.3) {
			u += `,"args":["{{ip \"b\"}}"]`
		}
		units = append(units, u+"}")
	}
	deadline := []int{60, 150, 400}[w.IntN(3)]
	return fmt.Appendf(nil, `{"network":"lan","staged":%v,"deadline":"%ds","drain":"20s","units":[%s]}`, w.chance(0.2), deadline, strings.Join(units, ","))
}

// delivery is a message that a worker has in hand: of an event by its sequence, or a request by its place, below 0.
type delivery struct {
	service string
	message int
}

// worker runs one handler, and can be stopped wherever it pauses.
type worker struct {
	of     delivery
	next   func() (struct{}, bool)
	crash  func()
	frozen int // until then
	result outcome
}

type crashed struct{}

func (w *world) work(of delivery, run func(pause func()) outcome) {
	wk := &worker{of: of}
	wk.next, wk.crash = iter.Pull(func(yield func(struct{}) bool) {
		defer func() {
			if r := recover(); r != nil && r != (crashed{}) {
				panic(r)
			}
		}()
		wk.result = run(func() {
			if !yield(struct{}{}) {
				panic(crashed{})
			}
		})
	})
	w.workers = append(w.workers, wk)
}

func (w *world) sweep(name string, f func(*world, func())) {
	w.work(delivery{service: name}, func(pause func()) outcome { f(w, pause); return done })
}

func (w *world) sweepAny() {
	switch w.IntN(7) {
	case 0, 1, 2:
		w.sweep("gc", gcSweep)
	case 3:
		w.sweep("ipam", ipamSweep)
	case 4:
		w.sweep("nat", natSweep)
	default:
		w.sweep("deadlines", deadlines)
	}
}

func (w *world) deliver(d delivery) {
	if d.message < 0 {
		r := w.requests[-1-d.message]
		w.work(d, func(pause func()) outcome { return accept(w, r, pause) })
		return
	}
	e, handle := w.log[d.message-1], handler(d.service)
	w.work(d, func(pause func()) outcome { return handle(w, e, pause) })
}

func (w *world) busy(d delivery) bool {
	return slices.ContainsFunc(w.workers, func(wk *worker) bool { return wk.of == d })
}

func (w *world) remove(wk *worker) {
	w.workers = slices.DeleteFunc(w.workers, func(o *worker) bool { return o == wk })
}

// step lets a worker go on to its next pause.
func (w *world) step(wk *worker, freeze float64) error {
	if wk.frozen > w.seconds {
		return nil
	}
	if w.chance(freeze) {
		wk.frozen = w.seconds + 10 + w.IntN(240)
		return nil
	}
	if _, goesOn := wk.next(); !goesOn {
		w.remove(wk)
		w.settle(wk)
	}
	if !w.changed {
		return nil
	}
	w.changed = false
	return w.holds()
}

func (w *world) settle(wk *worker) {
	switch {
	case wk.result == again || wk.of.message == 0:
	case wk.of.message < 0:
		w.accepted = max(w.accepted, -wk.of.message)
	case slices.Contains(w.unacked, wk.of):
		w.unacked = slices.DeleteFunc(w.unacked, func(d delivery) bool { return d == wk.of })
		w.acked = append(w.acked, wk.of)
	}
}

// run runs a schedule, and gives the first violation of an invariant.
func (w *world) run() error {
	defer func() {
		for _, wk := range w.workers {
			wk.crash()
		}
	}()
	w.ask()
	if err := w.storm(); err != nil {
		return err
	}
	return w.rest()
}

// storm is the part of a schedule in which anything may happen.
func (w *world) storm() error {
	pick := func(p ...float64) float64 { return p[w.IntN(len(p))] }
	freeze, double, crash, asks := pick(0, 0, 0.01, 0.03), pick(0.02, 0.1), pick(0, 0.01, 0.04), pick(0.1, 0.02)
	frozen := "" // only workers of this service freeze, and for long; empty: any
	if w.chance(0.5) {
		frozen, freeze, double = services[w.IntN(len(services))].name, 0.3, 0.3
	}
	sent := 1
	for range []int{300, 600, 1200}[w.IntN(3)] {
		if w.chance(0.3) {
			w.seconds++
		}
		if sent < len(w.requests) && w.chance(asks) {
			sent++
		}
		switch x := w.Float64(); {
		case x < 0.025:
			w.sweepAny()
		case x < 0.025+crash && len(w.workers) > 0:
			wk := w.workers[w.IntN(len(w.workers))]
			w.note("CRASH %v", wk.of)
			wk.crash()
			w.remove(wk)
		case x < 0.07 && w.chance(0.15) && len(w.acked) > 0: // the bus was killed: the acks of the last 100 ms are forgotten
			w.unacked = append(w.unacked, w.acked[max(0, len(w.acked)-1-w.IntN(8)):]...)
			w.note("BUS forgets acks")
		case x < 0.35:
			w.deliverAny(sent, double)
		case len(w.workers) > 0:
			wk := w.anyWorker()
			may := freeze
			if frozen != "" && wk.of.service != frozen {
				may = 0
			}
			if err := w.step(wk, may); err != nil {
				return err
			}
		}
	}
	return nil
}

// deliverAny delivers the next request or any message; one that a worker has already, only now and then.
func (w *world) deliverAny(sent int, double float64) {
	if w.accepted < min(sent, len(w.requests)) && w.chance(0.5) {
		if d := (delivery{"accept", -1 - w.accepted}); !w.busy(d) || w.chance(double) {
			w.deliver(d)
		}
		return
	}
	var free []delivery
	for _, d := range w.unacked {
		if !w.busy(d) || w.chance(double) {
			free = append(free, d)
		}
	}
	if len(free) > 0 {
		w.deliver(free[w.IntN(len(free))])
	}
}

// anyWorker is mostly one of the youngest, so that some are left behind for long.
func (w *world) anyWorker() *worker {
	if w.chance(0.3) {
		return w.workers[w.IntN(len(w.workers))]
	}
	return w.workers[len(w.workers)-1-min(int(-3*math.Log(1-w.Float64())), len(w.workers)-1)]
}

// rest lets everything run to its end, with sweeps in between, and then looks at what is left.
func (w *world) rest() error {
	w.calm = true
	for round := range 40 {
		if err := w.drainWorkers(); err != nil {
			return err
		}
		w.seconds += 60
		w.sweep("nat", natSweep)
		w.sweep("deadlines", deadlines)
		w.sweep("gc", gcSweep)
		w.sweep("ipam", ipamSweep)
		if round > 12 && len(w.unacked) == 0 {
			if err := w.drainWorkers(); err != nil {
				return err
			}
			if len(w.unacked) == 0 {
				break
			}
		}
	}
	return w.atRest()
}

func (w *world) drainWorkers() error {
	for range 4000 {
		if w.accepted < len(w.requests) {
			if d := (delivery{"accept", -1 - w.accepted}); !w.busy(d) {
				w.deliver(d)
			}
		}
		for _, d := range slices.Clone(w.unacked) {
			if !w.busy(d) {
				w.deliver(d)
			}
		}
		if len(w.workers) == 0 {
			return nil
		}
		if w.chance(0.2) {
			w.seconds++
		}
		if !slices.ContainsFunc(w.workers, func(wk *worker) bool { return wk.frozen <= w.seconds }) {
			w.seconds += 5
		}
		if err := w.step(w.workers[w.IntN(len(w.workers))], 0); err != nil {
			return err
		}
	}
	return nil
}
