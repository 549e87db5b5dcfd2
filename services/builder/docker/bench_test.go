package docker_test

import (
	"os"
	"os/exec"
	"path/filepath"
	"testing"

	"github.com/docker/docker/api/types/container"

	"fulmar/services/builder/docker"
	"fulmar/services/builder/docker/dockertest"
)

const hundred = 100 << 20

// unikernel makes an image with a file of 100 MiB that no compression makes smaller.
func unikernel(b *testing.B) string {
	body := make([]byte, hundred)
	state := uint64(1)
	for i := range body {
		state ^= state << 13
		state ^= state >> 7
		state ^= state << 17
		body[i] = byte(state)
	}
	return dockertest.Import(b, dockertest.Client(b, ""), "fulmar-bench:test", dockertest.File{Name: "unikernel", Body: body})
}

// BenchmarkExtract copies a file of 100 MiB out of an image into a file, with the container made and removed.
func BenchmarkExtract(b *testing.B) {
	id := unikernel(b)
	e, err := docker.New(docker.Config{Owner: b.Name()})
	if err != nil {
		b.Fatal(err)
	}
	defer e.Close()
	b.SetBytes(hundred)
	for b.Loop() {
		f, err := os.Create(filepath.Join(b.TempDir(), "unikernel"))
		if err != nil {
			b.Fatal(err)
		}
		if err := e.Extract(b.Context(), id, "/unikernel", f, hundred); err != nil {
			b.Fatal(err)
		}
		if err := f.Close(); err != nil {
			b.Fatal(err)
		}
		os.Remove(f.Name())
	}
}

// BenchmarkDockerCp does the same by docker cp, out of a container that is there already.
func BenchmarkDockerCp(b *testing.B) {
	id, api := unikernel(b), dockertest.Client(b, "")
	made, err := api.ContainerCreate(b.Context(), &container.Config{Image: id, Cmd: []string{"/"}}, nil, nil, nil, "")
	if err != nil {
		b.Fatal(err)
	}
	b.SetBytes(hundred)
	for b.Loop() {
		to := filepath.Join(b.TempDir(), "unikernel")
		if said, err := exec.Command("docker", "cp", made.ID+":/unikernel", to).CombinedOutput(); err != nil {
			b.Fatalf("%v: %s", err, said)
		}
		os.Remove(to)
	}
	if err := api.ContainerRemove(b.Context(), made.ID, container.RemoveOptions{}); err != nil {
		b.Fatal(err)
	}
}
