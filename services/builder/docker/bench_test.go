package docker_test

import (
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"testing"
	"time"

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

// BenchmarkExtract copies a file of 100 MiB out of an image into a file, with the container made and removed, and in turn
// with it the same by docker cp, out of a container that is there already.
func BenchmarkExtract(b *testing.B) {
	id, api := unikernel(b), dockertest.Client(b, "")
	e, err := docker.New(docker.Config{Owner: b.Name()})
	if err != nil {
		b.Fatal(err)
	}
	defer e.Close()
	made, err := api.ContainerCreate(b.Context(), &container.Config{Image: id, Cmd: []string{"/"}}, nil, nil, nil, "")
	if err != nil {
		b.Fatal(err)
	}
	to := filepath.Join(b.TempDir(), "unikernel")
	var ours, theirs []time.Duration
	for b.Loop() {
		begin := time.Now()
		extractTo(b, e, id, to)
		ours = append(ours, time.Since(begin))
		os.Remove(to)
		begin = time.Now()
		if said, err := exec.Command("docker", "cp", made.ID+":/unikernel", to).CombinedOutput(); err != nil {
			b.Fatalf("%v: %s", err, said)
		}
		theirs = append(theirs, time.Since(begin))
		os.Remove(to)
	}
	if err := api.ContainerRemove(b.Context(), made.ID, container.RemoveOptions{}); err != nil {
		b.Fatal(err)
	}
	slices.Sort(ours)
	slices.Sort(theirs)
	our, their := ours[len(ours)/2].Seconds(), theirs[len(theirs)/2].Seconds()
	b.ReportMetric(0, "ns/op")
	b.ReportMetric(hundred/our/1e6, "MB/s")
	b.ReportMetric(hundred/their/1e6, "docker-cp-MB/s")
	b.ReportMetric(our/their, "times-docker-cp")
}

func extractTo(b *testing.B, e *docker.Engine, id, to string) {
	f, err := os.Create(to)
	if err != nil {
		b.Fatal(err)
	}
	if err := e.Extract(b.Context(), id, "/unikernel", f, hundred); err != nil {
		b.Fatal(err)
	}
	if err := f.Close(); err != nil {
		b.Fatal(err)
	}
}
