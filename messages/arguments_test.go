package messages_test

import (
	"errors"
	"net/netip"
	"testing"

	"github.com/google/go-cmp/cmp"

	"fulmar/messages"
)

func address(unit string) (string, error) {
	if unit != "signer" {
		return "", errors.New("who is that")
	}
	return "10.0.0.9", nil
}

func TestRenderArgs(t *testing.T) {
	self := messages.NewAddress("mail", "smtp", netip.MustParseAddr("10.0.0.7"), netip.MustParsePrefix("10.0.0.0/24"), "10.0.0.1")
	for name, c := range map[string]struct{ in, want string }{
		"text stays as it is":                   {"--hello=Hi there", "--hello=Hi there"},
		"an empty argument stays":               {"", ""},
		"its address, with the prefix length":   {"--ipv4={{.IP}}/{{.PrefixLen}}", "--ipv4=10.0.0.7/24"},
		"the gateway":                           {"--ipv4-gateway={{.Gateway}}", "--ipv4-gateway=10.0.0.1"},
		"its names":                             {"--name={{.Stack}}.{{.Unit}}", "--name=mail.smtp"},
		"the address of another unit":           {`--upstream={{ip "signer"}}`, "--upstream=10.0.0.9"},
		"the address of another unit, in words": {`{{printf "%s:%d" (ip "signer") 25}}`, "10.0.0.9:25"},
		"what is not HTML is not escaped":       {`<{{.IP}}>&"`, `<10.0.0.7>&"`},
	} {
		t.Run(name, func(t *testing.T) {
			got, err := messages.RenderArgs([]string{c.in}, self, address)
			if err != nil {
				t.Fatal(err)
			}
			if diff := cmp.Diff([]string{c.want}, got); diff != "" {
				t.Errorf("rendered (-want +got):\n%s", diff)
			}
		})
	}
	if _, err := messages.RenderArgs([]string{`{{ip "nobody"}}`}, self, address); err == nil {
		t.Error("the address of a unit that has none was rendered")
	}
}

func TestArgUses(t *testing.T) {
	for name, c := range map[string]struct {
		in   []string
		want []string
	}{
		"no template uses nobody":                {[]string{"--a=b"}, nil},
		"its own address is no use of another":   {[]string{"{{.IP}}"}, nil},
		"units are named once, in order":         {[]string{`{{ip "b"}}{{ip "a"}}`, `{{ip "b"}}`}, []string{"a", "b"}},
		"in parentheses and within other values": {[]string{`x{{(ip "a")}}`}, []string{"a"}},
		"in a variable":                          {[]string{`{{$x := ip "a"}}{{$x}}`}, []string{"a"}},
	} {
		t.Run(name, func(t *testing.T) {
			got, err := messages.ArgUses(c.in)
			if err != nil {
				t.Fatal(err)
			}
			if diff := cmp.Diff(c.want, got); diff != "" {
				t.Errorf("uses (-want +got):\n%s", diff)
			}
		})
	}
	for name, in := range map[string]string{
		"a computed name": `{{ip .Unit}}`, "a variable": `{{$x := "a"}}{{ip $x}}`, "a piped name": `{{"a" | ip}}`, "two names": `{{ip "a" "b"}}`,
		"no name": `{{ip}}`, "a choice": `{{if .IP}}{{ip "a"}}{{end}}`, "another template": `{{define "x"}}{{ip "a"}}{{end}}{{template "x"}}`,
		"a block": `{{block "x" .}}{{ip "a"}}{{end}}`, "a name in parentheses": `{{ip ("a")}}`,
	} {
		if got, err := messages.ArgUses([]string{in}); err == nil {
			t.Errorf("%s: %s gives %q, want an error", name, in, got)
		}
	}
}

// FuzzArguments looks for an argument that uses a unit without ArgUses knowing, or that makes the renderer panic.
func FuzzArguments(f *testing.F) {
	for _, seed := range []string{
		`{{ip "a"}}`, `{{.IP}}`, `{{define "x"}}{{end}}`, `{{define "argument"}}{{ip "a"}}{{end}}`, `{{call ip "a"}}`, `{{print ip "a"}}`,
		`{{(ip "a")}}`, `{{and (ip "a") .IP}}`, `{{/* ip */}}`, `{{- ip "a" -}}`, `{{$x := ip "a"}}`, `{{"a" | ip}}`, `{{.}}`, `{{nil}}`, `{{printf "%9d" 1}}`,
	} {
		f.Add(seed)
	}
	f.Fuzz(func(t *testing.T, arg string) {
		uses, err := messages.ArgUses([]string{arg})
		if err != nil {
			return
		}
		known := map[string]bool{}
		for _, u := range uses {
			known[u] = true
		}
		_, _ = messages.RenderArgs([]string{arg}, messages.Address{IP: "10.0.0.1"}, func(u string) (string, error) {
			if !known[u] {
				t.Errorf("%q uses unit %q, of which ArgUses says nothing", arg, u)
			}
			return "10.0.0.2", nil
		})
	})
}

func TestLeaseOrder(t *testing.T) {
	for name, c := range map[string]struct {
		units []string
		uses  map[string][]string
		want  []string
		err   string
	}{
		"units that use nobody stay in their order":    {[]string{"b", "a"}, nil, []string{"b", "a"}, ""},
		"what is used comes before what uses it":       {[]string{"a", "b", "c"}, map[string][]string{"a": {"c"}}, []string{"c", "a", "b"}, ""},
		"a chain is walked to its end":                 {[]string{"a", "b", "c"}, map[string][]string{"a": {"b"}, "b": {"c"}}, []string{"c", "b", "a"}, ""},
		"what two use comes once":                      {[]string{"a", "b", "c"}, map[string][]string{"a": {"c"}, "b": {"c"}}, []string{"c", "a", "b"}, ""},
		"a circle is named":                            {[]string{"x", "a", "b"}, map[string][]string{"x": {"a"}, "a": {"b"}, "b": {"a"}}, nil, "units use one another in a circle: a uses b uses a"},
		"one that uses itself is a circle":             {[]string{"a"}, map[string][]string{"a": {"a"}}, nil, "units use one another in a circle: a uses a"},
		"a unit that the stack does not have is named": {[]string{"a"}, map[string][]string{"a": {"z"}}, nil, `unit a uses the address of unit "z", which the stack does not have`},
	} {
		t.Run(name, func(t *testing.T) {
			got, err := messages.LeaseOrder(c.units, c.uses)
			text := ""
			if err != nil {
				text = err.Error()
			}
			if text != c.err {
				t.Errorf("error %q, want %q", text, c.err)
			}
			if diff := cmp.Diff(c.want, got); diff != "" {
				t.Errorf("order (-want +got):\n%s", diff)
			}
		})
	}
}
