package watch

import (
	"context"
	"io"
	"net/http"
	"net/http/cgi"
	"net/http/httptest"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/nats-io/nats.go/jetstream"
	"go.uber.org/goleak"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/timestamppb"

	"fulmar/bus"
	"fulmar/bus/bustest"
	"fulmar/messages"
	fulmarv1 "fulmar/messages/fulmar/v1"
	"fulmar/services/builder/git"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// patience bounds every wait of these tests: it is only ever reached when one fails.
const patience = 20 * time.Second

// clock is a time that only the test moves.
type clock struct {
	mu      sync.Mutex
	now     time.Time
	waiters map[chan time.Time]time.Time
}

func newClock() *clock { return &clock{now: begin, waiters: map[chan time.Time]time.Time{}} }

func (c *clock) Now() time.Time {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.now
}

func (c *clock) Until(t time.Time) <-chan time.Time {
	c.mu.Lock()
	defer c.mu.Unlock()
	ch := make(chan time.Time, 1)
	c.waiters[ch] = t
	c.wake()
	return ch
}

func (c *clock) advance(d time.Duration) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.now = c.now.Add(d)
	c.wake()
}

func (c *clock) wake() {
	for ch, t := range c.waiters {
		if !t.After(c.now) {
			ch <- c.now
			delete(c.waiters, ch)
		}
	}
}

// world is a bus with a builder that accepts requests, as far as watches are concerned, and a repository on the web.
type world struct {
	*bus.Bus
	t       *testing.T
	server  *bus.Server
	clock   *clock
	repo    *upstream
	records *bus.View[*fulmarv1.Watch]
	lookers Lookers
	refuse  atomic.Pointer[string] // why requests are rejected
	entered atomic.Pointer[func()] // is called once when a request is in the head
}

// upstream is a repository that git serves over http.
type upstream struct {
	t     *testing.T
	dir   string
	url   string
	asked atomic.Int32 // times that its refs were asked for
	down  atomic.Bool
}

func newWorld(t *testing.T) *world {
	t.Helper()
	w := &world{t: t, server: bustest.Server(t), clock: newClock(), repo: newRepository(t)}
	w.Bus = bustest.Open(t, w.server, bus.Options{Service: "test"})
	w.records = w.Watches.View()
	client, err := git.New(git.Config{Temp: t.TempDir(), MaxSize: 1 << 20, Ask: patience, Fetch: patience})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := client.Close(); err != nil {
			t.Error(err)
		}
	})
	w.lookers.Git = func(ctx context.Context, g *fulmarv1.GitSource) (string, error) {
		return client.Resolve(ctx, git.Repository{URL: g.GetUrl(), Credential: g.GetCredential()}, g.GetRef())
	}
	w.background(w.records.Run)
	w.background(func(ctx context.Context) error { return w.RunRequests(ctx, "builder-accept", w.accept) })
	return w
}

// background runs something until the test ends, or until stop is called.
func (w *world) background(run func(context.Context) error) (stop func()) {
	return bustest.Run(w.t, run)
}

// accept does what a builder does when it accepts.
func (w *world) accept(ctx context.Context, r bus.Request) (*fulmarv1.Event, error) {
	m, err := messages.DecodeRequest(r.Kind, r.Body)
	if err != nil {
		return nil, err
	}
	_, err = w.Heads.Edit(ctx, r.Stack, func(h *fulmarv1.Head) (*fulmarv1.Head, error) {
		if want, ok := messages.IfNewest(m); ok && want != h.GetNewest() && messages.Find(h, r.Generation) == nil {
			return nil, messages.Refuse(fulmarv1.ReasonCode_REASON_CODE_CONFLICT, "the request means %d", want)
		}
		if why := w.refuse.Load(); why != nil {
			return nil, messages.Refuse(fulmarv1.ReasonCode_REASON_CODE_NOT_FOUND, "%s", *why)
		}
		return messages.Accept(h, r.Stack, &fulmarv1.HeadDeployment{Generation: r.Generation, Deadline: timestamppb.New(time.Now().Add(time.Hour))})
	})
	if err != nil {
		return nil, err
	}
	if f := w.entered.Swap(nil); f != nil {
		(*f)()
	}
	if err := New(w.Bus, Config{Clock: Clock{w.clock.Now, w.clock.Until}}).Accepted(ctx, r); err != nil {
		return nil, err
	}
	return &fulmarv1.Event{Verb: string(messages.Accepted), Deployment: &fulmarv1.Deployment{Stack: r.Stack, Generation: r.Generation, Kind: r.Kind}}, nil
}

