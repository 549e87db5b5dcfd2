package main

import (
	"cmp"
	"context"
	"crypto/x509"
	"errors"
	"fmt"
	"net"
	"time"

	"fulmar/albatross"
	"fulmar/albatross/remote"
	"fulmar/albatross/wirejson"
)

type albatrossCmd struct {
	Dir     string        `env:"ALBATROSS_DIR" default:"/run/fulmar" help:"Run directory of the daemon on this machine."`
	Remote  string        `env:"ALBATROSS_REMOTE" placeholder:"HOST:PORT" help:"TLS endpoint of a daemon on another machine, asked in place of --dir. Needs --cert and --key."`
	CA      string        `name:"ca" env:"ALBATROSS_CA" placeholder:"FILE" help:"Root CA of the endpoint (default: the root in --cert)."`
	Cert    string        `env:"ALBATROSS_CERT" placeholder:"FILE" help:"Certificate of the CA that signs commands, and those up to the root. Names are in the CA's path."`
	Key     string        `env:"ALBATROSS_KEY" placeholder:"FILE" help:"Private key of --cert."`
	Timeout time.Duration `default:"1m" help:"For an answer."`

	Create      albatrossCreateCmd      `cmd:"" help:"Start a unikernel."`
	Destroy     albatrossDestroyCmd     `cmd:"" help:"Stop a unikernel."`
	Restart     albatrossRestartCmd     `cmd:"" help:"Stop a unikernel and start it again; what is given replaces what it had. Whether it is told its name is not kept: give --no-add-name again."`
	Info        albatrossInfoCmd        `cmd:"" help:"List what runs."`
	Get         albatrossGetCmd         `cmd:"" help:"Fetch the image of a unikernel."`
	Console     albatrossConsoleCmd     `cmd:"" help:"Print what a unikernel prints."`
	Consoles    albatrossConsolesCmd    `cmd:"" help:"List unikernels that run no more, and whose last lines are kept."`
	Stats       albatrossStatsCmd       `cmd:"" help:"Print what unikernels use, as it is measured."`
	StatsAdd    albatrossStatsAddCmd    `cmd:"" name:"stats-add" help:"Watch a process that is no unikernel of the daemon's, too."`
	StatsRemove albatrossStatsRemoveCmd `cmd:"" name:"stats-remove" help:"Watch it no more."`
	Influx      albatrossInfluxCmd      `cmd:"" help:"Send what unikernels use to a time series database, as albatross-influx does."`
	Policy      albatrossPolicyCmd      `cmd:"" help:"List, add and remove policies."`
	Block       albatrossBlockCmd       `cmd:"" help:"List, add, fill, dump and remove block devices."`
	Generate    albatrossGenerateCmd    `cmd:"" help:"Make a root CA and the certificate of an endpoint."`
	CSR         albatrossCSRCmd         `cmd:"" name:"csr" help:"Make a key and a request that asks a CA to sign a command, or to delegate a path."`
	Sign        albatrossSignCmd        `cmd:"" help:"Sign a request with the CA of --cert and --key."`
	Certificate albatrossCertificateCmd `cmd:"" help:"Have the command carried out that stands in the certificate --cert."`
}

// Help shows how the parts go together.
func (*albatrossCmd) Help() string {
	return `On the machine of the daemon: fulmar albatross create hello hello.spt --net service:br0 --arg=--ipv4=10.0.0.2/24

From another machine, by certificates. Once, where the root CA is kept:
  fulmar albatross generate tls          # cacert.pem and ca.key, server.pem and server.key
and with cacert.pem, server.pem and server.key in /etc/fulmar/tls on the machine of the daemon:
  fulmar-tls --listen :1025
Then, in one step, with the key of the CA at hand:
  fulmar albatross info --remote HOST:1025 --cert tls/cacert.pem --key tls/ca.key
To let somebody else manage what is below user:, within limits:
  fulmar albatross csr policy user --unikernels 4 --memory 256 --bridge br0     # they: user.req and user.key
  fulmar albatross sign user.req --cert tls/cacert.pem --key tls/ca.key         # you: user.pem
  fulmar albatross create hello hello.spt --remote HOST:1025 --ca cacert.pem --cert user.pem --key user.key
Or one command: csr it, have it signed, and use it with: fulmar albatross certificate`
}

// target is what a command asks: a daemon here or afar, and the path that names are in.
type target struct {
	*albatross.Client
	endpoint *remote.Endpoint // nil if the daemon is on this machine
	path     albatross.Path
}

