package albatross

import (
	"encoding/binary"
	"errors"
	"fmt"
	"net"
	"slices"
	"strings"
	"time"

	"golang.org/x/crypto/cryptobyte"
	"golang.org/x/crypto/cryptobyte/asn1"
)

// ErrMalformed reports a message that no albatross daemon would take; the error is a [*DecodeError].
var ErrMalformed = errors.New("albatross: malformed message")

// DecodeError says which field of a message is wrong, where, and why. It is an [ErrMalformed].
type DecodeError struct {
	Field  string // path of the field from the message down, with dots
	Offset int    // of the element, in bytes from the start of the message
	Reason string
}

// Error returns the reason, the field and the offset.
func (e *DecodeError) Error() string {
	return fmt.Sprintf("%v: %s at offset %d: %s", ErrMalformed, e.Field, e.Offset, e.Reason)
}

// Is tells that e is an [ErrMalformed].
func (e *DecodeError) Is(target error) bool { return target == ErrMalformed }

// Integers of the protocol have 63 bits: the reference implementation is written in OCaml.
const (
	maxInteger = 1<<62 - 1
	minInteger = -1 << 62
)

// decoder holds one input and the first thing that is wrong with it. After that every read yields zero values.
type decoder struct {
	in  []byte
	err *DecodeError
}

// cursor reads the content of one element from left to right. Its label and parents name it in errors.
type cursor struct {
	d      *decoder
	parent *cursor
	label  string
	s      cryptobyte.String
}

// decode runs read over the whole of der and reports the first error, or bytes that read left over.
func decode[T any](der []byte, label string, read func(*cursor) T) (T, error) {
	d := &decoder{in: slices.Clip(der)}
	c := &cursor{d: d, label: label, s: cryptobyte.String(d.in)}
	v := read(c)
	c.end()
	if d.err != nil {
		var zero T
		return zero, d.err
	}
	return v, nil
}

// offset is where the unread part of c starts. Every element is a slice of the input, so its capacity tells.
func (c *cursor) offset() int { return cap(c.d.in) - cap(c.s) }

func (c *cursor) ok() bool { return c.d.err == nil }

// fail notes the first error; field is relative to c, and may be empty for c itself.
func (c *cursor) fail(offset int, field, format string, args ...any) {
	if c.d.err != nil {
		return
	}
	var path []string
	if field != "" {
		path = append(path, field)
	}
	for p := c; p != nil; p = p.parent {
		if p.label != "" {
			path = append(path, p.label)
		}
	}
	slices.Reverse(path)
	c.d.err = &DecodeError{Field: strings.Join(path, "."), Offset: offset, Reason: fmt.Sprintf(format, args...)}
}

// more tells whether an element is left, for loops over a sequence.
func (c *cursor) more() bool { return c.ok() && len(c.s) > 0 }

// end fails if anything is left.
func (c *cursor) end() {
	if c.more() {
		c.fail(c.offset(), "", "%d trailing bytes", len(c.s))
	}
}

// element reads one element of the given tag and returns its content.
func (c *cursor) element(tag asn1.Tag, field string) cryptobyte.String {
	if !c.ok() {
		return nil
	}
	off := c.offset()
	if len(c.s) == 0 {
		c.fail(off, field, "missing: want %s", tagName(tag))
		return nil
	}
	var content cryptobyte.String
	var got asn1.Tag
	switch {
	case !c.s.ReadAnyASN1(&content, &got):
		c.fail(off, field, "no DER element: truncated, or its length has a form that DER does not allow")
	case got != tag:
		c.fail(off, field, "is %s, want %s", tagName(got), tagName(tag))
	}
	if !c.ok() {
		return nil
	}
	return content
}

// child reads one constructed element and returns a cursor over its content.
func (c *cursor) child(tag asn1.Tag, field string) *cursor {
	return &cursor{d: c.d, parent: c, label: field, s: c.element(tag, field)}
}

func (c *cursor) sequence(field string) *cursor { return c.child(asn1.SEQUENCE, field) }
func (c *cursor) set(field string) *cursor      { return c.child(asn1.SET, field) }

func (c *cursor) explicit(n uint8, field string) *cursor {
	return c.child(contextTag(n), field)
}

// choice reads the element of a CHOICE whose alternatives are explicitly tagged, and returns its number and content.
func (c *cursor) choice(field string) (uint8, *cursor) {
	inner := &cursor{d: c.d, parent: c, label: field}
	off := c.offset()
	if c.ok() && len(c.s) == 0 {
		c.fail(off, field, "missing: want a choice")
	}
	if !c.ok() {
		return 0, inner
	}
	var tag asn1.Tag
	if !c.s.ReadAnyASN1(&inner.s, &tag) {
		c.fail(off, field, "no DER element: truncated, or its tag or length has a form that DER does not allow")
		return 0, inner
	}
	if tag&0xe0 != contextTag(0) {
		c.fail(off, field, "is %s, want a choice", tagName(tag))
		return 0, inner
	}
	return uint8(tag &^ contextTag(0)), inner
}

