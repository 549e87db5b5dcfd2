// Package git reads repositories for a builder: which commit a ref names, and the files of a commit as the context of a
// build. It runs git, with no configuration, hook or prompt of anybody's, and with no work tree: what a repository holds
// goes from its objects into a tar archive and never becomes files of this machine.
//
// State lies in one directory for temporary files, which ends with its client and, if that was killed, with the next.
//
// The invariant it guards: a credential reaches the server that it is for and nothing else, whatever is printed; and
// nothing is left of a call that ended, no process and no file.
package git

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"time"

	"fulmar/messages"
	fulmarv1 "fulmar/messages/fulmar/v1"
	"fulmar/services/builder/credential"
)

// Config is what a client is told.
type Config struct {
	Credentials credential.Directory // for repositories that ask for one
	KnownHosts  string               // the file of the host keys of SSH, besides /etc/ssh/ssh_known_hosts; empty: none
	FileRoot    string               // repositories of file URLs lie below it; empty: there are none
	Temp        string               // where temporary files go; empty: where the system has them
	MaxSize     int64                // bytes of a commit at most, packed and as files
	Ask         time.Duration        // for the refs of a repository at most
	Fetch       time.Duration        // for a commit at most
}

// Repository is a repository as a request names it.
type Repository struct {
	URL        string
	Credential string // the name of one; empty: none
}

// Client reads repositories. Its methods can be called at once.
type Client struct {
	config Config
	space  *space
}

// New makes a client, and removes what clients that were killed have left.
func New(c Config) (*Client, error) {
	if c.Temp == "" {
		c.Temp = os.TempDir()
	}
	if c.FileRoot != "" {
		root, err := filepath.EvalSymlinks(c.FileRoot)
		if err != nil {
			return nil, fmt.Errorf("find the root of repositories: %w", err)
		}
		c.FileRoot = root
	}
	if err := sweep(c.Temp); err != nil {
		return nil, err
	}
	s, err := newSpace(c.Temp)
	if err != nil {
		return nil, err
	}
	return &Client{config: c, space: s}, nil
}

// Close removes the client's temporary files. No call may be underway.
func (c *Client) Close() error { return c.space.remove() }

// Resolve asks the repository which commit a ref names: a branch, a tag, a full ref, or, when it is empty, HEAD. A
// commit in full names itself and nobody is asked. A ref that is not there is a refusal.
func (c *Client) Resolve(ctx context.Context, r Repository, ref string) (string, error) {
	if messages.IsCommit(ref) {
		return ref, nil
	}
	ctx, cancel := context.WithTimeout(ctx, c.config.Ask)
	defer cancel()
	s, err := c.open(r)
	if err != nil {
		return "", err
	}
	defer s.close()
	out, err := s.git(ctx, append([]string{"ls-remote", "--quiet", "--", s.remote}, candidates(ref)...)...)
	if err != nil {
		return "", s.explain(ctx, "ask for its refs", err)
	}
	commit, ok := pick(string(out), ref)
	if !ok {
		what := "HEAD that names a commit"
		if ref != "" {
			what = "branch, tag or ref " + ref
		}
		return "", messages.Refuse(fulmarv1.ReasonCode_REASON_CODE_NOT_FOUND, "repository %s has no %s", r.URL, what)
	}
	return commit, nil
}

// candidates are the full names that a ref can stand for, the likeliest first: like git clone, a branch goes before a
// tag. A tag that has an object of its own is also asked for by what it tags.
func candidates(ref string) []string {
	switch {
	case ref == "" || ref == "HEAD":
		return []string{"HEAD"}
	case strings.HasPrefix(ref, "refs/"):
		return []string{ref + "^{}", ref}
	}
	return []string{"refs/heads/" + ref, "refs/tags/" + ref + "^{}", "refs/tags/" + ref, "refs/" + ref}
}

// pick finds in the output of git ls-remote what the ref names.
func pick(output, ref string) (commit string, ok bool) {
	refs := map[string]string{}
	for line := range strings.Lines(output) {
		if commit, name, ok := strings.Cut(strings.TrimSuffix(line, "\n"), "\t"); ok && messages.IsCommit(commit) {
			refs[name] = commit
		}
	}
	for _, name := range candidates(ref) {
		if commit, ok := refs[name]; ok {
			return commit, true
		}
	}
	return "", false
}

// Checkout is one commit of a repository. It has no work tree.
type Checkout struct {
	client     *Client
	session    *session
	repository Repository
	commit     string
	time       time.Time         // of the commit
	modules    map[string]string // URLs of its submodules, by path
	depth      int               // of submodules within submodules
}

// Checkout fetches a commit, alone where the server gives out commits by name, else with all that it hangs from. The
// caller closes it.
func (c *Client) Checkout(ctx context.Context, r Repository, commit string) (*Checkout, error) {
	return c.checkout(ctx, r, commit, 0)
}

func (c *Client) checkout(ctx context.Context, r Repository, commit string, depth int) (*Checkout, error) {
	ctx, cancel := context.WithTimeout(ctx, c.config.Fetch)
	defer cancel()
	s, err := c.open(r)
	if err != nil {
		return nil, err
	}
	k := &Checkout{client: c, session: s, repository: r, commit: commit, depth: depth}
	if err := k.fetch(ctx); err != nil {
		s.close()
		return nil, err
	}
	return k, nil
}

// Close removes what was fetched.
func (k *Checkout) Close() { k.session.close() }

func (k *Checkout) fetch(ctx context.Context) error {
	s := k.session
	if _, err := s.git(ctx, "init", "--quiet", "--bare", "--template=", s.dir()); err != nil {
		return s.explain(ctx, "make room for it", err)
	}
	fetch := []string{"fetch", "--quiet", "--no-tags", "--no-write-fetch-head", "--no-recurse-submodules"}
	_, err := s.git(ctx, append(fetch, "--depth=1", "--", s.remote, k.commit)...)
	if wantsAll(err) {
		_, err = s.git(ctx, append(fetch, "--", s.remote, "+refs/heads/*:refs/heads/*", "+refs/tags/*:refs/tags/*")...)
	}
	if err != nil {
		return s.explain(ctx, "fetch commit "+k.commit, err)
	}
	return k.inspect(ctx)
}

// inspect sees that what was fetched is a commit, and when it was made.
func (k *Checkout) inspect(ctx context.Context) error {
	kind, err := k.session.git(ctx, "cat-file", "-t", k.commit)
	var failed *failure
	if errors.As(err, &failed) && ctx.Err() == nil {
		return messages.Refuse(fulmarv1.ReasonCode_REASON_CODE_NOT_FOUND, "repository %s has no commit %s", k.repository.URL, k.commit)
	}
	if err != nil {
		return k.session.explain(ctx, "read commit "+k.commit, err)
	}
	if kind := strings.TrimSpace(string(kind)); kind != "commit" {
		return messages.Refuse(fulmarv1.ReasonCode_REASON_CODE_NOT_FOUND, "repository %s: %s is a %s, not a commit", k.repository.URL, k.commit, kind)
	}
	out, err := k.session.git(ctx, "log", "-1", "--no-show-signature", "--format=%ct", k.commit)
	if err != nil {
		return k.session.explain(ctx, "read commit "+k.commit, err)
	}
	var seconds int64
	if _, err := fmt.Sscan(string(out), &seconds); err != nil {
		return fmt.Errorf("read the time of commit %s: %w", k.commit, err)
	}
	k.time = time.Unix(seconds, 0)
	return nil
}
