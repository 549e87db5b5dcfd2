package messages

import (
	"fmt"
	"strconv"
	"strings"

	fulmarv1 "fulmar/messages/fulmar/v1"
)

// Streams, buckets and the object store.
const (
	RequestStream = "FULMAR_REQUESTS"
	EventStream   = "FULMAR_EVENTS"

	HeadBucket    = "fulmar-heads"
	LeaseBucket   = "fulmar-leases"
	NetworkBucket = "fulmar-networks"
	HostBucket    = "fulmar-hosts"
	BuildBucket   = "fulmar-builds"
	WatchBucket   = "fulmar-watches"
	ImageStore    = "fulmar-images"
	LogStore      = "fulmar-logs"
)

// NoHost stands for the host in the subject of an event before its deployment is placed.
const NoHost = "_"

// NoStack stands for the stack in the subject of an event whose request names none that could be: * and > are taken as
// they are in the subject of a message, and as wildcards in a filter.
const NoStack = "_"

// Verb is what an event says, and the fifth token of its subject.
type Verb string

// The steps of a deployment, in their order, and its observations.
const (
	Accepted  Verb = "accepted"
	Built     Verb = "built"
	Leased    Verb = "leased"
	Started   Verb = "started"
	Healthy   Verb = "healthy"
	Published Verb = "published"
	Staged    Verb = "staged"
	Drained   Verb = "drained"
	Stopped   Verb = "stopped"
	Retired   Verb = "retired"
	Rejected  Verb = "rejected"
	Failed    Verb = "failed"

	Unhealthy Verb = "unhealthy"
	Recovered Verb = "recovered"
	Exited    Verb = "exited"
)

// next names, for each verb on the way up, the step that follows it.
var next = map[Verb]Verb{Accepted: "built", Built: "leased", Leased: "started", Started: "healthy", Healthy: "published"}

// Awaited names the step that a deployment waits for after v. It is empty when v is not on the way up.
func (v Verb) Awaited() Verb { return next[v] }

// Observation reports whether v is an observation of a unit and no step.
func (v Verb) Observation() bool { return v == Unhealthy || v == Recovered || v == Exited }

// Known reports whether v is one of the verbs.
func (v Verb) Known() bool {
	switch v {
	case Accepted, Built, Leased, Started, Healthy, Published, Staged, Drained, Stopped, Retired, Rejected, Failed:
		return true
	}
	return v.Observation()
}

// kinds are the requests by the second token of their subject.
var kinds = map[string]fulmarv1.Kind{
	"deploy":   fulmarv1.Kind_KIND_DEPLOY,
	"promote":  fulmarv1.Kind_KIND_PROMOTE,
	"rollback": fulmarv1.Kind_KIND_ROLLBACK,
	"retire":   fulmarv1.Kind_KIND_RETIRE,
	"renew":    fulmarv1.Kind_KIND_RENEW,
	"discard":  fulmarv1.Kind_KIND_DISCARD,
}

// KindName is the word of a kind, as in its subject.
func KindName(k fulmarv1.Kind) string {
	for word, kind := range kinds {
		if kind == k {
			return word
		}
	}
	return "unspecified"
}

// RequestSubjects are the subjects of the request stream.
func RequestSubjects() []string {
	return []string{"fulmar.deploy.*", "fulmar.promote.*", "fulmar.rollback.*", "fulmar.retire.*", "fulmar.renew.*", "fulmar.discard.*"}
}

// EventSubjects are the subjects of the event stream: steps and observations.
func EventSubjects() []string {
	return []string{"fulmar.event.*.*.*.*", "fulmar.event.*.*.*.*.*"}
}

// RequestSubject is the subject of a request: fulmar.deploy.web.
func RequestSubject(kind fulmarv1.Kind, stack string) string {
	return "fulmar." + KindName(kind) + "." + stack
}

// ParseRequestSubject takes the subject of a request apart. The stack is as it was sent, not checked.
func ParseRequestSubject(subject string) (fulmarv1.Kind, string, error) {
	t := strings.Split(subject, ".")
	if len(t) != 3 || t[0] != "fulmar" || kinds[t[1]] == 0 {
		return 0, "", fmt.Errorf("%q is not the subject of a request", subject)
	}
	return kinds[t[1]], t[2], nil
}

// StepSubject is the subject of a step: fulmar.event.web.42.leased.host1.
func StepSubject(stack string, generation uint64, verb Verb, host string) string {
	if host == "" {
		host = NoHost
	}
	return "fulmar.event." + stack + "." + strconv.FormatUint(generation, 10) + "." + string(verb) + "." + host
}

// ObservationSubject is the subject of an observation: fulmar.event.web.42.exited.host1.web.
func ObservationSubject(stack string, generation uint64, verb Verb, host, unit string) string {
	return StepSubject(stack, generation, verb, host) + "." + unit
}

// ObservationFilter matches every observation of a unit of a stack on a host: fulmar.event.web.*.*.host1.web.
func ObservationFilter(stack, host, unit string) string {
	return "fulmar.event." + stack + ".*.*." + host + "." + unit
}

// ChainFilter matches the steps of one deployment: fulmar.event.web.42.*.*. It is the one form with which every writer
// names the chain (rule 2 of the design); observations do not match it.
func ChainFilter(stack string, generation uint64) string {
	return "fulmar.event." + stack + "." + strconv.FormatUint(generation, 10) + ".*.*"
}

