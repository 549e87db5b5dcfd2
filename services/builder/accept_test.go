package builder

import (
	"errors"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"google.golang.org/protobuf/testing/protocmp"
	"google.golang.org/protobuf/types/known/durationpb"

	"fulmar/bus"
	"fulmar/messages"
	fulmarv1 "fulmar/messages/fulmar/v1"
)

const (
	deployKind   = fulmarv1.Kind_KIND_DEPLOY
	promoteKind  = fulmarv1.Kind_KIND_PROMOTE
	rollbackKind = fulmarv1.Kind_KIND_ROLLBACK
	retireKind   = fulmarv1.Kind_KIND_RETIRE
	renewKind    = fulmarv1.Kind_KIND_RENEW
	discardKind  = fulmarv1.Kind_KIND_DISCARD

	underway  = fulmarv1.State_STATE_UNDERWAY
	staged    = fulmarv1.State_STATE_STAGED
	live      = fulmarv1.State_STATE_LIVE
	draining  = fulmarv1.State_STATE_DRAINING
	condemned = fulmarv1.State_STATE_CONDEMNED
)

var now = time.Unix(1_000_000, 0)

// contentOf is content of one unit, named by its image, with a port.
func contentOf(image string, port uint32) *fulmarv1.Content {
	return &fulmarv1.Content{Network: "lan", Drain: durationpb.New(time.Minute), Units: []*fulmarv1.UnitSpec{{
		Name: "web", Image: &fulmarv1.Image{Source: &fulmarv1.Image_Object{Object: image}}, Ports: []*fulmarv1.Port{{Port: port, Protocol: "tcp"}},
	}}}
}

func nothing() *fulmarv1.Content {
	return &fulmarv1.Content{Network: "lan", Drain: durationpb.New(time.Minute)}
}

func entry(generation uint64, s fulmarv1.State, c *fulmarv1.Content) *fulmarv1.HeadDeployment {
	return &fulmarv1.HeadDeployment{Generation: generation, State: s, Content: c, Host: "host1", Leased: true}
}

func headOf(deployments ...*fulmarv1.HeadDeployment) *fulmarv1.Head {
	h := &fulmarv1.Head{Stack: "web", Deployments: deployments}
	for _, d := range deployments {
		h.Newest = max(h.Newest, d.GetGeneration())
	}
	return h
}

func aWorld(heads ...*fulmarv1.Head) Surroundings {
	return Surroundings{Networks: map[string]*fulmarv1.Network{
		"lan": {Name: "lan", Host: "host1"}, "far": {Name: "far", Host: "host2"},
	}, Hosts: map[string]*fulmarv1.Host{"host1": {}, "host2": {}}, Holding: func(*fulmarv1.Content) []*fulmarv1.Head { return heads }, Now: now, Fetch: time.Minute}
}

func TestEnterGivesTheContent(t *testing.T) {
	a, b, s := contentOf("a", 80), contentOf("b", 80), contentOf("s", 80)
	withPrevious := func(h *fulmarv1.Head, c *fulmarv1.Content) *fulmarv1.Head {
		h.Previous = c
		return h
	}
	for name, c := range map[string]struct {
		kind fulmarv1.Kind
		head *fulmarv1.Head
		want *fulmarv1.Content
	}{
		"a promotion publishes what is staged":                     {promoteKind, headOf(entry(3, live, a), entry(4, staged, s)), s},
		"a promotion needs nothing live":                           {promoteKind, headOf(entry(4, staged, s)), s},
		"a rollback publishes what was live before":                {rollbackKind, withPrevious(headOf(entry(3, live, b)), a), a},
		"a renewal publishes what is live":                         {renewKind, headOf(entry(3, live, a), entry(4, underway, b)), a},
		"a discard publishes what is live, so the staged one goes": {discardKind, headOf(entry(3, live, a), entry(4, staged, s)), a},
		"a discard of the only one leaves nothing":                 {discardKind, headOf(entry(4, staged, s)), nothing()},
		"a retirement publishes nothing":                           {retireKind, headOf(entry(3, live, a)), nothing()},
		"a retirement takes what is only staged as well":           {retireKind, headOf(entry(3, staged, a)), nothing()},
		"a retirement takes what is only underway as well":         {retireKind, headOf(entry(3, underway, a)), nothing()},
	} {
		t.Run(name, func(t *testing.T) {
			got, err := Enter(c.head, bus.Request{Generation: 9, Kind: c.kind, Stack: "web"}, aWorld())
			if err != nil {
				t.Fatal(err)
			}
			if diff := cmp.Diff(c.want, got.GetContent(), protocmp.Transform()); diff != "" {
				t.Errorf("content (-want +got):\n%s", diff)
			}
			if got.GetGeneration() != 9 || got.GetHost() != "host1" || got.GetStaged() || !got.GetDeadline().AsTime().Equal(now.Add(time.Minute)) {
				t.Errorf("got %v", got)
			}
		})
	}
}

