package remote

import (
	"bytes"
	"crypto/tls"
	"crypto/x509"
	"encoding/hex"
	"encoding/json"
	"net"
	"os"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"fulmar/albatross"
)

// session is a conversation with the real endpoint.
type session struct {
	ID     string `json:"id"`
	Chain  string `json:"client_chain_pem"`
	Frames []struct {
		Dir string `json:"dir"`
		Len int    `json:"len"`
		Hex string `json:"hex"`
	} `json:"frames"`
	End string `json:"end"`
}

func sessions(t *testing.T) []session {
	t.Helper()
	text, err := os.ReadFile("testdata/tls_sessions.jsonl")
	if err != nil {
		t.Fatal(err)
	}
	var list []session
	for line := range strings.Lines(string(text)) {
		var s session
		if err := json.Unmarshal([]byte(line), &s); err != nil {
			t.Fatal(err)
		}
		list = append(list, s)
	}
	return list
}

// heard is what the endpoint said, with the sequence that ours has.
func (s session) heard(t *testing.T) (list []albatross.Wire) {
	t.Helper()
	for _, f := range s.Frames {
		if f.Dir != "s2c" || f.Hex == "" {
			continue
		}
		der, err := hex.DecodeString(f.Hex)
		if err != nil {
			t.Fatal(err)
		}
		w, err := albatross.Unmarshal(der)
		if err != nil {
			t.Fatal(err)
		}
		w.Sequence = 0
		list = append(list, w)
	}
	return list
}

// said is what the client sends after the handshake. The content of chunks is not recorded.
func (s session) said() []byte {
	var b bytes.Buffer
	for _, f := range s.Frames {
		if f.Dir == "c2s" {
			_ = albatross.WriteFrame(&b, make([]byte, f.Len))
		}
	}
	return b.Bytes()
}

// TestServerAnswersAsTheRealOne makes the certificates of each session again under a CA of its own, has a daemon answer as the
// real one did, and compares what the client hears.
func TestServerAnswersAsTheRealOne(t *testing.T) {
	for _, s := range sessions(t) {
		if s.Chain == "" || s.ID == "tls-py-tls12" || s.ID == "tls-py-unknown-ca" || s.ID == "tls-py-missing-mid" {
			continue // no handshake is done
		}
		t.Run(s.ID, func(t *testing.T) {
			want := s.heard(t)
			l := newLab(t, Config{}, func(conn net.Conn, h albatross.Header, m albatross.Command) {
				if set, ok := m.(albatross.BlockSet); ok {
					if err := readBlock(conn, set); err != nil {
						t.Error(err)
					}
				}
				for _, w := range want {
					if err := albatross.WriteReply(conn, w.Header, w.Payload); err != nil {
						t.Error(err)
					}
				}
			})
			got, err := l.raw(again(t, l.root, s), s.said())
			if err != nil {
				t.Errorf("it ended with %v", err)
			}
			if diff := cmp.Diff(want, got, cmp.Comparer(func(a, b albatross.Name) bool { return a == b })); diff != "" {
				t.Error(diff)
			}
			if len(want) > 0 && s.ID != "tls-py-wide" {
				saw := l.daemon.commands()
				if last := saw[len(saw)-1]; last.Name != want[0].Name {
					t.Errorf("the daemon was asked for %v, want %v", last.Name, want[0].Name)
				}
			}
		})
	}
}

func readBlock(conn net.Conn, _ albatross.BlockSet) error {
	for {
		if chunk, err := albatross.ReadFrame(conn, 1<<20); err != nil || len(chunk) == 0 {
			return err
		}
	}
}

// again makes the certificates of a session under another root, in the order in which they were sent.
func again(t *testing.T, root *Authority, s session) tls.Certificate {
	t.Helper()
	recorded, err := DecodeCertificates([]byte(s.Chain))
	if err != nil {
		t.Fatal(err)
	}
	byName := map[string]*x509.Certificate{}
	for _, c := range recorded {
		byName[c.Subject.CommonName] = c
	}
	var list []forged
	for c := recorded[0]; c != nil && c.Issuer.CommonName != c.Subject.CommonName; c = byName[c.Issuer.CommonName] {
		f := forged{cn: c.Subject.CommonName, ca: c.IsCA, usage: c.ExtKeyUsage}
		for _, e := range c.Extensions {
			if e.Id.Equal(albatross.ExtensionOID()) {
				f.extension = e.Value
			}
		}
		list = append([]forged{f}, list...)
	}
	made := forge(t, root, list...)
	if len(recorded) > 2 && recorded[1].Subject.CommonName == recorded[2].Issuer.CommonName { // sent in reverse
		made.Certificate[1], made.Certificate[2] = made.Certificate[2], made.Certificate[1]
	}
	if last := recorded[len(recorded)-1]; last.Subject.CommonName == "ca" {
		made.Certificate = append(made.Certificate, root.Chain[0].Raw)
	}
	return made
}

// TestReadChainOfRealCertificates reads the very certificates of the real tools, as of when they were valid.
func TestReadChainOfRealCertificates(t *testing.T) {
	text, err := os.ReadFile("testdata/tls/cacert.pem")
	if err != nil {
		t.Fatal(err)
	}
	roots := x509.NewCertPool()
	if !roots.AppendCertsFromPEM(text) {
		t.Fatal("no root")
	}
	for _, s := range sessions(t) {
		if s.Chain == "" {
			continue
		}
		t.Run(s.ID, func(t *testing.T) {
			peer, err := DecodeCertificates([]byte(s.Chain))
			if err != nil {
				t.Fatal(err)
			}
			chain, err := verify(peer, roots, x509.ExtKeyUsageAny, peer[0].NotBefore.Add(time.Minute))
			if refused := strings.Contains(s.End, "BAD_CERTIFICATE"); refused != (err != nil) {
				t.Fatalf("verified with %v, but it ended with %s", err, s.End)
			}
			if err != nil {
				return
			}
			r, err := ReadChain(chain)
			answered := len(s.Frames) > 0 || s.ID == "tls-py-tls12"
			if answered != (err == nil) {
				t.Fatalf("read with %v, but it had %d frames", err, len(s.Frames))
			}
			if want := s.heard(t); len(want) > 0 && r.Name != want[0].Name {
				t.Errorf("name %v, want %v", r.Name, want[0].Name)
			}
		})
	}
}

func TestNamesOfLeaves(t *testing.T) {
	path, err := albatross.ParsePath("user:team")
	if err != nil {
		t.Fatal(err)
	}
	for cn, want := range map[string]string{
		"": "user:team:", ".": "user:team:", ":": "user:team:", "web": "user:team:web", "Web": "user:team:web", "a.b": "user:team:a.b", "..": "user:team:..",
		"a_b": "", "a:b": "", "a:": "", "-a": "", "a\x00": "",
	} {
		got, err := leafName(path, cn)
		if (err == nil) != (want != "") || err == nil && got.String() != want {
			t.Errorf("%q: %v, %v, want %q", cn, got, err, want)
		}
	}
}
