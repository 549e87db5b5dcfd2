package messages_test

import (
	"errors"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/testing/protocmp"
	"google.golang.org/protobuf/types/known/timestamppb"

	"fulmar/messages"
	fulmarv1 "fulmar/messages/fulmar/v1"
)

const (
	underway  = fulmarv1.State_STATE_UNDERWAY
	staged    = fulmarv1.State_STATE_STAGED
	live      = fulmarv1.State_STATE_LIVE
	draining  = fulmarv1.State_STATE_DRAINING
	condemned = fulmarv1.State_STATE_CONDEMNED
)

// at is a time so many seconds after the deadline of every deployment of these tests.
func at(seconds int) time.Time { return time.Unix(1000+int64(seconds), 0).UTC() }

func contentOf(image string) *fulmarv1.Content {
	return &fulmarv1.Content{Network: "lan", Units: []*fulmarv1.UnitSpec{{
		Name: "web", Image: &fulmarv1.Image{Source: &fulmarv1.Image_File{File: "/" + image}},
		Ports: []*fulmarv1.Port{{Port: 80, Target: 8080, Protocol: "tcp"}},
	}}}
}

// deployment is a leased deployment whose content is named by an image and whose instances are named in full.
func deployment(generation uint64, s fulmarv1.State, image string, instances ...string) *fulmarv1.HeadDeployment {
	d := &fulmarv1.HeadDeployment{
		Generation: generation, State: s, Deadline: timestamppb.New(at(0)), Content: contentOf(image), Host: "host1", Leased: true,
	}
	for _, name := range instances {
		d.Instances = append(d.Instances, &fulmarv1.Instance{Unit: "web", Name: name, Network: "lan", Address: "10.0.0." + name[len(name)-1:]})
	}
	return d
}

func with(d *fulmarv1.HeadDeployment, change func(*fulmarv1.HeadDeployment)) *fulmarv1.HeadDeployment {
	change(d)
	return d
}

func toBeStaged(d *fulmarv1.HeadDeployment)  { d.Staged = true }
func notLeased(d *fulmarv1.HeadDeployment)   { d.Leased = false }
func sinceNow(d *fulmarv1.HeadDeployment)    { d.DrainingSince = timestamppb.New(at(-1)) }
func expiredLate(d *fulmarv1.HeadDeployment) { d.Expired = "late" }

func headOf(newest uint64, deployments ...*fulmarv1.HeadDeployment) *fulmarv1.Head {
	return &fulmarv1.Head{Stack: "web", Newest: newest, Deployments: deployments}
}

// until gives a head a latest deadline so many seconds after the deadline of every deployment of these tests.
func until(h *fulmarv1.Head, seconds int) *fulmarv1.Head {
	h.LatestDeadline = timestamppb.New(at(seconds))
	return h
}

func previous(h *fulmarv1.Head, image string) *fulmarv1.Head {
	h.Previous = contentOf(image)
	return h
}

// transition is one of the head's transitions with its arguments bound.
type transition func(*fulmarv1.Head) (*fulmarv1.Head, error)

func accept(d *fulmarv1.HeadDeployment) transition {
	return func(h *fulmarv1.Head) (*fulmarv1.Head, error) { return messages.Accept(h, "web", d) }
}

func publish(generation uint64) transition {
	return func(h *fulmarv1.Head) (*fulmarv1.Head, error) { return messages.Publish(h, generation, at(-1)) }
}

func setInstances(generation uint64, image string, instances ...*fulmarv1.Instance) transition {
	return func(h *fulmarv1.Head) (*fulmarv1.Head, error) {
		return messages.SetInstances(h, generation, contentOf(image), instances)
	}
}

func expire(generation uint64, seconds int) transition {
	return func(h *fulmarv1.Head) (*fulmarv1.Head, error) {
		return messages.Expire(h, generation, at(seconds), "late")
	}
}

func on(f func(*fulmarv1.Head, uint64) (*fulmarv1.Head, error), generation uint64) transition {
	return func(h *fulmarv1.Head) (*fulmarv1.Head, error) { return f(h, generation) }
}

type step struct {
	head *fulmarv1.Head
	do   transition
	want *fulmarv1.Head // nil: the head as it was given, the very same
	err  error          // the error it must be; errRefused stands for any refusal
}

var errRefused = errors.New("a refusal")

