package ipam

import (
	"errors"
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"fulmar/bus"
	"fulmar/messages"
	fulmarv1 "fulmar/messages/fulmar/v1"
)

// TestAHeadThatCannotBeReadKeepsNoOtherLeaseFromTheSweep has so many leases that one which is met after the bad ones is there in any order.
func TestAHeadThatCannotBeReadKeepsNoOtherLeaseFromTheSweep(t *testing.T) {
	w := newWorld(t, lan())
	w.accepted("web", 7, time.Minute, unit("a", "i1"))
	heads, err := w.JS.KeyValue(t.Context(), messages.HeadBucket)
	if err != nil {
		t.Fatal(err)
	}
	rev, err := heads.Put(t.Context(), "dns", []byte{0xff})
	if err != nil {
		t.Fatal(err)
	}
	want := map[string]string{"": "web.a.4"}
	if err := w.Leases.Put(t.Context(), "nonsense", &fulmarv1.Lease{Instance: "web.a.4"}, 0); err != nil {
		t.Fatal(err)
	}
	for i := 10; i < 30; i++ {
		orphan, unknown, spent := fmt.Sprintf("10.0.0.%d", i), fmt.Sprintf("10.0.0.%d", i+50), fmt.Sprintf("10.0.0.%d", i+100)
		w.lease(orphan, &fulmarv1.Lease{Instance: "web.a.3"})
		w.lease(unknown, &fulmarv1.Lease{Instance: "dns.a.3"})
		w.lease(spent, restedSince(2*time.Hour, "dns.b.3")) // needs no head
		want[orphan], want[unknown] = "resting", "dns.a.3"
	}
	err = w.replica(calm()).sweep(t.Context())
	if unreadable, ok := errors.AsType[*bus.UnreadableError](err); !ok || unreadable.Key != "dns" || unreadable.Revision != rev {
		t.Errorf("the error is %v", err)
	}
	if err == nil || strings.Count(err.Error(), "\n") != 1 || !strings.Contains(err.Error(), `"nonsense"`) {
		t.Errorf("it does not say once what is wrong with each: %v", err)
	}
	if diff := cmp.Diff(want, w.leases()); diff != "" {
		t.Errorf("leases (-want +got):\n%s", diff)
	}
}
