// Package credential reads the credentials that a builder holds for registries and repositories: one file each in a
// directory of the builder, found by its name. Requests, events and logs carry the name only.
//
// The invariants it guards: a credential shows nothing of itself, however it is printed or logged; and a password goes to
// no host but those that its file names, whatever a request says.
package credential

import (
	"errors"
	"fmt"
	"io"
	"io/fs"
	"log/slog"
	"net"
	"os"
	"path/filepath"
	"strings"

	"fulmar/messages"
	fulmarv1 "fulmar/messages/fulmar/v1"
)

// maxFile is the largest file that is read as a credential, in bytes.
const maxFile = 64 << 10

// privateKey begins the file of an SSH key, whatever its kind.
const privateKey = "-----BEGIN"

// Credential is a user name and a password (or a token in its place), or a private key of SSH.
type Credential struct {
	Username string
	Password string
	// Key is the text of a private key, for SSH. Then there is no password, and a user name only if a line before the
	// key gives one.
	Key []byte
	// Hosts are those that it is for, with a port or for all ports. A password is for no other; a key, of which ssh tells
	// nobody, is for all if there are none.
	Hosts []string
}

// For refuses a host that the credential is not for. The host may have a port, as in a URL.
func (c Credential) For(host string) error {
	name := host
	if n, _, err := net.SplitHostPort(host); err == nil {
		name = n
	}
	for _, h := range c.Hosts {
		if strings.EqualFold(h, host) || strings.EqualFold(h, name) {
			return nil
		}
	}
	if c.Password == "" && len(c.Hosts) == 0 {
		return nil
	}
	return fmt.Errorf("it is not for %s: its file has no line host=%s", host, name)
}

// String says nothing of the credential.
func (Credential) String() string { return "(credential)" }

// GoString says nothing of the credential.
func (Credential) GoString() string { return "(credential)" }

// LogValue says nothing of the credential.
func (Credential) LogValue() slog.Value { return slog.StringValue("(credential)") }

// Directory holds credentials, one file each. Empty: there are none.
type Directory string

// Load reads the credential of that name, and refuses a name that the directory has no usable file for. The empty name
// is no credential.
func (d Directory) Load(name string) (Credential, error) {
	if name == "" {
		return Credential{}, nil
	}
	if err := messages.CheckName("credential", name); err != nil { // it is the name of a file
		return Credential{}, messages.Refuse(fulmarv1.ReasonCode_REASON_CODE_INVALID, "%w", err)
	}
	if d == "" {
		return Credential{}, messages.Refuse(fulmarv1.ReasonCode_REASON_CODE_NOT_FOUND, "credential %s: this builder holds none (--credentials)", name)
	}
	text, err := read(filepath.Join(string(d), name))
	if errors.Is(err, fs.ErrNotExist) {
		return Credential{}, messages.Refuse(fulmarv1.ReasonCode_REASON_CODE_NOT_FOUND, "credential %s: this builder holds none of that name", name)
	}
	if err != nil {
		return Credential{}, fmt.Errorf("read credential %s: %w", name, err)
	}
	c, err := Parse(text)
	if err != nil {
		return Credential{}, messages.Refuse(fulmarv1.ReasonCode_REASON_CODE_INVALID, "credential %s: %w", name, err)
	}
	return c, nil
}

func read(path string) ([]byte, error) {
	f, err := os.Open(path)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	return io.ReadAll(io.LimitReader(f, maxFile+1))
}

// Parse reads the text of a credential: lines username=..., password=... and host=..., of which there may be several, empty lines and lines that begin with #;
// and from a line that begins with -----BEGIN on, a private key. Its errors quote nothing of the text but the names of
// fields.
func Parse(text []byte) (Credential, error) {
	if len(text) > maxFile {
		return Credential{}, fmt.Errorf("its file has more than %d bytes", maxFile)
	}
	var c Credential
	rest := string(text)
	for number := 1; rest != ""; number++ {
		if strings.HasPrefix(rest, privateKey) {
			c.Key = []byte(strings.TrimRight(strings.ReplaceAll(rest, "\r\n", "\n"), "\n") + "\n") // ssh reads no key whose last line does not end
			break
		}
		var line string
		line, rest, _ = strings.Cut(rest, "\n")
		line = strings.TrimSuffix(line, "\r")
		if line == "" || strings.HasPrefix(line, "#") {
			continue
		}
		if err := c.set(line); err != nil {
			return Credential{}, fmt.Errorf("line %d: %w", number, err)
		}
	}
	switch {
	case c.Key != nil && c.Password != "":
		return Credential{}, errors.New("it has both a password and a private key")
	case c.Key == nil && c.Password == "":
		return Credential{}, errors.New("it has neither a password nor a private key")
	}
	return c, nil
}

func (c *Credential) set(line string) error {
	field, value, ok := strings.Cut(line, "=")
	if !ok {
		return errors.New("it sets no field with =")
	}
	to := map[string]*string{"username": &c.Username, "password": &c.Password, "host": new(string)}[field]
	switch {
	case to == nil:
		return errors.New("it sets none of username, password and host")
	case value == "":
		return fmt.Errorf("%s is empty", field)
	case field == "host":
		c.Hosts = append(c.Hosts, value)
		return nil
	case *to != "":
		return fmt.Errorf("%s is set twice", field)
	}
	*to = value
	return nil
}
