package bus_test

import (
	"context"
	"net/url"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"google.golang.org/protobuf/testing/protocmp"

	"fulmar/bus"
	"fulmar/bus/bustest"
	"fulmar/messages"
	fulmarv1 "fulmar/messages/fulmar/v1"
)

func busOptions(service string) bus.Options { return bus.Options{Service: service} }

func edit(ctx context.Context, b *bus.Bus, key, instance string) error {
	_, err := b.Leases.Edit(ctx, key, func(*fulmarv1.Lease) (*fulmarv1.Lease, error) { return leaseOf(instance), nil })
	return err
}

func head(stack string, newest uint64) *fulmarv1.Head {
	return &fulmarv1.Head{Stack: stack, Newest: newest}
}

// anew ends a bus and starts another one with its data.
func (w *world) anew(s *bus.Server, dir string) *world {
	w.t.Helper()
	w.NC.Close()
	s.Stop()
	s, err := bus.StartServer(dir, "")
	if err != nil {
		w.t.Fatal(err)
	}
	w.t.Cleanup(s.Stop)
	return lookOn(w.t, s)
}

func TestARestartedBusKeepsEverything(t *testing.T) {
	dir := t.TempDir()
	s, err := bus.StartServer(dir, "")
	if err != nil {
		t.Fatal(err)
	}
	w := lookOn(t, s)
	ctx := t.Context()
	w.request(deploy, "web", "{}")
	w.request(deploy, "dns", "{}")
	w.say("web", 1, messages.Accepted)
	w.say("web", 1, messages.Built)
	if err := w.Heads.Put(ctx, "web", head("web", 1), 0); err != nil {
		t.Fatal(err)
	}
	if _, err := w.Images.PutBytes(ctx, "abc", []byte("image")); err != nil {
		t.Fatal(err)
	}
	_, last, err := w.Last(ctx, "web", 1)
	if err != nil {
		t.Fatal(err)
	}
	_, rev, err := w.Heads.Get(ctx, "web")
	if err != nil {
		t.Fatal(err)
	}
	w = w.anew(s, dir)
	if e, seq, err := w.Last(ctx, "web", 1); err != nil || seq != last || e.GetVerb() != "built" {
		t.Errorf("the last event is %v at %d, %v; it was at %d", e, seq, err, last)
	}
	h, got, err := w.Heads.Get(ctx, "web")
	if diff := cmp.Diff(head("web", 1), h, protocmp.Transform()); err != nil || got != rev || diff != "" {
		t.Errorf("the head is at %d, %v; it was at %d\n%s", got, err, rev, diff)
	}
	if image, err := w.Images.GetBytes(ctx, "abc"); err != nil || string(image) != "image" {
		t.Errorf("the image is %q, %v", image, err)
	}
	if generation := w.request(deploy, "web", "{}"); generation != 3 {
		t.Errorf("the next generation is %d, want 3", generation)
	}
	w.step(w.replica(bus.Options{}), lease(answers(messages.Leased)))
	w.await(messages.Leased)
}

func TestALostRequestStreamGoesOnAboveEveryHead(t *testing.T) {
	w := newWorld(t)
	for stack, newest := range map[string]uint64{"web": 41, "dns": 7} {
		if err := w.Heads.Put(t.Context(), stack, head(stack, newest), 0); err != nil {
			t.Fatal(err)
		}
	}
	if err := w.JS.DeleteStream(t.Context(), messages.RequestStream); err != nil {
		t.Fatal(err)
	}
	b := w.replica(bus.Options{})
	generation, err := b.Request(t.Context(), deploy, "web", nil)
	if err != nil || generation != 42 {
		t.Errorf("the next generation is %d, %v; want 42", generation, err)
	}
}

// TestDroppedRequestsTakeNoGenerationWithThem lets the bounds of the stream drop requests, then everything, and starts the
// bus anew.
func TestDroppedRequestsTakeNoGenerationWithThem(t *testing.T) {
	dir := t.TempDir()
	s, err := bus.StartServer(dir, "")
	if err != nil {
		t.Fatal(err)
	}
	w := lookOn(t, s)
	stream, err := w.JS.Stream(t.Context(), messages.RequestStream)
	if err != nil {
		t.Fatal(err)
	}
	c := stream.CachedInfo().Config
	if c.MaxBytes <= 0 || c.MaxAge <= 0 {
		t.Errorf("requests are bounded by %d bytes and %s", c.MaxBytes, c.MaxAge)
	}
	c.MaxBytes = 4096
	if _, err := w.JS.UpdateStream(t.Context(), c); err != nil {
		t.Fatal(err)
	}
	var last uint64
	for range 10 {
		last = w.request(deploy, "web", strings.Repeat("x", 1000))
	}
	info, err := stream.Info(t.Context())
	if err != nil || last != 10 || info.State.Msgs >= 10 {
		t.Errorf("%d requests are kept, the last is %d, %v", info.State.Msgs, last, err)
	}
	if err := stream.Purge(t.Context()); err != nil {
		t.Fatal(err)
	}
	if generation := w.anew(s, dir).request(deploy, "web", "{}"); generation != 11 {
		t.Errorf("the next generation is %d, want 11", generation)
	}
}

