package ipam

import (
	"errors"
	"net/netip"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/durationpb"
	"google.golang.org/protobuf/types/known/timestamppb"

	"fulmar/messages"
	fulmarv1 "fulmar/messages/fulmar/v1"
)

var now = time.Unix(1_000_000, 0)

func network(prefix, gateway string, reserved ...string) *fulmarv1.Network {
	return &fulmarv1.Network{Name: "lan", Host: "host1", Bridge: "br0", Prefix: prefix, Gateway: gateway, Reserved: reserved}
}

func poolOf(t *testing.T, n *fulmarv1.Network) Pool {
	t.Helper()
	p, err := NewPool(n)
	if err != nil {
		t.Fatal(err)
	}
	return p
}

func TestNewPoolRefuses(t *testing.T) {
	for name, n := range map[string]*fulmarv1.Network{
		"no network at all":                  nil,
		"a prefix that is none":              network("10.0.0.0", "10.0.0.1"),
		"a prefix of IPv6":                   network("fd00::/64", "fd00::1"),
		"a prefix too small":                 network("10.0.0.0/31", "10.0.0.1"),
		"a prefix too large":                 network("10.0.0.0/7", "10.0.0.1"),
		"a gateway outside":                  network("10.0.0.0/24", "10.0.1.1"),
		"a gateway that is none":             network("10.0.0.0/24", "gw"),
		"a reservation that is no address":   network("10.0.0.0/24", "10.0.0.1", "printer"),
		"a reservation that is no prefix":    network("10.0.0.0/24", "10.0.0.1", "10.0.0.0/40"),
		"a prefix with bits that it cut off": network("10.0.0.5/24", "10.0.0.1"),
	} {
		if _, err := NewPool(n); err == nil {
			t.Errorf("%s: it was taken", name)
		} else if _, refused := messages.AsRefusal(err); !refused {
			t.Errorf("%s: %v is no refusal, so it would be tried for ever", name, err)
		}
	}
}

func TestLeasable(t *testing.T) {
	p := poolOf(t, network("10.0.0.0/28", "10.0.0.1", "10.0.0.3", "10.0.0.8/29"))
	var got []string
	for i := range p.size() {
		if a := p.at(i); p.leasable(a) {
			got = append(got, a.String())
		}
	}
	want := []string{"10.0.0.2", "10.0.0.4", "10.0.0.5", "10.0.0.6", "10.0.0.7"}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("neither network, broadcast, gateway nor reserved (-want +got):\n%s", diff)
	}
	if p.leasable(netip.MustParseAddr("10.0.1.2")) {
		t.Error("an address outside is leasable")
	}
}

// rest is a lease that rests until so many seconds from now; 0 is one that is held.
func rest(seconds int) *fulmarv1.Lease {
	l := &fulmarv1.Lease{Instance: "web.web.1"}
	if seconds != 0 {
		l.RestingUntil = timestamppb.New(now.Add(time.Duration(seconds) * time.Second))
	}
	return l
}

func leasesOf(records map[string]*fulmarv1.Lease) Leases {
	keyed := map[string]*fulmarv1.Lease{"wan.10.0.0.3": rest(0), "lan.x": rest(0), "lan": rest(0)} // of others, and of nobody
	for a, r := range records {
		keyed[messages.LeaseKey("lan", a)] = r
	}
	return NewLeases("lan", keyed)
}

