package docker

import (
	"errors"
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/containerd/errdefs"
	"github.com/google/go-cmp/cmp"
	"google.golang.org/protobuf/encoding/protowire"
)

// fieldsOf writes a message of strings, times and true.
func fieldsOf(fields map[protowire.Number]any) (raw []byte) {
	for n, v := range fields {
		switch v := v.(type) {
		case string:
			raw = protowire.AppendString(protowire.AppendTag(raw, n, protowire.BytesType), v)
		case bool:
			raw = protowire.AppendVarint(protowire.AppendTag(raw, n, protowire.VarintType), protowire.EncodeBool(v))
		case time.Time:
			t := protowire.AppendVarint(protowire.AppendTag(nil, 1, protowire.VarintType), uint64(v.Unix()))
			t = protowire.AppendVarint(protowire.AppendTag(t, 2, protowire.VarintType), uint64(v.Nanosecond()))
			raw = protowire.AppendBytes(protowire.AppendTag(raw, n, protowire.BytesType), t)
		}
	}
	return raw
}

func TestProgressBecomesLines(t *testing.T) {
	at := time.Unix(1700000000, 5e8)
	var got []string
	p := newProgress(func(l Line) { got = append(got, l.String()) })
	make1 := map[protowire.Number]any{1: "d1", 3: "[2/3] RUN make\x1b[31m"}
	for _, status := range []map[protowire.Number]map[protowire.Number]any{
		{1: make1},
		{1: {1: "d1", 3: "[2/3] RUN make\x1b[31m", 5: at}},
		{3: {1: "d1", 4: "10%\r50%\rhalf a"}},
		{3: {1: "d1", 4: " line\nwhole\n\n"}, 9: {}},
		{3: {1: "d1", 4: "no end"}, 1: {1: "d1", 3: "[2/3] RUN make\x1b[31m", 5: at, 6: at.Add(1500 * time.Millisecond)}},
		{1: {1: "d1", 3: "[2/3] RUN make\x1b[31m", 5: at, 6: at.Add(time.Hour)}},
		{1: {1: "d2", 3: "[1/3] FROM x", 4: true, 5: at, 6: at}},
		{1: {1: "d3", 3: "[3/3] RUN false", 5: at, 6: at, 7: "exit code: 1"}},
	} {
		var raw []byte
		for n, message := range status {
			raw = protowire.AppendBytes(protowire.AppendTag(raw, n, protowire.BytesType), fieldsOf(message))
		}
		if err := p.take(raw); err != nil {
			t.Fatal(err)
		}
	}
	want := []string{
		"[2/3] RUN make", "  half a line", "  whole", "  no end", "[2/3] RUN make: done in 1.5s", "[1/3] FROM x", "[1/3] FROM x: cached",
		"[3/3] RUN false", "[3/3] RUN false: failed: exit code: 1",
	}
	if diff := cmp.Diff(want, got); diff != "" || p.failed != "[3/3] RUN false" {
		t.Errorf("%q failed, and the lines are wrong (-want +got):\n%s", p.failed, diff)
	}
	for _, broken := range [][]byte{{0x0a}, {0x0a, 5, 1}, {0xff}, {0x0a, 2, 0x0a, 9}} {
		if err := p.take(broken); err == nil {
			t.Errorf("% x is taken for progress", broken)
		}
	}
}

func FuzzProgress(f *testing.F) {
	f.Add([]byte{0x0a, 4, 0x0a, 2, 'd', '1'})
	f.Fuzz(func(_ *testing.T, raw []byte) {
		_ = newProgress(func(Line) {}).take(raw)
	})
}

