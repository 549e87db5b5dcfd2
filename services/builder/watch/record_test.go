package watch

import (
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/testing/protocmp"
	"google.golang.org/protobuf/types/known/timestamppb"

	fulmarv1 "fulmar/messages/fulmar/v1"
)

var begin = time.Unix(1_700_000_000, 0)

const (
	one   = "1111111111111111111111111111111111111111"
	two   = "2222222222222222222222222222222222222222"
	three = "3333333333333333333333333333333333333333"

	wwwURL  = "https://git.example/www"
	wwwMain = "git+" + wwwURL + "#main"
)

// at is a time after the begin.
func at(d time.Duration) *timestamppb.Timestamp { return timestamppb.New(begin.Add(d)) }

func gitUnit(name, url, ref string) *fulmarv1.UnitSpec {
	return &fulmarv1.UnitSpec{Name: name, Image: &fulmarv1.Image{Source: &fulmarv1.Image_Git{Git: &fulmarv1.GitSource{
		Url: url, Ref: ref, Recipe: &fulmarv1.GitSource_Dockerfile{Dockerfile: &fulmarv1.DockerfileRecipe{}},
	}}}}
}

func dockerUnit(name, image string) *fulmarv1.UnitSpec {
	return &fulmarv1.UnitSpec{Name: name, Image: &fulmarv1.Image{Source: &fulmarv1.Image_Docker{Docker: &fulmarv1.DockerSource{Image: image}}}}
}

func urlUnit(name, url, sumURL string) *fulmarv1.UnitSpec {
	return &fulmarv1.UnitSpec{Name: name, Image: &fulmarv1.Image{Source: &fulmarv1.Image_Url{Url: url}, Sha256Url: sumURL}}
}

func deployOf(units ...*fulmarv1.UnitSpec) *fulmarv1.DeployRequest {
	return &fulmarv1.DeployRequest{Units: units, Watch: true}
}

// www is a stack that follows a branch.
func www() *fulmarv1.DeployRequest { return deployOf(gitUnit("", wwwURL, "main")) }

// followed is the record of www of generation 7, with its one source edited.
func followed(edit func(*fulmarv1.Watch, *fulmarv1.WatchedSource)) *fulmarv1.Watch {
	s := &fulmarv1.WatchedSource{Unit: "web", Source: wwwMain}
	w := &fulmarv1.Watch{Stack: "web", Generation: 7, Request: www(), Sources: []*fulmarv1.WatchedSource{s}, Next: at(time.Minute)}
	edit(w, s)
	return w
}

func withCause(r *fulmarv1.DeployRequest) *fulmarv1.DeployRequest {
	n := proto.CloneOf(r)
	n.Cause = "because"
	return n
}

