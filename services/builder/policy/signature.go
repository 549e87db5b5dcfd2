package policy

import (
	"crypto"
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/rsa"
	"crypto/sha256"
	"crypto/x509"
	"encoding/base64"
	"encoding/pem"
	"errors"
	"fmt"
	"hash"
	"io"
	"os"
	"strings"
	"syscall"

	"golang.org/x/crypto/blake2b"
)

// Why a signature is not good.
var (
	errOtherKey = errors.New("is by another key")
	errBad      = errors.New("does not fit the image")
)

// body is an image whose signatures are checked.
type body struct {
	file   *os.File
	size   int64
	broken error // of reading it
	sha    []byte
	blake  []byte
}

func newBody(f *os.File) (*body, error) {
	info, err := f.Stat()
	if err != nil {
		return nil, fmt.Errorf("check a signature: %w", err)
	}
	return &body{file: f, size: info.Size()}, nil
}

func (b *body) sha256() []byte {
	if b.sha == nil {
		b.sha = b.sum(sha256.New())
	}
	return b.sha
}

func (b *body) blake2b() []byte {
	if b.blake == nil {
		h, err := blake2b.New512(nil)
		if err != nil {
			b.broken = err
			return nil
		}
		b.blake = b.sum(h)
	}
	return b.blake
}

// sum gives a hash of the image, or nothing if it cannot be read.
func (b *body) sum(h hash.Hash) []byte {
	if _, err := io.Copy(h, io.NewSectionReader(b.file, 0, b.size)); err != nil {
		b.broken = err
		return nil
	}
	return h.Sum(nil)
}

// whole checks a signature over all bytes at once, which lie in the memory of the file and not in ours.
func (b *body) whole(good func(message []byte) bool) bool {
	if b.size == 0 {
		return good(nil)
	}
	message, err := syscall.Mmap(int(b.file.Fd()), 0, int(b.size), syscall.PROT_READ, syscall.MAP_PRIVATE)
	if err != nil {
		b.broken = err
		return false
	}
	defer func() { _ = syscall.Munmap(message) }()
	return good(message)
}

// signature is either of minisign or the bytes that cosign sign-blob makes.
type signature struct {
	minisign *minisignature
	raw      plain
}

func parseSignature(text string) (signature, error) {
	text = strings.TrimSpace(text)
	if strings.HasPrefix(text, untrusted) {
		m, err := parseMinisignature(text)
		return signature{minisign: m}, err
	}
	raw, err := base64.StdEncoding.DecodeString(text)
	if err != nil || len(raw) == 0 {
		return signature{}, errors.New("is neither one of minisign nor the base64 of cosign")
	}
	return signature{raw: raw}, nil
}

// key is a public key.
type key interface {
	verify(b *body, s signature) error
}

func parseKey(text string) (key, error) {
	text = strings.TrimSpace(text)
	if !strings.HasPrefix(text, "-----BEGIN") {
		return parseMinisignKey(text)
	}
	block, rest := pem.Decode([]byte(text))
	if block == nil || len(rest) > 0 || block.Type != "PUBLIC KEY" {
		return nil, errors.New("it is not one PEM block of a public key")
	}
	public, err := x509.ParsePKIXPublicKey(block.Bytes)
	if err != nil {
		return nil, err
	}
	switch k := public.(type) {
	case *ecdsa.PublicKey:
		return ecdsaKey{k}, nil
	case ed25519.PublicKey:
		return ed25519Key{k}, nil
	case *rsa.PublicKey:
		if k.N.BitLen() < minRSA {
			return nil, fmt.Errorf("it has %d bits, fewer than %d", k.N.BitLen(), minRSA)
		}
		return rsaKey{k}, nil
	}
	return nil, fmt.Errorf("a key of type %T is none of ECDSA, Ed25519 and RSA", public)
}

const minRSA = 2048 // bits

type ecdsaKey struct{ *ecdsa.PublicKey }

func (k ecdsaKey) verify(b *body, s signature) error {
	return s.raw.check(func(raw []byte) bool { return ecdsa.VerifyASN1(k.PublicKey, b.sha256(), raw) })
}

type rsaKey struct{ *rsa.PublicKey }

func (k rsaKey) verify(b *body, s signature) error {
	return s.raw.check(func(raw []byte) bool {
		return rsa.VerifyPKCS1v15(k.PublicKey, crypto.SHA256, b.sha256(), raw) == nil
	})
}

type ed25519Key struct{ ed25519.PublicKey }

func (k ed25519Key) verify(b *body, s signature) error {
	return s.raw.check(func(raw []byte) bool {
		return b.whole(func(message []byte) bool { return ed25519.Verify(k.PublicKey, message, raw) })
	})
}

// plain is a signature that does not say by which key it is.
type plain []byte

// check says what a key finds about a signature.
func (p plain) check(good func([]byte) bool) error {
	switch {
	case p == nil:
		return errOtherKey
	case !good(p):
		return fmt.Errorf("%w, or %w", errBad, errOtherKey)
	}
	return nil
}
