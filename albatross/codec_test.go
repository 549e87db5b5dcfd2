package albatross

import (
	"bytes"
	"errors"
	"math"
	"net"
	"strings"
	"testing"
	"time"

	"golang.org/x/crypto/cryptobyte"
)

// What cannot be read by a daemon, or would kill it, is not written.
func TestMarshalRefuses(t *testing.T) {
	create := func(change func(*UnikernelCreate)) Payload {
		m := UnikernelCreate{Config: Config{Args: Args{CPUIDs: []int{0}}}}
		change(&m)
		return m
	}
	tests := map[string]struct {
		payload Payload
		field   string
	}{
		"no payload":                    {nil, "payload"},
		"an integer of 64 bits":         {UnikernelGet{Level: math.MaxInt64}, "level"},
		"a negative one of 64 bits":     {BlockAdd{Size: math.MinInt64}, "size"},
		"an unknown typ":                {create(func(m *UnikernelCreate) { m.Config.Typ = 9 }), "typ"},
		"an unknown generation":         {create(func(m *UnikernelCreate) { m.Generation = 9 }), "generation"},
		"an unknown generation of info": {UnikernelInfo{Generation: 4}, "generation"},
		"new arguments before V3":       {UnikernelRestart{Args: &Args{CPUIDs: []int{0}}, Generation: V2}, "generation"},
		"two CPU ids before V5": {create(func(m *UnikernelCreate) {
			m.Generation, m.Config.CPUIDs = V4, []int{0, 1}
		}), "cpuid"},
		"no CPU id before V5": {create(func(m *UnikernelCreate) {
			m.Generation, m.Config.CPUIDs = V3, nil
		}), "cpuid"},
		"a MAC of five bytes": {create(func(m *UnikernelCreate) {
			m.Config.Bridges = []Bridge{{Netif: "a", MAC: net.HardwareAddr{1, 2, 3, 4, 5}}}
		}), "bridges.mac"},
		"a year of five digits": {ConsoleData{Time: time.Date(10000, 1, 1, 0, 0, 0, 0, time.UTC)}, "timestamp"},
	}
	for name, tt := range tests {
		t.Run(name, func(t *testing.T) {
			_, err := Marshal(Wire{Payload: tt.payload})
			if !errors.Is(err, ErrValue) || !strings.Contains(err.Error(), tt.field) {
				t.Errorf("got %v, want an ErrValue of field %s", err, tt.field)
			}
		})
	}
	if _, err := MarshalExtension(nil); !errors.Is(err, ErrValue) {
		t.Errorf("extension without command: %v", err)
	}
}

// Errors say where: the offset is that of the element at fault.
func TestDecodeErrorNamesFieldAndOffset(t *testing.T) {
	der, err := Marshal(Wire{Header: Header{Sequence: 1}, Payload: UnikernelCreate{Config: Config{Args: Args{
		CPUIDs: []int{0}, Bridges: []Bridge{{Netif: "service", MAC: net.HardwareAddr{1, 2, 3, 4, 5, 6}}},
	}}}})
	if err != nil {
		t.Fatal(err)
	}
	tests := map[string]struct {
		old, new string
		want     DecodeError
	}{
		"version":           {"\x02\x01\x05", "\x02\x01\x06", DecodeError{"message.header.version", 4, "is 6, want 5"}},
		"name":              {"\x0c\x01:", "\x0c\x01_", DecodeError{"message.header.name", 17, ""}},
		"mac cut by a byte": {"\x04\x06\x01\x02\x03\x04\x05\x06", "\x04\x07\x01\x02\x03\x04\x05\x06", DecodeError{"message.payload.command.unikernel.create.bridges.bridge.mac", 0, ""}},
		"mac of other type": {"\x04\x06\x01\x02\x03\x04\x05\x06", "\x05\x06\x01\x02\x03\x04\x05\x06", DecodeError{"message.payload.command.unikernel.create.bridges.bridge", 0, ""}},
	}
	for name, tt := range tests {
		t.Run(name, func(t *testing.T) {
			at := bytes.Index(der, []byte(tt.old))
			bad := bytes.Replace(der, []byte(tt.old), []byte(tt.new), 1)
			_, err := Unmarshal(bad)
			var e *DecodeError
			if at < 0 || !errors.As(err, &e) {
				t.Fatalf("found at %d, error %v", at, err)
			}
			if e.Field != tt.want.Field || e.Offset != at || tt.want.Reason != "" && e.Reason != tt.want.Reason {
				t.Errorf("got %+v, want field %s at offset %d", *e, tt.want.Field, at)
			}
		})
	}
}

