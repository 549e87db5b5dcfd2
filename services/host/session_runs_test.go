package host_test

import (
	"context"
	"encoding/json"
	"errors"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/vishvananda/netlink"

	"fulmar/albatross"
)

// recordedRoot is the policy that the real daemon made of its machine, as it was in the second run.
const recordedRoot = `{"CPUIDs":[0,1],"Unikernels":4611686018427387903,"Memory":24105,"Block":258019,"Bridges":["br0","docker0"]}`

// recordedMore is what there was beside them in the second run until the daemon was started again.
const recordedMore = "alba9"

// notReplayed says of which sessions host's answers are others, or cannot be compared, and why.
func notReplayed() map[string]string {
	const (
		internal = "between albatross's own daemons, which are one here"
		better   = "albatross starts a process that dies at once; host refuses, or runs it"
		timing   = "what is answered depends on when it is asked: the unikernel ends and is started again all the time"
		broken   = "follows on a create without a label, or a sequence of 4 bytes, after which the real daemon answers nothing or fails at all"
		kept     = "albatross keeps as many consoles of a path as its policy allows unikernels, host the last 256 of all"
		others   = "lists what sessions made that are not recorded"
		decrease = "albatross looks for a policy just above alone, host for the nearest one: policies decrease all the way down"
		silent   = "albatross closes the connection, host says why"
	)
	return map[string]string{
		"a-create-mem1": better, "a-console-mem1": better, "b-b-srv-mem0": better, "b-b-srv-memneg": better, "b-b-srv-cpus-empty": better,
		"b-b-info-cpus-empty": better, "b-b-console-m1": better, "b-b-console-m2": better, "b-b-console-m3": better,
		"b-b-force-over": better, "b-b-info-foo-after": better, "b-b-restart-args-over-policy": better, "b-b-info-after-restart-over": better,
		"a-info-loop": timing, "a-destroy-loop": timing,
		"a-info-alive-after-4byte-sequence": broken, "a-raw-success-to-vmmd": broken, "a-raw-stats-initial": broken, "a-info-alive": broken,
		"b-b-srv-root-name": broken, "b-b-srv-path-name": broken, "b-b-srv-same-bridge-twice": broken, "b-b-create-upper": broken,
		"b-b-create-keep": broken, "b-b-create-keep2": broken,
		"a-inactive-foo": kept, "a-raw-console-subscribe-path": kept,
		"b-b-inactive-root":          others,
		"a-policy-add-sub-bridge":    decrease,
		"a-raw-info-to-console":      silent,
		"b-b-stats-after-restart#81": internal, "a-daemon-albatrossd-to-console": internal, "a-daemon-stats-to-albatrossd": internal, "b-daemon-albatrossd-to-console": internal,
		"b-daemon-stats-to-albatrossd": internal, "d-daemon-albatrossd-to-console": internal, "d-daemon-stats-to-albatrossd": internal,
	}
}

// recording replays one run of the real daemon.
type recording struct {
	*daemon
	t   *testing.T
	all images
}

func newRecording(t *testing.T, root string, more ...string) *recording {
	t.Helper()
	cfg := config(t)
	cfg.StatsEvery = 20 * time.Millisecond
	bridge(t)
	docker := &netlink.Bridge{LinkAttrs: netlink.LinkAttrs{Name: "docker0"}}
	if err := netlink.LinkAdd(docker); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := netlink.LinkDel(docker); err != nil {
			t.Error(err)
		}
	})
	r := &recording{t: t, all: recordedImages(t), daemon: start(t, cfg)}
	r.root(root, more...)
	return r
}

// root sets the policy of the recorded machine.
func (r *recording) root(text string, more ...string) {
	r.t.Helper()
	var root albatross.Policy
	if err := json.Unmarshal([]byte(text), &root); err != nil {
		r.t.Fatal(err)
	}
	root.Bridges = append(more, root.Bridges...)
	if err := r.AddPolicy(r.t.Context(), albatross.Path{}, root); err != nil {
		r.t.Fatal(err)
	}
}

