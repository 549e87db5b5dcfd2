package remote

import (
	"crypto"
	"crypto/ed25519"
	"crypto/rand"
	"crypto/sha1"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/asn1"
	"errors"
	"fmt"
	"math/big"
	"time"

	"fulmar/albatross"
)

const (
	// LeafTime is how long the certificate of one command holds.
	LeafTime = 5 * time.Minute
	// ClockSkew is how far before its making a certificate begins to hold.
	ClockSkew = 10 * time.Second
)

// ErrPolicy reports a policy that allows more than that of the CA which should sign it.
var ErrPolicy = errors.New("remote: policy allows more than the CA's own")

// Authority is a CA: the root, or one to which a path was delegated.
type Authority struct {
	Chain []*x509.Certificate // its own certificate, and those up to the root, which may be missing
	Key   crypto.Signer
}

// NewRoot makes a root CA that holds for so long.
func NewRoot(commonName string, key crypto.Signer, now time.Time, hold time.Duration) (*Authority, error) {
	t := template(commonName, now, hold)
	t.IsCA, t.KeyUsage = true, caUsage
	root, err := sign(t, t, key.Public(), key)
	if err != nil {
		return nil, fmt.Errorf("make root CA %q: %w", commonName, err)
	}
	return &Authority{Chain: []*x509.Certificate{root}, Key: key}, nil
}

// Path returns the path that the authority's certificates speak for; the root's is the root.
func (a *Authority) Path() (albatross.Path, error) {
	_, path, err := readSigners(a.signers())
	return path, err
}

// signers are the certificates that a client sends after its own: all but the root.
func (a *Authority) signers() []*x509.Certificate {
	for i, c := range a.Chain {
		if selfSigned(c) {
			return a.Chain[:i]
		}
	}
	return a.Chain
}

func selfSigned(c *x509.Certificate) bool {
	return string(c.RawIssuer) == string(c.RawSubject) && c.CheckSignatureFrom(c) == nil
}

// Server makes the certificate of a TLS endpoint.
func (a *Authority) Server(commonName string, pub crypto.PublicKey, now time.Time, hold time.Duration) (*x509.Certificate, error) {
	t := template(commonName, now, hold)
	c, err := a.signLeaf(t, serverAuth, pub)
	if err != nil {
		return nil, fmt.Errorf("make certificate of server %q: %w", commonName, err)
	}
	return c, nil
}

// Sign makes the certificate that a request asks for, and returns it with the rest of the chain but for the root. A request
// with a policy becomes a CA, one with another command a client's leaf. A zero hold means a year for a CA and a day for a leaf.
func (a *Authority) Sign(request *x509.CertificateRequest, now time.Time, hold time.Duration) ([]*x509.Certificate, error) {
	if err := request.CheckSignature(); err != nil {
		return nil, fmt.Errorf("check signature of request: %w", err)
	}
	command, err := RequestedCommand(request)
	if err != nil {
		return nil, err
	}
	if err := a.allows(request.Subject.CommonName, command); err != nil {
		return nil, err
	}
	c, err := a.issue(request.Subject.CommonName, command, request.PublicKey, now, hold)
	if err != nil {
		return nil, err
	}
	return append([]*x509.Certificate{c}, a.signers()...), nil
}

// Leaf makes a key and a certificate of five minutes that carries a command for what the authority has by a name. The name is
// in the authority's path, or the path itself.
func (a *Authority) Leaf(name albatross.Name, m albatross.Command, now time.Time) (tls.Certificate, error) {
	path, err := a.Path()
	if err != nil {
		return tls.Certificate{}, err
	}
	if name.Path() != path {
		return tls.Certificate{}, fmt.Errorf("%w: %v is not in the path %q of the CA", albatross.ErrName, name, path)
	}
	pub, key, err := ed25519.GenerateKey(rand.Reader)
	if err != nil {
		return tls.Certificate{}, fmt.Errorf("make key: %w", err)
	}
	label := name.Label()
	if label == "" {
		label = "."
	}
	if err := a.allows(label, m); err != nil {
		return tls.Certificate{}, err
	}
	c, err := a.issue(label, m, pub, now, LeafTime)
	if err != nil {
		return tls.Certificate{}, err
	}
	return chainOf(append([]*x509.Certificate{c}, a.signers()...), key), nil
}

// Delegate makes a CA of five minutes for the path of a label below the authority's: who shows its certificate sets its policy.
func (a *Authority) Delegate(label string, p albatross.Policy, now time.Time) (*Authority, error) {
	pub, key, err := ed25519.GenerateKey(rand.Reader)
	if err != nil {
		return nil, fmt.Errorf("make key: %w", err)
	}
	add := albatross.PolicyAdd{Policy: p}
	if err := a.allows(label, add); err != nil {
		return nil, err
	}
	c, err := a.issue(label, add, pub, now, LeafTime)
	if err != nil {
		return nil, err
	}
	return &Authority{Chain: append([]*x509.Certificate{c}, a.Chain...), Key: key}, nil
}

