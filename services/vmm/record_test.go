package vmm

import (
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"google.golang.org/protobuf/testing/protocmp"
	"google.golang.org/protobuf/types/known/timestamppb"

	fulmarv1 "fulmar/messages/fulmar/v1"
)

func TestRecord(t *testing.T) {
	then := time.Unix(5000, 0)
	set := func(names ...string) map[string]bool {
		m := map[string]bool{}
		for _, n := range names {
			m[n] = true
		}
		return m
	}
	record := func(instances ...*fulmarv1.HostInstance) *fulmarv1.Host {
		return &fulmarv1.Host{Name: "h1", Targets: []string{"spt"}, Instances: instances, Seen: timestamppb.New(then)}
	}
	runs := func(name, line string) *fulmarv1.HostInstance {
		return &fulmarv1.HostInstance{Name: name, Running: true, LastLine: line}
	}
	exited := func(name, how, line string) *fulmarv1.HostInstance {
		return &fulmarv1.HostInstance{Name: name, Exit: how, LastLine: line}
	}
	again := func(i *fulmarv1.HostInstance, restarts uint32) *fulmarv1.HostInstance {
		i.Restarts = restarts
		return i
	}
	starts := func(i *fulmarv1.HostInstance, at int64, restarts uint32) *fulmarv1.HostInstance {
		i.Started = timestamppb.New(time.Unix(at, 0))
		return again(i, restarts)
	}
	started := func(at int64) map[string]time.Time { return map[string]time.Time{"a.a.1": time.Unix(at, 0)} }
	cases := map[string]struct {
		have *fulmarv1.Host
		look Look
		want *fulmarv1.Host // nil: nothing is written
	}{
		"the first look is written": {&fulmarv1.Host{}, Look{}, record()},
		"a new vmm says so at once": {record(runs("a.a.1", "x")), Look{First: true, Running: set("a.a.1")}, record(runs("a.a.1", "x"))},
		"nothing changed":           {record(runs("a.a.1", "x")), Look{Running: set("a.a.1"), Tails: map[string]Tail{"a.a.1": {Line: "y"}}}, nil},
		"another one runs": {
			record(runs("b.b.2", "")),
			Look{Running: set("b.b.2", "a.a.1"), Tails: map[string]Tail{"a.a.1": {Line: "up"}}},
			record(runs("a.a.1", "up"), runs("b.b.2", "")),
		},
		"one that nobody refers to is gone without a word": {record(runs("a.a.1", "x")), Look{}, record()},
		"one that went a moment ago is not yet given up":   {record(runs("a.a.1", "x")), Look{Gone: set("a.a.1"), Unsure: set("a.a.1")}, nil},
		"its console tells how it ended": {
			record(runs("a.a.1", "x")),
			Look{Gone: set("a.a.1"), Tails: map[string]Tail{"a.a.1": {Line: "bad", Exit: "exited with status 3"}}},
			record(exited("a.a.1", "exited with status 3", "bad")),
		},
		"no console tells how it ended":          {record(runs("a.a.1", "x")), Look{Gone: set("a.a.1")}, record(exited("a.a.1", "exited", "x"))},
		"what was told of an end stays":          {record(exited("a.a.1", "exited with status 3", "bad")), Look{Gone: set("a.a.1")}, nil},
		"one that died before it was seen":       {record(), Look{Gone: set("a.a.1")}, record(exited("a.a.1", "exited", ""))},
		"one that runs again has no end":         {record(exited("a.a.1", "exited", "x")), Look{Running: set("a.a.1"), Gone: set("a.a.1")}, record(again(runs("a.a.1", "x"), 1))},
		"an older look changes nothing":          {record(runs("a.a.1", "x")), Look{At: then.Add(-time.Second)}, nil},
		"after the clock was set back it is":     {record(runs("a.a.1", "x")), Look{At: then.Add(-time.Hour)}, record()},
		"after a while it is written anyway":     {record(runs("a.a.1", "x")), Look{At: then.Add(freshness), Running: set("a.a.1")}, record(runs("a.a.1", "x"))},
		"what the machine has is told":           {record(), Look{Machine: Machine{CPUs: []uint32{0, 1}, Memory: 64}}, &fulmarv1.Host{Name: "h1", Targets: []string{"spt"}, Cpus: []uint32{0, 1}, MemoryMb: 64}},
		"when it was started is told":            {record(runs("a.a.1", "")), Look{Running: set("a.a.1"), Started: started(7)}, record(starts(runs("a.a.1", ""), 7, 0))},
		"the same start is no restart":           {record(starts(runs("a.a.1", ""), 7, 2)), Look{Running: set("a.a.1"), Started: started(7)}, nil},
		"another start is one":                   {record(starts(runs("a.a.1", ""), 7, 2)), Look{Running: set("a.a.1"), Started: started(9)}, record(starts(runs("a.a.1", ""), 9, 3))},
		"who ended and runs again was restarted": {record(starts(exited("a.a.1", "exited", "x"), 7, 0)), Look{Running: set("a.a.1"), Started: started(9)}, record(starts(runs("a.a.1", "x"), 9, 1))},
		"who was created by vmm was not":         {record(starts(exited("a.a.1", "exited", "x"), 7, 0)), Look{Running: set("a.a.1"), Started: started(9), Created: set("a.a.1")}, record(starts(runs("a.a.1", "x"), 9, 0))},
		"an end forgets no restart":              {record(starts(runs("a.a.1", "x"), 7, 2)), Look{Gone: set("a.a.1")}, record(starts(exited("a.a.1", "exited", "x"), 7, 2))},
		"a daemon that does not tell":            {record(starts(runs("a.a.1", ""), 7, 2)), Look{Running: set("a.a.1")}, nil},
		"the daemon runs other targets today":    {record(), Look{Targets: []string{"hvt"}}, &fulmarv1.Host{Name: "h1", Targets: []string{"hvt"}}},
	}
	for name, c := range cases {
		t.Run(name, func(t *testing.T) {
			c.look.Host = "h1"
			if c.look.Targets == nil {
				c.look.Targets = []string{"spt"}
			}
			if c.look.At.IsZero() {
				c.look.At = then.Add(time.Second)
			}
			got := Record(c.have, c.look)
			if c.want == nil {
				if got != c.have {
					t.Errorf("it would be written as %v", got)
				}
				return
			}
			c.want.Seen = timestamppb.New(c.look.At)
			if diff := cmp.Diff(c.want, got, protocmp.Transform()); diff != "" {
				t.Errorf("record (-want +got):\n%s", diff)
			}
		})
	}
}

