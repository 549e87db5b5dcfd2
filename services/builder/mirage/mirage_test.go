package mirage_test

import (
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"fulmar/messages"
	fulmarv1 "fulmar/messages/fulmar/v1"
	"fulmar/services/builder/mirage"
)

// update names the variable of the environment that has the golden files written anew.
const update = "FULMAR_UPDATE_GOLDEN"

func TestDockerfile(t *testing.T) {
	commit := strings.Repeat("0123456789", 4)
	for name, c := range map[string]struct {
		recipe  *fulmarv1.MirageRecipe
		options mirage.Options
	}{
		"mirage 3 for hvt": {recipe: &fulmarv1.MirageRecipe{Mirage: 3, Config: "config.ml", Target: "hvt"}},
		"mirage 4 for hvt": {recipe: &fulmarv1.MirageRecipe{Mirage: 4, Config: "config.ml", Target: "hvt"}, options: mirage.Options{Mounts: true}},
		"mirage 4 for spt without mounts": {
			recipe:  &fulmarv1.MirageRecipe{Mirage: 4, Config: "config.ml", Target: "spt"},
			options: mirage.Options{Base: "registry.example/opam:5.2"},
		},
		"mirage 3 for spt with everything": {
			recipe: &fulmarv1.MirageRecipe{
				Mirage: 3, Config: "src/deep/config.ml", Target: "spt", Args: []string{"--kv_ro=crunch", "--name=a b", `; rm -rf / $(id) "'\`, "<<EOF"}, OpamRepository: commit,
				Instructions: []string{"RUN opam pin add -n tls 0.15", "ENV LANG=C"}, Base: "registry.example/own@sha256:" + strings.Repeat("a", 64),
			},
			options: mirage.Options{Base: "registry.example/opam:5.2", Mounts: true},
		},
		"mirage 4 for hvt with everything": {
			recipe: &fulmarv1.MirageRecipe{
				Mirage: 4, Config: "mirage/config.ml", Target: "hvt", Args: []string{"--dhcp=false", "--hello=it's"}, OpamRepository: commit, Instructions: []string{"RUN opam install opam-depext"},
			},
			options: mirage.Options{Mounts: true},
		},
	} {
		t.Run(name, func(t *testing.T) {
			got, err := mirage.Dockerfile(c.recipe, c.options)
			if err != nil {
				t.Fatal(err)
			}
			golden := filepath.Join("testdata", strings.ReplaceAll(name, " ", "-")+".Dockerfile")
			if os.Getenv(update) != "" {
				if err := os.WriteFile(golden, []byte(got), 0o600); err != nil {
					t.Fatal(err)
				}
			}
			want, err := os.ReadFile(golden)
			if diff := cmp.Diff(string(want), got); err != nil || diff != "" {
				t.Errorf("%v (-want +got):\n%s", err, diff)
			}
		})
	}
}

func TestDockerfileRefuses(t *testing.T) {
	for _, r := range []*fulmarv1.MirageRecipe{
		{Mirage: 2, Config: "config.ml", Target: "hvt"},
		{Mirage: 4, Config: "a b/config.ml", Target: "hvt"},
		{Mirage: 4, Config: "[ab]/config.ml", Target: "hvt"},
		{Mirage: 4, Config: "$HOME/config.ml", Target: "hvt"},
		{Mirage: 4, Config: "-f/config.ml", Target: "hvt"},
		{Mirage: 4, Config: "a;b", Target: "hvt"},
	} {
		_, err := mirage.Dockerfile(r, mirage.Options{})
		if refusal, ok := messages.AsRefusal(err); !ok || refusal.Code != fulmarv1.ReasonCode_REASON_CODE_INVALID {
			t.Errorf("Dockerfile of %v = %v, want that it is refused", r, err)
		}
	}
}
