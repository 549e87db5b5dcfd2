package remote

import (
	"crypto"
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/rsa"
	"crypto/tls"
	"crypto/x509"
	"encoding/pem"
	"errors"
	"fmt"
)

// ErrPEM reports text that is not the PEM that it should be.
var ErrPEM = errors.New("remote: bad PEM")

// NewKey makes a key of a kind: "ed25519", "p256" or "rsa" (of 4096 bits).
func NewKey(kind string) (crypto.Signer, error) {
	switch kind {
	case "ed25519":
		_, key, err := ed25519.GenerateKey(rand.Reader)
		return key, err
	case "p256":
		return ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	case "rsa":
		return rsa.GenerateKey(rand.Reader, 4096)
	}
	return nil, fmt.Errorf("remote: unknown kind of key %q", kind)
}

// EncodeKey writes a private key as PEM (PKCS #8).
func EncodeKey(key crypto.Signer) ([]byte, error) {
	der, err := x509.MarshalPKCS8PrivateKey(key)
	if err != nil {
		return nil, fmt.Errorf("encode key: %w", err)
	}
	return pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: der}), nil
}

// DecodeKey reads a private key from PEM: PKCS #8, or the older forms of RSA and EC keys.
func DecodeKey(text []byte) (crypto.Signer, error) {
	for {
		var b *pem.Block
		if b, text = pem.Decode(text); b == nil {
			return nil, fmt.Errorf("%w: it holds no private key", ErrPEM)
		}
		key, err := decodeKey(b)
		if err != nil {
			return nil, fmt.Errorf("%w: %w", ErrPEM, err)
		}
		if key == nil {
			continue
		}
		signer, ok := key.(crypto.Signer)
		if !ok {
			return nil, fmt.Errorf("%w: a %T does not sign", ErrPEM, key)
		}
		return signer, nil
	}
}

func decodeKey(b *pem.Block) (any, error) {
	switch b.Type {
	case "PRIVATE KEY":
		return x509.ParsePKCS8PrivateKey(b.Bytes)
	case "RSA PRIVATE KEY":
		return x509.ParsePKCS1PrivateKey(b.Bytes)
	case "EC PRIVATE KEY":
		return x509.ParseECPrivateKey(b.Bytes)
	}
	return nil, nil
}

// EncodeCertificates writes certificates as PEM, one after the other.
func EncodeCertificates(list ...*x509.Certificate) []byte {
	var text []byte
	for _, c := range list {
		text = append(text, pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: c.Raw})...)
	}
	return text
}

// DecodeCertificates reads all certificates of a PEM text, of which there must be one at least.
func DecodeCertificates(text []byte) ([]*x509.Certificate, error) {
	var list []*x509.Certificate
	for {
		var b *pem.Block
		if b, text = pem.Decode(text); b == nil {
			break
		}
		if b.Type != "CERTIFICATE" {
			continue
		}
		c, err := x509.ParseCertificate(b.Bytes)
		if err != nil {
			return nil, fmt.Errorf("%w: %w", ErrPEM, err)
		}
		list = append(list, c)
	}
	if len(list) == 0 {
		return nil, fmt.Errorf("%w: it holds no certificate", ErrPEM)
	}
	return list, nil
}

// EncodeRequest writes a request as PEM.
func EncodeRequest(r *x509.CertificateRequest) []byte {
	return pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE REQUEST", Bytes: r.Raw})
}

// DecodeRequest reads a request from PEM.
func DecodeRequest(text []byte) (*x509.CertificateRequest, error) {
	b, _ := pem.Decode(text)
	if b == nil || b.Type != "CERTIFICATE REQUEST" {
		return nil, fmt.Errorf("%w: it is no certificate request", ErrPEM)
	}
	r, err := x509.ParseCertificateRequest(b.Bytes)
	if err != nil {
		return nil, fmt.Errorf("%w: %w", ErrPEM, err)
	}
	return r, nil
}

// NewAuthority joins a CA's certificates, its own first, and its key.
func NewAuthority(chain []*x509.Certificate, key crypto.Signer) (*Authority, error) {
	pub, ok := key.Public().(interface{ Equal(crypto.PublicKey) bool })
	switch {
	case len(chain) == 0:
		return nil, errors.New("remote: a CA needs a certificate")
	case !ok || !pub.Equal(chain[0].PublicKey):
		return nil, fmt.Errorf("remote: the key is not that of certificate %q", chain[0].Subject.CommonName)
	case !chain[0].IsCA:
		return nil, fmt.Errorf("remote: certificate %q is not of a CA", chain[0].Subject.CommonName)
	}
	return &Authority{Chain: chain, Key: key}, nil
}

// chainOf joins a certificate, those that signed it, and its key.
func chainOf(list []*x509.Certificate, key crypto.Signer) tls.Certificate {
	c := tls.Certificate{PrivateKey: key, Leaf: list[0]}
	for _, one := range list {
		c.Certificate = append(c.Certificate, one.Raw)
	}
	return c
}
