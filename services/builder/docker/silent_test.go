package docker

import (
	"net"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

func TestAnEngineThatDoesNotAnswerIsAsGoodAsNone(t *testing.T) {
	path := filepath.Join(t.TempDir(), "docker.sock")
	silent, err := net.Listen("unix", path)
	if err != nil {
		t.Fatal(err)
	}
	defer silent.Close()
	e, err := New(Config{Host: "unix://" + path})
	if err != nil {
		t.Fatal(err)
	}
	defer e.Close()
	e.answer = 50 * time.Millisecond
	for name, b := range map[string]Build{"any": {}, "with limits": {Memory: 1 << 30}} {
		if _, err := e.Builder(t.Context(), b); err == nil || !strings.Contains(err.Error(), "ask the docker engine: it takes the question and does not answer") {
			t.Errorf("a build, %s: %v", name, err)
		}
	}
}
