package albatross

import (
	"fmt"
	"net"

	"golang.org/x/crypto/cryptobyte"
	"golang.org/x/crypto/cryptobyte/asn1"
)

// Generation says which form a configuration, new arguments or an info has on the wire. The zero value is the newest.
type Generation uint8

// The generations, newest first.
const (
	V5 Generation = iota // albatross 2.7: several CPU ids, CPUs, Linux boot partition
	V4                   // albatross 2.6: one CPU id; startup and add name
	V3                   // albatross 2.4 and 2.5: one CPU id, neither startup nor add name
	V2                   // albatross 1.5 to 2.3: as V3, but infos tell less and a restart takes no arguments; for clients only
)

// String returns "v5" to "v2".
func (g Generation) String() string { return fmt.Sprintf("v%d", 5-int(g)) }

// tag returns the tag that a choice has in generation g, of those from the newest to the oldest; 0 if it has none.
func (g Generation) tag(b *cryptobyte.Builder, tags [4]uint8) uint8 {
	if g > V2 {
		valueError(b, "generation", "%d is unknown", uint8(g))
		return 0
	}
	if tags[g] == 0 {
		valueError(b, "generation", "%v does not have it", g)
	}
	return tags[g]
}

// Typ is what runs an image.
type Typ uint8

// The types of unikernels.
const (
	Solo5 Typ = iota
	BHyve
)

// String returns "solo5" or "bhyve".
func (t Typ) String() string {
	switch t {
	case Solo5:
		return "solo5"
	case BHyve:
		return "bhyve"
	}
	return fmt.Sprintf("typ(%d)", uint8(t))
}

// FailBehaviour says what happens after a unikernel exits. The zero value lets it be.
type FailBehaviour struct {
	Restart   bool
	ExitCodes []int // that cause a restart; empty means all. No order, each once
}

// Block gives a block device to a unikernel.
type Block struct {
	Name       string // as in the image's manifest
	Device     string // of the host; empty means Name
	SectorSize int    // in bytes; 0 means the daemon's default
}

// Bridge gives a network device to a unikernel.
type Bridge struct {
	Netif  string           // as in the image's manifest
	Bridge string           // of the host; empty means Netif
	MAC    net.HardwareAddr // nil means what [MAC] returns for Netif
}

// Args is the part of a configuration that a restart can replace.
type Args struct {
	Fail               FailBehaviour
	Startup            *int     // place in the order of start, lowest first; nil means 50. V4 and newer
	AddName            bool     // pass --name=LABEL. V4 and newer; V3 reads as true
	CPUIDs             []int    // to be pinned to: no order, each once. Exactly one before V5
	Memory             int      // in MB
	Blocks             []Block  // no order
	Bridges            []Bridge // no order
	Arguments          []string // nil and empty differ on the wire
	CPUs               int      // V5; 1 in what is read from older ones. Solo5 has one whatever it says
	LinuxBootPartition *string  // V5, for BHyve
}

// Config is what a unikernel is created from. Fields that a [Generation] does not have are not sent to a server of that generation.
type Config struct {
	Typ        Typ
	Compressed bool // Image is a zlib stream, see [Compress]
	Image      []byte
	Args
}

func readTyp(c *cursor, field string) Typ {
	n, c := c.choice(field)
	c.null("")
	c.end()
	if n > uint8(BHyve) {
		c.unknown(n)
	}
	return Typ(n)
}

func addTyp(b *cryptobyte.Builder, t Typ) {
	if t > BHyve {
		valueError(b, "typ", "%v is unknown", t)
	}
	addExplicit(b, uint8(t), addNull)
}

func readFail(c *cursor) (f FailBehaviour) {
	n, c := c.choice("fail")
	switch n {
	case 0:
		c.null("quit")
	case 1:
		f.Restart = true
		if codes := c.integerSet(asn1.SET, "restart"); len(codes) > 0 {
			f.ExitCodes = codes
		}
	default:
		c.unknown(n)
	}
	c.end()
	return f
}

func addFail(b *cryptobyte.Builder, f FailBehaviour) {
	if !f.Restart {
		addExplicit(b, 0, addNull)
		return
	}
	addExplicit(b, 1, func(b *cryptobyte.Builder) { addIntegerSet(b, "fail.restart", f.ExitCodes) })
}

// readConfig reads a configuration of generation g.
func readConfig(c *cursor, field string, g Generation) (cfg Config) {
	c = c.sequence(field)
	defer c.end()
	cfg.Typ = readTyp(c, "typ")
	cfg.Compressed = c.boolean("compressed")
	cfg.Image = c.octets("image")
	cfg.AddName = true
	if g < V3 {
		readStartup(c, &cfg.Args)
	}
	cfg.Fail = readFail(c)
	readResources(c, &cfg.Args, g)
	return cfg
}

// addConfig writes a configuration in the form of generation g.
func addConfig(b *cryptobyte.Builder, cfg Config, g Generation) {
	addSequence(b, func(b *cryptobyte.Builder) {
		addTyp(b, cfg.Typ)
		b.AddASN1Boolean(cfg.Compressed)
		addOctets(b, cfg.Image)
		if g < V3 {
			addStartup(b, cfg.Args)
		}
		addFail(b, cfg.Fail)
		addResources(b, cfg.Args, g)
	})
}

// readArgs reads new arguments of generation g. Unlike in a configuration, the fail behaviour comes first.
func readArgs(c *cursor, field string, g Generation) (a Args) {
	c = c.sequence(field)
	defer c.end()
	a.AddName = true
	a.Fail = readFail(c)
	if g < V3 {
		readStartup(c, &a)
	}
	readResources(c, &a, g)
	return a
}

