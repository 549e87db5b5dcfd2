package policy_test

import (
	"os"
	"path/filepath"
	"strings"
	"testing"

	"google.golang.org/protobuf/encoding/protojson"

	"fulmar/messages"
	fulmarv1 "fulmar/messages/fulmar/v1"
	"fulmar/services/builder/policy"
)

const sum = "0000000000000000000000000000000000000000000000000000000000000000"

func image(t *testing.T, text string) *fulmarv1.Image {
	t.Helper()
	i := &fulmarv1.Image{}
	if err := protojson.Unmarshal([]byte("{"+text+"}"), i); err != nil {
		t.Fatal(err)
	}
	return i
}

func parse(t testing.TB, text string) *policy.Policy {
	t.Helper()
	p, err := policy.Parse([]byte(text))
	if err != nil {
		t.Fatal(err)
	}
	return p
}

func wantRefusal(t *testing.T, err error, text string) {
	t.Helper()
	if r, ok := messages.AsRefusal(err); !ok || r.Code != fulmarv1.ReasonCode_REASON_CODE_POLICY || !strings.Contains(err.Error(), text) {
		t.Errorf("refused: %v, %v; want %q", ok, err, text)
	}
}

func read(t testing.TB, name string) string {
	t.Helper()
	text, err := os.ReadFile(filepath.Join("testdata", name))
	if err != nil {
		t.Fatal(err)
	}
	return string(text)
}

func TestSource(t *testing.T) {
	for text, want := range map[string]string{
		`"file":"/srv/a/../b"`:                                         "file:/srv/b",
		`"object":"` + sum + `"`:                                       "object:" + sum,
		`"oci":{"layout":"/srv/a"}`:                                    "oci:/srv/a",
		`"url":"HTTPS://jo:s3cret@A.example:443/b?c=d#e"`:              "https://a.example/b?c=d",
		`"url":"http://a.example:8080"`:                                "http://a.example:8080",
		`"docker":{"image":"www"}`:                                     "docker:docker.io/library/www:latest",
		`"docker":{"image":"registry.example/a/www:live"}`:             "docker:registry.example/a/www:live",
		`"docker":{"image":"registry.example/www@sha256:` + sum + `"}`: "docker:registry.example/www@sha256:" + sum,
		`"docker":{"image":"` + sum + `"}`:                             "docker:sha256:" + sum,
		`"git":{"url":"https://git.example/www/"}`:                     "git+https://git.example/www",
		`"git":{"url":"ssh://git@git.example:22/www"}`:                 "git+ssh://git.example/www",
		`"git":{"url":"git@git.example:a/www"}`:                        "git+ssh://git.example/a/www",
		`"git":{"url":"file:///srv/www.git"}`:                          "git+file:///srv/www.git",
		`"git":{"url":"https://git.example/evil?/www"}`:                "git+https://git.example/evil",
		`"git":{"url":"https://git.example/team-a%2Fwww"}`:             "git+https://git.example/team-a/www",
		`"git":{"url":"git@git.example:evil#/www"}`:                    "git+ssh://git.example/evil%23/www",
	} {
		if got, err := policy.Source(image(t, text)); err != nil || got != want {
			t.Errorf("Source(%s) = %q, %v, want %q", text, got, err, want)
		}
	}
	for _, text := range []string{
		`"url":"https://a.example/b/../c"`, `"url":"https://a.example/b/%2e%2e/c"`, `"url":"https://a.example/b%2f..%2Fc"`, `"url":"https://a.example//b"`,
		`"git":{"url":"https://git.example/a/./b"}`, `"git":{"url":"git@git.example:a/../b"}`, `"docker":{"image":"WWW"}`, "",
	} {
		if got, err := policy.Source(image(t, text)); err == nil {
			t.Errorf("Source(%s) = %q, and it could stand for another", text, got)
		}
	}
}

