package policy

import (
	"errors"
	"net/url"
	"path"
	"regexp"
	"strings"

	"github.com/distribution/reference"

	fulmarv1 "fulmar/messages/fulmar/v1"
)

// source is what a policy knows a source by.
type source struct {
	name string
	ref  string // of a Git repository
}

func (s source) String() string {
	if s.ref != "" {
		return s.name + "#" + s.ref
	}
	return s.name
}

// Source gives the name of the source of an image in the patterns of a policy: git+https://host/path, git+ssh://host/path,
// git+file:///path, https://host/path, docker:registry/name:tag (or @digest), oci:/path, file:/path or object:SHA-256.
// It has no user name, no password and no port that goes without saying; the name of a Docker image is whole, as in
// docker:docker.io/library/www:latest. It refuses a source whose name could stand for another.
func Source(i *fulmarv1.Image) (string, error) {
	s, err := sourceOf(i)
	return s.name, err
}

func sourceOf(i *fulmarv1.Image) (source, error) {
	switch s := i.GetSource().(type) {
	case *fulmarv1.Image_File:
		return source{name: "file:" + path.Clean(s.File)}, nil
	case *fulmarv1.Image_Object:
		return source{name: "object:" + s.Object}, nil
	case *fulmarv1.Image_Url:
		name, err := plainURL(s.Url)
		return source{name: name}, err
	case *fulmarv1.Image_Docker:
		name, err := plainReference(s.Docker.GetImage())
		return source{name: "docker:" + name}, err
	case *fulmarv1.Image_Oci:
		return source{name: "oci:" + path.Clean(s.Oci.GetLayout())}, nil
	case *fulmarv1.Image_Git:
		name, err := plainRepository(s.Git.GetUrl())
		return source{name: "git+" + name, ref: s.Git.GetRef()}, err
	}
	return source{}, errors.New("there is none")
}

// errUnreadable reports what is no URL.
var errUnreadable = errors.New("it cannot be read")

// errNotPlain reports that a URL could stand for another.
var errNotPlain = errors.New("its path has . or .. or // in it, so that it could pass for another")

// ports go without saying.
var ports = map[string]string{"http": ":80", "https": ":443", "ssh": ":22"}

// plainURL gives a URL in the one form that a pattern is compared with.
func plainURL(text string) (string, error) {
	u, err := url.Parse(text)
	if err != nil {
		return "", errUnreadable
	}
	return nameOf(u)
}

func nameOf(u *url.URL) (string, error) {
	trimmed := strings.TrimSuffix(u.Path, "/")
	if trimmed != "" && path.Clean(trimmed) != trimmed {
		return "", errNotPlain
	}
	u.Scheme = strings.ToLower(u.Scheme)
	u.Host = strings.TrimSuffix(strings.ToLower(u.Host), ports[u.Scheme])
	u.User, u.Fragment = nil, ""
	return u.String(), nil
}

// scp is the short form of an SSH URL.
var scp = regexp.MustCompile(`^(?:[^@/]+@)?([^:/]+):([^/].*)$`)

// plainRepository gives the URL of a repository as git is told it: without a query, and whichever way its path is written.
func plainRepository(text string) (string, error) {
	u, err := url.Parse(text)
	if m := scp.FindStringSubmatch(text); m != nil && !strings.Contains(text, "://") {
		u, err = &url.URL{Scheme: "ssh", Host: m[1], Path: "/" + m[2]}, nil
	}
	if err != nil {
		return "", errUnreadable
	}
	u.RawPath, u.RawQuery, u.ForceQuery = "", "", false
	name, err := nameOf(u)
	return strings.TrimSuffix(name, "/"), err
}

func plainReference(text string) (string, error) {
	r, err := reference.ParseAnyReference(text)
	if err != nil {
		return "", err
	}
	if named, ok := r.(reference.Named); ok {
		return reference.TagNameOnly(named).String(), nil
	}
	return r.String(), nil
}
