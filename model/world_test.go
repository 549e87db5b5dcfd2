package model

import (
	"fmt"
	"math/rand/v2"
	"net/netip"
	"slices"
	"strconv"
	"time"

	"google.golang.org/protobuf/proto"

	"fulmar/messages"
	"fulmar/services/ipam"

	fulmarv1 "fulmar/messages/fulmar/v1"
)

// Rules of the design that a mutation takes out.
const (
	kernelFirst   = "kernelfirst"   // the head changes before the kernel
	byDigest      = "bydigest"      // an instance is named by the generation that made it
	adoptCond     = "adoptcond"     // nobody keeps from what is condemned
	noNATLock     = "nonatlock"     // one nat acts in a network namespace
	noCondemn     = "nocondemn"     // what drains is condemned before it is stopped
	noKernelCheck = "nokernelcheck" // gc looks at the kernel before it condemns
	noRest        = "norest"        // addresses rest
	noChain       = "nochain"       // an event has one successor
	sameAddress   = "sameaddress"   // a head explains a lease only at the address that it names
	stillRuns     = "stillruns"     // an address is claimed only when its last holder does not run
	oneLine       = "oneline"       // what expired has failed before it drains
)

const (
	hostName = "host1"
	restTime = 30 * time.Second
)

// record is a record of a bucket with its revision.
type record[M any] struct {
	rev   uint64
	value M
}

type chainKey struct {
	stack      string
	generation uint64
}

// event is one message of the event stream. Nobody changes what is in it.
type event struct {
	seq  int
	verb messages.Verb
	*fulmarv1.Event
}

func (e *event) key() chainKey {
	return chainKey{e.GetDeployment().GetStack(), e.GetDeployment().GetGeneration()}
}

// redirect is a rule of the kernel: where the ports of a generation lead.
type redirect struct {
	generation uint64
	to         map[string]string // address by instance
}

// world is everything there is.
type world struct {
	*rand.Rand
	without string // the rule that is taken out
	seconds int

	network  *fulmarv1.Network
	pool     ipam.Pool
	heads    map[string]record[*fulmarv1.Head]
	leases   map[netip.Addr]record[*fulmarv1.Lease]
	revision uint64
	log      []*event
	last     map[chainKey]*event
	said     map[string]int // when a service said something for a cause: the message ids of a bus without chains

	host      map[string]string     // address by the name of an instance that runs
	redirects map[string][]redirect // by stack; the first one leads
	natLock   bool

	requests []request
	accepted int // requests that are done
	workers  []*worker
	unacked  []delivery
	acked    []delivery
	calm     bool // no crash, no doubled or frozen worker any more

	shownBefore, liveBefore map[string]uint64 // the greatest generations seen, which nothing may go back behind
	changed                 bool
	trace                   []string
	tracing                 bool
}

func newWorld(seed uint64, without string) *world {
	w := &world{
		Rand: rand.New(rand.NewPCG(seed, 0)), without: without,
		heads: map[string]record[*fulmarv1.Head]{}, leases: map[netip.Addr]record[*fulmarv1.Lease]{},
		last: map[chainKey]*event{}, said: map[string]int{}, host: map[string]string{}, redirects: map[string][]redirect{},
		shownBefore: map[string]uint64{}, liveBefore: map[string]uint64{},
	}
	reserved := [][]string{ // what leaves 3, 5, 7 or 13 addresses
		{"10.0.0.5", "10.0.0.6/31", "10.0.0.8/29"},
		{"10.0.0.7", "10.0.0.8/29"},
		{"10.0.0.9", "10.0.0.10/31", "10.0.0.12/30"},
		nil,
	}[w.IntN(4)]
	w.network = &fulmarv1.Network{Name: "lan", Host: hostName, Bridge: "br0", Prefix: "10.0.0.0/28", Gateway: "10.0.0.1", Reserved: reserved}
	var err error
	if w.pool, err = ipam.NewPool(w.network); err != nil {
		panic(err)
	}
	return w
}

func (w *world) now() time.Time { return time.Unix(int64(w.seconds), 0) }

func (w *world) chance(p float64) bool { return w.Float64() < p }

func (w *world) note(format string, args ...any) {
	w.changed = true
	if w.tracing {
		w.trace = append(w.trace, fmt.Sprintf("%4d ", w.seconds)+fmt.Sprintf(format, args...))
	}
}

