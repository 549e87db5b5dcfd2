package messages_test

import (
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"google.golang.org/protobuf/encoding/protojson"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/testing/protocmp"
	"google.golang.org/protobuf/types/known/durationpb"

	"fulmar/messages"
	fulmarv1 "fulmar/messages/fulmar/v1"
)

func parse(t *testing.T, body string) *fulmarv1.DeployRequest {
	t.Helper()
	r := &fulmarv1.DeployRequest{}
	if err := protojson.Unmarshal([]byte(body), r); err != nil {
		t.Fatal(err)
	}
	return r
}

var sum = strings.Repeat("ab", 32)

func TestNormalizeFillsInDefaults(t *testing.T) {
	for name, c := range map[string]struct{ in, want string }{
		"the unit of a stack of one has its name, and a port is checked by connecting to its target": {
			`{"units":[{"image":{"file":"/a"},"ports":[{"port":80}]}]}`,
			`{"deadline":"60s","drain":"60s","units":[{"name":"web","memory":32,"image":{"file":"/a"},
			  "ports":[{"port":80,"target":80,"protocol":"tcp"}],
			  "health":[{"tcp":{"port":80},"interval":"1s","timeout":"1s","successes":1,"failures":3}]}]}`,
		},
		"never to be started again is nothing to say": {
			`{"units":[{"name":"a","image":{"file":"/a"},"restart":"never"},{"name":"b","image":{"file":"/a"},"restart":"on-failure"}]}`,
			`{"deadline":"60s","drain":"60s","units":[
			  {"name":"a","memory":32,"image":{"file":"/a"},"health":[{"icmp":{},"interval":"1s","timeout":"1s","successes":1,"failures":3}]},
			  {"name":"b","memory":32,"image":{"file":"/a"},"restart":"on-failure","health":[{"icmp":{},"interval":"1s","timeout":"1s","successes":1,"failures":3}]}]}`,
		},
		"a unit without a TCP port is pinged": {
			`{"units":[{"image":{"file":"/a"},"ports":[{"port":53,"protocol":"udp"}]}]}`,
			`{"deadline":"60s","drain":"60s","units":[{"name":"web","memory":32,"image":{"file":"/a"},
			  "ports":[{"port":53,"target":53,"protocol":"udp"}],
			  "health":[{"icmp":{},"interval":"1s","timeout":"1s","successes":1,"failures":3}]}]}`,
		},
		"two ports of one target are one check": {
			`{"units":[{"image":{"file":"/a"},"ports":[{"port":80,"target":8080},{"port":81,"target":8080}]}]}`,
			`{"deadline":"60s","drain":"60s","units":[{"name":"web","memory":32,"image":{"file":"/a"},
			  "ports":[{"port":80,"target":8080,"protocol":"tcp"},{"port":81,"target":8080,"protocol":"tcp"}],
			  "health":[{"tcp":{"port":8080},"interval":"1s","timeout":"1s","successes":1,"failures":3}]}]}`,
		},
		"a probe gets its own defaults, and what is given stays": {
			`{"deadline":"5s","drain":"0s","units":[{"name":"a","memory":64,"image":{"object":"` + strings.ToUpper(sum) + `"},
			  "health":[{"http":{},"successes":2,"start_deadline":"3s"},{"dns":{"name":"example.org"},"interval":"0.01s"}]}]}`,
			`{"deadline":"5s","drain":"0s","units":[{"name":"a","memory":64,"image":{"object":"` + sum + `"},
			  "health":[{"http":{"port":80,"path":"/"},"interval":"1s","timeout":"1s","successes":2,"failures":3,"start_deadline":"3s"},
			            {"dns":{"port":53,"name":"example.org","type":"A"},"interval":"0.010s","timeout":"1s","successes":1,"failures":3}]}]}`,
		},
	} {
		t.Run(name, func(t *testing.T) {
			in := parse(t, c.in)
			before := proto.CloneOf(in)
			got, err := messages.Normalize("web", in)
			if err != nil {
				t.Fatal(err)
			}
			if diff := cmp.Diff(parse(t, c.want), got, protocmp.Transform()); diff != "" {
				t.Errorf("normalized (-want +got):\n%s", diff)
			}
			if diff := cmp.Diff(before, in, protocmp.Transform()); diff != "" {
				t.Errorf("the request that was given was changed:\n%s", diff)
			}
		})
	}
}