func TestEnter(t *testing.T) {
	now := begin.Add(time.Hour)
	seenOne := func(w *fulmarv1.Watch, s *fulmarv1.WatchedSource) { s.Seen, s.Found, s.Looked = one, one, at(0) }
	foundTwo := func(w *fulmarv1.Watch, s *fulmarv1.WatchedSource) {
		s.Seen, s.Found, s.Looked, s.Etag = one, two, at(0), "e"
	}
	ended := &fulmarv1.Watch{Stack: "web", Generation: 8}
	new8 := func(edit func(*fulmarv1.Watch, *fulmarv1.WatchedSource)) *fulmarv1.Watch {
		w := followed(edit)
		w.Generation = 8
		return w
	}
	sent := www()
	sent.Cause, sent.IfNewest = "main moved", proto.Uint64(7)
	unwatched := www()
	unwatched.Watch = false
	fresh := func(edit func(*fulmarv1.Watch, *fulmarv1.WatchedSource)) *fulmarv1.Watch {
		return new8(func(w *fulmarv1.Watch, s *fulmarv1.WatchedSource) {
			w.Next = timestamppb.New(now)
			edit(w, s)
			s.Seen = ""
		})
	}
	nothing := func(*fulmarv1.Watch, *fulmarv1.WatchedSource) {}
	paused := func(w *fulmarv1.Watch, s *fulmarv1.WatchedSource) { seenOne(w, s); w.Paused = true }
	failing := func(_ *fulmarv1.Watch, s *fulmarv1.WatchedSource) { s.Error, s.Failures = "no", 3 }
	next := deployOf(gitUnit("", wwwURL, "next"))
	for name, c := range map[string]struct {
		have    *fulmarv1.Watch
		request *fulmarv1.DeployRequest
		want    *fulmarv1.Watch // nil: what there was
	}{
		"a new watch is looked at at once":     {&fulmarv1.Watch{}, www(), fresh(nothing)},
		"a request without watch makes none":   {&fulmarv1.Watch{}, unwatched, nil},
		"a retirement of what is not watched":  {&fulmarv1.Watch{}, nil, nil},
		"a request without watch ends one":     {followed(seenOne), unwatched, ended},
		"a retirement ends one":                {followed(seenOne), nil, ended},
		"what was ended stays so":              {&fulmarv1.Watch{Stack: "web", Generation: 5}, unwatched, nil},
		"an older generation is too late":      {new8(seenOne), www(), nil},
		"an older one brings back nothing":     {&fulmarv1.Watch{Stack: "web", Generation: 9}, www(), nil},
		"an older one ends nothing":            {new8(seenOne), nil, nil},
		"what was found is seen by its own":    {followed(foundTwo), sent, new8(func(w *fulmarv1.Watch, s *fulmarv1.WatchedSource) { foundTwo(w, s); s.Seen = two })},
		"what a person deploys is not known":   {followed(foundTwo), www(), fresh(foundTwo)},
		"a pause stays":                        {followed(paused), www(), fresh(paused)},
		"what was sent is over":                {followed(func(w *fulmarv1.Watch, s *fulmarv1.WatchedSource) { foundTwo(w, s); w.Sent, w.SentNewest = 8, 7 }), sent, new8(func(w *fulmarv1.Watch, s *fulmarv1.WatchedSource) { foundTwo(w, s); s.Seen = two })},
		"a source that never answered":         {followed(failing), www(), fresh(failing)},
		"another ref is another source":        {followed(seenOne), next, fresh(func(w *fulmarv1.Watch, s *fulmarv1.WatchedSource) { w.Request, s.Source = next, "git+"+wwwURL+"#next" })},
		"a cause alone does not make it known": {followed(seenOne), withCause(next), fresh(func(w *fulmarv1.Watch, s *fulmarv1.WatchedSource) { w.Request, s.Source = next, "git+"+wwwURL+"#next" })},
	} {
		t.Run(name, func(t *testing.T) {
			before := proto.CloneOf(c.have)
			got, err := Enter(c.have, "web", 8, c.request, now)
			if err != nil {
				t.Fatal(err)
			}
			if c.want == nil {
				c.want = before
				if got != c.have {
					t.Error("it is written again")
				}
			}
			if diff := cmp.Diff(c.want, got, protocmp.Transform()); diff != "" {
				t.Errorf("record (-want +got):\n%s", diff)
			}
			if diff := cmp.Diff(before, c.have, protocmp.Transform()); diff != "" {
				t.Errorf("what was given was changed:\n%s", diff)
			}
		})
	}
}

func TestSourcesAreThoseThatCanMove(t *testing.T) {
	sum := "0000000000000000000000000000000000000000000000000000000000000000"
	never := dockerUnit("never", "registry.example/www:live")
	never.GetImage().GetDocker().Pull = "never"
	got, err := Sources("web", deployOf(
		gitUnit("branch", wwwURL, "main"), gitUnit("head", "git@git.example:www.git", ""), gitUnit("commit", wwwURL, one),
		dockerUnit("tag", "registry.example/www:live"), dockerUnit("digest", "registry.example/www@sha256:"+sum), never,
		urlUnit("artefact", "https://ci.example/www.spt", "https://ci.example/www.spt.sha256"),
		&fulmarv1.UnitSpec{Name: "fixed", Image: &fulmarv1.Image{Source: &fulmarv1.Image_Object{Object: sum}}},
	))
	if err != nil {
		t.Fatal(err)
	}
	want := []*fulmarv1.WatchedSource{
		{Unit: "branch", Source: wwwMain},
		{Unit: "head", Source: "git@git.example:www.git"},
		{Unit: "tag", Source: "docker:registry.example/www:live#/unikernel"},
		{Unit: "artefact", Source: "https://ci.example/www.spt.sha256"},
	}
	if diff := cmp.Diff(want, got, protocmp.Transform()); diff != "" {
		t.Errorf("sources (-want +got):\n%s", diff)
	}
}