func TestAllow(t *testing.T) {
	p := parse(t, `
allow:
  - source: git+https://git.example/unikernels/*#v*
  - source: git+https://git.example/open/**
    additions: true
  - source: git+ssh://git.example/plain
  - source: docker:registry.example/*:live
  - source: docker:docker.io/library/**
  - source: oci:/srv/images/*
  - source: https://artefacts.example/**
  - source: https://*.ci.example/*/www
  - source: https://jobs.example/**/www?job=build
`)
	const git = `"git":{"url":"`
	for _, text := range []string{
		git + `https://git.example/unikernels/www","ref":"v1"`, git + `https://git.example/open/a/b","ref":"any"`, git + `git@git.example:plain"`,
		git + `https://git.example/open/a","mirage":{"base":"ocaml","instructions":["RUN true"]}`, git + `https://git.example/open/a","dockerfile":{"args":{"a":"b"}}`,
		`"docker":{"image":"registry.example/www:live"`, `"docker":{"image":"www"`, `"oci":{"layout":"/srv/images/www.tar"`,
	} {
		if err := p.Allow(image(t, text+"}")); err != nil {
			t.Errorf("Allow(%s) = %v", text, err)
		}
	}
	for text, want := range map[string]string{
		git + `https://git.example/unikernels/www","ref":"main"`:         "source git+https://git.example/unikernels/www#main is none that this builder takes from",
		git + `https://git.example/unikernels/www"`:                      "is none that this builder takes from",
		git + `https://git.example/unikernels/a/b","ref":"v1"`:           "is none that this builder takes from",
		git + `https://git.example/unikernels/../x","ref":"v1"`:          "it could pass for another",
		git + `https://git.example.evil/open/a"`:                         "is none that this builder takes from",
		git + `https://git.example/open"`:                                "is none that this builder takes from",
		git + `git@git.example:plain","dockerfile":{"args":{"a":"b"}}`:   "the request adds build arguments to the build of git@git.example:plain, which this builder does not take",
		git + `git@git.example:plain","mirage":{"instructions":["RUN"]}`: "the request adds instructions",
		git + `git@git.example:plain","mirage":{"base":"evil"}`:          "the request adds a base image",
		`"docker":{"image":"registry.example/www:next"`:                  "source docker:registry.example/www:next is none",
		`"docker":{"image":"registry.example/a/www:live"`:                "is none",
		`"docker":{"image":"registry.example.evil/www:live"`:             "is none",
		`"docker":{"image":"` + sum + `"`:                                "is none",
		`"oci":{"layout":"/srv/images/../www.tar"`:                       "source oci:/srv/www.tar is none",
		git + `https://git.example/unikernels/www#v1","ref":"main"`:      "is none",
	} {
		wantRefusal(t, p.Allow(image(t, text+"}")), want)
	}
	for _, text := range []string{`"url":"https://artefacts.example/www?job=build"`, `"url":"https://a.ci.example/b/www"`, `"url":"https://jobs.example/a/b/www?job=build"`} {
		if err := p.Allow(image(t, text)); err != nil {
			t.Errorf("Allow(%s) = %v", text, err)
		}
	}
	for _, text := range []string{
		`"object":"` + sum + `"`, `"file":"/srv/images/www"`, "",
		`"url":"https://evil.example?.ci.example/b/www"`, `"url":"https://a.ci.example/evil?/www"`, `"url":"https://jobs.example/evil?/www?job=build"`,
	} {
		if err := p.Allow(image(t, text)); err == nil {
			t.Errorf("Allow(%s) takes it", text)
		} else {
			wantRefusal(t, err, "")
		}
	}
	if err := p.Allow(image(t, `"url":"https://artefacts.example/www","sha256_url":"https://artefacts.example/www.sha256"`)); err != nil {
		t.Error(err)
	}
	wantRefusal(t, p.Allow(image(t, `"url":"https://artefacts.example/www","sha256_url":"https://jo:s3cret@evil.example/www"`)), "source https://evil.example/www is none")
	var none *policy.Policy
	if err := none.Allow(image(t, `"file":"/a"`)); err != nil {
		t.Errorf("without a policy: %v", err)
	}
}

func TestTheRefIsNoPartOfTheRepository(t *testing.T) {
	p := parse(t, "allow: [{source: 'git+https://git.example/**#main'}]")
	const repository = `"git":{"url":"https://git.example/www","ref":"`
	if err := p.Allow(image(t, repository+`main"}`)); err != nil {
		t.Error(err)
	}
	wantRefusal(t, p.Allow(image(t, repository+`other#main"}`)), "source git+https://git.example/www#other#main is none")
}

func TestParseRefuses(t *testing.T) {
	for text, want := range map[string]string{
		"":                              "it allows no source",
		"allow: []":                     "it allows no source",
		"allow: [{source: 'www'}]":      `source "www" is the pattern of no source`,
		"allow: [{source: ''}]":         `source "" is the pattern of no source`,
		"allow: [{sources: 'file:/a'}]": `unknown field "sources"`,
		"allow: [{source: 'file:/a', signed: [release]}]":                             `source "file:/a" is to be signed by release, and there is no such key`,
		"keys: {release: RWQ}\nallow: [{source: '**'}]":                               "key release: it is neither a public key of minisign nor one of PEM",
		"keys: {ci: '-----BEGIN PUBLIC KEY-----'}\nallow: [{source: '**'}]":           "key ci: it is not one PEM block of a public key",
		"allow: [{source: '**'}]\nkeys:\n  short: |\n" + indent(read(t, "short.pem")): "key short: it has 1024 bits, fewer than 2048",
	} {
		if _, err := policy.Parse([]byte(text)); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("Parse(%q) = %v, want %q", text, err, want)
		}
	}
	if p, err := policy.Load(""); p != nil || err != nil {
		t.Errorf("Load of no file = %v, %v", p, err)
	}
	if _, err := policy.Load(filepath.Join(t.TempDir(), "absent")); err == nil || !strings.Contains(err.Error(), "read the policy") {
		t.Errorf("Load of a file that is not there = %v", err)
	}
}

func indent(text string) string {
	return "    " + strings.ReplaceAll(strings.TrimSpace(text), "\n", "\n    ") + "\n"
}

