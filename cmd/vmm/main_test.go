package main

import (
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/alecthomas/kong"
	"github.com/google/go-cmp/cmp"

	"fulmar/albatross"
	"fulmar/albatross/remote"
)

// parse reads a command line.
func parse(t *testing.T, args ...string) config {
	t.Helper()
	var cfg config
	p, err := kong.New(&cfg)
	if err == nil {
		_, err = p.Parse(args)
	}
	if err != nil {
		t.Fatal(err)
	}
	return cfg
}

// delegate makes the files of a root CA and of a CA that it delegated a path to.
func delegate(t *testing.T) (root, cert, key string) {
	t.Helper()
	dir := t.TempDir()
	file := func(name string, text []byte, err error) string {
		t.Helper()
		path := filepath.Join(dir, name)
		if err == nil {
			err = os.WriteFile(path, text, 0o600)
		}
		if err != nil {
			t.Fatal(err)
		}
		return path
	}
	private, err := remote.NewKey("ed25519")
	if err != nil {
		t.Fatal(err)
	}
	top, err := remote.NewRoot("root", private, time.Now(), time.Hour)
	if err != nil {
		t.Fatal(err)
	}
	ca, err := top.Delegate("fulmar", albatross.Policy{Unikernels: 1, Memory: 32}, time.Now())
	if err != nil {
		t.Fatal(err)
	}
	text, err := remote.EncodeKey(ca.Key)
	key = file("ca.key", text, err)
	root = file("root.pem", remote.EncodeCertificates(top.Chain...), nil)
	return root, file("ca.pem", remote.EncodeCertificates(ca.Chain[0]), nil), key
}

func TestARemoteDaemonIsNamedByFiles(t *testing.T) {
	root, cert, key := delegate(t)
	t.Setenv("VMM_TARGETS", "spt,hvt")
	t.Setenv("VMM_REMOTE", "far:1025")
	t.Setenv("VMM_CA", root)
	t.Setenv("VMM_CERT", cert)
	t.Setenv("VMM_KEY", key)
	t.Setenv("VMM_INFLUX", "tcp://db:8094")
	c, err := parse(t).vmm()
	if err != nil {
		t.Fatal(err)
	}
	if c.Remote == nil || c.Remote.Client.Open == nil || c.Remote.Consoles != 16 || c.Path != "fulmar" || c.Influx.Target != "tcp://db:8094" {
		t.Errorf("configuration is %+v", c)
	}
	if diff := cmp.Diff([]string{"spt", "hvt"}, c.Targets); diff != "" {
		t.Errorf("targets (-want +got):\n%s", diff)
	}
	for name, bad := range map[string]struct {
		args []string
		says string
	}{
		"a path of its own":    {[]string{"--path", "a"}, "give no --path"},
		"no key":               {[]string{"--key", ""}, "name the files"},
		"a key that is none":   {[]string{"--key", cert}, "read key " + cert},
		"a chain without root": {[]string{"--ca", ""}, "does not end with the root"},
		"a file that is away":  {[]string{"--cert", cert + "x"}, "no such file"},
	} {
		if _, err := parse(t, bad.args...).vmm(); err == nil || !strings.Contains(err.Error(), bad.says) {
			t.Errorf("%s: %v; want %s", name, err, bad.says)
		}
	}
}
