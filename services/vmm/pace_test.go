package vmm

import (
	"testing"
	"time"
)

func TestRest(t *testing.T) {
	for what, c := range map[string]struct{ poll, took, want time.Duration }{
		"a quick look":        {time.Second, time.Millisecond, time.Second},
		"one that takes":      {time.Second, 40 * time.Millisecond, 2 * time.Second},
		"one that takes long": {time.Second, 10 * time.Second, 5 * time.Second},
	} {
		if got := rest(c.poll, c.took); got != c.want {
			t.Errorf("%s: %s, want %s", what, got, c.want)
		}
	}
}