// check does a transition, and does it again on its result: that must change nothing.
func (c step) check(t *testing.T) {
	t.Helper()
	before := proto.CloneOf(c.head)
	got, err := c.do(c.head)
	if diff := cmp.Diff(before, c.head, protocmp.Transform()); diff != "" {
		t.Errorf("the head that was given was changed (-before +after):\n%s", diff)
	}
	if c.err != nil {
		if _, refused := messages.AsRefusal(err); !errors.Is(err, c.err) && (!errors.Is(c.err, errRefused) || !refused) {
			t.Fatalf("error %v, want %v", err, c.err)
		}
		if got != nil {
			t.Errorf("a head came with the error: %v", got)
		}
		return
	}
	if err != nil {
		t.Fatal(err)
	}
	if c.want == nil {
		if got != c.head {
			t.Fatalf("want the very head that was given, got %v", got)
		}
		return
	}
	if diff := cmp.Diff(c.want, got, protocmp.Transform()); diff != "" {
		t.Errorf("head (-want +got):\n%s", diff)
	}
	again, err := c.do(got)
	if err != nil || again != got {
		t.Errorf("done twice it gives %v, %v; want the very same head", again, err)
	}
}

func TestAccept(t *testing.T) {
	entry := &fulmarv1.HeadDeployment{Generation: 7, Content: contentOf("b"), Deadline: timestamppb.New(at(0)), Host: "host1"}
	entered := with(deployment(7, underway, "b"), notLeased)
	for name, c := range map[string]step{
		"the first deployment of a stack makes its head":  {headOf(0), accept(entry), until(headOf(7, entered), 0), nil},
		"a newer one is entered at the end":               {headOf(3, deployment(3, live, "a", "web.web.3")), accept(entry), until(headOf(7, deployment(3, live, "a", "web.web.3"), entered), 0), nil},
		"a later deadline moves the latest one":           {until(headOf(3), -5), accept(entry), until(headOf(7, entered), 0), nil},
		"an earlier deadline leaves the latest one":       {until(headOf(3), 5), accept(entry), until(headOf(7, entered), 5), nil},
		"one that stands there already stays as it is":    {headOf(9, deployment(7, live, "b", "web.web.7")), accept(entry), nil, nil},
		"one that is not newer than what was is too late": {headOf(7), accept(entry), nil, messages.ErrGone},
		"an older one is too late":                        {headOf(9, deployment(9, live, "a", "web.web.9")), accept(entry), nil, messages.ErrGone},
	} {
		t.Run(name, c.check)
	}
}

func TestAcceptOfNoHead(t *testing.T) {
	got, err := messages.Accept(nil, "web", &fulmarv1.HeadDeployment{Generation: 7})
	if err != nil {
		t.Fatal(err)
	}
	want := headOf(7, &fulmarv1.HeadDeployment{Generation: 7, State: underway})
	if diff := cmp.Diff(want, got, protocmp.Transform()); diff != "" {
		t.Errorf("head (-want +got):\n%s", diff)
	}
}

func TestSetInstances(t *testing.T) {
	i := &fulmarv1.Instance{Unit: "web", Name: "web.web.7", Network: "lan", Address: "10.0.0.7"}
	waiting := headOf(7, with(deployment(7, underway, "b"), notLeased))
	for name, c := range map[string]step{
		"instances and pinned content are written":       {waiting, setInstances(7, "pinned", i), headOf(7, deployment(7, underway, "pinned", "web.web.7")), nil},
		"no instances are instances too":                 {waiting, setInstances(7, "b"), headOf(7, deployment(7, underway, "b")), nil},
		"they are written once":                          {headOf(7, deployment(7, underway, "b", "web.web.8")), setInstances(7, "c", i), nil, nil},
		"one that is live keeps what it has":             {headOf(7, deployment(7, live, "b", "web.web.8")), setInstances(7, "c", i), nil, nil},
		"a condemned one takes none":                     {headOf(7, with(deployment(7, condemned, "b"), notLeased)), setInstances(7, "b", i), nil, messages.ErrGone},
		"one that is no longer there takes none":         {headOf(9), setInstances(7, "b", i), nil, messages.ErrGone},
		"an absent head has nobody who could take them":  {nil, setInstances(7, "b", i), nil, messages.ErrGone},
		"others are left as they are, whatever they are": {headOf(7, deployment(3, live, "a", "web.web.3"), with(deployment(7, underway, "b"), notLeased)), setInstances(7, "b", i), headOf(7, deployment(3, live, "a", "web.web.3"), deployment(7, underway, "b", "web.web.7")), nil},
	} {
		t.Run(name, c.check)
	}
}

