package bus_test

import (
	"testing"
	"time"

	"fulmar/bus"
)

func TestRetryDelay(t *testing.T) {
	for delivery, want := range map[uint64]time.Duration{
		0: 10 * time.Millisecond, // a count that is not known is a first one
		1: 10 * time.Millisecond, 2: 20 * time.Millisecond, 3: 40 * time.Millisecond, 8: 1280 * time.Millisecond,
		9: 2560 * time.Millisecond, 10: 5 * time.Second, 11: 5 * time.Second, 64: 5 * time.Second, 1 << 63: 5 * time.Second,
	} {
		if got := bus.RetryDelay(delivery); got != want {
			t.Errorf("after delivery %d: %s, want %s", delivery, got, want)
		}
	}
}
