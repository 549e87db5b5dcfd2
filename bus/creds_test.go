package bus_test

import (
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/nats-io/jwt/v2"
	"github.com/nats-io/nats-server/v2/server"
	"github.com/nats-io/nkeys"

	"fulmar/bus"
	fulmarv1 "fulmar/messages/fulmar/v1"
)

func TestCredentials(t *testing.T) {
	url, creds := guarded(t)
	nc, err := bus.Connect(url, creds, "ipam")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(nc.Close)
	b, err := bus.Open(t.Context(), nc, bus.Options{Service: "ipam"})
	if err != nil {
		t.Fatal(err)
	}
	if seq, err := b.Request(t.Context(), fulmarv1.Kind_KIND_DEPLOY, "web", []byte(`{}`)); err != nil || seq != 1 {
		t.Errorf("request %d, %v", seq, err)
	}
	for _, c := range []struct{ creds, want string }{
		{"", "Authorization"},
		{filepath.Join(t.TempDir(), "none.creds"), "none.creds"},
	} {
		nc, err := bus.Connect(url, c.creds, "ipam")
		if err == nil {
			nc.Close()
		}
		if err == nil || !strings.Contains(err.Error(), c.want) {
			t.Errorf("with the credentials %q: %v", c.creds, err)
		}
	}
}

// guarded starts a server with an account, and gives its address and the credentials of a user of that account.
func guarded(t *testing.T) (url, creds string) {
	t.Helper()
	operator, account, system, user := key(t, nkeys.CreateOperator), key(t, nkeys.CreateAccount), key(t, nkeys.CreateAccount), key(t, nkeys.CreateUser)
	accounts := &server.MemAccResolver{}
	for _, kp := range []nkeys.KeyPair{account, system} {
		claims := jwt.NewAccountClaims(public(t, kp))
		if kp == account {
			claims.Limits.JetStreamLimits = jwt.JetStreamLimits{MemoryStorage: -1, DiskStorage: -1, Streams: -1, Consumer: -1}
		}
		if err := accounts.Store(claims.Subject, encode(t, claims, operator)); err != nil {
			t.Fatal(err)
		}
	}
	trusted := jwt.NewOperatorClaims(public(t, operator))
	s, err := server.NewServer(&server.Options{
		Host: "127.0.0.1", Port: server.RANDOM_PORT, JetStream: true, StoreDir: t.TempDir(), NoSigs: true, NoLog: true,
		TrustedOperators: []*jwt.OperatorClaims{trusted}, AccountResolver: accounts, SystemAccount: public(t, system), MaxPayload: 8 << 20,
	})
	if err != nil {
		t.Fatal(err)
	}
	s.Start()
	t.Cleanup(func() { s.Shutdown(); s.WaitForShutdown() })
	if !s.ReadyForConnections(patience) {
		t.Fatal("the server is not ready")
	}
	seed, err := user.Seed()
	if err != nil {
		t.Fatal(err)
	}
	text, err := jwt.FormatUserConfig(encode(t, jwt.NewUserClaims(public(t, user)), account), seed)
	if err != nil {
		t.Fatal(err)
	}
	creds = filepath.Join(t.TempDir(), "fulmar.creds")
	if err := os.WriteFile(creds, text, 0o600); err != nil {
		t.Fatal(err)
	}
	return s.ClientURL(), creds
}

func key(t *testing.T, create func() (nkeys.KeyPair, error)) nkeys.KeyPair {
	t.Helper()
	kp, err := create()
	if err != nil {
		t.Fatal(err)
	}
	return kp
}

func public(t *testing.T, kp nkeys.KeyPair) string {
	t.Helper()
	s, err := kp.PublicKey()
	if err != nil {
		t.Fatal(err)
	}
	return s
}

func encode(t *testing.T, claims jwt.Claims, by nkeys.KeyPair) string {
	t.Helper()
	s, err := claims.Encode(by)
	if err != nil {
		t.Fatal(err)
	}
	return s
}
