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
)

// inJSON names the field whose value is of another kind, and says what to write instead where a duration stands as JSON does
// not know it.
func inJSON(err error, body []byte, d protoreflect.MessageDescriptor) error {
	if m := badDuration.FindStringSubmatch(err.Error()); m != nil {
		return fmt.Errorf("%q is no duration: %s %s", m[1], wantDuration(m[1]), m[2])
	}
	m := badToken.FindStringSubmatch(err.Error())
	if m == nil || strings.Contains("]},:", m[1]) { // no value of any kind
		return err
	}
	before, ok := until(body, m[2], m[3])
	if !ok {
		return err
	}
	switch f, element := fieldAt(before, d); {
	case f == nil, f.Message() == nil && (element || !f.IsList()):
		return err
	case isDuration(f) && !f.IsList():
		return fmt.Errorf("%s is no duration: %s (line %s, column %s)", m[1], wantDuration(m[1]), m[2], m[3])
	default:
		return fmt.Errorf("field %s is %s, but there is %s (line %s, column %s)", f.Name(), kindOf(f, element), m[1], m[2], m[3])
	}
}

// until gives a text up to a position, which counts lines and characters from 1.
func until(body []byte, line, column string) (before []byte, ok bool) {
	l, lerr := strconv.Atoi(line)
	c, cerr := strconv.Atoi(column)
	lines := bytes.SplitAfter(body, []byte("\n"))
	if lerr != nil || cerr != nil || l < 1 || l > len(lines) {
		return nil, false
	}
	last := []rune(string(lines[l-1]))
	if c < 1 || c > len(last)+1 {
		return nil, false
	}
	return append(bytes.Join(lines[:l-1], nil), string(last[:c-1])...), true
}

// fieldAt gives the field whose value would come next after the beginning of a message in JSON, and whether that is an
// element of its list. It gives nil if there is none.
func fieldAt(before []byte, d protoreflect.MessageDescriptor) (f protoreflect.FieldDescriptor, element bool) {
	type level struct {
		message     protoreflect.MessageDescriptor // nil within a map
		field       protoreflect.FieldDescriptor   // of the last key
		list, value bool                           // whether its values have no keys; whether a value comes next
	}
	var levels []level
	tokens := json.NewDecoder(bytes.NewReader(before))
	for {
		token, err := tokens.Token()
		if err != nil {
			break
		}
		top := level{message: d}
		if len(levels) > 0 {
			top = levels[len(levels)-1]
		}
		switch {
		case token == json.Delim('['):
			levels = append(levels, level{field: top.field, list: true})
			continue
		case token == json.Delim('{') && len(levels) == 0:
			levels = append(levels, top)
			continue
		case token == json.Delim('{'):
			within := level{}
			if top.field != nil && !top.field.IsMap() {
				within.message = top.field.Message()
			}
			levels = append(levels, within)
			continue
		case token == json.Delim(']'), token == json.Delim('}'):
			levels = levels[:len(levels)-1]
		case len(levels) > 0 && !top.list && !top.value:
			now := &levels[len(levels)-1]
			now.value, now.field = true, named(top.message, token)
			continue
		}
		if len(levels) > 0 { // a value has ended
			levels[len(levels)-1].value = false
		}
	}
	if len(levels) == 0 {
		return nil, false
	}
	top := levels[len(levels)-1]
	if !top.list && !top.value {
		return nil, false
	}
	return top.field, top.list
}

// named gives the field of a message by its key in JSON, or nil.
func named(d protoreflect.MessageDescriptor, key json.Token) protoreflect.FieldDescriptor {
	name, _ := key.(string)
	if d == nil {
		return nil
	}
	if f := d.Fields().ByJSONName(name); f != nil {
		return f
	}
	return d.Fields().ByName(protoreflect.Name(name))
}

// kindOf names what stands for a field in JSON that is a list or an object.
func kindOf(f protoreflect.FieldDescriptor, element bool) string {
	switch {
	case element:
		return "a list of objects"
	case f.IsList():
		return "a list"
	}
	return "an object"
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

func isDuration(f protoreflect.FieldDescriptor) bool {
	return f.Message() != nil && f.Message().FullName() == "google.protobuf.Duration"
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
