package docker_test

import (
	"bytes"
	"testing"

	"go.uber.org/goleak"

	"fulmar/services/builder/docker"
	"fulmar/services/builder/docker/dockertest"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(dockertest.Main(m)) }

func engine(t *testing.T, host string) *docker.Engine {
	t.Helper()
	e, err := docker.New(docker.Config{Host: host, Owner: "tests"})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { e.Close() })
	return e
}

func TestExtractGivesTheFile(t *testing.T) {
	e, api := engine(t, ""), dockertest.Client(t, "")
	id := dockertest.Import(t, api, "fulmar-extract:test", dockertest.File{Name: "unikernel", Body: []byte("solo5")})
	i, err := e.Resolve(t.Context(), docker.Reference{Image: "fulmar-extract:test"})
	if err != nil || i.ID != id {
		t.Fatalf("Resolve = %v, %v, want %s", i, err, id)
	}
	var got bytes.Buffer
	if err := e.Extract(t.Context(), i.ID, "/unikernel", &got, 5); err != nil || got.String() != "solo5" {
		t.Errorf("Extract = %q, %v", got.String(), err)
	}
}
