package host

import (
	"testing"

	"fulmar/albatross"
)

func named(s string) albatross.Path { p, _ := albatross.ParsePath(s); return p }

// someResources has the policies a and a:b, and runs a:x, a:b:y and c:z.
func someResources() *resources {
	r := newResources()
	r.policies[named("a")] = albatross.Policy{CPUIDs: []int{0, 1}, Unikernels: 3, Memory: 100, Block: new(50), Bridges: []string{"br0", "br1"}}
	r.policies[named("a:b")] = albatross.Policy{CPUIDs: []int{1}, Unikernels: 2, Memory: 60, Block: new(10), Bridges: []string{"br1"}}
	r.booked[parse("a:x")] = albatross.Args{CPUIDs: []int{0}, Memory: 30, Bridges: []albatross.Bridge{{Netif: "br0"}}}
	r.booked[parse("a:b:y")] = albatross.Args{CPUIDs: []int{1}, Memory: 30, Bridges: []albatross.Bridge{{Netif: "net", Bridge: "br1"}}}
	r.booked[parse("c:z")] = albatross.Args{CPUIDs: []int{7}, Memory: 1000}
	return r
}

func TestCheckPolicy(t *testing.T) {
	for what, c := range map[string]struct {
		path   string
		policy albatross.Policy
		want   string
	}{
		"as large as the one above and what runs": {"a:b", albatross.Policy{CPUIDs: []int{1, 0}, Unikernels: 3, Memory: 100, Block: new(50), Bridges: []string{"br1", "br0"}}, ""},
		"above two":               {"", albatross.Policy{CPUIDs: []int{0, 1, 7}, Unikernels: 3, Memory: 1060, Block: new(50), Bridges: []string{"br0", "br1"}}, ""},
		"more than two above":     {"a:b:c:d", albatross.Policy{Unikernels: 3}, "policy above allows 2 unikernels, which is fewer than 3"},
		"more memory than above":  {"a:c", albatross.Policy{Memory: 101}, "policy above allows 100 MB memory, which is fewer than 101 MB"},
		"other CPUs than above":   {"a:b", albatross.Policy{CPUIDs: []int{9, 1, 8}}, "policy above does not allow CPUids 8, 9"},
		"other bridges":           {"a:c", albatross.Policy{Bridges: []string{"br3", "br0"}}, "policy above allows bridge(s) br0, br1, which is not a superset of br0, br3"},
		"more block storage":      {"a:c", albatross.Policy{Block: new(51)}, "policy above allows 50 MB block storage, which is fewer than 51 MB"},
		"less than below":         {"a", albatross.Policy{CPUIDs: []int{0, 1}, Unikernels: 3, Memory: 100, Bridges: []string{"br0", "br1"}}, "policy above allows no block storage, which is fewer than 10 MB"},
		"fewer than run":          {"c", albatross.Policy{}, "unikernel would exceed running unikernel limit set by policy to 0, running 1"},
		"less memory than used":   {"c", albatross.Policy{Unikernels: 1, Memory: 999}, "unikernel would exceed running memory limit set by policy to 999 MB, used 1000 MB"},
		"not the CPU in use":      {"c", albatross.Policy{Unikernels: 1, Memory: 1000, CPUIDs: []int{6}}, "policy allows CPUids 6, which is not a superset of 7"},
		"not the bridge in use":   {"a:b", albatross.Policy{CPUIDs: []int{1}, Unikernels: 1, Memory: 30, Bridges: []string{"br0"}}, "policy allows bridges br0, which is not a superset of br1"},
		"a negative number":       {"d", albatross.Policy{Memory: -1}, "a policy cannot have negative numbers"},
		"a name that only begins": {"a:bc", albatross.Policy{Unikernels: 3}, ""},
	} {
		t.Run(what, func(t *testing.T) {
			if err := someResources().checkPolicy(named(c.path), c.policy); text(err) != c.want {
				t.Errorf("got %q, want %q", text(err), c.want)
			}
		})
	}
}

func TestCheckUnikernel(t *testing.T) {
	for what, c := range map[string]struct {
		name string
		args albatross.Args
		want string
	}{
		"as much as is left":         {"a:b:n", albatross.Args{CPUIDs: []int{1}, Memory: 30, Bridges: []albatross.Bridge{{Netif: "br1"}}}, ""},
		"more than the path has":     {"a:b:n", albatross.Args{Memory: 31}, "maximum allowed memory (60, used 30) would be exceeded (requesting 31)"},
		"more than one above has":    {"a:n", albatross.Args{Memory: 41}, "maximum allowed memory (100, used 60) would be exceeded (requesting 41)"},
		"in place of itself":         {"a:b:y", albatross.Args{Memory: 60}, ""},
		"another CPU":                {"a:n", albatross.Args{CPUIDs: []int{3, 0, 2}}, "CPUids 2, 3 are not allowed by policy"},
		"another bridge":             {"a:b:n", albatross.Args{Bridges: []albatross.Bridge{{Netif: "net0", Bridge: "br0"}}}, "bridges br0 not allowed by policy"},
		"where there is no policy":   {"c:n", albatross.Args{Memory: 1 << 40, CPUIDs: []int{99}}, ""},
		"a sum that would overflow":  {"a:n", albatross.Args{Memory: 1<<62 - 1}, "maximum allowed memory (100, used 60) would be exceeded (requesting 4611686018427387903)"},
		"a path that begins like it": {"ab:n", albatross.Args{Memory: 1000}, ""},
	} {
		t.Run(what, func(t *testing.T) {
			if err := someResources().checkUnikernel(parse(c.name), c.args); text(err) != c.want {
				t.Errorf("got %q, want %q", text(err), c.want)
			}
		})
	}
	r := someResources()
	if err := r.book(parse("a:n"), albatross.Args{}); err != nil {
		t.Fatal(err)
	}
	if err := r.book(parse("a:m"), albatross.Args{}); text(err) != "maximum amount of unikernels (3) reached" {
		t.Errorf("a fourth: %v", err)
	}
}

// text is what an error says, or nothing.
func text(err error) string {
	if err == nil {
		return ""
	}
	return err.Error()
}