// replica makes a watch with a connection of its own.
func (w *world) replica() *Service {
	w.t.Helper()
	return New(bustest.Open(w.t, w.server, bus.Options{Service: "builder"}), Config{
		Interval: time.Minute, Lookers: w.lookers, Clock: Clock{w.clock.Now, w.clock.Until},
		Secrets: func() ([]string, error) { return []string{"secret"}, nil },
	})
}

// start runs a watch.
func (w *world) start() (stop func()) { return w.background(w.replica().Run) }

// deploy sends a request and waits until it is accepted.
func (w *world) deploy(r *fulmarv1.DeployRequest) uint64 {
	w.t.Helper()
	body, err := proto.Marshal(r)
	if err != nil {
		w.t.Fatal(err)
	}
	return w.request(fulmarv1.Kind_KIND_DEPLOY, body)
}

func (w *world) request(kind fulmarv1.Kind, body []byte) uint64 {
	w.t.Helper()
	generation, err := w.Request(w.t.Context(), kind, "web", body)
	if err != nil {
		w.t.Fatal(err)
	}
	w.event(generation)
	return generation
}

// event waits for the first event of a deployment.
func (w *world) event(generation uint64) *fulmarv1.Event {
	w.t.Helper()
	ctx, cancel := context.WithTimeout(w.t.Context(), patience)
	defer cancel()
	cons, err := w.JS.OrderedConsumer(ctx, messages.EventStream, jetstream.OrderedConsumerConfig{FilterSubjects: []string{messages.ChainFilter("web", generation)}})
	if err != nil {
		w.t.Fatal(err)
	}
	msg, err := cons.Next(jetstream.FetchMaxWait(patience))
	if err != nil {
		w.t.Fatalf("nobody says anything of %d: %v", generation, err)
	}
	e := &fulmarv1.Event{}
	if err := proto.Unmarshal(msg.Data(), e); err != nil {
		w.t.Fatal(err)
	}
	return e
}

// built says of a deployment that it was made of a commit.
func (w *world) built(generation uint64, commit string) {
	w.t.Helper()
	w.say(generation, messages.Built, &fulmarv1.Unit{Name: "web", Build: &fulmarv1.Build{Commit: commit}})
}

// failed says of a deployment that its build failed.
func (w *world) failed(generation uint64) {
	w.t.Helper()
	w.say(generation, messages.Failed)
}

func (w *world) say(generation uint64, verb messages.Verb, units ...*fulmarv1.Unit) {
	w.t.Helper()
	w.event(generation)
	e, cause, err := w.Last(w.t.Context(), "web", generation)
	if err != nil {
		w.t.Fatal(err)
	}
	e.Verb, e.Deployment.Units = string(verb), units
	if err := w.Say(w.t.Context(), e, cause); err != nil {
		w.t.Fatal(err)
	}
}

// await waits until the record of the stack is as it should be, and gives it.
func (w *world) await(what string, ok func(*fulmarv1.Watch, *fulmarv1.WatchedSource) bool) *fulmarv1.Watch {
	w.t.Helper()
	limit := time.After(patience)
	for {
		changed := w.records.Changed()
		have := w.records.All()["web"]
		var first *fulmarv1.WatchedSource
		if len(have.GetSources()) > 0 {
			first = have.GetSources()[0]
		}
		if ok(have, first) {
			return have
		}
		select {
		case <-changed:
		case <-limit:
			w.t.Fatalf("%s: it is not so: %v", what, have)
		}
	}
}

// awaitLook waits for the end of a look that began now or later.
func (w *world) awaitLook() *fulmarv1.Watch {
	w.t.Helper()
	now := w.clock.Now()
	return w.await("a look", func(r *fulmarv1.Watch, s *fulmarv1.WatchedSource) bool {
		return !s.GetLooked().AsTime().Before(now)
	})
}

