package main

import (
	"bytes"
	"context"
	"crypto/tls"
	"encoding/json"
	"io"
	"log/slog"
	"net"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"

	"github.com/google/go-cmp/cmp"

	"fulmar/albatross"
	"fulmar/albatross/remote"
)

// albatrossLab is a fake daemon, a TLS endpoint before it, and a directory to work in.
type albatrossLab struct {
	t      *testing.T
	daemon *fakeDaemon
	dir    string
	addr   string
}

func newAlbatrossLab(t *testing.T) *albatrossLab {
	t.Helper()
	dir, err := os.MkdirTemp("", "cli") // short: the path of a socket has at most 107 bytes
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = os.RemoveAll(dir) })
	if err := os.Mkdir(filepath.Join(dir, "util"), 0o700); err != nil {
		t.Fatal(err)
	}
	l := &albatrossLab{t: t, dir: dir, daemon: &fakeDaemon{
		dir: dir, running: map[albatross.Name]albatross.Config{}, policies: map[albatross.Name]albatross.Policy{}, blocks: map[albatross.Name][]byte{},
	}}
	var group sync.WaitGroup
	t.Cleanup(group.Wait)
	for _, socket := range []string{albatross.VMMDSocket, albatross.ConsoleSocket, albatross.StatsSocket} {
		listener, err := net.Listen("unix", filepath.Join(dir, socket))
		if err != nil {
			t.Fatal(err)
		}
		group.Go(func() {
			for {
				conn, err := listener.Accept()
				if err != nil {
					return
				}
				group.Go(func() { l.daemon.serve(conn) })
			}
		})
		t.Cleanup(func() { _ = listener.Close() })
	}
	return l
}

// run runs a command line below fulmar albatross.
func (l *albatrossLab) run(args ...string) (status int, out, errout string) {
	var o, e bytes.Buffer
	status = execute(l.t.Context(), append([]string{"albatross", "--dir", l.dir}, args...), &o, &e)
	return status, o.String(), e.String()
}

// must runs a command line that succeeds.
func (l *albatrossLab) must(args ...string) string {
	l.t.Helper()
	status, out, errout := l.run(args...)
	if status != 0 {
		l.t.Fatalf("fulmar albatross %s: %s", strings.Join(args, " "), errout)
	}
	return out
}

// says wants words in what a command line prints.
func (l *albatrossLab) says(want string, args ...string) {
	l.t.Helper()
	if out := l.must(args...); !strings.Contains(strings.Join(strings.Fields(out), " "), want) {
		l.t.Errorf("fulmar albatross %s: want %q\n%s", strings.Join(args, " "), want, out)
	}
}

// fails wants words in the one line of an error.
func (l *albatrossLab) fails(want string, args ...string) {
	l.t.Helper()
	status, out, errout := l.run(args...)
	if strings.Contains(errout, "daemon run there") != strings.Contains(want, "daemon run there") {
		l.t.Errorf("fulmar albatross %s: %s", strings.Join(args, " "), errout)
	}
	if status != 1 || out != "" || !strings.Contains(errout, want) || strings.Count(errout, "\n") != 1 {
		l.t.Errorf("fulmar albatross %s: status %d, want %q\n%s%s", strings.Join(args, " "), status, want, out, errout)
	}
}

func (l *albatrossLab) file(name, content string) string {
	l.t.Helper()
	file := filepath.Join(l.dir, name)
	if err := os.WriteFile(file, []byte(content), 0o600); err != nil {
		l.t.Fatal(err)
	}
	return file
}

func (l *albatrossLab) content(name string) string {
	l.t.Helper()
	text, err := os.ReadFile(filepath.Join(l.dir, name))
	if err != nil {
		l.t.Fatal(err)
	}
	return string(text)
}

// endpoint starts a TLS endpoint with the certificates that generate made, and gives the flags that lead to it.
func (l *albatrossLab) endpoint() []string {
	l.t.Helper()
	l.must("generate", l.dir)
	pair, err := tls.LoadX509KeyPair(l.dir+"/server.pem", l.dir+"/server.key")
	if err != nil {
		l.t.Fatal(err)
	}
	roots, err := (&albatrossCmd{CA: l.dir + "/cacert.pem"}).roots(nil)
	if err != nil {
		l.t.Fatal(err)
	}
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		l.t.Fatal(err)
	}
	server := remote.NewServer(remote.Config{Certificate: pair, CA: roots, Dir: l.dir}, slog.New(slog.DiscardHandler))
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- server.Serve(ctx, listener) }()
	l.t.Cleanup(func() {
		cancel()
		if err := <-done; err != nil {
			l.t.Error(err)
		}
	})
	l.addr = listener.Addr().String()
	return []string{"--remote", l.addr, "--cert", l.dir + "/cacert.pem", "--key", l.dir + "/ca.key"}
}