// head gives the head of a stack and its revision. Heads are never changed, so it can be kept.
func (w *world) head(stack string) (*fulmarv1.Head, uint64) {
	r, ok := w.heads[stack]
	if !ok {
		return &fulmarv1.Head{}, 0
	}
	return r.value, r.rev
}

// put is a compare-and-set of a head.
func (w *world) put(stack string, h *fulmarv1.Head, rev uint64) bool {
	if w.heads[stack].rev != rev {
		return false
	}
	w.revision++
	w.heads[stack] = record[*fulmarv1.Head]{w.revision, h}
	w.note("head of %s is %s", stack, describe(h))
	return true
}

func describe(h *fulmarv1.Head) string {
	s := ""
	for _, d := range h.GetDeployments() {
		s += " " + strconv.FormatUint(d.GetGeneration(), 10) + ":" + d.GetState().String()[len("STATE_"):]
	}
	return s
}

// putLease is a compare-and-set of a lease.
func (w *world) putLease(a netip.Addr, l *fulmarv1.Lease, rev uint64) bool {
	if w.leases[a].rev != rev {
		return false
	}
	w.revision++
	w.leases[a] = record[*fulmarv1.Lease]{w.revision, l}
	w.note("lease of %s: %s, resting %v", a, l.GetInstance(), l.GetRestingUntil() != nil)
	return true
}

// view is the leases as a watched view has them now.
func (w *world) view() ipam.Leases {
	records := map[string]*fulmarv1.Lease{}
	for a, r := range w.leases {
		records[messages.LeaseKey(w.network.GetName(), a.String())] = r.value
	}
	return ipam.NewLeases(w.network.GetName(), records)
}

// stacks gives the stacks that have a head, in an order that does not change from run to run.
func (w *world) stacks() []string { return sorted(w.heads) }

func sorted[V any](m map[string]V) []string {
	keys := make([]string, 0, len(m))
	for k := range m {
		keys = append(keys, k)
	}
	slices.Sort(keys)
	return keys
}

func (w *world) allHeads() []*fulmarv1.Head {
	var all []*fulmarv1.Head
	for _, stack := range w.stacks() {
		all = append(all, w.heads[stack].value)
	}
	return all
}

// lastOf gives the last event of a deployment and its sequence, or nil and 0.
func (w *world) lastOf(stack string, generation uint64) (*fulmarv1.Event, int) {
	e := w.last[chainKey{stack, generation}]
	if e == nil {
		return nil, 0
	}
	return e.Event, e.seq
}

// isLast is the look of bus, before it runs a handler.
func (w *world) isLast(e *event) bool {
	return w.without == noChain || w.last[e.key()] == e
}

// say publishes an event as the one successor of the one at sequence cause, and reports whether it was that. Without the
// rule it is the bus that drops what the same service said for the same cause within the last 40 seconds.
func (w *world) say(service string, e *fulmarv1.Event, verb messages.Verb, cause int) bool {
	n := &event{seq: len(w.log) + 1, verb: verb, Event: e}
	if w.without == noChain {
		id := fmt.Sprint(service, n.key(), cause)
		if at, ok := w.said[id]; ok && w.seconds-at < 40 {
			return false
		}
		w.said[id] = w.seconds
	} else if _, last := w.lastOf(n.key().stack, n.key().generation); last != cause {
		return false
	}
	w.log = append(w.log, n)
	w.last[n.key()] = n
	w.note("EVENT %s %s %s", verb, messages.DeploymentName(n.key().stack, n.key().generation), e.GetReason())
	for _, s := range services {
		if slices.Contains(s.hears, verb) {
			w.unacked = append(w.unacked, delivery{s.name, n.seq})
		}
	}
	return true
}

// saying gives an event that says a verb about a deployment.
func saying(verb messages.Verb, d *fulmarv1.Deployment) *fulmarv1.Event {
	return &fulmarv1.Event{Verb: string(verb), Deployment: d}
}

// refused says failed, as bus does for a handler's refusal.
func (w *world) refused(service string, e *event, reason error) {
	n := saying(messages.Failed, e.GetDeployment())
	n.Reason = reason.Error()
	w.say(service, n, messages.Failed, e.seq)
}

// copyOf is the event as a handler gets it: its own.
func copyOf(e *event) *fulmarv1.Deployment { return proto.CloneOf(e.GetDeployment()) }
