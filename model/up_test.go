package model

import (
	"errors"
	"net/netip"
	"strconv"

	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/timestamppb"

	"fulmar/bus"
	"fulmar/messages"
	"fulmar/services/builder"
	"fulmar/services/ipam"

	fulmarv1 "fulmar/messages/fulmar/v1"
)

// outcome is how a handler's message is settled.
type outcome bool

const (
	done  outcome = true
	again outcome = false
)

// The workers on the way up. Each is the twin of its service's handler; pause is where another worker may come between.

// accept is builder's: request → accepted.
func accept(w *world, r request, pause func()) outcome {
	if last, _ := w.lastOf(r.stack, r.generation); last != nil && w.without != noChain {
		return done
	}
	heads := w.allHeads()
	for {
		pause()
		h, rev := w.head(r.stack)
		pause()
		d, err := builder.Enter(h, bus.Request{Generation: r.generation, Kind: r.kind, Stack: r.stack, Body: r.body}, builder.Surroundings{
			Networks: map[string]*fulmarv1.Network{w.network.GetName(): w.network}, Hosts: map[string]*fulmarv1.Host{w.network.GetHost(): {}},
			Holding: func(*fulmarv1.Content) []*fulmarv1.Head { return heads }, Now: w.now(),
		})
		if err == nil {
			err = w.enter(r.stack, h, rev, d, pause)
		}
		switch {
		case errors.Is(err, errConflict):
			continue
		case errors.Is(err, messages.ErrGone):
			return done
		case err != nil:
			e := saying(messages.Rejected, &fulmarv1.Deployment{Stack: r.stack, Generation: r.generation, Kind: r.kind})
			e.Reason = err.Error()
			w.say("accept", e, messages.Rejected, 0)
			return done
		}
		w.say("accept", saying(messages.Accepted, &fulmarv1.Deployment{
			Stack: r.stack, Generation: r.generation, Kind: r.kind, Content: d.GetContent(), Staged: d.GetStaged(),
			Network: w.network, Requested: timestamppb.New(w.now()), Deadline: d.GetDeadline(),
		}), messages.Accepted, 0)
		return done
	}
}

// errConflict is a compare-and-set that somebody else was before.
var errConflict = errors.New("conflict")

func (w *world) enter(stack string, h *fulmarv1.Head, rev uint64, d *fulmarv1.HeadDeployment, pause func()) error {
	next, err := messages.Accept(h, stack, d)
	if err != nil || next == h {
		return err
	}
	pause()
	if !w.put(stack, next, rev) {
		return errConflict
	}
	pause()
	return nil
}

// build is builder's: accepted → built.
func build(w *world, e *event, pause func()) outcome {
	if !w.isLast(e) {
		return done
	}
	pause()
	d := copyOf(e)
	for _, spec := range d.GetContent().GetUnits() {
		d.Units = append(d.Units, &fulmarv1.Unit{Name: spec.GetName(), Image: spec.GetImage().GetObject(), Target: "spt", Device: "net0"})
	}
	w.say("build", saying(messages.Built, d), messages.Built, e.seq)
	return done
}

// lease is ipam's: built → leased.
func lease(w *world, e *event, pause func()) outcome {
	if !w.isLast(e) {
		return done
	}
	pause()
	d := copyOf(e)
	head, rev := w.head(d.GetStack())
	pause()
	entry := messages.Find(head, d.GetGeneration())
	switch {
	case entry == nil || entry.GetState() == fulmarv1.State_STATE_CONDEMNED:
		return done
	case !entry.GetLeased() && w.now().After(entry.GetDeadline().AsTime()):
		return again
	}
	if err := messages.Superseded(head, d.GetGeneration()); err != nil {
		w.refused("lease", e, err)
		return done
	}
	instances := entry.GetInstances()
	if !entry.GetLeased() {
		var err error
		instances, err = ipam.Assign(w.keepingFrom(head), d, func(i *fulmarv1.Instance) (netip.Addr, error) { return w.claim(i, d, pause) })
		if _, refused := messages.AsRefusal(err); refused {
			w.refused("lease", e, err)
			return done
		}
		if err != nil {
			return again
		}
		next, err := messages.SetInstances(head, d.GetGeneration(), d.GetContent(), instances)
		if err != nil {
			return again
		}
		pause()
		if !w.put(d.GetStack(), next, rev) {
			return again
		}
		pause()
	}
	if err := ipam.Complete(d, instances); err != nil {
		return again
	}
	w.say("lease", saying(messages.Leased, d), messages.Leased, e.seq)
	return done
}

// keepingFrom is the head from which instances are kept: without the rule also from what is condemned.
func (w *world) keepingFrom(h *fulmarv1.Head) *fulmarv1.Head {
	if w.without != adoptCond {
		return h
	}
	h = proto.CloneOf(h)
	for _, d := range h.GetDeployments() {
		if d.GetState() == fulmarv1.State_STATE_CONDEMNED {
			d.State = fulmarv1.State_STATE_DRAINING
		}
	}
	return h
}

var errFull = errors.New("an address will have rested in time")

