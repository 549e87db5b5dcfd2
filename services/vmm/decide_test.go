package vmm

import (
	"errors"
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"fulmar/albatross"
	"fulmar/messages"
	fulmarv1 "fulmar/messages/fulmar/v1"
)

func TestStartsFollowTheLeaseOrder(t *testing.T) {
	digest := strings.Repeat("ab", 32)
	unit := func(name string, args ...string) *fulmarv1.Unit {
		return &fulmarv1.Unit{
			Name: name, Image: digest, Device: "service", Args: args, Kept: name == "signer",
			Instance: &fulmarv1.Instance{Unit: name, Name: messages.InstanceName("mail", name, 7), Address: "10.0.0.9"},
		}
	}
	d := &fulmarv1.Deployment{
		Stack: "mail", Generation: 7, Network: &fulmarv1.Network{Bridge: "br0"},
		Content: &fulmarv1.Content{Units: []*fulmarv1.UnitSpec{
			{Name: "web", Args: []string{`--upstream={{ip "signer"}}`}, Memory: 64, Cpus: []uint32{1, 3}},
			{Name: "signer", Memory: 32, Restart: messages.RestartAlways},
		}},
		Units: []*fulmarv1.Unit{unit("web", "--upstream=10.0.0.9"), unit("signer")},
	}
	bridges := []albatross.Bridge{{Netif: "service", Bridge: "br0"}}
	want := []Start{
		{Unit: "signer", Name: "mail.signer.7", Image: digest, Kept: true, Config: albatross.Config{
			Args: albatross.Args{Memory: 32, CPUs: 1, CPUIDs: []int{0}, Bridges: bridges, Fail: albatross.FailBehaviour{Restart: true}},
		}},
		{Unit: "web", Name: "mail.web.7", Image: digest, Config: albatross.Config{
			Args: albatross.Args{Memory: 64, CPUs: 1, CPUIDs: []int{1, 3}, Bridges: bridges, Arguments: []string{"--upstream=10.0.0.9"}},
		}},
	}
	got, err := Starts(d, []int{0})
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("starts (-want +got):\n%s", diff)
	}

	d.Units[0].Image = "../../etc/passwd"
	if _, err := Starts(d, nil); !refused(err) {
		t.Errorf("an image that is no digest: %v, want a refusal", err)
	}
}

func refused(err error) bool {
	_, ok := messages.AsRefusal(err)
	return ok
}

func TestDiffers(t *testing.T) {
	start := Start{Image: "ab01", Config: albatross.Config{Args: albatross.Args{Memory: 32, Arguments: []string{"a", "b"}}}}
	same := albatross.Info{Digest: []byte{0xab, 1}, Memory: 32, Arguments: []string{"a", "b"}, CPUIDs: []int{1}}
	cases := map[string]struct {
		change func(*albatross.Info)
		want   string
	}{
		"what was asked for is the same, wherever it runs": {func(*albatross.Info) {}, ""},
		"another image":   {func(i *albatross.Info) { i.Digest = []byte{1} }, "its image is 01"},
		"another memory":  {func(i *albatross.Info) { i.Memory = 33 }, "its memory is 33 MB"},
		"other arguments": {func(i *albatross.Info) { i.Arguments = []string{"b", "a"} }, `its arguments are "b a"`},
	}
	for name, c := range cases {
		t.Run(name, func(t *testing.T) {
			have := same
			c.change(&have)
			if got := start.Differs(have); got != c.want {
				t.Errorf("Differs = %q, want %q", got, c.want)
			}
		})
	}
}

