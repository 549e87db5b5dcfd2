package messages

import (
	"errors"
	"fmt"
	"slices"
	"strconv"
	"time"

	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/timestamppb"

	fulmarv1 "fulmar/messages/fulmar/v1"
)

// The transitions of a head stand in this file and nowhere else. Each is pure: it takes a head as it was read, and
// gives the head to write by compare-and-set, or the very same pointer when there is nothing to write because it was
// done before. The head that was given is never changed.

const (
	underway  = fulmarv1.State_STATE_UNDERWAY
	staged    = fulmarv1.State_STATE_STAGED
	live      = fulmarv1.State_STATE_LIVE
	draining  = fulmarv1.State_STATE_DRAINING
	condemned = fulmarv1.State_STATE_CONDEMNED
)

// maxHead bounds a head, in bytes, well below what the bus takes as one message: there must be room for what the other
// transitions add.
const maxHead = 2 << 20

// ErrGone reports that a deployment is condemned or no longer in its head: it can go nowhere any more.
var ErrGone = errors.New("the deployment is condemned or retired")

// ErrLate reports that a deployment's deadline is past. Its keeper, ipam, fails it; nobody else needs to.
var ErrLate = errors.New("the deadline of the deployment is past")

// ErrEarly reports that a transition is not yet due.
var ErrEarly = errors.New("not yet due")

// Accept enters a deployment of a stack as underway. Its generation must be greater than every one before; a generation that
// stands in the head already was entered before, and one that is neither is [ErrGone].
func Accept(h *fulmarv1.Head, stack string, d *fulmarv1.HeadDeployment) (*fulmarv1.Head, error) {
	if Find(h, d.GetGeneration()) != nil {
		return h, nil
	}
	if d.GetGeneration() <= h.GetNewest() {
		return nil, ErrGone
	}
	n := clone(h)
	n.Stack, n.Newest = stack, d.GetGeneration()
	if n.GetLatestDeadline() == nil || d.GetDeadline().AsTime().After(n.GetLatestDeadline().AsTime()) {
		n.LatestDeadline = d.GetDeadline()
	}
	entry := proto.CloneOf(d)
	entry.State = underway
	n.Deployments = append(n.Deployments, entry)
	if proto.Size(n) > maxHead {
		return nil, Refuse(fulmarv1.ReasonCode_REASON_CODE_CONFLICT, "stack %s has %d deployments that are not retired yet, as many as its record can hold: try again when some are", stack, len(h.GetDeployments()))
	}
	return n, nil
}

// SetInstances writes, once, the instances of a deployment that is underway, and its content with the images pinned.
func SetInstances(h *fulmarv1.Head, generation uint64, content *fulmarv1.Content, instances []*fulmarv1.Instance) (*fulmarv1.Head, error) {
	d := Find(h, generation)
	if d == nil || d.GetState() == condemned {
		return nil, ErrGone
	}
	if d.GetLeased() {
		return h, nil
	}
	n := clone(h)
	d = Find(n, generation)
	d.Leased, d.Instances, d.Content = true, instances, content
	return n, nil
}

// Publish makes a deployment that is underway live or, if it is to be staged, staged; what it replaces drains. It is
// refused when something newer is live or staged, [ErrLate] after its deadline, and [ErrEarly] before it has its instances.
func Publish(h *fulmarv1.Head, generation uint64, now time.Time) (*fulmarv1.Head, error) {
	d := Find(h, generation)
	if d == nil || d.GetState() == condemned {
		return nil, ErrGone
	}
	if d.GetState() != underway {
		return h, nil
	}
	if err := Superseded(h, generation); err != nil {
		return nil, err
	}
	if now.After(d.GetDeadline().AsTime()) {
		return nil, ErrLate
	}
	if !d.GetLeased() {
		return nil, fmt.Errorf("publish %s, which has no instances: %w", DeploymentName(h.GetStack(), generation), ErrEarly)
	}
	n := clone(h)
	d = Find(n, generation)
	for _, old := range n.GetDeployments() {
		switch {
		case old.GetGeneration() >= generation:
		case old.GetState() == staged:
			drain(old, now)
		case old.GetState() == live && !d.GetStaged():
			drain(old, now)
			if len(old.GetContent().GetUnits()) > 0 && !proto.Equal(old.GetContent(), d.GetContent()) {
				n.Previous = proto.CloneOf(old.GetContent()) // never that of a retired stack: a rollback brings something back
			}
		}
	}
	d.State = live
	if d.GetStaged() {
		d.State = staged
	}
	return n, nil
}

