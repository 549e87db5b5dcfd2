package remote

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"io"
	"log/slog"
	"net"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"fulmar/albatross"
)

// created answers every command with success.
func created(conn net.Conn, h albatross.Header, m albatross.Command) {
	if create, ok := m.(albatross.UnikernelCreate); ok && len(create.Config.Image) == 0 {
		_ = albatross.WriteReply(conn, h, albatross.Failure("no image"))
		return
	}
	_ = albatross.WriteReply(conn, h, albatross.Text("done"))
}

func TestServerRefusesCertificates(t *testing.T) {
	info := extension(t, albatross.UnikernelInfo{})
	policy := extension(t, albatross.PolicyAdd{Policy: albatross.Policy{Unikernels: 1}})
	ca := func(cn string) forged { return forged{cn: cn, ca: true, extension: policy} }
	nine := []forged{ca("a"), ca("b"), ca("c"), ca("d"), ca("e"), ca("f"), ca("g"), ca("h")}
	tests := map[string]struct {
		chain   []forged
		root    *Authority // another than the server's
		alert   bool       // refused in the handshake
		says    string     // failure; if neither, the connection is closed without a word
		reaches bool       // the daemon
	}{
		"an expired leaf":                 {chain: []forged{{cn: ".", extension: info, from: -2 * time.Hour, to: -time.Hour}}, alert: true},
		"a leaf that is not yet valid":    {chain: []forged{{cn: ".", extension: info, from: time.Minute}}, alert: true},
		"an expired CA":                   {chain: []forged{{cn: "a", ca: true, extension: policy, to: -time.Minute}, {cn: ".", extension: info}}, alert: true},
		"a leaf of a foreign CA":          {chain: []forged{{cn: ".", extension: info}}, root: newRoot(t), alert: true},
		"a leaf of a leaf":                {chain: []forged{{cn: "a", extension: policy}, {cn: ".", extension: info}}, alert: true},
		"a chain of nine":                 {chain: append(nine, forged{cn: ".", extension: info}), says: "", reaches: true},
		"a chain of ten":                  {chain: append(append([]forged{ca("z")}, nine...), forged{cn: ".", extension: info}), says: "certificate chain too long"},
		"an extension that is no DER":     {chain: []forged{{cn: ".", extension: []byte("\x04\x01x")}}},
		"an empty extension":              {chain: []forged{{cn: ".", extension: []byte{}}}},
		"bytes after the extension":       {chain: []forged{{cn: ".", extension: append(info, 0)}}},
		"an extension of version 4":       {chain: []forged{{cn: ".", extension: []byte("\x30\x09\x02\x01\x04\xa3\x04\xb3\x02\x05\x00")}}},
		"no extension":                    {chain: []forged{{cn: "."}}},
		"a policy in a leaf":              {chain: []forged{{cn: "a", extension: policy}}},
		"a CA as client":                  {chain: []forged{ca("a")}},
		"the removal of a policy":         {chain: []forged{{cn: "a", extension: extension(t, albatross.PolicyRemove{})}}},
		"what the console daemon is told": {chain: []forged{{cn: "a", extension: extension(t, albatross.ConsoleAdd{Count: 1})}}},
		"what the stats daemon is told":   {chain: []forged{{cn: "a", extension: extension(t, albatross.StatsRemove{})}}},
		"a command in a CA":               {chain: []forged{{cn: "a", ca: true, extension: info}, {cn: ".", extension: info}}},
		"an underscore in a name":         {chain: []forged{{cn: "a_b", extension: info}}},
		"a colon in a name":               {chain: []forged{{cn: "a:b", extension: info}}},
		"a colon in a CA's name":          {chain: []forged{ca("a:b"), {cn: ".", extension: info}}},
		"a CA without a name":             {chain: []forged{ca(""), {cn: ".", extension: info}}},
		"a create of a path":              {chain: []forged{{cn: ".", extension: extension(t, albatross.UnikernelCreate{})}}, says: "name has no label"},
	}
	for what, tt := range tests {
		t.Run(what, func(t *testing.T) {
			l := newLab(t, Config{}, created)
			root := l.root
			if tt.root != nil {
				root = tt.root
			}
			heard, err := l.raw(forge(t, root, tt.chain...), nil)
			if tt.alert != errors.Is(err, ErrRefused) {
				t.Errorf("it ended with %v", err)
			}
			if tt.reaches {
				if len(heard) != 1 || heard[0].Payload != albatross.Text("done") {
					t.Errorf("heard %v", heard)
				}
				return
			}
			checkFailure(t, heard, tt.says)
			if saw := l.daemon.commands(); len(saw) > 0 {
				t.Errorf("the daemon was asked: %v", saw)
			}
		})
	}
}

// checkFailure wants one failure that says something, or nothing at all.
func checkFailure(t *testing.T, heard []albatross.Wire, says string) {
	t.Helper()
	if says == "" {
		if len(heard) > 0 {
			t.Errorf("heard %v", heard)
		}
		return
	}
	if len(heard) != 1 {
		t.Fatalf("heard %v", heard)
	}
	failure, ok := heard[0].Payload.(albatross.Failure)
	if !ok || !strings.Contains(string(failure), says) {
		t.Errorf("heard %v, want %q", heard[0].Payload, says)
	}
}

