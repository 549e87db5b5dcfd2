// Package buildlog is the form in which the log of a build is kept: lines of text, compressed by gzip, of bounded size.
// Of a log that is too large the beginning and the end are kept, and a line between them says what is missing.
//
// A line is kept as its time, its step, what happened to the step, and its text, with tabs between them; so zcat shows a
// log as well.
package buildlog

import (
	"bufio"
	"bytes"
	"compress/gzip"
	"fmt"
	"io"
	"slices"
	"strings"
	"time"
)

// Bounds of a log.
const (
	MaxKept = 16 << 20 // bytes of text, half of them for the beginning
	MaxSize = 1 << 20  // bytes of the compressed log
	MaxText = 4 << 10  // bytes of the text of one line
)

// Line is one line of a log.
type Line struct {
	Number int       // from 1
	Time   time.Time // when it was read
	Step   string    // the step of the build that it belongs to; empty: of the builder itself
	State  string    // what happened to the step: started, cached, done, failed; empty: it said something
	Text   string    // what it said, how long it took, why it failed
}

// String is the line as a person reads it.
func (l Line) String() string {
	switch {
	case l.State == "started":
		return l.Step
	case l.State != "" && l.Text != "":
		return l.Step + ": " + l.State + ": " + l.Text
	case l.State != "":
		return l.Step + ": " + l.State
	}
	return l.Text
}

// Log is the log of one build. The zero Log is empty. It is not safe for concurrent use.
type Log struct {
	kept  int // bytes that are kept at most; 0: MaxKept
	lines int
	head  []byte
	tail  [][]byte // lines after the head
	size  int      // bytes of the tail
	cut   int      // lines between head and tail that are not kept
}

// Add adds a line, numbers it and gives it as it is kept: valid text without control characters, of bounded length.
func (l *Log) Add(line Line) Line {
	l.lines++
	line = Line{Number: l.lines, Time: line.Time.UTC(), Step: clean(line.Step), State: clean(line.State), Text: clean(line.Text)}
	raw := fmt.Appendf(nil, "%s\t%s\t%s\t%s\n", line.Time.Format(time.RFC3339Nano), line.Step, line.State, line.Text)
	half := l.kept / 2
	if half == 0 {
		half = MaxKept / 2
	}
	if len(l.tail) == 0 && l.cut == 0 && len(l.head)+len(raw) <= half {
		l.head = append(l.head, raw...)
		return line
	}
	l.tail = append(l.tail, raw)
	l.size += len(raw)
	l.tail, l.size, l.cut = shorten(l.tail, l.size, l.cut, half)
	return line
}

// shorten drops lines from the front of a tail until it has at most so many bytes.
func shorten(tail [][]byte, size, cut, limit int) (shorter [][]byte, bytes, dropped int) {
	for len(tail) > 0 && size > limit {
		size -= len(tail[0])
		tail[0] = nil
		tail, cut = tail[1:], cut+1
	}
	return tail, size, cut
}

// clean makes one line of text that a terminal can be shown: what a carriage return has overwritten and the control
// characters are left out.
func clean(s string) string {
	s = strings.TrimRight(s, "\r\n")
	if i := strings.LastIndexByte(s, '\r'); i >= 0 {
		s = s[i+1:]
	}
	if len(s) > MaxText {
		s = s[:MaxText] + "…"
	}
	s = strings.ToValidUTF8(s, "\uFFFD")
	return strings.Map(func(r rune) rune {
		switch {
		case r == '\t' || r == '\n':
			return ' '
		case r < ' ' || r >= 0x7f && r < 0xa0:
			return -1
		}
		return r
	}, s)
}

// Empty reports whether nothing was added.
func (l *Log) Empty() bool { return l.lines == 0 }

// Last gives the last texts that steps said, at most n, oldest first.
func (l *Log) Last(n int) []string {
	var texts []string
	add := func(raw []byte) {
		if line, ok := parse(string(raw)); ok && line.Step != "" && line.State == "" && line.Text != "" && len(texts) < n {
			texts = append(texts, line.Text)
		}
	}
	for _, raw := range slices.Backward(l.tail) {
		add(raw)
	}
	if l.cut == 0 {
		for rest := l.head; len(rest) > 0 && len(texts) < n; {
			begin := bytes.LastIndexByte(rest[:len(rest)-1], '\n') + 1
			add(rest[begin:])
			rest = rest[:begin]
		}
	}
	slices.Reverse(texts)
	return texts
}

// Pack gives the log as it is kept.
func (l *Log) Pack() []byte {
	head, tail, size, cut := l.head, slices.Clone(l.tail), l.size, l.cut
	for limit := len(head); ; limit /= 2 {
		packed := pack(head, tail, cut)
		if len(packed) <= MaxSize || limit == 0 {
			return packed
		}
		end := bytes.LastIndexByte(head[:min(limit/2, len(head))], '\n') + 1
		cut += bytes.Count(head[end:], []byte{'\n'})
		head = head[:end]
		tail, size, cut = shorten(tail, size, cut, limit/2)
	}
}

func pack(head []byte, tail [][]byte, cut int) []byte {
	var b bytes.Buffer
	z := gzip.NewWriter(&b)
	_, _ = z.Write(head) // a buffer takes everything
	if cut > 0 {
		_, _ = fmt.Fprintf(z, "\t\t\t(%d lines are not kept)\n", cut)
	}
	for _, raw := range tail {
		_, _ = z.Write(raw)
	}
	_ = z.Close()
	return b.Bytes()
}

// Read calls handle with every line of a log that was kept, numbered as they were. The line that says what is missing has
// no time and the number of the last one that is.
func Read(r io.Reader, handle func(Line) error) error {
	z, err := gzip.NewReader(r)
	if err != nil {
		return fmt.Errorf("read the log of a build: %w", err)
	}
	s := bufio.NewScanner(io.LimitReader(z, 2*MaxKept))
	s.Buffer(nil, 16*MaxText)
	for n := 1; s.Scan(); n++ {
		line, ok := parse(s.Text())
		if !ok {
			return fmt.Errorf("read the log of a build: line %d has not four fields", n)
		}
		var cut int
		if _, err := fmt.Sscanf(line.Text, "(%d lines", &cut); err == nil && line.Time.IsZero() {
			n += cut - 1
		}
		line.Number = n
		if err := handle(line); err != nil {
			return err
		}
	}
	if err := s.Err(); err != nil {
		return fmt.Errorf("read the log of a build: %w", err)
	}
	return nil
}

func parse(raw string) (Line, bool) {
	fields := strings.SplitN(strings.TrimSuffix(raw, "\n"), "\t", 4)
	if len(fields) != 4 {
		return Line{}, false
	}
	at, err := time.Parse(time.RFC3339Nano, fields[0])
	if fields[0] != "" && err != nil {
		return Line{}, false
	}
	return Line{Time: at, Step: fields[1], State: fields[2], Text: fields[3]}, true
}
