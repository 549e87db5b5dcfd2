package main

import (
	"crypto"
	"crypto/x509"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"time"

	"fulmar/albatross"
	"fulmar/albatross/remote"
	"fulmar/albatross/wirejson"
)

const day = 24 * time.Hour

type albatrossGenerateCmd struct {
	Dir        string `arg:"" optional:"" default:"." help:"Where cacert.pem, ca.key, server.pem and server.key go. A CA that is there is kept."`
	Name       string `default:"ca" help:"Common name of the CA."`
	Server     string `default:"server" help:"Common name of the endpoint."`
	Days       int    `default:"3650" help:"For which the CA holds."`
	ServerDays int    `default:"365" help:"For which the endpoint's certificate holds."`
	KeyType    string `default:"ed25519" enum:"ed25519,p256,rsa" help:"Kind of the keys: ${enum}."`
}

// Run makes a root CA, unless there is one, and the certificate of an endpoint.
func (c *albatrossGenerateCmd) Run(e *env) error {
	now := time.Now()
	if err := os.MkdirAll(c.Dir, 0o755); err != nil {
		return err
	}
	ca, err := c.authority(e, now)
	if err != nil {
		return err
	}
	key, err := e.newKey(filepath.Join(c.Dir, "server.key"), c.KeyType)
	if err != nil {
		return err
	}
	server, err := ca.Server(c.Server, key.Public(), now, time.Duration(c.ServerDays)*day)
	if err != nil {
		return err
	}
	return e.create(filepath.Join(c.Dir, "server.pem"), remote.EncodeCertificates(server), 0o644)
}

func (c *albatrossGenerateCmd) authority(e *env, now time.Time) (*remote.Authority, error) {
	files := albatrossCmd{Cert: filepath.Join(c.Dir, "cacert.pem"), Key: filepath.Join(c.Dir, "ca.key")}
	if _, err := os.Stat(files.Cert); err == nil {
		return files.authority()
	}
	key, err := e.newKey(files.Key, c.KeyType)
	if err != nil {
		return nil, err
	}
	ca, err := remote.NewRoot(c.Name, key, now, time.Duration(c.Days)*day)
	if err != nil {
		return nil, err
	}
	return ca, e.create(files.Cert, remote.EncodeCertificates(ca.Chain...), 0o644)
}

// newKey makes a key and writes it to a file that only its owner can read.
func (e *env) newKey(file, kind string) (crypto.Signer, error) {
	key, err := remote.NewKey(kind)
	if err != nil {
		return nil, err
	}
	text, err := remote.EncodeKey(key)
	if err != nil {
		return nil, err
	}
	return key, e.create(file, text, 0o600)
}

// create writes a file that is not there yet.
func (e *env) create(file string, text []byte, mode os.FileMode) error {
	f, err := os.OpenFile(file, os.O_WRONLY|os.O_CREATE|os.O_EXCL, mode)
	if err != nil {
		return fmt.Errorf("write %s: %w", file, unwrapPath(err))
	}
	_, err = f.Write(text)
	if err := errors.Join(err, f.Close()); err != nil {
		return fmt.Errorf("write %s: %w", file, err)
	}
	fmt.Fprintln(e.err, "wrote", file)
	return nil
}

// unwrapPath is an error without the path that is told already.
func unwrapPath(err error) error {
	if p, ok := errors.AsType[*os.PathError](err); ok {
		return p.Err
	}
	return err
}

type albatrossCSRCmd struct {
	Out     string `placeholder:"FILE" help:"Start of the names FILE.req and FILE.key (default: the label)."`
	KeyType string `default:"ed25519" enum:"ed25519,p256,rsa" help:"Kind of the key: ${enum}."`

	Policy   csrPolicyCmd   `cmd:"" help:"Ask for a CA of a path: who has it can sign commands for what is in it."`
	Create   csrCreateCmd   `cmd:"" help:"Ask to start a unikernel."`
	Destroy  csrDestroyCmd  `cmd:"" help:"Ask to stop a unikernel."`
	Restart  csrRestartCmd  `cmd:"" help:"Ask to stop a unikernel and start it again."`
	Info     csrInfoCmd     `cmd:"" help:"Ask to list what runs."`
	Get      csrGetCmd      `cmd:"" help:"Ask to fetch the image of a unikernel."`
	Console  csrConsoleCmd  `cmd:"" help:"Ask to follow the console of a unikernel."`
	Stats    csrStatsCmd    `cmd:"" help:"Ask to follow statistics."`
	Policies csrPoliciesCmd `cmd:"" help:"Ask to list policies."`
	Block    csrBlockCmd    `cmd:"" help:"Ask for something about block devices."`
}

