package remote

import (
	"crypto/x509"
	"crypto/x509/pkix"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	"fulmar/albatross"
)

// maxChain is how many certificates a client's chain may have, the root not counted.
const maxChain = 9

// What can be wrong with a chain that the root signed.
var (
	// ErrChainTooLong reports a chain of ten certificates or more.
	ErrChainTooLong = errors.New("remote: certificate chain too long")
	// ErrNoCommand reports a certificate without the extension that carries a command.
	ErrNoCommand = errors.New("remote: certificate has no command")
	// ErrNotByCertificate reports a command that may not come by certificate.
	ErrNotByCertificate = errors.New("remote: command may not come by certificate")
)

// Request is what a chain of certificates asks for.
type Request struct {
	Name     albatross.Name
	Command  albatross.Command
	Policies []albatross.NamedPolicy // to be added before, those of the longer paths later
}

// ReadChain reads what a verified chain asks for; the leaf is first and the root last. CA certificates without a policy count
// for nothing, neither for the path. The error is an [albatross.ErrName], an [albatross.ErrMalformed] or one of this package.
func ReadChain(chain []*x509.Certificate) (Request, error) {
	if len(chain) < 2 {
		return Request{}, fmt.Errorf("%w: the root itself is no client", ErrNoCommand)
	}
	signers := chain[1 : len(chain)-1]
	if len(signers)+1 > maxChain {
		return Request{}, fmt.Errorf("%w: %d certificates, at most %d allowed", ErrChainTooLong, len(signers)+1, maxChain)
	}
	policies, path, err := readSigners(signers)
	if err != nil {
		return Request{}, err
	}
	name, command, err := readLeaf(path, chain[0])
	return Request{Name: name, Command: command, Policies: policies}, err
}

// ReadLeaf reads what a client's own certificates ask for, its leaf first; the root may be missing. The errors are those of
// ReadChain.
func ReadLeaf(chain []*x509.Certificate) (albatross.Name, albatross.Command, error) {
	path, err := (&Authority{Chain: chain[1:]}).Path()
	if err != nil {
		return albatross.Name{}, nil, err
	}
	return readLeaf(path, chain[0])
}

func readLeaf(path albatross.Path, leaf *x509.Certificate) (albatross.Name, albatross.Command, error) {
	name, err := leafName(path, leaf.Subject.CommonName)
	if err != nil {
		return name, nil, err
	}
	command, err := Command(leaf)
	switch {
	case err != nil:
		return name, nil, err
	case command == nil:
		return name, nil, ErrNoCommand
	case !byCertificate(command):
		return name, nil, fmt.Errorf("%w: %T", ErrNotByCertificate, command)
	}
	return name, command, nil
}

// readSigners reads the CA certificates of a chain without its root, of which the last is the topmost.
func readSigners(signers []*x509.Certificate) (policies []albatross.NamedPolicy, path albatross.Path, err error) {
	for _, ca := range slices.Backward(signers) {
		command, err := Command(ca)
		if err != nil {
			return nil, path, fmt.Errorf("CA certificate of %q: %w", ca.Subject.CommonName, err)
		}
		if command == nil {
			continue
		}
		add, ok := command.(albatross.PolicyAdd)
		if !ok {
			return nil, path, fmt.Errorf("CA certificate of %q: %w: %T", ca.Subject.CommonName, ErrNotByCertificate, command)
		}
		if path, err = below(path, ca.Subject.CommonName); err != nil {
			return nil, path, fmt.Errorf("CA certificate: %w", err)
		}
		policies = append(policies, albatross.NamedPolicy{Name: path.Name(), Policy: add.Policy})
	}
	return policies, path, nil
}

// below is the path of a label in another path.
func below(path albatross.Path, label string) (albatross.Path, error) {
	name, err := albatross.MakeName(strings.ToLower(label))
	if err != nil {
		return path, err
	}
	return albatross.ParsePath(strings.Join(append(path.Labels(), name.Label()), ":"))
}

// leafName is the name in a path that a leaf's common name gives: the path itself if there is none, or one that is no label.
func leafName(path albatross.Path, commonName string) (albatross.Name, error) {
	switch commonName {
	case "", ".", ":":
		return path.Name(), nil
	}
	label, err := albatross.MakeName(strings.ToLower(commonName))
	if err != nil {
		return albatross.Name{}, err
	}
	return path.Join(label), nil
}

// Command returns the command that a certificate carries, or nil if it has none.
func Command(c *x509.Certificate) (albatross.Command, error) {
	for _, e := range c.Extensions {
		if e.Id.Equal(albatross.ExtensionOID()) {
			return albatross.UnmarshalExtension(e.Value)
		}
	}
	return nil, nil
}

// byCertificate says whether a leaf may carry a command. Policies are set by CA certificates alone, and what daemons say to
// one another is no client's business.
func byCertificate(m albatross.Command) bool {
	switch m.(type) {
	case albatross.UnikernelInfo, albatross.UnikernelGet, albatross.UnikernelCreate, albatross.UnikernelRestart, albatross.UnikernelDestroy,
		albatross.PolicyInfo,
		albatross.BlockInfo, albatross.BlockAdd, albatross.BlockRemove, albatross.BlockSet, albatross.BlockDump,
		albatross.OldBlockAdd, albatross.OldBlockSet, albatross.OldBlockDump,
		albatross.ConsoleSubscribe, albatross.ConsoleListInactive, albatross.StatsSubscribe:
		return true
	}
	return false
}

// delegated says whether the root gave a certificate's holder a part of its unikernels, or one command, and no more.
func delegated(c *x509.Certificate) bool {
	return slices.ContainsFunc(c.Extensions, func(e pkix.Extension) bool { return e.Id.Equal(albatross.ExtensionOID()) })
}

// verify returns the chain from a peer's certificates, of which the first is its own, to a root.
func verify(peer []*x509.Certificate, roots *x509.CertPool, usage x509.ExtKeyUsage, now time.Time) ([]*x509.Certificate, error) {
	if len(peer) == 0 {
		return nil, errors.New("remote: peer has no certificate")
	}
	between := x509.NewCertPool()
	for _, c := range peer[1:] {
		between.AddCert(c)
	}
	chains, err := peer[0].Verify(x509.VerifyOptions{Roots: roots, Intermediates: between, KeyUsages: []x509.ExtKeyUsage{usage}, CurrentTime: now})
	if err != nil {
		return nil, fmt.Errorf("verify certificate of %q: %w", peer[0].Subject.CommonName, err)
	}
	return chains[0], nil
}