// unit is a request of one unit that is good but for what is given.
func unit(fields string) string { return `{"units":[{"image":{"file":"/a"},` + fields + `}]}` }

func check(fields string) string { return unit(`"health":[{` + fields + `}]`) }

func TestNormalizeNamesTheCulprit(t *testing.T) {
	for name, c := range map[string]struct{ stack, in, want string }{
		"no unit": {
			"web", `{}`,
			"units: a deployment needs at least one; to take the stack out of service, retire it",
		},
		"a stack whose name albatross refuses": {
			"Web", unit(`"memory":8`),
			`stack "Web": a name is made of lower-case letters, digits and hyphens, and begins and ends with a letter or a digit`,
		},
		"a unit whose name albatross refuses": {
			"web", unit(`"name":"a_b"`),
			`unit "a_b": a name is made of lower-case letters, digits and hyphens, and begins and ends with a letter or a digit`,
		},
		"two units without names": {
			"web", `{"units":[{"image":{"file":"/a"}},{"image":{"file":"/a"}}]}`,
			"the name of the unit is empty",
		},
		"two units of one name": {
			"web", `{"units":[{"name":"a","image":{"file":"/a"}},{"name":"a","image":{"file":"/b"}}]}`,
			"unit a stands twice in the stack",
		},
		"names too long together": {
			strings.Repeat("s", 30), unit(`"name":"` + strings.Repeat("u", 30) + `"`),
			"stack " + strings.Repeat("s", 30) + " with unit " + strings.Repeat("u", 30) + ": the names have 60 bytes together, more than the 51 that the name of an instance leaves them",
		},
		"a network whose name is none": {
			"web", `{"network":"LAN","units":[{"image":{"file":"/a"}}]}`,
			`network "LAN": a name is made of lower-case letters, digits and hyphens, and begins and ends with a letter or a digit`,
		},
		"port 0": {
			"web", unit(`"ports":[{"port":0}]`),
			"unit web: ports: port 0 is not within 1 to 65535",
		},
		"port 70000": {
			"web", unit(`"ports":[{"port":70000}]`),
			"unit web: ports: port 70000 is not within 1 to 65535",
		},
		"target 70000": {
			"web", unit(`"ports":[{"port":80,"target":70000}]`),
			"unit web: ports: target 70000 is not within 1 to 65535",
		},
		"a protocol nobody leads": {
			"web", unit(`"ports":[{"port":80,"protocol":"sctp"}]`),
			`unit web: ports: protocol "sctp" is neither tcp nor udp`,
		},
		"one port twice": {
			"web", `{"units":[{"name":"a","image":{"file":"/a"},"ports":[{"port":80}]},{"name":"b","image":{"file":"/a"},"ports":[{"port":80}]}]}`,
			"unit b: ports: 80/tcp is published by unit a already",
		},
		"no image": {
			"web", `{"units":[{"name":"a"}]}`,
			"unit a: image: none is given",
		},
		"an image without a source": {
			"web", `{"units":[{"image":{}}]}`,
			"unit web: image: one of file, object, url, docker, oci and git must be given",
		},
		"a file that is not absolute": {
			"web", `{"units":[{"image":{"file":"a.spt"}}]}`,
			`unit web: image: file "a.spt" is not an absolute path`,
		},
		"an object that is no digest": {
			"web", `{"units":[{"image":{"object":"abc"}}]}`,
			`unit web: image: object "abc" is not a SHA-256 of 64 hexadecimal digits`,
		},
		"a digest that is none": {
			"web", `{"units":[{"image":{"file":"/a","sha256":"abc"}}]}`,
			`unit web: image: sha256 "abc" is not 64 hexadecimal digits`,
		},
		"a URL without its digest": {
			"web", `{"units":[{"image":{"url":"http://example.org/a"}}]}`,
			`unit web: image: url "http://example.org/a" needs the sha256 of the image with it`,
		},
		"a URL that is none": {
			"web", `{"units":[{"image":{"url":"ftp://example.org/a","sha256":"` + sum + `"}}]}`,
			`unit web: image: url "ftp://example.org/a" is not an http or https URL`,
		},
		"another way to end": {
			"web", unit(`"restart":"sometimes"`),
			`unit web: restart "sometimes" is none of never, on-failure and always`,
		},
		"more memory than there can be": {
			"web", unit(`"memory":1048577`),
			"unit web: memory of 1048577 MB is more than 1048576",
		},
		"a template that does not parse": {
			"web", unit(`"args":["--ip={{.IP"]`),
			`unit web: argument "--ip={{.IP" does not parse: unclosed action`,
		},
		"a template of an unknown function": {
			"web", unit(`"args":["{{env \"HOME\"}}"]`),
			`unit web: argument "{{env \"HOME\"}}" does not parse: function "env" not defined`,
		},
		"a template of an unknown field": {
			"web", unit(`"args":["{{.Host}}"]`),
			`unit web: argument "{{.Host}}": there is no .Host, but .IP, .PrefixLen, .Gateway, .Stack, .Unit`,
		},
		"a template that does not render": {
			"web", unit(`"args":["{{slice .IP 90}}"]`),
			`unit web: argument "{{slice .IP 90}}": only values and the function ip are allowed, not "slice"`,
		},
		"a template with a loop": {
			"web", unit(`"args":["{{range 9}}x{{end}}"]`),
			`unit web: argument "{{range 9}}x{{end}}": only values and functions are allowed, not "{{range 9}}x{{end}}"`,
		},
		"a template that grows without end": {
			"web", unit(`"args":["{{printf \"%99999d\" 1}}"]`),
			`unit web: argument "{{printf \"%99999d\" 1}}": only values and the function ip are allowed, not "printf"`,
		},
		"arguments that are too long when they are rendered": {
			"web", unit(`"args":["` + strings.Repeat("{{.IP}}", 1000) + `"]`),
			`unit web: argument "` + strings.Repeat("{{.IP}}", 1000) + `": the arguments are longer than 8191 bytes when they are rendered`,
		},
		"more health checks than anybody needs": {
			"web", unit(`"health":[` + strings.Repeat(`{"icmp":{}},`, 16) + `{"icmp":{}}]`),
			"unit web: health: 17 checks, more than 16",
		},
		"a request beyond any measure": {
			"web", unit(`"health":[{"http":{"body":"` + strings.Repeat("x", 70_000) + `"}}]`),
			"the request has 70035 bytes, more than 65536",
		},
		"the address of a unit whose name is computed": {
			"web", unit(`"args":["{{ip .Unit}}"]`),
			`unit web: argument "{{ip .Unit}}": ip takes the name of a unit in quotes, as {{ip "signer"}}`,
		},
		"its own address by name": {
			"web", unit(`"args":["{{ip \"web\"}}"]`),
			"unit web: its arguments use its own address by name: say {{.IP}}",
		},
		"the address of a unit that is not there": {
			"web", unit(`"args":["{{ip \"db\"}}"]`),
			`unit web uses the address of unit "db", which the stack does not have`,
		},
		"units that use one another in a circle": {
			"web",
			`{"units":[{"name":"a","image":{"file":"/a"},"args":["{{ip \"b\"}}"]},{"name":"b","image":{"file":"/a"},"args":["{{ip \"c\"}}"]},{"name":"c","image":{"file":"/a"},"args":["{{ip \"a\"}}"]}]}`,
			"units use one another in a circle: a uses b uses c uses a",
		},
		"an argument with a NUL byte": {
			"web", unit(`"args":["a\u0000b"]`),
			`unit web: argument "a\x00b" has a NUL byte, which no command line can carry`,
		},
		"arguments that no tender takes": {
			"web", unit(`"args":["` + strings.Repeat("x", 8192) + `"]`),
			"unit web: args: 8192 bytes, more than 8191",
		},
		"a deadline too short": {
			"web", `{"deadline":"0.5s","units":[{"image":{"file":"/a"}}]}`,
			"deadline of 500ms is not within 1s to 1h0m0s",
		},
		"a drain too long": {
			"web", `{"drain":"90000s","units":[{"image":{"file":"/a"}}]}`,
			"drain of 25h0m0s is not within 0s to 24h0m0s",
		},
		"a check of nothing": {
			"web", check(`"interval":"1s"`),
			"unit web: health: a check is one of icmp, tcp, http and dns",
		},
		"a check too often": {
			"web", check(`"icmp":{},"interval":"0.001s"`),
			"unit web: health: interval of 1ms is not within 10ms to 1h0m0s",
		},
		"a check that wants too much": {
			"web", check(`"icmp":{},"successes":101`),
			"unit web: health: successes and failures are at most 100",
		},
		"a TCP check of no port": {
			"web", check(`"tcp":{}`),
			"unit web: health: tcp: port 0 is not within 1 to 65535",
		},
		"an HTTP check of a path that is none": {
			"web", check(`"http":{"path":"index.html"}`),
			`unit web: health: http: path "index.html" does not begin with / or has a space in it`,
		},
		"an HTTP check of a status that is none": {
			"web", check(`"http":{"status":99}`),
			"unit web: health: http: status 99 is not within 100 to 599",
		},
		"an HTTP check of a body that is no expression": {
			"web", check(`"http":{"body":"["}`),
			`unit web: health: http: body "[" is not a regular expression: missing closing ]`,
		},
		"a DNS check without a name": {
			"web", check(`"dns":{}`),
			`unit web: health: dns: name "" has not 1 to 253 bytes`,
		},
		"a DNS check of an unknown type": {
			"web", check(`"dns":{"name":"a","type":"HINFO"}`),
			`unit web: health: dns: type "HINFO" is none of A, AAAA, NS, SOA, MX and TXT`,
		},
	} {
		t.Run(name, func(t *testing.T) {
			_, err := messages.Normalize(c.stack, parse(t, c.in))
			refusal, ok := messages.AsRefusal(err)
			if !ok || refusal.Code != fulmarv1.ReasonCode_REASON_CODE_INVALID {
				t.Fatalf("got %v, want a refusal of an invalid request", err)
			}
			if err.Error() != c.want {
				t.Errorf("got  %s\nwant %s", err, c.want)
			}
		})
	}
}

