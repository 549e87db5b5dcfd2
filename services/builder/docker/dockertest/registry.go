package dockertest

import (
	"crypto/subtle"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"

	"github.com/docker/docker/api/types/image"
	"github.com/docker/docker/api/types/registry"
	"github.com/docker/docker/client"
	registryserver "github.com/google/go-containerregistry/pkg/registry"
)

// Registry is a registry on loopback, which engines use without TLS.
type Registry struct {
	Host     string // 127.0.0.1:port
	username string
	password string
	server   *httptest.Server
}

// NewRegistry starts a registry for a test. It asks for the user name and the password if there is one.
func NewRegistry(tb testing.TB, username, password string) *Registry {
	tb.Helper()
	quiet := slog.NewLogLogger(slog.DiscardHandler, slog.LevelInfo)
	serve := registryserver.New(registryserver.Logger(quiet))
	r := &Registry{username: username, password: password}
	r.server = httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, q *http.Request) {
		if !r.lets(q) {
			w.Header().Set("WWW-Authenticate", `Basic realm="registry"`)
			http.Error(w, `{"errors":[{"code":"UNAUTHORIZED","message":"authentication required"}]}`, http.StatusUnauthorized)
			return
		}
		serve.ServeHTTP(w, q)
	}))
	tb.Cleanup(r.server.Close)
	r.Host = r.server.Listener.Addr().String()
	return r
}

func (r *Registry) lets(q *http.Request) bool {
	if r.username == "" {
		return true
	}
	username, password, _ := q.BasicAuth()
	return subtle.ConstantTimeCompare([]byte(username+"\n"+password), []byte(r.username+"\n"+r.password)) == 1
}

// Close stops the registry before the end of the test.
func (r *Registry) Close() { r.server.Close() }

// Push makes an image, pushes it to the registry and removes it from the engine. It gives the digest that the registry
// has it under; name is without the host, as in "www:live".
func (r *Registry) Push(tb testing.TB, api *client.Client, name string, files ...File) string {
	tb.Helper()
	ref := r.Host + "/" + name
	Import(tb, api, ref, files...)
	auth, err := registry.EncodeAuthConfig(registry.AuthConfig{Username: r.username, Password: r.password, ServerAddress: r.Host})
	if err != nil {
		tb.Fatal(err)
	}
	progress, err := api.ImagePush(tb.Context(), ref, image.PushOptions{RegistryAuth: auth})
	if err != nil {
		tb.Fatal(err)
	}
	Finish(tb, progress)
	pushed, err := api.ImageInspect(tb.Context(), ref)
	if err != nil {
		tb.Fatal(err)
	}
	if _, err := api.ImageRemove(tb.Context(), pushed.ID, image.RemoveOptions{Force: true, PruneChildren: true}); err != nil {
		tb.Fatal(err)
	}
	for _, d := range pushed.RepoDigests {
		if _, digest, ok := strings.Cut(d, "@"); ok && strings.HasPrefix(d, r.Host+"/") {
			return digest
		}
	}
	tb.Fatalf("the engine knows no digest of %s: %v", ref, pushed.RepoDigests)
	return ""
}
