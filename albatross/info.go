package albatross

import (
	"cmp"
	"net"
	"time"

	"golang.org/x/crypto/cryptobyte"
)

// Info is what a daemon tells about a unikernel that runs.
type Info struct {
	Typ                Typ
	Startup            *int // V4 and newer
	Fail               FailBehaviour
	CPUIDs             []int  // in order
	Memory             int    // in MB
	Digest             []byte // SHA-256 of the uncompressed image
	Blocks             []InfoBlock
	Bridges            []InfoBridge
	Arguments          []string
	Started            time.Time // in whole milliseconds; the Unix epoch if the server does not know
	CPUs               int
	LinuxBootPartition *string
}

// InfoBlock is a block device that a unikernel has.
type InfoBlock struct {
	UnikernelDevice, HostDevice string
	SectorSize                  int // in bytes
	Size                        int // in MB; not in V2
}

// InfoBridge is a network device that a unikernel has.
type InfoBridge struct {
	UnikernelDevice, HostDevice string           // HostDevice is the bridge
	MAC                         net.HardwareAddr // V2 may leave it out
}

// Running is a unikernel that runs, by its name.
type Running struct {
	Name Name
	Info
}

func readRunning(c *cursor, g Generation) []Running {
	list := []Running{}
	for seq := c.sequence("unikernels"); seq.more(); {
		e := seq.sequence("unikernel")
		list = append(list, Running{Name: e.name("name"), Info: readInfo(e, g)})
		e.end()
	}
	return list
}

func addRunning(b *cryptobyte.Builder, list []Running, g Generation) {
	addSequence(b, func(b *cryptobyte.Builder) {
		for _, r := range list {
			addSequence(b, func(b *cryptobyte.Builder) {
				addName(b, r.Name)
				addInfo(b, r.Info, g)
			})
		}
	})
}

func readInfo(c *cursor, g Generation) (i Info) {
	c = c.sequence("info")
	defer c.end()
	i.Typ = readTyp(c, "typ")
	if g < V3 {
		i.Startup = readOptInteger(c, "startup")
	}
	i.Fail = readFail(c)
	i.CPUIDs = readCPUIDs(c, g)
	i.Memory = c.integer("memory")
	i.Digest = c.octets("digest")
	if c.next(contextTag(0)) {
		i.Blocks = readInfoBlocks(c.explicit(0, "blocks"), g)
	}
	if c.next(contextTag(1)) {
		i.Bridges = readInfoBridges(c.explicit(1, "bridges"), g)
	}
	i.Arguments = readArguments(c)
	i.Started = time.Unix(0, 0).UTC()
	if g < V2 && c.next(contextTag(3)) {
		e := c.explicit(3, "started")
		i.Started = e.time("")
		e.end()
	}
	i.CPUs = 1
	if g != V5 {
		return i
	}
	if c.next(contextTag(4)) {
		i.CPUs = readExplicitInteger(c, 4, "cpus")
	}
	i.LinuxBootPartition = readOptText(c, 5, "linuxBootPartition")
	return i
}

func addInfo(b *cryptobyte.Builder, i Info, g Generation) {
	addSequence(b, func(b *cryptobyte.Builder) {
		addTyp(b, i.Typ)
		if g < V3 {
			addOptInteger(b, "startup", i.Startup)
		}
		addFail(b, i.Fail)
		addCPUIDs(b, i.CPUIDs, g)
		addInteger(b, "memory", i.Memory)
		addOctets(b, i.Digest)
		if len(i.Blocks) > 0 {
			addExplicit(b, 0, func(b *cryptobyte.Builder) { addSetOf(b, i.Blocks, infoBlockAdder(g)) })
		}
		if len(i.Bridges) > 0 {
			addExplicit(b, 1, func(b *cryptobyte.Builder) { addSetOf(b, i.Bridges, infoBridgeAdder(g)) })
		}
		addArguments(b, i.Arguments)
		if g < V2 {
			addExplicit(b, 3, func(b *cryptobyte.Builder) { addTime(b, "started", i.Started) })
		}
		if g != V5 {
			return
		}
		addExplicit(b, 4, func(b *cryptobyte.Builder) { addInteger(b, "cpus", i.CPUs) })
		addOptText(b, 5, i.LinuxBootPartition)
	})
}

func readInfoBlocks(c *cursor, g Generation) (list []InfoBlock) {
	if g == V2 { // as in a configuration
		for _, b := range readBlocks(c) {
			list = append(list, InfoBlock{UnikernelDevice: b.Name, HostDevice: cmp.Or(b.Device, b.Name), SectorSize: b.SectorSize})
		}
		return list
	}
	for set := c.set(""); set.more(); {
		e := set.sequence("block")
		list = append(list, InfoBlock{
			UnikernelDevice: e.text("unikernelDevice"), HostDevice: e.text("hostDevice"),
			SectorSize: e.integer("sectorSize"), Size: e.integer("size"),
		})
		e.end()
	}
	c.end()
	return list
}

func infoBlockAdder(g Generation) func(*cryptobyte.Builder, InfoBlock) {
	return func(b *cryptobyte.Builder, i InfoBlock) {
		if g == V2 {
			addBlock(b, Block{Name: i.UnikernelDevice, Device: i.HostDevice, SectorSize: i.SectorSize})
			return
		}
		addSequence(b, func(b *cryptobyte.Builder) {
			addText(b, i.UnikernelDevice)
			addText(b, i.HostDevice)
			addInteger(b, "blocks.sectorSize", i.SectorSize)
			addInteger(b, "blocks.size", i.Size)
		})
	}
}

func readInfoBridges(c *cursor, g Generation) (list []InfoBridge) {
	if g == V2 { // as in a configuration
		for _, b := range readBridges(c) {
			list = append(list, InfoBridge{UnikernelDevice: b.Netif, HostDevice: cmp.Or(b.Bridge, b.Netif), MAC: b.MAC})
		}
		return list
	}
	for set := c.set(""); set.more(); {
		e := set.sequence("bridge")
		list = append(list, InfoBridge{
			UnikernelDevice: e.text("unikernelDevice"), HostDevice: e.text("hostDevice"), MAC: e.mac("mac"),
		})
		e.end()
	}
	c.end()
	return list
}

func infoBridgeAdder(g Generation) func(*cryptobyte.Builder, InfoBridge) {
	return func(b *cryptobyte.Builder, i InfoBridge) {
		if g == V2 {
			addBridge(b, Bridge{Netif: i.UnikernelDevice, Bridge: i.HostDevice, MAC: i.MAC})
			return
		}
		addSequence(b, func(b *cryptobyte.Builder) {
			addText(b, i.UnikernelDevice)
			addText(b, i.HostDevice)
			addMAC(b, "bridges.mac", i.MAC)
		})
	}
}