func TestEnterADeploy(t *testing.T) {
	const sum = "0000000000000000000000000000000000000000000000000000000000000000"
	url := `{"url":"http://a/b","sha256":"` + sum + `"}`
	for name, c := range map[string]struct {
		head    *fulmarv1.Head
		body    string
		within  time.Duration
		network string
		staged  bool
	}{
		"the deadline counts from now":                            {nil, `{"network":"lan","deadline":"9s","units":[{"image":{"file":"/a"}}]}`, 9 * time.Second, "lan", false},
		"every image of a URL has its time on top":                {nil, `{"network":"lan","units":[{"name":"a","image":` + url + `},{"name":"b","image":` + url + `}]}`, 3 * time.Minute, "lan", false},
		"what is taken out of Docker and OCI has its time on top": {nil, `{"network":"lan","units":[{"name":"a","image":{"docker":{"image":"a"}}},{"name":"b","image":{"oci":{"layout":"/b"}}}]}`, 3 * time.Minute, "lan", false},
		"what is built has its limit and its time on top":         {nil, `{"network":"lan","units":[{"name":"a","image":{"git":{"url":"https://a/b","limit":"3600s","dockerfile":{}}}},{"name":"b","image":{"git":{"url":"https://a/b","dockerfile":{}}}}]}`, 93 * time.Minute, "lan", false},
		"the network is the stack's if it has one":                {headOf(entry(3, live, contentOf("a", 80))), `{"units":[{"image":{"file":"/a"}}]}`, time.Minute, "lan", false},
		"it may be staged":                                        {nil, `{"network":"lan","staged":true,"units":[{"image":{"file":"/a"}}]}`, time.Minute, "lan", true},
		"a retired stack may go to another host":                  {headOf(entry(3, live, nothing())), `{"network":"far","units":[{"image":{"file":"/a"}}]}`, time.Minute, "far", false},
		"one that is condemned is on no host":                     {headOf(entry(3, condemned, contentOf("a", 80))), `{"network":"far","units":[{"image":{"file":"/a"}}]}`, time.Minute, "far", false},
		"the generation that is meant is the newest":              {headOf(entry(3, live, contentOf("a", 80))), `{"if_newest":"3","units":[{"image":{"file":"/a"}}]}`, time.Minute, "lan", false},
		"generation 0 means a stack that is not yet":              {nil, `{"if_newest":"0","network":"lan","units":[{"image":{"file":"/a"}}]}`, time.Minute, "lan", false},
	} {
		t.Run(name, func(t *testing.T) {
			got, err := Enter(c.head, bus.Request{Generation: 9, Kind: deployKind, Stack: "web", Body: []byte(c.body)}, aWorld())
			if err != nil {
				t.Fatal(err)
			}
			if within := got.GetDeadline().AsTime().Sub(now); within != c.within {
				t.Errorf("it has %s, want %s", within, c.within)
			}
			if got.GetContent().GetNetwork() != c.network || got.GetStaged() != c.staged || got.GetGeneration() != 9 {
				t.Errorf("got %v", got)
			}
		})
	}
}

