package monitor

import (
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"google.golang.org/protobuf/types/known/timestamppb"

	"fulmar/messages"
	fulmarv1 "fulmar/messages/fulmar/v1"
)

func TestRow(t *testing.T) {
	for name, c := range map[string]struct {
		from    row
		results string // g good, b bad
		want    row
	}{
		"two of three bad checks change nothing":         {results: "bb", want: row{bad: 2}},
		"the third bad check takes it down":              {results: "bbb", want: row{bad: 3, down: true}},
		"a good check between bad ones begins anew":      {results: "bbgbb", want: row{bad: 2}},
		"one of two good checks leaves it down":          {from: row{down: true}, results: "g", want: row{good: 1, down: true}},
		"the second good check brings it up":             {from: row{down: true}, results: "gg", want: row{good: 2}},
		"a bad check between good ones keeps it down":    {from: row{down: true}, results: "gbg", want: row{good: 1, down: true}},
		"what is down stays down as long as it is bad":   {results: "bbbbb", want: row{bad: 5, down: true}},
		"what recovered needs a whole row to fall again": {from: row{down: true}, results: "ggbb", want: row{bad: 2}},
	} {
		t.Run(name, func(t *testing.T) {
			got := c.from
			for _, r := range c.results {
				got = got.next(r == 'g', 2, 3)
			}
			if diff := cmp.Diff(c.want, got, cmp.AllowUnexported(row{})); diff != "" {
				t.Error(diff)
			}
		})
	}
}

func TestChange(t *testing.T) {
	up, down := []row{{good: 1}, {good: 1}}, []row{{good: 1}, {down: true}}
	for name, c := range map[string]struct {
		said   messages.Verb
		exited bool
		rows   []row
		want   messages.Verb
	}{
		"what was published well is well":           {said: "", rows: up, want: ""},
		"one check that is down makes it unhealthy": {said: "", rows: down, want: messages.Unhealthy},
		"unhealthy is said once":                    {said: messages.Unhealthy, rows: down, want: ""},
		"well again":                                {said: messages.Unhealthy, rows: up, want: messages.Recovered},
		"recovered is said once":                    {said: messages.Recovered, rows: up, want: ""},
		"unhealthy again":                           {said: messages.Recovered, rows: down, want: messages.Unhealthy},
		"exited":                                    {said: "", exited: true, rows: up, want: messages.Exited},
		"unhealthy, then exited":                    {said: messages.Unhealthy, exited: true, rows: down, want: messages.Exited},
		"exited is said once":                       {said: messages.Exited, exited: true, rows: down, want: ""},
		"started again but not yet well":            {said: messages.Exited, rows: down, want: ""},
		"started again and well":                    {said: messages.Exited, rows: up, want: messages.Recovered},
	} {
		t.Run(name, func(t *testing.T) {
			if got := change(c.said, c.exited, c.rows); got != c.want {
				t.Errorf("says %q, want %q", got, c.want)
			}
		})
	}
}

func TestTargets(t *testing.T) {
	old, young := []*fulmarv1.HealthCheck{tcp(80)}, []*fulmarv1.HealthCheck{tcp(81)}
	content := func(checks []*fulmarv1.HealthCheck) *fulmarv1.Content {
		return &fulmarv1.Content{Units: []*fulmarv1.UnitSpec{{Name: "web", Health: checks}, {Name: "signer", Health: checks}}}
	}
	instances := func(names ...string) []*fulmarv1.Instance {
		var all []*fulmarv1.Instance
		for _, n := range names {
			_, unit, _, _ := messages.ParseInstance(n)
			all = append(all, &fulmarv1.Instance{Name: n, Unit: unit, Address: "10.0.0.7"})
		}
		return all
	}
	entry := func(generation uint64, state fulmarv1.State, checks []*fulmarv1.HealthCheck, names ...string) *fulmarv1.HeadDeployment {
		return &fulmarv1.HeadDeployment{Generation: generation, State: state, Host: host, Content: content(checks), Instances: instances(names...)}
	}
	type watched struct {
		Instance   string
		Generation uint64
		Port       uint32
	}
	const (
		underway  = fulmarv1.State_STATE_UNDERWAY
		staged    = fulmarv1.State_STATE_STAGED
		live      = fulmarv1.State_STATE_LIVE
		draining  = fulmarv1.State_STATE_DRAINING
		condemned = fulmarv1.State_STATE_CONDEMNED
	)
	elsewhere := entry(42, live, old, "web.web.42")
	elsewhere.Host = "host2"
	for name, c := range map[string]struct {
		deployments []*fulmarv1.HeadDeployment
		want        []watched
	}{
		"nothing of an empty head": {},
		"what is live": {
			[]*fulmarv1.HeadDeployment{entry(42, live, old, "web.web.42", "web.signer.42")},
			[]watched{{"web.web.42", 42, 80}, {"web.signer.42", 42, 80}},
		},
		"what is live and what is staged": {
			[]*fulmarv1.HeadDeployment{entry(42, live, old, "web.web.42"), entry(43, staged, young, "web.web.43")},
			[]watched{{"web.web.43", 43, 81}, {"web.web.42", 42, 80}},
		},
		"a kept instance once, with the newest checks": {
			[]*fulmarv1.HeadDeployment{entry(42, live, old, "web.web.42", "web.signer.42"), entry(43, staged, young, "web.web.43", "web.signer.42")},
			[]watched{{"web.web.43", 43, 81}, {"web.signer.42", 43, 81}, {"web.web.42", 42, 80}},
		},
		"nothing that is underway, draining or condemned": {
			[]*fulmarv1.HeadDeployment{entry(41, condemned, old, "web.web.41"), entry(42, draining, old, "web.web.42"), entry(43, live, old, "web.web.43"), entry(44, underway, young, "web.web.44")},
			[]watched{{"web.web.43", 43, 80}},
		},
		"nothing that runs on another host": {[]*fulmarv1.HeadDeployment{elsewhere}, nil},
	} {
		t.Run(name, func(t *testing.T) {
			var got []watched
			for _, target := range targets(&fulmarv1.Head{Stack: "web", Newest: 44, Deployments: c.deployments}, host) {
				got = append(got, watched{target.instance, target.generation, target.checks[0].GetTcp().GetPort()})
			}
			if diff := cmp.Diff(c.want, got); diff != "" {
				t.Error(diff)
			}
		})
	}
}

