package host

import (
	"cmp"
	"fmt"
	"slices"
	"strings"

	"fulmar/albatross"
)

// resources is what may be used and what is: policies, block devices, and what each unikernel has booked, from before it is started until it is
// not to be started again. It decides alone from what it holds, in the words of albatross where those are known; its holder locks it.
//
// Its invariant: no policy allows more than one above it, and no more is booked or made in a path than its policy and those above
// allow. Only the policy that comes from the machine may break it, when the machine has become smaller.
type resources struct {
	policies map[albatross.Path]albatross.Policy
	machine  bool // the policy of the root comes from the machine
	booked   map[albatross.Name]albatross.Args
	blocks   map[albatross.Name]int  // size in MB
	busy     map[albatross.Name]bool // block devices that are being made, filled or read out
}

func newResources() *resources {
	return &resources{
		policies: make(map[albatross.Path]albatross.Policy), booked: make(map[albatross.Name]albatross.Args),
		blocks: make(map[albatross.Name]int), busy: make(map[albatross.Name]bool),
	}
}

// above lists the paths from path up that have policies.
func (r *resources) above(path albatross.Path) (paths []albatross.Path) {
	for ok := true; ok; path, ok = path.Parent() {
		if _, set := r.policies[path]; set {
			paths = append(paths, path)
		}
	}
	return paths
}

// below lists the paths that have policies in path, itself included, in alphabetical order.
func (r *resources) below(path albatross.Path) (paths []albatross.Path) {
	for other := range r.policies {
		if path.Contains(other) {
			paths = append(paths, other)
		}
	}
	slices.SortFunc(paths, func(a, b albatross.Path) int { return strings.Compare(a.String(), b.String()) })
	return paths
}

// usage is what is booked in a path.
type usage struct {
	unikernels, memory int
	cpus               []int
	bridges            []string
}

// used sums up what is booked in a path, by all but one name.
func (r *resources) used(path albatross.Path, but albatross.Name) (u usage) {
	for name, args := range r.booked {
		if name == but || !path.Contains(name.Path()) {
			continue
		}
		u.unikernels++
		u.memory += args.Memory
		u.cpus = append(u.cpus, args.CPUIDs...)
		u.bridges = append(u.bridges, bridgeNames(args)...)
	}
	u.cpus, u.bridges = sorted(u.cpus), sorted(u.bridges)
	return u
}

// checkPolicy says whether p may be the policy of path: beside those above and below, and what runs.
func (r *resources) checkPolicy(path albatross.Path, p albatross.Policy) error {
	if p.Unikernels < 0 || p.Memory < 0 || p.Block != nil && *p.Block < 0 || len(p.CPUIDs) > 0 && slices.Min(p.CPUIDs) < 0 {
		return refusal("a policy cannot have negative numbers")
	}
	for _, other := range r.above(path) {
		if other == path {
			continue
		}
		if err := contains(r.policies[other], p); err != nil {
			return err
		}
	}
	for _, other := range r.below(path) {
		if other == path {
			continue
		}
		if err := contains(p, r.policies[other]); err != nil {
			return err
		}
	}
	if err := allowsRunning(p, r.used(path, albatross.Name{})); err != nil {
		return err
	}
	if used := r.blockUsed(path); used > 0 && (p.Block == nil || *p.Block < used) {
		return refuse("block devices would exceed the limit set by policy to %d MB, used %d MB", blockLimit(p), used)
	}
	return nil
}

// contains says whether super allows all that sub does.
func contains(super, sub albatross.Policy) error {
	switch {
	case super.Unikernels < sub.Unikernels:
		return refuse("policy above allows %d unikernels, which is fewer than %d", super.Unikernels, sub.Unikernels)
	case super.Memory < sub.Memory:
		return refuse("policy above allows %d MB memory, which is fewer than %d MB", super.Memory, sub.Memory)
	}
	if strange := without(sub.CPUIDs, super.CPUIDs); len(strange) > 0 {
		return refuse("policy above does not allow CPUids %s", list(strange))
	}
	if strange := without(sub.Bridges, super.Bridges); len(strange) > 0 {
		return refuse("policy above allows bridge(s) %s, which is not a superset of %s", list(sorted(super.Bridges)), list(sorted(sub.Bridges)))
	}
	switch {
	case sub.Block == nil:
		return nil
	case super.Block == nil:
		return refuse("policy above allows no block storage, which is fewer than %d MB", *sub.Block)
	case *super.Block < *sub.Block:
		return refuse("policy above allows %d MB block storage, which is fewer than %d MB", *super.Block, *sub.Block)
	}
	return nil
}