func TestJudge(t *testing.T) {
	leased := time.Unix(1000, 0)
	failure := func(text string) error {
		return fmt.Errorf("ask: %w", &albatross.FailureError{Command: "create", Message: text})
	}
	cases := map[string]struct {
		err    error
		after  time.Duration
		refuse string
	}{
		"a refused bridge is final":                {failure("bridges br9 not allowed by policy"), 0, "unit web cannot be started: bridges br9 not allowed by policy"},
		"a missing bridge is final":                {failure("interface br9 does not exist"), 0, "unit web cannot be started: interface br9 does not exist, and its network needs it on this host: make that bridge, or let fulmar up do so"},
		"too much memory is final":                 {failure("maximum allowed memory (64, used 32) would be exceeded (requesting 33)"), 0, "unit web cannot be started: maximum allowed memory (64, used 32) would be exceeded (requesting 33)"},
		"another manifest is final":                {failure(`specified bridge(s) does not match with the manifest. Devices present in manifest: net "a"`), 0, `unit web cannot be started: specified bridge(s) does not match with the manifest. Devices present in manifest: net "a"`},
		"no connection is tried again, for long":   {errors.New("dial: connection refused"), time.Hour, ""},
		"an endpoint without its daemon is, too":   {failure("remote: the daemon cannot be reached"), time.Hour, ""},
		"a closed connection is tried again":       {albatross.ErrNoReply, time.Second, ""},
		"a busy daemon is tried again":             {failure("too many large requests at once, try again"), time.Second, ""},
		"a fault of the daemon is tried again":     {failure("could not create unikernel: make tap: no space"), time.Second, ""},
		"a fault of the daemon that stays is told": {failure("could not create unikernel: make tap: no space"), patience, "unit web cannot be started: could not create unikernel: make tap: no space"},
	}
	for name, c := range cases {
		t.Run(name, func(t *testing.T) {
			err := Start{Unit: "web", Name: "web.web.1"}.Judge(c.err, leased, leased.Add(c.after))
			switch {
			case err == nil:
				t.Error("no error")
			case refused(err) != (c.refuse != ""):
				t.Errorf("refused is %t: %v", refused(err), err)
			case c.refuse != "" && err.Error() != c.refuse:
				t.Errorf("reason %q, want %q", err, c.refuse)
			case c.refuse == "" && !errors.Is(err, c.err):
				t.Errorf("%v does not wrap its cause", err)
			}
		})
	}
}

func TestSurplus(t *testing.T) {
	now := time.Unix(100000, 0)
	image := func(c string, size int64, age time.Duration) cached {
		return cached{strings.Repeat(c, 64), size, now.Add(-age)}
	}
	a, b, c := image("a", 10, time.Minute), image("b", 10, time.Hour), image("c", 10, 2*time.Hour)
	cases := map[string]struct {
		files []cached
		keep  string
		limit int64
		want  []string
	}{
		"what fits stays":                       {[]cached{a, b, c}, a.name, 30, nil},
		"the least lately used goes first":      {[]cached{a, b, c}, a.name, 20, []string{c.name}},
		"no more go than must":                  {[]cached{a, b, c}, a.name, 15, []string{c.name, b.name}},
		"the one in use stays whatever it is":   {[]cached{a, b, c}, c.name, 5, []string{b.name, a.name}},
		"a write that nobody finishes goes":     {[]cached{{unfinished + "1", 5, now.Add(-2 * time.Hour)}, {unfinished + "2", 5, now}}, "", 0, []string{unfinished + "1"}},
		"what is no image is no business of us": {[]cached{{"README", 500, now.Add(-time.Hour)}}, "", 0, nil},
	}
	for name, c := range cases {
		t.Run(name, func(t *testing.T) {
			if diff := cmp.Diff(c.want, surplus(c.files, c.keep, c.limit, now)); diff != "" {
				t.Errorf("surplus (-want +got):\n%s", diff)
			}
		})
	}
}

func TestFailureIsEveryStatusAfterWhichAlbatrossStartsAgainButZero(t *testing.T) {
	f := failOf(messages.RestartOnFailure)
	if !f.Restart {
		t.Error("it starts nothing again")
	}
	for code, want := range map[int]bool{0: false, 1: false, 2: true, 3: true, 59: true, 60: false, 64: false, 65: true, 255: true, 256: false} {
		if got := slices.Contains(f.ExitCodes, code); got != want {
			t.Errorf("after status %d: %t, want %t", code, got, want)
		}
	}
	if f := failOf(""); f.Restart {
		t.Errorf("by default it is %v", f)
	}
}

func TestStartedSince(t *testing.T) {
	leased := time.Date(2026, 11, 1, 12, 0, 0, 6_700_000, time.UTC)
	for name, c := range map[string]struct {
		started time.Time
		want    bool
	}{
		"before":                              {leased.Add(-time.Second), false},
		"after":                               {leased.Add(time.Second), true},
		"in the same millisecond, as is told": {leased.Truncate(time.Millisecond), true},
		"the daemon does not tell":            {time.Unix(0, 0), false},
	} {
		t.Run(name, func(t *testing.T) {
			if got := startedSince(albatross.Info{Started: c.started}, leased); got != c.want {
				t.Errorf("it is %v", got)
			}
		})
	}
}
