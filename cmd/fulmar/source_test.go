package main

import (
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"google.golang.org/protobuf/testing/protocmp"
	"google.golang.org/protobuf/types/known/durationpb"

	fulmarv1 "fulmar/messages/fulmar/v1"
)

func TestTheWaysToWriteAnImage(t *testing.T) {
	dockerfile := &fulmarv1.GitSource_Dockerfile{Dockerfile: &fulmarv1.DockerfileRecipe{}}
	git := func(g *fulmarv1.GitSource) *fulmarv1.Image {
		return &fulmarv1.Image{Source: &fulmarv1.Image_Git{Git: g}}
	}
	docker := func(d *fulmarv1.DockerSource) *fulmarv1.Image {
		return &fulmarv1.Image{Source: &fulmarv1.Image_Docker{Docker: d}}
	}
	oci := func(o *fulmarv1.OciSource) *fulmarv1.Image {
		return &fulmarv1.Image{Source: &fulmarv1.Image_Oci{Oci: o}}
	}
	sum := strings.Repeat("0a", 32)
	for s, c := range map[string]struct {
		flags sourceFlags
		want  *fulmarv1.Image
	}{
		"hello.spt":                  {sourceFlags{}, &fulmarv1.Image{Source: &fulmarv1.Image_File{File: "hello.spt"}}},
		"./docker:www":               {sourceFlags{}, &fulmarv1.Image{Source: &fulmarv1.Image_File{File: "./docker:www"}}},
		strings.ToUpper(sum):         {sourceFlags{}, &fulmarv1.Image{Source: &fulmarv1.Image_Object{Object: sum}}},
		"https://ci.example/www.hvt": {sourceFlags{}, &fulmarv1.Image{Source: &fulmarv1.Image_Url{Url: "https://ci.example/www.hvt"}}},
		"docker:www":                 {sourceFlags{}, docker(&fulmarv1.DockerSource{Image: "www"})},
		"docker://registry.example:5000/www:1#/a.b": {sourceFlags{Pull: "always", Credential: "ci"}, docker(&fulmarv1.DockerSource{Image: "registry.example:5000/www:1", Path: "/a.b", Pull: "always", Credential: "ci"})},
		"oci:/srv/www.tar":                          {sourceFlags{}, oci(&fulmarv1.OciSource{Layout: "/srv/www.tar"})},
		"oci:/srv/www@sha256:12#/a":                 {sourceFlags{}, oci(&fulmarv1.OciSource{Layout: "/srv/www", Reference: "sha256:12", Path: "/a"})},
		"git+https://git.example/www":               {sourceFlags{}, git(&fulmarv1.GitSource{Url: "https://git.example/www", Recipe: dockerfile})},
		"https://git.example/www.git#main:uk":       {sourceFlags{}, git(&fulmarv1.GitSource{Url: "https://git.example/www.git", Ref: "main", Directory: "uk", Recipe: dockerfile})},
		"git@git.example:www#v1":                    {sourceFlags{BuildLimit: time.Hour}, git(&fulmarv1.GitSource{Url: "git@git.example:www", Ref: "v1", Limit: durationpb.New(time.Hour), Recipe: dockerfile})},
		"ssh://git@git.example/www": {
			sourceFlags{Mirage: 4, Target: "spt", Configure: []string{"--dhcp=false"}},
			git(&fulmarv1.GitSource{Url: "ssh://git@git.example/www", Recipe: &fulmarv1.GitSource_Mirage{Mirage: &fulmarv1.MirageRecipe{Mirage: 4, Target: "spt", Args: []string{"--dhcp=false"}}}}),
		},
		"git+file:///srv/www": {
			sourceFlags{Dockerfile: "Dockerfile.uk", BuildArg: map[string]string{"V": "1"}, Path: "/www.hvt", Credential: "ci"},
			git(&fulmarv1.GitSource{Url: "file:///srv/www", Credential: "ci", Recipe: &fulmarv1.GitSource_Dockerfile{Dockerfile: &fulmarv1.DockerfileRecipe{File: "Dockerfile.uk", Args: map[string]string{"V": "1"}, Path: "/www.hvt"}}}),
		},
	} {
		got, err := c.flags.image(s, "")
		if diff := cmp.Diff(c.want, got, protocmp.Transform()); err != nil || diff != "" {
			t.Errorf("%s: %v (-want +got):\n%s", s, err, diff)
		}
	}
}

func TestFlagsThatDoNotGoWithTheSource(t *testing.T) {
	for name, c := range map[string]struct {
		image string
		flags sourceFlags
		want  string
	}{
		"a recipe of a file":              {"hello.spt", sourceFlags{Mirage: 4}, "go with a Git repository"},
		"a path of an image of Docker":    {"docker:www", sourceFlags{Path: "/a"}, "go with a Git repository"},
		"a pull of a repository":          {"git@git.example:www", sourceFlags{Pull: "never"}, "--pull goes with an image of Docker"},
		"a credential of a file":          {"hello.spt", sourceFlags{Credential: "ci"}, "--credential goes with"},
		"a target without MirageOS":       {"git@git.example:www", sourceFlags{Target: "spt"}, "go with --mirage"},
		"a Dockerfile beside the recipe":  {"git@git.example:www", sourceFlags{Mirage: 4, Dockerfile: "a"}, "--mirage 4 builds without a Dockerfile"},
		"a build argument for the recipe": {"git@git.example:www", sourceFlags{Mirage: 3, BuildArg: map[string]string{"a": "b"}}, "--mirage 3 builds without a Dockerfile"},
	} {
		if _, err := c.flags.image(c.image, ""); err == nil || !strings.Contains(err.Error(), c.want) {
			t.Errorf("%s: got %v, want %q", name, err, c.want)
		}
	}
}
