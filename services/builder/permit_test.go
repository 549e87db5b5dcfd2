package builder

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/sha256"
	"crypto/x509"
	"encoding/base64"
	"encoding/pem"
	"fmt"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"fulmar/bus"
	"fulmar/bus/bustest"
	"fulmar/messages"
	fulmarv1 "fulmar/messages/fulmar/v1"
	"fulmar/services/builder/docker/dockertest"
	"fulmar/services/builder/policy"
)

const refusedByPolicy = fulmarv1.ReasonCode_REASON_CODE_POLICY

// signer signs images as cosign does.
type signer struct {
	t   *testing.T
	key *ecdsa.PrivateKey
}

func newSigner(t *testing.T) signer {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	return signer{t, key}
}

func (s signer) sign(body []byte) string {
	sum := sha256.Sum256(body)
	raw, err := ecdsa.SignASN1(rand.Reader, s.key, sum[:])
	if err != nil {
		s.t.Fatal(err)
	}
	return base64.StdEncoding.EncodeToString(raw)
}

// policy is one of rules, with the key of the signer by the name of ci.
func (s signer) policy(rules string) *policy.Policy {
	s.t.Helper()
	der, err := x509.MarshalPKIXPublicKey(s.key.Public())
	if err != nil {
		s.t.Fatal(err)
	}
	key := strings.ReplaceAll(string(pem.EncodeToMemory(&pem.Block{Type: "PUBLIC KEY", Bytes: der})), "\n", "\n    ")
	p, err := policy.Parse([]byte("allow:\n" + rules + "\nkeys:\n  ci: |\n    " + key))
	if err != nil {
		s.t.Fatal(err)
	}
	return p
}

// startWith runs a builder with a policy.
func (w *world) startWith(p *policy.Policy) {
	w.t.Helper()
	c := w.config()
	c.Policy = p
	w.background(New(bustest.Open(w.t, w.server, bus.Options{Service: "builder", AckWait: time.Second}), c, prometheus.NewRegistry()).Run)
}

func deployImage(image string) string {
	return `{"network":"lan","units":[{"image":{` + image + `},"health":[{"icmp":{}}]}]}`
}

func TestASourceThatIsNotAllowedIsRejectedBeforeAnythingIsFetched(t *testing.T) {
	w := newWorld(t)
	var asked atomic.Int32
	server := httptest.NewServer(http.HandlerFunc(func(http.ResponseWriter, *http.Request) { asked.Add(1) }))
	t.Cleanup(server.Close)
	path, digest := w.image(1)
	w.startWith(newSigner(t).policy("  - source: file:" + w.root + "/*"))
	for _, image := range []string{
		fmt.Sprintf(`"url":"%s/image","sha256":"%s"`, server.URL, digest), fmt.Sprintf(`"url":"%s/image","sha256_url":"%s/sum"`, server.URL, server.URL),
		`"object":"` + digest + `"`, `"docker":{"image":"www"}`, `"git":{"url":"` + server.URL + `/www","dockerfile":{}}`,
	} {
		e := w.await(w.request(deployKind, "web", deployImage(image)), messages.Rejected)
		if e.GetReasonCode() != refusedByPolicy || !strings.HasPrefix(e.GetReason(), "unit web: policy: source ") {
			t.Errorf("%s: %v: %s", image, e.GetReasonCode(), e.GetReason())
		}
	}
	if asked.Load() > 0 {
		t.Error("something was fetched")
	}
	generation := w.request(deployKind, "web", deployOf(path))
	w.await(generation, messages.Accepted)
	w.await(generation, messages.Built)
}

