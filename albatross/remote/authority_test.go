package remote

import (
	"bytes"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/hex"
	"errors"
	"os"
	"slices"
	"testing"
	"time"

	"fulmar/albatross"
)

func readFile(t *testing.T, name string) []byte {
	t.Helper()
	text, err := os.ReadFile("testdata/tls/" + name)
	if err != nil {
		t.Fatal(err)
	}
	return text
}

func certificates(t *testing.T, text []byte) []*x509.Certificate {
	t.Helper()
	list, err := DecodeCertificates(text)
	if err != nil {
		t.Fatal(err)
	}
	return list
}

// TestRequestsOfTheRealToolsAreSigned signs the samples and compares the certificates with those that the real tools made.
func TestRequestsOfTheRealToolsAreSigned(t *testing.T) {
	now := time.Now()
	root := newRoot(t)
	for _, who := range []string{"user", "team"} {
		t.Run(who, func(t *testing.T) {
			request, err := DecodeRequest(readFile(t, who+".req"))
			if err != nil {
				t.Fatal(err)
			}
			got, err := root.Sign(request, now, 0)
			if err != nil {
				t.Fatal(err)
			}
			if len(got) != 1 {
				t.Fatalf("%d certificates", len(got))
			}
			checkLike(t, certificates(t, readFile(t, who+".pem"))[0], got[0])
		})
	}
	key := newKey(t)
	server, err := root.Server("server", key.Public(), now, 365*24*time.Hour)
	if err != nil {
		t.Fatal(err)
	}
	checkLike(t, certificates(t, readFile(t, "server.pem"))[0], server)
	checkLike(t, certificates(t, readFile(t, "cacert.pem"))[0], root.Chain[0])
}

// checkLike compares what does not depend on keys and time.
func checkLike(t *testing.T, want, got *x509.Certificate) {
	t.Helper()
	if want.Subject.String() != got.Subject.String() || want.IsCA != got.IsCA || want.KeyUsage != got.KeyUsage || !slices.Equal(want.ExtKeyUsage, got.ExtKeyUsage) {
		t.Errorf("%v CA %v usage %x %v, want %v %v %x %v", got.Subject, got.IsCA, got.KeyUsage, got.ExtKeyUsage, want.Subject, want.IsCA, want.KeyUsage, want.ExtKeyUsage)
	}
	if w, g := want.NotAfter.Sub(want.NotBefore), got.NotAfter.Sub(got.NotBefore); w != g && got.Subject.CommonName != "ca" {
		t.Errorf("it holds for %v, want %v", g, w)
	}
	if want.PublicKeyAlgorithm != got.PublicKeyAlgorithm || want.SignatureAlgorithm != got.SignatureAlgorithm {
		t.Errorf("key %v signed by %v, want %v and %v", got.PublicKeyAlgorithm, got.SignatureAlgorithm, want.PublicKeyAlgorithm, want.SignatureAlgorithm)
	}
	if bytes.Equal(want.RawSubjectPublicKeyInfo, got.RawSubjectPublicKeyInfo) && !bytes.Equal(want.SubjectKeyId, got.SubjectKeyId) {
		t.Errorf("key id %x, want %x", got.SubjectKeyId, want.SubjectKeyId)
	}
	for _, w := range want.Extensions {
		i := slices.IndexFunc(got.Extensions, func(g pkix.Extension) bool { return g.Id.Equal(w.Id) })
		if i < 0 || got.Extensions[i].Critical != w.Critical {
			t.Errorf("extension %v: %v", w.Id, i)
			continue
		}
		if w.Id.Equal(albatross.ExtensionOID()) && !bytes.Equal(w.Value, got.Extensions[i].Value) {
			t.Errorf("command %x, want %x", got.Extensions[i].Value, w.Value)
		}
	}
}

// TestKeyOfARealRootIsIdentified: roots of albatross do not say their key's id, but what they signed does.
func TestKeyOfARealRootIsIdentified(t *testing.T) {
	root, user := certificates(t, readFile(t, "cacert.pem"))[0], certificates(t, readFile(t, "user.pem"))[0]
	got, err := keyID(root.PublicKey)
	if err != nil || !bytes.Equal(got, user.AuthorityKeyId) || len(root.SubjectKeyId) > 0 {
		t.Errorf("key id %x, %v; want %x", got, err, user.AuthorityKeyId)
	}
}

func TestPathOfRealCertificates(t *testing.T) {
	for file, want := range map[string]string{"team.pem": "user:team", "user.pem": "user", "cacert.pem": ""} {
		a := &Authority{Chain: certificates(t, readFile(t, file))}
		if got, err := a.Path(); err != nil || got.String() != want {
			t.Errorf("%s: path %q, %v", file, got, err)
		}
	}
}

