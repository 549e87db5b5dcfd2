package albatross

import (
	"encoding/json"
	"errors"
	"os"
	"runtime"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
)

// FuzzUnmarshal: an input is refused with field and offset, or encodes again to something that decodes to the same.
// What decoding takes of memory is bounded by the input's size.
func FuzzUnmarshal(f *testing.F) {
	for _, file := range []string{"wire_commands", "wire_replies", "wire_old", "wire_invalid"} {
		for _, der := range seeds(f, file) {
			f.Add(der)
		}
	}
	f.Fuzz(func(t *testing.T, der []byte) {
		var w Wire
		var err error
		boundedAlloc(t, len(der), func() { w, err = Unmarshal(der) })
		if err != nil {
			wantDecodeError(t, err, der)
			return
		}
		again, err := Marshal(w)
		if err != nil {
			t.Fatalf("encode what was decoded: %v", err)
		}
		back, err := Unmarshal(again)
		if err != nil {
			t.Fatalf("decode what was encoded: %v", err)
		}
		if canonical, err := Marshal(back); err != nil || string(canonical) != string(again) {
			t.Fatalf("third encoding differs from the second: %v", err)
		}
		if diff := cmp.Diff(w, back, names, anyOrder, infoOrder()); diff != "" {
			t.Fatalf("differs after encoding (-first +second):\n%s", diff)
		}
	})
}

// FuzzUnmarshalState does the same for state files and certificate extensions.
func FuzzUnmarshalState(f *testing.F) {
	for _, file := range []string{"state", "cert_extension"} {
		for _, der := range seeds(f, file) {
			f.Add(der)
		}
	}
	f.Fuzz(func(t *testing.T, der []byte) {
		boundedAlloc(t, len(der), func() {
			if s, err := UnmarshalState(der); err != nil {
				wantDecodeError(t, err, der)
			} else if _, err := MarshalState(s); err != nil {
				t.Fatal(err)
			}
			if m, err := UnmarshalExtension(der); err != nil {
				wantDecodeError(t, err, der)
			} else if _, err := MarshalExtension(m); err != nil {
				t.Fatal(err)
			}
		})
	})
}

// FuzzParseName: a name is refused, or prints as something that parses to the same.
func FuzzParseName(f *testing.F) {
	for _, s := range []string{"", ":", "a", ":a", "a:b", "a:b:", "::", "A.B:c-d", "-a", "a:-b", strings.Repeat("x", 64)} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, s string) {
		n, err := ParseName(s)
		if err != nil {
			if !errors.Is(err, ErrName) {
				t.Fatalf("error is no ErrName: %v", err)
			}
			return
		}
		if again, err := ParseName(n.String()); err != nil || again != n {
			t.Fatalf("%q parses to %v, which parses to %v: %v", s, n, again, err)
		}
		if joined := n.Path().Join(Name{label: n.Label()}); joined != n {
			t.Fatalf("path and label of %v join to %v", n, joined)
		}
		if len(MAC(n, "service")) != 6 {
			t.Fatal("address has not six bytes")
		}
	})
}

// infoOrder ignores the order of an info's devices, which are sets.
func infoOrder() cmp.Option {
	return cmp.Options{
		cmp.Transformer("blocks", func(l []InfoBlock) map[InfoBlock]int {
			m := map[InfoBlock]int{}
			for _, v := range l {
				m[v]++
			}
			return m
		}),
		cmp.Transformer("bridges", func(l []InfoBridge) map[string]int {
			m := map[string]int{}
			for _, v := range l {
				m[v.UnikernelDevice+"\x00"+v.HostDevice+"\x00"+v.MAC.String()]++
			}
			return m
		}),
	}
}

// boundedAlloc fails if f allocates more than a multiple of the input's size and a constant.
func boundedAlloc(t *testing.T, size int, f func()) {
	t.Helper()
	var before, after runtime.MemStats
	runtime.ReadMemStats(&before)
	f()
	runtime.ReadMemStats(&after)
	if got, limit := after.TotalAlloc-before.TotalAlloc, uint64(size)*128+64<<10; got > limit {
		t.Fatalf("%d bytes of input made it allocate %d", size, got)
	}
}

func seeds(f *testing.F, file string) [][]byte {
	f.Helper()
	data, err := os.ReadFile("testdata/" + file + ".jsonl")
	if err != nil {
		f.Fatal(err)
	}
	var list [][]byte
	for line := range strings.Lines(string(data)) {
		var v struct{ Hex bytesHex }
		if err := json.Unmarshal([]byte(line), &v); err != nil {
			f.Fatal(err)
		}
		list = append(list, v.Hex)
	}
	return list
}
