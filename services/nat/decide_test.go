package nat

import (
	"errors"
	"net/netip"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"

	"fulmar/firewall"
	fulmarv1 "fulmar/messages/fulmar/v1"
)

const (
	underway  = fulmarv1.State_STATE_UNDERWAY
	staged    = fulmarv1.State_STATE_STAGED
	live      = fulmarv1.State_STATE_LIVE
	draining  = fulmarv1.State_STATE_DRAINING
	condemned = fulmarv1.State_STATE_CONDEMNED
)

// one is a deployment of one unit with port 8080 and its own instance, on the test's host.
func one(generation uint64, state fulmarv1.State) *fulmarv1.HeadDeployment {
	return &fulmarv1.HeadDeployment{
		Generation: generation, State: state, Host: testHost, Staged: state == staged,
		Content: &fulmarv1.Content{Units: []*fulmarv1.UnitSpec{{
			Name: "web", Ports: []*fulmarv1.Port{{Port: 8080, Target: 80, Protocol: "tcp"}},
		}}},
		Instances: []*fulmarv1.Instance{{Unit: "web", Name: "web.web." + string(rune('0'+generation)), Network: "lan", Address: address(generation).String()}},
	}
}

func address(generation uint64) netip.Addr {
	return netip.AddrFrom4([4]byte{10, 0, 0, byte(generation)})
}

func published(generation uint64) firewall.Publication {
	return firewall.Publication{Stack: "web", Generation: generation, Ports: []firewall.Port{{Protocol: "tcp", Port: 8080, Address: address(generation), Target: 80}}}
}

func head(newest uint64, deployments ...*fulmarv1.HeadDeployment) *fulmarv1.Head {
	return &fulmarv1.Head{Stack: "web", Newest: newest, Deployments: deployments}
}

func TestWanted(t *testing.T) {
	elsewhere := one(3, live)
	elsewhere.Host = "host2"
	homeless := one(3, live)
	homeless.Instances = nil
	failed := one(3, condemned)
	failed.Instances = nil
	strange := one(3, live)
	strange.Content.Units[0].Ports[0].Protocol = "tcp -j ACCEPT"
	for name, c := range map[string]struct {
		head *fulmarv1.Head
		want firewall.Want
		bad  string
	}{
		"what is live is led to, what drains or is condemned is guarded": {
			head: head(6, one(1, condemned), one(2, draining), one(3, live), one(4, staged), one(5, underway)),
			want: firewall.Want{Live: []firewall.Publication{published(3)}, Draining: []firewall.Publication{published(2)}, Leaving: []firewall.Publication{published(1)}},
		},
		"what failed before it had instances has no rule": {head: head(3, one(2, live), failed), want: firewall.Want{Live: []firewall.Publication{published(2)}}},
		"what is on another host is none of our business": {head: head(3, elsewhere)},
		"a unit without an instance is named and left out": {
			head: head(3, one(2, draining), homeless), bad: "publish web-3: unit web has no instance",
			want: firewall.Want{Draining: []firewall.Publication{published(2)}},
		},
		"a port that would be another rule is named and left out": {head: head(3, strange), bad: "publish web-3: unit web: port 8080/tcp -j ACCEPT"},
	} {
		t.Run(name, func(t *testing.T) {
			got, err := wanted(testHost, map[string]*fulmarv1.Head{"web": c.head}, nil)
			if (err == nil) != (c.bad == "") || err != nil && !strings.Contains(err.Error(), c.bad) {
				t.Errorf("error %v, want %q", err, c.bad)
			}
			if diff := cmp.Diff(c.want, got, cmpopts.IgnoreFields(firewall.Want{}, "Gone"), cmpopts.EquateComparable(netip.Addr{})); diff != "" {
				t.Errorf("wanted (-want +got):\n%s", diff)
			}
		})
	}
}

