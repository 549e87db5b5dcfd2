package model

import (
	"errors"
	"net/netip"
	"time"

	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/timestamppb"

	"fulmar/messages"
	"fulmar/services/gc"
	"fulmar/services/ipam"

	fulmarv1 "fulmar/messages/fulmar/v1"
)

// The workers on the way down, and the sweeps.

// drain is gc's: it hears published, staged and failed.
func drain(w *world, e *event, pause func()) outcome {
	stack := e.GetDeployment().GetStack()
	h, _ := w.head(stack)
	out := done
	for _, d := range h.GetDeployments() {
		failed := e.verb == messages.Failed && d.GetGeneration() == e.GetDeployment().GetGeneration()
		if d.GetState() == fulmarv1.State_STATE_UNDERWAY && !failed {
			continue
		}
		if w.lower(stack, d.GetGeneration(), pause) == again {
			out = again
		}
	}
	return out
}

// lower takes a deployment down as far as it may go now.
func (w *world) lower(stack string, generation uint64, pause func()) outcome {
	for {
		pause()
		h, rev := w.head(stack)
		d := messages.Find(h, generation)
		if d == nil {
			return done
		}
		pause()
		facts, last, seq := w.facts(h, d)
		a := gc.Next(d, facts, w.now())
		if a.Do == gc.Condemn && w.without == noCondemn {
			h, d = w.asCondemned(h, generation)
			last, seq = w.lastOf(stack, generation)
			a.Do = gc.Drain
		}
		switch a.Do {
		case gc.Condemn:
			w.condemn(h, rev, d, pause)
		case gc.Fail, gc.Drain:
			if w.sayDown(a, h, d, last, seq, pause) && w.without == noCondemn {
				return done
			}
		case gc.Wait:
			return again
		default:
			return done
		}
	}
}

// facts are what gc sees of a deployment.
func (w *world) facts(h *fulmarv1.Head, d *fulmarv1.HeadDeployment) (f gc.Facts, last *fulmarv1.Event, seq int) {
	f.Dying = len(messages.Dying(h, d.GetGeneration()))
	last, seq = w.lastOf(h.GetStack(), d.GetGeneration())
	f.Last = messages.Verb(last.GetVerb())
	if d.GetState() != fulmarv1.State_STATE_DRAINING {
		return f, last, seq
	}
	for _, r := range w.redirects[h.GetStack()] {
		if r.generation == d.GetGeneration() && w.without != noKernelCheck {
			f.Redirected = true
		}
	}
	if !w.calm && w.chance(0.5) {
		f.Flows = 1
	} else {
		f.IdleSince = w.now().Add(-time.Minute)
	}
	return f, last, seq
}

func (w *world) condemn(h *fulmarv1.Head, rev uint64, d *fulmarv1.HeadDeployment, pause func()) {
	transition := messages.CondemnDrained
	if d.GetState() == fulmarv1.State_STATE_UNDERWAY {
		transition = messages.CondemnFailed
	}
	next, err := transition(h, d.GetGeneration())
	if err != nil {
		return
	}
	pause()
	w.put(h.GetStack(), next, rev)
}

// asCondemned is a head as if a deployment was condemned in it.
func (w *world) asCondemned(h *fulmarv1.Head, generation uint64) (*fulmarv1.Head, *fulmarv1.HeadDeployment) {
	h = proto.CloneOf(h)
	d := messages.Find(h, generation)
	if d != nil {
		d.State = fulmarv1.State_STATE_CONDEMNED
	}
	return h, d
}

func (w *world) sayDown(a gc.Action, h *fulmarv1.Head, d *fulmarv1.HeadDeployment, last *fulmarv1.Event, seq int, pause func()) bool {
	dying := messages.Dying(h, d.GetGeneration())
	verb := messages.Drained
	if a.Do == gc.Fail && w.without != oneLine {
		verb, dying = messages.Failed, nil
	}
	e := saying(verb, gc.Describe(last, h.GetStack(), d, dying))
	pause()
	return w.say("drain", e, verb, seq)
}

// stop is vmm's: drained → stopped.
func stop(w *world, e *event, pause func()) outcome {
	if !w.isLast(e) {
		return done
	}
	for _, i := range e.GetDeployment().GetDying() {
		pause()
		if _, runs := w.host[i.GetName()]; runs {
			delete(w.host, i.GetName())
			w.note("stop %s", i.GetName())
		}
	}
	pause()
	w.say("stop", saying(messages.Stopped, e.GetDeployment()), messages.Stopped, e.seq)
	return done
}

// retire is ipam's: stopped → retired.
func retire(w *world, e *event, pause func()) outcome {
	if !w.isLast(e) {
		return done
	}
	pause()
	d := e.GetDeployment()
	head, _ := w.head(d.GetStack())
	for _, i := range d.GetDying() {
		if a, err := netip.ParseAddr(i.GetAddress()); err == nil {
			w.layToRest(a, i.GetName(), head, pause)
		}
	}
	for {
		pause()
		h, rev := w.head(d.GetStack())
		if w.without == noCondemn {
			doctored, _ := w.asCondemned(h, d.GetGeneration())
			if messages.Find(h, d.GetGeneration()) != nil {
				h = doctored
			}
		}
		next, err := messages.Retire(h, d.GetGeneration())
		if err != nil {
			return again
		}
		pause()
		if next == h || w.put(d.GetStack(), next, rev) {
			head = next
			break
		}
	}
	pause()
	for _, a := range w.addresses() {
		_, _, generation, ok := messages.ParseInstance(w.leases[a].value.GetInstance())
		if ok && generation == d.GetGeneration() {
			w.sweepLease(a, w.leases[a].value, head, pause)
		}
	}
	w.say("retire", saying(messages.Retired, d), messages.Retired, e.seq)
	return done
}

