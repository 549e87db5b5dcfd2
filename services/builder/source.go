package builder

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"net/http"
	"os"

	"google.golang.org/protobuf/encoding/protowire"

	"fulmar/messages"
	fulmarv1 "fulmar/messages/fulmar/v1"
	"fulmar/services/builder/policy"
)

// plan is how the image of a source is made: what it is known by, what is known of it before it is made, and what makes it.
type plan struct {
	kind string // of the source, for the metrics
	want string // SHA-256 that the image must have; empty: any
	key  string // of everything that goes into the image; empty: its bytes are all that it is known by
	// facts are the provenance; make adds to it. Without a key there is none.
	facts *fulmarv1.Build
	make  func(ctx context.Context, log *log, out *os.File) error
}

// sources plans images.
type sources struct {
	config Config
	images *images
	client *http.Client
	slots  chan struct{} // taken by the builds that run
}

func newSources(c Config, i *images) *sources {
	once := &http.Transport{Proxy: http.ProxyFromEnvironment, DisableKeepAlives: true} // nobody fetches an image twice
	return &sources{config: c, images: i, client: &http.Client{Transport: once, Timeout: c.Fetch, CheckRedirect: redirect(c.Policy)}, slots: make(chan struct{}, max(c.Recipes.Builds, 1))}
}

// maxRedirects is how often a server may name another place, one after another.
const maxRedirects = 10

// redirect tells whether a client may go to where a server redirects it: that must be a source too.
func redirect(p *policy.Policy) func(*http.Request, []*http.Request) error {
	return func(r *http.Request, via []*http.Request) error {
		if len(via) >= maxRedirects {
			return badImage("it was redirected %d times", maxRedirects)
		}
		if err := p.Allow(&fulmarv1.Image{Source: &fulmarv1.Image_Url{Url: r.URL.String()}}); err != nil {
			return fmt.Errorf("redirected from %s: %w", via[0].URL.Redacted(), err)
		}
		return nil
	}
}

// plan looks what a source is now: which commit, which Docker image.
func (s *sources) plan(ctx context.Context, i *fulmarv1.Image, l *log) (plan, error) {
	var p plan
	var err error
	switch source := i.GetSource().(type) {
	case *fulmarv1.Image_File:
		p = s.file(source.File)
	case *fulmarv1.Image_Object:
		p, err = s.object(source.Object, i.GetSha256())
	case *fulmarv1.Image_Url:
		p, err = s.url(ctx, i)
	case *fulmarv1.Image_Docker:
		p, err = s.docker(ctx, source.Docker, l)
	case *fulmarv1.Image_Oci:
		p, err = s.oci(source.Oci)
	case *fulmarv1.Image_Git:
		p, err = s.git(ctx, source.Git, l)
	default:
		err = badImage("the request names no source")
	}
	if i.GetSha256() != "" {
		p.want = i.GetSha256()
	}
	if p.key != "" {
		p.facts.Key, p.facts.Source = p.key, messages.SourceText(i)
	}
	return p, err
}

// object plans an image that is in the store.
func (s *sources) object(object, sha256 string) (plan, error) {
	if sha256 != "" && sha256 != object {
		return plan{}, badImage("object %s is not the image with SHA-256 %s", object, sha256)
	}
	return plan{kind: "object", want: object, make: func(ctx context.Context, _ *log, f *os.File) error {
		return s.images.fromStore(ctx, object, f)
	}}, nil
}

// keyVersion is in every key: it changes when the same words come to mean another image.
const keyVersion = "2"

// keyOf gives the key of an image: the SHA-256 of all that goes into it, each word with its length before it, so that no two
// lists of words are alike.
func keyOf(kind string, words ...string) string {
	raw := protowire.AppendString(nil, keyVersion)
	raw = protowire.AppendString(raw, kind)
	for _, w := range words {
		raw = protowire.AppendString(raw, w)
	}
	sum := sha256.Sum256(raw)
	return hex.EncodeToString(sum[:])
}