func TestWantedNetworks(t *testing.T) {
	got, err := wanted(testHost, nil, map[string]*fulmarv1.Network{
		"lan":      lan(),
		"far":      {Host: "host2", Bridge: "br0", Prefix: "10.1.0.0/24"},
		"spaces":   {Host: testHost, Bridge: "br0 -j ACCEPT", Prefix: "10.2.0.0/24"},
		"unpaired": {Host: testHost, Bridge: "br1", Prefix: "10.3.0.0"},
		"six":      {Host: testHost, Bridge: "br2", Prefix: "fd00::/64"},
	})
	for _, culprit := range []string{"network spaces", "network unpaired", "network six"} {
		if err == nil || !strings.Contains(err.Error(), culprit) {
			t.Errorf("%s is not named by %v", culprit, err)
		}
	}
	want := []firewall.Network{{Bridge: "br-nat", Prefix: netip.MustParsePrefix("10.79.0.0/24")}}
	if diff := cmp.Diff(want, got.Networks, cmpopts.EquateComparable(netip.Prefix{})); diff != "" {
		t.Errorf("networks (-want +got):\n%s", diff)
	}
}

func TestGone(t *testing.T) {
	for name, c := range map[string]struct {
		head *fulmarv1.Head
		want bool
	}{
		"no head proves nothing":                       {nil, false},
		"an older head proves nothing":                 {head(4), false},
		"a head that is new enough and has it no more": {head(5), true},
		"a head that has it as live":                   {head(5, one(5, live)), false},
		"a head that drains it":                        {head(6, one(5, draining)), false},
		"a head that ends it":                          {head(6, one(5, condemned)), false},
		"what is underway can have no rules":           {head(6, one(5, underway)), true},
		"what is staged can have no rules":             {head(6, one(5, staged)), true},
		"another generation of the stack says nothing": {head(6, one(6, live)), true},
	} {
		t.Run(name, func(t *testing.T) {
			if got := gone(c.head, 5); got != c.want {
				t.Errorf("gone is %v", got)
			}
		})
	}
}

func TestObsolete(t *testing.T) {
	all := map[uint64]firewall.Shown{1: {Publication: published(1)}, 2: {Publication: published(2), Redirected: true}, 3: {Publication: published(3), Redirected: true}}
	for name, c := range map[string]struct {
		head              *fulmarv1.Head
		redirects, guards []firewall.Publication
	}{
		"the redirect of what drains":           {head(3, one(1, condemned), one(2, draining), one(3, live)), []firewall.Publication{published(2)}, nil},
		"the redirect of what is condemned":     {head(3, one(1, condemned), one(2, condemned), one(3, live)), []firewall.Publication{published(2)}, nil},
		"everything of what is gone":            {head(3, one(3, live)), []firewall.Publication{published(2)}, []firewall.Publication{published(1), published(2)}},
		"nothing while the new one is underway": {head(3, one(1, draining), one(2, live), one(3, live)), nil, nil},
		"nothing without a head":                {nil, nil, nil},
	} {
		t.Run(name, func(t *testing.T) {
			redirects, guards := obsolete(map[string]*fulmarv1.Head{"web": c.head}, all)
			options := cmp.Options{cmpopts.SortSlices(func(a, b firewall.Publication) bool { return a.Generation < b.Generation }), cmpopts.EquateComparable(netip.Addr{})}
			if diff := cmp.Diff(c.redirects, redirects, options); diff != "" {
				t.Errorf("redirects (-want +got):\n%s", diff)
			}
			if diff := cmp.Diff(c.guards, guards, options); diff != "" {
				t.Errorf("guards (-want +got):\n%s", diff)
			}
		})
	}
}

