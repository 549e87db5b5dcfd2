package wirejson

import (
	"bytes"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"reflect"
	"time"

	"fulmar/albatross"
)

// strict reads one JSON value without unknown fields, and nothing after it.
func strict(text []byte, to any) error {
	d := json.NewDecoder(bytes.NewReader(text))
	d.DisallowUnknownFields()
	if err := d.Decode(to); err != nil {
		return err
	}
	if _, err := d.Token(); !errors.Is(err, io.EOF) {
		return errors.New("something follows the message")
	}
	return nil
}

// decode reads a value of a field.
func decode(text json.RawMessage, v reflect.Value, field string) error {
	err := decodeText(text, v, field)
	if err == nil || errors.As(err, new(fieldError)) {
		return err
	}
	return fieldError{field, err}
}

// fieldError says which field is wrong.
type fieldError struct {
	field string
	err   error
}

func (e fieldError) Error() string { return e.field + ": " + e.err.Error() }

func (e fieldError) Unwrap() error { return e.err }

// decodeText reads what stands as a string in JSON, and leaves the rest to decodeKind.
func decodeText(text json.RawMessage, v reflect.Value, field string) (err error) {
	switch to := v.Addr().Interface().(type) {
	case *albatross.Name:
		return parse(text, to, albatross.ParseName)
	case *time.Time:
		return parse(text, to, func(s string) (time.Time, error) { return time.Parse(time.RFC3339Nano, s) })
	case *net.HardwareAddr:
		return parse(text, to, net.ParseMAC)
	case *albatross.Generation:
		return parse(text, to, func(s string) (albatross.Generation, error) { return named(s, albatross.V5, albatross.V2) })
	case *albatross.Typ:
		return parse(text, to, func(s string) (albatross.Typ, error) { return named(s, albatross.Solo5, albatross.BHyve) })
	case *[]byte:
		return parse(text, to, hex.DecodeString)
	}
	return decodeKind(text, v, field)
}

func decodeKind(text json.RawMessage, v reflect.Value, field string) error {
	switch v.Kind() {
	case reflect.Pointer:
		v.Set(reflect.New(v.Type().Elem()))
		return decode(text, v.Elem(), field)
	case reflect.Struct:
		var all map[string]json.RawMessage
		if err := strict(text, &all); err != nil {
			return err
		}
		if err := decodeFields(all, v, field); err != nil {
			return err
		}
		for name := range all {
			return fieldError{field + "." + name, errors.New("unknown field")}
		}
		return nil
	case reflect.Slice:
		var all []json.RawMessage
		if err := strict(text, &all); err != nil {
			return err
		}
		v.Set(reflect.MakeSlice(v.Type(), len(all), len(all)))
		for i, one := range all {
			if err := decode(one, v.Index(i), fmt.Sprintf("%s[%d]", field, i)); err != nil {
				return err
			}
		}
		return nil
	case reflect.String:
		if bytes.HasPrefix(text, []byte("{")) {
			var h struct{ Hex string }
			if err := strict(text, &h); err != nil {
				return err
			}
			raw, err := hex.DecodeString(h.Hex)
			v.SetString(string(raw))
			return err
		}
	}
	return strict(text, v.Addr().Interface())
}

// decodeFields reads the fields of a struct and takes them out of all.
func decodeFields(all map[string]json.RawMessage, v reflect.Value, field string) error {
	for i := range v.NumField() {
		f := v.Type().Field(i)
		if f.Anonymous {
			if err := decodeFields(all, v.Field(i), field); err != nil {
				return err
			}
			continue
		}
		name := snake(f.Name)
		text, ok := all[name]
		if !ok {
			continue
		}
		delete(all, name)
		if err := decode(text, v.Field(i), field+"."+name); err != nil {
			return err
		}
	}
	return nil
}

// parse reads a string of JSON by f.
func parse[T any](text json.RawMessage, to *T, f func(string) (T, error)) error {
	var s string
	if err := strict(text, &s); err != nil {
		return err
	}
	v, err := f(s)
	if err != nil {
		return err
	}
	*to = v
	return nil
}

// named finds the value between first and last of that name.
func named[T interface {
	~uint8
	fmt.Stringer
}](s string, first, last T) (T, error) {
	for v := first; v <= last; v++ {
		if v.String() == s {
			return v, nil
		}
	}
	return first, fmt.Errorf("%q is unknown", s)
}
