package firewall

import (
	"errors"
	"slices"
	"strings"
	"testing"
)

func TestWhateverOthersDoToTheTableIsSetRight(t *testing.T) {
	for name, command := range map[string]string{
		"everything flushed":       "flush ruleset",
		"the table deleted":        "delete table ip fulmar",
		"the table emptied":        "flush table ip fulmar",
		"a chain flushed":          "flush chain ip fulmar guard",
		"a rule replaced":          "flush chain ip fulmar output; add rule ip fulmar output accept",
		"a rule added":             "add rule ip fulmar prerouting accept",
		"a chain added":            "add chain ip fulmar mine { type filter hook forward priority -2; policy drop; }",
		"a policy changed":         "chain ip fulmar guard { policy drop; }",
		"the table put to sleep":   "add table ip fulmar { flags dormant; }",
		"the redirects flushed":    "flush map ip fulmar redirects",
		"a redirect bent":          "delete element ip fulmar redirects { udp . 8000 }; add element ip fulmar redirects { udp . 8000 : 10.77.0.2 . 80 }",
		"a redirect of nobody":     `add element ip fulmar redirects { tcp . 22 comment "web-41" : 10.77.0.2 . 80 }`,
		"a guard deleted":          "delete element ip fulmar guards { 10.77.0.2 . udp . 80 }",
		"a guarded port deleted":   "delete element ip fulmar ports { 8001 }",
		"a bridge deleted":         `delete element ip fulmar bridges { "br-a" }`,
		"an element without owner": "add element ip fulmar guards { 10.77.0.9 . udp . 80 }",
	} {
		t.Run(name, func(t *testing.T) {
			k := freshKernel(t, NFTables)
			want := someWant()
			want.Gone = func(_ string, generation uint64) bool { return generation == 41 }
			apply(t, k, want)
			run(t, "nft", command)
			if plan := planFor(t, k, want); !plan.Changes() && !plan.Removes() {
				t.Fatal("not seen")
			}
			apply(t, k, want)
		})
	}
}

func TestABackendTakesOverWhatAnotherPublished(t *testing.T) {
	for _, c := range [][2]Backend{{IPTables, NFTables}, {NFTables, IPTables}} {
		t.Run(string(c[0])+" to "+string(c[1]), func(t *testing.T) {
			want := someWant()
			leaving := manyPorts("web", 41, "10.77.0.9", 2)
			want.Draining = append(want.Draining, leaving)
			apply(t, freshKernel(t, c[0]), want)
			k, err := NewKernel(c[1])
			if err != nil {
				t.Fatal(err)
			}
			t.Cleanup(k.Close)
			want.Draining, want.Leaving = want.Draining[:1], []Publication{leaving}
			plan := planFor(t, k, want)
			if err := k.Install(t.Context(), plan); err != nil {
				t.Fatal(err)
			}
			for _, p := range want.Live {
				if got, err := Redirected(p); err != nil || !got {
					t.Errorf("before the old backend's are removed, %s is redirected: %v, %v", p.Name(), got, err)
				}
			}
			apply(t, k, want)
			rules, sets := run(t, "iptables-save"), run(t, "nft", "list ruleset")
			if got := strings.Contains(rules, "FULMAR-43"); got != (c[1] == IPTables) {
				t.Errorf("chains of generations: %v\n%s", got, rules)
			}
			if got := strings.Contains(sets, "table ip fulmar"); got != (c[1] == NFTables) {
				t.Errorf("a table of our own: %v", got)
			}
			if have, err := k.Read(t.Context()); err != nil || !have.Guards(leaving) {
				t.Errorf("what is leaving has lost its guard: %v", err)
			}
		})
	}
}

func TestPeopleCanReadTheTable(t *testing.T) {
	apply(t, freshKernel(t, NFTables), someWant())
	shown := run(t, "nft", "list table ip fulmar")
	for _, want := range []string{`"br-a"`, `tcp . 8000 comment "web-43" : 10.77.0.3 . 80`, `10.77.0.2 . udp . 80 comment "web-42"`} {
		if !strings.Contains(shown, want) {
			t.Errorf("nft does not show %s:\n%s", want, shown)
		}
	}
}

func TestMoreIsPublishedThanOneMessageHolds(t *testing.T) {
	k := freshKernel(t, NFTables)
	want := Want{Live: []Publication{manyPorts("web", 1, "10.77.0.2", 3000)}}
	apply(t, k, want)
	want.Live = []Publication{manyPorts("web", 1, "10.77.0.3", 3000)}
	apply(t, k, want)
	apply(t, k, Want{Gone: func(string, uint64) bool { return true }})
}

func TestAPortGoesToAnotherStackBeforeTheOldRedirectIsRemoved(t *testing.T) {
	eachBackend(t, func(t *testing.T, k *Kernel) {
		want := someWant()
		apply(t, k, want)
		other := manyPorts("other", 44, "10.77.0.5", 40)
		if err := k.Publish(t.Context(), other, slices.Values(want.shown())); err != nil {
			t.Fatal(err)
		}
		want.Draining = append(want.Draining, want.Live[0])
		want.Live[0] = other
		if plan := planFor(t, k, want); plan.Changes() {
			t.Errorf("after the switch there is still something missing:\n%s%v", plan.Install, plan.table)
		}
	})
}

func TestAPortIsTakenFromWhatNobodyExplainsInTheOtherBackend(t *testing.T) {
	for _, c := range [][2]Backend{{IPTables, NFTables}, {NFTables, IPTables}} {
		t.Run(string(c[0])+" to "+string(c[1]), func(t *testing.T) {
			lost, other := manyPorts("web", 41, "10.77.0.9", 2), manyPorts("lost", 40, "10.77.0.8", 1)
			other.Ports[0].Port = 9000
			want := Want{Networks: someWant().Networks, Live: []Publication{lost, other}, Gone: func(string, uint64) bool { return false }}
			apply(t, freshKernel(t, c[0]), want)
			k, err := NewKernel(c[1])
			if err != nil {
				t.Fatal(err)
			}
			t.Cleanup(k.Close)
			want.Live = []Publication{manyPorts("web", 43, "10.77.0.2", 2)} // of the heads of web and lost nothing is left
			for range 2 {
				plan := planFor(t, k, want)
				if err := errors.Join(k.Install(t.Context(), plan), k.Hook(plan.Missing...), k.Tidy(t.Context(), plan)); err != nil {
					t.Fatal(err)
				}
			}
			have, err := k.Read(t.Context())
			if err != nil || !have.Guards(other) {
				t.Errorf("what nobody explains has no guard: %v", err)
			}
			for key, m := range want.Live[0].redirects() {
				if led, there := have.table.items[key]; there && led != m {
					t.Errorf("port %d leads to %s", key.port, led.owner)
				}
			}
			if got, err := Redirected(other); err != nil || !got {
				t.Errorf("what nobody else wants is no longer led to: %v, %v", got, err)
			}
		})
	}
}