func TestWhenACandidateGivesUp(t *testing.T) {
	started := time.Date(2026, 11, 1, 12, 0, 0, 0, time.UTC)
	for name, c := range map[string]struct {
		left  time.Duration // until the deadline of the deployment
		start time.Duration
		want  time.Duration
	}{
		"without a start deadline: shortly before the deployment's": {time.Minute, 0, 59 * time.Second},
		"with one":                             {time.Minute, 10 * time.Second, 10 * time.Second},
		"with one that is after the others":    {time.Minute, time.Hour, 59 * time.Second},
		"with a short time: after most of it":  {time.Second, 0, 800 * time.Millisecond},
		"started too late: as of the deadline": {-time.Second, 0, -time.Second},
	} {
		t.Run(name, func(t *testing.T) {
			n := newCandidate("web", "10.0.0.7", &check{startDeadline: c.start}, started, started.Add(c.left), func() {})
			if got := n.stop.Sub(started); got != c.want {
				t.Errorf("gives up after %s, want %s", got, c.want)
			}
		})
	}
}

func TestExitedEarly(t *testing.T) {
	d := deployment(42, &fulmarv1.UnitSpec{Name: "web"}, &fulmarv1.UnitSpec{Name: "signer"})
	d.Deadline = timestamppb.New(time.Time{})
	d.Units = append(d.Units, &fulmarv1.Unit{Name: "kept", Instance: &fulmarv1.Instance{Name: "web.kept.3"}})
	for name, c := range map[string]struct {
		record []*fulmarv1.HostInstance
		want   string
	}{
		"no record yet":              {nil, ""},
		"both run":                   {[]*fulmarv1.HostInstance{{Name: "web.web.42", Running: true}, {Name: "web.signer.42", Running: true}}, ""},
		"another generation exited":  {[]*fulmarv1.HostInstance{{Name: "web.web.41", Exit: "exited with status 1"}}, ""},
		"one exited":                 {[]*fulmarv1.HostInstance{{Name: "web.signer.42", Exit: "exited with status 64", LastLine: "unknown option"}}, "unit signer exited with status 64 before it was healthy: unknown option"},
		"one runs again":             {[]*fulmarv1.HostInstance{{Name: "web.web.42", Running: true, Restarts: 1, LastLine: "up"}}, "unit web exited before it was healthy: up"},
		"one that was kept did once": {[]*fulmarv1.HostInstance{{Name: "web.kept.3", Running: true, Restarts: 1}}, ""},
		"one was killed in silence":  {[]*fulmarv1.HostInstance{{Name: "web.web.42", Exit: "was killed by signal 9"}}, "unit web was killed by signal 9 before it was healthy"},
		"nobody knows how it ended":  {[]*fulmarv1.HostInstance{{Name: "web.web.42"}}, "unit web exited before it was healthy"},
	} {
		t.Run(name, func(t *testing.T) {
			var got string
			if err := exitedEarly(&fulmarv1.Host{Instances: c.record}, d); err != nil {
				got = err.Error()
			}
			if got != c.want {
				t.Errorf("says %q, want %q", got, c.want)
			}
		})
	}
}
