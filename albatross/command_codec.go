package albatross

import (
	"golang.org/x/crypto/cryptobyte"
	"golang.org/x/crypto/cryptobyte/asn1"
)

// addNested writes a command as choice n of group.
func addNested(b *cryptobyte.Builder, group, n uint8, add func(*cryptobyte.Builder)) {
	addExplicit(b, group, func(b *cryptobyte.Builder) { addExplicit(b, n, add) })
}

// The groups of commands.
const (
	groupConsole uint8 = iota
	groupStats
	_ // was the log
	groupUnikernel
	groupPolicy
	groupBlock
)

func (m ConsoleAdd) addCommand(b *cryptobyte.Builder) {
	addNested(b, groupConsole, 0, func(b *cryptobyte.Builder) { addInteger(b, "count", m.Count) })
}

func (m ConsoleSubscribe) addCommand(b *cryptobyte.Builder) {
	addNested(b, groupConsole, 2, func(b *cryptobyte.Builder) {
		if m.Since != nil {
			addExplicit(b, 0, func(b *cryptobyte.Builder) { addTime(b, "since", *m.Since) })
			return
		}
		addExplicit(b, 1, func(b *cryptobyte.Builder) { addInteger(b, "count", m.Count) })
	})
}

func (ConsoleListInactive) addCommand(b *cryptobyte.Builder) {
	addNested(b, groupConsole, 3, addNull)
}

func (m StatsAdd) addCommand(b *cryptobyte.Builder) {
	addNested(b, groupStats, 0, func(b *cryptobyte.Builder) {
		addSequence(b, func(b *cryptobyte.Builder) {
			addText(b, m.VMMDev)
			addInteger(b, "pid", m.PID)
			addSequence(b, func(b *cryptobyte.Builder) {
				for _, tap := range m.Taps {
					addSequence(b, func(b *cryptobyte.Builder) {
						addText(b, tap.Bridge)
						addText(b, tap.Tap)
					})
				}
			})
		})
	})
}

func (StatsRemove) addCommand(b *cryptobyte.Builder)    { addNested(b, groupStats, 1, addNull) }
func (StatsSubscribe) addCommand(b *cryptobyte.Builder) { addNested(b, groupStats, 2, addNull) }
func (StatsInitial) addCommand(b *cryptobyte.Builder)   { addNested(b, groupStats, 3, addNull) }

func (m UnikernelInfo) addCommand(b *cryptobyte.Builder) {
	addNested(b, groupUnikernel, m.Generation.tag(b, [4]uint8{19, 18, 15, 7}), addNull)
}

func (m UnikernelGet) addCommand(b *cryptobyte.Builder) {
	addNested(b, groupUnikernel, 11, func(b *cryptobyte.Builder) { addInteger(b, "level", m.Level) })
}

func (m UnikernelCreate) addCommand(b *cryptobyte.Builder) {
	n := m.Generation.tag(b, [4]uint8{20, 16, 9, 9})
	if m.Force {
		n++
	}
	addNested(b, groupUnikernel, n, func(b *cryptobyte.Builder) { addConfig(b, m.Config, m.Generation) })
}

func (m UnikernelRestart) addCommand(b *cryptobyte.Builder) {
	if m.Args == nil && m.Generation == V2 {
		addNested(b, groupUnikernel, 12, addNull)
		return
	}
	addNested(b, groupUnikernel, 14, func(b *cryptobyte.Builder) {
		if m.Args == nil {
			addExplicit(b, 0, addNull)
			return
		}
		n := m.Generation.tag(b, [4]uint8{3, 2, 1})
		addExplicit(b, n, func(b *cryptobyte.Builder) { addArgs(b, *m.Args, m.Generation) })
	})
}

func (UnikernelDestroy) addCommand(b *cryptobyte.Builder) { addNested(b, groupUnikernel, 3, addNull) }

func (PolicyInfo) addCommand(b *cryptobyte.Builder) { addNested(b, groupPolicy, 0, addNull) }

func (m PolicyAdd) addCommand(b *cryptobyte.Builder) {
	addNested(b, groupPolicy, 1, func(b *cryptobyte.Builder) { addPolicy(b, m.Policy) })
}

func (PolicyRemove) addCommand(b *cryptobyte.Builder) { addNested(b, groupPolicy, 2, addNull) }

func (BlockInfo) addCommand(b *cryptobyte.Builder) { addNested(b, groupBlock, 0, addNull) }

func (m BlockAdd) addCommand(b *cryptobyte.Builder) {
	addNested(b, groupBlock, 1, func(b *cryptobyte.Builder) { addInteger(b, "size", m.Size) })
}

func (BlockRemove) addCommand(b *cryptobyte.Builder) { addNested(b, groupBlock, 2, addNull) }

func (m OldBlockAdd) addCommand(b *cryptobyte.Builder) {
	addNested(b, groupBlock, 3, func(b *cryptobyte.Builder) {
		addSequence(b, func(b *cryptobyte.Builder) {
			addInteger(b, "size", m.Size)
			b.AddASN1Boolean(m.Compressed)
			if m.Data != nil {
				addOctets(b, m.Data)
			}
		})
	})
}

func (m OldBlockSet) addCommand(b *cryptobyte.Builder) {
	addNested(b, groupBlock, 4, func(b *cryptobyte.Builder) { addImage(b, m.Compressed, m.Data) })
}

func (m OldBlockDump) addCommand(b *cryptobyte.Builder) {
	addNested(b, groupBlock, 5, func(b *cryptobyte.Builder) { addInteger(b, "level", m.Level) })
}

