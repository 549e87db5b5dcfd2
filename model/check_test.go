package model

import (
	"fmt"
	"maps"

	"fulmar/messages"

	fulmarv1 "fulmar/messages/fulmar/v1"
)

// holds checks what must hold at any time.
func (w *world) holds() error {
	by := map[string]string{}
	for _, instance := range sorted(w.host) {
		a := w.host[instance]
		if other, held := by[a]; held {
			return fmt.Errorf("address %s is held by %s and %s", a, other, instance)
		}
		by[a] = instance
	}
	for stack, rs := range w.redirects {
		if len(rs) == 0 {
			continue
		}
		first := rs[0]
		for instance, a := range first.to {
			if w.host[instance] != a {
				return fmt.Errorf("the kernel leads to %s at %s of %s-%d, which does not run", instance, a, stack, first.generation)
			}
		}
		if first.generation < w.shownBefore[stack] {
			return fmt.Errorf("the kernel went back from %s-%d to %d", stack, w.shownBefore[stack], first.generation)
		}
		w.shownBefore[stack] = first.generation
	}
	return w.headsHold()
}

func (w *world) headsHold() error {
	ports := map[string]string{}
	for _, h := range w.allHeads() {
		seen := uint64(0)
		for _, d := range h.GetDeployments() {
			if d.GetState() != fulmarv1.State_STATE_LIVE && d.GetState() != fulmarv1.State_STATE_STAGED {
				continue
			}
			for _, u := range d.GetContent().GetUnits() {
				for _, p := range u.GetPorts() {
					key := fmt.Sprint(p.GetPort(), p.GetProtocol())
					if other, held := ports[key]; held && other != h.GetStack() {
						return fmt.Errorf("port %s is held by %s and %s", key, other, h.GetStack())
					}
					ports[key] = h.GetStack()
				}
			}
			if d.GetState() != fulmarv1.State_STATE_LIVE {
				continue
			}
			if seen != 0 {
				return fmt.Errorf("%s-%d and %d are both live", h.GetStack(), seen, d.GetGeneration())
			}
			seen = d.GetGeneration()
		}
		if seen != 0 && seen < w.liveBefore[h.GetStack()] {
			return fmt.Errorf("the head of %s went back from %d to %d", h.GetStack(), w.liveBefore[h.GetStack()], seen)
		}
		w.liveBefore[h.GetStack()] = max(seen, w.liveBefore[h.GetStack()])
	}
	return nil
}

// atRest checks what must hold when all work is done: nothing is left over, nothing is silent, and every request has ended.
func (w *world) atRest() error {
	want := map[string]string{} // address by instance
	for _, h := range w.allHeads() {
		for _, d := range h.GetDeployments() {
			if d.GetState() != fulmarv1.State_STATE_LIVE && d.GetState() != fulmarv1.State_STATE_STAGED {
				last, _ := w.lastOf(h.GetStack(), d.GetGeneration())
				return fmt.Errorf("%s-%d stays %s after %q", h.GetStack(), d.GetGeneration(), d.GetState(), last.GetVerb())
			}
			for _, i := range d.GetInstances() {
				want[i.GetName()] = i.GetAddress()
			}
		}
		if err := w.kernelAtRest(h); err != nil {
			return err
		}
	}
	if !maps.Equal(want, w.host) {
		return fmt.Errorf("the heads have %v, and %v runs", want, w.host)
	}
	held := map[string]string{}
	for _, a := range w.addresses() {
		l := w.leases[a].value
		if l.GetRestingUntil() != nil {
			continue
		}
		if other, twice := held[l.GetInstance()]; twice {
			return fmt.Errorf("%s holds %s and %s", l.GetInstance(), other, a)
		}
		held[l.GetInstance()] = a.String()
	}
	if !maps.Equal(want, held) {
		return fmt.Errorf("the heads have %v, and the leases %v", want, held)
	}
	return w.allEnded()
}

func (w *world) kernelAtRest(h *fulmarv1.Head) error {
	live := messages.InState(h, fulmarv1.State_STATE_LIVE)
	rs := w.redirects[h.GetStack()]
	if (live == nil) != (len(rs) == 0) || len(rs) > 1 || live != nil && rs[0].generation != live.GetGeneration() {
		return fmt.Errorf("the kernel leads %s to %v, and %d is live", h.GetStack(), rs, live.GetGeneration())
	}
	published := uint64(0)
	for _, e := range w.log {
		if e.verb == messages.Published && e.key().stack == h.GetStack() {
			published = max(published, e.key().generation)
		}
	}
	if published != live.GetGeneration() {
		return fmt.Errorf("%s-%d was published last, and %d is live", h.GetStack(), published, live.GetGeneration())
	}
	return nil
}

// allEnded checks that every request ended once, and that its last word is one.
func (w *world) allEnded() error {
	ends := map[chainKey]int{}
	for _, e := range w.log {
		switch e.verb {
		case messages.Published, messages.Staged, messages.Failed, messages.Rejected:
			ends[e.key()]++
		}
	}
	for _, r := range w.requests {
		k := chainKey{r.stack, r.generation}
		last, _ := w.lastOf(r.stack, r.generation)
		verb := messages.Verb(last.GetVerb())
		if ends[k] != 1 {
			return fmt.Errorf("%s ended %d times, its last word is %q", messages.DeploymentName(k.stack, k.generation), ends[k], verb)
		}
		if verb.Awaited() != "" || verb == messages.Drained || verb == messages.Stopped {
			return fmt.Errorf("%s stays at %s", messages.DeploymentName(k.stack, k.generation), verb)
		}
	}
	return nil
}
