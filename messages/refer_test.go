package messages_test

import (
	"slices"
	"testing"

	"github.com/google/go-cmp/cmp"

	"fulmar/messages"
	fulmarv1 "fulmar/messages/fulmar/v1"
)

func names(instances []*fulmarv1.Instance) []string {
	var all []string
	for _, i := range instances {
		all = append(all, i.GetName())
	}
	return all
}

func TestKeepable(t *testing.T) {
	h := headOf(9,
		deployment(3, draining, "a", "web.web.3"), deployment(4, live, "a", "web.web.4"), deployment(5, staged, "a", "web.web.5"),
		deployment(6, condemned, "a", "web.web.6"), deployment(7, underway, "a", "web.web.7"), deployment(9, underway, "a"))
	want := []string{"web.web.5", "web.web.4", "web.web.3"}
	if diff := cmp.Diff(want, names(messages.Keepable(h, 9))); diff != "" {
		t.Errorf("newest first, and of live, staged and draining only (-want +got):\n%s", diff)
	}
	if diff := cmp.Diff([]string{"web.web.5", "web.web.3"}, names(messages.Keepable(h, 4))); diff != "" {
		t.Errorf("nobody keeps from itself (-want +got):\n%s", diff)
	}
}

func TestDying(t *testing.T) {
	for name, c := range map[string]struct {
		head *fulmarv1.Head
		want []string
	}{
		"what nobody else refers to dies":              {headOf(7, deployment(3, condemned, "a", "web.a.3", "web.b.3"), deployment(7, live, "b", "web.b.3")), []string{"web.a.3"}},
		"what one underway has kept lives":             {headOf(7, deployment(3, condemned, "a", "web.a.3"), deployment(7, underway, "b", "web.a.3")), nil},
		"what one that drains has lives":               {headOf(7, deployment(3, condemned, "a", "web.a.3"), deployment(7, draining, "b", "web.a.3")), nil},
		"what only another condemned one has dies":     {headOf(7, deployment(3, condemned, "a", "web.a.3"), deployment(7, condemned, "b", "web.a.3")), []string{"web.a.3"}},
		"one that never got instances has none to die": {headOf(7, with(deployment(3, condemned, "a"), notLeased)), nil},
		"one that is gone has none to die":             {headOf(7), nil},
	} {
		t.Run(name, func(t *testing.T) {
			if diff := cmp.Diff(c.want, names(messages.Dying(c.head, 3))); diff != "" {
				t.Errorf("dying (-want +got):\n%s", diff)
			}
		})
	}
}

func TestOrphan(t *testing.T) {
	for name, c := range map[string]struct {
		head     *fulmarv1.Head
		instance string
		want     bool
	}{
		"an absent head proves nothing":                               {&fulmarv1.Head{}, "web.web.3", false},
		"the head of another stack proves nothing":                    {headOf(9), "dns.web.3", false},
		"an old head proves nothing of a newer generation":            {headOf(2), "web.web.3", false},
		"a name that no generation of ours made is not ours to judge": {headOf(9), "web", false},
		"a generation that is retired has no instances":               {headOf(9), "web.web.3", true},
		"what a live deployment refers to is explained":               {headOf(9, deployment(9, live, "a", "web.web.3")), "web.web.3", false},
		"what a condemned deployment refers to is explained":          {headOf(9, deployment(9, condemned, "a", "web.web.3")), "web.web.3", false},
		"a generation that is about to be leased may have it":         {headOf(9, with(deployment(3, underway, "a"), notLeased)), "web.web.3", false},
		"one that is leased without it never had it":                  {headOf(9, deployment(3, underway, "a", "web.web.2")), "web.web.3", true},
		"one that was condemned before it was leased never had it":    {headOf(9, with(deployment(3, condemned, "a"), notLeased)), "web.web.3", true},
	} {
		t.Run(name, func(t *testing.T) {
			if got := messages.Orphan(c.head, c.instance); got != c.want {
				t.Errorf("Orphan gives %v, want %v", got, c.want)
			}
		})
	}
}

