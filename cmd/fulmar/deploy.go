package main

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"
	"time"

	"google.golang.org/protobuf/types/known/durationpb"
	"sigs.k8s.io/yaml"

	"fulmar/bus"
	"fulmar/messages"
	fulmarv1 "fulmar/messages/fulmar/v1"
	"fulmar/solo5"
)

type deployCmd struct {
	change
	Image    string        `arg:"" optional:"" help:"Image: a file, an http(s) URL (with --sha256), the SHA-256 of an object in the store, docker:REFERENCE[#PATH], oci:LAYOUT[@REFERENCE][#PATH], or git+URL[#REF[:DIRECTORY]]."`
	File     string        `short:"f" placeholder:"SPEC" help:"Request as YAML or JSON (DeployRequest); image files are relative to it. - is standard input."`
	Port     []string      `short:"p" placeholder:"PORT:TARGET/PROTO" sep:"none" help:"Port of the host that leads to the unit: 8080:80/tcp."`
	Arg      []string      `short:"a" sep:"none" placeholder:"ARG" help:"Argument, a template: --ipv4={{.IP}}/{{.PrefixLen}}."`
	Memory   uint32        `placeholder:"MB" help:"Memory in MB (default 32)."`
	CPU      []uint32      `name:"cpu" help:"Ids of the CPUs it may run on."`
	Restart  string        `placeholder:"WHEN" help:"Whether its host starts it again after it ended by itself: never (default), on-failure or always."`
	Device   string        `help:"Net device of the image's manifest (default: the only one)."`
	Health   []string      `sep:"none" placeholder:"CHECK" help:"icmp, tcp:PORT, http:PORT/PATH[=STATUS] or dns:PORT/NAME (default: tcp of each published port, else icmp)."`
	Interval time.Duration `help:"Time between two checks (default 1s)."`
	Checks   uint32        `help:"Good checks in a row that make it healthy (default 1)."`
	Network  string        `help:"Network that gives the address (default: the stack's, or the only one)."`
	Staged   bool          `help:"Start and check it beside what is live, for a later promote."`
	Deadline time.Duration `help:"From request to publication at most (default 1m)."`
	Drain    time.Duration `default:"-1ns" placeholder:"1m" help:"How long established connections of what is replaced may last (default 1m)."`
	SHA256   string        `name:"sha256" help:"SHA-256 that the image must have."`

	sourceFlags `embed:"" group:"Sources"`
}

// Run uploads the image, asks for the deployment and follows it.
func (c *deployCmd) Run(e *env) error {
	r, err := c.build(os.Stdin)
	if err != nil {
		return err
	}
	if _, err := messages.Normalize(c.Stack, r); err != nil { // before anything is uploaded
		return err
	}
	b, closeBus, err := e.connect()
	if err != nil {
		return err
	}
	defer closeBus()
	head, _, err := b.Heads.Get(e.ctx, c.Stack)
	if err != nil {
		return err
	}
	if r.IfNewest == nil {
		newest := head.GetNewest()
		r.IfNewest = &newest
	}
	for _, u := range r.GetUnits() {
		if path := u.GetImage().GetFile(); path != "" {
			if u.Image.Source, err = upload(e.ctx, b, path, u.GetImage().GetSha256()); err != nil {
				return err
			}
			signatures, err := signaturesBeside(path)
			if err != nil {
				return err
			}
			u.Image.Signatures = append(u.Image.Signatures, signatures...)
		}
	}
	return c.send(e, b, fulmarv1.Kind_KIND_DEPLOY, r)
}

// build makes the request of the command line, its image files as absolute paths.
func (c *deployCmd) build(stdin io.Reader) (*fulmarv1.DeployRequest, error) {
	r, err := c.units(stdin)
	if err != nil {
		return nil, err
	}
	if c.Network != "" {
		r.Network = c.Network
	}
	if c.Staged {
		r.Staged = true
	}
	if c.Watch {
		r.Watch = true
	}
	if c.Deadline != 0 {
		r.Deadline = durationpb.New(c.Deadline)
	}
	if c.Drain >= 0 {
		r.Drain = durationpb.New(c.Drain)
	}
	return r, nil
}