func TestPick(t *testing.T) {
	p := poolOf(t, network("10.0.0.0/29", "10.0.0.1"))
	runs := rest(-1)
	runs.Instance = "run.run.1"
	for name, c := range map[string]struct {
		start uint32
		have  map[string]*fulmarv1.Lease
		want  string
	}{
		"the address at the start, if it is free":        {4, nil, "10.0.0.4"},
		"from an address that is never leased to a next": {0, nil, "10.0.0.2"},
		"a held one is passed over":                      {4, map[string]*fulmarv1.Lease{"10.0.0.4": rest(0)}, "10.0.0.5"},
		"one that rests is passed over":                  {4, map[string]*fulmarv1.Lease{"10.0.0.4": rest(1)}, "10.0.0.5"},
		"one that has rested is free again":              {4, map[string]*fulmarv1.Lease{"10.0.0.4": rest(-1)}, "10.0.0.4"},
		"one whose holder runs again is passed over":     {4, map[string]*fulmarv1.Lease{"10.0.0.4": runs}, "10.0.0.5"},
		"the end of the prefix goes on at its beginning": {6, map[string]*fulmarv1.Lease{"10.0.0.6": rest(0)}, "10.0.0.2"},
		"the last one is found from anywhere":            {4, map[string]*fulmarv1.Lease{"10.0.0.4": rest(0), "10.0.0.5": rest(0), "10.0.0.6": rest(9), "10.0.0.2": rest(0)}, "10.0.0.3"},
		"a full pool has none":                           {4, map[string]*fulmarv1.Lease{"10.0.0.2": rest(0), "10.0.0.3": rest(0), "10.0.0.4": rest(0), "10.0.0.5": rest(0), "10.0.0.6": rest(9)}, "invalid IP"},
	} {
		t.Run(name, func(t *testing.T) {
			got, ok := p.Pick(leasesOf(c.have), func(instance string) bool { return instance == "run.run.1" }, c.start, now)
			if got.String() != c.want || ok != (c.want != "invalid IP") {
				t.Errorf("got %s, %v, want %s", got, ok, c.want)
			}
		})
	}
}

func TestFull(t *testing.T) {
	p := poolOf(t, network("10.0.0.0/29", "10.0.0.1"))
	for name, c := range map[string]struct {
		have   map[string]*fulmarv1.Lease
		reason string
		first  time.Time
	}{
		"all held": {
			map[string]*fulmarv1.Lease{"10.0.0.2": rest(0), "10.0.0.3": rest(0)},
			"network lan (10.0.0.0/29) has no free address: 2 held, 0 resting",
			time.Time{},
		},
		"the first that will have rested is told": {
			map[string]*fulmarv1.Lease{"10.0.0.2": rest(0), "10.0.0.3": rest(7), "10.0.0.4": rest(3)},
			"network lan (10.0.0.0/29) has no free address: 1 held, 2 resting", now.Add(3 * time.Second),
		},
		"one that has rested is free in a moment": {
			map[string]*fulmarv1.Lease{"10.0.0.2": rest(-5), "10.0.0.4": rest(3)},
			"network lan (10.0.0.0/29) has no free address: 0 held, 2 resting", now.Add(time.Second),
		},
		"what is not leasable does not count": {
			map[string]*fulmarv1.Lease{"10.0.0.1": rest(0), "10.0.9.9": rest(2)},
			"network lan (10.0.0.0/29) has no free address: 0 held, 0 resting",
			time.Time{},
		},
	} {
		t.Run(name, func(t *testing.T) {
			reason, first := p.Full(leasesOf(c.have), now)
			if reason != c.reason || !first.Equal(c.first) {
				t.Errorf("got %q, %s, want %q, %s", reason, first, c.reason, c.first)
			}
		})
	}
}

func TestHeldBy(t *testing.T) {
	l := leasesOf(map[string]*fulmarv1.Lease{"10.0.0.2": rest(5), "10.0.0.3": rest(0)})
	if a, ok := l.HeldBy("web.web.1"); !ok || a.String() != "10.0.0.3" {
		t.Errorf("it holds %s, %v; an address that rests is not held", a, ok)
	}
	if a, ok := l.HeldBy("web.web.2"); ok {
		t.Errorf("nobody's address is %s", a)
	}
}

func TestKept(t *testing.T) {
	keepable := []*fulmarv1.Instance{
		{Unit: "db", Name: "new", Digest: "d1"}, {Unit: "web", Name: "new", Digest: "d1"}, {Unit: "web", Name: "old", Digest: "d1"}, {Unit: "web", Name: "other", Digest: "d2"},
	}
	for name, c := range map[string]struct{ unit, digest, want string }{
		"the newest of its unit and digest":    {"web", "d1", "new"},
		"another digest is another instance":   {"web", "d2", "other"},
		"an unknown digest keeps nothing":      {"web", "d3", ""},
		"another unit's instance is not taken": {"cache", "d1", ""},
	} {
		if got := kept(keepable, c.unit, c.digest).GetName(); got != c.want {
			t.Errorf("%s: got %q, want %q", name, got, c.want)
		}
	}
}