// csrName is whom a request is about.
type csrName struct {
	Label string `arg:"" help:"Label; the CA that signs adds its path."`
}

// csrWhere is what a request is about, or all in the CA's path.
type csrWhere struct {
	Label string `arg:"" optional:"" default:"." help:"Label (default: all in the path of the CA that signs)."`
}

type (
	csrPolicyCmd struct{ policyFlags }
	csrCreateCmd struct {
		createArgs
		WithoutImage bool `help:"Leave the image out: it is given when the certificate is used."`
	}
	csrDestroyCmd struct{ csrName }
	csrRestartCmd struct{ csrName }
	csrInfoCmd    struct{ csrWhere }
	csrGetCmd     struct {
		csrName
		Level int `name:"compression-level" default:"9" placeholder:"0-9" help:"Of the image on its way."`
	}
	csrConsoleCmd struct {
		csrName
		Lines int `short:"n" default:"20" help:"Last lines to print first."`
	}
	csrStatsCmd    struct{ csrWhere }
	csrPoliciesCmd struct{ csrWhere }
	csrBlockCmd    struct {
		Ls     csrBlockLsCmd     `cmd:"" help:"Ask to list block devices."`
		Add    csrBlockAddCmd    `cmd:"" help:"Ask to make a block device."`
		Set    csrBlockSetCmd    `cmd:"" help:"Ask to fill a block device."`
		Dump   csrBlockDumpCmd   `cmd:"" help:"Ask to fetch the content of a block device."`
		Remove csrBlockRemoveCmd `cmd:"" help:"Ask to remove a block device."`
	}
	csrBlockLsCmd  struct{ csrWhere }
	csrBlockAddCmd struct{ blockAddArgs }
	csrBlockSetCmd struct {
		csrName
		Compressed bool `help:"What is given with the certificate will be a zlib stream."`
	}
	csrBlockDumpCmd struct {
		csrName
		Level int `name:"compression-level" default:"9" placeholder:"0-9" help:"Of the content on its way."`
	}
	csrBlockRemoveCmd struct{ csrName }
)

// Run asks for the CA of a path.
func (c *csrPolicyCmd) Run(e *env) error {
	return e.request(c.Path, albatross.PolicyAdd{Policy: c.policy()})
}

// Run asks to start a unikernel.
func (c *csrCreateCmd) Run(e *env) error {
	cfg, err := c.config(9)
	if err != nil {
		return err
	}
	if c.WithoutImage {
		cfg.Image = nil
	}
	return e.request(c.Name, albatross.UnikernelCreate{Config: cfg, Force: c.Force})
}

// Run asks to stop a unikernel.
func (c *csrDestroyCmd) Run(e *env) error { return e.request(c.Label, albatross.UnikernelDestroy{}) }

// Run asks to restart a unikernel.
func (c *csrRestartCmd) Run(e *env) error { return e.request(c.Label, albatross.UnikernelRestart{}) }

// Run asks to list what runs.
func (c *csrInfoCmd) Run(e *env) error { return e.request(c.Label, albatross.UnikernelInfo{}) }

// Run asks to fetch an image.
func (c *csrGetCmd) Run(e *env) error {
	return e.request(c.Label, albatross.UnikernelGet{Level: c.Level})
}

// Run asks to follow a console.
func (c *csrConsoleCmd) Run(e *env) error {
	return e.request(c.Label, albatross.ConsoleSubscribe{Count: c.Lines})
}