// allowsRunning says whether p allows what is booked already.
func allowsRunning(p albatross.Policy, u usage) error {
	switch {
	case u.unikernels > p.Unikernels:
		return refuse("unikernel would exceed running unikernel limit set by policy to %d, running %d", p.Unikernels, u.unikernels)
	case u.memory > p.Memory:
		return refuse("unikernel would exceed running memory limit set by policy to %d MB, used %d MB", p.Memory, u.memory)
	case len(without(u.cpus, p.CPUIDs)) > 0:
		return refuse("policy allows CPUids %s, which is not a superset of %s", list(sorted(p.CPUIDs)), list(u.cpus))
	case len(without(u.bridges, p.Bridges)) > 0:
		return refuse("policy allows bridges %s, which is not a superset of %s", list(sorted(p.Bridges)), list(u.bridges))
	}
	return nil
}

// checkUnikernel says whether a unikernel may run with args, in place of the one that has booked under its name.
func (r *resources) checkUnikernel(name albatross.Name, args albatross.Args) error {
	for _, path := range r.above(name.Path()) {
		p, u := r.policies[path], r.used(path, name)
		switch {
		case u.unikernels >= p.Unikernels:
			return refuse("maximum amount of unikernels (%d) reached", p.Unikernels)
		case args.Memory > p.Memory-u.memory:
			return refuse("maximum allowed memory (%d, used %d) would be exceeded (requesting %d)", p.Memory, u.memory, args.Memory)
		}
		if strange := without(args.CPUIDs, p.CPUIDs); len(strange) > 0 {
			return refuse("CPUids %s are not allowed by policy", list(strange))
		}
		if strange := without(bridgeNames(args), p.Bridges); len(strange) > 0 {
			return refuse("bridges %s not allowed by policy", list(strange))
		}
	}
	return r.checkBlocks(name, args)
}

// book is [resources.checkUnikernel], and counts what args use from then on.
func (r *resources) book(name albatross.Name, args albatross.Args) error {
	if err := r.checkUnikernel(name, args); err != nil {
		return err
	}
	r.booked[name] = args
	return nil
}

// cpus lists those of the machine's CPUs that a unikernel may run on: the ones of args or, if it has none, all that policy allows.
func (r *resources) cpus(name albatross.Name, args albatross.Args, machine []int) []int {
	if len(args.CPUIDs) > 0 {
		return args.CPUIDs
	}
	for _, path := range r.above(name.Path()) {
		strange := without(machine, r.policies[path].CPUIDs)
		machine = without(machine, strange)
	}
	return machine
}

// list returns the policies of path and below, named from there.
func (r *resources) list(path albatross.Path) albatross.Policies {
	reply := albatross.Policies{}
	for _, other := range r.below(path) {
		shown, _ := path.Relative(other.Name()) // it is below
		reply = append(reply, albatross.NamedPolicy{Name: shown, Policy: r.policies[other]})
	}
	return reply
}

// stored lists the policies that are to stay on the disk: all that did not come from the machine.
func (r *resources) stored() []albatross.NamedPolicy {
	all := r.list(albatross.Path{})
	if r.machine {
		all = all[1:] // the root is the first
	}
	return all
}

// samePolicy says whether two policies allow the same.
func samePolicy(a, b albatross.Policy) bool {
	sameBlock := a.Block == b.Block || a.Block != nil && b.Block != nil && *a.Block == *b.Block
	return a.Unikernels == b.Unikernels && a.Memory == b.Memory && sameBlock &&
		slices.Equal(sorted(a.CPUIDs), sorted(b.CPUIDs)) && slices.Equal(sorted(a.Bridges), sorted(b.Bridges))
}

// bridgeNames lists the bridges that args use.
func bridgeNames(args albatross.Args) (names []string) {
	for _, b := range args.Bridges {
		names = append(names, bridgeName(b))
	}
	return names
}

// sorted returns the elements in order, each once.
func sorted[T cmp.Ordered](s []T) []T { return slices.Compact(slices.Sorted(slices.Values(s))) }

// without returns the elements of s that are not in other, in order, each once.
func without[T cmp.Ordered](s, other []T) []T {
	return sorted(slices.DeleteFunc(slices.Clone(s), func(v T) bool { return slices.Contains(other, v) }))
}

// list joins the elements for people.
func list[T any](s []T) string {
	words := make([]string, len(s))
	for i, v := range s {
		words[i] = fmt.Sprint(v)
	}
	return strings.Join(words, ", ")
}
