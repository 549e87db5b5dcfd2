package albatross

import (
	"encoding/json"
	"errors"
	"fmt"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"
)

// wantDecodeError checks that an error of decoding names a field and an offset within the input.
func wantDecodeError(t *testing.T, err error, der []byte) {
	t.Helper()
	var e *DecodeError
	if !errors.As(err, &e) || !errors.Is(err, ErrMalformed) {
		t.Fatalf("got %T %v, want a *DecodeError", err, err)
	}
	if e.Field == "" || e.Offset < 0 || e.Offset > len(der) {
		t.Errorf("error %v: field %q, offset %d of %d", err, e.Field, e.Offset, len(der))
	}
}

func goldenState(t *testing.T, v vector) {
	der := unhex(t, v.Hex)
	got, err := UnmarshalState(der)
	if refused(t, v, err) {
		wantDecodeError(t, err, der)
		return
	}
	var desc struct {
		State struct {
			Unikernels []struct {
				Name  descName
				Value descConfig
			}
			Policies []struct {
				Name  descName
				Value descPolicy
			}
		}
	}
	mustJSON(t, v.Desc, &desc)
	want := State{Unikernels: []NamedConfig{}, Policies: []NamedPolicy{}}
	for _, u := range desc.State.Unikernels {
		want.Unikernels = append(want.Unikernels, NamedConfig{u.Name.Name, u.Value.config()})
	}
	for _, p := range desc.State.Policies {
		want.Policies = append(want.Policies, NamedPolicy{p.Name.Name, p.Value.policy()})
	}
	if got.Policies == nil {
		got.Policies = []NamedPolicy{} // old forms have none
	}
	if diff := cmp.Diff(want, got, names, anyOrder); diff != "" {
		t.Errorf("decoded differs (-want +got):\n%s", diff)
	}
	canonical := v.Hex
	if v.ReencodedHex != "" {
		canonical = v.ReencodedHex
	}
	again, err := MarshalState(got)
	wantHex(t, "encoded again", again, err, canonical)
	again, err = MarshalState(want)
	wantHex(t, "encoded from the description", again, err, canonical)
}

func goldenExtension(t *testing.T, v vector) {
	der := unhex(t, v.Hex)
	got, err := UnmarshalExtension(der)
	if refused(t, v, err) {
		wantDecodeError(t, err, der)
		return
	}
	var desc, decoded struct{ Command json.RawMessage }
	mustJSON(t, v.Desc, &desc)
	want := commandOf(t, desc.Command)
	if v.Decoded != nil {
		mustJSON(t, v.Decoded, &decoded)
		want = commandOf(t, decoded.Command)
	}
	if diff := cmp.Diff(want, got, names, anyOrder); diff != "" {
		t.Errorf("decoded differs (-want +got):\n%s", diff)
	}
	again, err := MarshalExtension(got)
	wantHex(t, "encoded again", again, err, v.Hex)
	again, err = MarshalExtension(commandOf(t, desc.Command))
	wantHex(t, "encoded from the description", again, err, v.Hex)
}

// anyOrder ignores the order of block devices and bridges: the description has the one given to the encoder.
var anyOrder = cmp.Options{
	cmpopts.SortSlices(func(a, b Block) bool { return fmt.Sprint(a) < fmt.Sprint(b) }),
	cmpopts.SortSlices(func(a, b Bridge) bool { return fmt.Sprint(a) < fmt.Sprint(b) }),
}

type descPlain struct {
	Level int
	Len   int       `json:"plain_len"`
	Plain *bytesHex `json:"plain_hex"`
}

// plain returns the data of a compression vector; without data it is that many zero bytes.
func (d descPlain) plain() []byte {
	if d.Plain == nil {
		return make([]byte, d.Len)
	}
	return *d.Plain
}

func goldenCompressed(t *testing.T, v vector) {
	var desc descPlain
	mustJSON(t, v.Desc, &desc)
	ours, err := Compress(desc.plain(), desc.Level)
	if refused(t, v, err) {
		return
	}
	for name, data := range map[string][]byte{"ours": ours, "the reference's": unhex(t, v.Hex)} {
		got, err := Uncompress(data, len(desc.plain()))
		if err != nil || string(got) != string(desc.plain()) {
			t.Errorf("%s uncompresses to %d bytes, error %v", name, len(got), err)
		}
		if _, err := Uncompress(data, len(desc.plain())-1); !errors.Is(err, ErrCompressed) {
			t.Errorf("%s with too low a limit: error %v", name, err)
		}
	}
}

func goldenUncompress(t *testing.T, v vector) {
	got, err := Uncompress(unhex(t, v.Hex), 1<<20)
	if refused(t, v, err) {
		return
	}
	var desc descPlain
	mustJSON(t, v.Desc, &desc)
	if string(got) != string(desc.plain()) {
		t.Errorf("got %x, want %x", got, desc.plain())
	}
}
