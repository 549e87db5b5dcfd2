package gc

import (
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"google.golang.org/protobuf/testing/protocmp"
	"google.golang.org/protobuf/types/known/durationpb"
	"google.golang.org/protobuf/types/known/timestamppb"

	"fulmar/messages"
	fulmarv1 "fulmar/messages/fulmar/v1"
)

func TestNext(t *testing.T) {
	since := time.Unix(7000, 0)
	const drain = time.Minute
	entry := func(state fulmarv1.State, expired string) *fulmarv1.HeadDeployment {
		return &fulmarv1.HeadDeployment{
			State: state, Expired: expired, DrainingSince: timestamppb.New(since),
			Content: &fulmarv1.Content{Drain: durationpb.New(drain)},
		}
	}
	const (
		underway  = fulmarv1.State_STATE_UNDERWAY
		draining  = fulmarv1.State_STATE_DRAINING
		condemned = fulmarv1.State_STATE_CONDEMNED
	)
	cases := map[string]struct {
		state   fulmarv1.State
		expired string
		facts   Facts
		after   time.Duration
		want    Action
	}{
		"underway is left alone":                   {underway, "", Facts{Last: messages.Started}, 0, Action{}},
		"underway without any event is left alone": {underway, "", Facts{}, 0, Action{}},
		"underway and failed is condemned":         {underway, "", Facts{Last: messages.Failed}, 0, Action{Do: Condemn, Why: "it failed", Cause: "failed"}},
		"live is left alone":                       {fulmarv1.State_STATE_LIVE, "", Facts{Last: messages.Published, Dying: 1}, 0, Action{}},
		"staged is left alone":                     {fulmarv1.State_STATE_STAGED, "", Facts{Last: messages.Staged, Dying: 1}, 0, Action{}},

		"a drain waits while clients are led to it": {draining, "", Facts{Redirected: true}, 2 * drain, Action{Do: Wait, Why: "the kernel still leads clients to it", After: lastLook}},
		"a drain waits until nat has said that it was published": {
			draining, "",
			Facts{Last: messages.Healthy},
			2 * drain,
			Action{Do: Wait, Why: "nobody has said yet that it was published", After: lastLook},
		},
		"a drain of which all is kept is done":         {draining, "", Facts{}, 0, Action{Do: Condemn, Why: "all of its instances are kept", Cause: "kept"}},
		"a drain waits for its connections":            {draining, "", Facts{Dying: 1, Flows: 3}, 0, Action{Do: Wait, Why: "3 connections are open, for at most 1m0s more", After: firstLook}},
		"an old drain is looked at less often":         {draining, "", Facts{Dying: 1, Flows: 3}, 8 * time.Second, Action{Do: Wait, Why: "3 connections are open, for at most 52s more", After: 2 * time.Second}},
		"a drain is looked at when its time ends":      {draining, "", Facts{Dying: 1, Flows: 3}, drain - time.Millisecond, Action{Do: Wait, Why: "3 connections are open, for at most 1ms more", After: time.Millisecond}},
		"a drain does not wait for what has exited":    {draining, "", Facts{Dying: 2, Ended: 2}, 0, Action{Do: Condemn, Why: "its instances have exited", Cause: "ended"}},
		"a drain waits for those that have not exited": {draining, "", Facts{Dying: 2, Ended: 1, Flows: 3}, 0, Action{Do: Wait, Why: "3 connections are open, for at most 1m0s more", After: firstLook}},
		"one that has exited is led to until nat says": {draining, "", Facts{Dying: 1, Ended: 1, Redirected: true}, 0, Action{Do: Wait, Why: "the kernel still leads clients to it", After: firstLook}},
		"a drain ends with its time":                   {draining, "", Facts{Dying: 1, Flows: 3}, drain, Action{Do: Condemn, Why: "its drain time of 1m0s is over, 3 connections are cut", Cause: "timeout"}},
		"one poll without connections is not enough": {
			draining, "",
			Facts{Dying: 1, IdleSince: since.Add(5 * time.Second), Polled: since.Add(5 * time.Second)},
			5 * time.Second,
			Action{Do: Wait, Why: "its connections seem to have ended", After: firstLook},
		},
		"nor is it when it is looked at late": {
			draining, "",
			Facts{Dying: 1, IdleSince: since.Add(5 * time.Second), Polled: since.Add(5 * time.Second)},
			5*time.Second + apart,
			Action{Do: Wait, Why: "its connections seem to have ended", After: firstLook},
		},
		"two polls that are close are not enough": {
			draining, "",
			Facts{Dying: 1, IdleSince: since.Add(5 * time.Second), Polled: since.Add(5*time.Second + apart - 1)},
			5*time.Second + apart - 1,
			Action{Do: Wait, Why: "its connections seem to have ended", After: firstLook},
		},
		"two polls without connections are": {
			draining, "",
			Facts{Dying: 1, IdleSince: since.Add(5 * time.Second), Polled: since.Add(5*time.Second + apart)},
			5*time.Second + apart,
			Action{Do: Condemn, Why: "its connections have ended", Cause: "idle"},
		},

		"condemned after it was live is drained":      {condemned, "", Facts{Last: messages.Published}, 0, Action{Do: Drain, Why: "it is condemned"}},
		"condemned after it failed is drained":        {condemned, "", Facts{Last: messages.Failed}, 0, Action{Do: Drain, Why: "it is condemned"}},
		"condemned by its deadline has failed":        {condemned, "too late", Facts{Last: messages.Started}, 0, Action{Do: Fail, Why: "too late"}},
		"condemned by its deadline is drained then":   {condemned, "too late", Facts{Last: messages.Failed}, 0, Action{Do: Drain, Why: "it is condemned"}},
		"condemned before it was accepted has failed": {condemned, "too late", Facts{}, 0, Action{Do: Fail, Why: "too late"}},
		"condemned is drained if the log is lost":     {condemned, "", Facts{}, 0, Action{Do: Drain, Why: "it is condemned"}},
		"drained is enough":                           {condemned, "", Facts{Last: messages.Drained}, 0, Action{Why: "it is drained"}},
		"stopped is enough":                           {condemned, "", Facts{Last: messages.Stopped}, 0, Action{Why: "it is stopped"}},
		"retired is enough":                           {condemned, "", Facts{Last: messages.Retired}, 0, Action{Why: "it is retired"}},
	}
	for name, c := range cases {
		t.Run(name, func(t *testing.T) {
			got := Next(entry(c.state, c.expired), c.facts, since.Add(c.after))
			if diff := cmp.Diff(c.want, got); diff != "" {
				t.Errorf("next (-want +got):\n%s", diff)
			}
		})
	}
}