func TestOrphanLease(t *testing.T) {
	h := headOf(9, deployment(3, live, "a", "web.web.3"))
	for name, c := range map[string]struct {
		instance, network, address string
		want                       bool
	}{
		"the address that the head names is explained":        {"web.web.3", "lan", "10.0.0.3", false},
		"a second address of the same instance is nobody's":   {"web.web.3", "lan", "10.0.0.4", true},
		"the same address in another network is nobody's":     {"web.web.3", "wan", "10.0.0.3", true},
		"the lease of an instance that is not there either":   {"web.web.4", "lan", "10.0.0.4", true},
		"the lease of a generation yet to come is left alone": {"web.web.10", "lan", "10.0.0.4", false},
	} {
		t.Run(name, func(t *testing.T) {
			if got := messages.OrphanLease(h, c.instance, c.network, c.address); got != c.want {
				t.Errorf("OrphanLease gives %v, want %v", got, c.want)
			}
		})
	}
}

func TestInState(t *testing.T) {
	h := headOf(9, deployment(3, staged, "a"), deployment(4, live, "a"), deployment(5, staged, "a"))
	if got := messages.InState(h, staged).GetGeneration(); got != 5 {
		t.Errorf("the newest staged one is %d, want 5", got)
	}
	if got := messages.InState(h, draining); got != nil {
		t.Errorf("nothing drains, got %v", got)
	}
	if got := messages.InState(nil, live); got != nil {
		t.Errorf("an absent head has nothing live, got %v", got)
	}
}

func TestCheckPorts(t *testing.T) {
	port := func(n uint32, protocol string) *fulmarv1.Content {
		return &fulmarv1.Content{Units: []*fulmarv1.UnitSpec{{Name: "a"}, {Name: "b", Ports: []*fulmarv1.Port{{Port: n, Protocol: protocol}}}}}
	}
	in := func(s fulmarv1.State) []*fulmarv1.Head {
		return []*fulmarv1.Head{headOf(3, deployment(3, s, "a", "web.web.3"))}
	}
	for name, c := range map[string]struct {
		heads   []*fulmarv1.Head
		stack   string
		host    string
		content *fulmarv1.Content
		want    string
	}{
		"a port that a live stack has is held":   {in(live), "shop", "host1", port(80, "tcp"), "port 80/tcp of host host1 is held by stack web"},
		"a port that a staged stack has is held": {in(staged), "shop", "host1", port(80, "tcp"), "port 80/tcp of host host1 is held by stack web"},
		"one underway holds nothing yet":         {in(underway), "shop", "host1", port(80, "tcp"), ""},
		"one that drains holds nothing":          {in(draining), "shop", "host1", port(80, "tcp"), ""},
		"another port is free":                   {in(live), "shop", "host1", port(81, "tcp"), ""},
		"the same number of the other protocol":  {in(live), "shop", "host1", port(80, "udp"), ""},
		"the same port of another host":          {in(live), "shop", "host2", port(80, "tcp"), ""},
		"a stack is no conflict for itself":      {in(live), "web", "host1", port(80, "tcp"), ""},
	} {
		t.Run(name, func(t *testing.T) {
			got := ""
			holding := slices.DeleteFunc(slices.Clone(c.heads), func(h *fulmarv1.Head) bool { // as a view finds them
				return !slices.ContainsFunc(messages.Ports(c.content), func(port string) bool { return slices.Contains(messages.HeldPorts(h), port) })
			})
			if err := messages.CheckPorts(holding, c.stack, c.host, c.content); err != nil {
				got = err.Error()
				if r, ok := messages.AsRefusal(err); !ok || r.Code != fulmarv1.ReasonCode_REASON_CODE_CONFLICT {
					t.Errorf("%v is no refusal for a conflict", err)
				}
			}
			if got != c.want {
				t.Errorf("got %q, want %q", got, c.want)
			}
		})
	}
}
