package main

import (
	"strings"
	"testing"
	"time"

	"google.golang.org/protobuf/types/known/timestamppb"

	fulmarv1 "fulmar/messages/fulmar/v1"
)

// TestPsSaysWhatRuns has a unit that ended in each way, of a stack that asks for restart.
func TestPsSaysWhatRuns(t *testing.T) {
	w := newQuietWorld(t)
	head := &fulmarv1.Head{Stack: "web", Newest: 1, Deployments: []*fulmarv1.HeadDeployment{{
		Generation: 1, State: fulmarv1.State_STATE_LIVE, Host: "h", Content: &fulmarv1.Content{Units: []*fulmarv1.UnitSpec{{Name: "a", Restart: "on-failure"}}},
		Instances: []*fulmarv1.Instance{{Unit: "a", Name: "web.a.1", Address: "10.0.0.2"}},
	}}}
	if err := w.bus.Heads.Put(t.Context(), "web", head, 0); err != nil {
		t.Fatal(err)
	}
	var revision uint64
	for _, c := range []struct {
		seen  *fulmarv1.HostInstance
		wants []string
	}{
		{&fulmarv1.HostInstance{Running: true}, []string{"  yes  "}},
		{&fulmarv1.HostInstance{Running: true, Restarts: 3}, []string{"yes, again (3)"}},
		{&fulmarv1.HostInstance{Exit: "exited with status 3", Restarts: 2}, []string{"exited with status 3, again (2)", "; its host starts it again (restart: on-failure);"}},
		{&fulmarv1.HostInstance{Exit: "exited with status 0"}, []string{"; after that its host does not start it again (restart: on-failure); fulmar renew web"}},
		{&fulmarv1.HostInstance{Exit: "exited with status 64"}, []string{"; after that its host does not start it again"}},
		{&fulmarv1.HostInstance{Exit: "killed by signal SIGKILL"}, []string{"; after that its host does not start it again"}},
		{&fulmarv1.HostInstance{Exit: "exited"}, []string{"; its host starts it again if its status allows"}},
	} {
		c.seen.Name = "web.a.1"
		if err := w.bus.Hosts.Put(t.Context(), "h", &fulmarv1.Host{Name: "h", Instances: []*fulmarv1.HostInstance{c.seen, {Name: "dns.a.1"}}}, revision); err != nil {
			t.Fatal(err)
		}
		_, rev, err := w.bus.Hosts.Get(t.Context(), "h")
		if err != nil {
			t.Fatal(err)
		}
		revision = rev
		_, out, _ := w.run("ps")
		for _, want := range c.wants {
			if !strings.Contains(out, want) {
				t.Errorf("of %v it says\n%swant %q", c.seen, out, want)
			}
		}
	}
	for _, command := range []string{"ps", "describe"} {
		args := []string{command, "--json"}
		if command == "describe" {
			args = append(args, "web")
		}
		if _, out, _ := w.run(args...); !strings.Contains(out, `"instances":[{"name":"web.a.1","exit":"exited"}]`) {
			t.Errorf("%s --json says %s", command, out)
		}
	}
}

func TestJSONHasTheTimesAndTheVersion(t *testing.T) {
	w := newQuietWorld(t)
	until := time.Now().Add(time.Hour).Truncate(time.Second)
	for key, l := range map[string]*fulmarv1.Lease{"lan.10.0.0.2": {Instance: "web.a.1"}, "lan.10.0.0.3": {Instance: "web.a.2", RestingUntil: timestamppb.New(until)}} {
		if err := w.bus.Leases.Put(t.Context(), key, l, 0); err != nil {
			t.Fatal(err)
		}
	}
	_, out, _ := w.run("lease", "ls", "--json")
	want := `{"address":"10.0.0.2","instance":"web.a.1","network":"lan","state":"held"}` + "\n" +
		`{"address":"10.0.0.3","instance":"web.a.2","network":"lan","state":"resting","until":"` + until.UTC().Format(time.RFC3339) + `"}` + "\n"
	if out != want {
		t.Errorf("got  %swant %s", out, want)
	}
	if _, out, _ := w.run("version", "--json"); !strings.HasPrefix(out, `{"version":"`) {
		t.Errorf("the version is %s", out)
	}
}
