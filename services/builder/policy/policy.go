// Package policy is what a builder takes: from which sources, and signed by whom. A policy is a YAML file of the builder:
//
//	allow:                                  # the first rule that fits a source decides; what none fits is refused
//	  - source: git+https://git.example/unikernels/**
//	  - source: docker:registry.example/*:live
//	    signed: [release, ci]               # by any of these keys
//	keys:
//	  release: RWQ...                       # of minisign
//	  ci: |                                 # of cosign, or any of ECDSA, Ed25519 and RSA
//	    -----BEGIN PUBLIC KEY-----
//
// In the pattern of a source * stands for anything without a slash and ** for anything. What a source is called says
// [Source]. It is pure but for the image that [Policy.Verify] reads.
//
// The invariant it guards: nothing is fetched from a source that no rule fits, and no image of a source that must be
// signed is deployed without a good signature over its bytes.
package policy

import (
	"errors"
	"fmt"
	"maps"
	"os"
	"regexp"
	"slices"
	"strings"

	"sigs.k8s.io/yaml"

	"fulmar/messages"
	fulmarv1 "fulmar/messages/fulmar/v1"
)

// Policy is what a builder takes. The policy that is nil takes everything.
type Policy struct {
	rules []rule
	keys  map[string]key
}

// rule is about the sources that its pattern fits.
type rule struct {
	pattern   *regexp.Regexp
	ref       *regexp.Regexp // of a Git repository; nil: any
	signed    []string
	additions bool
}

// document is the form of the file.
type document struct {
	Allow []struct {
		// Source is the pattern of the sources that the rule is about. For Git it may end in # and a pattern of refs.
		Source string `json:"source"`
		// Signed are names of keys, one of which must have signed the image. Empty: none need have.
		Signed []string `json:"signed"`
		// Additions says whether a request may add build arguments, instructions and a base image to a build.
		Additions bool `json:"additions"`
	} `json:"allow"`
	Keys map[string]string `json:"keys"`
}

// kinds are what the pattern of a source begins with.
var kinds = regexp.MustCompile(`^(\*\*|git\+|https?:|docker:|oci:|file:|object:)`)

// Load reads the policy of a file. The empty path is no policy.
func Load(path string) (*Policy, error) {
	if path == "" {
		return nil, nil
	}
	text, err := os.ReadFile(path)
	if err != nil {
		return nil, fmt.Errorf("read the policy: %w", err)
	}
	p, err := Parse(text)
	if err != nil {
		return nil, fmt.Errorf("policy %s: %w", path, err)
	}
	return p, nil
}

// Parse reads a policy.
func Parse(text []byte) (*Policy, error) {
	var d document
	if err := yaml.UnmarshalStrict(text, &d); err != nil {
		return nil, err
	}
	if len(d.Allow) == 0 {
		return nil, errors.New("it allows no source")
	}
	p := &Policy{keys: map[string]key{}}
	for name, text := range d.Keys {
		k, err := parseKey(text)
		if err != nil {
			return nil, fmt.Errorf("key %s: %w", name, err)
		}
		p.keys[name] = k
	}
	for _, a := range d.Allow {
		if !kinds.MatchString(a.Source) {
			return nil, fmt.Errorf("source %q is the pattern of no source: it begins with git+, http, docker:, oci:, file:, object: or **", a.Source)
		}
		for _, name := range a.Signed {
			if p.keys[name] == nil {
				return nil, fmt.Errorf("source %q is to be signed by %s, and there is no such key", a.Source, name)
			}
		}
		r := rule{signed: a.Signed, additions: a.Additions}
		name, ref, ok := strings.Cut(a.Source, "#")
		if ok {
			r.ref = compile(ref)
		}
		r.pattern = compile(name)
		p.rules = append(p.rules, r)
	}
	return p, nil
}