// pass lets the time of the next look come, and waits for it.
func (w *world) pass() *fulmarv1.Watch {
	w.t.Helper()
	w.clock.advance(150 * time.Second)
	return w.awaitLook()
}

// requests gives every request that was stored.
func (w *world) requests() []*fulmarv1.DeployRequest {
	w.t.Helper()
	stream, err := w.JS.Stream(w.t.Context(), messages.RequestStream)
	if err != nil {
		w.t.Fatal(err)
	}
	var all []*fulmarv1.DeployRequest
	for seq := range stream.CachedInfo().State.LastSeq {
		msg, err := stream.GetMsg(w.t.Context(), seq+1)
		if err != nil {
			w.t.Fatal(err)
		}
		r := &fulmarv1.DeployRequest{}
		if strings.HasPrefix(msg.Subject, "fulmar.deploy.") {
			if err := proto.Unmarshal(msg.Data, r); err != nil {
				w.t.Fatal(err)
			}
		}
		all = append(all, r)
	}
	return all
}

// wantRequests checks how many requests there are, and gives the last.
func (w *world) wantRequests(n int) *fulmarv1.DeployRequest {
	w.t.Helper()
	all := w.requests()
	if len(all) != n {
		w.t.Fatalf("there are %d requests, want %d: %v", len(all), n, all)
	}
	return all[n-1]
}

// www is a request that follows the branch main of the repository.
func (w *world) www() *fulmarv1.DeployRequest { return deployOf(gitUnit("", w.repo.url, "main")) }

// following makes a stack that follows main, as generation 1 and built, with its first look done.
func (w *world) following() (commit string) {
	w.t.Helper()
	commit = w.repo.push("main")
	w.built(w.deploy(w.www()), commit)
	w.awaitLook()
	return commit
}

func newRepository(t *testing.T) *upstream {
	t.Helper()
	root := t.TempDir()
	r := &upstream{t: t, dir: filepath.Join(root, "www.git")}
	r.git("init", "--quiet", "--bare", "--initial-branch=main", r.dir)
	out, err := exec.CommandContext(t.Context(), "git", "--exec-path").Output()
	if err != nil {
		t.Fatal(err)
	}
	backend := &cgi.Handler{
		Path: filepath.Join(strings.TrimSpace(string(out)), "git-http-backend"),
		Env:  []string{"GIT_PROJECT_ROOT=" + root, "GIT_HTTP_EXPORT_ALL=1"}, Stderr: io.Discard,
	}
	server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, q *http.Request) {
		if strings.HasSuffix(q.URL.Path, "/info/refs") {
			r.asked.Add(1)
		}
		if r.down.Load() {
			http.Error(w, "down", http.StatusServiceUnavailable)
			return
		}
		backend.ServeHTTP(w, q)
	}))
	t.Cleanup(server.Close)
	r.url = server.URL + "/www.git"
	return r
}

func (r *upstream) git(args ...string) string {
	r.t.Helper()
	cmd := exec.CommandContext(r.t.Context(), "git", args...)
	cmd.Env = append(os.Environ(), "GIT_CONFIG_GLOBAL=/dev/null", "GIT_CONFIG_SYSTEM=/dev/null",
		"GIT_AUTHOR_NAME=a", "GIT_AUTHOR_EMAIL=a@example.org", "GIT_COMMITTER_NAME=a", "GIT_COMMITTER_EMAIL=a@example.org")
	out, err := cmd.CombinedOutput()
	if err != nil {
		r.t.Fatalf("git %s: %v\n%s", strings.Join(args, " "), err, out)
	}
	return strings.TrimSpace(string(out))
}

// push puts a new commit on a branch and gives it.
func (r *upstream) push(branch string) string {
	r.t.Helper()
	tree := r.git("-C", r.dir, "hash-object", "-t", "tree", "-w", "/dev/null")
	commit := r.git("-C", r.dir, "commit-tree", tree, "-m", time.Now().String())
	r.git("-C", r.dir, "update-ref", "refs/heads/"+branch, commit)
	return commit
}