// TestAlbatrossCommands drives every command, of a daemon here and behind an endpoint.
func TestAlbatrossCommands(t *testing.T) {
	for _, where := range []string{"here", "afar"} {
		t.Run(where, func(t *testing.T) {
			l := newAlbatrossLab(t)
			var flags []string
			if where == "afar" {
				flags = l.endpoint()
			}
			with := func(args ...string) []string { return append(args, flags...) }
			image := l.file("image", "the image")
			l.says("created :hello", with("create", "hello", image, "--net", "service:br0", "--arg=--a b", "--memory", "16", "--cpu", "0,1", "--exit-code", "3,4")...)
			l.fails("already running", with("create", "hello", image)...)
			l.says("created :hello", with("create", "hello", image, "--force", "--net", "service:br0", "--arg=--a b", "--memory", "16", "--cpu", "0,1", "--exit-code", "3,4")...)
			l.says(":hello 0,1 16 MB service:br0@00:80:41:", with("info")...)
			l.says("after 3,4", with("info", "hello")...)
			l.says("restarted :hello", with("restart", "hello", "--memory", "24")...)
			l.says(":hello 0,1 24 MB service:br0@00:80:41:", with("info")...)
			l.says("--a b", with("info")...)
			l.says("restarted :hello", with("restart", "hello")...)
			if !l.daemon.config("hello").AddName {
				t.Error("it is not told its name")
			}
			l.says("restarted :hello", with("restart", "hello", "--no-add-name")...)
			if cfg := l.daemon.config("hello"); cfg.AddName || cfg.Memory != 24 {
				t.Errorf("it was restarted with %+v", cfg.Args)
			}
			l.fails("nosuch does not run", with("info", "nosuch")...)
			l.must(with("get", "hello", l.dir+"/got", "--compression-level", "3")...)
			if got := l.content("got"); got != "the image" {
				t.Errorf("got image %q", got)
			}
			if out := l.must(with("console", "hello", "-n", "2")...); strings.Count(out, "hello from :hello\n") != 2 {
				t.Errorf("console:\n%s", out)
			}
			l.says(":old", with("consoles")...)
			l.says(":hello cpu 0.00s", with("stats", "hello", "-n", "1")...)
			if out := l.must(with("stats", "--json")...); strings.Count(out, "\n") != 2 || !strings.Contains(out, `"max_rss":78`) {
				t.Errorf("stats:\n%s", out)
			}
			l.says("destroyed :hello", with("destroy", "hello")...)
			l.fails("destroy: not found", with("destroy", "hello")...)

			l.says("added policy of user:", with("policy", "add", "user", "--unikernels", "2", "--memory", "64", "--cpu", "0", "--block", "10", "--bridge", "br0")...)
			l.says("user: 2 64 MB 0 10 MB br0", with("policy", "ls")...)

			l.fails("fulmar: albatross: add policy of user:: policy above allows 99", with("policy", "add", "user", "--unikernels", "100", "--memory", "64")...)

			content := l.file("content", strings.Repeat("block", 10000))
			l.says("added block device :vol", with("block", "add", "vol", "1")...)
			l.says(":vol 1 MB no", with("block", "ls")...)
			for _, level := range []string{"0", "9"} {
				l.says("filled block device :vol", with("block", "set", "vol", content, "--compression-level", level)...)
				l.must(with("block", "dump", "vol", l.dir+"/dumped", "--compression-level", level)...)
				if l.content("dumped") != l.content("content") {
					t.Errorf("level %s: the content came back as another", level)
				}
			}
			l.says("removed block device :vol", with("block", "remove", "vol")...)
			l.fails("dump block: not found", with("block", "dump", "vol", l.dir+"/nosuch")...)
			if _, err := os.Stat(l.dir + "/nosuch"); err == nil {
				t.Error("a file without content was left")
			}
			if where == "here" {
				l.says("removed policy of user:", "policy", "remove", "user")
				l.says("watched :extra", "stats-add", "extra", "42", "--tap", "service:tap7")
				want := albatross.StatsAdd{PID: 42, Taps: []albatross.Tap{{Bridge: "service", Tap: "tap7"}}}
				l.daemon.mu.Lock()
				got := l.daemon.watched
				l.daemon.mu.Unlock()
				if diff := cmp.Diff(want, got); diff != "" {
					t.Errorf("what is watched (-want +got):\n%s", diff)
				}
				l.fails("want NETIF:TAP", "stats-add", "extra", "42", "--tap", "tap7")
				l.says("watched no more :extra", "stats-remove", "extra")
			} else {
				l.fails("an endpoint watches no other", with("stats-add", "extra", "42")...)
				l.fails("an endpoint removes no policies", with("policy", "remove", "user")...)
			}
		})
	}
}

