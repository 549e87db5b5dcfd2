package crash_test

import (
	"slices"
	"strings"

	"google.golang.org/protobuf/proto"

	"fulmar/e2e/lab"
	"fulmar/messages"
	fulmarv1 "fulmar/messages/fulmar/v1"
)

// point is a step in the work of a service: what it sends to the bus, or to the host.
type point struct {
	name    string
	service string
	host    bool // it goes to the host
	phases  []phase
	is      func(stack string) func(lab.Message) bool
}

var (
	always = []phase{first, update, retire}
	comes  = []phase{first, update} // something new is there
	goes   = []phase{update, sick, retire}
)

// points are all steps at which a service changes something, in the order of a life.
func points() []point {
	return []point{
		{"builder enters it into the head", "builder", false, always, writesHead(nil)},
		{"builder says accepted", "builder", false, always, says(messages.Accepted)},
		{"builder stores an image", "builder", false, comes, storesImage("C")},
		{"builder names an image", "builder", false, comes, storesImage("M")},
		{"builder says built", "builder", false, always, says(messages.Built)},
		{"ipam claims the first address", "ipam", false, comes, lease("aux", false)},
		{"ipam claims the last address", "ipam", false, comes, lease("web", false)},
		{"ipam writes the instances into the head", "ipam", false, always, writesHead(leasing)},
		{"ipam says leased", "ipam", false, always, says(messages.Leased)},
		{"vmm creates the first instance", "vmm", true, comes, commands("create", "aux")},
		{"vmm creates the last instance", "vmm", true, comes, commands("create", "web")},
		{"vmm says started", "vmm", false, always, says(messages.Started)},
		{"monitor says healthy", "monitor", false, always, says(messages.Healthy)},
		{"monitor says failed", "monitor", false, []phase{sick}, says(messages.Failed)},
		{"nat makes it live in the head", "nat", false, always, writesHead(nil)},
		{"nat says published", "nat", false, always, says(messages.Published)},
		{"gc condemns it in the head", "gc", false, goes, writesHead(nil)},
		{"gc says drained", "gc", false, goes, says(messages.Drained)},
		{"vmm destroys the first instance", "vmm", true, goes, commands("destroy", "aux")},
		{"vmm destroys the last instance", "vmm", true, goes, commands("destroy", "web")},
		{"vmm says stopped", "vmm", false, goes, says(messages.Stopped)},
		{"ipam lays the first address to rest", "ipam", false, goes, lease("aux", true)},
		{"ipam lays the last address to rest", "ipam", false, goes, lease("web", true)},
		{"ipam takes it out of the head", "ipam", false, goes, writesHead(func(h *fulmarv1.Head) bool { return !leasing(h) })},
		{"ipam says retired", "ipam", false, goes, says(messages.Retired)},
	}
}

// steps are the points at which something is said.
func steps() []point {
	return slices.DeleteFunc(points(), func(p point) bool { return !strings.Contains(p.name, " says ") })
}

// leasing reports whether a head has a deployment that is underway and was given its instances.
func leasing(h *fulmarv1.Head) bool {
	for _, d := range h.GetDeployments() {
		if d.GetState() == fulmarv1.State_STATE_UNDERWAY && d.GetLeased() {
			return true
		}
	}
	return false
}

func says(verb messages.Verb) func(string) func(lab.Message) bool {
	return func(stack string) func(lab.Message) bool {
		return func(m lab.Message) bool {
			s, err := messages.ParseEventSubject(m.Subject)
			return err == nil && s.Stack == stack && s.Verb == verb
		}
	}
}

func writesHead(which func(*fulmarv1.Head) bool) func(string) func(lab.Message) bool {
	return func(stack string) func(lab.Message) bool {
		return func(m lab.Message) bool {
			if m.Subject != "$KV."+messages.HeadBucket+"."+stack {
				return false
			}
			h := &fulmarv1.Head{}
			return proto.Unmarshal(m.Body, h) == nil && (which == nil || which(h))
		}
	}
}

func lease(unit string, rests bool) func(string) func(lab.Message) bool {
	return func(stack string) func(lab.Message) bool {
		return func(m lab.Message) bool {
			l := &fulmarv1.Lease{}
			return strings.HasPrefix(m.Subject, "$KV."+messages.LeaseBucket+".") && proto.Unmarshal(m.Body, l) == nil &&
				isInstance(l.GetInstance(), stack, unit) && (l.GetRestingUntil() != nil) == rests
		}
	}
}

// storesImage is a chunk (C) or the description (M) of any image: whoever asks is the only one who stores one.
func storesImage(part string) func(string) func(lab.Message) bool {
	return func(string) func(lab.Message) bool {
		return func(m lab.Message) bool {
			return strings.HasPrefix(m.Subject, "$O."+messages.ImageStore+"."+part+".")
		}
	}
}

func commands(command, unit string) func(string) func(lab.Message) bool {
	return func(stack string) func(lab.Message) bool {
		return func(m lab.Message) bool {
			return m.Subject == command && isInstance(string(m.Body), stack, unit)
		}
	}
}

func isInstance(name, stack, unit string) bool {
	s, u, _, ok := messages.ParseInstance(name)
	return ok && s == stack && u == unit
}