func TestEnterRefuses(t *testing.T) {
	one := `"units":[{"image":{"file":"/a"},"ports":[{"port":80}]}]`
	holder := &fulmarv1.Head{Stack: "shop", Deployments: []*fulmarv1.HeadDeployment{entry(2, live, contentOf("a", 80))}}
	a := contentOf("a", 80)
	small := func() Surroundings {
		w := aWorld()
		w.Hosts["host1"] = &fulmarv1.Host{Name: "host1", Cpus: []uint32{0, 1}, MemoryMb: 1024}
		return w
	}
	elsewhere := func(d *fulmarv1.HeadDeployment) *fulmarv1.HeadDeployment {
		d.Host = "host2"
		return d
	}
	const (
		invalid  = fulmarv1.ReasonCode_REASON_CODE_INVALID
		notFound = fulmarv1.ReasonCode_REASON_CODE_NOT_FOUND
		conflict = fulmarv1.ReasonCode_REASON_CODE_CONFLICT
	)
	for name, c := range map[string]struct {
		kind fulmarv1.Kind
		head *fulmarv1.Head
		w    Surroundings
		body string
		code fulmarv1.ReasonCode
		want string
	}{
		"what cannot be read":                     {deployKind, nil, aWorld(), `{"x":1}`, invalid, `deploy request: unknown field "x" (line 1, column 2)`},
		"what contradicts itself":                 {deployKind, nil, aWorld(), `{}`, invalid, "units: a deployment needs at least one; to take the stack out of service, retire it"},
		"an unknown network":                      {deployKind, nil, aWorld(), `{"network":"wan",` + one + `}`, notFound, `network "wan" does not exist: fulmar network ls lists them`},
		"no network where there is none":          {deployKind, nil, Surroundings{Now: now}, `{` + one + `}`, notFound, "there is no network: add one with fulmar network add"},
		"no network where there are two":          {deployKind, nil, aWorld(), `{` + one + `}`, invalid, `the request names no network and there are several: choose one of far, lan with --network, or the field network`},
		"a generation that has moved":             {deployKind, headOf(entry(3, live, a)), aWorld(), `{"if_newest":"2",` + one + `}`, conflict, "the request means stack web at generation 2, but its newest is 3"},
		"a generation of any kind":                {retireKind, headOf(entry(3, live, a)), aWorld(), `{"if_newest":"4"}`, conflict, "the request means stack web at generation 4, but its newest is 3"},
		"a port of another stack":                 {deployKind, nil, aWorld(holder), `{"network":"lan",` + one + `}`, conflict, "port 80/tcp of host host1 is held by stack shop"},
		"a rollback to a port that is taken":      {rollbackKind, &fulmarv1.Head{Stack: "web", Previous: a}, aWorld(holder), "", conflict, "port 80/tcp of host host1 is held by stack shop"},
		"a network on another host":               {deployKind, headOf(elsewhere(entry(3, live, a))), aWorld(), `{"network":"lan",` + one + `}`, conflict, "network lan is on host host1, but stack web is on host host2: retire it first"},
		"a host that still drains":                {deployKind, headOf(elsewhere(entry(3, draining, a))), aWorld(), `{"network":"lan",` + one + `}`, conflict, "network lan is on host host1, but stack web is on host host2: retire it first"},
		"a promotion of nothing":                  {promoteKind, headOf(entry(3, live, a)), aWorld(), "", notFound, "stack web has nothing staged to promote"},
		"a rollback to nothing":                   {rollbackKind, headOf(entry(3, live, a)), aWorld(), "", notFound, "stack web has nothing to roll back to: nothing was replaced yet"},
		"a retirement of nothing":                 {retireKind, nil, aWorld(), "", notFound, "stack web has nothing to retire"},
		"a retirement of what is retired":         {retireKind, headOf(entry(3, live, nothing())), aWorld(), "", notFound, "stack web has nothing to retire"},
		"a retirement of what is going":           {retireKind, headOf(entry(3, draining, a), entry(4, live, nothing())), aWorld(), "", notFound, "stack web has nothing to retire"},
		"a renewal of nothing":                    {renewKind, headOf(entry(3, staged, a)), aWorld(), "", notFound, "stack web has nothing live to renew"},
		"a renewal of what is retired":            {renewKind, headOf(entry(3, live, nothing())), aWorld(), "", notFound, "stack web has nothing live to renew"},
		"a discard of nothing":                    {discardKind, headOf(entry(3, live, a)), aWorld(), "", notFound, "stack web has nothing staged to discard"},
		"a rollback to a network that is no more": {rollbackKind, &fulmarv1.Head{Stack: "web", Previous: &fulmarv1.Content{Network: "old"}}, aWorld(), "", notFound, `the content of this rollback is on network "old", which does not exist any more: add it again with fulmar network add, or deploy to another`},
		"a CPU that the host has not":             {deployKind, nil, small(), `{"network":"lan","units":[{"image":{"file":"/a"},"cpus":[1,2]}]}`, invalid, "unit web: host host1 has no CPU 2; it has 0-1"},
		"memory that the host has not":            {deployKind, nil, small(), `{"network":"lan","units":[{"image":{"file":"/a"},"memory":1025}]}`, invalid, "unit web: it asks for 1025 MB of memory, and host host1 has 1024 MB"},
		"a rollback to more than the host has":    {rollbackKind, &fulmarv1.Head{Stack: "web", Previous: &fulmarv1.Content{Network: "lan", Units: []*fulmarv1.UnitSpec{{Name: "a", Memory: 1000}, {Name: "b", Memory: 1000}}}}, small(), "", invalid, "the units ask for 2000 MB of memory together, and host host1 has 1024 MB"},
	} {
		t.Run(name, func(t *testing.T) {
			_, err := Enter(c.head, bus.Request{Generation: 9, Kind: c.kind, Stack: "web", Body: []byte(c.body)}, c.w)
			refusal, ok := messages.AsRefusal(err)
			if !ok || refusal.Code != c.code || err.Error() != c.want {
				t.Errorf("got  %v\nwant %s: %s", err, c.code, c.want)
			}
		})
	}
}