// Superseded refuses a deployment when something newer is live or staged: only to that does it give way.
func Superseded(h *fulmarv1.Head, generation uint64) error {
	for _, other := range h.GetDeployments() {
		if other.GetGeneration() > generation && (other.GetState() == live || other.GetState() == staged) {
			return Refuse(fulmarv1.ReasonCode_REASON_CODE_SUPERSEDED, "superseded by %s", DeploymentName(h.GetStack(), other.GetGeneration()))
		}
	}
	return nil
}

func drain(d *fulmarv1.HeadDeployment, now time.Time) {
	d.State = draining
	d.DrainingSince = timestamppb.New(now)
}

// CondemnDrained condemns a deployment that is draining. The caller has seen that the kernel has no rule of it and
// that its flows are gone or its drain time is over.
func CondemnDrained(h *fulmarv1.Head, generation uint64) (*fulmarv1.Head, error) {
	return condemn(h, generation, draining, "")
}

// CondemnFailed condemns a deployment that is underway. The caller has seen that its last event is failed.
func CondemnFailed(h *fulmarv1.Head, generation uint64) (*fulmarv1.Head, error) {
	return condemn(h, generation, underway, "")
}

// Expire condemns a deployment that is underway and whose deadline is past; reason is what its failed event says. It
// is [ErrEarly] before the deadline.
func Expire(h *fulmarv1.Head, generation uint64, now time.Time, reason string) (*fulmarv1.Head, error) {
	if d := Find(h, generation); d.GetState() == underway && !now.After(d.GetDeadline().AsTime()) {
		return nil, ErrEarly
	}
	return condemn(h, generation, underway, reason)
}

func condemn(h *fulmarv1.Head, generation uint64, from fulmarv1.State, expired string) (*fulmarv1.Head, error) {
	d := Find(h, generation)
	switch {
	case d == nil:
		return nil, ErrGone
	case d.GetState() == condemned:
		return h, nil
	case d.GetState() != from:
		return nil, ErrEarly
	}
	n := clone(h)
	d = Find(n, generation)
	d.State, d.Expired = condemned, expired
	return n, nil
}

// Retire removes a condemned deployment from its head. The caller has seen that its dying instances are stopped and
// has laid their addresses to rest.
func Retire(h *fulmarv1.Head, generation uint64) (*fulmarv1.Head, error) {
	d := Find(h, generation)
	if d == nil {
		return h, nil
	}
	if d.GetState() != condemned {
		return nil, ErrEarly
	}
	n := clone(h)
	n.Deployments = slices.DeleteFunc(n.Deployments, func(d *fulmarv1.HeadDeployment) bool { return d.GetGeneration() == generation })
	return n, nil
}

// Find gives the deployment of a generation in a head, or nil.
func Find(h *fulmarv1.Head, generation uint64) *fulmarv1.HeadDeployment {
	for _, d := range h.GetDeployments() {
		if d.GetGeneration() == generation {
			return d
		}
	}
	return nil
}

// InState gives the newest deployment of a head that is in a state, or nil.
func InState(h *fulmarv1.Head, s fulmarv1.State) *fulmarv1.HeadDeployment {
	for _, d := range slices.Backward(h.GetDeployments()) {
		if d.GetState() == s {
			return d
		}
	}
	return nil
}

// Keepable gives, newest first, the instances that a deployment may keep: those of what is live, staged or draining,
// never of what is condemned or still underway.
func Keepable(h *fulmarv1.Head, generation uint64) []*fulmarv1.Instance {
	var keep []*fulmarv1.Instance
	for _, d := range slices.Backward(h.GetDeployments()) {
		if d.GetGeneration() != generation && (d.GetState() == live || d.GetState() == staged || d.GetState() == draining) {
			keep = append(keep, d.GetInstances()...)
		}
	}
	return keep
}

