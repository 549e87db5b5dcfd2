package remote

import (
	"crypto/x509"
	"errors"
	"fmt"
	"os"
)

// LoadEndpoint reads what it takes to ask an endpoint: the file of a CA's certificate and of those up to the root, that of its
// key, and that of the root which the endpoint is trusted by; if that has no name, it is the last one in the file of the CA.
func LoadEndpoint(address, root, cert, key string) (*Endpoint, error) {
	ca, err := LoadAuthority(cert, key)
	if err != nil {
		return nil, err
	}
	trusted := ca.Chain[len(ca.Chain)-1:]
	if root != "" {
		if trusted, err = LoadCertificates(root); err != nil {
			return nil, err
		}
	} else if !selfSigned(trusted[0]) {
		return nil, fmt.Errorf("%s does not end with the root: name the file of the root too", cert)
	}
	pool := x509.NewCertPool()
	for _, c := range trusted {
		pool.AddCert(c)
	}
	return &Endpoint{Address: address, Roots: pool, CA: ca}, nil
}

// LoadAuthority reads a CA from the files of its certificate, with those up to the root, and its key.
func LoadAuthority(cert, key string) (*Authority, error) {
	if cert == "" || key == "" {
		return nil, errors.New("name the files of the CA's certificate and of its key")
	}
	chain, err := LoadCertificates(cert)
	if err != nil {
		return nil, err
	}
	text, err := os.ReadFile(key)
	if err != nil {
		return nil, fmt.Errorf("read key: %w", err)
	}
	private, err := DecodeKey(text)
	if err != nil {
		return nil, fmt.Errorf("read key %s: %w", key, err)
	}
	ca, err := NewAuthority(chain, private)
	if err != nil {
		return nil, fmt.Errorf("%s and %s: %w", cert, key, err)
	}
	return ca, nil
}

// LoadCertificates reads the certificates of a file.
func LoadCertificates(file string) ([]*x509.Certificate, error) {
	text, err := os.ReadFile(file)
	if err != nil {
		return nil, fmt.Errorf("read certificate: %w", err)
	}
	list, err := DecodeCertificates(text)
	if err != nil {
		return nil, fmt.Errorf("read certificate %s: %w", file, err)
	}
	return list, nil
}
