package albatross

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"net"
	"slices"
	"time"

	"golang.org/x/crypto/cryptobyte"
	"golang.org/x/crypto/cryptobyte/asn1"
)

// ErrValue reports a value that cannot be written: it would be refused, or kill the reader.
var ErrValue = errors.New("albatross: value cannot be encoded")

func valueError(b *cryptobyte.Builder, field, format string, args ...any) {
	b.SetError(fmt.Errorf("%w: %s: %s", ErrValue, field, fmt.Sprintf(format, args...)))
}

func addSequence(b *cryptobyte.Builder, add func(*cryptobyte.Builder)) {
	b.AddASN1(asn1.SEQUENCE, add)
}

func addExplicit(b *cryptobyte.Builder, n uint8, add func(*cryptobyte.Builder)) {
	b.AddASN1(contextTag(n), add)
}

func addNull(b *cryptobyte.Builder) { b.AddASN1(asn1.NULL, func(*cryptobyte.Builder) {}) }

func addInteger(b *cryptobyte.Builder, field string, v int) {
	if int64(v) > maxInteger || int64(v) < minInteger {
		valueError(b, field, "%d does not fit 63 bits", v)
		return
	}
	b.AddASN1Int64(int64(v))
}

func addOptInteger(b *cryptobyte.Builder, field string, v *int) {
	if v != nil {
		addInteger(b, field, *v)
	}
}

func addOctets(b *cryptobyte.Builder, v []byte) { b.AddASN1OctetString(v) }

func addInt64(b *cryptobyte.Builder, v int64) {
	b.AddASN1OctetString(binary.BigEndian.AppendUint64(nil, uint64(v)))
}

func addText(b *cryptobyte.Builder, v string) {
	b.AddASN1(asn1.UTF8String, func(b *cryptobyte.Builder) { b.AddBytes([]byte(v)) })
}

func addTexts(b *cryptobyte.Builder, list []string) {
	addSequence(b, func(b *cryptobyte.Builder) {
		for _, s := range list {
			addText(b, s)
		}
	})
}

func addName(b *cryptobyte.Builder, n Name) { addText(b, n.String()) }

func addMAC(b *cryptobyte.Builder, field string, mac net.HardwareAddr) {
	if len(mac) != 6 {
		valueError(b, field, "address has %d bytes, want 6", len(mac))
		return
	}
	addOctets(b, mac)
}

func addTime(b *cryptobyte.Builder, field string, t time.Time) {
	s, err := formatTime(t)
	if err != nil {
		valueError(b, field, "%v", err)
		return
	}
	b.AddASN1(asn1.GeneralizedTime, func(b *cryptobyte.Builder) { b.AddBytes([]byte(s)) })
}

// addSetOf writes elements in the order of their encodings.
func addSetOf[T any](b *cryptobyte.Builder, list []T, add func(*cryptobyte.Builder, T)) {
	encoded := make([][]byte, 0, len(list))
	for _, v := range list {
		var e cryptobyte.Builder
		add(&e, v)
		der, err := e.Bytes()
		if err != nil {
			b.SetError(err)
			return
		}
		encoded = append(encoded, der)
	}
	slices.SortFunc(encoded, bytes.Compare)
	b.AddASN1(asn1.SET, func(b *cryptobyte.Builder) {
		for _, der := range encoded {
			b.AddBytes(der)
		}
	})
}

func addIntegerSet(b *cryptobyte.Builder, field string, list []int) {
	addSetOf(b, ordered(list), func(b *cryptobyte.Builder, v int) { addInteger(b, field, v) })
}

// ordered returns the values in order and each once.
func ordered[T int | string](list []T) []T {
	list = slices.Clone(list)
	slices.Sort(list)
	return slices.Compact(list)
}