// allows says whether the authority may sign a command: an endpoint would refuse what it refuses.
func (a *Authority) allows(commonName string, m albatross.Command) error {
	path, err := a.Path()
	if err != nil {
		return err
	}
	if len(a.signers())+1 > maxChain {
		return fmt.Errorf("%w: with %q it has %d certificates", ErrChainTooLong, commonName, len(a.signers())+1)
	}
	add, isPolicy := m.(albatross.PolicyAdd)
	if !isPolicy {
		if !byCertificate(m) {
			return fmt.Errorf("%w: %T", ErrNotByCertificate, m)
		}
		_, err := leafName(path, commonName)
		return err
	}
	if _, err := below(path, commonName); err != nil {
		return err
	}
	policies, _, err := readSigners(a.signers())
	if err != nil || len(policies) == 0 {
		return err
	}
	return within(policies[len(policies)-1].Policy, add.Policy)
}

// issue makes the certificate of a command.
func (a *Authority) issue(commonName string, m albatross.Command, pub crypto.PublicKey, now time.Time, hold time.Duration) (*x509.Certificate, error) {
	value, err := albatross.MarshalExtension(m)
	if err != nil {
		return nil, err
	}
	_, isCA := m.(albatross.PolicyAdd)
	if hold == 0 {
		hold = 24 * time.Hour
		if isCA {
			hold = 365 * 24 * time.Hour
		}
	}
	t := template(commonName, now, hold)
	t.ExtraExtensions = append(t.ExtraExtensions, pkix.Extension{Id: albatross.ExtensionOID(), Value: value})
	var c *x509.Certificate
	if isCA {
		t.IsCA, t.KeyUsage = true, caUsage
		c, err = sign(t, a.Chain[0], pub, a.Key)
	} else {
		c, err = a.signLeaf(t, clientAuth, pub)
	}
	if err != nil {
		return nil, fmt.Errorf("make certificate of %q: %w", commonName, err)
	}
	return c, nil
}

// signLeaf makes a certificate that is not of a CA.
func (a *Authority) signLeaf(t *x509.Certificate, purpose int, pub crypto.PublicKey) (*x509.Certificate, error) {
	usage, err := extendedUsage(purpose)
	if err != nil {
		return nil, err
	}
	t.KeyUsage = leafUsage
	t.ExtraExtensions = append(t.ExtraExtensions, usage)
	return sign(t, a.Chain[0], pub, a.Key)
}

const (
	caUsage   = x509.KeyUsageCertSign | x509.KeyUsageCRLSign | x509.KeyUsageDigitalSignature | x509.KeyUsageContentCommitment
	leafUsage = x509.KeyUsageDigitalSignature | x509.KeyUsageKeyEncipherment
)

// template is what all our certificates have, as those of albatross do.
func template(commonName string, now time.Time, hold time.Duration) *x509.Certificate {
	return &x509.Certificate{
		Subject:   pkix.Name{CommonName: commonName},
		NotBefore: now.Add(-ClockSkew), NotAfter: now.Add(hold), BasicConstraintsValid: true,
	}
}

// sign makes a certificate. Its keys are identified by SHA-1, as albatross does it: x509 of OCaml compares them.
func sign(t, parent *x509.Certificate, pub crypto.PublicKey, key crypto.Signer) (*x509.Certificate, error) {
	serial, err := rand.Int(rand.Reader, new(big.Int).Lsh(big.NewInt(1), 80))
	if err != nil {
		return nil, err
	}
	t.SerialNumber = serial.Add(serial, big.NewInt(1))
	if t.SubjectKeyId, err = keyID(pub); err != nil {
		return nil, err
	}
	if t.AuthorityKeyId = parent.SubjectKeyId; len(parent.SubjectKeyId) == 0 { // roots of albatross have none
		if t.AuthorityKeyId, err = keyID(parent.PublicKey); err != nil {
			return nil, err
		}
	}
	der, err := x509.CreateCertificate(rand.Reader, t, parent, pub, key)
	if err != nil {
		return nil, err
	}
	return x509.ParseCertificate(der)
}

// keyID identifies a public key (RFC 5280 §4.2.1.2, method 1).
func keyID(pub crypto.PublicKey) ([]byte, error) {
	der, err := x509.MarshalPKIXPublicKey(pub)
	if err != nil {
		return nil, err
	}
	var info struct {
		Algorithm pkix.AlgorithmIdentifier
		Key       asn1.BitString
	}
	if _, err := asn1.Unmarshal(der, &info); err != nil {
		return nil, err
	}
	sum := sha1.Sum(info.Key.RightAlign())
	return sum[:], nil
}

// extendedUsage is the extension for one of id-kp (RFC 5280 §4.2.1.12), critical, which x509 would not make it.
func extendedUsage(purpose int) (pkix.Extension, error) {
	value, err := asn1.Marshal([]asn1.ObjectIdentifier{{1, 3, 6, 1, 5, 5, 7, 3, purpose}})
	return pkix.Extension{Id: asn1.ObjectIdentifier{2, 5, 29, 37}, Critical: true, Value: value}, err
}

// The purposes of id-kp.
const (
	serverAuth = 1
	clientAuth = 2
)
