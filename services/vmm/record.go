package vmm

import (
	"cmp"
	"slices"
	"strings"
	"time"

	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/timestamppb"

	fulmarv1 "fulmar/messages/fulmar/v1"
)

const (
	freshness = 30 * time.Second // how old a host's record may become while nothing changes
	skew      = time.Minute      // a record from further ahead is no younger one: the clock was set back
)

// daemonSays begins a line that our own host daemon appends to the console of an instance that ended.
const daemonSays = "fulmar: "

// Tail is the end of an instance's console.
type Tail struct {
	Line string // the last one that is its own
	Exit string // how it ended, if the daemon says so: "exited with status 3"
}

// add gives the tail after one more line. A line is one of the daemon's only if it could have been written by it now: an
// instance can write anything, so what it says is believed only once it is gone.
func (t Tail) add(line string) Tail {
	line = strings.ToValidUTF8(line, "\uFFFD")
	if how, ok := strings.CutPrefix(line, daemonSays); ok && ends(how) {
		t.Exit = how
		return t
	}
	t.Line, t.Exit = line, ""
	return t
}

func ends(how string) bool {
	return strings.HasPrefix(how, "exited") || strings.HasPrefix(how, "killed by signal ")
}

// Look is what was seen of a host at one time.
type Look struct {
	Host    string
	Targets []string
	Machine Machine              // that the host is, if that is known
	At      time.Time            // before the daemon was asked
	First   bool                 // of this process: it is written even if nothing changed, so that who waits for vmm can tell
	Running map[string]bool      // instances that run
	Started map[string]time.Time // when they were started last, as far as the daemon tells
	Created map[string]bool      // those that this vmm has created since
	Gone    map[string]bool      // instances that do not run, though a deployment that is not condemned refers to them
	Unsure  map[string]bool      // instances that went a moment ago, and whose console may still say how
	Tails   map[string]Tail      // consoles, as far as they are known
}

// Record gives the record of a host after a look: the very same one when nothing is to be written. A younger record stays
// as it is, and the last line of an instance that runs is no reason to write.
func Record(have *fulmarv1.Host, l Look) *fulmarv1.Host {
	if ahead := have.GetSeen().AsTime().Sub(l.At); ahead > 0 && ahead < skew {
		return have
	}
	before := map[string]*fulmarv1.HostInstance{}
	for _, i := range have.GetInstances() {
		before[i.GetName()] = i
	}
	want := &fulmarv1.Host{Name: l.Host, Targets: l.Targets, Seen: timestamppb.New(l.At), Cpus: l.Machine.CPUs, MemoryMb: l.Machine.Memory}
	for name := range l.Running {
		want.Instances = append(want.Instances, running(name, l, before[name]))
	}
	for name := range l.Gone {
		switch was := before[name]; {
		case l.Running[name]:
		case l.Unsure[name]:
			if was != nil {
				want.Instances = append(want.Instances, was)
			}
		default:
			want.Instances = append(want.Instances, ended(name, l.Tails[name], was))
		}
	}
	slices.SortFunc(want.Instances, func(a, b *fulmarv1.HostInstance) int { return cmp.Compare(a.GetName(), b.GetName()) })
	if age := l.At.Sub(have.GetSeen().AsTime()); !l.First && age >= 0 && age < freshness && same(have, want) {
		return have
	}
	return want
}

// running gives an instance that runs. The daemon started it again if it had ended, or has another start than the one
// known, and vmm did not create it.
func running(name string, l Look, was *fulmarv1.HostInstance) *fulmarv1.HostInstance {
	i := &fulmarv1.HostInstance{Name: name, Running: true, LastLine: lastLine(l.Tails[name], was), Started: was.GetStarted(), Restarts: was.GetRestarts()}
	again := was != nil && !was.GetRunning()
	if at, ok := l.Started[name]; ok {
		again = again || was.GetStarted() != nil && !was.GetStarted().AsTime().Equal(at)
		i.Started = timestamppb.New(at)
	}
	if again && !l.Created[name] {
		i.Restarts++
	}
	return i
}

func ended(name string, t Tail, was *fulmarv1.HostInstance) *fulmarv1.HostInstance {
	return &fulmarv1.HostInstance{
		Name: name, Exit: cmp.Or(t.Exit, was.GetExit(), "exited"), LastLine: lastLine(t, was), Started: was.GetStarted(), Restarts: was.GetRestarts(),
	}
}

func lastLine(t Tail, was *fulmarv1.HostInstance) string { return cmp.Or(t.Line, was.GetLastLine()) }

// same reports whether two records say the same, but for when that was seen and what runs wrote last.
func same(have, want *fulmarv1.Host) bool {
	plain := func(h *fulmarv1.Host) *fulmarv1.Host {
		h = proto.CloneOf(h)
		h.Seen = nil
		for _, i := range h.GetInstances() {
			if i.GetRunning() {
				i.LastLine = ""
			}
		}
		return h
	}
	return proto.Equal(plain(have), plain(want))
}

// Wanted reports whether a deployment that is not condemned refers to an instance, so that somebody is to know how it ended.
func Wanted(h *fulmarv1.Head, instance string) bool {
	for _, d := range h.GetDeployments() {
		if d.GetState() == fulmarv1.State_STATE_CONDEMNED {
			continue
		}
		for _, i := range d.GetInstances() {
			if i.GetName() == instance {
				return true
			}
		}
	}
	return false
}