// compile makes a pattern of sources a regular expression. Only what ends the pattern stands for the query of a URL too:
// what follows a wildcard is to be found in the path, not in a query after the path of something else.
func compile(pattern string) *regexp.Regexp {
	begin := strings.TrimRight(pattern, "*")
	text := regexp.QuoteMeta(begin)
	text = strings.ReplaceAll(text, `\*\*`, `[^?]*`)
	text = strings.ReplaceAll(text, `\*`, `[^/?]*`)
	switch stars := len(pattern) - len(begin); {
	case stars == 1:
		text += `[^/]*`
	case stars > 1:
		text += `.*`
	}
	return regexp.MustCompile(`^(?s:` + text + `)$`)
}

// find gives the rule for a source.
func (p *Policy) find(s source) (rule, bool) {
	for _, r := range p.rules {
		if r.pattern.MatchString(s.name) && (r.ref == nil || r.ref.MatchString(s.ref)) {
			return r, true
		}
	}
	return rule{}, false
}

// Allow refuses the source of an image that no rule fits, before anything is fetched from it.
func (p *Policy) Allow(i *fulmarv1.Image) error {
	if p == nil {
		return nil
	}
	r, err := p.rule(i)
	if err != nil {
		return err
	}
	if url := i.GetSha256Url(); url != "" { // it decides what the image is
		if _, err := p.rule(&fulmarv1.Image{Source: &fulmarv1.Image_Url{Url: url}}); err != nil {
			return err
		}
	}
	if what := added(i.GetGit()); what != "" && !r.additions {
		return refuse("the request adds %s to the build of %s, which this builder does not take (additions)", what, messages.SourceText(i))
	}
	return nil
}

func (p *Policy) rule(i *fulmarv1.Image) (rule, error) {
	s, err := sourceOf(i)
	if err != nil {
		return rule{}, refuse("source %s: %w", messages.SourceText(i), err)
	}
	r, ok := p.find(s)
	if !ok {
		return rule{}, refuse("source %s is none that this builder takes from", s)
	}
	return r, nil
}

// added names what a request adds to a build, which could make another image of any source.
func added(g *fulmarv1.GitSource) string {
	switch {
	case len(g.GetDockerfile().GetArgs()) > 0:
		return "build arguments"
	case len(g.GetMirage().GetInstructions()) > 0:
		return "instructions"
	case g.GetMirage().GetBase() != "":
		return "a base image"
	}
	return ""
}

// Signers names the keys one of which must have signed an image of an allowed source. None: it need not be signed.
func (p *Policy) Signers(i *fulmarv1.Image) []string {
	if p == nil {
		return nil
	}
	r, err := p.rule(i)
	if err != nil {
		return nil
	}
	return slices.Clone(r.signed)
}

// Verify refuses an image of an allowed source, in a file, that must be signed and that none of the signatures is good for.
func (p *Policy) Verify(i *fulmarv1.Image, f *os.File, signatures []string) error {
	signers := p.Signers(i)
	if len(signers) == 0 {
		return nil
	}
	if len(signatures) == 0 {
		return refuse("an image of %s must be signed by %s, and it has no signature", messages.SourceText(i), strings.Join(signers, " or "))
	}
	b, err := newBody(f)
	if err != nil {
		return err
	}
	var why []string
	for n, s := range signatures {
		err := p.check(b, s, signers)
		if err == nil {
			return nil
		}
		if b.broken != nil {
			return fmt.Errorf("check a signature: %w", b.broken)
		}
		why = append(why, fmt.Sprintf("signature %d %s", n+1, err))
	}
	return refuse("an image of %s must be signed by %s: %s", messages.SourceText(i), strings.Join(signers, " or "), strings.Join(slices.Compact(why), "; "))
}

// check looks whether a signature is by one of the signers.
func (p *Policy) check(b *body, signature string, signers []string) error {
	s, err := parseSignature(signature)
	if err != nil {
		return err
	}
	var last error
	for _, name := range slices.Sorted(maps.Keys(p.keys)) {
		if !slices.Contains(signers, name) {
			continue
		}
		if err = p.keys[name].verify(b, s); err == nil {
			return nil
		}
		if last == nil || !errors.Is(err, errOtherKey) { // the most telling
			last = err
		}
	}
	return last
}

func refuse(format string, args ...any) error {
	return messages.Refuse(fulmarv1.ReasonCode_REASON_CODE_POLICY, "policy: "+format, args...)
}
