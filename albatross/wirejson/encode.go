package wirejson

import (
	"encoding/hex"
	"encoding/json"
	"fmt"
	"net"
	"reflect"
	"time"
	"unicode/utf8"

	"fulmar/albatross"
)

// encoder writes JSON with fields in the order of Go's.
type encoder struct {
	out []byte
	err error
}

func (e *encoder) raw(s string) { e.out = append(e.out, s...) }

func (e *encoder) text(s string) {
	if !utf8.ValidString(s) {
		e.raw(`{"hex":"` + hex.EncodeToString([]byte(s)) + `"}`)
		return
	}
	quoted, err := json.Marshal(s)
	if err != nil {
		e.err = err
	}
	e.out = append(e.out, quoted...)
}

func (e *encoder) value(v reflect.Value) {
	switch x := v.Interface().(type) {
	case albatross.Name:
		e.text(x.String())
		return
	case time.Time:
		e.text(x.UTC().Format(time.RFC3339Nano))
		return
	case net.HardwareAddr:
		e.text(x.String())
		return
	case albatross.Generation:
		e.text(x.String())
		return
	case albatross.Typ:
		e.text(x.String())
		return
	case []byte:
		e.raw(`"` + hex.EncodeToString(x) + `"`)
		return
	}
	switch v.Kind() {
	case reflect.Pointer:
		e.value(v.Elem())
	case reflect.Struct:
		e.raw("{")
		e.fields(v, true)
		e.raw("}")
	case reflect.Slice:
		e.raw("[")
		for i := range v.Len() {
			if i > 0 {
				e.raw(",")
			}
			e.value(v.Index(i))
		}
		e.raw("]")
	case reflect.String:
		e.text(v.String())
	case reflect.Bool, reflect.Int, reflect.Int32, reflect.Int64, reflect.Uint64:
		e.raw(fmt.Sprint(v.Interface()))
	default:
		e.err = fmt.Errorf("wirejson: cannot write a %v", v.Type())
	}
}

// fields writes the fields of a struct, and those of embedded ones as if they were its own; nil is left out. It says whether
// the next is still the first.
func (e *encoder) fields(v reflect.Value, first bool) bool {
	for i := range v.NumField() {
		f, field := v.Field(i), v.Type().Field(i)
		if field.Anonymous {
			first = e.fields(f, first)
			continue
		}
		if (f.Kind() == reflect.Pointer || f.Kind() == reflect.Slice) && f.IsNil() {
			continue
		}
		if !first {
			e.raw(",")
		}
		first = false
		e.raw(`"` + snake(field.Name) + `":`)
		e.value(f)
	}
	return first
}