// TestDelegation walks the way of the help: a user asks for a path, gets it, and works in it; then one command only.
func TestDelegation(t *testing.T) {
	l := newAlbatrossLab(t)
	root := l.endpoint()
	image := l.file("image", strings.Repeat("image", 100_000))
	l.must("csr", "--out", l.dir+"/user", "policy", "user", "--unikernels", "2", "--memory", "64", "--bridge", "br0")
	l.fails("cannot hold until before now", append([]string{"sign", l.dir + "/user.req", "--days=-1"}, root[2:]...)...)
	if status, _, told := l.run(append([]string{"sign", l.dir + "/user.req"}, root[2:]...)...); status != 0 || !strings.HasPrefix(told, `signed for "user" in the path ":", until `) {
		t.Errorf("sign: status %d, %s", status, told)
	}
	user := []string{"--remote", l.addr, "--ca", l.dir + "/cacert.pem", "--cert", l.dir + "/user.pem", "--key", l.dir + "/user.key"}
	l.says("created user:hello", append([]string{"create", "hello", image}, user...)...)
	l.says("user:hello", append([]string{"info", "user:hello"}, user...)...)
	l.says("user: 2 64 MB 0 - br0", append([]string{"policy", "ls"}, user...)...)
	l.fails(`not in the path "user"`, append([]string{"info", "other:hello"}, user...)...)
	l.fails("policy allows more", append([]string{"policy", "add", "user:team", "--unikernels", "3", "--memory", "1"}, user...)...)
	l.says("added policy of user:team:", append([]string{"policy", "add", "user:team", "--unikernels", "1", "--memory", "1"}, user...)...)
	l.fails("one label more", append([]string{"policy", "add", "user:team", "--unikernels", "1", "--memory", "1"}, root...)...)

	for name, args := range map[string][]string{
		"inline":   {"create", "inline", l.file("small", "small image")},
		"streamed": {"create", "streamed", image, "--without-image"},
		"get":      {"get", "hello"},
		"info":     {"info"},
		"policies": {"policies"},
		"console":  {"console", "hello", "-n", "1"},
		"stats":    {"stats"},
		"restart":  {"restart", "hello"},
		"add":      {"block", "add", "vol", "1"},
		"set":      {"block", "set", "vol"},
		"dump":     {"block", "dump", "vol"},
		"ls":       {"block", "ls"},
		"remove":   {"block", "remove", "vol"},
		"destroy":  {"destroy", "streamed"},
	} {
		l.must(append([]string{"csr", "--out", filepath.Join(l.dir, name)}, args...)...)
		l.must(append([]string{"sign", filepath.Join(l.dir, name+".req")}, user[4:]...)...)
	}
	content := l.file("content", "the content")
	certificate := func(name string, file ...string) []string {
		return append(append([]string{"certificate"}, file...), "--remote", l.addr, "--ca", l.dir+"/cacert.pem",
			"--cert", filepath.Join(l.dir, name+".pem"), "--key", filepath.Join(l.dir, name+".key"))
	}
	l.says("created user:inline", certificate("inline")...)
	l.says("created user:streamed", certificate("streamed", image)...)
	l.fails("already running", certificate("streamed", image)...)
	l.says("user:streamed", certificate("info")...)
	l.says("user: 2", certificate("policies")...)
	l.says("hello from user:hello", certificate("console")...)
	l.says("user:hello cpu", certificate("stats")...)
	l.says("restarted user:hello", certificate("restart")...)
	l.must(certificate("get", l.dir+"/got")...)
	if l.content("got") != l.content("image") {
		t.Error("the image came back as another")
	}
	l.says("added block device user:vol", certificate("add")...)
	l.says("filled block device user:vol", certificate("set", content)...)
	l.must(certificate("dump", l.dir+"/dumped")...)
	if l.content("dumped") != "the content" {
		t.Errorf("dumped %q", l.content("dumped"))
	}
	l.says("user:vol", certificate("ls")...)
	l.says("removed block device user:vol", certificate("remove")...)
	l.says("destroyed user:streamed", certificate("destroy")...)
	l.fails("destroy: not found", certificate("destroy")...)
	l.fails("may not come by certificate", certificate("user")...)
	if l.daemon.config("user:hello").Image == nil || l.daemon.config("user:inline").Image == nil || l.daemon.config("user:streamed").Image != nil {
		t.Error("not what should run runs")
	}
}

