package messages

import (
	"errors"
	"fmt"
	"net/url"
	"path"
	"regexp"
	"strings"
	"time"

	fulmarv1 "fulmar/messages/fulmar/v1"
)

// Bounds and defaults of the source of an image.
const (
	MaxSignatures     = 8
	MaxSignature      = 4 << 10 // bytes
	DefaultBuildLimit = 30 * time.Minute
	MaxBuildLimit     = 6 * time.Hour
	DefaultUnikernel  = "/unikernel" // path in an image
	maxInstructions   = 64
	maxBuildMemory    = 1 << 20   // MB
	minBuildMemory    = 4         // MB: what an engine takes
	maxMilliCPUs      = 1_024_000 // thousandths
)

// scpURL is the short form of an ssh URL: git@host:path.
var scpURL = regexp.MustCompile(`^[A-Za-z0-9._-]+@[A-Za-z0-9.-]+:[^/].*$`)

// imageDigest is the digest of an image of Docker, as it follows the @ of its reference.
var imageDigest = regexp.MustCompile(`^[a-z0-9]+([.+_-][a-z0-9]+)*:[0-9a-fA-F]{32,}$`)

func checkImage(u *fulmarv1.UnitSpec) error {
	if u.GetImage() == nil {
		return errors.New("image: none is given")
	}
	if err := normalizeImage(u.GetImage()); err != nil {
		return fmt.Errorf("image: %w", err)
	}
	return nil
}

func normalizeImage(i *fulmarv1.Image) error {
	i.Sha256 = strings.ToLower(i.GetSha256())
	if sum := i.GetSha256(); sum != "" && !IsDigest(sum) {
		return fmt.Errorf("sha256 %q is not 64 hexadecimal digits", sum)
	}
	if n := len(i.GetSignatures()); n > MaxSignatures {
		return fmt.Errorf("signatures: %d, more than %d", n, MaxSignatures)
	}
	for _, s := range i.GetSignatures() {
		if n := len(s); n > MaxSignature {
			return fmt.Errorf("signatures: one has %d bytes, more than %d", n, MaxSignature)
		}
	}
	if i.GetSha256Url() != "" && i.GetUrl() == "" {
		return errors.New("sha256_url belongs to a url, and none is given")
	}
	switch source := i.GetSource().(type) {
	case *fulmarv1.Image_File:
		return absolute("file", source.File)
	case *fulmarv1.Image_Object:
		source.Object = strings.ToLower(source.Object)
		if !IsDigest(source.Object) {
			return fmt.Errorf("object %q is not a SHA-256 of 64 hexadecimal digits", source.Object)
		}
		return nil
	case *fulmarv1.Image_Url:
		return checkURL(i)
	case *fulmarv1.Image_Docker:
		return normalizeDocker(source.Docker)
	case *fulmarv1.Image_Oci:
		if err := absolute("oci: layout", source.Oci.GetLayout()); err != nil {
			return err
		}
		return unikernelPath("oci", &source.Oci.Path)
	case *fulmarv1.Image_Git:
		if err := normalizeGit(source.Git); err != nil {
			return fmt.Errorf("git: %w", err)
		}
		return nil
	}
	return errors.New("one of file, object, url, docker, oci and git must be given")
}

func checkURL(i *fulmarv1.Image) error {
	if err := httpURL("url", i.GetUrl()); err != nil {
		return err
	}
	if i.GetSha256Url() != "" {
		if i.GetSha256() != "" {
			return errors.New("only one of sha256 and sha256_url can be given")
		}
		return httpURL("sha256_url", i.GetSha256Url())
	}
	if i.GetSha256() == "" {
		return fmt.Errorf("url %q needs the sha256 of the image with it", i.GetUrl())
	}
	return nil
}

func httpURL(field, s string) error {
	u, err := url.Parse(s)
	if err != nil || u.Scheme != "http" && u.Scheme != "https" || u.Host == "" {
		return fmt.Errorf("%s %q is not an http or https URL", field, ShownURL(s))
	}
	if u.User != nil {
		return fmt.Errorf("%s %s has a credential in it, which every event would show: deploy the file itself, which goes into the store", field, ShownURL(s))
	}
	return nil
}

