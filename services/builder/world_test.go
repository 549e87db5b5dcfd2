package builder

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/nats-io/nats.go/jetstream"
	"github.com/prometheus/client_golang/prometheus"
	"go.uber.org/goleak"
	"google.golang.org/protobuf/proto"

	"fulmar/bus"
	"fulmar/bus/bustest"
	"fulmar/messages"
	fulmarv1 "fulmar/messages/fulmar/v1"
	"fulmar/services/builder/credential"
	"fulmar/services/builder/docker"
	"fulmar/services/builder/docker/dockertest"
	"fulmar/services/builder/git"
	"fulmar/solo5/solo5test"
)

func TestMain(m *testing.M) {
	if url := os.Getenv(builderProcess); url != "" {
		os.Exit(beBuilder(url))
	}
	goleak.VerifyTestMain(dockertest.Main(m))
}

// patience bounds every wait of these tests: it is only ever reached when one fails.
const patience = time.Minute

// world is a bus of its own with a network, a host that runs spt, and a folder of images.
type world struct {
	t      testing.TB
	server *bus.Server
	*bus.Bus
	said     jetstream.MessagesContext
	root     string        // --file-root
	temp     string        // of builders
	engine   string        // --docker-host; none answers unless a test has one
	held     string        // --credentials
	patience time.Duration // --patience
}

func newWorld(t testing.TB) *world {
	t.Helper()
	return newWorldOn(t, bustest.Server(t))
}

func newWorldOn(t testing.TB, server *bus.Server) *world {
	t.Helper()
	w := &world{t: t, server: server, root: t.TempDir(), temp: t.TempDir(), held: t.TempDir()}
	w.engine = "unix://" + w.root + "/none"
	w.Bus = bustest.Open(t, w.server, bus.Options{Service: "test"})
	cons, err := w.JS.OrderedConsumer(t.Context(), messages.EventStream, jetstream.OrderedConsumerConfig{})
	if err == nil {
		w.said, err = cons.Messages()
	}
	if err == nil {
		err = w.Hosts.Put(t.Context(), "host1", &fulmarv1.Host{Name: "host1", Targets: []string{"spt"}}, 0)
	}
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(w.said.Stop)
	w.addNetwork("lan", "host1")
	return w
}

func (w *world) addNetwork(name, host string) {
	w.t.Helper()
	n := &fulmarv1.Network{Name: name, Host: host, Bridge: "br0", Prefix: "10.0.0.0/24", Gateway: "10.0.0.1"}
	if err := w.Networks.Put(w.t.Context(), name, n, 0); err != nil {
		w.t.Fatal(err)
	}
}

func (w *world) config() Config {
	w.t.Helper()
	c, err := w.options().config()
	if err != nil {
		w.t.Fatal(err)
	}
	return c
}

func (w *world) options() options {
	return options{Root: w.root, Temp: w.temp, Engine: w.engine, Held: w.held, Patience: w.patience}
}

// options are what the configuration of a builder is made of, so that another process can.
type options struct {
	Root, Temp, Engine, Held string
	Patience                 time.Duration
}

func (o options) config() (Config, error) {
	credentials := credential.Directory(o.Held)
	engine, err := docker.New(docker.Config{Host: o.Engine, Owner: "test"})
	if err != nil {
		return Config{}, err
	}
	repositories, err := git.New(git.Config{Credentials: credentials, FileRoot: o.Root, Temp: o.Temp, MaxSize: 4 << 20, Ask: patience, Fetch: patience})
	return Config{
		FileRoot: o.Root, MaxImage: 1 << 20, Fetch: patience, Patience: o.Patience, Engine: engine, Git: repositories, Credentials: credentials,
		Recipes: Recipes{Builds: 2, Network: "none", Cache: 1 << 30},
	}, err
}

// replica is a builder with a connection of its own, whose views run. Its steps do not.
func (w *world) replica() *Service {
	w.t.Helper()
	s := New(bustest.Open(w.t, w.server, bus.Options{Service: "builder", AckWait: time.Second}), w.config(), prometheus.NewRegistry())
	w.background(s.networks.Run)
	w.background(s.heads.Run)
	w.background(s.hosts.Run)
	w.background(s.cache.view.Run)
	return s
}

