package git

import (
	"bytes"
	"context"
	"encoding/base64"
	"errors"
	"fmt"
	"io/fs"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"time"

	"fulmar/messages"
	fulmarv1 "fulmar/messages/fulmar/v1"
	"fulmar/services/builder/credential"
)

const (
	maxOutput = 1 << 20 // bytes that a command says at most; what is longer is read as a stream
	wait      = 5 * time.Second
)

// session is one use of a repository: its URL, its credential, and a directory of its own.
type session struct {
	client     *Client
	repository Repository
	url        remote
	remote     string // what git is told
	secret     credential.Credential
	path       string
	env        []string
}

// open checks the URL, reads the credential and makes the directory.
func (c *Client) open(r Repository) (*session, error) {
	u, err := parseRemote(r.URL)
	if err != nil {
		return nil, messages.Refuse(fulmarv1.ReasonCode_REASON_CODE_INVALID, "repository: %w", err)
	}
	s := &session{client: c, repository: r, url: u, remote: u.String()}
	if u.scheme == "file" {
		if s.remote, err = c.local(r, u); err != nil {
			return nil, err
		}
	}
	if s.secret, err = c.config.Credentials.Load(r.Credential); err != nil {
		return nil, err
	}
	if err := s.fits(); err != nil {
		return nil, err
	}
	if s.path, err = os.MkdirTemp(c.space.path, ""); err != nil {
		return nil, fmt.Errorf("make a directory for temporary files: %w", err)
	}
	if err := s.prepare(); err != nil {
		s.close()
		return nil, err
	}
	return s, nil
}

func (c *Client) local(r Repository, u remote) (string, error) {
	if c.config.FileRoot == "" {
		return "", messages.Refuse(fulmarv1.ReasonCode_REASON_CODE_INVALID, "repository %s: this builder takes no files (--file-root)", r.URL)
	}
	path, err := u.below(c.config.FileRoot)
	if errors.Is(err, fs.ErrNotExist) {
		return "", messages.Refuse(fulmarv1.ReasonCode_REASON_CODE_NOT_FOUND, "repository %s does not exist", r.URL)
	}
	if err != nil {
		return "", messages.Refuse(fulmarv1.ReasonCode_REASON_CODE_INVALID, "repository %s: %w", r.URL, err)
	}
	return remote{scheme: "file", path: path}.String(), nil
}

// fits refuses a credential that the repository has no use for, or that everybody on the way could read.
func (s *session) fits() error {
	problem := ""
	switch {
	case s.repository.Credential == "":
		return nil
	case s.url.scheme == "file":
		problem = "a file needs none"
	case s.url.scheme == "ssh" && s.secret.Key == nil:
		problem = "it has no private key, which ssh needs"
	case s.url.scheme != "ssh" && s.secret.Key != nil:
		problem = "it is a private key, which only ssh can use"
	case s.url.scheme == "http" && !loopback(s.url.host):
		problem = "it would be sent in clear text: use https"
	default:
		err := s.secret.For(s.url.host)
		if err == nil {
			return nil
		}
		return messages.Refuse(fulmarv1.ReasonCode_REASON_CODE_POLICY, "repository %s: credential %s: %w", s.repository.URL, s.repository.Credential, err)
	}
	return messages.Refuse(fulmarv1.ReasonCode_REASON_CODE_INVALID, "repository %s: credential %s: %s", s.repository.URL, s.repository.Credential, problem)
}

func loopback(host string) bool {
	if name, _, err := net.SplitHostPort(host); err == nil {
		host = name
	}
	ip := net.ParseIP(strings.Trim(host, "[]"))
	return host == "localhost" || ip != nil && ip.IsLoopback()
}

// passed are the variables of the builder's own environment that git gets: the way out, and whom to trust there.
var passed = []string{
	"PATH", "http_proxy", "https_proxy", "HTTPS_PROXY", "all_proxy", "ALL_PROXY", "no_proxy", "NO_PROXY",
	"SSL_CERT_FILE", "SSL_CERT_DIR", "GIT_SSL_CAINFO", "GIT_SSL_CAPATH",
}

