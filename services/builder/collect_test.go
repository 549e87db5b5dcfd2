package builder

import (
	"context"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"fulmar/bus"
	"fulmar/messages"
	fulmarv1 "fulmar/messages/fulmar/v1"
)

// objects fills the store with an image for each digit, and gives the digests by digit.
func (w *world) objects(digits string) map[string]string {
	w.t.Helper()
	names := map[string]string{}
	for d := range strings.SplitSeq(digits, "") {
		names[d] = strings.Repeat(d, 64)
		if _, err := w.Images.PutString(w.t.Context(), names[d], "image "+d); err != nil {
			w.t.Fatal(err)
		}
	}
	return names
}

// left gives the first digits of what is in the store.
func (w *world) left() string {
	w.t.Helper()
	all, err := w.Images.List(w.t.Context())
	if err != nil {
		w.t.Fatal(err)
	}
	var digits string
	for d := range strings.SplitSeq("0123456789", "") {
		for _, o := range all {
			if strings.HasPrefix(o.Name, d) {
				digits += d
			}
		}
	}
	return digits
}

// later is a builder for which the grace of everything that is stored now is over.
func (w *world) later() *Service {
	s := w.replica()
	s.now = func() time.Time { return time.Now().Add(bus.ImageGrace + time.Minute) }
	return s
}

// settle lets a builder accept what is stored until nothing waits.
func (w *world) settle(s *Service) {
	w.t.Helper()
	ctx, cancel := context.WithCancel(w.t.Context())
	defer cancel()
	w.background(func(context.Context) error { return s.bus.RunRequests(ctx, acceptor, s.accept) })
	for {
		if waits, err := s.bus.RequestsWait(ctx, acceptor); err != nil {
			w.t.Fatal(err)
		} else if !waits {
			return
		}
	}
}

func contentFrom(digests ...string) *fulmarv1.Content {
	c := &fulmarv1.Content{Network: "lan"}
	for _, d := range digests {
		c.Units = append(c.Units, &fulmarv1.UnitSpec{Name: "u" + d[:1], Image: &fulmarv1.Image{Source: &fulmarv1.Image_Object{Object: d}}})
	}
	return c
}

func TestOnlyImagesThatNobodyRefersToAreCollected(t *testing.T) {
	w := newWorld(t)
	s := w.later()
	w.settle(s)
	o := w.objects("1234567")
	head := &fulmarv1.Head{Stack: "web", Newest: 9, Previous: contentFrom(o["1"]), Deployments: []*fulmarv1.HeadDeployment{
		{Generation: 5, State: fulmarv1.State_STATE_CONDEMNED, Content: contentFrom(o["2"])},
		{Generation: 6, State: fulmarv1.State_STATE_DRAINING, Content: contentFrom(o["2"])},
		{Generation: 7, State: fulmarv1.State_STATE_LIVE, Content: contentFrom(o["3"], o["4"])},
		{Generation: 8, State: fulmarv1.State_STATE_STAGED, Content: &fulmarv1.Content{Units: []*fulmarv1.UnitSpec{{Image: &fulmarv1.Image{Sha256: o["5"], Source: &fulmarv1.Image_Url{}}}}}},
		{Generation: 9, State: fulmarv1.State_STATE_UNDERWAY, Content: contentFrom(o["6"])},
	}}
	if err := w.Heads.Put(t.Context(), "web", head, 0); err != nil {
		t.Fatal(err)
	}
	if items, err := w.replica().collect(t.Context(), false); len(items) != 0 || err != nil || w.left() != "1234567" {
		t.Errorf("within the grace %v went, %v", items, err)
	}
	items, err := s.collect(t.Context(), true)
	if err != nil || len(items) != 1 || items[0].GetSubject() != o["7"] || items[0].GetAction() != "remove" || w.left() != "1234567" {
		t.Errorf("a dry run: %v, %v, and %s are left", items, err, w.left())
	}
	if items, err := s.collect(t.Context(), false); err != nil || len(items) != 1 || w.left() != "123456" {
		t.Errorf("a run: %v, %v, and %s are left", items, err, w.left())
	}
}

func TestNoImageIsCollectedWhileARequestWaits(t *testing.T) {
	w := newWorld(t)
	o := w.objects("12")
	s := w.later()
	w.request(deployKind, "web", `{"units":[{"image":{"object":"`+o["1"]+`"}}]}`)
	if items, err := s.collect(t.Context(), false); len(items) != 0 || err != nil || w.left() != "12" {
		t.Errorf("%v went, %v", items, err)
	}
	w.settle(s)
	if items, err := s.collect(t.Context(), false); len(items) != 1 || err != nil || w.left() != "1" {
		t.Errorf("%v went, %v, and %s are left", items, err, w.left())
	}
}

func TestAnImageThatWasCollectedFailsWhoNamesIt(t *testing.T) {
	w := newWorld(t)
	path, digest := w.image(1)
	s := w.later()
	if _, err := w.gotBy(s, file(path)); err != nil { // so that its facts are known
		t.Fatal(err)
	}
	w.settle(s)
	if items, err := s.collect(t.Context(), false); len(items) != 1 || err != nil {
		t.Fatalf("%v, %v", items, err)
	}
	_, err := w.gotBy(s, object(digest))
	if _, refused := messages.AsRefusal(err); !refused || !strings.Contains(err.Error(), "the store has no object "+digest) {
		t.Errorf("got %v", err)
	}
}

func TestReferred(t *testing.T) {
	a, b := strings.Repeat("a", 64), strings.Repeat("b", 64)
	got := referred(map[string]*fulmarv1.Head{
		"web": {Previous: contentFrom(a)}, "dns": {Deployments: []*fulmarv1.HeadDeployment{{Content: contentFrom(b)}}}, "gone": {Newest: 3},
	})
	if diff := cmp.Diff(map[string]bool{a: true, b: true, "": true}, got); diff != "" {
		t.Errorf("referred (-want +got):\n%s", diff)
	}
}