// TestWhatRunsNeedsNoRoom has a host that came back with less than what runs there asked for: what is staged can still be
// published, and taken down.
func TestWhatRunsNeedsNoRoom(t *testing.T) {
	large := contentOf("a", 80)
	large.Units[0].Memory, large.Units[0].Cpus = 2048, []uint32{7}
	w := aWorld()
	w.Hosts["host1"] = &fulmarv1.Host{Name: "host1", Cpus: []uint32{0}, MemoryMb: 1024}
	h := headOf(entry(3, live, large), entry(4, staged, large))
	for kind, starts := range map[fulmarv1.Kind]bool{promoteKind: false, discardKind: false, retireKind: false, renewKind: true} {
		_, err := Enter(h, bus.Request{Generation: 9, Kind: kind, Stack: "web"}, w)
		if (err != nil) != starts {
			t.Errorf("%s: got %v", messages.KindName(kind), err)
		}
	}
}

func TestAStackGoesThoughItsNetworkIsGone(t *testing.T) {
	w := aWorld()
	delete(w.Networks, "lan")
	d, err := Enter(headOf(entry(3, live, contentOf("a", 80))), bus.Request{Generation: 9, Kind: retireKind, Stack: "web"}, w)
	if err != nil || d.GetHost() != "host1" || d.GetContent().GetNetwork() != "lan" {
		t.Errorf("got %v, %v", d, err)
	}
}

func TestEnterTwice(t *testing.T) {
	d := entry(9, live, contentOf("a", 80))
	got, err := Enter(headOf(d), bus.Request{Generation: 9, Kind: deployKind, Stack: "web", Body: []byte("what it was is no matter")}, Surroundings{})
	if err != nil || got != d {
		t.Errorf("one that was entered is given as %v, %v", got, err)
	}
	if _, err := Enter(headOf(entry(10, live, contentOf("a", 80))), bus.Request{Generation: 9, Kind: deployKind, Stack: "web"}, Surroundings{}); !errors.Is(err, messages.ErrGone) {
		t.Errorf("one that has been through is %v, want ErrGone", err)
	}
}
