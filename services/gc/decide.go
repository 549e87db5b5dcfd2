package gc

import (
	"fmt"
	"time"

	"fulmar/messages"
	fulmarv1 "fulmar/messages/fulmar/v1"
)

const (
	// apart is the least time between two polls of the connection table that both found no flow: a packet that was on its
	// way at the first has its entry at the second.
	apart = 200 * time.Millisecond

	firstLook = 250 * time.Millisecond // from one look at a drain to the next; it grows with the age of the drain
	lastLook  = 5 * time.Second
)

// Do is what gc does next to a deployment or an instance.
type Do int

// What gc does, in the order in which a deployment meets it.
const (
	Nothing Do = iota
	Wait       // look again later
	Condemn    // write to the head that nobody keeps an instance of it any more
	Fail       // say failed, for a deployment that was condemned because of its deadline
	Drain      // say drained, so that its dying instances are stopped
	Report     // tell a person: nobody can say whose it is
)

// String names what is done, as a person reads it.
func (d Do) String() string {
	switch d {
	case Nothing:
		return "nothing"
	case Wait:
		return "wait"
	case Condemn:
		return "condemn"
	case Fail:
		return "fail"
	case Drain:
		return "drain"
	case Report:
		return "report"
	}
	return fmt.Sprintf("do(%d)", int(d))
}

// Action is what gc does next, and why.
type Action struct {
	Do    Do
	Why   string
	Cause string        // Condemn: failed, kept, ended, idle or timeout
	After time.Duration // Wait: when to look again
}

// Facts are what was seen of one deployment.
type Facts struct {
	Last       messages.Verb // of its chain. Empty: no event is left
	Redirected bool          // the kernel still leads clients to it; draining only
	Dying      int           // instances that no other deployment refers to
	Ended      int           // how many of these have exited
	Flows      int           // TCP flows that the others still answer
	IdleSince  time.Time     // when the first of the polls in a row was that found none; zero: the last one found some
	Polled     time.Time     // when the last one was
}

// Concerned gives the generations of a head that an event is about: failed about its own; published and staged about all
// that drain or are condemned, unless something newer is live or staged, whose event is about them then. So however many
// deployments drain, one event waits for them.
func Concerned(h *fulmarv1.Head, verb messages.Verb, generation uint64) []uint64 {
	if verb == messages.Failed {
		return []uint64{generation}
	}
	var all []uint64
	for _, d := range h.GetDeployments() {
		switch d.GetState() {
		case fulmarv1.State_STATE_DRAINING, fulmarv1.State_STATE_CONDEMNED:
			all = append(all, d.GetGeneration())
		case fulmarv1.State_STATE_LIVE, fulmarv1.State_STATE_STAGED:
			if d.GetGeneration() > generation {
				return nil
			}
		}
	}
	return all
}

// Next gives what is to be done to a deployment of a head, one step a call.
func Next(d *fulmarv1.HeadDeployment, f Facts, now time.Time) Action {
	switch d.GetState() {
	case fulmarv1.State_STATE_UNDERWAY:
		if f.Last == messages.Failed {
			return Action{Do: Condemn, Why: "it failed", Cause: "failed"}
		}
	case fulmarv1.State_STATE_DRAINING:
		return nextOfDrain(d, f, now)
	case fulmarv1.State_STATE_CONDEMNED:
		switch {
		case f.Last == messages.Drained || f.Last == messages.Stopped || f.Last == messages.Retired:
			return Action{Why: "it is " + string(f.Last)}
		case d.GetExpired() != "" && (f.Last == "" || f.Last.Awaited() != ""):
			return Action{Do: Fail, Why: d.GetExpired()}
		}
		return Action{Do: Drain, Why: "it is condemned"}
	}
	return Action{}
}

