package docker_test

import (
	"strings"
	"testing"

	"fulmar/services/builder/credential"
	"fulmar/services/builder/docker"
	"fulmar/services/builder/docker/dockertest"
)

func TestLatestFollowsATag(t *testing.T) {
	e, api := world(t, "")
	registry := dockertest.NewRegistry(t, "jo", "s3cret")
	jo := credential.Credential{Username: "jo", Password: "s3cret", Hosts: []string{registry.Host}}
	live := docker.Reference{Image: registry.Host + "/www:live", Credential: jo}
	for _, text := range []string{"first", "second"} {
		digest := registry.Push(t, api, "www:live", www(text))
		got, err := e.Latest(t.Context(), live)
		if err != nil || got != digest {
			t.Errorf("Latest = %s, %v, want %s", got, err, digest)
		}
		if _, err := e.Resolve(t.Context(), docker.Reference{Image: live.Image, Pull: docker.PullNever}); err == nil {
			t.Error("it was pulled")
		}
		i, _, err := pulled(t, e, api, docker.Reference{Image: live.Image, Pull: docker.PullAlways, Credential: jo})
		if err != nil || i.Digest != digest {
			t.Errorf("what is pulled then has digest %s, %v, want %s", i.Digest, err, digest)
		}
	}
	registry.Push(t, api, "www:latest", www("third"))
	if _, err := e.Latest(t.Context(), docker.Reference{Image: registry.Host + "/www", Credential: jo}); err != nil {
		t.Errorf("without a tag it is not latest: %v", err)
	}
	for name, r := range map[string]docker.Reference{
		"with no credential":  {Image: live.Image},
		"with another one":    {Image: live.Image, Credential: credential.Credential{Username: "jo", Password: "s3cred", Hosts: []string{registry.Host}}},
		"with a key":          {Image: live.Image, Credential: credential.Credential{Key: []byte("-----BEGIN")}},
		"of no such tag":      {Image: registry.Host + "/www:none", Credential: jo},
		"of no name":          {Image: "WWW:live", Credential: jo},
		"of no such registry": {Image: "127.0.0.1:1/www:live"},
	} {
		if got, err := e.Latest(t.Context(), r); err == nil || strings.Contains(err.Error(), "s3cre") {
			t.Errorf("%s: %s, %v", name, got, err)
		}
	}
}
