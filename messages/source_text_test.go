package messages

import (
	"testing"

	fulmarv1 "fulmar/messages/fulmar/v1"
)

func TestSourceText(t *testing.T) {
	git := func(url, ref, directory string) *fulmarv1.Image {
		return &fulmarv1.Image{Source: &fulmarv1.Image_Git{Git: &fulmarv1.GitSource{Url: url, Ref: ref, Directory: directory, Credential: "secret"}}}
	}
	for want, i := range map[string]*fulmarv1.Image{
		"/srv/www.hvt":                                {Source: &fulmarv1.Image_File{File: "/srv/www.hvt"}},
		"https://ci:xxxxx@ci.example/www.hvt":         {Source: &fulmarv1.Image_Url{Url: "https://ci:geheim@ci.example/www.hvt"}},
		"docker:registry.example/www:live#/unikernel": {Source: &fulmarv1.Image_Docker{Docker: &fulmarv1.DockerSource{Image: "registry.example/www:live", Path: "/unikernel"}}},
		"oci:/srv/www#/unikernel":                     {Source: &fulmarv1.Image_Oci{Oci: &fulmarv1.OciSource{Layout: "/srv/www", Path: "/unikernel"}}},
		"oci:/srv/www@live#/unikernel":                {Source: &fulmarv1.Image_Oci{Oci: &fulmarv1.OciSource{Layout: "/srv/www", Reference: "live", Path: "/unikernel"}}},
		"git+https://git.example/www":                 git("https://git.example/www", "", ""),
		"git+https://git.example/www#main:unikernel":  git("https://git.example/www", "main", "unikernel"),
		"git+https://git.example/www#:unikernel":      git("https://git.example/www", "", "unikernel"),
		"git@git.example:www#v1":                      git("git@git.example:www", "v1", ""),
		"git+ssh://git:xxxxx@git.example/www":         git("ssh://git:geheim@git.example/www", "", ""),
		"":                                            {},
	} {
		if got := SourceText(i); got != want {
			t.Errorf("got %q, want %q", got, want)
		}
	}
}