func TestRestUntil(t *testing.T) {
	for name, c := range map[string]struct{ deadline, want time.Duration }{
		"while the deadline is to come, from it on": {time.Hour, time.Hour + time.Minute},
		"after the deadline, from now on":           {-time.Hour, time.Minute},
		"at the deadline, from now on":              {0, time.Minute},
	} {
		if got := RestUntil(now, now.Add(c.deadline), time.Minute).Sub(now); got != c.want {
			t.Errorf("%s: got %s, want %s", name, got, c.want)
		}
	}
}

func TestWaited(t *testing.T) {
	at := func(verb messages.Verb, requested time.Time) *fulmarv1.Event {
		e := &fulmarv1.Event{Verb: string(verb), Deployment: &fulmarv1.Deployment{}}
		if !requested.IsZero() {
			e.Deployment.Requested = timestamppb.New(requested)
		}
		return e
	}
	for name, c := range map[string]struct {
		last *fulmarv1.Event
		try  string
		want string
	}{
		"the step that did not come is named":           {at(messages.Started, now.Add(-time.Minute)), "", "the deadline passed 1m0s after the request while it waited for healthy"},
		"one that was never accepted waited for that":   {nil, "", "the deadline passed while it waited for accepted"},
		"an event without the time of the request will": {at(messages.Built, time.Time{}), "", "the deadline passed while it waited for leased"},
		"the last try says why":                         {at(messages.Leased, now.Add(-time.Second)), "vmm: no memory", "the deadline passed 1s after the request while it waited for started: vmm: no memory"},
	} {
		if got := waited(c.last, now, c.try); got != c.want {
			t.Errorf("%s: got %q, want %q", name, got, c.want)
		}
	}
}

func TestDigestCovers(t *testing.T) {
	spec := func() *fulmarv1.UnitSpec {
		return &fulmarv1.UnitSpec{
			Name: "web", Args: []string{"--ip={{.IP}}", `--db={{ip "db"}}`, "--gw={{.Gateway}}"}, Memory: 32, Cpus: []uint32{0, 1},
			Ports: []*fulmarv1.Port{{Port: 80}}, Health: []*fulmarv1.HealthCheck{{Interval: durationpb.New(time.Second)}},
			Image: &fulmarv1.Image{Sha256: "i1"},
		}
	}
	type input struct {
		spec *fulmarv1.UnitSpec
		unit *fulmarv1.Unit
		net  *fulmarv1.Network
		at   messages.Address
		db   string
	}
	base := func() *input {
		return &input{
			spec(), &fulmarv1.Unit{Name: "web", Image: "i1", Device: "net0"}, network("10.0.0.0/24", "10.0.0.1"),
			messages.Address{IP: "10.0.0.7", PrefixLen: 24, Gateway: "10.0.0.1", Stack: "web", Unit: "web"},
			"10.0.0.9",
		}
	}
	sum := func(t *testing.T, i *input) string {
		t.Helper()
		d, err := digest(i.spec, i.unit, i.net, i.at, func(string) (string, error) { return i.db, nil })
		if err != nil {
			t.Fatal(err)
		}
		return d
	}
	want := sum(t, base())
	if !messages.IsDigest(want) {
		t.Fatalf("%q is no digest", want)
	}
	for name, c := range map[string]struct {
		change func(*input)
		same   bool
	}{
		"nothing changed":                         {func(*input) {}, true},
		"its own address":                         {func(i *input) { i.at.IP = "10.0.0.8" }, true},
		"its ports":                               {func(i *input) { i.spec.Ports = nil }, true},
		"its health checks":                       {func(i *input) { i.spec.Health = nil }, true},
		"where the image came from":               {func(i *input) { i.spec.Image = &fulmarv1.Image{Source: &fulmarv1.Image_File{File: "/a"}} }, true},
		"another image":                           {func(i *input) { i.unit.Image = "i2" }, false},
		"another argument":                        {func(i *input) { i.spec.Args[0] = "--ipv4={{.IP}}" }, false},
		"one argument more":                       {func(i *input) { i.spec.Args = append(i.spec.Args, "") }, false},
		"two arguments joined":                    {func(i *input) { i.spec.Args = []string{i.spec.Args[0] + i.spec.Args[1], i.spec.Args[2]} }, false},
		"the stand-in written out":                {func(i *input) { i.spec.Args[0] = "--ip=" + anyAddress }, false},
		"the address of a unit it uses":           {func(i *input) { i.db = "10.0.0.10" }, false},
		"the gateway, which an argument names":    {func(i *input) { i.at.Gateway = "10.0.0.2" }, false},
		"the prefix length, which no argument is": {func(i *input) { i.at.PrefixLen = 25 }, true},
		"memory":             {func(i *input) { i.spec.Memory = 64 }, false},
		"CPUs":               {func(i *input) { i.spec.Cpus = []uint32{1} }, false},
		"another network":    {func(i *input) { i.net = proto.CloneOf(i.net); i.net.Name = "wan" }, false},
		"another way to end": {func(i *input) { i.spec.Restart = messages.RestartOnFailure }, false},
		"another device":     {func(i *input) { i.unit.Device = "net1" }, false},
	} {
		t.Run(name, func(t *testing.T) {
			i := base()
			c.change(i)
			if got := sum(t, i); (got == want) != c.same {
				t.Errorf("the digest is the same: %v, want %v", got == want, c.same)
			}
		})
	}
}

