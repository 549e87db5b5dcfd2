package credential_test

import (
	"bytes"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"fulmar/messages"
	fulmarv1 "fulmar/messages/fulmar/v1"
	"fulmar/services/builder/credential"
)

const key = "-----BEGIN OPENSSH PRIVATE KEY-----\nc2VjcmV0\n-----END OPENSSH PRIVATE KEY-----\n"

func TestParse(t *testing.T) {
	for name, c := range map[string]struct {
		text string
		want credential.Credential
	}{
		"a user and a password":              {"username=jo\npassword=s3cr=t \n", credential.Credential{Username: "jo", Password: "s3cr=t "}},
		"a token alone":                      {"password=token", credential.Credential{Password: "token"}},
		"a comment, empty lines and returns": {"# robot\r\n\r\npassword=p\r\nusername=jo\r\n", credential.Credential{Username: "jo", Password: "p"}},
		"a private key":                      {key, credential.Credential{Key: []byte(key)}},
		"a private key without its last end": {strings.TrimSpace(key), credential.Credential{Key: []byte(key)}},
		"a password for hosts":               {"host=h\nhost=H:1\npassword=p", credential.Credential{Password: "p", Hosts: []string{"h", "H:1"}}},
		"a private key of a user":            {"username=git\n" + key, credential.Credential{Username: "git", Key: []byte(key)}},
	} {
		t.Run(name, func(t *testing.T) {
			got, err := credential.Parse([]byte(c.text))
			if err != nil {
				t.Fatal(err)
			}
			if diff := cmp.Diff(c.want, got); diff != "" || got.Password != c.want.Password {
				t.Errorf("parsed (-want +got):\n%s", diff)
			}
		})
	}
}

func TestParseRefuses(t *testing.T) {
	for text, want := range map[string]string{
		"":                             "neither a password nor a private key",
		"username=jo":                  "neither a password nor a private key",
		"secret":                       "line 1: it sets no field with =",
		"\nsecret=s3cret":              "line 2: it sets none of username, password and host",
		"password=s3cret\npassword=b":  "line 2: password is set twice",
		"password=":                    "line 1: password is empty",
		"password=s3cret\n" + key:      "both a password and a private key",
		strings.Repeat("#s3cret", 1e4): "more than 65536 bytes",
	} {
		_, err := credential.Parse([]byte(text))
		if err == nil || !strings.Contains(err.Error(), want) || strings.Contains(err.Error(), "s3cret") {
			t.Errorf("Parse(%.40q) = %v, want %q and no secret", text, err, want)
		}
	}
}

func TestACredentialShowsNothingOfItself(t *testing.T) {
	c := credential.Credential{Username: "jo", Password: "s3cret", Key: []byte("s3cret")}
	var log bytes.Buffer
	slog.New(slog.NewTextHandler(&log, nil)).Info("seen", "credential", c, "pointer", &c)
	said := fmt.Sprintf("%v %+v %#v %s %v %#v", c, c, c, c, &c, struct{ C credential.Credential }{c}) + log.String()
	if strings.Contains(said, "s3cret") || strings.Contains(said, "jo") {
		t.Errorf("it was shown: %s", said)
	}
}

func TestLoad(t *testing.T) {
	dir := t.TempDir()
	for name, text := range map[string]string{"registry": "username=jo\npassword=p\n", "broken": "password"} {
		if err := os.WriteFile(filepath.Join(dir, name), []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	if got, err := credential.Directory(dir).Load("registry"); err != nil || got.Username != "jo" || got.Password != "p" {
		t.Errorf("Load of a credential that is there fails: %v", err)
	}
	if got, err := credential.Directory("").Load(""); err != nil || got.Username != "" {
		t.Errorf("Load of no credential fails: %v", err)
	}
	for _, c := range []struct {
		dir, name, want string
		code            fulmarv1.ReasonCode
	}{
		{dir, "absent", "credential absent: this builder holds none of that name", fulmarv1.ReasonCode_REASON_CODE_NOT_FOUND},
		{"", "registry", "credential registry: this builder holds none (--credentials)", fulmarv1.ReasonCode_REASON_CODE_NOT_FOUND},
		{dir, "../registry", `credential "../registry": a name is made of`, fulmarv1.ReasonCode_REASON_CODE_INVALID},
		{dir, "broken", "credential broken: line 1: it sets no field with =", fulmarv1.ReasonCode_REASON_CODE_INVALID},
	} {
		_, err := credential.Directory(c.dir).Load(c.name)
		if r, ok := messages.AsRefusal(err); !ok || r.Code != c.code || !strings.Contains(err.Error(), c.want) {
			t.Errorf("Load(%q) = %v, want %v %q", c.name, err, c.code, c.want)
		}
	}
}

func TestAPasswordIsForItsHosts(t *testing.T) {
	for _, c := range []struct {
		credential credential.Credential
		host       string
		want       bool
	}{
		{credential.Credential{Password: "p"}, "h", false},
		{credential.Credential{Password: "p", Hosts: []string{"g", "h"}}, "h", true},
		{credential.Credential{Password: "p", Hosts: []string{"h"}}, "H:8443", true},
		{credential.Credential{Password: "p", Hosts: []string{"h:443"}}, "h:8443", false},
		{credential.Credential{Password: "p", Hosts: []string{"h:443"}}, "h:443", true},
		{credential.Credential{Password: "p", Hosts: []string{"h"}}, "h.example", false},
		{credential.Credential{Password: "p", Hosts: []string{"::1"}}, "[::1]:80", true},
		{credential.Credential{Key: []byte("k")}, "h", true},
		{credential.Credential{Key: []byte("k"), Hosts: []string{"g"}}, "h", false},
		{credential.Credential{}, "h", true},
	} {
		err := c.credential.For(c.host)
		if (err == nil) != c.want || err != nil && strings.Contains(err.Error(), "=p") {
			t.Errorf("a credential for %q is for %s: %v, want %v", c.credential.Hosts, c.host, err, c.want)
		}
	}
}
