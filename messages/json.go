package messages

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"regexp"
	"strconv"
	"strings"
	"time"

	"google.golang.org/protobuf/encoding/protojson"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/reflect/protoreflect"
)

// byteOrderMark is what some editors put before a text.
const byteOrderMark = "\uFEFF"

// IsJSON reports whether a body is JSON and not protobuf: its first byte is '{', which begins no message of ours. A byte
// order mark or white space before it is allowed for if the rest is JSON indeed, because a line feed begins many a message.
func IsJSON(body []byte) bool {
	if len(body) > 0 && body[0] == '{' {
		return true
	}
	text := textOf(body)
	return bytes.HasPrefix(text, []byte("{")) && json.Valid(text)
}

func textOf(body []byte) []byte {
	return bytes.TrimLeft(bytes.TrimPrefix(body, []byte(byteOrderMark)), " \t\r\n")
}

func decodeJSON(body []byte, m proto.Message) error {
	body = bytes.TrimPrefix(body, []byte(byteOrderMark))
	err := (protojson.UnmarshalOptions{RecursionLimit: maxDepth}).Unmarshal(body, m)
	if err == nil {
		return nil
	}
	return inJSON(plain(err), body, m.ProtoReflect().Descriptor())
}

var (
	badDuration = regexp.MustCompile(`^invalid google\.protobuf\.Duration value "(.*)" (\(line \d+, column \d+\))$`)
	badToken    = regexp.MustCompile(`^syntax error: unexpected token (\S+) \(line (\d+), column (\d+)\)$`)
	keyBefore   = regexp.MustCompile(`"([A-Za-z_]+)"\s*:\s*$`)
)

// inJSON says what to write instead where a duration stands as JSON does not know it.
func inJSON(err error, body []byte, d protoreflect.MessageDescriptor) error {
	if m := badDuration.FindStringSubmatch(err.Error()); m != nil {
		return fmt.Errorf("%q is no duration: %s %s", m[1], wantDuration(m[1]), m[2])
	}
	m := badToken.FindStringSubmatch(err.Error())
	if m == nil {
		return err
	}
	line, lerr := strconv.Atoi(m[2])
	column, cerr := strconv.Atoi(m[3])
	lines := bytes.Split(body, []byte("\n"))
	if lerr != nil || cerr != nil || line < 1 || line > len(lines) || column < 1 || column > len(lines[line-1])+1 {
		return err
	}
	key := keyBefore.FindSubmatch(lines[line-1][:column-1])
	if key == nil || !hasDuration(d, string(key[1]), map[protoreflect.FullName]bool{}) {
		return err
	}
	return fmt.Errorf("%s is no duration: %s (line %s, column %s)", m[1], wantDuration(m[1]), m[2], m[3])
}

// wantDuration says how a duration is written in JSON: in seconds, as text.
func wantDuration(s string) string {
	s = strings.ReplaceAll(s, " ", "")
	if _, err := strconv.ParseFloat(s, 64); err == nil {
		s += "s"
	}
	d, err := time.ParseDuration(s)
	if err != nil {
		return `want seconds, as "5s" or "0.1s"`
	}
	return fmt.Sprintf("want %q", strconv.FormatFloat(d.Seconds(), 'f', -1, 64)+"s")
}

// hasDuration reports whether a message, at any depth, has a duration by this name.
func hasDuration(d protoreflect.MessageDescriptor, key string, seen map[protoreflect.FullName]bool) bool {
	if seen[d.FullName()] {
		return false
	}
	seen[d.FullName()] = true
	for i := range d.Fields().Len() {
		f := d.Fields().Get(i)
		switch {
		case f.Message() == nil:
		case f.Message().FullName() == "google.protobuf.Duration":
			if key == f.JSONName() || key == string(f.Name()) {
				return true
			}
		case hasDuration(f.Message(), key, seen):
			return true
		}
	}
	return false
}

// position is where the library saw an error in JSON.
var position = regexp.MustCompile(`^(.*?)\(line (\d+):(\d+)\): (.*)$`)

// plain says a protobuf error as a sentence: without the library's prefix, in which it varies the space on purpose, and
// with the place in the text at the end.
func plain(err error) error {
	s := strings.ReplaceAll(err.Error(), "\u00a0", " ")
	s = strings.Join(strings.Fields(strings.TrimPrefix(strings.TrimSpace(s), "proto:")), " ")
	if m := position.FindStringSubmatch(s); m != nil {
		what := strings.TrimSpace(m[1])
		if what != "" {
			what += ": "
		}
		s = fmt.Sprintf("%s%s (line %s, column %s)", what, m[4], m[2], m[3])
	}
	return errors.New(s)
}
