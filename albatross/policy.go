package albatross

import (
	"golang.org/x/crypto/cryptobyte"
	"golang.org/x/crypto/cryptobyte/asn1"
)

// Policy is what the unikernels of a path and below may use together.
type Policy struct {
	CPUIDs     []int // no order, each once
	Unikernels int
	Memory     int      // in MB
	Block      *int     // in MB; nil means no block devices
	Bridges    []string // no order, each once
}

// NamedPolicy is a policy and the path that it is set for, as a name without a label.
type NamedPolicy struct {
	Name Name
	Policy
}

func readPolicy(c *cursor) (p Policy) {
	c = c.sequence("policy")
	defer c.end()
	p.CPUIDs = c.integerSet(asn1.SEQUENCE, "cpuids")
	p.Unikernels = c.integer("unikernels")
	p.Memory = c.integer("memory")
	p.Block = readOptInteger(c, "block")
	p.Bridges = ordered(c.texts("bridges"))
	return p
}

func addPolicy(b *cryptobyte.Builder, p Policy) {
	addSequence(b, func(b *cryptobyte.Builder) {
		addSequence(b, func(b *cryptobyte.Builder) {
			for _, id := range ordered(p.CPUIDs) {
				addInteger(b, "policy.cpuids", id)
			}
		})
		addInteger(b, "policy.unikernels", p.Unikernels)
		addInteger(b, "policy.memory", p.Memory)
		addOptInteger(b, "policy.block", p.Block)
		addTexts(b, ordered(p.Bridges))
	})
}

func readPolicies(c *cursor) []NamedPolicy {
	list := []NamedPolicy{}
	for seq := c.sequence("policies"); seq.more(); {
		e := seq.sequence("policy")
		list = append(list, NamedPolicy{Name: e.name("name"), Policy: readPolicy(e)})
		e.end()
	}
	return list
}

func addPolicies(b *cryptobyte.Builder, list []NamedPolicy) {
	addSequence(b, func(b *cryptobyte.Builder) {
		for _, p := range list {
			addSequence(b, func(b *cryptobyte.Builder) {
				addName(b, p.Name)
				addPolicy(b, p.Policy)
			})
		}
	})
}