func TestTail(t *testing.T) {
	cases := map[string]struct {
		lines []string
		want  Tail
	}{
		"the last line":                          {[]string{"a", "b"}, Tail{Line: "b"}},
		"the daemon's last word":                 {[]string{"a", "fulmar: exited with status 3"}, Tail{Line: "a", Exit: "exited with status 3"}},
		"a signal":                               {[]string{"fulmar: killed by signal SIGSEGV"}, Tail{Exit: "killed by signal SIGSEGV"}},
		"who goes on has not ended":              {[]string{"fulmar: exited with status 3", "b"}, Tail{Line: "b"}},
		"other words of the daemon are no end":   {[]string{"fulmar: hello"}, Tail{Line: "fulmar: hello"}},
		"what is no UTF-8 cannot be in a record": {[]string{"a\xff"}, Tail{Line: "a\uFFFD"}},
	}
	for name, c := range cases {
		t.Run(name, func(t *testing.T) {
			var got Tail
			for _, l := range c.lines {
				got = got.add(l)
			}
			if diff := cmp.Diff(c.want, got); diff != "" {
				t.Errorf("tail (-want +got):\n%s", diff)
			}
		})
	}
}

func TestWanted(t *testing.T) {
	instances := []*fulmarv1.Instance{{Name: "a.a.1"}}
	for state, want := range map[fulmarv1.State]bool{
		fulmarv1.State_STATE_UNDERWAY: true, fulmarv1.State_STATE_STAGED: true, fulmarv1.State_STATE_LIVE: true,
		fulmarv1.State_STATE_DRAINING: true, fulmarv1.State_STATE_CONDEMNED: false,
	} {
		h := &fulmarv1.Head{Deployments: []*fulmarv1.HeadDeployment{{State: state, Instances: instances}}}
		if got := Wanted(h, "a.a.1"); got != want {
			t.Errorf("in state %v wanted is %t", state, got)
		}
	}
	if Wanted(&fulmarv1.Head{}, "a.a.1") {
		t.Error("a head without deployments wants an instance")
	}
}