func TestDigestNeedsNoAddress(t *testing.T) {
	spec := &fulmarv1.UnitSpec{Name: "web", Args: []string{"{{slice .IP 0 9}}"}}
	if _, err := digest(spec, &fulmarv1.Unit{}, network("10.0.0.0/24", "10.0.0.1"), messages.Address{}, nil); err != nil {
		t.Errorf("an argument that was accepted is refused: %v", err)
	}
	spec.Args = []string{`{{ip "db"}}`}
	_, err := digest(spec, &fulmarv1.Unit{}, network("10.0.0.0/24", "10.0.0.1"), messages.Address{}, func(string) (string, error) { return "", errors.New("unit db has no address") })
	if _, refused := messages.AsRefusal(err); !refused || !strings.Contains(err.Error(), "unit db has no address") {
		t.Errorf("got %v", err)
	}
}

func TestFailed(t *testing.T) {
	head := func(expired string) *fulmarv1.Head {
		return &fulmarv1.Head{Stack: "web", Newest: 7, Deployments: []*fulmarv1.HeadDeployment{{
			Generation: 7, State: fulmarv1.State_STATE_CONDEMNED, Expired: expired, Host: "host1", Content: &fulmarv1.Content{Network: "lan"},
		}}}
	}
	said := func(verb messages.Verb) *fulmarv1.Event {
		return &fulmarv1.Event{Verb: string(verb), Deployment: &fulmarv1.Deployment{Stack: "web", Generation: 7, Requested: timestamppb.New(now)}}
	}
	for name, c := range map[string]struct {
		last *fulmarv1.Event
		head *fulmarv1.Head
		due  bool
	}{
		"one on its way up fails":                           {said(messages.Started), head("late"), true},
		"one that was never accepted fails as well":         {nil, head("late"), true},
		"one that failed has failed":                        {said(messages.Failed), head("late"), false},
		"one that is drained already is left alone":         {said(messages.Drained), head("late"), false},
		"one that was condemned for another reason is done": {said(messages.Started), head(""), false},
		"one that is retired is done":                       {said(messages.Retired), &fulmarv1.Head{Stack: "web", Newest: 7}, false},
	} {
		t.Run(name, func(t *testing.T) {
			e, due := Failed(c.last, c.head, 7)
			if due != c.due {
				t.Fatalf("due: %v, want %v", due, c.due)
			}
			if due && (e.GetVerb() != "failed" || e.GetReason() != "late" || e.GetDeployment().GetGeneration() != 7 || e.GetDeployment().GetStack() != "web") {
				t.Errorf("got %v", e)
			}
			if due && c.last == nil && e.GetDeployment().GetNetwork().GetHost() != "host1" {
				t.Errorf("nobody on its host hears of it: %v", e)
			}
		})
	}
}

func TestANetworkThatWasRemovedIsNamed(t *testing.T) {
	_, err := NewPool(&fulmarv1.Network{Name: "lan", Host: "host1"})
	if _, refused := messages.AsRefusal(err); !refused || !strings.HasPrefix(err.Error(), "network lan was removed") {
		t.Errorf("got %v", err)
	}
}
