package docker_test

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"math/big"
	"net"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"fulmar/services/builder/docker"
	"fulmar/services/builder/docker/dockertest"
)

// authority signs certificates into a directory.
type authority struct {
	t    *testing.T
	dir  string
	cert *x509.Certificate
	key  *ecdsa.PrivateKey
}

func newAuthority(t *testing.T) *authority {
	a := &authority{t: t, dir: t.TempDir()}
	a.cert, a.key = a.sign("ca", &x509.Certificate{IsCA: true, BasicConstraintsValid: true, KeyUsage: x509.KeyUsageCertSign})
	return a
}

// sign writes <name>.pem and <name>-key.pem. The first certificate signs itself.
func (a *authority) sign(name string, c *x509.Certificate) (*x509.Certificate, *ecdsa.PrivateKey) {
	a.t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		a.t.Fatal(err)
	}
	c.SerialNumber = big.NewInt(time.Now().UnixNano())
	c.Subject = pkix.Name{CommonName: name}
	c.NotBefore, c.NotAfter = time.Now().Add(-time.Hour), time.Now().Add(time.Hour)
	parent, signer := a.cert, a.key
	if parent == nil {
		parent, signer = c, key
	}
	der, err := x509.CreateCertificate(rand.Reader, c, parent, key.Public(), signer)
	if err != nil {
		a.t.Fatal(err)
	}
	secret, err := x509.MarshalPKCS8PrivateKey(key)
	if err != nil {
		a.t.Fatal(err)
	}
	for file, block := range map[string]*pem.Block{name + ".pem": {Type: "CERTIFICATE", Bytes: der}, name + "-key.pem": {Type: "PRIVATE KEY", Bytes: secret}} {
		if err := os.WriteFile(filepath.Join(a.dir, file), pem.EncodeToMemory(block), 0o600); err != nil {
			a.t.Fatal(err)
		}
	}
	made, err := x509.ParseCertificate(der)
	if err != nil {
		a.t.Fatal(err)
	}
	return made, key
}

func freePort(t *testing.T) string {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	return l.Addr().String()
}

func TestARemoteEngineIsReachedByTheEnvironment(t *testing.T) {
	a := newAuthority(t)
	a.sign("server", &x509.Certificate{IPAddresses: []net.IP{net.IPv4(127, 0, 0, 1)}, ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth}})
	a.sign("cert", &x509.Certificate{ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth}})
	if err := os.Rename(filepath.Join(a.dir, "cert-key.pem"), filepath.Join(a.dir, "key.pem")); err != nil { // as Docker names it
		t.Fatal(err)
	}
	address := freePort(t)
	dockertest.Start(t, "--host", "tcp://"+address, "--tlsverify", "--tlscacert", filepath.Join(a.dir, "ca.pem"),
		"--tlscert", filepath.Join(a.dir, "server.pem"), "--tlskey", filepath.Join(a.dir, "server-key.pem"))

	t.Setenv("DOCKER_HOST", "tcp://"+address)
	plain, err := docker.New(docker.Config{})
	if err != nil {
		t.Fatal(err)
	}
	defer plain.Close()
	_, err = plain.Resolve(t.Context(), docker.Reference{Image: "fulmar-remote:test"})
	wantRetry(t, err, "HTTP request to an HTTPS server")

	t.Setenv("DOCKER_TLS_VERIFY", "1")
	t.Setenv("DOCKER_CERT_PATH", a.dir)
	e, api := world(t, "")
	dockertest.Import(t, api, "fulmar-remote:test", www("solo5"))
	i, err := e.Resolve(t.Context(), docker.Reference{Image: "fulmar-remote:test"})
	if err != nil {
		t.Fatal(err)
	}
	if got, err := extract(t, e, i.ID, "/unikernel"); err != nil || got != "solo5" {
		t.Errorf("Extract = %q, %v", got, err)
	}

	if _, err := docker.New(docker.Config{Host: "ssh://jo@engine"}); err == nil || !strings.Contains(err.Error(), "an engine is reached by unix:// or tcp://") {
		t.Errorf("New over ssh = %v", err)
	}
	t.Setenv("DOCKER_CERT_PATH", t.TempDir())
	if _, err := docker.New(docker.Config{}); err == nil || !strings.Contains(err.Error(), "use a docker engine: ") {
		t.Errorf("New without the certificates = %v", err)
	}
}