func TestServerAsksForTLS13AndACertificate(t *testing.T) {
	l := newLab(t, Config{}, created)
	good := forge(t, l.root, forged{cn: ".", extension: extension(t, albatross.UnikernelInfo{})})
	for what, cfg := range map[string]*tls.Config{
		"TLS 1.2":        {InsecureSkipVerify: true, MaxVersion: tls.VersionTLS12, Certificates: []tls.Certificate{good}},
		"no certificate": {InsecureSkipVerify: true},
	} {
		t.Run(what, func(t *testing.T) {
			conn, err := tls.Dial("tcp", l.addr, cfg)
			if err == nil {
				_, err = conn.Read(make([]byte, 1))
				_ = conn.Close()
			}
			if err == nil || errors.Is(err, io.EOF) {
				t.Errorf("got %v", err)
			}
		})
	}
}

// TestTheDaemonsWordsAreRelayed has a daemon that is not there, one that closes, and one that does not read on.
func TestTheDaemonsWordsAreRelayed(t *testing.T) {
	create := extension(t, albatross.UnikernelCreate{Config: albatross.Config{Image: make([]byte, 100<<10), Args: albatross.Args{CPUs: 1}}})
	t.Run("a daemon that closes", func(t *testing.T) {
		l := newLab(t, Config{}, func(net.Conn, albatross.Header, albatross.Command) {})
		heard, err := l.raw(forge(t, l.root, forged{cn: "web", extension: create}), nil)
		if err != nil || len(heard) > 0 {
			t.Errorf("heard %v, %v", heard, err)
		}
	})
	t.Run("a daemon that is not there", func(t *testing.T) {
		l := newLab(t, Config{}, created)
		l.server.daemon.Dir = "/nonexistent" // before anybody asks
		heard, err := l.raw(forge(t, l.root, forged{cn: "web", extension: create}), nil)
		if err != nil {
			t.Error(err)
		}
		checkFailure(t, heard, ErrNoDaemon.Error())
		if strings.Contains(string(heard[0].Payload.(albatross.Failure)), "nonexistent") {
			t.Error("the client was told where the socket should be")
		}
	})
	t.Run("a block that is refused at once", func(t *testing.T) {
		l := newLab(t, Config{}, func(conn net.Conn, h albatross.Header, _ albatross.Command) {
			_ = albatross.WriteReply(conn, h, albatross.Failure("set block: not found"))
		})
		err := l.endpoint(l.root).Client().SetBlock(testContext(t), mustName(t, "vol"), albatross.BlockSet{}, io.LimitReader(zeros{}, 16<<20))
		if !errors.Is(err, albatross.ErrNotFound) {
			t.Errorf("got %v", err)
		}
	})
}

// zeros has no end.
type zeros struct{}

func (zeros) Read(p []byte) (int, error) { clear(p); return len(p), nil }

// TestServeEndsSubscriptions ends a server while somebody listens.
func TestServeEndsSubscriptions(t *testing.T) {
	l := newLab(t, Config{}, func(conn net.Conn, h albatross.Header, m albatross.Command) {
		_ = albatross.WriteReply(conn, h, albatross.Text("subscribed"))
		_, _ = conn.Read(make([]byte, 1))
	})
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error, 1)
	second := NewServer(l.server.cfg, slog.New(slog.NewTextHandler(testWriter{t}, nil)))
	go func() { done <- second.Serve(ctx, listener) }()
	e := &Endpoint{Address: listener.Addr().String(), Roots: l.roots(), CA: l.root}
	conn, err := e.Open(testContext(t), mustName(t, "web"), albatross.ConsoleSubscribe{})
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = conn.Close() }()
	if _, err := albatross.ReadFrame(conn, 1<<20); err != nil {
		t.Fatal(err)
	}
	cancel()
	if err := <-done; err != nil {
		t.Error(err)
	}
	if _, err := albatross.ReadFrame(conn, 1<<20); !errors.Is(err, io.EOF) {
		t.Errorf("the subscriber sees %v", err)
	}
}

// TestPoliciesGoBeforeTheCommand looks at what the daemon is told, and on how many connections.
func TestPoliciesGoBeforeTheCommand(t *testing.T) {
	l := newLab(t, Config{}, created)
	outer, inner := albatross.Policy{Unikernels: 16, Memory: 64}, albatross.Policy{Unikernels: 2, Memory: 32}
	leaf := forge(t, l.root,
		forged{cn: "User", ca: true, extension: extension(t, albatross.PolicyAdd{Policy: outer})},
		forged{cn: "plain", ca: true},
		forged{cn: "team", ca: true, extension: extension(t, albatross.PolicyAdd{Policy: inner})},
		forged{cn: "Web", extension: extension(t, albatross.UnikernelDestroy{}), usage: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth}})
	if heard, err := l.raw(leaf, nil); err != nil || len(heard) != 1 {
		t.Fatalf("heard %v, %v", heard, err)
	}
	want := []albatross.Wire{
		{Header: albatross.Header{Name: mustName(t, "user:")}, Payload: albatross.PolicyAdd{Policy: outer}},
		{Header: albatross.Header{Name: mustName(t, "user:team:")}, Payload: albatross.PolicyAdd{Policy: inner}},
		{Header: albatross.Header{Name: mustName(t, "user:team:web")}, Payload: albatross.UnikernelDestroy{}},
	}
	same := cmp.Comparer(func(a, b albatross.Name) bool { return a == b })
	if diff := cmp.Diff(want, l.daemon.commands(), same, cmp.Comparer(func(a, b albatross.Policy) bool { return a.Memory == b.Memory })); diff != "" {
		t.Error(diff)
	}
}
