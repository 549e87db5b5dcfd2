package buildlog

import (
	"bytes"
	"encoding/base64"
	"fmt"
	"math/rand/v2"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
)

var at = time.Date(2026, 11, 22, 2, 0, 0, 123_000_000, time.UTC)

func read(t *testing.T, packed []byte) []Line {
	t.Helper()
	var lines []Line
	if err := Read(bytes.NewReader(packed), func(l Line) error { lines = append(lines, l); return nil }); err != nil {
		t.Fatal(err)
	}
	return lines
}

func TestALogIsKeptAsItWasSaid(t *testing.T) {
	var l Log
	if !l.Empty() {
		t.Error("an empty log is not empty")
	}
	var said []Line
	for _, line := range []Line{
		{Time: at, Step: "1/2 RUN make", State: "started"},
		{Time: at.Add(time.Second), Step: "1/2 RUN make", Text: "cc\t-o hello"},
		{Time: at, Step: "1/2 RUN make", Text: "\x1b[31mred\x07 \xff 10%\r 20%\r"},
		{Time: at, Step: "1/2 RUN make", State: "done", Text: "1.5s"},
		{Time: at, Text: "progress 1\rprogress 2"},
	} {
		said = append(said, l.Add(line))
	}
	want := []Line{
		{Number: 1, Time: at, Step: "1/2 RUN make", State: "started"},
		{Number: 2, Time: at.Add(time.Second), Step: "1/2 RUN make", Text: "cc -o hello"},
		{Number: 3, Time: at, Step: "1/2 RUN make", Text: " 20%"},
		{Number: 4, Time: at, Step: "1/2 RUN make", State: "done", Text: "1.5s"},
		{Number: 5, Time: at, Text: "progress 2"},
	}
	if diff := cmp.Diff(want, said); diff != "" {
		t.Errorf("said (-want +got):\n%s", diff)
	}
	if diff := cmp.Diff(want, read(t, l.Pack())); diff != "" {
		t.Errorf("kept (-want +got):\n%s", diff)
	}
	if diff := cmp.Diff([]string{"cc -o hello", " 20%"}, l.Last(9)); diff != "" {
		t.Errorf("last lines (-want +got):\n%s", diff)
	}
}

func TestALineIsBoundedAndFitForATerminal(t *testing.T) {
	for in, want := range map[string]string{
		"\x1b[31mred\x07":                    "[31mred",
		"a\u009bb\u007fc":                    "abc",
		"\xffa":                              "\uFFFDa",
		"two\nlines\n":                       "two lines",
		strings.Repeat("x", MaxText+1):       strings.Repeat("x", MaxText) + "…",
		strings.Repeat("x", MaxText-1) + "ü": strings.Repeat("x", MaxText-1) + "\uFFFD…",
	} {
		if got := clean(in); got != want {
			t.Errorf("%q is shown as %q, want %q", in, got, want)
		}
	}
}

func TestOfALongLogTheBeginningAndTheEndAreKept(t *testing.T) {
	l := Log{kept: 1000}
	for n := range 1000 {
		l.Add(Line{Time: at, Step: "s", Text: fmt.Sprint("line ", n+1)})
	}
	lines := read(t, l.Pack())
	var missing, kept int
	for _, line := range lines {
		if _, err := fmt.Sscanf(line.Text, "(%d lines are not kept)", &missing); err == nil {
			continue
		}
		if kept++; line.Text != fmt.Sprint("line ", line.Number) {
			t.Errorf("line %d is %q", line.Number, line.Text)
		}
	}
	if kept < 20 || kept+missing != 1000 || lines[len(lines)-1].Text != "line 1000" {
		t.Errorf("%d lines are kept and %d are missing; the last is %q", kept, missing, lines[len(lines)-1].Text)
	}
	if diff := cmp.Diff([]string{"line 999", "line 1000"}, l.Last(2)); diff != "" {
		t.Errorf("last lines (-want +got):\n%s", diff)
	}
}

func TestALogThatCannotBeCompressedIsBounded(t *testing.T) {
	l := Log{kept: 4 << 20}
	random := rand.NewChaCha8([32]byte{})
	for l.size < 2<<20-MaxText {
		raw := make([]byte, MaxText*3/4)
		if _, err := random.Read(raw); err != nil {
			t.Fatal(err)
		}
		l.Add(Line{Time: at, Text: base64.StdEncoding.EncodeToString(raw)})
	}
	last := l.Add(Line{Time: at, Text: "the end"})
	packed := l.Pack()
	if len(packed) > MaxSize || len(packed) < MaxSize/4 {
		t.Errorf("it has %d bytes, more or much less than %d", len(packed), MaxSize)
	}
	lines := read(t, packed)
	missing := 0
	for _, line := range lines {
		_, _ = fmt.Sscanf(line.Text, "(%d lines are not kept)", &missing)
	}
	if len(lines)-1+missing != last.Number || lines[len(lines)-1].Text != "the end" {
		t.Errorf("%d lines and %d missing make not %d, or the last is %q", len(lines)-1, missing, last.Number, lines[len(lines)-1].Text)
	}
}

func TestWhatIsNoLogIsRefused(t *testing.T) {
	if err := Read(strings.NewReader("no gzip"), nil); err == nil {
		t.Error("text was read as a log")
	}
	if err := Read(bytes.NewReader(pack([]byte("one field\n"), nil, 0)), nil); err == nil || !strings.Contains(err.Error(), "four fields") {
		t.Errorf("it ended with %v", err)
	}
}
