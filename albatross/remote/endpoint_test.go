package remote

import (
	"bytes"
	"context"
	"crypto/x509"
	"errors"
	"net"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"fulmar/albatross"
)

// fake is a daemon that runs nothing but remembers.
type fake struct {
	mu     sync.Mutex
	images map[albatross.Name][]byte
	block  []byte
}

func (f *fake) answer(conn net.Conn, h albatross.Header, m albatross.Command) {
	f.mu.Lock()
	defer f.mu.Unlock()
	reply := func(p albatross.Payload) { _ = albatross.WriteReply(conn, h, p) }
	switch m := m.(type) {
	case albatross.UnikernelCreate:
		if m.Generation != albatross.V4 {
			return // as a daemon of albatross 2.6 does
		}
		f.images[h.Name] = m.Config.Image
		reply(albatross.Text("created unikernel"))
	case albatross.UnikernelInfo:
		if m.Generation != albatross.V4 {
			return
		}
		list := albatross.Unikernels{Generation: m.Generation}
		for n := range f.images {
			if shown, ok := h.Name.Path().Relative(n); ok {
				list.List = append(list.List, albatross.Running{Name: shown, Info: albatross.Info{CPUIDs: []int{0}, CPUs: 1}})
			}
		}
		reply(list)
	case albatross.UnikernelGet:
		reply(albatross.Image{Image: f.images[h.Name]})
	case albatross.UnikernelDestroy:
		if _, ok := f.images[h.Name]; !ok {
			reply(albatross.Failure("destroy: not found"))
			return
		}
		delete(f.images, h.Name)
		reply(albatross.Text("destroyed unikernel"))
	case albatross.BlockSet:
		f.block = nil
		for {
			chunk, err := albatross.ReadFrame(conn, 1<<20)
			if err != nil {
				return
			}
			if len(chunk) == 0 {
				reply(albatross.Text("set block device"))
				return
			}
			f.block = append(f.block, chunk...)
		}
	case albatross.BlockDump:
		reply(albatross.BlockImage{})
		for rest := f.block; len(rest) > 0; rest = rest[min(4096, len(rest)):] {
			reply(albatross.BlockData{Data: rest[:min(4096, len(rest))]})
		}
		reply(albatross.BlockData{})
	case albatross.ConsoleSubscribe:
		reply(albatross.Text("subscribed"))
		for range m.Count {
			_ = albatross.WriteData(conn, h.Name, albatross.ConsoleData{Time: time.UnixMilli(1), Line: "hello"})
		}
		_, _ = conn.Read(make([]byte, 1)) // until the client leaves
	}
}

// TestClientWorksAsByASocket drives what a local client can, through certificates and an older daemon, in a delegated path.
func TestClientWorksAsByASocket(t *testing.T) {
	f := &fake{images: map[albatross.Name][]byte{}}
	l := newLab(t, Config{}, f.answer)
	user, err := l.root.Delegate("user", albatross.Policy{Unikernels: 16, Memory: 64}, time.Now())
	if err != nil {
		t.Fatal(err)
	}
	c, ctx := l.endpoint(user).Client(), testContext(t)
	web := mustName(t, "user:web")
	image := bytes.Repeat([]byte("image"), 300_000)
	cfg := albatross.Config{Image: image, Args: albatross.Args{CPUIDs: []int{0}, Memory: 32}}
	if err := c.Create(ctx, web, cfg); err != nil {
		t.Fatal(err)
	}
	if g, ok := c.Speaks(); !ok || g != albatross.V4 {
		t.Errorf("the daemon speaks %v, %v", g, ok)
	}
	list, err := c.Info(ctx, web.Path().Name())
	if err != nil || len(list) != 1 || list[0].Name != web {
		t.Errorf("info: %v, %v", list, err)
	}
	if got, err := c.Image(ctx, web, albatross.UnikernelGet{}); err != nil || !bytes.Equal(got.Image, image) {
		t.Errorf("get: %d bytes, %v", len(got.Image), err)
	}
	var got bytes.Buffer
	if err := c.SetBlock(ctx, web, albatross.BlockSet{}, bytes.NewReader(image)); err != nil {
		t.Error(err)
	}
	if _, err := c.DumpBlock(ctx, web, albatross.BlockDump{}, &got); err != nil || !bytes.Equal(got.Bytes(), image) {
		t.Errorf("dump: %d bytes, %v", got.Len(), err)
	}
	enough := errors.New("enough")
	lines := 0
	err = c.Subscribe(ctx, web, albatross.ConsoleSubscribe{Count: 3}, func(line albatross.ConsoleLine) error {
		if lines++; lines == 3 {
			return enough
		}
		return nil
	})
	if !errors.Is(err, enough) {
		t.Errorf("console: %v", err)
	}
	if err := c.Destroy(ctx, web); err != nil {
		t.Error(err)
	}
	if err := c.Destroy(ctx, web); !errors.Is(err, albatross.ErrNotFound) {
		t.Errorf("destroy again: %v", err)
	}
	if err := c.Destroy(ctx, mustName(t, "other:web")); !errors.Is(err, albatross.ErrName) {
		t.Errorf("what is not in the CA's path: %v", err)
	}
}

