package vmm

import (
	"fmt"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
)

func at(seconds int) time.Time { return time.Unix(int64(1_000_000+seconds), 0) }

func TestHistory(t *testing.T) {
	all := func(string) bool { return true }
	none := time.Time{}
	for name, c := range map[string]struct {
		limit int
		add   []entry
		find  func(h *history) []entry
		want  string
	}{
		"by instance and then by time": {1 << 20, entries("b", 1, "a", 2, "b", 3, "a", 4), func(h *history) []entry { return h.find(all, none, 0) }, "a2 a4 b1 b3"},
		"the last of each":             {1 << 20, entries("b", 1, "a", 2, "b", 3, "a", 4), func(h *history) []entry { return h.find(all, none, 1) }, "a4 b3"},
		"only what is wanted":          {1 << 20, entries("b", 1, "a", 2, "b", 3), func(h *history) []entry { return h.find(func(i string) bool { return i == "b" }, none, 5) }, "b1 b3"},
		"since a time, which counts":   {1 << 20, entries("b", 1, "a", 2, "b", 3), func(h *history) []entry { return h.find(all, at(2), 0) }, "a2 b3"},
		"what is too old leaves":       {1 << 20, entries("a", 1, "b", 2, "c", 601, "d", 602), func(h *history) []entry { return h.find(all, none, 0) }, "b2 c601 d602"},
		"what is too much leaves":      {3 * (entryBytes + 1), entries("a", 1, "b", 2, "c", 3, "d", 4), func(h *history) []entry { return h.find(all, none, 0) }, "b2 c3 d4"},
		"one that is too large":        {entryBytes, entries("a", 1), func(h *history) []entry { return h.find(all, none, 0) }, ""},
		"nothing":                      {1 << 20, nil, func(h *history) []entry { return h.find(all, none, 0) }, ""},
	} {
		t.Run(name, func(t *testing.T) {
			h := &history{limit: c.limit}
			for _, e := range c.add {
				h.add(e)
			}
			got := ""
			for _, e := range c.find(h) {
				if got != "" {
					got += " "
				}
				got += fmt.Sprintf("%s%d", e.instance, e.at.Unix()-at(0).Unix())
			}
			if diff := cmp.Diff(c.want, got); diff != "" {
				t.Errorf("found (-want +got):\n%s", diff)
			}
		})
	}
}

// entries are samples of one byte: of an instance at a second, and so on.
func entries(of ...any) (list []entry) {
	for i := 0; i < len(of); i += 2 {
		list = append(list, entry{at: at(of[i+1].(int)), instance: of[i].(string), body: []byte{0}})
	}
	return list
}

// A thousand instances for an hour: no more than they may take, and what is gone is let go.
func TestHistoryIsBounded(t *testing.T) {
	h := &history{limit: historyBytes}
	for i := range 360_000 {
		h.add(entry{at: at(i / 100), instance: "a", body: make([]byte, 180)})
		if h.bytes > historyBytes || len(h.entries) > 2*historyBytes/entryBytes {
			t.Fatalf("after %d samples there are %d entries with %d bytes", i, len(h.entries), h.bytes)
		}
	}
	kept := len(h.entries) - h.first
	if h.bytes != kept*(entryBytes+180) || kept != 60_100 {
		t.Errorf("%d samples with %d bytes are kept", kept, h.bytes)
	}
}

func TestTheYoungestConsolesAreFollowed(t *testing.T) {
	want := map[string]origin{"a.a.9": {}, "b.b.10": {}, "c.c.2": {silent: true}, "d.d.11": {}, "e.e.3": {}}
	for n, names := range map[int][]string{
		1: {"c.c.2"}, 3: {"b.b.10", "c.c.2", "d.d.11"}, 4: {"a.a.9", "b.b.10", "c.c.2", "d.d.11"}, 9: {"a.a.9", "b.b.10", "c.c.2", "d.d.11", "e.e.3"},
	} {
		got := map[string]bool{}
		for name := range youngest(want, n) {
			got[name] = true
		}
		expect := map[string]bool{}
		for _, name := range names {
			expect[name] = true
		}
		if diff := cmp.Diff(expect, got); diff != "" {
			t.Errorf("%d of them (-want +got):\n%s", n, diff)
		}
	}
}