// The messages with the smallest elements for the largest values must not be a way to take memory.
func TestDecodeAllocatesByTheInputsSize(t *testing.T) {
	const n = 1 << 16
	list := func(tags []uint8, element string) []byte {
		var b cryptobyte.Builder
		addSequence(&b, func(b *cryptobyte.Builder) {
			b.AddBytes([]byte("\x30\x10\x02\x01\x05\x04\x08\x00\x00\x00\x00\x00\x00\x00\x00\x0c\x01:"))
			var nest func(b *cryptobyte.Builder, tags []uint8)
			nest = func(b *cryptobyte.Builder, tags []uint8) {
				if len(tags) > 0 {
					addExplicit(b, tags[0], func(b *cryptobyte.Builder) { nest(b, tags[1:]) })
					return
				}
				addSequence(b, func(b *cryptobyte.Builder) { b.AddBytes(bytes.Repeat([]byte(element), n)) })
			}
			nest(b, tags)
		})
		return b.BytesOrPanic()
	}
	tests := map[string][]byte{
		"infos":    list([]uint8{1, 13}, "\x30\x1a\x0c\x01:\x30\x15\xa0\x02\x05\x00\xa0\x02\x05\x00\x31\x00\x02\x01\x00\x04\x00\xa1\x04\x31\x02\x30\x00"),
		"names":    list([]uint8{1, 12}, "\x0c\x01:"),
		"policies": list([]uint8{1, 2}, "\x30\x0f\x0c\x01:\x30\x0a\x30\x00\x02\x01\x00\x02\x01\x00\x30\x00"),
		"blocks":   list([]uint8{1, 4}, "\x30\x09\x0c\x01:\x02\x01\x00\x01\x01\x00"),
	}
	for name, der := range tests {
		t.Run(name, func(t *testing.T) {
			boundedAlloc(t, len(der), func() {
				if _, err := Unmarshal(der); err != nil && name != "infos" {
					t.Error(err)
				}
			})
		})
	}
}

// A state that holds a name twice is no state: which of them would run?
func TestUnmarshalStateRefusesANameTwice(t *testing.T) {
	unikernel := NamedConfig{Name: name(t, "a:b"), Config: Config{Args: Args{CPUIDs: []int{0}}}}
	policy := NamedPolicy{Name: name(t, "a:")}
	for what, s := range map[string]State{
		"unikernels": {Unikernels: []NamedConfig{unikernel, unikernel}},
		"policies":   {Policies: []NamedPolicy{policy, policy}},
	} {
		der, err := MarshalState(s)
		if err != nil {
			t.Fatal(err)
		}
		if _, err := UnmarshalState(der); !errors.Is(err, ErrMalformed) {
			t.Errorf("%s: %v", what, err)
		}
	}
}

// Every form of time that the reference reads; the forms of the vectors are in TestGolden.
func TestParseTime(t *testing.T) {
	at := func(h, m, s, ms int) time.Time { return time.Date(2026, 11, 21, h, m, s, ms*1e6, time.UTC) }
	tests := map[string]struct {
		in   string
		want time.Time
		err  error
	}{
		"two digits of a fraction are milliseconds too": {"20261121204911.50Z", at(20, 49, 11, 50), nil},
		"digits past milliseconds are skipped":          {"20261121204911.1234567Z", at(20, 49, 11, 123), nil},
		"but not five of them":                          {"20261121204911.12345678Z", time.Time{}, errTimeFormat},
		"minutes without seconds":                       {"202611212049Z", at(20, 49, 0, 0), nil},
		"a leap second is the next second":              {"20261121204960Z", at(20, 50, 0, 0), nil},
		"second 61":                                     {"20261121204961Z", time.Time{}, errTimeRange},
		"hour 24":                                       {"20261121244900Z", time.Time{}, errTimeRange},
		"minute 60":                                     {"20261121206000Z", time.Time{}, errTimeRange},
		"month 13":                                      {"20261321204900Z", time.Time{}, errTimeRange},
		"February 29 of a common year":                  {"20260229204900Z", time.Time{}, errTimeRange},
		"before year 0 by its zone":                     {"00000101000000+0100", time.Time{}, errTimeRange},
		"after year 9999 by its zone":                   {"99991231235959-0100", time.Time{}, errTimeRange},
		"a date alone":                                  {"20261121", time.Time{}, errTimeFormat},
		"nothing":                                       {"", time.Time{}, errTimeFormat},
	}
	for name, tt := range tests {
		t.Run(name, func(t *testing.T) {
			got, err := parseTime(tt.in)
			if !errors.Is(err, tt.err) || err == nil && !got.Equal(tt.want) {
				t.Errorf("got %v, %v; want %v, %v", got, err, tt.want, tt.err)
			}
		})
	}
}

func TestPath(t *testing.T) {
	path := func(s string) Path {
		p, err := ParsePath(s)
		if err != nil {
			t.Fatal(err)
		}
		return p
	}
	for _, tt := range []struct {
		p, q string
		want bool
	}{{"", "a:b", true}, {"a", "a", true}, {"a", "a:b", true}, {"a", "ab", false}, {"a:b", "a", false}} {
		if got := path(tt.p).Contains(path(tt.q)); got != tt.want {
			t.Errorf("%q contains %q: %v", tt.p, tt.q, got)
		}
	}
	for p, want := range map[string]string{"a:b:c": "a:b", "a": ""} {
		if got, ok := path(p).Parent(); !ok || got != path(want) {
			t.Errorf("parent of %q is %q", p, got)
		}
	}
	if _, ok := path("").Parent(); ok {
		t.Error("the root has a parent")
	}
	for relative, want := range map[string]string{":net": "foo:net", "sub:x": "foo:sub:x", ":": "foo:", "sub:": "foo:sub:"} {
		n, err := ParseName(relative)
		if err != nil {
			t.Fatal(err)
		}
		if got := path("foo").Join(n).String(); got != want {
			t.Errorf("foo joined with %s is %s, want %s", relative, got, want)
		}
		if back, ok := path("foo").Relative(path("foo").Join(n)); !ok || back != n {
			t.Errorf("%s relative to foo is %v", want, back)
		}
		if back, ok := path("").Relative(n); !ok || back != n {
			t.Errorf("%s relative to the root is %v", relative, back)
		}
		if other, ok := path("fo").Relative(path("foo").Join(n)); ok {
			t.Errorf("%s is %v in fo", want, other)
		}
	}
}