// Dying gives the instances of a condemned deployment that no other deployment of its head refers to. That is final:
// nobody keeps an instance of what is condemned.
func Dying(h *fulmarv1.Head, generation uint64) []*fulmarv1.Instance {
	used := map[string]bool{}
	for _, d := range h.GetDeployments() {
		if d.GetGeneration() == generation || d.GetState() == condemned {
			continue
		}
		for _, i := range d.GetInstances() {
			used[i.GetName()] = true
		}
	}
	var dying []*fulmarv1.Instance
	for _, i := range Find(h, generation).GetInstances() {
		if !used[i.GetName()] {
			dying = append(dying, i)
		}
	}
	return dying
}

// Orphan reports whether a head proves that an instance belongs to nobody: the head is new enough to know the
// generation that made it, no deployment refers to it, and that generation is not still about to write its instances.
// An absent head proves nothing. The caller looked at the instance first and at the head after.
func Orphan(h *fulmarv1.Head, instance string) bool {
	return orphan(h, instance, func(*fulmarv1.Instance) bool { return true })
}

// OrphanLease reports, as [Orphan] does, whether a head proves that the lease of an address by an instance is nobody's. A
// deployment that has the instance at another address does not explain it: a worker that was frozen while another one did
// its work claims a second address.
func OrphanLease(h *fulmarv1.Head, instance, network, address string) bool {
	return orphan(h, instance, func(i *fulmarv1.Instance) bool { return i.GetNetwork() == network && i.GetAddress() == address })
}

func orphan(h *fulmarv1.Head, instance string, explains func(*fulmarv1.Instance) bool) bool {
	stack, _, generation, ok := ParseInstance(instance)
	if !ok || h.GetStack() != stack || h.GetNewest() < generation {
		return false
	}
	if d := Find(h, generation); d.GetState() == underway && !d.GetLeased() {
		return false
	}
	for _, d := range h.GetDeployments() {
		for _, i := range d.GetInstances() {
			if i.GetName() == instance && explains(i) {
				return false
			}
		}
	}
	return true
}

// Holder gives the stack among heads, other than stack, that holds a port of a host: one whose head has a deployment
// live or staged with that port.
func Holder(heads []*fulmarv1.Head, stack, host string, port *fulmarv1.Port) (string, bool) {
	for _, h := range heads {
		if h.GetStack() == stack {
			continue
		}
		for _, d := range h.GetDeployments() {
			if d.GetHost() == host && (d.GetState() == live || d.GetState() == staged) && hasPort(d.GetContent(), port) {
				return h.GetStack(), true
			}
		}
	}
	return "", false
}

// Ports names the ports of a content, as in 8080/tcp, each as often as it is there.
func Ports(c *fulmarv1.Content) []string {
	var ports []string
	for _, u := range c.GetUnits() {
		for _, p := range u.GetPorts() {
			ports = append(ports, strconv.FormatUint(uint64(p.GetPort()), 10)+"/"+p.GetProtocol())
		}
	}
	return ports
}

// HeldPorts names the ports that the deployments of a head hold, on whatever host.
func HeldPorts(h *fulmarv1.Head) []string {
	var ports []string
	for _, d := range h.GetDeployments() {
		if d.GetState() == live || d.GetState() == staged {
			ports = append(ports, Ports(d.GetContent())...)
		}
	}
	return ports
}

// CheckPorts refuses a content one of whose ports another stack of the host holds, and names the holder. Heads are at least
// those that hold one of its ports.
func CheckPorts(heads []*fulmarv1.Head, stack, host string, c *fulmarv1.Content) error {
	for _, u := range c.GetUnits() {
		for _, p := range u.GetPorts() {
			if holder, held := Holder(heads, stack, host, p); held {
				return Refuse(fulmarv1.ReasonCode_REASON_CODE_CONFLICT, "port %d/%s of host %s is held by stack %s", p.GetPort(), p.GetProtocol(), host, holder)
			}
		}
	}
	return nil
}

func hasPort(c *fulmarv1.Content, port *fulmarv1.Port) bool {
	for _, u := range c.GetUnits() {
		for _, p := range u.GetPorts() {
			if p.GetPort() == port.GetPort() && p.GetProtocol() == port.GetProtocol() {
				return true
			}
		}
	}
	return false
}

// clone gives a head to edit. An absent one is empty.
func clone(h *fulmarv1.Head) *fulmarv1.Head {
	if h == nil {
		return &fulmarv1.Head{}
	}
	return proto.CloneOf(h)
}