// units makes the request with its units only: of a spec, or of one unit that the flags describe.
func (c *deployCmd) units(stdin io.Reader) (*fulmarv1.DeployRequest, error) {
	switch {
	case c.File != "" && c.Image != "":
		return nil, errors.New("give an IMAGE or a spec with -f, not both")
	case c.File != "" && (len(c.Port)+len(c.Arg)+len(c.CPU)+len(c.Health) > 0 || c.Memory != 0 || c.Restart != "" || c.Device != "" || c.SHA256 != "" || c.Checks != 0 || c.Interval != 0 || c.given()):
		return nil, errors.New("with -f the spec says everything about the units: --port, --arg, --memory, --restart, --cpu, --device, --health, --interval, --checks, --sha256 and what says how it is built go with an IMAGE")
	case c.File != "":
		return readSpec(c.File, stdin)
	case c.Image == "":
		return nil, errors.New("give an IMAGE, or a spec with -f")
	}
	image, err := c.image(c.Image, c.SHA256)
	if err != nil {
		return nil, err
	}
	u := &fulmarv1.UnitSpec{Args: c.Arg, Memory: c.Memory, Cpus: c.CPU, Device: c.Device, Restart: c.Restart, Image: image}
	for _, s := range c.Port {
		p, err := parsePort(s)
		if err != nil {
			return nil, err
		}
		u.Ports = append(u.Ports, p)
	}
	for _, s := range c.Health {
		h, err := parseHealth(s)
		if err != nil {
			return nil, err
		}
		if c.Interval != 0 {
			h.Interval = durationpb.New(c.Interval)
		}
		h.Successes = c.Checks
		u.Health = append(u.Health, h)
	}
	r := &fulmarv1.DeployRequest{Units: []*fulmarv1.UnitSpec{u}}
	return r, absolute(r, ".")
}

// absolute makes the image files of a request absolute; they are relative to dir.
func absolute(r *fulmarv1.DeployRequest, dir string) error {
	for _, u := range r.GetUnits() {
		var path *string
		switch source := u.GetImage().GetSource().(type) {
		case *fulmarv1.Image_File:
			path = &source.File
		case *fulmarv1.Image_Oci:
			path = &source.Oci.Layout
		default:
			continue
		}
		if *path == "" || filepath.IsAbs(*path) {
			continue
		}
		whole, err := filepath.Abs(filepath.Join(dir, *path))
		if err != nil {
			return fmt.Errorf("image %s: %w", *path, err)
		}
		*path = whole
	}
	return nil
}

func readSpec(file string, stdin io.Reader) (*fulmarv1.DeployRequest, error) {
	var text []byte
	var err error
	dir := "."
	if file == "-" {
		text, err = io.ReadAll(stdin)
	} else {
		text, err = os.ReadFile(file)
		dir = filepath.Dir(file)
	}
	if err != nil {
		return nil, fmt.Errorf("read the spec: %w", err)
	}
	if several(text) {
		return nil, fmt.Errorf("spec %s: it has more than one document: a spec is of one stack; deploy each from a file of its own", file)
	}
	body, err := yaml.YAMLToJSON(text)
	if err != nil {
		return nil, fmt.Errorf("spec %s: %w", file, err)
	}
	if !bytes.HasPrefix(body, []byte("{")) {
		return nil, fmt.Errorf("spec %s: it has no units: want a mapping with the fields of a DeployRequest, as in examples/specs", file)
	}
	m, err := messages.DecodeRequest(fulmarv1.Kind_KIND_DEPLOY, body)
	if err != nil {
		return nil, fmt.Errorf("spec %s: %w", file, inSpec(err, body))
	}
	r := m.(*fulmarv1.DeployRequest)
	return r, absolute(r, dir)
}

// upload puts an image file into the object store under its digest, unless it is there, and gives it as a source.
func upload(ctx context.Context, b *bus.Bus, path, want string) (*fulmarv1.Image_Object, error) {
	f, err := os.Open(path)
	if err != nil {
		return nil, fmt.Errorf("image: %w", err)
	}
	defer f.Close()
	if info, err := f.Stat(); err != nil || !info.Mode().IsRegular() {
		return nil, fmt.Errorf("image %s is not a regular file", path)
	}
	h := sha256.New()
	size, err := io.Copy(h, f)
	if err != nil {
		return nil, fmt.Errorf("image %s: %w", path, err)
	}
	digest := hex.EncodeToString(h.Sum(nil))
	if want != "" && !strings.EqualFold(want, digest) {
		return nil, fmt.Errorf("image %s: its SHA-256 is %s, not %s", path, digest, want)
	}
	if _, err := solo5.Read(f, size); err != nil {
		return nil, fmt.Errorf("image %s: %w", path, err)
	}
	if err := b.StoreImage(ctx, digest, io.NewSectionReader(f, 0, size)); err != nil {
		return nil, err
	}
	return &fulmarv1.Image_Object{Object: digest}, nil
}
