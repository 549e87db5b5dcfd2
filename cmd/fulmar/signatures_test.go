package main

import (
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
)

func TestSignaturesBeside(t *testing.T) {
	image := filepath.Join(t.TempDir(), "www.spt")
	if got, err := signaturesBeside(image); err != nil || len(got) != 0 {
		t.Errorf("beside nothing: %q, %v", got, err)
	}
	for end, text := range map[string]string{".minisig": "untrusted comment: a", ".sig": "MEUC"} {
		if err := os.WriteFile(image+end, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	got, err := signaturesBeside(image)
	if diff := cmp.Diff([]string{"untrusted comment: a", "MEUC"}, got); err != nil || diff != "" {
		t.Errorf("%v, (-want +got):\n%s", err, diff)
	}
	if err := os.WriteFile(image+".sig", make([]byte, 5000), 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := signaturesBeside(image); err == nil || !strings.Contains(err.Error(), "www.spt.sig is not a file of at most 4096 bytes") {
		t.Errorf("a long one: %v", err)
	}
}
