package git

import (
	"fmt"
	"net/url"
	"path"
	"path/filepath"
	"strings"

	"fulmar/messages"
)

// remote is the URL of a repository, taken apart.
type remote struct {
	scheme string // http, https, ssh or file
	user   string // of ssh
	host   string // with its port
	path   string
	short  bool // ssh as user@host:path, whose path is taken from the user's home
}

// parseRemote reads the URL of a repository, and refuses what git would take for anything else.
func parseRemote(s string) (remote, error) {
	if !strings.Contains(s, "://") {
		login, p, ok := strings.Cut(s, ":")
		user, host, ok2 := strings.Cut(login, "@")
		if !ok || !ok2 || host == "" || p == "" || strings.HasPrefix(s, "-") || strings.HasPrefix(host, "-") || strings.Contains(login, "/") {
			return remote{}, fmt.Errorf("%q is not the URL of a repository", messages.ShownURL(s))
		}
		return remote{scheme: "ssh", user: user, host: host, path: p, short: true}, nil
	}
	u, err := url.Parse(s)
	if err != nil {
		return remote{}, fmt.Errorf("%q is not the URL of a repository", messages.ShownURL(s))
	}
	r := remote{scheme: u.Scheme, user: u.User.Username(), host: u.Host, path: u.Path}
	if _, secret := u.User.Password(); secret || r.user != "" && r.scheme != "ssh" {
		return remote{}, fmt.Errorf("%s has a credential in it", messages.ShownURL(s))
	}
	switch {
	case r.scheme == "file" && r.host == "" && strings.HasPrefix(r.path, "/"):
	case (r.scheme == "http" || r.scheme == "https" || r.scheme == "ssh") && r.host != "" && !strings.HasPrefix(r.host, "-") && !strings.HasPrefix(r.user, "-") && r.path != "":
	default:
		return remote{}, fmt.Errorf("%q is not the http, https, ssh or file URL of a repository", messages.ShownURL(s))
	}
	return r, nil
}

// String is the URL as git takes it.
func (r remote) String() string {
	if r.short {
		return r.user + "@" + r.host + ":" + r.path
	}
	u := url.URL{Scheme: r.scheme, Host: r.host, Path: r.path}
	if r.user != "" {
		u.User = url.User(r.user)
	}
	return u.String()
}

// origin is what a credential belongs to.
func (r remote) origin() string { return r.scheme + "://" + r.host }

// join finds the repository of a submodule, whose URL may be relative to that of the repository that holds it.
func (r remote) join(module string) (remote, error) {
	if !strings.HasPrefix(module, "./") && !strings.HasPrefix(module, "../") {
		return parseRemote(module)
	}
	r.path = path.Join(r.path, module)
	if strings.HasPrefix(r.path, "../") || r.path == ".." || r.path == "/" {
		return remote{}, fmt.Errorf("%q leads out of the server", module)
	}
	return r, nil
}

// below finds the directory of a repository of a file URL, which must be below root whatever links lead to it.
func (r remote) below(root string) (string, error) {
	real, err := filepath.EvalSymlinks(r.path)
	if err != nil {
		return "", err
	}
	inside, err := filepath.Rel(root, real)
	if err != nil || inside == ".." || strings.HasPrefix(inside, "../") {
		return "", fmt.Errorf("it is not below %s, where this builder takes files from", root)
	}
	return real, nil
}
