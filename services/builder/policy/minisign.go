package policy

import (
	"crypto/ed25519"
	"encoding/base64"
	"encoding/binary"
	"errors"
	"fmt"
	"strings"
)

// What the lines of minisign's files begin with.
const (
	untrusted = "untrusted comment:"
	trusted   = "trusted comment: "
)

// Algorithms of minisign: over the image itself, and over its BLAKE2b hash.
const (
	overImage = "Ed"
	overHash  = "ED"
)

const (
	idSize        = 8
	keySize       = 2 + idSize + ed25519.PublicKeySize
	signatureSize = 2 + idSize + ed25519.SignatureSize
)

// minisignKey is a public key of minisign.
type minisignKey struct {
	id     [idSize]byte
	public ed25519.PublicKey
}

// parseMinisignKey reads a public key: the line of base64, or the file with the comment before it.
func parseMinisignKey(text string) (key, error) {
	lines := strings.Split(text, "\n")
	raw, err := base64.StdEncoding.DecodeString(strings.TrimSpace(lines[len(lines)-1]))
	if err != nil || len(raw) != keySize || string(raw[:2]) != overImage || len(lines) > 2 || len(lines) == 2 && !strings.HasPrefix(lines[0], untrusted) {
		return nil, errors.New("it is neither a public key of minisign nor one of PEM")
	}
	return minisignKey{id: [idSize]byte(raw[2:]), public: raw[2+idSize:]}, nil
}

// minisignature is a signature of minisign.
type minisignature struct {
	algorithm string
	id        [idSize]byte
	signature []byte
	comment   string // that is signed too
	whole     []byte // signature of the signature and the comment
}

func parseMinisignature(text string) (*minisignature, error) {
	malformed := errors.New("is not as minisign writes it")
	lines := strings.Split(strings.ReplaceAll(text, "\r\n", "\n"), "\n")
	if len(lines) != 4 || !strings.HasPrefix(lines[2], trusted) {
		return nil, malformed
	}
	raw, err := base64.StdEncoding.DecodeString(lines[1])
	if err != nil || len(raw) != signatureSize {
		return nil, malformed
	}
	whole, err := base64.StdEncoding.DecodeString(lines[3])
	if err != nil || len(whole) != ed25519.SignatureSize {
		return nil, malformed
	}
	m := &minisignature{algorithm: string(raw[:2]), id: [idSize]byte(raw[2:]), signature: raw[2+idSize:], comment: strings.TrimPrefix(lines[2], trusted), whole: whole}
	if m.algorithm != overImage && m.algorithm != overHash {
		return nil, malformed
	}
	return m, nil
}

func (k minisignKey) verify(b *body, s signature) error {
	m := s.minisign
	if m == nil {
		return errOtherKey
	}
	if m.id != k.id {
		return fmt.Errorf("%w, %X", errOtherKey, binary.LittleEndian.Uint64(m.id[:])) // as minisign shows it
	}
	if !ed25519.Verify(k.public, append(append([]byte{}, m.signature...), m.comment...), m.whole) {
		return errors.New("has a comment that is not signed")
	}
	if m.algorithm == overImage {
		if !b.whole(func(message []byte) bool { return ed25519.Verify(k.public, message, m.signature) }) {
			return errBad
		}
		return nil
	}
	if !ed25519.Verify(k.public, b.blake2b(), m.signature) {
		return errBad
	}
	return nil
}