// unknown fails for a number of a choice that does not exist.
func (c *cursor) unknown(n uint8) {
	c.fail(c.offset(), "", "choice %d does not exist", n)
}

// next tells whether the next element has the given tag, for optional fields.
func (c *cursor) next(tag asn1.Tag) bool { return c.ok() && c.s.PeekASN1Tag(tag) }

func (c *cursor) null(field string) {
	off := c.offset()
	if content := c.element(asn1.NULL, field); len(content) > 0 {
		c.fail(off, field, "NULL has content")
	}
}

func (c *cursor) boolean(field string) bool {
	off := c.offset()
	content := c.element(asn1.BOOLEAN, field)
	if !c.ok() {
		return false
	}
	if len(content) != 1 {
		c.fail(off, field, "BOOLEAN has %d bytes", len(content))
		return false
	}
	return content[0] != 0 // the reference takes any other value for true
}

func (c *cursor) integer(field string) int {
	off := c.offset()
	content := c.element(asn1.INTEGER, field)
	if !c.ok() {
		return 0
	}
	switch {
	case len(content) == 0:
		c.fail(off, field, "INTEGER has no bytes")
		return 0
	case len(content) > 1 && (content[0] == 0 && content[1] < 0x80 || content[0] == 0xff && content[1] >= 0x80):
		c.fail(off, field, "INTEGER is not minimal")
		return 0
	case len(content) > 8:
		c.fail(off, field, "INTEGER has %d bytes and does not fit 63 bits", len(content))
		return 0
	}
	v := int64(int8(content[0]))
	for _, b := range content[1:] {
		v = v<<8 | int64(b)
	}
	if v > maxInteger || v < minInteger || int64(int(v)) != v {
		c.fail(off, field, "INTEGER %d does not fit 63 bits", v)
		return 0
	}
	return int(v)
}

// integer32 keeps the low 32 bits, as the reference does.
func (c *cursor) integer32(field string) int32 { return int32(c.integer(field)) }

func (c *cursor) octets(field string) []byte {
	return c.element(asn1.OCTET_STRING, field)
}

// integer64 reads eight bytes; the reference ignores what follows them and dies of fewer.
func (c *cursor) integer64(field string) int64 {
	off := c.offset()
	content := c.octets(field)
	if !c.ok() {
		return 0
	}
	if len(content) < 8 {
		c.fail(off, field, "has %d bytes, want 8", len(content))
		return 0
	}
	return int64(binary.BigEndian.Uint64(content))
}

func (c *cursor) text(field string) string {
	return string(c.element(asn1.UTF8String, field))
}

func (c *cursor) texts(field string) []string {
	list := []string{}
	for seq := c.sequence(field); seq.more(); {
		list = append(list, seq.text(""))
	}
	return list
}

func (c *cursor) name(field string) Name {
	off := c.offset()
	s := c.element(asn1.UTF8String, field)
	if !c.ok() {
		return Name{}
	}
	n, err := ParseName(string(s))
	if err != nil {
		c.fail(off, field, "%v", err)
	}
	return n
}

func (c *cursor) mac(field string) net.HardwareAddr {
	off := c.offset()
	content := c.octets(field)
	if c.ok() && len(content) != 6 {
		c.fail(off, field, "address has %d bytes, want 6", len(content))
	}
	if !c.ok() {
		return nil
	}
	return net.HardwareAddr(slices.Clone(content))
}

func (c *cursor) time(field string) time.Time {
	off := c.offset()
	s := c.element(asn1.GeneralizedTime, field)
	if !c.ok() {
		return time.Time{}
	}
	t, err := parseTime(string(s))
	if err != nil {
		c.fail(off, field, "%v", err)
	}
	return t
}

// integerSet reads numbers whose order and repetition carry no meaning, and returns them in order and once.
func (c *cursor) integerSet(tag asn1.Tag, field string) []int {
	list := []int{}
	for set := c.child(tag, field); set.more(); {
		list = append(list, set.integer(""))
	}
	slices.Sort(list)
	return slices.Compact(list)
}

func contextTag(n uint8) asn1.Tag { return asn1.Tag(n).ContextSpecific().Constructed() }

func tagName(t asn1.Tag) string {
	form := ""
	if t&0x20 != 0 {
		form = " constructed"
	}
	switch class, n := t>>6, t&0x1f; class {
	case 0:
		return fmt.Sprintf("universal tag %d%s", n, form)
	case 2:
		return fmt.Sprintf("context tag %d%s", n, form)
	default:
		return fmt.Sprintf("tag 0x%02x", uint8(t))
	}
}
