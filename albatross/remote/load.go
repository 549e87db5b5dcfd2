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
	roots, err := LoadRoots(root, ca.Chain)
	if err != nil {
		return nil, err
	}
	return &Endpoint{Address: address, Roots: roots, CA: ca}, nil
}

// LoadRoots reads what an endpoint is trusted by from a file; if that has no name, it is the last of a chain, which must be a
// root.
func LoadRoots(file string, chain []*x509.Certificate) (*x509.CertPool, error) {
	trusted := chain[max(len(chain)-1, 0):]
	if file != "" {
		var err error
		if trusted, err = LoadCertificates(file); err != nil {
			return nil, err
		}
	} else if len(trusted) == 0 || !selfSigned(trusted[0]) {
		return nil, errors.New("the chain does not end with the root: name the file of the root too")
	}
	pool := x509.NewCertPool()
	for _, c := range trusted {
		pool.AddCert(c)
	}
	return pool, nil
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