func TestPublish(t *testing.T) {
	started := deployment(7, underway, "b", "web.web.7")
	toStage := with(deployment(7, underway, "b", "web.web.7"), toBeStaged)
	isLive := deployment(7, live, "b", "web.web.7")
	isStaged := with(deployment(7, staged, "b", "web.web.7"), toBeStaged)
	retired := func(generation uint64, s fulmarv1.State) *fulmarv1.HeadDeployment {
		return with(deployment(generation, s, ""), func(d *fulmarv1.HeadDeployment) { d.Content = &fulmarv1.Content{Network: "lan"} })
	}
	older := func(s fulmarv1.State) *fulmarv1.HeadDeployment { return deployment(3, s, "a", "web.web.3") }
	wasStaged := func(s fulmarv1.State) *fulmarv1.HeadDeployment {
		return with(deployment(5, s, "s", "web.web.5"), toBeStaged)
	}
	drains := func(d *fulmarv1.HeadDeployment) *fulmarv1.HeadDeployment { return with(d, sinceNow) }
	for name, c := range map[string]step{
		"the first one becomes live":                              {headOf(7, started), publish(7), headOf(7, isLive), nil},
		"what it replaces drains and is what a rollback goes to":  {headOf(7, older(live), started), publish(7), previous(headOf(7, drains(older(draining)), isLive), "a"), nil},
		"the same content again leaves the rollback as it was":    {previous(headOf(7, deployment(3, live, "b", "web.web.3"), started), "x"), publish(7), previous(headOf(7, drains(deployment(3, draining, "b", "web.web.3")), isLive), "x"), nil},
		"a retired stack is nothing to roll back to":              {previous(headOf(7, retired(3, live), started), "x"), publish(7), previous(headOf(7, drains(retired(3, draining)), isLive), "x"), nil},
		"a retirement leaves what was live to roll back to":       {headOf(7, older(live), retired(7, underway)), publish(7), previous(headOf(7, drains(older(draining)), retired(7, live)), "a"), nil},
		"what was staged gives way to what is live":               {headOf(7, older(live), wasStaged(staged), started), publish(7), previous(headOf(7, drains(older(draining)), drains(wasStaged(draining)), isLive), "a"), nil},
		"one to be staged leaves the live one alone":              {headOf(7, older(live), toStage), publish(7), headOf(7, older(live), isStaged), nil},
		"one to be staged replaces the older staged one":          {headOf(7, older(live), wasStaged(staged), toStage), publish(7), headOf(7, older(live), drains(wasStaged(draining)), isStaged), nil},
		"an older one underway is not touched":                    {headOf(7, deployment(3, underway, "a", "web.web.3"), started), publish(7), headOf(7, deployment(3, underway, "a", "web.web.3"), isLive), nil},
		"a newer one underway is not touched":                     {headOf(8, started, deployment(8, underway, "c", "web.web.8")), publish(7), headOf(8, isLive, deployment(8, underway, "c", "web.web.8")), nil},
		"a newer one that drains or is condemned is no matter":    {headOf(8, older(live), started, deployment(8, condemned, "c", "web.web.8")), publish(7), previous(headOf(8, drains(older(draining)), isLive, deployment(8, condemned, "c", "web.web.8")), "a"), nil},
		"a newer one that is live is not overtaken":               {headOf(8, started, deployment(8, live, "c", "web.web.8")), publish(7), nil, errRefused},
		"a newer one that is staged is not overtaken":             {headOf(8, started, deployment(8, staged, "c", "web.web.8")), publish(7), nil, errRefused},
		"one to be staged does not overtake a newer one either":   {headOf(8, toStage, deployment(8, live, "c", "web.web.8")), publish(7), nil, errRefused},
		"one that is live already stays, whatever is newer":       {headOf(8, isLive, deployment(8, staged, "c", "web.web.8")), publish(7), nil, nil},
		"one that drains already stays":                           {headOf(8, deployment(7, draining, "b", "web.web.7")), publish(7), nil, nil},
		"one that is condemned is gone":                           {headOf(7, deployment(7, condemned, "b", "web.web.7")), publish(7), nil, messages.ErrGone},
		"one that is retired is gone":                             {headOf(7), publish(7), nil, messages.ErrGone},
		"one without instances is not published":                  {headOf(7, with(deployment(7, underway, "b"), notLeased)), publish(7), nil, messages.ErrEarly},
		"one whose deadline is past is late":                      {headOf(7, started), func(h *fulmarv1.Head) (*fulmarv1.Head, error) { return messages.Publish(h, 7, at(1)) }, nil, messages.ErrLate},
		"one that is live already is not late, whatever the time": {headOf(7, isLive), func(h *fulmarv1.Head) (*fulmarv1.Head, error) { return messages.Publish(h, 7, at(1)) }, nil, nil},
		"the deadline itself is in time":                          {headOf(7, with(deployment(7, underway, "b", "web.web.7"), func(d *fulmarv1.HeadDeployment) { d.Deadline = timestamppb.New(at(-1)) })), publish(7), headOf(7, with(deployment(7, live, "b", "web.web.7"), func(d *fulmarv1.HeadDeployment) { d.Deadline = timestamppb.New(at(-1)) })), nil},
	} {
		t.Run(name, c.check)
	}
}

