package docker_test

import (
	"bytes"
	"fmt"
	"log/slog"
	"strings"
	"testing"

	"github.com/docker/docker/api/types/build"
	"github.com/docker/docker/api/types/image"
	"github.com/docker/docker/client"

	fulmarv1 "fulmar/messages/fulmar/v1"
	"fulmar/services/builder/credential"
	"fulmar/services/builder/docker"
	"fulmar/services/builder/docker/dockertest"
)

func buildOptions(tag string) build.ImageBuildOptions {
	return build.ImageBuildOptions{Tags: []string{tag}, Remove: true, ForceRemove: true}
}

// pulled resolves a reference and reads the unikernel in it; the engine forgets the image at the end of the test.
func pulled(t *testing.T, e *docker.Engine, api *client.Client, r docker.Reference) (docker.Image, string, error) {
	t.Helper()
	i, err := e.Resolve(t.Context(), r)
	if err != nil {
		return i, "", err
	}
	dockertest.RemoveImage(t, api, i.ID)
	text, err := extract(t, e, i.ID, "/unikernel")
	return i, text, err
}

func www(text string) dockertest.File { return dockertest.File{Name: "unikernel", Body: []byte(text)} }

func TestResolvePulls(t *testing.T) {
	e, api := world(t, "")
	registry := dockertest.NewRegistry(t, "", "")
	digest := registry.Push(t, api, "www:live", www("first"))
	tag := registry.Host + "/www:live"
	_, err := e.Resolve(t.Context(), docker.Reference{Image: tag, Pull: docker.PullNever})
	wantRefusal(t, err, absent, "the engine does not have it, and it is not to be pulled")

	i, text, err := pulled(t, e, api, docker.Reference{Image: tag})
	if err != nil || text != "first" || i.Digest != digest {
		t.Fatalf("pulled by tag: %v, %q, %v, want digest %s", i, text, err, digest)
	}
	for _, ref := range []string{i.ID, strings.TrimPrefix(i.ID, "sha256:"), tag, registry.Host + "/www@" + digest} {
		if again, err := e.Resolve(t.Context(), docker.Reference{Image: ref, Pull: docker.PullNever}); err != nil || again.ID != i.ID {
			t.Errorf("Resolve of %s = %v, %v, want %s", ref, again, err, i.ID)
		}
	}

	second := registry.Push(t, api, "www:next", www("second"))
	if j, text, err := pulled(t, e, api, docker.Reference{Image: registry.Host + "/www@" + second}); err != nil || text != "second" || j.Digest != second {
		t.Errorf("pulled by digest: %v, %q, %v, want digest %s", j, text, err, second)
	}
}

func TestResolvePullsAMovedTagOnlyWhenAsked(t *testing.T) {
	e, api := world(t, "")
	registry := dockertest.NewRegistry(t, "", "")
	registry.Push(t, api, "www:live", www("first"))
	tag := registry.Host + "/www:live"
	if _, text, err := pulled(t, e, api, docker.Reference{Image: tag}); err != nil || text != "first" {
		t.Fatalf("pulled: %q, %v", text, err)
	}
	// Another engine pushes.
	if _, err := api.ImageRemove(t.Context(), tag, image.RemoveOptions{}); err != nil {
		t.Fatal(err)
	}
	registry.Push(t, api, "www:live", www("second"))
	first := dockertest.Import(t, api, tag, www("first"))
	if i, err := e.Resolve(t.Context(), docker.Reference{Image: tag}); err != nil || i.ID != first {
		t.Errorf("Resolve takes %v, %v, not the image that the engine has", i, err)
	}
	if _, text, err := pulled(t, e, api, docker.Reference{Image: tag, Pull: docker.PullAlways}); err != nil || text != "second" {
		t.Errorf("pulled again: %q, %v", text, err)
	}
}

func TestResolveShowsItsCredential(t *testing.T) {
	e, api := world(t, "")
	registry := dockertest.NewRegistry(t, "jo", "s3cret")
	digest := registry.Push(t, api, "www:live", www("first"))
	for _, name := range []string{"www:live", "www@" + digest} {
		t.Run(name, func(t *testing.T) { // the engine forgets the image in between
			ref := registry.Host + "/" + name
			_, err := e.Resolve(t.Context(), docker.Reference{Image: ref})
			wantRefusal(t, err, badImage, "the registry does not let us, with no credential")
			_, err = e.Resolve(t.Context(), docker.Reference{Image: ref, Credential: credential.Credential{Username: "jo", Password: "s3cred", Hosts: []string{registry.Host}}})
			wantRefusal(t, err, badImage, "the registry does not let us, with the credential that is named")
			if err != nil && strings.Contains(err.Error(), "s3cred") {
				t.Errorf("the error shows the password: %v", err)
			}
			if _, text, err := pulled(t, e, api, docker.Reference{Image: ref, Credential: credential.Credential{Username: "jo", Password: "s3cret", Hosts: []string{registry.Host}}}); err != nil || text != "first" {
				t.Errorf("pulled with the credential: %q, %v", text, err)
			}
		})
	}
	_, err := e.Resolve(t.Context(), docker.Reference{Image: registry.Host + "/www:other", Credential: credential.Credential{Key: []byte("-----BEGIN")}})
	wantRefusal(t, err, invalid, "its credential is a private key")
	_, err = e.Resolve(t.Context(), docker.Reference{Image: registry.Host + "/www:other", Credential: credential.Credential{Password: "s3cret", Hosts: []string{"registry.example"}}})
	wantRefusal(t, err, fulmarv1.ReasonCode_REASON_CODE_POLICY, "it is not for "+registry.Host)
	var log bytes.Buffer
	r := docker.Reference{Image: "www", Credential: credential.Credential{Username: "jo", Password: "s3cret", Hosts: []string{registry.Host}}}
	slog.New(slog.NewTextHandler(&log, nil)).Info("seen", "reference", r)
	if said := fmt.Sprintf("%v %+v %#v", r, r, r) + log.String(); strings.Contains(said, "s3cret") {
		t.Errorf("a reference shows its password: %s", said)
	}
}

func TestResolveRefuses(t *testing.T) {
	e, api := world(t, "")
	registry := dockertest.NewRegistry(t, "", "")
	registry.Push(t, api, "www:live", www("first"))
	for ref, want := range map[string]string{
		registry.Host + "/www:other":                             "not found",
		registry.Host + "/other:live":                            "not found",
		registry.Host + "/www@sha256:" + strings.Repeat("0", 64): "not found",
		"sha256:" + strings.Repeat("0", 64):                      "the engine does not have it",
	} {
		_, err := e.Resolve(t.Context(), docker.Reference{Image: ref})
		wantRefusal(t, err, absent, ref)
		wantRefusal(t, err, absent, want)
	}
	_, err := e.Resolve(t.Context(), docker.Reference{Image: "WWW"})
	wantRefusal(t, err, invalid, "docker image WWW: ")
	registry.Close()
	_, err = e.Resolve(t.Context(), docker.Reference{Image: registry.Host + "/www:live"})
	wantRetry(t, err, "connection refused")
}