func addArgs(b *cryptobyte.Builder, a Args, g Generation) {
	addSequence(b, func(b *cryptobyte.Builder) {
		addFail(b, a.Fail)
		if g < V3 {
			addStartup(b, a)
		}
		addResources(b, a, g)
	})
}

func readStartup(c *cursor, a *Args) {
	a.Startup = readOptInteger(c, "startup")
	a.AddName = c.boolean("addName")
}

func addStartup(b *cryptobyte.Builder, a Args) {
	addOptInteger(b, "startup", a.Startup)
	b.AddASN1Boolean(a.AddName)
}

// readResources reads what configurations and arguments end with.
func readResources(c *cursor, a *Args, g Generation) {
	a.CPUIDs = readCPUIDs(c, g)
	a.Memory = c.integer("memory")
	if c.next(contextTag(0)) {
		a.Blocks = readBlocks(c.explicit(0, "blocks"))
	}
	if c.next(contextTag(1)) {
		a.Bridges = readBridges(c.explicit(1, "bridges"))
	}
	a.Arguments = readArguments(c)
	a.CPUs = 1
	if g != V5 {
		return
	}
	if c.next(contextTag(3)) {
		a.CPUs = readExplicitInteger(c, 3, "cpus")
	}
	a.LinuxBootPartition = readOptText(c, 4, "linuxBootPartition")
}

func addResources(b *cryptobyte.Builder, a Args, g Generation) {
	addCPUIDs(b, a.CPUIDs, g)
	addInteger(b, "memory", a.Memory)
	if len(a.Blocks) > 0 {
		addExplicit(b, 0, func(b *cryptobyte.Builder) { addSetOf(b, a.Blocks, addBlock) })
	}
	if len(a.Bridges) > 0 {
		addExplicit(b, 1, func(b *cryptobyte.Builder) { addSetOf(b, a.Bridges, addBridge) })
	}
	addArguments(b, a.Arguments)
	if g != V5 {
		return
	}
	addExplicit(b, 3, func(b *cryptobyte.Builder) { addInteger(b, "cpus", a.CPUs) })
	addOptText(b, 4, a.LinuxBootPartition)
}

// readCPUIDs reads the CPU ids of a configuration, arguments or info: one before V5, a set since.
func readCPUIDs(c *cursor, g Generation) []int {
	if g != V5 {
		return []int{c.integer("cpuid")}
	}
	return c.integerSet(asn1.SET, "cpuids")
}

func addCPUIDs(b *cryptobyte.Builder, ids []int, g Generation) {
	if g == V5 {
		addIntegerSet(b, "cpuids", ids)
		return
	}
	ids = ordered(ids)
	if len(ids) != 1 {
		valueError(b, "cpuid", "%d CPU ids given, generation %v has exactly one", len(ids), g)
		return
	}
	addInteger(b, "cpuid", ids[0])
}

func readBlocks(c *cursor) (blocks []Block) {
	for set := c.set(""); set.more(); {
		e := set.sequence("block")
		block := Block{Name: e.text("name")}
		if e.next(asn1.UTF8String) {
			block.Device = e.text("device")
		}
		if e.next(asn1.INTEGER) {
			block.SectorSize = e.integer("sectorSize")
		}
		e.end()
		blocks = append(blocks, block)
	}
	c.end()
	return blocks
}

func addBlock(b *cryptobyte.Builder, block Block) {
	addSequence(b, func(b *cryptobyte.Builder) {
		addText(b, block.Name)
		if block.Device != "" {
			addText(b, block.Device)
		}
		if block.SectorSize != 0 {
			addInteger(b, "blocks.sectorSize", block.SectorSize)
		}
	})
}

func readBridges(c *cursor) (bridges []Bridge) {
	for set := c.set(""); set.more(); {
		e := set.sequence("bridge")
		bridge := Bridge{Netif: e.text("netif")}
		if e.next(asn1.UTF8String) {
			bridge.Bridge = e.text("bridge")
		}
		if e.next(asn1.OCTET_STRING) {
			bridge.MAC = e.mac("mac")
		}
		e.end()
		bridges = append(bridges, bridge)
	}
	c.end()
	return bridges
}

func addBridge(b *cryptobyte.Builder, bridge Bridge) {
	addSequence(b, func(b *cryptobyte.Builder) {
		addText(b, bridge.Netif)
		if bridge.Bridge != "" {
			addText(b, bridge.Bridge)
		}
		if bridge.MAC != nil {
			addMAC(b, "bridges.mac", bridge.MAC)
		}
	})
}

// readArguments reads the optional arguments: [2] in configurations, arguments and infos.
func readArguments(c *cursor) []string {
	if !c.next(contextTag(2)) {
		return nil
	}
	e := c.explicit(2, "arguments")
	defer e.end()
	return e.texts("")
}

func addArguments(b *cryptobyte.Builder, args []string) {
	if args != nil {
		addExplicit(b, 2, func(b *cryptobyte.Builder) { addTexts(b, args) })
	}
}

func readOptInteger(c *cursor, field string) *int {
	if !c.next(asn1.INTEGER) {
		return nil
	}
	return new(c.integer(field))
}

func readExplicitInteger(c *cursor, n uint8, field string) int {
	e := c.explicit(n, field)
	defer e.end()
	return e.integer("")
}

func readOptText(c *cursor, n uint8, field string) *string {
	if !c.next(contextTag(n)) {
		return nil
	}
	e := c.explicit(n, field)
	defer e.end()
	return new(e.text(""))
}

func addOptText(b *cryptobyte.Builder, n uint8, v *string) {
	if v != nil {
		addExplicit(b, n, func(b *cryptobyte.Builder) { addText(b, *v) })
	}
}
