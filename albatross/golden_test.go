package albatross

import (
	"bufio"
	"bytes"
	"encoding/hex"
	"encoding/json"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
)

// vector is one line of the golden vectors, made by the reference implementation; see testdata/README.md.
type vector struct {
	ID           string          `json:"id"`
	Kind         string          `json:"kind"`
	Desc         json.RawMessage `json:"desc"`
	Decoded      json.RawMessage `json:"decoded"`
	Input        json.RawMessage `json:"input"`
	Hex          string          `json:"hex"`
	ReencodedHex string          `json:"reencoded_hex"`
	Same         *bool           `json:"reencoded_same"`
	Valid        bool            `json:"valid"`
	Error        string          `json:"error"`
	ToString     string          `json:"to_string"`
	Frames       []struct {
		Hex     string          `json:"hex"`
		Decoded json.RawMessage `json:"decoded"`
	} `json:"frames"`
}

// TestGolden compares with every vector in both directions. FULMAR_VECTORS may name a directory with more of them.
func TestGolden(t *testing.T) {
	files, err := filepath.Glob("testdata/*.jsonl")
	if err != nil || len(files) == 0 {
		t.Fatalf("no vectors in testdata: %v", err)
	}
	if dir := os.Getenv("FULMAR_VECTORS"); dir != "" {
		more, err := filepath.Glob(filepath.Join(dir, "*.jsonl"))
		if err != nil || len(more) == 0 {
			t.Fatalf("no vectors in %s: %v", dir, err)
		}
		files = append(files, more...)
	}
	for _, file := range files {
		t.Run(strings.TrimSuffix(filepath.Base(file), ".jsonl"), func(t *testing.T) {
			for _, v := range readVectors(t, file) {
				t.Run(v.ID, func(t *testing.T) { golden(t, v) })
			}
		})
	}
}

func golden(t *testing.T, v vector) {
	switch v.Kind {
	case "wire":
		goldenWire(t, v)
	case "name":
		goldenName(t, v)
	case "path":
		goldenPath(t, v)
	case "name_of_list":
		goldenNameOfList(t, v)
	case "mac":
		goldenMAC(t, v)
	case "state":
		goldenState(t, v)
	case "cert_extension":
		goldenExtension(t, v)
	case "compressed":
		goldenCompressed(t, v)
	case "uncompress":
		goldenUncompress(t, v)
	case "": // a recorded session
		goldenSession(t, v)
	default:
		t.Fatalf("vector of unknown kind %q", v.Kind)
	}
}

func readVectors(t *testing.T, file string) []vector {
	t.Helper()
	f, err := os.Open(file)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	var list []vector
	lines := bufio.NewReader(f)
	for {
		line, err := lines.ReadBytes('\n')
		if len(bytes.TrimSpace(line)) > 0 {
			var v vector
			if err := json.Unmarshal(line, &v); err != nil {
				t.Fatalf("%s line %d: %v", file, len(list)+1, err)
			}
			list = append(list, v)
		}
		if err != nil {
			return list
		}
	}
}

func unhex(t *testing.T, s string) []byte {
	t.Helper()
	b, err := hex.DecodeString(s)
	if err != nil {
		t.Fatal(err)
	}
	return b
}

// refused fails unless err is there exactly if the reference refuses the vector.
func refused(t *testing.T, v vector, err error) bool {
	t.Helper()
	if (err == nil) != v.Valid {
		t.Fatalf("got error %v, reference says valid=%v %s", err, v.Valid, v.Error)
	}
	return err != nil
}

func wantHex(t *testing.T, what string, der []byte, err error, want string) {
	t.Helper()
	if err != nil {
		t.Fatalf("%s: %v", what, err)
	}
	if got := hex.EncodeToString(der); got != want {
		t.Errorf("%s:\n got %s\nwant %s", what, got, want)
	}
}

