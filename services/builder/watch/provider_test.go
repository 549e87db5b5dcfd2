package watch

import (
	"crypto/hmac"
	"crypto/sha256"
	"encoding/hex"
	"net/http"
	"net/url"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
)

// signed is what a provider sends in its header for a body.
func signed(p provider, secret string, body []byte) string {
	if p.token {
		return secret
	}
	mac := hmac.New(sha256.New, []byte(secret))
	mac.Write(body)
	return p.prefix + hex.EncodeToString(mac.Sum(nil))
}

// sample is the body of a push, as a provider sends it.
func sample(t *testing.T, p provider) []byte {
	t.Helper()
	body, err := os.ReadFile(filepath.Join("testdata", p.name+".json"))
	if err != nil {
		t.Fatal(err)
	}
	return body
}

// TestTheSignatureOfGitHub has the example that GitHub's documentation gives for testing an implementation.
func TestTheSignatureOfGitHub(t *testing.T) {
	h := http.Header{"X-Hub-Signature-256": {"sha256=757107ea0eb2509fc211221cce984b8a37570b6d7586c22c46f4379c8b043e17"}}
	if !providers()[0].authentic(h, []byte("Hello, World!"), []string{"It's a Secret to Everybody"}) {
		t.Error("it is not good")
	}
}

func TestAuthentic(t *testing.T) {
	secrets := []string{"old", "", "new"}
	for _, p := range providers() {
		body := sample(t, p)
		good := signed(p, "new", body)
		for name, c := range map[string]struct {
			header string
			want   bool
		}{
			"the first secret":                {signed(p, "old", body), true},
			"the last secret":                 {good, true},
			"another secret":                  {signed(p, "none", body), false},
			"the empty secret":                {signed(p, "", body), false},
			"no header":                       {"", false},
			"a part of it":                    {good[:len(good)-1], false},
			"nearly all of it":                {good[:len(good)-2], false},
			"more than it":                    {good + "0", false},
			"only the prefix":                 {p.prefix, false},
			"no hexadecimal digits":           {p.prefix + strings.Repeat("x", 64), false},
			"the older algorithm":             {"sha1=" + strings.Repeat("0", 40), false},
			"the secret, where it is not due": {"new", p.token},
		} {
			h := http.Header{}
			if c.header != "" {
				h.Set(p.signature, c.header)
			}
			if got := p.authentic(h, body, secrets); got != c.want {
				t.Errorf("%s: %s (%q) is %v", p.name, name, c.header, got)
			}
		}
		h := http.Header{}
		h.Set(p.signature, good)
		if !p.token && p.authentic(h, append(body, ' '), secrets) {
			t.Errorf("%s: the signature of another body is good", p.name)
		}
		if p.authentic(h, body, nil) {
			t.Errorf("%s: it is good without a secret", p.name)
		}
	}
	github := providers()[0]
	h := http.Header{"X-Hub-Signature-256": {strings.TrimPrefix(signed(github, "new", nil), "sha256=")}}
	if github.authentic(h, nil, secrets) {
		t.Error("a signature of GitHub without its prefix is good")
	}
}

func TestRepositoriesOfAPush(t *testing.T) {
	for _, p := range providers() {
		body := sample(t, p)
		urls, err := repositories("application/json; charset=utf-8", body)
		if err != nil {
			t.Fatal(err)
		}
		want := p.name + ".example/harbour/www"
		for _, u := range urls {
			if repository(u) != want {
				t.Errorf("%s: %s is %s, want %s", p.name, u, repository(u), want)
			}
		}
		if len(urls) < 3 {
			t.Errorf("%s names only %q", p.name, urls)
		}
		form := url.Values{"payload": {string(body)}}.Encode()
		same, err := repositories("application/x-www-form-urlencoded", []byte(form))
		if diff := cmp.Diff(urls, same); diff != "" || err != nil {
			t.Errorf("%s as a form: %v\n%s", p.name, err, diff)
		}
	}
	for _, body := range []string{"", "{", "[]", `"x"`, "{}", `{"repository":{"clone_url":7}}`, `{"repository":[]}`, `{"repository":null,"project":{"web_url":""}}`} {
		if urls, err := repositories("application/json", []byte(body)); err == nil {
			t.Errorf("%s names %q", body, urls)
		}
	}
	if _, err := repositories("application/x-www-form-urlencoded", []byte("payload=%zz")); err == nil {
		t.Error("a form that cannot be read is none")
	}
}

func TestRepository(t *testing.T) {
	const want = "git.example/harbour/www"
	for _, s := range []string{
		"https://git.example/harbour/www", "https://git.example/harbour/www.git", "https://git.example/harbour/www/", "https://git.example/harbour/www.git/",
		"https://GIT.Example/Harbour/WWW.git", "http://git.example:3000/harbour/www", "https://me:secret@git.example/harbour/www", "https://git.example./harbour//www",
		"ssh://git@git.example/harbour/www.git", "ssh://git@git.example:2222/harbour/www", "git@git.example:harbour/www.git", "git@git.example:/harbour/www",
		"git.example:harbour/www", "git://git.example/harbour/www.git",
	} {
		if got := repository(s); got != want {
			t.Errorf("%s is %q, want %q", s, got, want)
		}
	}
	for _, s := range []string{"", "https://git.example", "https://git.example/", "www", "a/b:c", "https://[", "https://git.example/.git"} {
		if got := repository(s); got != "" {
			t.Errorf("%s is %q", s, got)
		}
	}
	for _, s := range []string{"https://git.example/harbour/www2", "https://git.example.org/harbour/www", "https://git.example/www", "file:///git.example/harbour/www"} {
		if got := repository(s); got == want {
			t.Errorf("%s is %q", s, got)
		}
	}
}

func FuzzRepository(f *testing.F) {
	for _, s := range []string{"https://git.example/harbour/www.git", "git@git.example:harbour/www.git", "a:b", "://", "%zz"} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, s string) {
		if r := repository(s); strings.ToLower(r) != r {
			t.Errorf("%q is %q", s, r)
		}
	})
}
