package git

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"unicode"

	"fulmar/messages"
	fulmarv1 "fulmar/messages/fulmar/v1"
)

// maxQuote is how much of what git said an error quotes, in bytes.
const maxQuote = 300

// failure is a git that did not do what it should.
type failure struct {
	said string
	err  error
}

func (f *failure) Error() string {
	if quote := quote(f.said); quote != "" {
		return quote
	}
	return f.err.Error()
}

func (f *failure) Unwrap() error { return f.err }

// quote picks the line that says why: the last of git itself, or what stands before it if that is of no use.
func quote(said string) string {
	var best string
	for line := range strings.Lines(said) {
		line = strings.TrimSpace(strings.Map(func(r rune) rune {
			if unicode.IsControl(r) {
				return ' '
			}
			return r
		}, line))
		vague := strings.Contains(line, "Could not read from remote repository") || strings.HasPrefix(line, "Please make sure") || strings.HasPrefix(line, "and the repository exists") ||
			strings.HasSuffix(line, "unpack-objects failed") || strings.HasSuffix(line, "invalid index-pack output")
		if line != "" && (best == "" || !vague) {
			best = line
		}
	}
	best = strings.TrimPrefix(strings.TrimPrefix(strings.TrimPrefix(best, "remote: "), "fatal: "), "error: ")
	if len(best) > maxQuote {
		best = strings.ToValidUTF8(best[:maxQuote], "") + "..."
	}
	return best
}

// kind is what a failure of git means for a build.
type kind int

const (
	again   kind = iota // another try may do better
	absent              // there is no such repository, or none that the credential may see
	closed              // it asks for a credential
	denied              // it does not take the credential
	unknown             // ssh does not know the host's key
	missing             // it has no such commit
	large               // it is beyond the limit
	barred              // a protocol that is not allowed
	whole               // the server gives out no single commit
)

// classify finds out what a failure means, by the words with which git, its helpers and ssh name causes: the first of
// these that was said decides. It is pure.
func classify(said string) kind {
	for _, sign := range []struct {
		words string
		kind  kind
	}{
		{"File too large", large},
		{"died of signal 25", large},
		{"Server does not allow request for unadvertised object", whole},
		{"does not support shallow", whole},
		{"not our ref", missing},
		{"couldn't find remote ref", missing},
		{"terminal prompts disabled", closed},
		{"Authentication failed", denied},
		{"The requested URL returned error: 401", denied},
		{"The requested URL returned error: 403", denied},
		{"Host key verification failed", unknown},
		{"Permission denied (", denied},
		{"' not allowed", barred},
		{"' not found", absent},
		{"Repository not found", absent},
		{"does not appear to be a git repository", absent},
		{"The requested URL returned error: 404", absent},
	} {
		if strings.Contains(said, sign.words) {
			return sign.kind
		}
	}
	return again
}

// wantsAll reports whether the server gives out no single commit, but the refs that lead to it.
func wantsAll(err error) bool {
	var f *failure
	return errors.As(err, &f) && classify(f.said) == whole
}

// explain says what a failure means: a refusal, or an error that another try may not have.
func (s *session) explain(ctx context.Context, doing string, err error) error {
	url, name := s.repository.URL, s.repository.Credential
	if ctx.Err() != nil {
		return fmt.Errorf("repository %s: %s: %w", url, doing, context.Cause(ctx))
	}
	var f *failure
	if !errors.As(err, &f) {
		return fmt.Errorf("repository %s: %s: %w", url, doing, err)
	}
	const gone = fulmarv1.ReasonCode_REASON_CODE_NOT_FOUND
	switch classify(f.said) {
	case absent:
		return messages.Refuse(gone, "repository %s is not there, or not for %s: %w", url, bearer(name), f)
	case closed:
		if name != "" {
			return messages.Refuse(gone, "repository %s: it is redirected to another server, which asks for a credential, and credential %s is not for that", url, name)
		}
		return messages.Refuse(gone, "repository %s asks for a credential, and the request names none", url)
	case denied:
		return messages.Refuse(gone, "repository %s does not let %s in: %w", url, bearer(name), f)
	case unknown:
		return messages.Refuse(gone, "repository %s: the key of its host is not among the builder's known hosts", url)
	case missing:
		return messages.Refuse(gone, "repository %s: %s: it is not there", url, doing)
	case large:
		return messages.Refuse(fulmarv1.ReasonCode_REASON_CODE_BUILD, "repository %s: %s: it has more than %d MB", url, doing, s.client.config.MaxSize>>20)
	case barred:
		return messages.Refuse(fulmarv1.ReasonCode_REASON_CODE_POLICY, "repository %s: %w", url, f)
	}
	return fmt.Errorf("repository %s: %s: %w", url, doing, f)
}

func bearer(credential string) string {
	if credential == "" {
		return "somebody without a credential"
	}
	return "credential " + credential
}
