package host

import (
	"bytes"
	"crypto/sha256"
	"errors"
	"io/fs"
	"log/slog"
	"os"
	"os/exec"
	"os/signal"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"golang.org/x/sys/unix"

	"fulmar/albatross"
)

// state is all that a store gives back.
type state struct {
	Arguments []string
	Policies  int
	Attempt   int
	Image     string
	Blocks    int
}

// stateOf reads back what a store has, as a host does that starts.
func stateOf(t *testing.T, s *store, digest []byte) (now state) {
	t.Helper()
	log := slog.New(slog.DiscardHandler)
	all, err := s.load(log)
	if err != nil {
		t.Fatal(err)
	}
	for _, v := range all {
		now.Arguments = v.Args.Arguments
		if v.handle != nil {
			now.Attempt = v.handle.Attempt
		}
	}
	policies, err := s.loadPolicies()
	if err != nil {
		t.Fatal(err)
	}
	now.Policies = len(policies)
	image, err := s.readImage(digest)
	if err != nil && !errors.Is(err, errDamaged) {
		t.Fatal(err)
	}
	now.Image = string(image)
	blocks, err := s.loadBlocks(log)
	if err != nil {
		t.Fatal(err)
	}
	now.Blocks = len(blocks)
	return now
}

// TestAWriteThatEndsAtAnyByteLeavesTheOldStateOrTheNew lets each change of the state meet the end of the disk at every byte that it writes.
func TestAWriteThatEndsAtAnyByteLeavesTheOldStateOrTheNew(t *testing.T) {
	const alone = "FULMAR_TEST_CUT"
	if os.Getenv(alone) == "" { // go test may write a file of its own from this process, which the limit would meet
		cmd := exec.Command(os.Args[0], "-test.run=^"+t.Name()+"$")
		cmd.Env = append(os.Environ(), alone+"=1")
		if out, err := cmd.CombinedOutput(); err != nil {
			t.Fatalf("%v:\n%s", err, out)
		}
		return
	}
	signal.Ignore(unix.SIGXFSZ)
	defer signal.Reset(unix.SIGXFSZ)
	image := bytes.Repeat([]byte("image"), 50)
	sum := sha256.Sum256(image)
	older := record{Name: parse("a:b"), Args: albatross.Args{Memory: 8, Arguments: []string{"old"}}, Digest: sum[:], Boot: "x"}
	newer := older
	newer.Args.Arguments = []string{"new", "and longer"}
	policy := albatross.NamedPolicy{Name: parse("a:"), Policy: albatross.Policy{Unikernels: 1}}
	for what, c := range map[string]struct {
		change func(*store) error
		want   func(*state)
	}{
		"a unikernel is replaced":   {func(s *store) error { return s.saveRecord(newer) }, func(n *state) { n.Arguments = newer.Args.Arguments }},
		"a policy is added":         {func(s *store) error { return s.savePolicies([]albatross.NamedPolicy{policy, policy}) }, func(n *state) { n.Policies = 2 }},
		"a process is written down": {func(s *store) error { return s.saveHandle(older.Name, handle{Attempt: 7, Started: time.Now()}) }, func(n *state) { n.Attempt = 7 }},
		"an image is kept":          {func(s *store) error { return s.saveImage(sum[:], image) }, func(n *state) { n.Image = string(image) }},
		"a block device is made": {
			func(s *store) error { return s.saveBlock(parse("a:vol"), 1, bytes.NewReader(image)) }, func(n *state) { n.Blocks = 1 },
		},
	} {
		t.Run(what, func(t *testing.T) {
			s, err := openStore(t.TempDir())
			if err != nil {
				t.Fatal(err)
			}
			t.Cleanup(func() { _ = s.close() })
			if err := errors.Join(s.saveRecord(older), s.savePolicies([]albatross.NamedPolicy{policy})); err != nil {
				t.Fatal(err)
			}
			before := stateOf(t, s, sum[:])
			after := before
			c.want(&after)
			for limit, done := uint64(0), false; !done; limit = next(limit) {
				if limit > 2<<20 {
					t.Fatal("it never succeeds")
				}
				err := limited(t, limit, func() error { return c.change(s) })
				done = err == nil
				want := before
				if done {
					want = after
				}
				if diff := cmp.Diff(want, stateOf(t, s, sum[:])); diff != "" {
					t.Fatalf("it ended at byte %d with %v (-want +got):\n%s", limit, err, diff)
				}
				left, err := os.ReadDir(s.path("tmp"))
				if err != nil || len(left) > 0 {
					t.Fatalf("it ended at byte %d and left %v, %v", limit, left, err)
				}
			}
		})
	}
}

// next is the next byte at which a write ends: each of the first 1,000, and then fewer.
func next(limit uint64) uint64 { return limit + 1 + limit/1000*limit/8 }

// limited does something while no file can be larger than limit.
func limited(t *testing.T, limit uint64, do func() error) error {
	t.Helper()
	var old unix.Rlimit
	if err := unix.Getrlimit(unix.RLIMIT_FSIZE, &old); err != nil {
		t.Fatal(err)
	}
	if err := unix.Setrlimit(unix.RLIMIT_FSIZE, &unix.Rlimit{Cur: limit, Max: old.Max}); err != nil {
		t.Fatal(err)
	}
	err := do()
	if rerr := unix.Setrlimit(unix.RLIMIT_FSIZE, &old); rerr != nil {
		t.Fatal(rerr)
	}
	if err != nil && !errors.Is(err, unix.EFBIG) && !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("at byte %d it failed with %v", limit, err)
	}
	return err
}