func (m BlockDump) addCommand(b *cryptobyte.Builder) {
	addNested(b, groupBlock, 6, func(b *cryptobyte.Builder) { addInteger(b, "level", m.Level) })
}

func (m BlockSet) addCommand(b *cryptobyte.Builder) {
	addNested(b, groupBlock, 7, func(b *cryptobyte.Builder) { b.AddASN1Boolean(m.Compressed) })
}

// addImage writes what images of unikernels and of block devices have in common.
func addImage(b *cryptobyte.Builder, compressed bool, data []byte) {
	addSequence(b, func(b *cryptobyte.Builder) {
		b.AddASN1Boolean(compressed)
		addOctets(b, data)
	})
}

func readImage(c *cursor) (compressed bool, data []byte) {
	c = c.sequence("")
	defer c.end()
	return c.boolean("compressed"), c.octets("data")
}

func readCommand(c *cursor) Command {
	n, c := c.choice("command")
	defer c.end()
	switch n {
	case groupConsole:
		return readConsoleCommand(c)
	case groupStats:
		return readStatsCommand(c)
	case groupUnikernel:
		return readUnikernelCommand(c)
	case groupPolicy:
		return readPolicyCommand(c)
	case groupBlock:
		return readBlockCommand(c)
	}
	c.unknown(n)
	return nil
}

func readConsoleCommand(c *cursor) Command {
	n, c := c.choice("console")
	defer c.end()
	switch n {
	case 0:
		return ConsoleAdd{Count: c.integer("count")}
	case 2:
		return readSubscribe(c)
	case 3:
		c.null("listInactive")
		return ConsoleListInactive{}
	}
	c.unknown(n)
	return nil
}

func readSubscribe(c *cursor) (m ConsoleSubscribe) {
	n, c := c.choice("subscribe")
	defer c.end()
	switch n {
	case 0:
		m.Since = new(c.time("since"))
	case 1:
		m.Count = c.integer("count")
	default:
		c.unknown(n)
	}
	return m
}

func readStatsCommand(c *cursor) Command {
	n, c := c.choice("statistics")
	defer c.end()
	switch n {
	case 0:
		return readStatsAdd(c)
	case 1:
		c.null("remove")
		return StatsRemove{}
	case 2:
		c.null("subscribe")
		return StatsSubscribe{}
	case 3:
		c.null("initial")
		return StatsInitial{}
	}
	c.unknown(n)
	return nil
}

func readStatsAdd(c *cursor) (m StatsAdd) {
	c = c.sequence("add")
	defer c.end()
	m.VMMDev = c.text("vmmdev")
	m.PID = c.integer("pid")
	for seq := c.sequence("network"); seq.more(); {
		e := seq.sequence("tap")
		m.Taps = append(m.Taps, Tap{Bridge: e.text("bridge"), Tap: e.text("tap")})
		e.end()
	}
	return m
}

func readUnikernelCommand(c *cursor) Command {
	n, c := c.choice("unikernel")
	defer c.end()
	switch n {
	case 3:
		c.null("destroy")
		return UnikernelDestroy{}
	case 9, 10:
		return UnikernelCreate{Config: readConfig(c, "create", V3), Force: n == 10, Generation: V3}
	case 11:
		return UnikernelGet{Level: c.integer("get")}
	case 14:
		return readRestart(c)
	case 15, 18, 19:
		c.null("info")
		return UnikernelInfo{Generation: map[uint8]Generation{15: V3, 18: V4, 19: V5}[n]}
	case 16, 17:
		return UnikernelCreate{Config: readConfig(c, "create", V4), Force: n == 17, Generation: V4}
	case 20, 21:
		return UnikernelCreate{Config: readConfig(c, "create", V5), Force: n == 21}
	}
	c.unknown(n)
	return nil
}

func readRestart(c *cursor) (m UnikernelRestart) {
	n, c := c.choice("restart")
	defer c.end()
	switch n {
	case 0:
		c.null("same")
		return m
	case 1:
		m.Generation = V3
	case 2:
		m.Generation = V4
	case 3:
	default:
		c.unknown(n)
		return m
	}
	m.Args = new(readArgs(c, "arguments", m.Generation))
	return m
}

func readPolicyCommand(c *cursor) Command {
	n, c := c.choice("policy")
	defer c.end()
	switch n {
	case 0:
		c.null("info")
		return PolicyInfo{}
	case 1:
		return PolicyAdd{Policy: readPolicy(c)}
	case 2:
		c.null("remove")
		return PolicyRemove{}
	}
	c.unknown(n)
	return nil
}

func readBlockCommand(c *cursor) Command {
	n, c := c.choice("block")
	defer c.end()
	switch n {
	case 0:
		c.null("info")
		return BlockInfo{}
	case 1:
		return BlockAdd{Size: c.integer("add")}
	case 2:
		c.null("remove")
		return BlockRemove{}
	case 3:
		return readOldBlockAdd(c)
	case 4:
		compressed, data := readImage(c)
		return OldBlockSet{Compressed: compressed, Data: data}
	case 5:
		return OldBlockDump{Level: c.integer("dump")}
	case 6:
		return BlockDump{Level: c.integer("dump")}
	case 7:
		return BlockSet{Compressed: c.boolean("set")}
	}
	c.unknown(n)
	return nil
}

func readOldBlockAdd(c *cursor) (m OldBlockAdd) {
	c = c.sequence("add")
	defer c.end()
	m.Size = c.integer("size")
	m.Compressed = c.boolean("compressed")
	if c.next(asn1.OCTET_STRING) {
		m.Data = c.octets("data")
	}
	return m
}