func TestPauseResumeCheckAndAsk(t *testing.T) {
	looked := func(w *fulmarv1.Watch, s *fulmarv1.WatchedSource) { s.Looked = at(0); w.Sent, w.SentNewest = 9, 8 }
	paused := followed(looked)
	paused.Paused = true
	after := func(d time.Duration) time.Time { return begin.Add(d) }
	next := func(w *fulmarv1.Watch) time.Duration { return w.GetNext().AsTime().Sub(begin) }

	w := Pause(followed(looked))
	if diff := cmp.Diff(paused, w, protocmp.Transform()); diff != "" {
		t.Errorf("paused (-want +got):\n%s", diff)
	}
	if Pause(paused) != paused {
		t.Error("what is paused is written again")
	}
	if got := Ask(paused, "webhook", after(10*time.Second)); got != paused {
		t.Errorf("a webhook wakes what is paused: %v", got)
	}
	if got := Resume(paused, after(10*time.Second)); got.GetPaused() || next(got) != 10*time.Second || got.GetSent() != 0 || got.GetSentNewest() != 0 {
		t.Errorf("resumed: %v", got)
	}
	if got := Check(paused, "me", after(10*time.Second)); !got.GetPaused() || next(got) != 10*time.Second || got.GetAsked() != "me" || got.GetSent() != 0 {
		t.Errorf("checked: %v", got)
	}
	for name, c := range map[string]struct {
		now, want time.Duration
	}{
		"it looks at once":                      {10 * time.Second, 10 * time.Second},
		"but not right after the last look":     {time.Second, gap},
		"what comes sooner anyway stays":        {time.Minute, time.Minute},
		"and what should have come before, too": {time.Hour, time.Minute},
	} {
		have := followed(looked)
		got := Ask(have, "webhook", after(c.now))
		if next(got) != c.want || (got == have) != (c.want == time.Minute) || got != have && got.GetAsked() != "webhook" || got.GetSent() != 9 {
			t.Errorf("%s: next after %s, want %s: %v", name, next(got), c.want, got)
		}
	}
}

func TestSentIsNotedOnlyWhereItBelongs(t *testing.T) {
	sent := followed(func(_ *fulmarv1.Watch, s *fulmarv1.WatchedSource) { s.Seen, s.Found = one, two })
	next := begin.Add(time.Hour)
	for name, c := range map[string]struct {
		edit func(*fulmarv1.Watch)
		want uint64
		next time.Duration
	}{
		"the record that it was sent from":   {func(*fulmarv1.Watch) {}, 8, time.Hour},
		"somebody asked for a look since":    {func(w *fulmarv1.Watch) { w.Next, w.Asked = at(time.Second), "me" }, 8, time.Second},
		"it was accepted meanwhile":          {func(w *fulmarv1.Watch) { w.Generation = 8 }, 0, time.Minute},
		"another look found something newer": {func(w *fulmarv1.Watch) { w.Sources[0].Found = three }, 0, time.Minute},
		"another look sent it too":           {func(w *fulmarv1.Watch) { w.Sent = 9 }, 9, time.Minute},
	} {
		have := proto.CloneOf(sent)
		c.edit(have)
		got := Sent(have, sent, 8, 7, next)
		if got.GetSent() != c.want || !got.GetNext().AsTime().Equal(begin.Add(c.next)) || c.want == 8 && got.GetSentNewest() != 7 {
			t.Errorf("%s: %v", name, got)
		}
	}
}