func absolute(field, p string) error {
	if !strings.HasPrefix(p, "/") {
		return fmt.Errorf("%s %q is not an absolute path", field, p)
	}
	return nil
}

// unikernelPath fills in and cleans the path of a unikernel in an image.
func unikernelPath(source string, p *string) error {
	if *p == "" {
		*p = DefaultUnikernel
	}
	if err := absolute(source+": path", *p); err != nil {
		return err
	}
	*p = path.Clean(*p)
	if *p == "/" {
		return fmt.Errorf("%s: path \"/\" is no file", source)
	}
	return nil
}

func normalizeDocker(d *fulmarv1.DockerSource) error {
	if d.GetImage() == "" || strings.ContainsAny(d.GetImage(), " \t\r\n") {
		return fmt.Errorf("docker: image %q is not a reference", d.GetImage())
	}
	if _, digest, pinned := strings.Cut(d.GetImage(), "@"); pinned && !imageDigest.MatchString(digest) {
		return fmt.Errorf("docker: image %s is not a reference, in which only a digest follows an @: a credential is named by credential", ShownURL(d.GetImage()))
	}
	if d.GetPull() == "" {
		d.Pull = "missing"
	}
	if p := d.GetPull(); p != "missing" && p != "always" && p != "never" {
		return fmt.Errorf("docker: pull %q is none of missing, always and never", p)
	}
	if err := checkCredential(d.GetCredential()); err != nil {
		return fmt.Errorf("docker: %w", err)
	}
	return unikernelPath("docker", &d.Path)
}

func checkCredential(name string) error {
	if name == "" {
		return nil
	}
	return CheckName("credential", name)
}

func normalizeGit(g *fulmarv1.GitSource) error {
	if err := checkGitURL(g.GetUrl()); err != nil {
		return err
	}
	if ref := g.GetRef(); strings.HasPrefix(ref, "-") || strings.Contains(ref, "..") || strings.ContainsAny(ref, " \t\r\n\x00~^:?*[\\") {
		return fmt.Errorf("ref %q is not the name of a branch, a tag or a commit", ref)
	}
	if err := inside("directory", &g.Directory); err != nil {
		return err
	}
	if err := checkCredential(g.GetCredential()); err != nil {
		return err
	}
	var err error
	if g.Limit, err = duration("limit", g.GetLimit(), DefaultBuildLimit, time.Second, MaxBuildLimit); err != nil {
		return err
	}
	if m := g.GetMemory(); m > maxBuildMemory || m > 0 && m < minBuildMemory {
		return fmt.Errorf("memory of %d MB is not within %d to %d", m, minBuildMemory, maxBuildMemory)
	}
	if g.GetMilliCpus() > maxMilliCPUs {
		return fmt.Errorf("milli_cpus %d is more than %d", g.GetMilliCpus(), maxMilliCPUs)
	}
	switch r := g.GetRecipe().(type) {
	case *fulmarv1.GitSource_Dockerfile:
		return normalizeDockerfile(r.Dockerfile)
	case *fulmarv1.GitSource_Mirage:
		return normalizeMirage(r.Mirage)
	}
	return errors.New("one of dockerfile and mirage must be given")
}

func checkGitURL(s string) error {
	if scpURL.MatchString(s) {
		return nil
	}
	u, err := url.Parse(s)
	if err != nil {
		return fmt.Errorf("url %q cannot be read", ShownURL(s))
	}
	if _, secret := u.User.Password(); secret || u.User != nil && u.Scheme != "ssh" {
		return fmt.Errorf("url %s has a credential in it, which every event would show: name one of the builder's by credential", ShownURL(s))
	}
	switch {
	case (u.Scheme == "https" || u.Scheme == "http" || u.Scheme == "ssh") && u.Host != "" && u.Path != "" && !strings.HasPrefix(u.Host, "-"):
		return nil
	case u.Scheme == "file" && u.Host == "" && strings.HasPrefix(u.Path, "/"):
		return nil
	}
	return fmt.Errorf("url %q is not the https, http, ssh or file URL of a repository", ShownURL(s))
}