func TestExplain(t *testing.T) {
	head := func(newest uint64, ds ...*fulmarv1.HeadDeployment) *fulmarv1.Head {
		return &fulmarv1.Head{Stack: "web", Newest: newest, Deployments: ds}
	}
	entry := func(g uint64, leased bool, instances ...string) *fulmarv1.HeadDeployment {
		d := &fulmarv1.HeadDeployment{Generation: g, State: fulmarv1.State_STATE_UNDERWAY, Leased: leased}
		for _, i := range instances {
			d.Instances = append(d.Instances, &fulmarv1.Instance{Name: i})
		}
		return d
	}
	cases := map[string]struct {
		head     *fulmarv1.Head
		instance string
		last     messages.Verb
		want     Do
	}{
		"its deployment is there":                    {head(5, entry(5, true, "web.web.5")), "web.web.5", "", Nothing},
		"a newer deployment has kept it":             {head(6, entry(6, true, "web.web.5")), "web.web.5", messages.Retired, Nothing},
		"its deployment has no instances yet":        {head(5, entry(5, false)), "web.web.5", "", Nothing},
		"nobody refers to it any more":               {head(6, entry(6, true, "web.web.6")), "web.web.5", messages.Retired, Drain},
		"nobody refers to it, and the log is lost":   {head(6), "web.web.5", "", Drain},
		"it is about to be stopped":                  {head(6), "web.web.5", messages.Drained, Wait},
		"it was stopped a moment ago":                {head(6), "web.web.5", messages.Stopped, Wait},
		"its deployment is there without it":         {head(5, entry(5, true, "web.api.5")), "web.web.5", messages.Published, Report},
		"a head that is older than it":               {head(4), "web.web.5", "", Report},
		"an absent head proves nothing":              {nil, "web.web.5", "", Report},
		"an empty head proves nothing":               {&fulmarv1.Head{}, "web.web.5", "", Report},
		"a name that no deployment made":             {nil, "stranger", "", Report},
		"a name that only looks like an instance":    {head(6), "web.web.05", "", Report},
		"the head of another stack proves nothing":   {head(6), "other.web.5", "", Nothing},
		"underway on the way down is still referred": {head(6, entry(5, true, "web.web.5")), "web.web.5", messages.Failed, Nothing},
	}
	for name, c := range cases {
		t.Run(name, func(t *testing.T) {
			if got := Explain(c.head, c.instance, c.last); got.Do != c.want {
				t.Errorf("explain: %s (%s), want %s", got.Do, got.Why, c.want)
			}
		})
	}
}

