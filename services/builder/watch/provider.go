package watch

import (
	"crypto/hmac"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"mime"
	"net/url"
	"path"
	"strings"
)

// provider is a server of repositories, with the way in which it signs its webhooks and names its events.
type provider struct {
	name, title string
	event       string   // header with the event
	pushes      []string // events after which a branch or a tag may be another
	signature   string   // header
	prefix      string   // of the signature
	token       bool     // whether the header is the secret itself instead of a signature
	unverified  string   // what who sends no good signature is told
}

func providers() []provider {
	return []provider{
		{
			name: "github", title: "GitHub", event: "X-GitHub-Event", pushes: []string{"push"}, signature: "X-Hub-Signature-256", prefix: "sha256=",
			unverified: "X-Hub-Signature-256 is not the signature of this body with a secret that is known here",
		},
		{
			name: "gitea", title: "Gitea", event: "X-Gitea-Event", pushes: []string{"push", "create"}, signature: "X-Gitea-Signature",
			unverified: "X-Gitea-Signature is not the signature of this body with a secret that is known here",
		},
		{
			name: "gitlab", title: "GitLab", event: "X-Gitlab-Event", pushes: []string{"Push Hook", "Tag Push Hook"}, signature: "X-Gitlab-Token", token: true,
			unverified: "X-Gitlab-Token is not a secret that is known here",
		},
	}
}

// header is the part of an http.Header that is read here.
type header interface{ Get(string) string }

// authentic reports whether a webhook was sent by someone who knows one of the secrets. How long that takes tells nothing
// of them. An empty secret is none.
func (p provider) authentic(h header, body []byte, secrets []string) bool {
	given, ok := strings.CutPrefix(h.Get(p.signature), p.prefix)
	good := false
	for _, secret := range secrets {
		if secret != "" && hmac.Equal(p.sign(secret, body), p.claimed(given)) && ok {
			good = true
		}
	}
	return good
}

// sign is what the header of an authentic webhook claims.
func (p provider) sign(secret string, body []byte) []byte {
	if p.token { // of equal length, whatever was sent
		sum := sha256.Sum256([]byte(secret))
		return sum[:]
	}
	mac := hmac.New(sha256.New, []byte(secret))
	mac.Write(body)
	return mac.Sum(nil)
}

// claimed is what a header claims; it is empty when that cannot be read.
func (p provider) claimed(given string) []byte {
	if p.token {
		sum := sha256.Sum256([]byte(given))
		return sum[:]
	}
	mac, err := hex.DecodeString(given)
	if err != nil {
		return nil
	}
	return mac
}

// repositories gives the URLs by which a webhook names its repository. Its body is JSON, or a form that has it as payload.
func repositories(contentType string, body []byte) ([]string, error) {
	if kind, _, err := mime.ParseMediaType(contentType); err == nil && kind == "application/x-www-form-urlencoded" {
		form, err := url.ParseQuery(string(body))
		if err != nil {
			return nil, errors.New("the form cannot be read")
		}
		body = []byte(form.Get("payload"))
	}
	var push struct {
		Repository map[string]any `json:"repository"`
		Project    map[string]any `json:"project"`
	}
	if err := json.Unmarshal(body, &push); err != nil {
		return nil, errors.New("the body is no JSON of a push")
	}
	var urls []string
	for _, from := range []map[string]any{push.Repository, push.Project} {
		for _, key := range []string{"clone_url", "ssh_url", "git_url", "git_http_url", "git_ssh_url", "html_url", "web_url"} {
			if s, ok := from[key].(string); ok && s != "" {
				urls = append(urls, s)
			}
		}
	}
	if len(urls) == 0 {
		return nil, errors.New("the push names no URL of a repository")
	}
	return urls, nil
}

// repository gives the one form of all URLs of a repository: host and path in lower case, without scheme, user, port and
// the suffix .git. It is empty for what is no URL. Two repositories of one form cost a look that finds nothing.
func repository(s string) string {
	var host, file string
	if strings.Contains(s, "://") {
		u, err := url.Parse(s)
		if err != nil {
			return ""
		}
		host, file = u.Hostname(), u.Path
	} else { // user@host:path
		var ok bool
		if host, file, ok = strings.Cut(s, ":"); !ok || strings.Contains(host, "/") {
			return ""
		}
		host = host[strings.LastIndex(host, "@")+1:]
	}
	p := strings.TrimSuffix(path.Clean("/"+strings.TrimSuffix(file, "/")), ".git")
	if p == "/" {
		return ""
	}
	return strings.ToLower(strings.TrimSuffix(host, ".") + p)
}