// addresses gives those that have a lease, in their order.
func (w *world) addresses() []netip.Addr {
	var all []netip.Addr
	for a := netip.MustParseAddr("10.0.0.0"); a.Less(netip.MustParseAddr("10.0.0.16")); a = a.Next() {
		if _, ok := w.leases[a]; ok {
			all = append(all, a)
		}
	}
	return all
}

func (w *world) layToRest(a netip.Addr, instance string, head *fulmarv1.Head, pause func()) {
	for {
		r := w.leases[a]
		if r.value.GetInstance() != instance || r.value.GetRestingUntil() != nil {
			return
		}
		until := ipam.RestUntil(w.now(), head.GetLatestDeadline().AsTime(), restTime)
		if w.without == noRest {
			until = w.now()
		}
		n := proto.CloneOf(r.value)
		n.RestingUntil = timestamppb.New(until)
		pause()
		if w.putLease(a, n, r.rev) {
			return
		}
	}
}

func (w *world) sweepLease(a netip.Addr, l *fulmarv1.Lease, head *fulmarv1.Head, pause func()) {
	orphan := messages.OrphanLease(head, l.GetInstance(), w.network.GetName(), a.String())
	if w.without == sameAddress {
		orphan = messages.Orphan(head, l.GetInstance())
	}
	if l.GetRestingUntil() == nil && orphan {
		w.layToRest(a, l.GetInstance(), head, pause)
	}
}

// gcSweep is gc's sweep: every deployment that is not at rest, and then the instances that no head explains.
func gcSweep(w *world, pause func()) {
	for _, h := range w.allHeads() {
		for _, d := range h.GetDeployments() {
			if s := d.GetState(); s != fulmarv1.State_STATE_LIVE && s != fulmarv1.State_STATE_STAGED {
				w.lower(h.GetStack(), d.GetGeneration(), pause)
			}
		}
	}
	running := sorted(w.host) // the host first, and the heads after
	for _, instance := range running {
		pause()
		stack, unit, generation, _ := messages.ParseInstance(instance)
		h, _ := w.head(stack)
		pause()
		last, seq := w.lastOf(stack, generation)
		if gc.Explain(h, instance, messages.Verb(last.GetVerb())).Do != gc.Drain {
			continue
		}
		dying := &fulmarv1.Instance{Unit: unit, Name: instance}
		for _, a := range w.addresses() {
			if l := w.leases[a].value; l.GetInstance() == instance && l.GetRestingUntil() == nil {
				dying.Network, dying.Address = w.network.GetName(), a.String()
			}
		}
		d := &fulmarv1.Deployment{Stack: stack, Generation: generation, Network: w.network, Dying: []*fulmarv1.Instance{dying}}
		pause()
		w.say("sweep", saying(messages.Drained, d), messages.Drained, seq)
	}
}

// ipamSweep is ipam's sweep of leases that no head explains.
func ipamSweep(w *world, pause func()) {
	running := w.running()
	for _, a := range w.addresses() {
		pause()
		l := w.leases[a].value
		stack, _, _, ok := messages.ParseInstance(l.GetInstance())
		if !ok || l.GetRestingUntil() != nil {
			continue
		}
		pause()
		h, _ := w.head(stack)
		if running[l.GetInstance()] && messages.Orphan(h, l.GetInstance()) {
			continue
		}
		w.sweepLease(a, l, h, pause)
	}
}

// running are the instances that run, as vmm wrote them down.
func (w *world) running() map[string]bool {
	running := map[string]bool{}
	for i := range w.host {
		running[i] = true
	}
	return running
}

// natSweep makes the kernel follow the heads.
func natSweep(w *world, pause func()) {
	w.alone(func() outcome {
		for _, h := range w.allHeads() {
			pause()
			w.lead(h, pause)
		}
		w.tidy(pause)
		return done
	})
}

// deadlines is ipam's keeping of the deadlines.
func deadlines(w *world, pause func()) {
	for _, h := range w.allHeads() {
		for _, d := range h.GetDeployments() {
			underway := d.GetState() == fulmarv1.State_STATE_UNDERWAY && w.now().After(d.GetDeadline().AsTime())
			if underway || d.GetState() == fulmarv1.State_STATE_CONDEMNED && d.GetExpired() != "" {
				w.expire(h.GetStack(), d.GetGeneration(), pause)
			}
		}
	}
}

func (w *world) expire(stack string, generation uint64, pause func()) {
	var head *fulmarv1.Head
	for {
		pause()
		h, rev := w.head(stack)
		next, err := messages.Expire(h, generation, w.now(), "the deadline passed")
		if errors.Is(err, messages.ErrEarly) || errors.Is(err, messages.ErrGone) {
			return
		}
		pause()
		if next == h || w.put(stack, next, rev) {
			head = next
			break
		}
	}
	for {
		pause()
		last, seq := w.lastOf(stack, generation)
		e, due := ipam.Failed(last, head, generation)
		pause()
		if !due || w.say("deadline", e, messages.Failed, seq) {
			return
		}
	}
}
