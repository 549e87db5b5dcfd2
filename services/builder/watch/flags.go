package watch

import (
	"errors"
	"fmt"
	"os"
	"strings"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"fulmar/services/builder/credential"
)

// webhookCredential is the credential whose password is the secret of webhooks.
const webhookCredential = "webhook"

// maxSecrets bounds the file of secrets, in bytes.
const maxSecrets = 64 << 10

// Flags is what a command that runs a builder takes for its watches.
type Flags struct {
	Interval   time.Duration `name:"watch-interval" env:"BUILDER_WATCH_INTERVAL" default:"1m" help:"Time between two looks at a source that is watched."`
	Webhooks   string        `name:"webhooks" env:"BUILDER_WEBHOOKS" placeholder:"ADDR" help:"Address that takes webhooks of GitHub, GitLab and Gitea, as 127.0.0.1:9180. Empty: none."`
	SecretFile string        `name:"webhook-secret-file" env:"BUILDER_WEBHOOK_SECRET_FILE" placeholder:"FILE" help:"File with the secrets of webhooks, one a line, each of which is good (default: the password of the credential named webhook)."`
}

// Validate refuses an interval that would look without pause. It is called by kong.
func (f Flags) Validate() error {
	if f.Interval < time.Second {
		return fmt.Errorf("--watch-interval of %s is less than 1s", f.Interval)
	}
	return nil
}

// Config gives what the flags say to a watch. Webhooks without a secret are an error.
func (f Flags) Config(credentials credential.Directory, r prometheus.Registerer) (Config, error) {
	c := Config{Interval: f.Interval, Webhooks: f.Webhooks, Register: r}
	c.Secrets = func() ([]string, error) { return f.secrets(credentials) }
	if f.Webhooks == "" {
		return c, nil
	}
	if _, err := c.Secrets(); err != nil {
		return c, fmt.Errorf("--webhooks: %w", err)
	}
	return c, nil
}

// secrets reads the secrets of webhooks anew each time, so that they can be changed while the builder runs.
func (f Flags) secrets(credentials credential.Directory) ([]string, error) {
	if f.SecretFile == "" {
		c, err := credentials.Load(webhookCredential)
		return []string{c.Password}, err
	}
	info, err := os.Stat(f.SecretFile)
	if err != nil {
		return nil, fmt.Errorf("secrets of webhooks: %w", err)
	}
	if info.Size() > maxSecrets {
		return nil, fmt.Errorf("secrets of webhooks: %s has more than %d bytes", f.SecretFile, maxSecrets)
	}
	text, err := os.ReadFile(f.SecretFile)
	if err != nil {
		return nil, fmt.Errorf("secrets of webhooks: %w", err)
	}
	var secrets []string
	for line := range strings.Lines(string(text)) {
		if line = strings.TrimRight(line, "\r\n"); line != "" {
			secrets = append(secrets, line)
		}
	}
	if len(secrets) == 0 {
		return nil, errors.New("secrets of webhooks: " + f.SecretFile + " has none")
	}
	return secrets, nil
}