func TestPublishNamesWhatOvertook(t *testing.T) {
	h := headOf(43, deployment(42, underway, "a", "web.web.2"), deployment(43, live, "b", "web.web.3"))
	_, err := messages.Publish(h, 42, at(-1))
	refusal, ok := messages.AsRefusal(err)
	if !ok || refusal.Code != fulmarv1.ReasonCode_REASON_CODE_SUPERSEDED || err.Error() != "superseded by web-43" {
		t.Errorf("got %v", err)
	}
}

func TestCondemnAndRetire(t *testing.T) {
	drain, fail, retire := messages.CondemnDrained, messages.CondemnFailed, messages.Retire
	one := func(s fulmarv1.State) *fulmarv1.Head { return headOf(7, deployment(7, s, "b", "web.web.7")) }
	for name, c := range map[string]step{
		"what drains is condemned when it has drained":            {one(draining), on(drain, 7), one(condemned), nil},
		"what is live is not condemned as drained":                {one(live), on(drain, 7), nil, messages.ErrEarly},
		"what is staged is not condemned as drained":              {one(staged), on(drain, 7), nil, messages.ErrEarly},
		"what is underway is not condemned as drained":            {one(underway), on(drain, 7), nil, messages.ErrEarly},
		"what is gone cannot be condemned as drained":             {headOf(7), on(drain, 7), nil, messages.ErrGone},
		"what is underway is condemned when it has failed":        {one(underway), on(fail, 7), one(condemned), nil},
		"what is live is not condemned as failed":                 {one(live), on(fail, 7), nil, messages.ErrEarly},
		"what drains is not condemned as failed":                  {one(draining), on(fail, 7), nil, messages.ErrEarly},
		"what is gone cannot be condemned as failed":              {headOf(7), on(fail, 7), nil, messages.ErrGone},
		"what is underway expires after its deadline":             {one(underway), expire(7, 1), headOf(7, with(deployment(7, condemned, "b", "web.web.7"), expiredLate)), nil},
		"it does not expire at its deadline":                      {one(underway), expire(7, 0), nil, messages.ErrEarly},
		"what is live does not expire":                            {one(live), expire(7, 1), nil, messages.ErrEarly},
		"what is staged does not expire":                          {one(staged), expire(7, 1), nil, messages.ErrEarly},
		"what is condemned for a reason keeps it":                 {one(condemned), expire(7, 1), nil, nil},
		"what is gone cannot expire":                              {headOf(7), expire(7, 1), nil, messages.ErrGone},
		"a condemned one is taken out":                            {headOf(7, deployment(3, live, "a", "web.web.3"), deployment(7, condemned, "b", "web.web.7")), on(retire, 7), headOf(7, deployment(3, live, "a", "web.web.3")), nil},
		"one that is taken out is no more":                        {headOf(7, deployment(3, live, "a", "web.web.3")), on(retire, 7), nil, nil},
		"a live one is not taken out":                             {one(live), on(retire, 7), nil, messages.ErrEarly},
		"one underway is not taken out":                           {one(underway), on(retire, 7), nil, messages.ErrEarly},
		"one that drains is not taken out before it is condemned": {one(draining), on(retire, 7), nil, messages.ErrEarly},
	} {
		t.Run(name, c.check)
	}
}

// TestStatesOnlyGrow does every transition to every state: none may lead back.
func TestStatesOnlyGrow(t *testing.T) {
	all := map[string]transition{
		"accept": accept(&fulmarv1.HeadDeployment{Generation: 7}), "publish": publish(7), "set instances": setInstances(7, "b"),
		"condemn drained": on(messages.CondemnDrained, 7), "condemn failed": on(messages.CondemnFailed, 7),
		"expire": expire(7, 1), "retire": on(messages.Retire, 7), "publish a newer one": publish(8),
	}
	for name, do := range all {
		for _, s := range []fulmarv1.State{underway, staged, live, draining, condemned} {
			h := headOf(8, deployment(7, s, "b", "web.web.7"), deployment(8, underway, "c", "web.web.8"))
			got, err := do(h)
			if err != nil {
				continue
			}
			if after := messages.Find(got, 7).GetState(); after < s && after != 0 {
				t.Errorf("%s leads from %s back to %s", name, s, after)
			}
		}
	}
}