// TestDelegationSetsPolicies shows how a policy is set from afar, and that the daemon's refusal is told in its words.
func TestDelegationSetsPolicies(t *testing.T) {
	l := newLab(t, Config{}, created)
	for n, want := range map[int]string{16: "", 100: "expected success when adding policy, got: host [unikernel: user:]: command failed policy above allows 16"} {
		user, err := l.root.Delegate("user", albatross.Policy{Unikernels: n}, time.Now())
		if err != nil {
			t.Fatal(err)
		}
		err = l.endpoint(user).Client().Destroy(testContext(t), mustName(t, "user:web"))
		if (err == nil) != (want == "") || err != nil && !strings.Contains(err.Error(), want) {
			t.Errorf("%d unikernels: %v", n, err)
		}
		if n > 16 && !errors.Is(err, albatross.ErrPolicy) {
			t.Errorf("%v is no ErrPolicy", err)
		}
	}
}

// TestClientDoesNotTrustAnyServer shows endpoints that a client must not tell anything.
func TestClientDoesNotTrustAnyServer(t *testing.T) {
	l := newLab(t, Config{}, created)
	user, err := l.root.Delegate("user", albatross.Policy{}, time.Now())
	if err != nil {
		t.Fatal(err)
	}
	plain := forge(t, l.root, forged{cn: "plain", ca: true})
	for what, tt := range map[string]struct {
		by   *Authority
		cert forged
		want error
	}{
		"the root's":                {l.root, forged{cn: "server", usage: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth}}, nil},
		"a foreign one":             {newRoot(t), forged{cn: "server", usage: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth}}, ErrServer},
		"an expired one":            {l.root, forged{cn: "server", usage: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth}, to: -time.Minute}, ErrServer},
		"that of a client":          {l.root, forged{cn: "web", usage: []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth}}, ErrServer},
		"one of a delegated CA":     {user, forged{cn: "server", usage: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth}}, ErrServer},
		"one that carries commands": {l.root, forged{cn: "web", extension: extension(t, albatross.UnikernelInfo{}), usage: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth}}, ErrServer},
	} {
		t.Run(what, func(t *testing.T) {
			c := forge(t, tt.by, tt.cert)
			var list []*x509.Certificate
			for _, der := range c.Certificate {
				one, err := x509.ParseCertificate(der)
				if err != nil {
					t.Fatal(err)
				}
				list = append(list, one)
			}
			if err := checkServer(list, l.roots()); !errors.Is(err, tt.want) {
				t.Errorf("got %v", err)
			}
		})
	}
	if err := checkServer([]*x509.Certificate{plain.Leaf}, l.roots()); !errors.Is(err, ErrServer) {
		t.Errorf("a CA as server: %v", err)
	}
	if err := checkServer(nil, l.roots()); !errors.Is(err, ErrServer) {
		t.Errorf("no certificate: %v", err)
	}
}

func TestClientHearsThatItIsRefused(t *testing.T) {
	l := newLab(t, Config{}, created)
	err := l.endpoint(newRoot(t)).Client().Destroy(testContext(t), mustName(t, "web"))
	if !errors.Is(err, ErrRefused) {
		t.Errorf("got %v", err)
	}
	ctx, cancel := context.WithCancelCause(t.Context())
	enough := errors.New("enough")
	cancel(enough)
	if err := l.endpoint(l.root).Client().Destroy(ctx, mustName(t, "web")); !errors.Is(err, enough) {
		t.Errorf("with an ended context: %v", err)
	}
	if err := l.endpoint(l.root).Client().Create(testContext(t), mustName(t, "web"), albatross.Config{}); !errors.Is(err, albatross.ErrValue) {
		t.Errorf("without an image: %v", err)
	}
	names := cmp.Comparer(func(a, b albatross.Name) bool { return a == b })
	if diff := cmp.Diff([]albatross.Wire(nil), l.daemon.commands(), names); diff != "" {
		t.Error(diff)
	}
}