// TestAuthoritySignsNoMoreThanItMay asks a delegated CA for what endpoints would refuse.
func TestAuthoritySignsNoMoreThanItMay(t *testing.T) {
	now := time.Now()
	own := albatross.Policy{CPUIDs: []int{0, 1}, Unikernels: 2, Memory: 64, Block: new(10), Bridges: []string{"br0"}}
	user, err := newRoot(t).Delegate("user", own, now)
	if err != nil {
		t.Fatal(err)
	}
	add := func(p albatross.Policy) albatross.Command { return albatross.PolicyAdd{Policy: p} }
	for what, tt := range map[string]struct {
		cn   string
		m    albatross.Command
		want error
	}{
		"the same again":       {"team", add(own), nil},
		"less":                 {"team", add(albatross.Policy{Unikernels: 1}), nil},
		"another CPU":          {"team", add(albatross.Policy{CPUIDs: []int{2}}), ErrPolicy},
		"another bridge":       {"team", add(albatross.Policy{Bridges: []string{"br1"}}), ErrPolicy},
		"more unikernels":      {"team", add(albatross.Policy{Unikernels: 3}), ErrPolicy},
		"more memory":          {"team", add(albatross.Policy{Memory: 65}), ErrPolicy},
		"more blocks":          {"team", add(albatross.Policy{Block: new(11)}), ErrPolicy},
		"a policy of no label": {"a_b", add(own), albatross.ErrName},
		"an info":              {".", albatross.UnikernelInfo{}, nil},
		"a removed policy":     {"team", albatross.PolicyRemove{}, ErrNotByCertificate},
		"a bad name":           {"a_b", albatross.UnikernelInfo{}, albatross.ErrName},
	} {
		t.Run(what, func(t *testing.T) {
			request, err := NewRequest(tt.cn, tt.m, newKey(t))
			if err != nil {
				t.Fatal(err)
			}
			list, err := user.Sign(request, now, 0)
			if !errors.Is(err, tt.want) {
				t.Errorf("got %v", err)
			}
			if err == nil && len(list) != 2 {
				t.Errorf("%d certificates, want the new one and the CA's", len(list))
			}
		})
	}
	request, err := NewRequest("web", albatross.UnikernelInfo{}, newKey(t))
	if err != nil {
		t.Fatal(err)
	}
	request.Signature[0] ^= 1
	if _, err := user.Sign(request, now, 0); err == nil {
		t.Error("a request with a bad signature was signed")
	}
}

func TestKeysSurvivePEM(t *testing.T) {
	for _, kind := range []string{"ed25519", "p256", "rsa"} {
		key, err := NewKey(kind)
		if err != nil {
			t.Fatal(err)
		}
		text, err := EncodeKey(key)
		if err != nil {
			t.Fatal(err)
		}
		back, err := DecodeKey(append([]byte("-----BEGIN EC PARAMETERS-----\nAA==\n-----END EC PARAMETERS-----\n"), text...))
		if err != nil {
			t.Fatal(err)
		}
		root, err := NewRoot("ca", back, time.Now(), time.Hour)
		if err != nil {
			t.Fatal(err)
		}
		if _, err := NewAuthority(root.Chain, key); err != nil {
			t.Errorf("%s: %v", kind, err)
		}
		if _, err := NewAuthority(root.Chain, newKey(t)); err == nil {
			t.Errorf("%s: another key is taken for the CA's", kind)
		}
	}
	for _, text := range []string{"", "x", "-----BEGIN PRIVATE KEY-----\nAA==\n-----END PRIVATE KEY-----\n"} {
		if _, err := DecodeKey([]byte(text)); !errors.Is(err, ErrPEM) {
			t.Errorf("key %q: %v", text, err)
		}
		if _, err := DecodeCertificates([]byte(text)); !errors.Is(err, ErrPEM) {
			t.Errorf("certificate %q: %v", text, err)
		}
		if _, err := DecodeRequest([]byte(text)); !errors.Is(err, ErrPEM) {
			t.Errorf("request %q: %v", text, err)
		}
	}
}

// TestCommandOfARealRequest reads what the real tool asked for.
func TestCommandOfARealRequest(t *testing.T) {
	r, err := DecodeRequest(readFile(t, "team.req"))
	if err != nil {
		t.Fatal(err)
	}
	m, err := RequestedCommand(r)
	add, ok := m.(albatross.PolicyAdd)
	if err != nil || !ok || add.Policy.Unikernels != 2 || add.Policy.Memory != 64 || !slices.Equal(add.Policy.Bridges, []string{"br0"}) {
		t.Errorf("%+v, %v", m, err)
	}
	ours, err := NewRequest("team", m, newKey(t))
	if err != nil {
		t.Fatal(err)
	}
	for _, e := range ours.Extensions {
		if want := "301b020105a416a1143012300302010002010202014030050c03627230"; hex.EncodeToString(e.Value) != want {
			t.Errorf("extension %x, want %s", e.Value, want)
		}
	}
}