// TestAlbatrossSaysWhatIsWrong has one sentence for each mistake.
func TestAlbatrossSaysWhatIsWrong(t *testing.T) {
	l := newAlbatrossLab(t)
	root := l.endpoint()
	image := l.file("image", "image")
	other := filepath.Join(l.dir, "other")
	l.must("generate", other)
	for want, args := range map[string][]string{
		"invalid name":                     {"info", "a_b"},
		"is a path":                        {"destroy", "user:"},
		"no such file":                     {"create", "hello", l.dir + "/nosuch"},
		"is empty":                         {"create", "hello", l.file("empty", "")},
		`net "a@b": want NETIF`:            {"create", "hello", image, "--net", "a@b"},
		`block "a@b": want NAME`:           {"create", "hello", image, "--block", "a@b"},
		"does the daemon run there":        {"info", "--dir", l.dir + "/nosuch"},
		"give the CA's certificate":        {"info", "--remote", l.addr},
		"the key is not that of":           {"info", "--remote", l.addr, "--cert", l.dir + "/cacert.pem", "--key", l.dir + "/server.key"},
		"is not of a CA":                   {"info", "--remote", l.addr, "--cert", l.dir + "/server.pem", "--key", l.dir + "/server.key"},
		"endpoint is not to be trusted":    {"info", "--remote", l.addr, "--cert", other + "/cacert.pem", "--key", other + "/ca.key"},
		"endpoint refused the certificate": {"info", "--remote", l.addr, "--ca", l.dir + "/cacert.pem", "--cert", other + "/cacert.pem", "--key", other + "/ca.key"},
		"connection refused":               append([]string{"info"}, "--remote", "127.0.0.1:1", "--cert", root[3], "--key", root[5]),
		"file exists":                      {"generate", l.dir},
		"give the label alone":             {"csr", "destroy", "user:hello"},
		"name with --out":                  {"csr", "info"},
		"it is no certificate request":     {"sign", image, "--cert", root[3], "--key", root[5]},
		"give the endpoint with --remote":  {"certificate"},
	} {
		l.fails(want, args...)
	}
}

func TestWireDecodesAndEncodes(t *testing.T) {
	text, err := os.ReadFile("../../albatross/testdata/wire_commands.jsonl")
	if err != nil {
		t.Fatal(err)
	}
	var lines, frames bytes.Buffer
	n := 0
	for line := range strings.Lines(string(text)) {
		var v struct{ Hex string }
		if err := json.Unmarshal([]byte(line), &v); err != nil {
			t.Fatal(err)
		}
		n++
		lines.WriteString(v.Hex + "\n")
	}
	var fromHex, fromFrames, back bytes.Buffer
	if err := decodeWire(&lines, &fromHex); err != nil {
		t.Fatal(err)
	}
	if err := encodeWire(bytes.NewReader(fromHex.Bytes()), &frames, false); err != nil {
		t.Fatal(err)
	}
	if err := decodeWire(bytes.NewReader(frames.Bytes()), &fromFrames); err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(fromHex.String(), fromFrames.String()); diff != "" {
		t.Error(diff)
	}
	if err := encodeWire(&fromFrames, &back, true); err != nil {
		t.Fatal(err)
	}
	var again bytes.Buffer
	if err := decodeWire(&back, &again); err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(fromHex.String(), again.String()); diff != "" || strings.Count(again.String(), "\n") != n {
		t.Error(diff)
	}
	for in, want := range map[string]string{
		"":                     "nothing on standard input",
		"30":                   "line 1",
		"zz\x00\x00":           "frame 1",
		"\x00\x00\x00\x02\x30": "frame 1",
		"\xff\xff\xff\xff":     "frame 1: albatross: frame too large",
		"00000000\n\n3003":     "line 3",
	} {
		if err := decodeWire(strings.NewReader(in), io.Discard); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%q: %v, want %q", in, err, want)
		}
	}
	if err := encodeWire(strings.NewReader("\n{}"), io.Discard, false); err == nil || !strings.Contains(err.Error(), "line 2") {
		t.Errorf("got %v", err)
	}
}
