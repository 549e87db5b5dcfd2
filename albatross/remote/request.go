package remote

import (
	"crypto"
	"crypto/rand"
	"crypto/x509"
	"crypto/x509/pkix"
	"fmt"
	"slices"

	"fulmar/albatross"
)

// NewRequest makes a request that asks a CA to sign a command under a common name: the label of a unikernel or path, or "."
// for the CA's own path.
func NewRequest(commonName string, m albatross.Command, key crypto.Signer) (*x509.CertificateRequest, error) {
	value, err := albatross.MarshalExtension(m)
	if err != nil {
		return nil, err
	}
	der, err := x509.CreateCertificateRequest(rand.Reader, &x509.CertificateRequest{
		Subject:         pkix.Name{CommonName: commonName},
		ExtraExtensions: []pkix.Extension{{Id: albatross.ExtensionOID(), Value: value}},
	}, key)
	if err != nil {
		return nil, fmt.Errorf("make request for %q: %w", commonName, err)
	}
	return x509.ParseCertificateRequest(der)
}

// RequestedCommand returns the command of a request.
func RequestedCommand(r *x509.CertificateRequest) (albatross.Command, error) {
	for _, e := range r.Extensions {
		if e.Id.Equal(albatross.ExtensionOID()) {
			return albatross.UnmarshalExtension(e.Value)
		}
	}
	return nil, ErrNoCommand
}

// within says what a policy allows that the one above it does not.
func within(above, p albatross.Policy) error {
	for _, id := range p.CPUIDs {
		if !slices.Contains(above.CPUIDs, id) {
			return fmt.Errorf("%w: CPU %d", ErrPolicy, id)
		}
	}
	for _, b := range p.Bridges {
		if !slices.Contains(above.Bridges, b) {
			return fmt.Errorf("%w: bridge %q", ErrPolicy, b)
		}
	}
	switch {
	case p.Unikernels > above.Unikernels:
		return fmt.Errorf("%w: %d unikernels, above it %d", ErrPolicy, p.Unikernels, above.Unikernels)
	case p.Memory > above.Memory:
		return fmt.Errorf("%w: %d MB memory, above it %d MB", ErrPolicy, p.Memory, above.Memory)
	case p.Block != nil && above.Block == nil:
		return fmt.Errorf("%w: block devices", ErrPolicy)
	case p.Block != nil && *p.Block > *above.Block:
		return fmt.Errorf("%w: %d MB block devices, above it %d MB", ErrPolicy, *p.Block, *above.Block)
	}
	return nil
}
