package git

import (
	"strings"
	"testing"
)

func TestJoinFindsTheRepositoryOfASubmodule(t *testing.T) {
	for _, c := range []struct{ of, module, want string }{
		{"https://h/a/b", "../c", "https://h/a/c"},
		{"https://h/a/b", "./c", "https://h/a/b/c"},
		{"https://h/a/b.git", "../../x/c.git", "https://h/x/c.git"},
		{"https://h/a", "../../../c", "https://h/c"},
		{"https://h/a", "../..", ""},
		{"git@h:a/b", "../c", "git@h:a/c"},
		{"git@h:a", "../../c", ""},
		{"git@h:a", "https://x/y", "https://x/y"},
		{"https://h/a", "git@x:y", "git@x:y"},
		{"https://h/a", "/etc", ""},
		{"https://h/a", "https://jo@x/y", ""},
		{"https://h/a", "https://jo:s@x/y", ""},
		{"ssh://git@h:2222/a", "../b", "ssh://git@h:2222/b"},
		{"file:///a/b c", "../d", "file:///a/d"},
	} {
		r, err := parseRemote(c.of)
		if err != nil {
			t.Fatal(err)
		}
		got, err := r.join(c.module)
		if (c.want == "") != (err != nil) || err == nil && got.String() != c.want {
			t.Errorf("%s in %s is %s, %v, want %q", c.module, c.of, got, err, c.want)
		}
	}
}

func TestQuotePicksTheLineThatSaysWhy(t *testing.T) {
	for said, want := range map[string]string{
		"":                           "",
		"remote: a\nfatal: why\n":    "why",
		"fatal: a\x1b[31m\x00 b\n\n": "a [31m  b",
		"ssh: connect to host h port 22: Connection refused\r\nfatal: Could not read from remote repository.\n\nPlease make sure you have the correct access rights\nand the repository exists.\n": "ssh: connect to host h port 22: Connection refused",
		"error: unable to write file objects/1: No space left on device\nfatal: unpack-objects failed\n":                                                                                           "unable to write file objects/1: No space left on device",
		"fatal: write error: No space left on device\nfatal: fetch-pack: invalid index-pack output\n":                                                                                              "write error: No space left on device",
		"error: " + strings.Repeat("ü", 400): strings.Repeat("ü", maxQuote/2) + "...",
	} {
		if got := quote(said); got != want {
			t.Errorf("quote(%q) = %q, want %q", said, got, want)
		}
	}
}

func TestParseEntryRefusesPathsThatAreNone(t *testing.T) {
	object := strings.Repeat("a", 40)
	for _, name := range []string{"../x", "/x", "a//b", "a/../b", ""} {
		if e, err := parseEntry("100644 blob " + object + "       5\t" + name); err == nil {
			t.Errorf("%q is taken for %q", name, e.path)
		}
	}
	for _, line := range []string{"", "x", "100644 blob " + object + "\tx", "100644 blob " + object + " -5\tx", "100644 blob zz 5\tx"} {
		if _, err := parseEntry(line); err == nil {
			t.Errorf("%q is taken for an entry", line)
		}
	}
}