// keys are those of testdata.
func keys(t testing.TB) string {
	text := "keys:\n"
	for name, file := range map[string]string{"release": "release.pub", "other": "other.pub", "ecdsa": "ecdsa.pem", "rsa": "rsa.pem", "ed25519": "ed25519.pem"} {
		text += "  " + name + ": |\n" + indent(read(t, file))
	}
	return text
}

func TestVerify(t *testing.T) {
	f, err := os.Open("testdata/image")
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	changed, err := os.Create(filepath.Join(t.TempDir(), "image"))
	if err != nil {
		t.Fatal(err)
	}
	defer changed.Close()
	if _, err := changed.WriteString("an imagE\n"); err != nil {
		t.Fatal(err)
	}
	i := image(t, `"file":"/srv/www"`)
	for signature, key := range map[string]string{"release.minisig": "release", "legacy.minisig": "release", "ecdsa.sig": "ecdsa", "rsa.sig": "rsa", "ed25519.sig": "ed25519"} {
		t.Run(signature, func(t *testing.T) {
			by := func(keyNames string) *policy.Policy {
				return parse(t, "allow: [{source: '**', signed: ["+keyNames+"]}]\n"+keys(t))
			}
			good := read(t, signature)
			for _, signatures := range [][]string{{good}, {strings.TrimSpace(good)}, {strings.ReplaceAll(good, "\n", "\r\n")}, {"junk", read(t, "other.minisig"), good}} {
				if err := by("rsa, "+key).Verify(i, f, signatures); err != nil {
					t.Errorf("Verify = %v", err)
				}
			}
			wantRefusal(t, by(key).Verify(i, changed, []string{good}), "an image of /srv/www must be signed by "+key+": signature 1 does not fit the image")
			wantRefusal(t, by("other").Verify(i, f, []string{good}), "must be signed by other: signature 1 is by another key")
			wantRefusal(t, by(key).Verify(i, f, nil), "an image of /srv/www must be signed by "+key+", and it has no signature")
			wantRefusal(t, by(key).Verify(i, f, []string{"junk!"}), "signature 1 is neither one of minisign nor the base64 of cosign")
		})
	}
	var none *policy.Policy
	if err := none.Verify(i, f, nil); err != nil || none.Signers(i) != nil {
		t.Errorf("without a policy: %v", err)
	}
	unsigned := parse(t, "allow: [{source: 'file:**'}, {source: '**', signed: [rsa]}]\n"+keys(t))
	if err := unsigned.Verify(i, f, nil); err != nil {
		t.Errorf("what need not be signed: %v", err)
	}
	wantRefusal(t, unsigned.Verify(image(t, `"object":"`+sum+`"`), f, nil), "must be signed by rsa")
}

func TestAMinisignatureIsWhole(t *testing.T) {
	f, err := os.Open("testdata/image")
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	p := parse(t, "allow: [{source: '**', signed: [release]}]\n"+keys(t))
	good, old := read(t, "release.minisig"), read(t, "legacy.minisig")
	lines, oldLines := strings.Split(good, "\n"), strings.Split(old, "\n")
	for change, want := range map[string]string{
		strings.Replace(good, "image of release", "image of others", 1):                 "has a comment that is not signed",
		strings.Join([]string{lines[0], oldLines[1], lines[2], lines[3]}, "\n"):         "has a comment that is not signed",
		strings.Join([]string{lines[0], "RW" + lines[1][2:], lines[2], lines[3]}, "\n"): "does not fit the image", // signed as if over the image itself
		strings.Join([]string{lines[0], "AA" + lines[1][2:], lines[2], lines[3]}, "\n"): "is not as minisign writes it",
		strings.Join(lines[:3], "\n"): "is not as minisign writes it",
		strings.Join([]string{lines[0], lines[1], lines[2], lines[3], "more"}, "\n"): "is not as minisign writes it",
		strings.Join([]string{lines[0], lines[1][:40], lines[2], lines[3]}, "\n"):    "is not as minisign writes it",
		read(t, "other.minisig"): "signature 1 is by another key, ",
	} {
		wantRefusal(t, p.Verify(image(t, `"file":"/srv/www"`), f, []string{change}), want)
	}
}

func FuzzVerify(f *testing.F) {
	for _, name := range []string{"release.minisig", "legacy.minisig", "ecdsa.sig", "ed25519.sig"} {
		text, err := os.ReadFile(filepath.Join("testdata", name))
		if err != nil {
			f.Fatal(err)
		}
		f.Add(string(text))
	}
	p := parse(f, "allow: [{source: '**', signed: [release, other, ecdsa, rsa, ed25519]}]\n"+keys(f))
	f.Fuzz(func(t *testing.T, signature string) {
		changed, err := os.Create(filepath.Join(t.TempDir(), "image"))
		if err != nil {
			t.Fatal(err)
		}
		defer changed.Close()
		if _, err := changed.WriteString("another image\n"); err != nil {
			t.Fatal(err)
		}
		wantRefusal(t, p.Verify(image(t, `"file":"/srv/www"`), changed, []string{signature}), "")
	})
}
