package docker

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"strings"

	"github.com/containerd/errdefs"
	"github.com/distribution/reference"
	"github.com/docker/docker/api/types/image"
	"github.com/docker/docker/api/types/registry"

	"fulmar/messages"
	fulmarv1 "fulmar/messages/fulmar/v1"
	"fulmar/services/builder/credential"
)

// Pull says when an image is pulled.
type Pull string

// When an image is pulled.
const (
	PullMissing Pull = "missing" // if the engine does not have it
	PullAlways  Pull = "always"  // whether the engine has it or not
	PullNever   Pull = "never"   // not at all
)

// Reference names an image.
type Reference struct {
	Image      string // by tag, digest or id
	Pull       Pull   // empty: PullMissing
	Credential credential.Credential
}

// Image is an image that the engine has.
type Image struct {
	ID     string // sha256:..., which names its content
	Digest string // under which the registry of the reference has it, sha256:...; empty: unknown
}

// Resolve finds an image, and pulls it if need be. What the engine pulled it keeps.
func (e *Engine) Resolve(ctx context.Context, r Reference) (Image, error) {
	name, err := reference.ParseAnyReference(r.Image)
	if err != nil {
		return Image{}, messages.Refuse(fulmarv1.ReasonCode_REASON_CODE_INVALID, "docker image %s: %w", r.Image, err)
	}
	named, pullable := name.(reference.Named)
	whole := name.String() // of what looks like a short id too: asked for that, the engine would give an image of any name
	if pullable {
		named = reference.TagNameOnly(named)
		whole = named.String()
	}
	if r.Pull != PullAlways || !pullable {
		i, err := e.inspect(ctx, r.Image, whole, named)
		if err == nil || !errdefs.IsNotFound(err) {
			return i, err
		}
		if !pullable || r.Pull == PullNever {
			return Image{}, messages.Refuse(fulmarv1.ReasonCode_REASON_CODE_NOT_FOUND, "docker image %s: the engine does not have it, and it is not to be pulled", r.Image)
		}
	}
	if err := e.pull(ctx, r, named); err != nil {
		return Image{}, err
	}
	return e.inspect(ctx, r.Image, whole, named)
}

func (e *Engine) inspect(ctx context.Context, ref, whole string, named reference.Named) (Image, error) {
	i, err := e.api.ImageInspect(ctx, whole)
	if err != nil {
		return Image{}, fmt.Errorf("look for docker image %s: %w", ref, err)
	}
	return Image{ID: i.ID, Digest: repoDigest(i.RepoDigests, named)}, nil
}

// repoDigest finds the digest under which the repository of a reference has an image.
func repoDigest(digests []string, named reference.Named) string {
	if named == nil {
		return ""
	}
	if d, ok := named.(reference.Digested); ok {
		return d.Digest().String()
	}
	for _, s := range digests {
		r, err := reference.ParseNormalizedNamed(s)
		if err != nil || r.Name() != named.Name() {
			continue
		}
		if d, ok := r.(reference.Digested); ok {
			return d.Digest().String()
		}
	}
	return ""
}

func (e *Engine) pull(ctx context.Context, r Reference, named reference.Named) error {
	auth, err := authorization(r, named)
	if err != nil {
		return err
	}
	doing := "pull docker image " + r.Image
	progress, err := e.api.ImagePull(ctx, r.Image, image.PullOptions{RegistryAuth: auth})
	if err == nil {
		err = finish(progress)
	}
	switch {
	case err == nil:
		return nil
	case errors.Is(err, context.Canceled) || errors.Is(err, context.DeadlineExceeded):
	case errdefs.IsNotFound(err) || saysOneOf(err, "manifest unknown", "name unknown", "no matching manifest"):
		return messages.Refuse(fulmarv1.ReasonCode_REASON_CODE_NOT_FOUND, "%s: %w", doing, err)
	case errdefs.IsUnauthorized(err) || errdefs.IsPermissionDenied(err) || saysOneOf(err, "unauthorized", "no basic auth credentials", "access denied", "authentication required"):
		return messages.Refuse(fulmarv1.ReasonCode_REASON_CODE_IMAGE, "%s: the registry does not let us, with %s: %w", doing, described(r.Credential), err)
	case errdefs.IsInvalidArgument(err):
		return messages.Refuse(fulmarv1.ReasonCode_REASON_CODE_INVALID, "%s: %w", doing, err)
	}
	return fmt.Errorf("%s: %w", doing, err)
}

// authorization is a credential as the API takes it; it is empty where there is none.
func authorization(r Reference, named reference.Named) (string, error) {
	c := r.Credential
	switch {
	case c.Key != nil:
		return "", messages.Refuse(fulmarv1.ReasonCode_REASON_CODE_INVALID, "docker image %s: its credential is a private key, and a registry takes a user name and a password", r.Image)
	case c.Username == "" && c.Password == "":
		return "", nil
	}
	if err := c.For(reference.Domain(named)); err != nil {
		return "", messages.Refuse(fulmarv1.ReasonCode_REASON_CODE_POLICY, "docker image %s: its credential: %w", r.Image, err)
	}
	auth, err := registry.EncodeAuthConfig(registry.AuthConfig{Username: c.Username, Password: c.Password, ServerAddress: reference.Domain(named)})
	if err != nil {
		return "", fmt.Errorf("encode the credential of %s: %w", reference.Domain(named), err)
	}
	return auth, nil
}

// saysOneOf finds an answer of a registry in what an engine makes of it: older ones pass on no status.
func saysOneOf(err error, answers ...string) bool {
	for _, a := range answers {
		if strings.Contains(err.Error(), a) {
			return true
		}
	}
	return false
}

func described(c credential.Credential) string {
	if c.Username == "" && c.Password == "" {
		return "no credential"
	}
	return "the credential that is named"
}

// finish reads what an engine says while it pulls, and gives the error that it ends with, if any.
func finish(progress io.ReadCloser) error {
	defer progress.Close()
	for lines := json.NewDecoder(progress); ; {
		var line struct {
			Error string `json:"error"`
		}
		switch err := lines.Decode(&line); {
		case errors.Is(err, io.EOF):
			return nil
		case err != nil:
			return err
		case line.Error != "":
			return errors.New(line.Error)
		}
	}
}
