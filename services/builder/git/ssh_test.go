package git_test

import (
	"bytes"
	"crypto/ed25519"
	"crypto/rand"
	"encoding/pem"
	"errors"
	"io"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"testing"

	"golang.org/x/crypto/ssh"
	"golang.org/x/crypto/ssh/knownhosts"

	"fulmar/services/builder/git"
)

// sshServer is a server of SSH for git, which asks for the key of a user. It is not sshd, so that the tests install no service on the machine
// they run on; the client is the real one.
type sshServer struct {
	address string
	host    ssh.PublicKey
}

func newKey(t *testing.T) (private []byte, signer ssh.Signer) {
	t.Helper()
	_, key, err := ed25519.GenerateKey(rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	block, err := ssh.MarshalPrivateKey(key, "")
	if err != nil {
		t.Fatal(err)
	}
	signer, err = ssh.NewSignerFromKey(key)
	if err != nil {
		t.Fatal(err)
	}
	return pem.EncodeToMemory(block), signer
}

func serveSSH(t *testing.T, user string, allowed ssh.PublicKey) sshServer {
	t.Helper()
	_, host := newKey(t)
	config := &ssh.ServerConfig{PublicKeyCallback: func(c ssh.ConnMetadata, key ssh.PublicKey) (*ssh.Permissions, error) {
		if c.User() != user || !bytes.Equal(key.Marshal(), allowed.Marshal()) {
			return nil, errors.New("nobody we know")
		}
		return nil, nil
	}}
	config.AddHostKey(host)
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	var serving sync.WaitGroup
	t.Cleanup(func() {
		l.Close()
		serving.Wait()
	})
	serving.Go(func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			serving.Go(func() { serveConn(c, config) })
		}
	})
	return sshServer{address: l.Addr().String(), host: host.PublicKey()}
}

func serveConn(c net.Conn, config *ssh.ServerConfig) {
	defer c.Close()
	conn, channels, requests, err := ssh.NewServerConn(c, config)
	if err != nil {
		return
	}
	defer conn.Close()
	var serving sync.WaitGroup
	defer serving.Wait()
	serving.Go(func() { ssh.DiscardRequests(requests) })
	for ch := range channels {
		channel, requests, err := ch.Accept()
		if err != nil {
			return
		}
		serving.Go(func() { serveChannel(channel, requests) })
	}
}

// serveChannel runs the command that a client asks for as sshd does, by a shell.
func serveChannel(channel ssh.Channel, requests <-chan *ssh.Request) {
	defer channel.Close()
	var environment []string
	for r := range requests {
		var payload struct{ Name, Value string }
		switch r.Type {
		case "env":
			if ssh.Unmarshal(r.Payload, &payload) == nil {
				environment = append(environment, payload.Name+"="+payload.Value)
			}
			_ = r.Reply(true, nil)
		case "exec":
			var command struct{ Line string }
			_ = ssh.Unmarshal(r.Payload, &command)
			_ = r.Reply(true, nil)
			if strings.HasPrefix(command.Line, "git-upload-pack ") {
				runCommand(channel, command.Line, environment)
			}
			return
		default:
			_ = r.Reply(false, nil)
		}
	}
}

func runCommand(channel ssh.Channel, line string, environment []string) {
	cmd := exec.Command("sh", "-c", line)
	cmd.Env = append(append(os.Environ(), "GIT_CONFIG_COUNT=1", "GIT_CONFIG_KEY_0=safe.directory", "GIT_CONFIG_VALUE_0=*"), environment...)
	cmd.Stdout, cmd.Stderr = channel, channel.Stderr()
	in, err := cmd.StdinPipe()
	if err != nil || cmd.Start() != nil {
		return
	}
	var copying sync.WaitGroup
	defer copying.Wait()
	copying.Go(func() {
		_, _ = io.Copy(in, channel)
		in.Close()
	})
	var status struct{ Status uint32 }
	if cmd.Wait() != nil {
		status.Status = 1
	}
	_, _ = channel.SendRequest("exit-status", false, ssh.Marshal(status))
	channel.Close()
}

func TestOverSSH(t *testing.T) {
	w := newWorld(t)
	commit := w.repository(t, "www").commit(map[string]string{"a": "1"})
	right, signer := newKey(t)
	wrong, _ := newKey(t)
	for name, text := range map[string]string{"key": string(right), "key-of-git": "username=git\n" + string(right), "other-key": string(wrong), "broken-key": "-----BEGIN OPENSSH PRIVATE KEY-----\ns3cret\n"} {
		write(t, filepath.Join(string(w.config.Credentials), name), text)
	}
	server := serveSSH(t, "git", signer.PublicKey())
	url := "ssh://git@" + server.address + w.root + "/www"
	_, err := w.client.Resolve(t.Context(), git.Repository{URL: url, Credential: "key"}, "main")
	refused(t, err, notFound, "the key of its host is not among the builder's known hosts")
	write(t, w.known, knownhosts.Line([]string{server.address}, server.host)+"\n")
	for url, name := range map[string]string{url: "key", strings.Replace(url, "git@", "", 1): "key-of-git"} {
		r := git.Repository{URL: url, Credential: name}
		if got, err := w.client.Resolve(t.Context(), r, "main"); err != nil || got != commit {
			t.Errorf("Resolve with %s = %s, %v", name, got, err)
		}
		if got, err := w.fetch(t, r, commit, git.Context{}); err != nil || got["a"] != "1" {
			t.Errorf("Checkout with %s = %v, %v", name, got, err)
		}
	}
	for name, want := range map[string]string{"": "does not let somebody without a credential in", "other-key": "does not let credential other-key in", "broken-key": "does not let credential broken-key in"} {
		_, err := w.client.Resolve(t.Context(), git.Repository{URL: url, Credential: name}, "main")
		refused(t, err, notFound, want)
	}
	_, err = w.client.Resolve(t.Context(), git.Repository{URL: url + "x", Credential: "key"}, "main")
	refused(t, err, notFound, "does not appear to be a git repository")
	_, other := newKey(t)
	write(t, w.known, knownhosts.Line([]string{server.address}, other.PublicKey())+"\n")
	_, err = w.client.Resolve(t.Context(), git.Repository{URL: url, Credential: "key"}, "main")
	refused(t, err, notFound, "the key of its host is not among the builder's known hosts")
}