func nextOfDrain(d *fulmarv1.HeadDeployment, f Facts, now time.Time) Action {
	end := drainEnd(d)
	switch {
	case f.Last.Awaited() != "": // nat was stopped before it said so; it still can, but not of what is condemned
		return Action{Do: Wait, Why: "nobody has said yet that it was " + string(published(d)), After: again(d, now)}
	case f.Redirected:
		return Action{Do: Wait, Why: "the kernel still leads clients to it", After: again(d, now)}
	case f.Dying == 0:
		return Action{Do: Condemn, Why: "all of its instances are kept", Cause: "kept"}
	case f.Ended == f.Dying:
		return Action{Do: Condemn, Why: "its instances have exited", Cause: "ended"}
	case !now.Before(end):
		return Action{Do: Condemn, Why: fmt.Sprintf("its drain time of %s is over, %d connections are cut", d.GetContent().GetDrain().AsDuration(), f.Flows), Cause: "timeout"}
	case !f.IdleSince.IsZero() && f.Polled.Sub(f.IdleSince) >= apart:
		return Action{Do: Condemn, Why: "its connections have ended", Cause: "idle"}
	case !f.IdleSince.IsZero():
		return Action{Do: Wait, Why: "its connections seem to have ended", After: firstLook}
	}
	return Action{Do: Wait, Why: fmt.Sprintf("%d connections are open, for at most %s more", f.Flows, end.Sub(now).Round(time.Millisecond)), After: again(d, now)}
}

// published is what nat says of a deployment.
func published(d *fulmarv1.HeadDeployment) messages.Verb {
	if d.GetStaged() {
		return messages.Staged
	}
	return messages.Published
}

// drainEnd is when the drain time of a draining deployment is over.
func drainEnd(d *fulmarv1.HeadDeployment) time.Time {
	return d.GetDrainingSince().AsTime().Add(d.GetContent().GetDrain().AsDuration())
}

// again is the time to the next look at a drain: a quarter of its age, within bounds, and not past its end.
func again(d *fulmarv1.HeadDeployment, now time.Time) time.Duration {
	delay := min(max(now.Sub(d.GetDrainingSince().AsTime())/4, firstLook), lastLook)
	if left := drainEnd(d).Sub(now); left > 0 {
		delay = min(delay, left)
	}
	return delay
}

// Explain gives what is to be done about an instance that runs, by its stack's head, which was read after the instance
// was seen, and the last verb of its generation's chain.
func Explain(head *fulmarv1.Head, instance string, last messages.Verb) Action {
	stack, _, generation, ok := messages.ParseInstance(instance)
	switch {
	case !ok:
		return Action{Do: Report, Why: "no deployment made it: its name is not STACK.UNIT.GENERATION"}
	case head.GetStack() == "":
		return Action{Do: Report, Why: fmt.Sprintf("stack %s has no head", stack)}
	case head.GetNewest() < generation:
		return Action{Do: Report, Why: fmt.Sprintf("the head of stack %s knows no generation after %d", stack, head.GetNewest())}
	case !messages.Orphan(head, instance):
		return Action{}
	case messages.Find(head, generation) != nil:
		// Its chain still has to say what becomes of the deployment's own instances.
		return Action{Do: Report, Why: fmt.Sprintf("%s is there and does not refer to it", messages.DeploymentName(stack, generation))}
	case last == messages.Drained || last == messages.Stopped:
		return Action{Do: Wait, Why: "it is being stopped"}
	}
	return Action{Do: Drain, Why: "no deployment refers to it"}
}

// Describe gives the deployment that an event of gc carries: as its last event has it, or what its head still says if
// the log is lost. Its host is always the one of the head.
func Describe(last *fulmarv1.Event, stack string, d *fulmarv1.HeadDeployment, dying []*fulmarv1.Instance) *fulmarv1.Deployment {
	out := deploymentOf(last, stack, d.GetGeneration())
	if out.GetNetwork().GetHost() != d.GetHost() {
		out.Network = &fulmarv1.Network{Name: d.GetContent().GetNetwork(), Host: d.GetHost()}
	}
	if out.GetContent() == nil {
		out.Content = d.GetContent()
	}
	if out.GetDeadline() == nil {
		out.Deadline = d.GetDeadline()
	}
	out.Staged, out.Dying = d.GetStaged(), dying
	return out
}