func TestDescribe(t *testing.T) {
	dying := []*fulmarv1.Instance{{Name: "web.web.5", Network: "n1", Address: "10.0.0.5"}}
	deadline := timestamppb.New(time.Unix(9000, 0))
	entry := &fulmarv1.HeadDeployment{Generation: 5, Host: "h1", Deadline: deadline, Content: &fulmarv1.Content{Network: "n1"}}
	network := &fulmarv1.Network{Name: "n1", Host: "h1", Bridge: "br0"}
	cases := map[string]struct {
		last *fulmarv1.Event
		want *fulmarv1.Deployment
	}{
		"the facts of the last event stay": {
			&fulmarv1.Event{Deployment: &fulmarv1.Deployment{
				Stack: "web", Generation: 5, Network: network, Deadline: deadline, Content: &fulmarv1.Content{Network: "n1"},
				Units: []*fulmarv1.Unit{{Name: "web"}},
			}},
			&fulmarv1.Deployment{
				Stack: "web", Generation: 5, Network: network, Deadline: deadline, Content: &fulmarv1.Content{Network: "n1"},
				Units: []*fulmarv1.Unit{{Name: "web"}}, Dying: dying,
			},
		},
		"without an event the head tells": {nil, &fulmarv1.Deployment{
			Stack: "web", Generation: 5, Network: &fulmarv1.Network{Name: "n1", Host: "h1"}, Deadline: deadline,
			Content: &fulmarv1.Content{Network: "n1"}, Dying: dying,
		}},
		"an event that was unreadable does not matter": {
			&fulmarv1.Event{Deployment: &fulmarv1.Deployment{Stack: "web", Generation: 5}},
			&fulmarv1.Deployment{
				Stack: "web", Generation: 5, Network: &fulmarv1.Network{Name: "n1", Host: "h1"}, Deadline: deadline,
				Content: &fulmarv1.Content{Network: "n1"}, Dying: dying,
			},
		},
	}
	for name, c := range cases {
		t.Run(name, func(t *testing.T) {
			if diff := cmp.Diff(c.want, Describe(c.last, "web", entry, dying), protocmp.Transform()); diff != "" {
				t.Errorf("deployment (-want +got):\n%s", diff)
			}
		})
	}
}

func TestConcerned(t *testing.T) {
	entry := func(g uint64, s fulmarv1.State) *fulmarv1.HeadDeployment {
		return &fulmarv1.HeadDeployment{Generation: g, State: s}
	}
	h := &fulmarv1.Head{Deployments: []*fulmarv1.HeadDeployment{
		entry(1, fulmarv1.State_STATE_CONDEMNED), entry(2, fulmarv1.State_STATE_DRAINING), entry(4, fulmarv1.State_STATE_LIVE),
		entry(5, fulmarv1.State_STATE_UNDERWAY), entry(6, fulmarv1.State_STATE_STAGED), entry(7, fulmarv1.State_STATE_UNDERWAY),
	}}
	cases := map[string]struct {
		verb       messages.Verb
		generation uint64
		want       []uint64
	}{
		"a failure is about itself":                          {messages.Failed, 5, []uint64{5}},
		"the newest event is about all that go down":         {messages.Staged, 6, []uint64{1, 2}},
		"an older event leaves them to the newest":           {messages.Published, 4, nil},
		"so does the event of what is itself going down":     {messages.Published, 2, nil},
		"an event that is newer than the head waits as well": {messages.Published, 8, []uint64{1, 2}},
	}
	for name, c := range cases {
		t.Run(name, func(t *testing.T) {
			if diff := cmp.Diff(c.want, Concerned(h, c.verb, c.generation)); diff != "" {
				t.Errorf("concerned (-want +got):\n%s", diff)
			}
		})
	}
}