func TestClassicOutputBecomesLines(t *testing.T) {
	now := time.Unix(0, 0)
	var got []string
	s := &stages{log: func(l Line) { got = append(got, l.String()) }, now: func() time.Time { now = now.Add(time.Second); return now }}
	for _, m := range []message{
		{Stream: "Step 1/4 : FROM x AS a"},
		{Stream: "\n"},
		{Status: "Pulling from library/x", ID: "latest"},
		{Status: "Digest: sha256:1"},
		{Stream: " ---> 0123456789ab\n"},
		{Stream: "Step 2/4 : RUN make\n"},
		{Stream: " ---> Running in 0123456789cd\n"},
		{Stream: "out"},
		{Stream: "put\nno end"},
		{Stream: "Removing intermediate container 0123456789cd\n"},
		{Stream: " ---> 1123456789ab\n"},
		{Aux: []byte(`{"ID":"sha256:1123456789abcdef"}`)},
		{Stream: "Step 3/4 : from scratch\n"},
		{Stream: " ---> \n"},
		{Stream: "Step 4/4 : COPY a b\n ---> Using cache\n ---> 2123456789ab\n"},
		{Aux: []byte(`{"ID":"sha256:2123456789abcdef"}`)},
		{Stream: "Successfully built 2123456789ab\n"},
	} {
		if err := s.hear(m); err != nil {
			t.Fatal(err)
		}
	}
	want := []string{
		"[1/4] FROM x AS a", "  Digest: sha256:1", "[1/4] FROM x AS a: done in 1s", "[2/4] RUN make", "  output", "  no end", "[2/4] RUN make: done in 1s",
		"[3/4] from scratch", "[3/4] from scratch: done in 1s", "[4/4] COPY a b", "[4/4] COPY a b: cached",
	}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("the lines are wrong (-want +got):\n%s", diff)
	}
	if diff := cmp.Diff([]string{"sha256:1123456789abcdef", "sha256:2123456789abcdef"}, s.images); diff != "" {
		t.Errorf("the images are wrong (-want +got):\n%s", diff)
	}
}

func TestFaultTellsTheDockerfileFromTheEngine(t *testing.T) {
	for text, want := range map[string]bool{
		"executor failed running [/bin/sh -c curl h || echo connection refused]: exit code: 6": true,
		"process \"/bin/sh -c make\" did not complete successfully: exit code: 2":              true,
		"The command '/bin/sh -c make' returned a non-zero code: 2":                            true,
		"COPY failed: file not found in build context or excluded by .dockerignore":            true,
		"pull access denied for x, repository does not exist":                                  true,
		"failed to do request: Head \"https://r/v2/x\": dial tcp: lookup r: no such host":      false,
		"write /var/lib/docker/tmp/x: no space left on device":                                 false,
		"failed commit on ref: unexpected EOF":                                                 false,
	} {
		if got := fault(said(text)); got != want {
			t.Errorf("fault(%q) = %v", text, got)
		}
	}
	for err, want := range map[error]bool{
		errors.New("x"): false, fmt.Errorf("dockerfile parse error: %w", errdefs.ErrInvalidArgument): true, fmt.Errorf("x: %w", errdefs.ErrUnavailable): false,
	} {
		if got := fault(err); got != want {
			t.Errorf("fault(%v) = %v", err, got)
		}
	}
	if got := short(said(strings.Repeat("ü", 1000) + " exit code: 1")).Error(); len(got) > maxError+10 || !strings.HasSuffix(got, " exit code: 1") {
		t.Errorf("a long error becomes %q", got)
	}
}

func TestKeepFileReadsDockerignore(t *testing.T) {
	keep, err := KeepFile([]byte("# what is made\n*.o\n**/tmp\n!src/tmp\nDockerfile*\n.git\n"), "./Dockerfile.prod")
	if err != nil {
		t.Fatal(err)
	}
	var kept []string
	for _, path := range []string{"a.o", "src/a.o", "tmp/x", "deep/tmp/x", "src/tmp/x", "Dockerfile", "Dockerfile.prod", "a.c", ".git/x"} {
		if keep(path) {
			kept = append(kept, path)
		}
	}
	if want := []string{"src/a.o", "src/tmp/x", "Dockerfile.prod", "a.c"}; !slices.Equal(kept, want) {
		t.Errorf("kept are %q, want %q", kept, want)
	}
	if _, err := KeepFile([]byte("[a\n"), "Dockerfile"); err == nil {
		t.Error("a pattern that is none is taken")
	}
}

func TestALineHasItsBounds(t *testing.T) {
	var l lines
	var got []string
	for range 3 {
		l.add([]byte(strings.Repeat("x", maxLine-1)), nil)
	}
	l.add([]byte("\n\xff\x00y\tz\n"), func(s string) { got = append(got, s) })
	if len(got) != 2 || len(got[0]) != maxLine || got[1] != "? y z" {
		t.Errorf("the lines have %d bytes and are %q", len(got[0]), got[1:])
	}
}