// start runs a builder.
func (w *world) start() (stop func()) {
	w.t.Helper()
	s := New(bustest.Open(w.t, w.server, bus.Options{Service: "builder", AckWait: time.Second}), w.config(), prometheus.NewRegistry())
	return w.background(s.Run)
}

func (w *world) background(run func(context.Context) error) (stop func()) {
	return bustest.Run(w.t, run)
}

// image puts a Solo5 image into the folder and gives its path and digest.
func (w *world) image(nets int) (path, digest string) {
	w.t.Helper()
	body, err := os.ReadFile(solo5test.Build(w.t, nets))
	if err != nil {
		w.t.Fatal(err)
	}
	return w.file("guest.spt", body), digestOf(body)
}

func (w *world) file(name string, body []byte) string {
	w.t.Helper()
	path := filepath.Join(w.root, name)
	if err := os.WriteFile(path, body, 0o600); err != nil {
		w.t.Fatal(err)
	}
	return path
}

func digestOf(body []byte) string {
	sum := sha256.Sum256(body)
	return hex.EncodeToString(sum[:])
}

func (w *world) request(kind fulmarv1.Kind, stack, body string) uint64 {
	w.t.Helper()
	generation, err := w.Request(w.t.Context(), kind, stack, []byte(body))
	if err != nil {
		w.t.Fatal(err)
	}
	return generation
}

// await waits for the next event of a generation, which must be of a verb.
func (w *world) await(generation uint64, verb messages.Verb) *fulmarv1.Event {
	w.t.Helper()
	e := w.first(generation)
	if e.GetVerb() != string(verb) {
		w.t.Fatalf("%d is %s: %s; want %s", generation, e.GetVerb(), e.GetReason(), verb)
	}
	return e
}

// first gives what is said next of a deployment.
func (w *world) first(generation uint64) *fulmarv1.Event {
	w.t.Helper()
	for {
		e := w.next()
		if e.GetDeployment().GetGeneration() == generation {
			return e
		}
	}
}

// next gives what is said next.
func (w *world) next() *fulmarv1.Event {
	w.t.Helper()
	msg, err := w.said.Next(jetstream.NextMaxWait(patience))
	if err != nil {
		w.t.Fatalf("nobody said anything: %v", err)
	}
	e := &fulmarv1.Event{}
	if err := proto.Unmarshal(msg.Data(), e); err != nil {
		w.t.Fatal(err)
	}
	return e
}

func (w *world) head(stack string) *fulmarv1.Head {
	w.t.Helper()
	h, _, err := w.Heads.Get(w.t.Context(), stack)
	if err != nil {
		w.t.Fatal(err)
	}
	return h
}

// serve makes what was built live or staged, as the other services would.
func (w *world) serve(e *fulmarv1.Event) {
	w.t.Helper()
	d := e.GetDeployment()
	_, err := w.Heads.Edit(w.t.Context(), d.GetStack(), func(h *fulmarv1.Head) (*fulmarv1.Head, error) {
		n, err := messages.SetInstances(h, d.GetGeneration(), d.GetContent(), nil)
		if err != nil {
			return nil, err
		}
		return messages.Publish(n, d.GetGeneration(), time.Now())
	})
	if err != nil {
		w.t.Fatal(err)
	}
}

func (w *world) wantChain(stack string, generation uint64, want ...messages.Verb) {
	w.t.Helper()
	cons, err := w.JS.OrderedConsumer(w.t.Context(), messages.EventStream, jetstream.OrderedConsumerConfig{FilterSubjects: []string{messages.ChainFilter(stack, generation)}})
	if err != nil {
		w.t.Fatal(err)
	}
	info, err := cons.Info(w.t.Context())
	if err != nil {
		w.t.Fatal(err)
	}
	var got []messages.Verb
	for range info.NumPending {
		msg, err := cons.Next()
		if err != nil {
			w.t.Fatal(err)
		}
		s, err := messages.ParseEventSubject(msg.Subject())
		if err != nil {
			w.t.Fatal(err)
		}
		got = append(got, s.Verb)
	}
	if diff := cmp.Diff(want, got); diff != "" {
		w.t.Errorf("events of %s (-want +got):\n%s", messages.DeploymentName(stack, generation), diff)
	}
}
