package albatross

import (
	"time"

	"golang.org/x/crypto/cryptobyte"
)

// Success answers a command that was carried out.
type Success interface {
	Payload
	addSuccess(*cryptobyte.Builder)
}

// What a success can say.
type (
	// Empty is a success that says nothing more.
	Empty struct{}
	// Text is a success in words, such as "created unikernel".
	Text string
	// Policies answers [PolicyInfo].
	Policies []NamedPolicy
	// Blocks answers [BlockInfo].
	Blocks []BlockDevice
	// Image answers [UnikernelGet].
	Image struct {
		Compressed bool
		Image      []byte
	}
	// OldBlockImage answers [OldBlockDump].
	OldBlockImage struct {
		Compressed bool
		Image      []byte
	}
	// BlockImage answers [BlockDump]: data follows.
	BlockImage struct{ Compressed bool }
	// Consoles answers [ConsoleListInactive].
	Consoles []Name
	// Unikernels answers [UnikernelInfo], in the generation that was asked for.
	Unikernels struct {
		List       []Running
		Generation Generation
	}
)

// BlockDevice is a block device of the host.
type BlockDevice struct {
	Name   Name
	Size   int  // in MB
	Active bool // a unikernel uses it
}

func (Empty) payload()         {}
func (Text) payload()          {}
func (Policies) payload()      {}
func (Blocks) payload()        {}
func (Image) payload()         {}
func (OldBlockImage) payload() {}
func (BlockImage) payload()    {}
func (Consoles) payload()      {}
func (Unikernels) payload()    {}

func (Empty) addSuccess(b *cryptobyte.Builder) { addExplicit(b, 0, addNull) }

func (m Text) addSuccess(b *cryptobyte.Builder) {
	addExplicit(b, 1, func(b *cryptobyte.Builder) { addText(b, string(m)) })
}

func (m Policies) addSuccess(b *cryptobyte.Builder) {
	addExplicit(b, 2, func(b *cryptobyte.Builder) { addPolicies(b, m) })
}

func (m Blocks) addSuccess(b *cryptobyte.Builder) {
	addExplicit(b, 4, func(b *cryptobyte.Builder) {
		addSequence(b, func(b *cryptobyte.Builder) {
			for _, d := range m {
				addSequence(b, func(b *cryptobyte.Builder) {
					addName(b, d.Name)
					addInteger(b, "blocks.size", d.Size)
					b.AddASN1Boolean(d.Active)
				})
			}
		})
	})
}

func (m Image) addSuccess(b *cryptobyte.Builder) {
	addExplicit(b, 6, func(b *cryptobyte.Builder) { addImage(b, m.Compressed, m.Image) })
}

func (m OldBlockImage) addSuccess(b *cryptobyte.Builder) {
	addExplicit(b, 7, func(b *cryptobyte.Builder) { addImage(b, m.Compressed, m.Image) })
}

func (m BlockImage) addSuccess(b *cryptobyte.Builder) {
	addExplicit(b, 10, func(b *cryptobyte.Builder) { b.AddASN1Boolean(m.Compressed) })
}

func (m Consoles) addSuccess(b *cryptobyte.Builder) {
	addExplicit(b, 12, func(b *cryptobyte.Builder) {
		addSequence(b, func(b *cryptobyte.Builder) {
			for _, n := range m {
				addName(b, n)
			}
		})
	})
}

func (m Unikernels) addSuccess(b *cryptobyte.Builder) {
	n := m.Generation.tag(b, [4]uint8{13, 11, 9, 5})
	addExplicit(b, n, func(b *cryptobyte.Builder) { addRunning(b, m.List, m.Generation) })
}

func readSuccess(c *cursor) Success {
	n, c := c.choice("success")
	defer c.end()
	switch n {
	case 0:
		c.null("empty")
		return Empty{}
	case 1:
		return Text(c.text("text"))
	case 2:
		return Policies(readPolicies(c))
	case 4:
		return readBlockDevices(c)
	case 5:
		return Unikernels{List: readRunning(c, V2), Generation: V2}
	case 6:
		compressed, image := readImage(c)
		return Image{Compressed: compressed, Image: image}
	case 7:
		compressed, image := readImage(c)
		return OldBlockImage{Compressed: compressed, Image: image}
	case 9:
		return Unikernels{List: readRunning(c, V3), Generation: V3}
	case 10:
		return BlockImage{Compressed: c.boolean("compressed")}
	case 11:
		return Unikernels{List: readRunning(c, V4), Generation: V4}
	case 12:
		return readConsoles(c)
	case 13:
		return Unikernels{List: readRunning(c, V5)}
	}
	c.unknown(n)
	return nil
}

func readBlockDevices(c *cursor) Blocks {
	list := Blocks{}
	for seq := c.sequence("blocks"); seq.more(); {
		e := seq.sequence("block")
		list = append(list, BlockDevice{Name: e.name("name"), Size: e.integer("size"), Active: e.boolean("active")})
		e.end()
	}
	return list
}

func readConsoles(c *cursor) Consoles {
	list := Consoles{}
	for seq := c.sequence("consoles"); seq.more(); {
		list = append(list, seq.name(""))
	}
	return list
}

// Data is one part of a stream.
type Data interface {
	Payload
	addData(*cryptobyte.Builder)
}

type (
	// ConsoleData is a line that a unikernel wrote.
	ConsoleData struct {
		Time time.Time // in whole milliseconds
		Line string    // without its end; not necessarily UTF-8
	}
	// BlockData is a part of a block device.
	BlockData struct {
		Data []byte // nil ends the stream
	}
)

func (ConsoleData) payload() {}
func (BlockData) payload()   {}
func (Stats) payload()       {}

func (m Stats) addData(b *cryptobyte.Builder) { addExplicit(b, 1, m.add) }

func (m ConsoleData) addData(b *cryptobyte.Builder) {
	addExplicit(b, 3, func(b *cryptobyte.Builder) {
		addSequence(b, func(b *cryptobyte.Builder) {
			addTime(b, "timestamp", m.Time)
			addText(b, m.Line)
		})
	})
}

func (m BlockData) addData(b *cryptobyte.Builder) {
	addExplicit(b, 4, func(b *cryptobyte.Builder) {
		if m.Data == nil {
			addExplicit(b, 1, addNull)
			return
		}
		addExplicit(b, 0, func(b *cryptobyte.Builder) { addOctets(b, m.Data) })
	})
}

func readData(c *cursor) Data {
	n, c := c.choice("data")
	defer c.end()
	switch n {
	case 1:
		return readStats(c)
	case 3:
		e := c.sequence("console")
		defer e.end()
		return ConsoleData{Time: e.time("timestamp"), Line: e.text("line")}
	case 4:
		return readBlockData(c)
	}
	c.unknown(n)
	return nil
}

func readBlockData(c *cursor) (m BlockData) {
	n, c := c.choice("block")
	defer c.end()
	switch n {
	case 0:
		m.Data = c.octets("some")
	case 1:
		c.null("none")
	default:
		c.unknown(n)
	}
	return m
}
