// Package wirejson writes albatross's messages as JSON for people and programs, and reads them back.
//
// It hears and says one JSON object for a message: its sequence, the name it is about, the kind of what it says and that itself:
//
//	{"sequence": 42, "name": "web:hello", "kind": "unikernel_get", "says": {"level": 9}}
//
// Kinds and fields are the types and fields of package albatross in snake case. Byte strings are hexadecimal, and text that is not
// UTF-8 is an object {"hex": ...}. A field that is not there has its zero value. The package keeps no state.
//
// The invariant: a message that was read from the wire comes back from its JSON as the same bytes.
package wirejson

import (
	"encoding/json"
	"errors"
	"fmt"
	"reflect"
	"strings"
	"unicode"

	"fulmar/albatross"
)

// ErrJSON reports JSON that is no message. It says which field is wrong.
var ErrJSON = errors.New("wirejson: bad message")

// Marshal writes a message as one line.
func Marshal(w albatross.Wire) ([]byte, error) {
	if w.Payload == nil {
		return nil, fmt.Errorf("%w: it says nothing", ErrJSON)
	}
	p := reflect.ValueOf(w.Payload)
	var e encoder
	e.raw(`{"sequence":`)
	e.value(reflect.ValueOf(w.Sequence))
	e.raw(`,"name":`)
	e.value(reflect.ValueOf(w.Name))
	e.raw(`,"kind":"` + snake(p.Type().Name()) + `"`)
	if p.Kind() != reflect.Struct || p.NumField() > 0 {
		e.raw(`,"says":`)
		e.value(p)
	}
	e.raw("}")
	return e.out, e.err
}

// Value writes one of albatross's types as Marshal would inside a message.
func Value(v any) ([]byte, error) {
	var e encoder
	e.value(reflect.ValueOf(v))
	return e.out, e.err
}

// Unmarshal reads a message. The error is an [ErrJSON].
func Unmarshal(text []byte) (albatross.Wire, error) {
	var m struct {
		Sequence json.RawMessage
		Name     json.RawMessage
		Kind     string
		Says     json.RawMessage
	}
	if err := strict(text, &m); err != nil {
		return albatross.Wire{}, fmt.Errorf("%w: %w", ErrJSON, err)
	}
	kind, ok := kinds()[m.Kind]
	if !ok {
		return albatross.Wire{}, fmt.Errorf("%w: kind %q is unknown", ErrJSON, m.Kind)
	}
	var w albatross.Wire
	p := reflect.New(kind).Elem()
	for _, f := range []struct {
		name string
		text json.RawMessage
		to   reflect.Value
	}{
		{"sequence", m.Sequence, reflect.ValueOf(&w.Sequence).Elem()},
		{"name", m.Name, reflect.ValueOf(&w.Name).Elem()},
		{"says", m.Says, p},
	} {
		if f.text == nil {
			continue
		}
		if err := decode(f.text, f.to, f.name); err != nil {
			return albatross.Wire{}, fmt.Errorf("%w: %w", ErrJSON, err)
		}
	}
	w.Payload = p.Interface().(albatross.Payload)
	return w, nil
}

// kinds are the types that a message can be of.
func kinds() map[string]reflect.Type {
	all := map[string]reflect.Type{}
	for _, p := range []albatross.Payload{
		albatross.ConsoleAdd{},
		albatross.ConsoleSubscribe{},
		albatross.ConsoleListInactive{},
		albatross.StatsAdd{},
		albatross.StatsRemove{},
		albatross.StatsSubscribe{},
		albatross.StatsInitial{},
		albatross.UnikernelInfo{},
		albatross.UnikernelGet{},
		albatross.UnikernelCreate{},
		albatross.UnikernelRestart{},
		albatross.UnikernelDestroy{},
		albatross.PolicyInfo{},
		albatross.PolicyAdd{},
		albatross.PolicyRemove{},
		albatross.BlockInfo{},
		albatross.BlockAdd{},
		albatross.BlockRemove{},
		albatross.BlockSet{},
		albatross.BlockDump{},
		albatross.OldBlockAdd{},
		albatross.OldBlockSet{},
		albatross.OldBlockDump{},
		albatross.Empty{},
		albatross.Text(""),
		albatross.Policies{},
		albatross.Blocks{},
		albatross.Image{},
		albatross.OldBlockImage{},
		albatross.BlockImage{},
		albatross.Consoles{},
		albatross.Unikernels{},
		albatross.Failure(""),
		albatross.ConsoleData{},
		albatross.BlockData{},
		albatross.Stats{},
	} {
		t := reflect.TypeOf(p)
		all[snake(t.Name())] = t
	}
	return all
}

// snake is a name of Go in snake case: AddName is add_name, and CPUIDs is cpuids.
func snake(name string) string {
	var b strings.Builder
	lower := false
	for _, r := range name {
		if unicode.IsUpper(r) && lower {
			b.WriteByte('_')
		}
		lower = unicode.IsLower(r)
		b.WriteRune(unicode.ToLower(r))
	}
	return b.String()
}
