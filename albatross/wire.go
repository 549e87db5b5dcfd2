package albatross

import (
	"fmt"

	"golang.org/x/crypto/cryptobyte"
)

// Version is the version of the protocol that every message carries; there is no other since albatross 1.5.
const Version = 5

// Header starts every message. A reply echoes the header of its request.
type Header struct {
	Sequence uint64
	Name     Name
}

// Wire is one message.
type Wire struct {
	Header
	Payload Payload
}

// Payload is what a message says: a [Command], a [Success], a [Failure] or a [Data].
type Payload interface{ payload() }

// Failure answers a command that was not carried out, with the reason.
type Failure string

func (Failure) payload() {}

// Marshal encodes a message. The error is an [ErrValue] that names the field.
func Marshal(w Wire) ([]byte, error) {
	b := cryptobyte.NewBuilder(make([]byte, 0, 256+bulk(w.Payload)))
	addSequence(b, func(b *cryptobyte.Builder) {
		addSequence(b, func(b *cryptobyte.Builder) {
			b.AddASN1Int64(Version)
			addInt64(b, int64(w.Sequence))
			addName(b, w.Name)
		})
		addPayload(b, w.Payload)
	})
	der, err := b.Bytes()
	if err != nil {
		return nil, fmt.Errorf("encode %T: %w", w.Payload, err)
	}
	return der, nil
}

// Unmarshal decodes a message; byte strings of the result share memory with der. The error is a [*DecodeError].
func Unmarshal(der []byte) (Wire, error) {
	return decode(der, "message", func(c *cursor) (w Wire) {
		c = c.sequence("")
		h := c.sequence("header")
		readVersion(h)
		w.Sequence = uint64(h.integer64("sequence"))
		w.Name = h.name("name")
		h.end()
		w.Payload = readPayload(c)
		c.end()
		return w
	})
}

func readVersion(c *cursor) {
	off := c.offset()
	if v := c.integer("version"); c.ok() && v != Version {
		c.fail(off, "version", "is %d, want %d", v, Version)
	}
}

func addPayload(b *cryptobyte.Builder, p Payload) {
	switch p := p.(type) {
	case Command:
		addExplicit(b, 0, p.addCommand)
	case Success:
		addExplicit(b, 1, p.addSuccess)
	case Failure:
		addExplicit(b, 2, func(b *cryptobyte.Builder) { addText(b, string(p)) })
	case Data:
		addExplicit(b, 3, p.addData)
	default:
		valueError(b, "payload", "is missing")
	}
}

func readPayload(c *cursor) (p Payload) {
	n, c := c.choice("payload")
	defer c.end()
	switch n {
	case 0:
		return readCommand(c)
	case 1:
		return readSuccess(c)
	case 2:
		return Failure(c.text("failure"))
	case 3:
		return readData(c)
	}
	c.unknown(n)
	return nil
}

// bulk is how many bytes of a payload may be large.
func bulk(p Payload) int {
	switch p := p.(type) {
	case UnikernelCreate:
		return len(p.Config.Image)
	case Image:
		return len(p.Image)
	case OldBlockImage:
		return len(p.Image)
	case OldBlockAdd:
		return len(p.Data)
	case OldBlockSet:
		return len(p.Data)
	case BlockData:
		return len(p.Data)
	}
	return 0
}
