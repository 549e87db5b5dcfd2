package albatross

import (
	"encoding/asn1"
	"fmt"

	"golang.org/x/crypto/cryptobyte"
)

// ExtensionOID returns the object identifier of the certificate extension that carries a command: 1.3.6.1.4.1.49836.42.
func ExtensionOID() asn1.ObjectIdentifier {
	return asn1.ObjectIdentifier{1, 3, 6, 1, 4, 1, 49836, 42}
}

// MarshalExtension encodes a command as the value of the certificate extension.
func MarshalExtension(m Command) ([]byte, error) {
	b := cryptobyte.NewBuilder(make([]byte, 0, 256+bulk(m)))
	addSequence(b, func(b *cryptobyte.Builder) {
		b.AddASN1Int64(Version)
		if m == nil {
			valueError(b, "command", "is missing")
			return
		}
		m.addCommand(b)
	})
	der, err := b.Bytes()
	if err != nil {
		return nil, fmt.Errorf("encode extension with %T: %w", m, err)
	}
	return der, nil
}

// UnmarshalExtension decodes the value of the certificate extension; byte strings share memory with der.
// The error is a [*DecodeError].
func UnmarshalExtension(der []byte) (Command, error) {
	return decode(der, "extension", func(c *cursor) Command {
		c = c.sequence("")
		defer c.end()
		readVersion(c)
		return readCommand(c)
	})
}
