package messages_test

import (
	"testing"

	"github.com/google/go-cmp/cmp"

	"fulmar/messages"
	fulmarv1 "fulmar/messages/fulmar/v1"
)

var verbs = []messages.Verb{
	messages.Accepted, messages.Built, messages.Leased, messages.Started, messages.Healthy, messages.Published, messages.Staged,
	messages.Drained, messages.Stopped, messages.Retired, messages.Rejected, messages.Failed,
}

func TestRequestSubjects(t *testing.T) {
	subjects := map[string]bool{}
	for _, s := range messages.RequestSubjects() {
		subjects[s] = true
	}
	for number, name := range fulmarv1.Kind_name {
		kind := fulmarv1.Kind(number)
		if kind == fulmarv1.Kind_KIND_UNSPECIFIED {
			continue
		}
		s := messages.RequestSubject(kind, "web")
		got, stack, err := messages.ParseRequestSubject(s)
		if err != nil || got != kind || stack != "web" {
			t.Errorf("%s: %q is read back as %v %q %v", name, s, got, stack, err)
		}
		if !subjects[messages.RequestSubject(kind, "*")] {
			t.Errorf("%s: the stream does not take %q", name, s)
		}
		if messages.NewRequest(kind) == nil {
			t.Errorf("%s: it has no message", name)
		}
	}
	for _, s := range []string{"", "fulmar.deploy", "fulmar.deploy.web.x", "fulmar.undo.web", "other.deploy.web", "fulmar.unspecified.web"} {
		if _, _, err := messages.ParseRequestSubject(s); err == nil {
			t.Errorf("%q was taken for the subject of a request", s)
		}
	}
}

func TestStepSubjects(t *testing.T) {
	for _, v := range verbs {
		for host, want := range map[string]string{"": messages.NoHost, "host1": "host1"} {
			s := messages.StepSubject("web", 42, v, host)
			got, err := messages.ParseEventSubject(s)
			if err != nil {
				t.Fatal(err)
			}
			if diff := cmp.Diff(messages.EventSubject{Stack: "web", Generation: 42, Verb: v, Host: want}, got); diff != "" {
				t.Errorf("%q is read back otherwise (-want +got):\n%s", s, diff)
			}
		}
	}
}

func TestObservationSubjects(t *testing.T) {
	for _, v := range []messages.Verb{messages.Unhealthy, messages.Recovered, messages.Exited} {
		s := messages.ObservationSubject("web", 42, v, "host1", "db")
		got, err := messages.ParseEventSubject(s)
		if err != nil {
			t.Fatal(err)
		}
		if diff := cmp.Diff(messages.EventSubject{Stack: "web", Generation: 42, Verb: v, Host: "host1", Unit: "db"}, got); diff != "" {
			t.Errorf("%q is read back otherwise (-want +got):\n%s", s, diff)
		}
	}
}

func TestParseEventSubjectRefuses(t *testing.T) {
	for name, s := range map[string]string{
		"nothing":                       "",
		"another tree":                  "fulmar.deploy.web.42.built.host1",
		"no host":                       "fulmar.event.web.42.built",
		"too many tokens":               "fulmar.event.web.42.exited.host1.web.x",
		"an unknown verb":               "fulmar.event.web.42.improved.host1",
		"a generation that is none":     "fulmar.event.web.x.built.host1",
		"a generation in another form":  "fulmar.event.web.042.built.host1",
		"a step that names a unit":      "fulmar.event.web.42.built.host1.web",
		"an observation without a unit": "fulmar.event.web.42.exited.host1",
	} {
		if got, err := messages.ParseEventSubject(s); err == nil {
			t.Errorf("%s: %q was read as %+v", name, s, got)
		}
	}
}

func TestAwaited(t *testing.T) {
	want := map[messages.Verb]messages.Verb{
		messages.Accepted: messages.Built, messages.Built: messages.Leased, messages.Leased: messages.Started,
		messages.Started: messages.Healthy, messages.Healthy: messages.Published,
	}
	for _, v := range verbs {
		if got := v.Awaited(); got != want[v] {
			t.Errorf("after %s comes %q, want %q", v, got, want[v])
		}
		if !v.Known() || v.Observation() {
			t.Errorf("%s is a known step", v)
		}
	}
}

func TestLeaseKey(t *testing.T) {
	key := messages.LeaseKey("lan", "10.0.0.7")
	network, address, ok := messages.ParseLeaseKey(key)
	if key != "lan.10.0.0.7" || network != "lan" || address != "10.0.0.7" || !ok {
		t.Errorf("%q is read back as %q %q %v", key, network, address, ok)
	}
	if _, _, ok := messages.ParseLeaseKey("lan"); ok {
		t.Error("a key without an address was read")
	}
}

func TestTrySubjects(t *testing.T) {
	stack, generation, ok := messages.ParseTrySubject(messages.TrySubject("web", 42))
	if !ok || stack != "web" || generation != 42 {
		t.Errorf("it is read back as %q %d %v", stack, generation, ok)
	}
	for _, s := range []string{"", "fulmar.try.web", "fulmar.try.web.042", "fulmar.try.web.-1", "fulmar.try.web.42.x", "fulmar.event.web.42"} {
		if _, _, ok := messages.ParseTrySubject(s); ok {
			t.Errorf("%q was taken for the subject of a try", s)
		}
	}
}

func TestObservationFilter(t *testing.T) {
	if got, want := messages.ObservationFilter("web", "host1", "api"), "fulmar.event.web.*.*.host1.api"; got != want {
		t.Errorf("it is %q, want %q", got, want)
	}
}