func TestAnImageThatMustBeSigned(t *testing.T) {
	w := newWorld(t)
	ci := newSigner(t)
	path, digest := w.image(1)
	body, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	files := map[string]string{
		"/unsigned": string(body), "/beside": string(body), "/beside.sig": ci.sign(body),
		"/other": string(body), "/other.sig": ci.sign([]byte("another image")), "/other.minisig": "untrusted comment: none\n",
	}
	server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		text, ok := files[r.URL.Path]
		if !ok {
			http.NotFound(w, r)
			return
		}
		_, _ = w.Write([]byte(text))
	}))
	t.Cleanup(server.Close)
	w.startWith(ci.policy("  - source: '**'\n    signed: [ci]"))
	quoted := func(s string) string { return `"signatures":["` + s + `"]` }
	for image, want := range map[string]string{
		`"file":"` + path + `"`: "an image of " + path + " must be signed by ci, and it has no signature",
		`"file":"` + path + `",` + quoted(newSigner(t).sign(body)):           "signature 1 does not fit the image, or is by another key",
		`"file":"` + path + `",` + quoted("anything"):                        "signature 1 ",
		fmt.Sprintf(`"url":"%s/unsigned","sha256":"%s"`, server.URL, digest): "and it has no signature",
		fmt.Sprintf(`"url":"%s/other","sha256":"%s"`, server.URL, digest):    "signature 1 is not as minisign writes it; signature 2 does not fit the image",
	} {
		generation := w.request(deployKind, "web", deployImage(image))
		w.await(generation, messages.Accepted)
		e := w.await(generation, messages.Failed)
		if e.GetReasonCode() != refusedByPolicy || !strings.Contains(e.GetReason(), want) {
			t.Errorf("%s: %v: %s, want %q", image, e.GetReasonCode(), e.GetReason(), want)
		}
	}
	for _, image := range []string{
		`"file":"` + path + `",` + quoted(ci.sign(body)), `"object":"` + digest + `",` + quoted(ci.sign(body)),
		fmt.Sprintf(`"url":"%s/beside?a=b","sha256":"%s"`, server.URL, digest), fmt.Sprintf(`"url":"%s/unsigned","sha256":"%s",%s`, server.URL, digest, quoted(ci.sign(body))),
	} {
		generation := w.request(deployKind, "web", deployImage(image))
		w.await(generation, messages.Accepted)
		w.await(generation, messages.Built)
	}
}

func TestWhatWasDeployedBeforeIsNotAskedForAgain(t *testing.T) {
	w := newWorld(t)
	path, _ := w.image(1)
	body, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	stop := w.start()
	for _, path := range []string{path, w.file("other.spt", append(body, 0))} {
		generation := w.request(deployKind, "web", deployOf(path))
		w.await(generation, messages.Accepted)
		w.serve(w.await(generation, messages.Built))
	}
	stop()
	w.startWith(newSigner(t).policy("  - source: docker:**\n    signed: [ci]"))
	for _, kind := range []fulmarv1.Kind{rollbackKind, renewKind} {
		generation := w.request(kind, "web", "")
		w.await(generation, messages.Accepted)
		w.await(generation, messages.Built)
	}
	w.await(w.request(deployKind, "web", deployOf(path)), messages.Rejected)
}

func TestWhatIsNotSignedPassesUnderNoOtherName(t *testing.T) {
	w := newWorld(t)
	api := w.withEngine()
	body, digest := w.guest()
	files := map[string]string{"Dockerfile": "FROM scratch\nCOPY guest /unikernel\n", "guest": string(body)}
	staging := w.repository("staging", files)
	files["README"] = "released"
	released := w.repository("released", files)
	commit := w.git(filepath.Join(w.root, "staging"), "rev-parse", "HEAD")
	private := dockertest.Import(t, api, "fulmar-builder-private:test", dockertest.File{Name: "unikernel", Body: body})
	path := w.file("released.spt", append(body, 0))
	server := httptest.NewServer(http.HandlerFunc(func(rw http.ResponseWriter, r *http.Request) {
		if strings.HasPrefix(r.URL.Path, "/open/to") {
			http.Redirect(rw, r, "/elsewhere/image", http.StatusFound)
			return
		}
		_, _ = rw.Write(body)
	}))
	t.Cleanup(server.Close)
	w.startWith(newSigner(t).policy(strings.Join([]string{
		"  - source: git+" + staging, "    signed: [ci]", "  - source: git+" + released, "  - source: file:" + path,
		"  - source: docker:docker.io/library/fulmar-builder-private:test", "    signed: [ci]", "  - source: docker:docker.io/library/*", "  - source: " + server.URL + "/open/**",
	}, "\n")))
	for _, c := range []struct{ image, want string }{
		{fmt.Sprintf(`"git":{"url":%q,"ref":"main","dockerfile":{}}`, staging), "must be signed by ci"}, // it is in the store then
		{fmt.Sprintf(`"git":{"url":%q,"ref":%q,"dockerfile":{}}`, released, commit), "it is not there"},
		{fmt.Sprintf(`"file":%q,"sha256":%q`, path, digest), "as the request says"},
		{fmt.Sprintf(`"docker":{"image":%q,"pull":"never"}`, strings.TrimPrefix(private, "sha256:")[:12]), "the engine does not have it"},
		{fmt.Sprintf(`"url":%q,"sha256":%q`, server.URL+"/open/to", digest), "redirected from " + server.URL + "/open/to: policy: source " + server.URL + "/elsewhere/image is none"},
	} {
		generation := w.request(deployKind, "web", deployImage(c.image))
		w.await(generation, messages.Accepted)
		if e := w.first(generation); e.GetVerb() != string(messages.Failed) || !strings.Contains(e.GetReason(), c.want) {
			t.Errorf("%s: %s: %s, want %q", c.image, e.GetVerb(), e.GetReason(), c.want)
		}
	}
}
