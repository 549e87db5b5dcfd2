package main

import (
	"errors"
	"fmt"
	"net/url"
	"strings"
	"time"

	"google.golang.org/protobuf/types/known/durationpb"

	"fulmar/messages"
	fulmarv1 "fulmar/messages/fulmar/v1"
)

// sourceFlags say how an image comes from a source that is no file.
type sourceFlags struct {
	Dockerfile string            `placeholder:"PATH" help:"Git: the Dockerfile in the repository (default: Dockerfile)."`
	BuildArg   map[string]string `mapsep:"none" placeholder:"NAME=VALUE" help:"Git: build argument of the Dockerfile."`
	Path       string            `placeholder:"PATH" help:"Git: path of the unikernel in the image that the Dockerfile builds (default: /unikernel)."`
	Mirage     uint32            `placeholder:"3|4" help:"Git: build by the MirageOS recipe for this version of the tool, without a Dockerfile."`
	Target     string            `placeholder:"hvt|spt" help:"MirageOS: target (default: hvt)."`
	Configure  []string          `sep:"none" placeholder:"ARG" help:"MirageOS: argument of mirage configure."`
	Credential string            `placeholder:"NAME" help:"Git and Docker: credential of the builder."`
	BuildLimit time.Duration     `help:"Git: longest time of the build (default: 30m)."`
	Pull       string            `placeholder:"missing|always|never" help:"Docker: when to pull the image (default: missing)."`
	Watch      bool              `help:"Git, Docker: deploy again whenever the source moves."`
}

// image makes an image of the way that a person writes it.
func (f *sourceFlags) image(s, sha string) (*fulmarv1.Image, error) {
	i := &fulmarv1.Image{Sha256: sha}
	kind, rest, _ := strings.Cut(s, ":")
	git := strings.HasPrefix(s, "git+") || kind == "ssh" || isRepository(s)
	switch {
	case git:
		source, err := f.git(strings.TrimPrefix(s, "git+"))
		if err != nil {
			return nil, err
		}
		i.Source = &fulmarv1.Image_Git{Git: source}
	case kind == "docker":
		reference, path, _ := strings.Cut(strings.TrimPrefix(rest, "//"), "#")
		i.Source = &fulmarv1.Image_Docker{Docker: &fulmarv1.DockerSource{Image: reference, Path: path, Pull: f.Pull, Credential: f.Credential}}
	case kind == "oci":
		layout, path, _ := strings.Cut(rest, "#")
		layout, reference, _ := strings.Cut(layout, "@")
		i.Source = &fulmarv1.Image_Oci{Oci: &fulmarv1.OciSource{Layout: layout, Reference: reference, Path: path}}
	case kind == "http" || kind == "https":
		i.Source = &fulmarv1.Image_Url{Url: s}
	case messages.IsDigest(strings.ToLower(s)):
		i.Source = &fulmarv1.Image_Object{Object: strings.ToLower(s)}
	default:
		i.Source = &fulmarv1.Image_File{File: s}
	}
	switch {
	case !git && (f.Dockerfile != "" || len(f.BuildArg) > 0 || f.Path != "" || f.Mirage != 0 || f.Target != "" || len(f.Configure) > 0 || f.BuildLimit != 0):
		return nil, errors.New("--dockerfile, --build-arg, --path, --mirage, --target, --configure and --build-limit go with a Git repository, as git+https://git.example/www")
	case kind != "docker" && f.Pull != "":
		return nil, errors.New("--pull goes with an image of Docker, as docker:www")
	case kind != "docker" && !git && f.Credential != "":
		return nil, errors.New("--credential goes with a Git repository or an image of Docker")
	}
	return i, nil
}

// isRepository tells the URL of a Git repository from other URLs and from files by what only it has.
func isRepository(s string) bool {
	u, err := url.Parse(s)
	if err == nil && (u.Scheme == "http" || u.Scheme == "https") {
		return strings.HasSuffix(u.Path, ".git")
	}
	return strings.HasPrefix(s, "git@")
}

// git reads URL[#REF[:DIRECTORY]].
func (f *sourceFlags) git(s string) (*fulmarv1.GitSource, error) {
	repository, fragment, _ := strings.Cut(s, "#")
	ref, directory, _ := strings.Cut(fragment, ":")
	g := &fulmarv1.GitSource{Url: repository, Ref: ref, Directory: directory, Credential: f.Credential}
	if f.BuildLimit != 0 {
		g.Limit = durationpb.New(f.BuildLimit)
	}
	if f.Mirage == 0 {
		if f.Target != "" || len(f.Configure) > 0 {
			return nil, errors.New("--target and --configure go with --mirage")
		}
		g.Recipe = &fulmarv1.GitSource_Dockerfile{Dockerfile: &fulmarv1.DockerfileRecipe{File: f.Dockerfile, Args: f.BuildArg, Path: f.Path}}
		return g, nil
	}
	if f.Dockerfile != "" || len(f.BuildArg) > 0 || f.Path != "" {
		return nil, fmt.Errorf("--mirage %d builds without a Dockerfile: --dockerfile, --build-arg and --path do not go with it", f.Mirage)
	}
	g.Recipe = &fulmarv1.GitSource_Mirage{Mirage: &fulmarv1.MirageRecipe{Mirage: f.Mirage, Target: f.Target, Args: f.Configure}}
	return g, nil
}

// given reports whether any flag is set that says something of one source.
func (f *sourceFlags) given() bool {
	return f.Dockerfile != "" || len(f.BuildArg) > 0 || f.Path != "" || f.Mirage != 0 || f.Target != "" || len(f.Configure) > 0 || f.Credential != "" || f.BuildLimit != 0 || f.Pull != ""
}