func TestOpenLeavesWhatItsOwnerSet(t *testing.T) {
	w := newWorld(t)
	s, err := w.JS.Stream(t.Context(), messages.EventStream)
	if err != nil {
		t.Fatal(err)
	}
	c := s.CachedInfo().Config
	c.MaxBytes = 1 << 20
	if _, err := w.JS.UpdateStream(t.Context(), c); err != nil {
		t.Fatal(err)
	}
	w.replica(bus.Options{})
	if s, err = w.JS.Stream(t.Context(), messages.EventStream); err != nil || s.CachedInfo().Config.MaxBytes != 1<<20 {
		t.Errorf("it is %d, %v", s.CachedInfo().Config.MaxBytes, err)
	}
}

func TestManyOpenAtOnce(t *testing.T) {
	s := bustest.Server(t)
	errs := make(chan error)
	for range 8 {
		go func() {
			nc, err := s.Connect("many")
			if err == nil {
				defer nc.Close()
				_, err = bus.Open(t.Context(), nc, bus.Options{Service: "many"})
			}
			errs <- err
		}()
	}
	for range 8 {
		if err := <-errs; err != nil {
			t.Error(err)
		}
	}
}

// TestServicesOutliveABusThatIsKilled runs a step and a view over a connection that breaks when the bus is started again.
func TestServicesOutliveABusThatIsKilled(t *testing.T) {
	dir := t.TempDir()
	s, err := bus.StartServer(dir, "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	at, err := url.Parse(s.URL())
	if err != nil {
		t.Fatal(err)
	}
	nc, err := bus.Connect(s.URL(), "", "worker")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(nc.Close)
	b, err := bus.Open(t.Context(), nc, bus.Options{Service: "worker"})
	if err != nil {
		t.Fatal(err)
	}
	w := lookOn(t, s)
	v := b.Leases.ViewBy(func(l *fulmarv1.Lease) []string { return []string{l.GetInstance()} })
	stopView, stopStep := w.start(v.Run), w.step(b, lease(answers(messages.Leased)))
	w.say("web", 1, messages.Built)
	w.await(messages.Leased)
	w.put("before", "a")
	w.NC.Close()
	s.Stop()

	if s, err = bus.StartServer(dir, at.Host); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(s.Stop)
	w = lookOn(t, s)
	w.say("web", 2, messages.Built)
	w.await(messages.Leased)
	w.wantChain("web", 1, messages.Built, messages.Leased)
	w.put("after", "b")
	if err := v.CaughtUp(t.Context()); err != nil {
		t.Fatal(err)
	}
	if got := v.All(); got["before"].GetInstance() != "a" || got["after"].GetInstance() != "b" {
		t.Errorf("the view has %v", got)
	}
	if got := v.Having("a", "b"); len(got) != 2 {
		t.Errorf("by their terms the view finds %v", got)
	}
	stopView()
	stopStep()
}

// TestNobodyWaitsForABusThatIsGone has a handler that waits for an answer when the bus goes away, and would for ever.
func TestNobodyWaitsForABusThatIsGone(t *testing.T) {
	dir := t.TempDir()
	s, err := bus.StartServer(dir, "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	at, err := url.Parse(s.URL())
	if err != nil {
		t.Fatal(err)
	}
	nc, err := bus.Connect(s.URL(), "", "worker")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(nc.Close)
	b, err := bus.Open(t.Context(), nc, bus.Options{Service: "worker"})
	if err != nil {
		t.Fatal(err)
	}
	w := lookOn(t, s)
	waits := make(chan struct{}, 1)
	waits <- struct{}{}
	entered := make(chan struct{})
	stop := w.step(b, lease(func(ctx context.Context, _ *fulmarv1.Event) (messages.Verb, error) {
		select {
		case <-waits:
			close(entered)
			<-ctx.Done()
			return "", ctx.Err()
		default:
			return messages.Leased, nil
		}
	}))
	w.say("web", 1, messages.Built)
	<-entered
	w.NC.Close()
	s.Stop()

	if s, err = bus.StartServer(dir, at.Host); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(s.Stop)
	w = lookOn(t, s)
	w.await(messages.Leased)
	stop()
}

func TestStartServerSaysWhatIsWrong(t *testing.T) {
	for listen, want := range map[string]string{
		"4222":            "missing port in address",
		"127.0.0.1:x":     "is not within 0 to 65535",
		"127.0.0.1:70000": "is not within 0 to 65535",
	} {
		if _, err := bus.StartServer(t.TempDir(), listen); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%q gives %v, want an error with %q", listen, err, want)
		}
	}
	if _, err := bus.Connect("nats://127.0.0.1:1", "", "nobody"); err == nil || !strings.Contains(err.Error(), "no bus answers at nats://127.0.0.1:1") {
		t.Errorf("a connection to nobody gives %v", err)
	}
}

func TestNoTwoServersShareADirectoryOrAnAddress(t *testing.T) {
	dir := t.TempDir()
	s, err := bus.StartServer(dir, "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(s.Stop)
	at, err := url.Parse(s.URL())
	if err != nil {
		t.Fatal(err)
	}
	for name, c := range map[string]struct{ dir, listen, want string }{
		"directory": {dir, "127.0.0.1:0", "another one uses the directory " + dir},
		"address":   {t.TempDir(), at.Host, "address already in use"},
	} {
		if _, err := bus.StartServer(c.dir, c.listen); err == nil || !strings.Contains(err.Error(), c.want) {
			t.Errorf("a second server on the same %s gives %v, want an error with %q", name, err, c.want)
		}
	}
}