// Run asks to follow statistics.
func (c *csrStatsCmd) Run(e *env) error { return e.request(c.Label, albatross.StatsSubscribe{}) }

// Run asks to list policies.
func (c *csrPoliciesCmd) Run(e *env) error { return e.request(c.Label, albatross.PolicyInfo{}) }

// Run asks to list block devices.
func (c *csrBlockLsCmd) Run(e *env) error { return e.request(c.Label, albatross.BlockInfo{}) }

// Run asks to make a block device.
func (c *csrBlockAddCmd) Run(e *env) error {
	return e.request(c.Name, albatross.BlockAdd{Size: c.Size})
}

// Run asks to fill a block device.
func (c *csrBlockSetCmd) Run(e *env) error {
	return e.request(c.Label, albatross.BlockSet{Compressed: c.Compressed})
}

// Run asks to fetch the content of a block device.
func (c *csrBlockDumpCmd) Run(e *env) error {
	return e.request(c.Label, albatross.BlockDump{Level: c.Level})
}

// Run asks to remove a block device.
func (c *csrBlockRemoveCmd) Run(e *env) error { return e.request(c.Label, albatross.BlockRemove{}) }

// request makes a key and a request for a command.
func (e *env) request(label string, m albatross.Command) error {
	c := &e.cli.Albatross.CSR
	if label != "." {
		if _, err := albatross.MakeName(label); err != nil {
			return fmt.Errorf("%w; give the label alone, the CA that signs adds its path", err)
		}
	}
	file := c.Out
	if file == "" {
		if file = label; label == "." {
			return errors.New("give the files a name with --out")
		}
	}
	key, err := e.newKey(file+".key", c.KeyType)
	if err != nil {
		return err
	}
	r, err := remote.NewRequest(label, m, key)
	if err != nil {
		return err
	}
	return e.create(file+".req", remote.EncodeRequest(r), 0o644)
}

type albatrossSignCmd struct {
	Request string `arg:"" help:"File of the request."`
	Out     string `placeholder:"FILE" help:"Where the certificate goes, and those up to the root (default: beside the request, with .pem)."`
	Days    int    `help:"For which it holds (default 1, of a CA 365)."`
}

// Run signs a request.
func (c *albatrossSignCmd) Run(e *env) error {
	if c.Days < 0 {
		return fmt.Errorf("--days=%d: a certificate cannot hold until before now", c.Days)
	}
	ca, err := e.cli.Albatross.authority()
	if err != nil {
		return err
	}
	text, err := os.ReadFile(c.Request)
	if err != nil {
		return fmt.Errorf("read request: %w", err)
	}
	request, err := remote.DecodeRequest(text)
	if err != nil {
		return fmt.Errorf("read request %s: %w", c.Request, err)
	}
	chain, err := ca.Sign(request, time.Now(), time.Duration(c.Days)*day)
	if err != nil {
		return fmt.Errorf("sign %s: %w", c.Request, err)
	}
	if err := e.tellSigned(ca, chain[0]); err != nil {
		return err
	}
	out := c.Out
	if out == "" {
		out = strings.TrimSuffix(c.Request, filepath.Ext(c.Request)) + ".pem"
	}
	return e.create(out, remote.EncodeCertificates(chain...), 0o644)
}

// tellSigned says what was signed.
func (e *env) tellSigned(ca *remote.Authority, c *x509.Certificate) error {
	command, err := remote.Command(c)
	if err != nil {
		return err
	}
	path, err := ca.Path()
	if err != nil {
		return err
	}
	if create, ok := command.(albatross.UnikernelCreate); ok {
		fmt.Fprintf(e.err, "the image has %d bytes\n", len(create.Config.Image))
		create.Config.Image = nil
		command = create
	}
	text, err := wirejson.Marshal(albatross.Wire{Header: albatross.Header{Name: path.Name()}, Payload: command})
	if err != nil {
		return err
	}
	fmt.Fprintf(e.err, "signed for %q in the path %q, until %s: %s\n", c.Subject.CommonName, path.Name(), c.NotAfter.Local().Format(time.DateTime), text)
	return nil
}