func TestUnchanged(t *testing.T) {
	same := func(generation uint64, state fulmarv1.State) *fulmarv1.HeadDeployment {
		d := one(generation, state)
		d.Instances = one(1, live).Instances
		return d
	}
	moved := same(3, live)
	moved.Content.Units[0].Ports[0].Port = 8081
	discarded := one(2, draining)
	discarded.Staged = true
	for name, c := range map[string]struct {
		head *fulmarv1.Head
		want bool
	}{
		"the first":                               {head(3, one(3, live)), false},
		"another instance":                        {head(3, one(1, draining), one(3, live)), false},
		"the same instance at the same port":      {head(3, same(1, draining), same(3, live)), true},
		"the same instance at another port":       {head(3, same(1, draining), moved), false},
		"staged, beside the same":                 {head(3, same(1, live), same(3, staged)), true},
		"what was staged in between was not seen": {head(3, same(1, draining), discarded, same(3, live)), true},
		"what it replaced is gone":                {head(3, same(1, condemned), same(3, live)), false},
		"it is gone itself":                       {head(4, same(1, draining)), false},
	} {
		t.Run(name, func(t *testing.T) {
			kept := []*fulmarv1.Unit{{Name: "web", Kept: true}}
			if got := unchanged(c.head, &fulmarv1.Deployment{Generation: 3, Units: kept}); got != c.want {
				t.Errorf("unchanged is %v", got)
			}
			if again := append(kept, &fulmarv1.Unit{Name: "api"}); unchanged(c.head, &fulmarv1.Deployment{Generation: 3, Units: again}) {
				t.Error("a unit was started again, and it says that nothing changed")
			}
		})
	}
}

func TestAnswering(t *testing.T) {
	udp := func(generation uint64, port uint16) firewall.Shown {
		return firewall.Shown{Publication: firewall.Publication{Stack: "dns", Generation: generation, Ports: []firewall.Port{{Protocol: "udp", Port: port, Address: address(generation), Target: 53}}}}
	}
	all := map[uint64]firewall.Shown{1: udp(1, 53), 2: udp(2, 54), 3: udp(3, 53), 4: {Publication: published(4), Redirected: true}}
	want := []netip.Addr{address(1)}
	if diff := cmp.Diff(want, answering(all, udp(3, 53).Ports[0]), cmpopts.EquateComparable(netip.Addr{})); diff != "" {
		t.Errorf("answering (-want +got):\n%s", diff)
	}
}

func TestTaken(t *testing.T) {
	all := []listener{{"tcp", netip.MustParseAddrPort("0.0.0.0:22")}, {"udp", netip.MustParseAddrPort("127.0.0.53:53")}, {"udp", netip.MustParseAddrPort("0.0.0.0:40000")}, {"tcp", netip.MustParseAddrPort("127.0.0.1:40000")}}
	for name, c := range map[string]struct {
		port firewall.Port
		want bool
	}{
		"a port that is free":                           {firewall.Port{Protocol: "tcp", Port: 80}, false},
		"a listener":                                    {firewall.Port{Protocol: "tcp", Port: 22}, true},
		"the number of the other protocol":              {firewall.Port{Protocol: "udp", Port: 22}, false},
		"a server of datagrams":                         {firewall.Port{Protocol: "udp", Port: 53}, true},
		"a socket for datagrams that got any free port": {firewall.Port{Protocol: "udp", Port: 40000}, false},
		"a listener that got any free port":             {firewall.Port{Protocol: "tcp", Port: 40000}, true},
	} {
		t.Run(name, func(t *testing.T) {
			if got, found := taken([]firewall.Port{c.port}, all, 32768, 60999); found != c.want {
				t.Errorf("taken by %v, %v", got, found)
			}
		})
	}
}

func TestNobodyPutsASweepOff(t *testing.T) {
	now := time.Unix(1000, 0)
	for _, c := range []struct {
		cause  string
		err    error
		before int // failures
		want   time.Duration
	}{
		{cause: "start", want: sweep},
		{cause: "sweep", want: sweep},
		{cause: "foreign", want: time.Second}, // as it was
		{cause: "foreign", err: errors.New("no bus"), want: retry},
		{cause: "sweep", err: errors.New("no bus"), before: 2, want: 4 * retry},
		{cause: "sweep", err: errors.New("no bus"), before: 99, want: retryMax},
	} {
		f := follower{due: now.Add(time.Second), failures: c.before}
		f.looked(c.cause, c.err, now)
		if got := f.due.Sub(now); got != c.want {
			t.Errorf("after a look because of %s (%v, %d failures before) the next is due in %v, want %v", c.cause, c.err, c.before, got, c.want)
		}
	}
}