// StepFilter matches a verb of every stack on one host, or on any host if host is empty.
func StepFilter(verb Verb, host string) string {
	if host == "" {
		host = "*"
	}
	return "fulmar.event.*.*." + string(verb) + "." + host
}

// StackFilter matches everything that is said of a stack: fulmar.event.web.>.
func StackFilter(stack string) string { return "fulmar.event." + stack + ".>" }

// TrySubject carries how a try of a step on the way up ended when another one follows, live and not kept:
// fulmar.try.web.42. It is an Event whose verb is the one that was heard and whose reason is the error.
func TrySubject(stack string, generation uint64) string {
	return "fulmar.try." + stack + "." + strconv.FormatUint(generation, 10)
}

// ParseTrySubject takes the subject of a try apart.
func ParseTrySubject(subject string) (stack string, generation uint64, ok bool) {
	t := strings.Split(subject, ".")
	if len(t) != 4 || t[0] != "fulmar" || t[1] != "try" {
		return "", 0, false
	}
	generation, ok = parseGeneration(t[3])
	return t[2], generation, ok
}

// TryFilter matches the tries of all deployments.
func TryFilter() string { return "fulmar.try.*.*" }

// EventSubject is the subject of an event, taken apart.
type EventSubject struct {
	Stack      string
	Generation uint64
	Verb       Verb
	Host       string
	Unit       string // observations only
}

// ParseEventSubject takes the subject of an event apart.
func ParseEventSubject(subject string) (EventSubject, error) {
	t := strings.Split(subject, ".")
	if len(t) < 6 || len(t) > 7 || t[0] != "fulmar" || t[1] != "event" {
		return EventSubject{}, fmt.Errorf("%q is not the subject of an event", subject)
	}
	generation, ok := parseGeneration(t[3])
	if !ok {
		return EventSubject{}, fmt.Errorf("%q is not the subject of an event: generation %q", subject, t[3])
	}
	s := EventSubject{Stack: t[2], Generation: generation, Verb: Verb(t[4]), Host: t[5]}
	if len(t) == 7 {
		s.Unit = t[6]
	}
	if !s.Verb.Known() || s.Verb.Observation() != (s.Unit != "") {
		return EventSubject{}, fmt.Errorf("%q is not the subject of an event: verb %q", subject, t[4])
	}
	return s, nil
}

// LeaseKey is the key of an address in the bucket of leases: <network>.<address>.
func LeaseKey(network, address string) string { return network + "." + address }

// ParseLeaseKey takes the key of a lease apart.
func ParseLeaseKey(key string) (network, address string, ok bool) { return strings.Cut(key, ".") }

// ConsoleSubject carries the console lines of an instance, live and not kept: fulmar.console.<host>.<instance>. The
// dots of an instance's name are tokens of the subject.
func ConsoleSubject(host, instance string) string { return "fulmar.console." + host + "." + instance }

// TimeHeader is the header of a console line that says when the daemon read it, as RFC 3339 with nanoseconds.
const TimeHeader = "Fulmar-Time"

// ConsoleQuery is the micro endpoint that answers a ConsoleRequest: fulmar.query.<host>.console.
func ConsoleQuery(host string) string { return "fulmar.query." + host + ".console" }

// SweepQuery is the micro endpoint that answers a SweepRequest: fulmar.query.<host>.sweep.
func SweepQuery(host string) string { return "fulmar.query." + host + ".sweep" }

// BuildLogSubject carries the log of a build while it runs, live and not kept here: fulmar.log.build.<stack>.<generation>.
func BuildLogSubject(stack string, generation uint64) string {
	return "fulmar.log.build." + stack + "." + strconv.FormatUint(generation, 10)
}

// Headers of a line of a build's log, beside [TimeHeader].
const (
	UnitHeader  = "Fulmar-Unit"  // the unit whose image is built
	LineHeader  = "Fulmar-Line"  // the number of the line in the log of that unit, from 1
	StepHeader  = "Fulmar-Step"  // the step of the build that the line belongs to
	StateHeader = "Fulmar-State" // what happened to the step: started, cached, done, failed; empty: it said the line
)

// BuildLogQuery is answered, while an image of a deployment is built, with its log so far, as it is kept:
// fulmar.query.build.<stack>.<generation>.
func BuildLogQuery(stack string, generation uint64) string {
	return "fulmar.query.build." + stack + "." + strconv.FormatUint(generation, 10)
}

// BuildLogName is the name of the log of an image in the object store fulmar-logs: web-42.api is that of the unit api.
func BuildLogName(stack string, generation uint64, unit string) string {
	return DeploymentName(stack, generation) + "." + unit
}

// ParseBuildLogName takes the name of a log apart.
func ParseBuildLogName(name string) (stack string, generation uint64, unit string, ok bool) {
	deployment, unit, found := strings.Cut(name, ".")
	stack, generation, err := ParseDeployment(deployment)
	return stack, generation, unit, found && err == nil
}

// BuildLogFilter matches the logs of all builds of a stack.
func BuildLogFilter(stack string) string { return "fulmar.log.build." + stack + ".*" }

// StatsSubject carries what an instance uses, live and not kept: fulmar.stats.<host>.<instance>.
func StatsSubject(host, instance string) string { return "fulmar.stats." + host + "." + instance }

// StatsQuery is the micro endpoint that answers a StatsRequest: fulmar.query.<host>.stats.
func StatsQuery(host string) string { return "fulmar.query." + host + ".stats" }
