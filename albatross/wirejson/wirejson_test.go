package wirejson_test

import (
	"bytes"
	"encoding/hex"
	"encoding/json"
	"errors"
	"os"
	"strings"
	"testing"

	"fulmar/albatross"
	"fulmar/albatross/wirejson"
)

// messages are the golden vectors of package albatross.
func messages(t testing.TB) [][]byte {
	t.Helper()
	var all [][]byte
	for _, file := range []string{"wire_commands", "wire_replies", "wire_old"} {
		text, err := os.ReadFile("../testdata/" + file + ".jsonl")
		if err != nil {
			t.Fatal(err)
		}
		for line := range strings.Lines(string(text)) {
			var v struct {
				Hex   string `json:"hex"`
				Valid bool   `json:"valid"`
			}
			if err := json.Unmarshal([]byte(line), &v); err != nil {
				t.Fatal(err)
			}
			der, err := hex.DecodeString(v.Hex)
			if err != nil {
				t.Fatal(err)
			}
			if v.Valid {
				all = append(all, der)
			}
		}
	}
	return all
}

func TestMessagesComeBackFromJSON(t *testing.T) {
	n := 0
	for _, der := range messages(t) {
		w, err := albatross.Unmarshal(der)
		if err != nil {
			t.Fatal(err)
		}
		checkRoundTrip(t, w)
		n++
	}
	if n < 100 {
		t.Errorf("only %d messages", n)
	}
}

// checkRoundTrip writes a message to JSON and back and compares what goes over the wire.
func checkRoundTrip(t *testing.T, w albatross.Wire) {
	t.Helper()
	want, err := albatross.Marshal(w)
	if err != nil {
		return // not everything that can be read can be written
	}
	text, err := wirejson.Marshal(w)
	if err != nil {
		t.Fatalf("%T: %v", w.Payload, err)
	}
	if !json.Valid(text) {
		t.Fatalf("%T: bad JSON %s", w.Payload, text)
	}
	back, err := wirejson.Unmarshal(text)
	if err != nil {
		t.Fatalf("%T: %v in %.500s", w.Payload, err, text)
	}
	got, err := albatross.Marshal(back)
	if err != nil || !bytes.Equal(want, got) {
		t.Errorf("%T: %x became %x, %v\n%.500s", w.Payload, want, got, err, text)
	}
}

func TestJSONIsAsDocumented(t *testing.T) {
	name, err := albatross.ParseName("web:hello")
	if err != nil {
		t.Fatal(err)
	}
	for want, p := range map[string]albatross.Payload{
		`{"sequence":42,"name":"web:hello","kind":"unikernel_get","says":{"level":9}}`:                     albatross.UnikernelGet{Level: 9},
		`{"sequence":42,"name":"web:hello","kind":"failure","says":"no"}`:                                  albatross.Failure("no"),
		`{"sequence":42,"name":"web:hello","kind":"unikernel_destroy"}`:                                    albatross.UnikernelDestroy{},
		`{"sequence":42,"name":"web:hello","kind":"text","says":{"hex":"ff"}}`:                             albatross.Text("\xff"),
		`{"sequence":42,"name":"web:hello","kind":"unikernel_info","says":{"generation":"v3"}}`:            albatross.UnikernelInfo{Generation: albatross.V3},
		`{"sequence":42,"name":"web:hello","kind":"policies","says":[]}`:                                   albatross.Policies{},
		`{"sequence":42,"name":"web:hello","kind":"image","says":{"compressed":true,"image":"0102"}}`:      albatross.Image{Compressed: true, Image: []byte{1, 2}},
		`{"sequence":42,"name":"web:hello","kind":"blocks","says":[{"name":":v","size":1,"active":true}]}`: albatross.Blocks{{Name: mustName(t, "v"), Size: 1, Active: true}},
	} {
		got, err := wirejson.Marshal(albatross.Wire{Header: albatross.Header{Sequence: 42, Name: name}, Payload: p})
		if err != nil || string(got) != want {
			t.Errorf("got %s, %v, want %s", got, err, want)
		}
	}
}

func mustName(t *testing.T, s string) albatross.Name {
	t.Helper()
	n, err := albatross.ParseName(s)
	if err != nil {
		t.Fatal(err)
	}
	return n
}

func TestBadJSONIsRefused(t *testing.T) {
	for text, want := range map[string]string{
		``:                          "EOF",
		`[]`:                        "array",
		`{}`:                        `kind "" is unknown`,
		`{"kind":"empty"} {}`:       "follows",
		`{"kind":"nosuch"}`:         `kind "nosuch" is unknown`,
		`{"kind":"empty","more":1}`: `unknown field "more"`,
		`{"kind":"unikernel_get","says":{"level":"x"}}`:            "says.level",
		`{"kind":"unikernel_get","says":{"levels":1}}`:             "says.levels: unknown field",
		`{"kind":"unikernel_get","name":"a_b"}`:                    "name: albatross: invalid name",
		`{"kind":"unikernel_info","says":{"generation":"v9"}}`:     `says.generation: "v9" is unknown`,
		`{"kind":"image","says":{"image":"0"}}`:                    "says.image",
		`{"kind":"blocks","says":[{"name":":v"},{"size":true}]}`:   "says[1].size",
		`{"kind":"unikernel_get","sequence":-1}`:                   "sequence",
		`{"kind":"unikernel_get","sequence":99999999999999999999}`: "sequence",
	} {
		_, err := wirejson.Unmarshal([]byte(text))
		if !errors.Is(err, wirejson.ErrJSON) || !strings.Contains(err.Error(), want) {
			t.Errorf("%s: %v, want %q", text, err, want)
		}
	}
	if _, err := wirejson.Marshal(albatross.Wire{}); !errors.Is(err, wirejson.ErrJSON) {
		t.Errorf("a message that says nothing: %v", err)
	}
}

func FuzzUnmarshal(f *testing.F) {
	for _, der := range messages(f) {
		w, err := albatross.Unmarshal(der)
		if err != nil {
			f.Fatal(err)
		}
		text, err := wirejson.Marshal(w)
		if err != nil {
			f.Fatal(err)
		}
		f.Add(text)
	}
	f.Fuzz(func(t *testing.T, text []byte) {
		if w, err := wirejson.Unmarshal(text); err == nil {
			checkRoundTrip(t, w)
		}
	})
}
