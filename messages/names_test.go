package messages_test

import (
	"strings"
	"testing"

	"fulmar/messages"
)

func TestCheckName(t *testing.T) {
	for name, c := range map[string]struct{ in, want string }{
		"letters, digits and hyphens make a name": {"web-2", ""},
		"one letter is enough":                    {"a", ""},
		"a digit may come first":                  {"2048", ""},
		"63 bytes are short enough":               {strings.Repeat("a", 63), ""},
		"64 bytes are too long":                   {strings.Repeat("a", 64), "the name of the stack has 64 bytes, more than 63"},
		"no name is none":                         {"", "the name of the stack is empty"},
		"capital letters are refused":             {"Web", `stack "Web": a name is made of lower-case letters, digits and hyphens, and begins and ends with a letter or a digit`},
		"a dot would be another token":            {"web.shop", `stack "web.shop": a name is made of lower-case letters, digits and hyphens, and begins and ends with a letter or a digit`},
		"a leading hyphen is refused":             {"-web", `stack "-web": a name is made of lower-case letters, digits and hyphens, and begins and ends with a letter or a digit`},
		"a trailing hyphen is refused":            {"web-", `stack "web-": a name is made of lower-case letters, digits and hyphens, and begins and ends with a letter or a digit`},
		"a trailing newline is refused":           {"web\n", `stack "web\n": a name is made of lower-case letters, digits and hyphens, and begins and ends with a letter or a digit`},
		"a wildcard is refused":                   {"*", `stack "*": a name is made of lower-case letters, digits and hyphens, and begins and ends with a letter or a digit`},
		"an underscore is refused":                {"_", `stack "_": a name is made of lower-case letters, digits and hyphens, and begins and ends with a letter or a digit`},
		"other alphabets are refused":             {"größe", `stack "größe": a name is made of lower-case letters, digits and hyphens, and begins and ends with a letter or a digit`},
	} {
		t.Run(name, func(t *testing.T) {
			got := ""
			if err := messages.CheckName("stack", c.in); err != nil {
				got = err.Error()
			}
			if got != c.want {
				t.Errorf("got %q, want %q", got, c.want)
			}
		})
	}
}

func TestInstanceName(t *testing.T) {
	s := messages.InstanceName("my-site", "web", 42)
	if s != "my-site.web.42" {
		t.Fatalf("got %q", s)
	}
	stack, unit, generation, ok := messages.ParseInstance(s)
	if !ok || stack != "my-site" || unit != "web" || generation != 42 {
		t.Errorf("read back as %q %q %d %v", stack, unit, generation, ok)
	}
	for name, in := range map[string]string{
		"no generation": "web.web", "a fourth part": "web.web.4.2", "a sign": "web.web.+4", "a leading zero": "web.web.04",
		"generation 0": "web.web.0", "a number too large": "web.web.18446744073709551616", "an empty unit": "web..4",
		"a unit that is no name": "web.W.4", "nothing": "", "a stack that is no name": "*.web.4",
	} {
		if _, _, _, ok := messages.ParseInstance(in); ok {
			t.Errorf("%s: %q was taken for an instance", name, in)
		}
	}
}

func TestDeploymentName(t *testing.T) {
	s := messages.DeploymentName("my-site", 42)
	if s != "my-site-42" {
		t.Fatalf("got %q", s)
	}
	stack, generation, err := messages.ParseDeployment(s)
	if err != nil || stack != "my-site" || generation != 42 {
		t.Errorf("read back as %q %d %v", stack, generation, err)
	}
	for name, in := range map[string]string{
		"no generation": "web", "generation 0": "web-0", "a leading zero": "web-042", "a word": "web-latest", "no stack": "-4",
		"a stack that is no name": "Web-4", "nothing": "", "a number too large": "web-18446744073709551616",
	} {
		_, _, err := messages.ParseDeployment(in)
		if err == nil || !strings.Contains(err.Error(), "as web-42") {
			t.Errorf("%s: %q gives %v, want an error with an example", name, in, err)
		}
	}
}