// claim gets an address as ipam does: what the instance holds, or a free one by compare-and-set. The view may be old by the
// time of the write.
func (w *world) claim(i *fulmarv1.Instance, d *fulmarv1.Deployment, pause func()) (netip.Addr, error) {
	if w.without == byDigest {
		n, err := strconv.ParseUint(i.GetDigest()[:15], 16, 64)
		if err != nil {
			return netip.Addr{}, err
		}
		i.Name = messages.InstanceName(d.GetStack(), i.GetUnit(), n)
	}
	for {
		view, runs := w.view(), w.running()
		running := func(instance string) bool { return runs[instance] && w.without != stillRuns }
		if a, held := view.HeldBy(i.GetName()); held {
			return a, nil
		}
		a, ok := w.pool.Pick(view, running, w.Uint32(), w.now())
		if !ok {
			reason, first := w.pool.Full(view, w.now())
			if !first.IsZero() && first.Before(d.GetDeadline().AsTime()) {
				return a, errFull
			}
			return a, messages.Refuse(fulmarv1.ReasonCode_REASON_CODE_EXHAUSTED, "%s", reason)
		}
		pause()
		have := w.leases[a]
		if have.rev != 0 && (have.value.GetRestingUntil() == nil || w.now().Before(have.value.GetRestingUntil().AsTime())) {
			continue
		}
		pause()
		if w.putLease(a, &fulmarv1.Lease{Instance: i.GetName()}, have.rev) {
			pause()
			return a, nil
		}
	}
}

// start is vmm's: leased → started. The deadline is looked at right before each create.
func start(w *world, e *event, pause func()) outcome {
	if !w.isLast(e) {
		return done
	}
	d := copyOf(e)
	for _, u := range d.GetUnits() {
		pause()
		head, _ := w.head(d.GetStack())
		if err := messages.Superseded(head, d.GetGeneration()); err != nil {
			w.refused("start", e, err)
			return done
		}
		pause()
		if w.now().After(d.GetDeadline().AsTime()) {
			return again
		}
		i := u.GetInstance()
		if _, runs := w.host[i.GetName()]; !runs {
			w.host[i.GetName()] = i.GetAddress()
			w.note("start %s at %s", i.GetName(), i.GetAddress())
		}
	}
	pause()
	w.say("start", saying(messages.Started, d), messages.Started, e.seq)
	return done
}

var errUnhealthy = errors.New("unit a was not healthy")

// check is monitor's: started → healthy.
func check(w *world, e *event, pause func()) outcome {
	if !w.isLast(e) {
		return done
	}
	pause()
	d := copyOf(e)
	if w.now().After(d.GetDeadline().AsTime()) {
		return again
	}
	if w.bad(d.GetGeneration()) {
		w.refused("check", e, errUnhealthy)
		return done
	}
	for _, u := range d.GetUnits() {
		pause()
		head, _ := w.head(d.GetStack())
		if err := messages.Superseded(head, d.GetGeneration()); err != nil {
			w.refused("check", e, err)
			return done
		}
		if w.host[u.GetInstance().GetName()] != u.GetInstance().GetAddress() {
			return again
		}
	}
	w.say("check", saying(messages.Healthy, d), messages.Healthy, e.seq)
	return done
}

// alone runs something while no other nat acts.
func (w *world) alone(f func() outcome) outcome {
	if w.without == noNATLock {
		return f()
	}
	if w.natLock {
		return again
	}
	w.natLock = true
	defer func() { w.natLock = false }()
	return f()
}

// publish is nat's: healthy → published or staged.
func publish(w *world, e *event, pause func()) outcome {
	return w.alone(func() outcome {
		if !w.isLast(e) {
			return done
		}
		pause()
		d := copyOf(e)
		head, err := w.takeOver(d, pause)
		_, refused := messages.AsRefusal(err)
		switch {
		case errors.Is(err, messages.ErrGone):
			return done
		case refused:
			w.refused("publish", e, err)
			return done
		case err != nil:
			return again
		}
		w.lead(head, pause)
		if w.chance(0.5) {
			w.tidy(pause)
		}
		verb := messages.Published
		if d.GetStaged() {
			verb = messages.Staged
		}
		w.say("publish", saying(verb, d), verb, e.seq)
		return done
	})
}

// takeOver makes a deployment live or staged in its head, and gives that head.
func (w *world) takeOver(d *fulmarv1.Deployment, pause func()) (*fulmarv1.Head, error) {
	heads := w.allHeads()
	for {
		pause()
		h, rev := w.head(d.GetStack())
		pause()
		next, err := messages.Publish(h, d.GetGeneration(), w.now())
		if err != nil || next == h {
			return next, err
		}
		if err := messages.CheckPorts(heads, d.GetStack(), hostName, d.GetContent()); err != nil {
			return nil, err
		}
		if w.without == kernelFirst {
			w.lead(next, pause)
		}
		pause()
		if w.put(d.GetStack(), next, rev) {
			pause()
			return next, nil
		}
	}
}

// lead makes the kernel lead clients to what is live in a head.
func (w *world) lead(h *fulmarv1.Head, pause func()) {
	d := messages.InState(h, fulmarv1.State_STATE_LIVE)
	if d == nil {
		return
	}
	for _, r := range w.redirects[h.GetStack()] {
		if r.generation == d.GetGeneration() {
			return
		}
	}
	r := redirect{d.GetGeneration(), map[string]string{}}
	for _, i := range d.GetInstances() {
		r.to[i.GetName()] = i.GetAddress()
	}
	w.redirects[h.GetStack()] = append([]redirect{r}, w.redirects[h.GetStack()]...)
	w.note("kernel leads to %s", messages.DeploymentName(h.GetStack(), r.generation))
	pause()
}

// tidy removes from the kernel what is no longer live.
func (w *world) tidy(pause func()) {
	for _, stack := range w.stacks() {
		h, _ := w.head(stack)
		var keep []redirect
		for _, r := range w.redirects[stack] {
			if h.GetNewest() < r.generation || messages.Find(h, r.generation).GetState() == fulmarv1.State_STATE_LIVE {
				keep = append(keep, r)
			}
		}
		if len(keep) < len(w.redirects[stack]) {
			w.note("kernel has %d redirects of %s", len(keep), stack)
		}
		w.redirects[stack] = keep
		pause()
	}
}