func goldenWire(t *testing.T, v vector) {
	der := unhex(t, v.Hex)
	got, err := Unmarshal(der)
	if refused(t, v, err) {
		wantDecodeError(t, err, der)
		return
	}
	desc := wireOf(t, v.Desc)
	want := desc
	if v.Decoded != nil {
		want = wireOf(t, v.Decoded)
	}
	if diff := cmp.Diff(want, newest(got), names); diff != "" {
		t.Errorf("decoded differs (-want +got):\n%s", diff)
	}
	canonical := v.Hex
	if v.ReencodedHex != "" {
		canonical = v.ReencodedHex
	}
	again, err := Marshal(newest(got))
	if v.Same == nil || *v.Same || v.ReencodedHex != "" {
		wantHex(t, "encoded again", again, err, canonical)
	} else if back, err := Unmarshal(again); err != nil || !cmp.Equal(newest(got), back, names) {
		t.Errorf("encoded again is decoded to %v, error %v", back, err) // the reference tells only that it is another encoding
	}
	again, err = Marshal(desc)
	wantHex(t, "encoded from the description", again, err, canonical)
	if old := generationOf(got); old != V5 {
		wantOld(t, v, got, setGeneration(desc, old))
	}
}

// wantOld encodes in the old generation that the vector was in.
func wantOld(t *testing.T, v vector, got, desc Wire) {
	t.Helper()
	again, err := Marshal(got)
	wantHex(t, "encoded again in its generation", again, err, v.Hex)
	again, err = Marshal(desc)
	wantHex(t, "encoded from the description in its generation", again, err, v.Hex)
}

func goldenName(t *testing.T, v vector) {
	got, err := ParseName(jsonString(t, v.Input))
	if refused(t, v, err) {
		return
	}
	if want := nameOf(t, v.Desc); got != want || got.String() != v.ToString {
		t.Errorf("got %v, want %v, printed %q", got, want, v.ToString)
	}
}

func goldenPath(t *testing.T, v vector) {
	got, err := ParsePath(jsonString(t, v.Input))
	if refused(t, v, err) {
		return
	}
	var want struct {
		Path     []string
		ToString string `json:"to_string"`
	}
	mustJSON(t, v.Desc, &want)
	if diff := cmp.Diff(want.Path, append([]string{}, got.Labels()...)); diff != "" || got.String() != want.ToString {
		t.Errorf("got %q, want %q: %s", got, want.ToString, diff)
	}
}

func goldenNameOfList(t *testing.T, v vector) {
	var labels []string
	mustJSON(t, v.Input, &labels)
	got, err := MakeName(labels...)
	if refused(t, v, err) {
		return
	}
	if want := nameOf(t, v.Desc); got != want {
		t.Errorf("got %v, want %v", got, want)
	}
}

func goldenMAC(t *testing.T, v vector) {
	var desc struct {
		Name   json.RawMessage
		Bridge string
	}
	mustJSON(t, v.Desc, &desc)
	mac := MAC(nameOf(t, desc.Name), desc.Bridge)
	wantHex(t, "address", mac, nil, v.Hex)
}

// goldenSession decodes every message of a recorded session and compares, as far as the record is not abbreviated.
func goldenSession(t *testing.T, v vector) {
	for i, f := range v.Frames {
		if f.Hex == "" || f.Decoded == nil {
			continue
		}
		var record struct {
			Header *json.RawMessage
			Error  any
		}
		if json.Unmarshal(f.Decoded, &record) != nil || record.Header == nil {
			if _, err := Unmarshal(unhex(t, f.Hex)); err == nil && f.Hex != "" {
				t.Errorf("frame %d decodes, the reference refuses: %s", i, f.Decoded)
			}
			continue
		}
		got, err := Unmarshal(unhex(t, f.Hex))
		if err != nil {
			t.Errorf("frame %d: %v", i, err)
			continue
		}
		if bytes.Contains(f.Decoded, []byte(`"md5"`)) {
			continue // byte strings stand abbreviated
		}
		want := wireOf(t, f.Decoded)
		if diff := cmp.Diff(want, newest(got), names); diff != "" {
			t.Errorf("frame %d differs (-want +got):\n%s", i, diff)
		}
		again, err := Marshal(want)
		if generationOf(got) != V5 {
			again, err = Marshal(got)
		}
		wantHex(t, "encoded again", again, err, f.Hex)
	}
}
