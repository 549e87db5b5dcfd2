package builder

import (
	"context"
	"fmt"
	"io"
	"net/url"

	"fulmar/messages"
	fulmarv1 "fulmar/messages/fulmar/v1"
)

// beside are the names, after that of an artefact, under which its signatures lie.
var beside = [...]string{".minisig", ".sig"}

// permitted gets the image of a source into the store as the policy has it. What was deployed before is the content of a
// head, pinned by what it is: the policy was asked for it then.
func (s *Service) permitted(ctx context.Context, k fulmarv1.Kind, source *fulmarv1.Image, l *log) (image, *fulmarv1.Build, error) {
	if k != fulmarv1.Kind_KIND_DEPLOY {
		return s.image(ctx, source, l)
	}
	if err := s.config.Policy.Allow(source); err != nil {
		return image{}, nil, err
	}
	i, facts, err := s.image(ctx, source, l)
	if err != nil {
		return i, facts, err
	}
	return i, facts, s.signed(ctx, source, i)
}

// signed refuses an image that must be signed and is not.
func (s *Service) signed(ctx context.Context, source *fulmarv1.Image, i image) error {
	if len(s.config.Policy.Signers(source)) == 0 {
		return nil
	}
	f, err := scratch()
	if err != nil {
		return err
	}
	defer f.Close()
	if err := s.images.fromStore(ctx, i.digest, f); err != nil { // it may have been built elsewhere
		return err
	}
	if _, err := inspect(f, i.digest); err != nil {
		return err
	}
	signatures := source.GetSignatures()
	err = s.config.Policy.Verify(source, f, signatures)
	if _, refused := messages.AsRefusal(err); !refused || source.GetUrl() == "" {
		return err
	}
	more, err := s.sources.beside(ctx, source.GetUrl())
	if err != nil {
		return err
	}
	return s.config.Policy.Verify(source, f, append(more, signatures...))
}

// beside gets the signatures that lie beside an artefact.
func (s *sources) beside(ctx context.Context, artefact string) ([]string, error) {
	at, err := url.Parse(artefact)
	if err != nil {
		return nil, badImage("%w", err)
	}
	var signatures []string
	for _, end := range beside {
		there := *at
		if there.Path += end; there.RawPath != "" {
			there.RawPath += end
		}
		err := s.fromURL(ctx, there.String(), func(in io.Reader) error {
			text, err := io.ReadAll(io.LimitReader(in, messages.MaxSignature))
			if err != nil {
				return fmt.Errorf("get a signature: %w", err)
			}
			signatures = append(signatures, string(text))
			return nil
		})
		if refusal, ok := messages.AsRefusal(err); ok && refusal.Code == fulmarv1.ReasonCode_REASON_CODE_NOT_FOUND {
			continue
		}
		if err != nil {
			return nil, fmt.Errorf("look for a signature: %w", err)
		}
	}
	return signatures, nil
}
