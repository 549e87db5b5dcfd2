package docker

import (
	"context"
	"fmt"

	"github.com/distribution/reference"

	"fulmar/messages"
	fulmarv1 "fulmar/messages/fulmar/v1"
)

// Latest asks the registry of a tag, through the engine, which digest it has now: sha256:... Nothing is pulled.
func (e *Engine) Latest(ctx context.Context, r Reference) (string, error) {
	named, err := reference.ParseNormalizedNamed(r.Image)
	if err != nil {
		return "", messages.Refuse(fulmarv1.ReasonCode_REASON_CODE_INVALID, "docker image %s: %w", r.Image, err)
	}
	auth, err := authorization(r, named)
	if err != nil {
		return "", err
	}
	found, err := e.api.DistributionInspect(ctx, reference.TagNameOnly(named).String(), auth)
	if err != nil {
		return "", fmt.Errorf("ask the registry for docker image %s: %w", r.Image, err)
	}
	return found.Descriptor.Digest.String(), nil
}