// destroy ends what the real daemon had seen end.
func (r *recording) destroy(unikernel string) {
	r.t.Helper()
	if err := r.Destroy(r.t.Context(), name(r.t, unikernel)); err != nil {
		r.t.Error(err)
	}
}

// destroyAll ends what is left.
func (r *recording) destroyAll() {
	r.t.Helper()
	ctx := context.Background() // that of the test has ended
	list, err := r.Info(ctx, albatross.Name{})
	for _, u := range list {
		err = errors.Join(err, r.Destroy(ctx, u.Name))
	}
	if err != nil {
		r.t.Error(err)
	}
}

// run replays the sessions of a run in their order; each goes on from the one before. What has no entry in before needs no preparation.
func (r *recording) run(which string, before map[string]func()) {
	defer func() { r.destroyAll() }()
	skipped := notReplayed()
	replayed := 0
	for _, s := range sessions(r.t, which) {
		id, _, _ := strings.Cut(s.ID, "#")
		if prepare := before[s.ID]; prepare != nil {
			prepare()
		}
		if skipped[id] != "" || skipped[s.ID] != "" || !s.complete() {
			continue
		}
		replayed++
		r.t.Run(s.ID, func(t *testing.T) {
			s.replay(t, r.daemon, r.all)
			r.awaitEnd(t, s)
		})
	}
	r.t.Logf("replayed %d sessions", replayed)
}

// complete is false of what a client, or the recorder, began and never said a word of: the real daemon had ended, or was about to.
func (s session) complete() bool {
	return slices.ContainsFunc(s.Frames, func(f frame) bool { return f.Dir == "c2s" && (!f.EOF || f.Leftover != "") }) &&
		!slices.ContainsFunc(s.Frames, func(f frame) bool { return strings.Contains(f.Hex, statsInitial) })
}

// statsInitial is what albatross's statistics daemon says to its daemon, which are one here.
const statsInitial = "a104a3020500"

// awaitEnd waits for the end of what the session began if that ends by itself, as it had before the next session began.
func (r *recording) awaitEnd(t *testing.T, s session) {
	t.Helper()
	for _, f := range s.Frames {
		c := f.Decoded.Payload.Command.Config
		waits := len(c.Bridges)+len(c.Blocks) > 0 || c.Fail.Type == "restart" && len(c.Fail.Codes) == 0
		if waits || !strings.HasSuffix(f.Decoded.Payload.Command.Op, "create") {
			continue
		}
		r.awaitForgotten(t, name(t, f.Decoded.Header.Name.String))
	}
}

// TestTheFirstRecordedRun is of most commands, of old forms, and of bytes that no client sends.
func TestTheFirstRecordedRun(t *testing.T) {
	r := newRecording(t, recordedRoot)
	r.run("a-", map[string]func(){
		"a-info-loop2#56":     func() { r.destroy("loop") },
		"a-raw-old-info4#131": func() { r.destroy("blk") }, // it had ended by itself
	})
}

// TestTheSecondRecordedRun is of policies, of what the daemon refuses, of a daemon that is started again, and of what albatross's endpoint asks
// on behalf of clients with certificates.
func TestTheSecondRecordedRun(t *testing.T) {
	r := newRecording(t, recordedRoot, recordedMore)
	r.run("b-", map[string]func(){
		"b-b-info-after-restart-over#39": func() { r.destroy("foo:net") }, // it had no memory and ended
		"b-b-info-after-restart#77": func() {
			r.destroyAll()
			if err := r.stop(); err != nil {
				t.Fatal(err)
			}
			r.daemon = start(t, r.cfg)
			r.root(recordedRoot)
		},
		"b-tls-local-info2#109": r.destroyAll,
	})
}

// TestTheThirdRecordedRun is of an endpoint's clients.
func TestTheThirdRecordedRun(t *testing.T) {
	r := newRecording(t, recordedRoot)
	r.run("d-", nil)
}