// prepare makes the environment of git. The password is in it, never in an argument: only this user can read it there.
func (s *session) prepare() error {
	for _, name := range passed {
		if value, ok := os.LookupEnv(name); ok {
			s.env = append(s.env, name+"="+value)
		}
	}
	protocols := "https:http:ssh"
	if s.url.scheme == "file" {
		protocols = "file"
	}
	s.env = append(s.env, "HOME="+s.path, "LC_ALL=C", "GIT_DIR="+s.dir(), "GIT_CONFIG_NOSYSTEM=1", "GIT_CONFIG_GLOBAL="+s.client.space.settings(),
		"GIT_TERMINAL_PROMPT=0", "GIT_ALLOW_PROTOCOL="+protocols, "GIT_OPTIONAL_LOCKS=0")
	if s.secret.Password != "" {
		user := s.secret.Username
		if user == "" {
			user = "oauth2" // with a token any name does
		}
		s.env = append(s.env, "FULMAR_GIT_USERNAME="+user, "FULMAR_GIT_PASSWORD="+s.secret.Password, "GIT_CONFIG_COUNT=1",
			"GIT_CONFIG_KEY_0=credential."+s.url.origin()+".helper",
			`GIT_CONFIG_VALUE_0=!f() { test "$1" = get && printf 'username=%s\npassword=%s\n' "$FULMAR_GIT_USERNAME" "$FULMAR_GIT_PASSWORD"; }; f`)
	}
	if s.url.scheme == "ssh" {
		return s.prepareSSH()
	}
	return nil
}

func (s *session) prepareSSH() error {
	command := []string{
		"ssh", "-F", "none", "-o", "BatchMode=yes", "-o", "StrictHostKeyChecking=yes", "-o", "UpdateHostKeys=no", "-o", "IdentityAgent=none",
		"-o", "IdentitiesOnly=yes", "-o", "ConnectTimeout=30", "-o", "ServerAliveInterval=15", "-o", "ClearAllForwardings=yes", "-o", "UserKnownHostsFile=" + known(s.client.config.KnownHosts),
	}
	key := "none"
	if s.secret.Key != nil {
		key = filepath.Join(s.path, "key")
		if err := os.WriteFile(key, s.secret.Key, 0o600); err != nil {
			return fmt.Errorf("hand the key of credential %s to ssh: %w", s.repository.Credential, err)
		}
	}
	command = append(command, "-i", key)
	if s.secret.Username != "" {
		command = append(command, "-l", s.secret.Username)
	}
	for i := range command {
		command[i] = "'" + strings.ReplaceAll(command[i], "'", `'\''`) + "'"
	}
	s.env = append(s.env, "GIT_SSH_COMMAND="+strings.Join(command, " "), "GIT_SSH_VARIANT=ssh")
	return nil
}

func known(file string) string {
	if file == "" {
		return "none"
	}
	return strconv.Quote(file) // ssh takes a space for the end of a name
}

// dir is where git keeps the objects.
func (s *session) dir() string { return filepath.Join(s.path, "repository") }

func (s *session) close() { os.RemoveAll(s.path) }

// command is git with a limit for the size of each file that it writes. When ctx ends it is killed with all that it
// started.
func (s *session) command(ctx context.Context, args ...string) *exec.Cmd {
	limit := strconv.FormatInt(s.client.config.MaxSize/512+1, 10) // sh counts blocks
	cmd := exec.CommandContext(ctx, "sh", append([]string{"-c", `ulimit -f "$1"; shift; exec git "$@"`, "sh", limit}, args...)...)
	cmd.Dir = s.path
	cmd.Env = s.env
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true, Pdeathsig: syscall.SIGKILL}
	cmd.Cancel = func() error { return syscall.Kill(-cmd.Process.Pid, syscall.SIGKILL) }
	cmd.WaitDelay = wait
	return cmd
}

// git runs git to its end and gives its output.
func (s *session) git(ctx context.Context, args ...string) ([]byte, error) {
	cmd := s.command(ctx, args...)
	var out, said capped
	cmd.Stdout, cmd.Stderr = &out, &said
	if err := cmd.Run(); err != nil {
		return nil, s.failed(err, said)
	}
	if out.cut {
		return nil, fmt.Errorf("git %s said more than %d bytes", args[0], maxOutput)
	}
	return out.Bytes(), nil
}

// failed is the end of a git that did not do what it should, without the secret if it said that.
func (s *session) failed(err error, said capped) *failure {
	text := said.String()
	for _, secret := range []string{s.secret.Password, base64.StdEncoding.EncodeToString([]byte(s.secret.Username + ":" + s.secret.Password))} {
		if s.secret.Password != "" {
			text = strings.ReplaceAll(text, secret, "(credential)")
		}
	}
	return &failure{said: text, err: err}
}

// capped is a buffer that drops what is beyond its limit.
type capped struct {
	bytes.Buffer
	cut bool
}

func (c *capped) Write(p []byte) (int, error) {
	room := maxOutput - c.Len()
	if len(p) > room {
		c.cut = true
		c.Buffer.Write(p[:room])
		return len(p), nil
	}
	return c.Buffer.Write(p)
}
