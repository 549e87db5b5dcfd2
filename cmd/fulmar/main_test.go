package main

import (
	"bytes"
	"context"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/prometheus/client_golang/prometheus"
	"go.uber.org/goleak"
	"golang.org/x/sync/errgroup"

	"fulmar/bus"
	"fulmar/bus/bustest"
	"fulmar/firewall/nstest"
	fulmarv1 "fulmar/messages/fulmar/v1"
	"fulmar/services/builder"
)

func TestMain(m *testing.M) {
	nstest.Enter() // fulmar up makes bridges and rules
	goleak.VerifyTestMain(m)
}

// world is a bus with a builder on it, and the command line before it.
type world struct {
	t      *testing.T
	url    string
	server *bus.Server
	bus    *bus.Bus
}

// newQuietWorld is a bus on which nobody serves.
func newQuietWorld(t *testing.T) *world {
	t.Helper()
	server, err := bus.StartServer(t.TempDir(), "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(server.Stop)
	return &world{t: t, url: server.URL(), server: server, bus: bustest.Open(t, server, bus.Options{Service: "builder"})}
}

// newWorld is a bus with a builder.
func newWorld(t *testing.T) *world {
	t.Helper()
	w := newQuietWorld(t)
	ctx, cancel := context.WithCancel(t.Context())
	var g errgroup.Group
	config, err := builder.Flags{DockerHost: "unix://" + t.TempDir() + "/none", MaxImage: 1 << 20}.Config("", prometheus.NewRegistry())
	if err != nil {
		t.Fatal(err)
	}
	g.Go(func() error { return w.bus.RunService(ctx, builder.New(w.bus, config, prometheus.NewRegistry())) })
	t.Cleanup(func() {
		cancel()
		if err := g.Wait(); err != nil {
			t.Errorf("the builder ended: %v", err)
		}
	})
	return w
}

// run runs a command line and gives its exit status and what it printed.
func (w *world) run(args ...string) (status int, out, errout string) {
	var o, e bytes.Buffer
	status = execute(w.t.Context(), append([]string{"--nats", w.url}, args...), &o, &e)
	return status, o.String(), e.String()
}

func TestWhatIsWrongWithACommandIsSaidInOneSentenceAndFails(t *testing.T) {
	w := newWorld(t)
	text := filepath.Join(t.TempDir(), "text")
	if err := os.WriteFile(text, []byte("no image"), 0o600); err != nil {
		t.Fatal(err)
	}
	spec := filepath.Join(t.TempDir(), "spec.yaml")
	if err := os.WriteFile(spec, []byte("units:\n  - imag: {file: x}\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	if err := w.bus.Heads.Put(t.Context(), "web", &fulmarv1.Head{Stack: "web"}, 0); err != nil {
		t.Fatal(err)
	}
	digest := strings.Repeat("0", 64)
	cases := map[string]struct {
		args   []string
		status int
		says   string // on standard output or error
	}{
		"no such command":                   {[]string{"deplo"}, 2, "unexpected argument deplo"},
		"an image that is not there":        {[]string{"deploy", "web", text + "x"}, 1, "no such file"},
		"an image that is none":             {[]string{"deploy", "web", text}, 1, "not a Solo5 image"},
		"neither image nor spec":            {[]string{"deploy", "web"}, 1, "give an IMAGE, or a spec with -f"},
		"both image and spec":               {[]string{"deploy", "web", text, "-f", spec}, 1, "not both"},
		"a flag of a unit beside a spec":    {[]string{"deploy", "web", "-f", spec, "--memory", "3"}, 1, "--memory"},
		"an unknown field in a spec":        {[]string{"deploy", "web", "-f", spec}, 1, "imag"},
		"a stack that cannot be":            {[]string{"deploy", "Web", digest}, 1, `stack "Web"`},
		"a port that is none":               {[]string{"deploy", "web", digest, "--port", "x:80"}, 1, `port "x:80"`},
		"a port beyond the last":            {[]string{"deploy", "web", digest, "--port", "70000:80"}, 1, "70000"},
		"a health check that is none":       {[]string{"deploy", "web", digest, "--health", "smtp:25"}, 1, `health "smtp:25"`},
		"a template that does not parse":    {[]string{"deploy", "web", digest, "--arg={{.IP"}, 1, "{{.IP"},
		"no network at all":                 {[]string{"deploy", "web", digest}, 1, "there is no network"},
		"a network that is not there":       {[]string{"deploy", "web", digest, "--network", "dmz"}, 1, `network "dmz" does not exist`},
		"nothing to roll back to":           {[]string{"rollback", "web"}, 1, "nothing to roll back to"},
		"nothing staged":                    {[]string{"promote", "web"}, 1, "nothing staged"},
		"nothing to retire":                 {[]string{"retire", "web"}, 1, "nothing to retire"},
		"a stack that nobody knows":         {[]string{"describe", "nobody"}, 1, `no stack "nobody"`},
		"the events of nobody":              {[]string{"events", "nobody"}, 1, `no stack "nobody"`},
		"the logs of nobody":                {[]string{"logs", "nobody"}, 1, `no stack "nobody"`},
		"the logs of no unit":               {[]string{"logs", "web", "-u", "api"}, 1, `stack web has no unit "api"`},
		"the logs of nothing":               {[]string{"logs", "web"}, 0, "stack web has no instances"},
		"a rollback of nobody":              {[]string{"rollback", "nobody"}, 1, `no stack "nobody"`},
		"a retirement of nobody":            {[]string{"retire", "nobody"}, 1, `no stack "nobody"`},
		"a network with the wrong prefix":   {[]string{"network", "add", "n", "10.0.0.1/31", "--bridge", "br0"}, 1, "/8 to /30"},
		"removing a network that is not":    {[]string{"network", "rm", "nope"}, 1, `no network "nope"`},
		"a shell that nobody has heard of":  {[]string{"completion", "csh"}, 2, `"bash","zsh","fish"`},
		"a sweep of a host without its gc":  {[]string{"gc", "--host", "far"}, 1, "sweep of host far: its gc does not run"},
		"a bus that does not answer":        {[]string{"ps", "--nats", "nats://127.0.0.1:1"}, 1, "is `fulmar up` running"},
		"the generation of JSON is one too": {[]string{"--json", "rollback", "web"}, 1, `"reason":"stack web has nothing to roll back to`},
	}
	for name, c := range cases {
		t.Run(name, func(t *testing.T) {
			status, out, errout := w.run(c.args...)
			if status != c.status || !strings.Contains(out+errout, c.says) {
				t.Errorf("fulmar %s: status %d, want %d with %q\n%s%s", strings.Join(c.args, " "), status, c.status, c.says, out, errout)
			}
			if lines := strings.Count(errout, "\n"); lines > 1 {
				t.Errorf("the error has %d lines:\n%s", lines, errout)
			}
		})
	}
}

// TestASweepAsksWhoIsThere has a builder, which answers for the images, and a host whose gc does not run.
func TestASweepAsksWhoIsThere(t *testing.T) {
	w := newWorld(t)
	if status, out, errout := w.run("gc", "--dry-run"); status != 0 || out != "nothing to sweep\n" {
		t.Errorf("status %d: %s%s", status, out, errout)
	}
	if err := w.bus.Hosts.Put(t.Context(), "far", &fulmarv1.Host{Name: "far"}, 0); err != nil {
		t.Fatal(err)
	}
	if status, out, errout := w.run("gc", "--dry-run"); status != 1 || out != "" || errout != "fulmar: sweep of host far: its gc does not run\n" {
		t.Errorf("status %d: %s%s", status, out, errout)
	}
}

func TestASweepOfImagesNeedsABuilder(t *testing.T) {
	w := newQuietWorld(t)
	if status, _, errout := w.run("gc", "--dry-run"); status != 1 || errout != "fulmar: sweep of images: no builder runs\n" {
		t.Errorf("status %d: %s", status, errout)
	}
}

func TestCompletionKnowsEveryCommand(t *testing.T) {
	w := newWorld(t)
	for _, shell := range []string{"bash", "zsh", "fish"} {
		_, out, _ := w.run("completion", shell)
		for _, word := range []string{"deploy", "rollback", "network", "staged"} {
			if !strings.Contains(out, word) {
				t.Errorf("the completion of %s lacks %s", shell, word)
			}
		}
	}
}

func TestParsePort(t *testing.T) {
	for s, want := range map[string]*fulmarv1.Port{
		"8080":           {Port: 8080},
		"8080:80":        {Port: 8080, Target: 80},
		"53:5353/udp":    {Port: 53, Target: 5353, Protocol: "udp"},
		"443/tcp":        {Port: 443, Protocol: "tcp"},
		"":               nil,
		":80":            nil,
		"80:":            nil,
		"-1:80":          nil,
		"99999999999:80": nil,
	} {
		got, err := parsePort(s)
		if (err == nil) != (want != nil) || got.String() != want.String() && err == nil {
			t.Errorf("parsePort(%q) = %v, %v; want %v", s, got, err, want)
		}
	}
}

func TestParseHealth(t *testing.T) {
	for s, want := range map[string]string{
		"icmp":                `icmp:{}`,
		"tcp:80":              `tcp:{port:80}`,
		"http:80/":            `http:{port:80 path:"/"}`,
		"http:8080/live=204":  `http:{port:8080 path:"/live" status:204}`,
		"http:80/x?code=5":    `http:{port:80 path:"/x?code=5"}`,
		"dns:53/example.com":  `dns:{port:53 name:"example.com"}`,
		"http:/":              `http:{path:"/"}`,
		"icmp:80":             "",
		"tcp:x":               "",
		"tcp:80/path":         "",
		"nonsense":            "",
		"http:99999999999/ok": "",
	} {
		got, err := parseHealth(s)
		text := strings.ReplaceAll(got.String(), "  ", " ")
		if (err == nil) != (want != "") || err == nil && text != want {
			t.Errorf("parseHealth(%q) = %s, %v; want %s", s, text, err, want)
		}
	}
}