// target finds whom to ask.
func (c *albatrossCmd) target() (*target, error) {
	if c.Remote == "" {
		return &target{Client: &albatross.Client{Dir: c.Dir}}, nil
	}
	ca, err := c.authority()
	if err != nil {
		return nil, err
	}
	path, err := ca.Path()
	if err != nil {
		return nil, fmt.Errorf("CA of %s: %w", c.Cert, err)
	}
	roots, err := c.roots(ca.Chain)
	if err != nil {
		return nil, err
	}
	e := &remote.Endpoint{Address: c.Remote, Roots: roots, CA: ca}
	return &target{Client: e.Client(), endpoint: e, path: path}, nil
}

// authority reads the CA of --cert and --key.
func (c *albatrossCmd) authority() (*remote.Authority, error) {
	if c.Cert == "" || c.Key == "" {
		return nil, errors.New("give the CA's certificate and key with --cert and --key")
	}
	return remote.LoadAuthority(c.Cert, c.Key)
}

// roots are what an endpoint is trusted by: the file of --ca, or the root at the end of a chain.
func (c *albatrossCmd) roots(chain []*x509.Certificate) (*x509.CertPool, error) {
	if c.CA == "" && len(chain) > 0 && chain[len(chain)-1].CheckSignatureFrom(chain[len(chain)-1]) != nil {
		return nil, fmt.Errorf("%s does not end with the root: give it with --ca", c.Cert)
	}
	return remote.LoadRoots(c.CA, chain)
}

// name is a name as the user wrote it: afar, one in the root is in the CA's path.
func (d *target) name(s string) (albatross.Name, error) {
	n, err := albatross.ParseName(cmp.Or(s, ":"))
	if err == nil && n.Path().IsRoot() {
		n = d.path.Join(n)
	}
	return n, err
}

// one is the name of one thing.
func (d *target) one(s string) (albatross.Name, error) {
	n, err := d.name(s)
	if err == nil && !n.HasLabel() {
		err = fmt.Errorf("%s is a path and names nothing", n)
	}
	return n, err
}

// pathOf is a path as the user wrote it, with or without a colon at its end.
func (d *target) pathOf(s string) (albatross.Path, error) {
	n, err := d.name(s)
	if err != nil || !n.HasLabel() {
		return n.Path(), err
	}
	return albatross.ParsePath(n.String())
}

// ask runs f with a daemon and the time that an answer may take.
func (e *env) ask(f func(ctx context.Context, d *target) error) error {
	d, err := e.cli.Albatross.target()
	if err != nil {
		return err
	}
	return e.askDaemon(d, f)
}

func (e *env) askDaemon(d *target, f func(ctx context.Context, d *target) error) error {
	ctx, cancel := context.WithTimeoutCause(e.ctx, e.cli.Albatross.Timeout, fmt.Errorf("no answer in %v (see --timeout)", e.cli.Albatross.Timeout))
	defer cancel()
	return explain(f(ctx, d))
}

// transfer runs f with a daemon for as long as it takes.
func (e *env) transfer(f func(ctx context.Context, d *target) error) error {
	d, err := e.cli.Albatross.target()
	if err != nil {
		return err
	}
	return explain(f(e.ctx, d))
}

// follow runs f with a daemon until the user has seen enough.
func (e *env) follow(f func(ctx context.Context, d *target) error) error {
	d, err := e.cli.Albatross.target()
	if err != nil {
		return err
	}
	return e.followDaemon(d, f)
}

func (e *env) followDaemon(d *target, f func(ctx context.Context, d *target) error) error {
	err := f(e.ctx, d)
	if e.ctx.Err() != nil || errors.Is(err, errEnough) {
		return nil
	}
	return explain(err)
}

// errEnough ends a subscription.
var errEnough = errors.New("enough")

// explain says what to do about an error.
func explain(err error) error {
	dial, dialed := errors.AsType[*net.OpError](err)
	switch {
	case dialed && dial.Op == "dial" && dial.Net == "unix":
		return fmt.Errorf("%w; does the daemon run there, and may you use its sockets? see --dir and --remote", err)
	case errors.Is(err, albatross.ErrNoReply):
		return fmt.Errorf("%w: it does not know the command, or may not take it from us", err)
	case errors.Is(err, remote.ErrRefused):
		return fmt.Errorf("%w: it is not of the endpoint's root CA, or expired", err)
	}
	return err
}

// done tells the user what was done.
func (e *env) done(what string, name albatross.Name) error {
	if e.cli.JSON {
		return e.printJSON(map[string]string{"name": name.String(), "result": what})
	}
	_, err := fmt.Fprintln(e.out, what, name)
	return err
}

// printWire prints one of albatross's values as JSON.
func (e *env) printWire(v any) error {
	text, err := wirejson.Value(v)
	if err != nil {
		return err
	}
	_, err = fmt.Fprintln(e.out, string(text))
	return err
}
