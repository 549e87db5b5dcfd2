package albatross

import (
	"fmt"
	"net"

	"golang.org/x/crypto/cryptobyte"
	"golang.org/x/crypto/cryptobyte/asn1"
)

// State is what a daemon keeps on disk: what it runs, and the policies. Names occur once in each list.
type State struct {
	Unikernels []NamedConfig
	Policies   []NamedPolicy
}

// NamedConfig is a unikernel's name and configuration.
type NamedConfig struct {
	Name   Name
	Config Config
}

// MarshalState encodes a state in the newest form, in the order given.
func MarshalState(s State) ([]byte, error) {
	size := 256
	for _, u := range s.Unikernels {
		size += len(u.Config.Image) + 512
	}
	b := cryptobyte.NewBuilder(make([]byte, 0, size))
	addExplicit(b, 6, func(b *cryptobyte.Builder) {
		addSequence(b, func(b *cryptobyte.Builder) {
			addSequence(b, func(b *cryptobyte.Builder) {
				for _, u := range s.Unikernels {
					addSequence(b, func(b *cryptobyte.Builder) {
						addName(b, u.Name)
						addConfig(b, u.Config, V5)
					})
				}
			})
			addPolicies(b, s.Policies)
		})
	})
	der, err := b.Bytes()
	if err != nil {
		return nil, fmt.Errorf("encode state: %w", err)
	}
	return der, nil
}

// UnmarshalState decodes a state in any form since albatross 1.0; images share memory with der.
// The error is a [*DecodeError].
func UnmarshalState(der []byte) (State, error) {
	return decode(der, "state", func(c *cursor) (s State) {
		n, c := c.choice("")
		defer c.end()
		generation := func(g Generation) func(*cursor) Config {
			return func(c *cursor) Config { return readConfig(c, "config", g) }
		}
		switch n {
		case 0:
			s.Unikernels = readConfigs(c, readConfigV1)
		case 1:
			s.Unikernels = readConfigs(c, readConfigV0)
		case 2:
			s.Unikernels = readConfigs(c, readConfigV2)
		case 3:
			s.Unikernels = readConfigs(c, generation(V3))
		case 4, 5, 6:
			c = c.sequence("")
			s.Unikernels = readConfigs(c, generation(V5+Generation(6-n)))
			s.Policies = readPolicies(c)
			unique(c, s.Policies, func(p NamedPolicy) Name { return p.Name })
			c.end()
		default:
			c.unknown(n)
		}
		return s
	})
}

func readConfigs(c *cursor, read func(*cursor) Config) []NamedConfig {
	list := []NamedConfig{}
	for seq := c.sequence("unikernels"); seq.more(); {
		e := seq.sequence("unikernel")
		list = append(list, NamedConfig{Name: e.name("name"), Config: read(e)})
		e.end()
	}
	unique(c, list, func(u NamedConfig) Name { return u.Name })
	return list
}

// unique fails if a name occurs twice.
func unique[T any](c *cursor, list []T, name func(T) Name) {
	seen := make(map[Name]bool, len(list))
	for _, v := range list {
		if n := name(v); seen[n] {
			c.fail(c.offset(), "", "%v occurs twice", n)
		} else {
			seen[n] = true
		}
	}
}

// readConfigV0 reads a configuration of albatross before 1.0.
func readConfigV0(c *cursor) (cfg Config) {
	c = c.sequence("config")
	defer c.end()
	cfg.AddName, cfg.CPUs = true, 1
	cfg.CPUIDs = []int{c.integer("cpuid")}
	cfg.Memory = c.integer("memory")
	if c.next(asn1.UTF8String) {
		cfg.Blocks = []Block{{Name: c.text("block")}}
	}
	if c.next(asn1.SEQUENCE) {
		cfg.Bridges = plainBridges(c.texts("bridges"))
	}
	n, image := c.choice("image")
	cfg.Compressed = n == 2 // hvt-amd64-compressed; 0 is hvt-amd64, 1 hvt-arm64
	cfg.Image = image.octets("")
	if n > 2 {
		image.unknown(n)
	}
	image.end()
	if c.next(asn1.SEQUENCE) {
		cfg.Arguments = c.texts("arguments")
	}
	return cfg
}

// readConfigV1 reads a configuration of albatross 1.0.
func readConfigV1(c *cursor) (cfg Config) {
	c = c.sequence("config")
	defer c.end()
	readConfigHead(c, &cfg)
	if c.next(contextTag(1)) {
		cfg.Bridges = plainBridges(readTextSet(c.explicit(1, "bridges")))
	}
	cfg.Arguments = readArguments(c)
	return cfg
}

// readConfigV2 reads a configuration of albatross 1.1 to 1.4.
func readConfigV2(c *cursor) (cfg Config) {
	c = c.sequence("config")
	defer c.end()
	readConfigHead(c, &cfg)
	if c.next(contextTag(1)) {
		e := c.explicit(1, "bridges")
		for seq := e.sequence(""); seq.more(); {
			pair := seq.sequence("bridge")
			bridge := Bridge{Netif: pair.text("netif")}
			if pair.next(asn1.UTF8String) {
				bridge.Bridge = pair.text("bridge")
			}
			pair.end()
			cfg.Bridges = append(cfg.Bridges, bridge)
		}
		e.end()
	}
	cfg.Arguments = readArguments(c)
	return cfg
}

// readConfigHead reads what configurations of albatross 1.0 to 1.4 begin with, to the block devices.
func readConfigHead(c *cursor, cfg *Config) {
	cfg.AddName, cfg.CPUs = true, 1
	cfg.Typ = readTyp(c, "typ")
	cfg.Compressed = c.boolean("compressed")
	cfg.Image = c.octets("image")
	cfg.Fail = readFail(c)
	cfg.CPUIDs = []int{c.integer("cpuid")}
	cfg.Memory = c.integer("memory")
	if c.next(contextTag(0)) {
		for _, name := range readTextSet(c.explicit(0, "blocks")) {
			cfg.Blocks = append(cfg.Blocks, Block{Name: name})
		}
	}
}

func readTextSet(c *cursor) (list []string) {
	for set := c.set(""); set.more(); {
		list = append(list, set.text(""))
	}
	c.end()
	return list
}

func plainBridges(names []string) (list []Bridge) {
	for _, name := range names {
		list = append(list, Bridge{Netif: name, MAC: net.HardwareAddr(nil)})
	}
	return list
}