// inside cleans a path that must stay in the repository.
func inside(field string, p *string) error {
	if *p == "" {
		return nil
	}
	if strings.ContainsAny(*p, "\x00\r\n") || strings.HasPrefix(*p, "/") || path.Clean(*p) == ".." || strings.HasPrefix(path.Clean(*p), "../") {
		return fmt.Errorf("%s %q is not a path within the repository", field, *p)
	}
	*p = path.Clean(*p)
	return nil
}

func normalizeDockerfile(r *fulmarv1.DockerfileRecipe) error {
	if r.GetFile() == "" {
		r.File = "Dockerfile"
	}
	if err := inside("dockerfile: file", &r.File); err != nil {
		return err
	}
	for name := range r.GetArgs() {
		if name == "" || strings.ContainsAny(name, "= \t\r\n\x00") {
			return fmt.Errorf("dockerfile: args: %q is not the name of a build argument", name)
		}
	}
	if t := r.GetTarget(); strings.ContainsAny(t, " \t\r\n") {
		return fmt.Errorf("dockerfile: target %q is not the name of a stage", t)
	}
	return unikernelPath("dockerfile", &r.Path)
}

func normalizeMirage(r *fulmarv1.MirageRecipe) error {
	if v := r.GetMirage(); v != 3 && v != 4 {
		return fmt.Errorf("mirage: version %d is neither 3 nor 4", v)
	}
	if r.GetConfig() == "" {
		r.Config = "config.ml"
	}
	if err := inside("mirage: config", &r.Config); err != nil {
		return err
	}
	if r.GetTarget() == "" {
		r.Target = "hvt"
	}
	if t := r.GetTarget(); t != "hvt" && t != "spt" {
		return fmt.Errorf("mirage: target %q is neither hvt nor spt", t)
	}
	if c := r.GetOpamRepository(); c != "" && !IsCommit(c) {
		return fmt.Errorf("mirage: opam_repository %q is not a commit of 40 hexadecimal digits", c)
	}
	if n := len(r.GetInstructions()); n > maxInstructions {
		return fmt.Errorf("mirage: instructions: %d, more than %d", n, maxInstructions)
	}
	for _, i := range r.GetInstructions() {
		if strings.ContainsAny(i, "\r\n\x00") || strings.HasSuffix(i, "\\") {
			return fmt.Errorf("mirage: instruction %q is not one line", i)
		}
	}
	for _, a := range r.GetArgs() {
		if strings.ContainsAny(a, "\r\n\x00") {
			return fmt.Errorf("mirage: argument %q is not one line", a)
		}
	}
	if strings.ContainsAny(r.GetBase(), " \t\r\n") {
		return fmt.Errorf("mirage: base %q is not the reference of an image", r.GetBase())
	}
	return nil
}

// IsCommit reports whether s is a Git commit in full: 40 lower-case hexadecimal digits.
func IsCommit(s string) bool {
	return len(s) == 40 && strings.Trim(s, "0123456789abcdef") == ""
}

// Watchable reports whether a source can move: a Git ref that is no commit, a Docker image that is named by no digest,
// or a URL whose SHA-256 is asked for. An image that is never pulled moves where nobody asks.
func Watchable(i *fulmarv1.Image) bool {
	switch source := i.GetSource().(type) {
	case *fulmarv1.Image_Git:
		return !IsCommit(source.Git.GetRef())
	case *fulmarv1.Image_Docker:
		return !strings.Contains(source.Docker.GetImage(), "@") && source.Docker.GetPull() != "never"
	case *fulmarv1.Image_Url:
		return i.GetSha256Url() != ""
	}
	return false
}

// pullWatched makes the tags that a request watches be pulled always: what the engine has of that name stays what it is.
func pullWatched(r *fulmarv1.DeployRequest) {
	for _, u := range r.GetUnits() {
		if d := u.GetImage().GetDocker(); d != nil && Watchable(u.GetImage()) {
			d.Pull = "always"
		}
	}
}
