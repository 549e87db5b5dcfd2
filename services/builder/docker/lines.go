package docker

import (
	"bytes"
	"regexp"
	"strings"
	"unicode"
)

// maxLine is the longest line of a log, in bytes.
const maxLine = 4 << 10

// lines takes what comes in pieces apart into lines.
type lines struct{ partial []byte }

// add gives each line that is whole now.
func (l *lines) add(piece []byte, each func(string)) {
	for {
		line, rest, whole := bytes.Cut(piece, []byte("\n"))
		l.partial = append(l.partial, line[:min(len(line), max(maxLine-len(l.partial), 0))]...)
		if !whole {
			return
		}
		l.end(each)
		piece = rest
	}
}

// end gives what there is of a line, if anything.
func (l *lines) end(each func(string)) {
	line := bytes.TrimRight(l.partial, "\r")
	if i := bytes.LastIndexByte(line, '\r'); i >= 0 { // a bar that shows how far something is
		line = line[i+1:]
	}
	if text := plain(string(line)); text != "" {
		each(text)
	}
	l.partial = l.partial[:0]
}

// escape is a sequence that colours a terminal: the classic builder puts them around what goes to standard error.
var escape = regexp.MustCompile("\x1b\\[[0-9;]*[A-Za-z]")

// plain makes text harmless for a terminal.
func plain(text string) string {
	return strings.Map(func(r rune) rune {
		if unicode.IsControl(r) {
			return ' '
		}
		return r
	}, strings.ToValidUTF8(escape.ReplaceAllString(text, ""), "?"))
}
