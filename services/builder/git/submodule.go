package git

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"strings"

	"fulmar/messages"
	fulmarv1 "fulmar/messages/fulmar/v1"
)

const (
	maxModules = 32
	maxDepth   = 4
)

// submodule fetches a submodule at the commit that the entry names and writes its files. One that .gitmodules does not
// name is an empty directory, as git leaves it. The credential of the repository goes along only to the same server.
func (k *Checkout) submodule(ctx context.Context, a *archive, e entry, inside string) error {
	if err := a.directory(k, e.path); err != nil {
		return err
	}
	url, ok, err := k.module(ctx, inside)
	if err != nil || !ok {
		return err
	}
	refuse := func(format string, args ...any) error {
		return messages.Refuse(fulmarv1.ReasonCode_REASON_CODE_BUILD, "repository %s: submodule %s: %w", k.repository.URL, inside, fmt.Errorf(format, args...))
	}
	if k.depth == maxDepth {
		return refuse("it is deeper than %d", maxDepth)
	}
	r, err := k.session.url.join(url)
	if err != nil {
		return refuse("%w", err)
	}
	if r.scheme == "file" && k.session.url.scheme != "file" {
		return refuse("a repository of another machine cannot have files of this one")
	}
	module := Repository{URL: r.String()}
	if r.origin() == k.session.url.origin() {
		module.Credential = k.repository.Credential
	}
	m, err := k.client.checkout(ctx, module, e.object, k.depth+1)
	if err != nil {
		return fmt.Errorf("submodule %s: %w", inside, err)
	}
	defer m.Close()
	return m.write(ctx, a, e.object, ".", e.path)
}

// module finds the URL of the submodule that lies at a path of the repository.
func (k *Checkout) module(ctx context.Context, inside string) (url string, ok bool, err error) {
	if k.modules == nil {
		if k.modules, err = k.readModules(ctx); err != nil {
			return "", false, err
		}
	}
	url, ok = k.modules[inside]
	return url, ok && url != "", nil
}

func (k *Checkout) readModules(ctx context.Context) (map[string]string, error) {
	file, err := k.find(ctx, ".gitmodules")
	if errors.Is(err, fs.ErrNotExist) || err == nil && file.kind != "blob" {
		return map[string]string{}, nil
	}
	if err != nil {
		return nil, err
	}
	out, err := k.session.git(ctx, "config", "--null", "--no-includes", "--blob", file.object, "--list")
	if err != nil {
		return nil, k.session.explain(ctx, "read .gitmodules", err)
	}
	return parseModules(string(out)), nil
}

// parseModules reads what git config --list --null says of .gitmodules: URLs by path.
func parseModules(output string) map[string]string {
	paths, urls := map[string]string{}, map[string]string{}
	for item := range strings.SplitSeq(output, "\x00") {
		key, value, _ := strings.Cut(item, "\n")
		if name, ok := strings.CutPrefix(key, "submodule."); ok {
			if n, ok := strings.CutSuffix(name, ".path"); ok {
				paths[n] = value
			} else if n, ok := strings.CutSuffix(name, ".url"); ok {
				urls[n] = value
			}
		}
	}
	modules := map[string]string{}
	for name, p := range paths {
		modules[p] = urls[name]
	}
	return modules
}