func TestNormalizeBoundsCounts(t *testing.T) {
	r := &fulmarv1.DeployRequest{}
	for i := range messages.MaxUnits + 1 {
		r.Units = append(r.Units, &fulmarv1.UnitSpec{Name: fmt.Sprintf("u%d", i), Image: request().GetUnits()[0].GetImage()})
	}
	if _, err := messages.Normalize("web", r); err == nil || err.Error() != "units: 65, more than 64" {
		t.Errorf("65 units give %v", err)
	}
	r = &fulmarv1.DeployRequest{Units: []*fulmarv1.UnitSpec{{Image: request().GetUnits()[0].GetImage()}}}
	for i := range messages.MaxPorts + 1 {
		r.Units[0].Ports = append(r.Units[0].Ports, &fulmarv1.Port{Port: uint32(i + 1)})
	}
	if _, err := messages.Normalize("web", r); err == nil || err.Error() != "unit web: ports: a stack publishes more than 1024" {
		t.Errorf("1025 ports give %v", err)
	}
}

func TestNormalizeOfADurationThatIsNone(t *testing.T) {
	r := request()
	r.Deadline = &durationpb.Duration{Seconds: 1, Nanos: -1}
	_, err := messages.Normalize("web", r)
	if err == nil {
		t.Fatal("it was taken")
	}
	sentence(t, err)
	if !strings.HasPrefix(err.Error(), "deadline: duration (") {
		t.Errorf("got %v", err)
	}
}

func TestNormalizeKeepsWhatItNeedNotTouch(t *testing.T) {
	r := request()
	n, err := messages.Normalize("web", r)
	if err != nil {
		t.Fatal(err)
	}
	if n.GetIfNewest() != 41 || n.GetNetwork() != "lan" || n.GetDeadline().AsDuration() != time.Minute {
		t.Errorf("got %v", n)
	}
}

func TestStartsAgain(t *testing.T) {
	for restart, want := range map[string][]int{"": nil, messages.RestartOnFailure: {2, 3, 59, 65, 255}, messages.RestartAlways: {0, 2, 3, 59, 65, 255}} {
		var got []int
		for _, status := range []int{0, 1, 2, 3, 59, 60, 64, 65, 255} {
			if messages.StartsAgain(restart, status) {
				got = append(got, status)
			}
		}
		if diff := cmp.Diff(want, got); diff != "" {
			t.Errorf("%q (-want +got):\n%s", restart, diff)
		}
	}
}
