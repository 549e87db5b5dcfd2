package e2e_test

import (
	"bytes"
	"encoding/binary"
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/vishvananda/netlink"

	"fulmar/messages"
	"fulmar/solo5/solo5test"
)

// helloJSON is the request for hello with a text, as a person types it.
func (w *world) helloJSON(text string) string {
	return fmt.Sprintf(`{"units":[{"image":{"file":%q},"memory":16,`+
		`"args":["--ipv4={{.IP}}/{{.PrefixLen}}","--ipv4-gateway={{.Gateway}}","--hello=%s"],`+
		`"ports":[{"port":8080,"target":80}]}]}`, w.image, text)
}

// send stores a request as "nats req" does, and gives the sequence of the answer.
func (w *world) send(subject, body string) uint64 {
	w.t.Helper()
	m, err := w.bus.NC.RequestWithContext(w.patient(), subject, []byte(body))
	if err != nil {
		w.t.Fatal(err)
	}
	var answer struct {
		Stream string `json:"stream"`
		Seq    uint64 `json:"seq"`
	}
	if err := json.Unmarshal(m.Data, &answer); err != nil || answer.Seq == 0 || answer.Stream != messages.RequestStream {
		w.t.Fatalf("the request is answered with %q, %v", m.Data, err)
	}
	return answer.Seq
}

func TestBadRequestsCostNothing(t *testing.T) {
	w := newWorld(t)
	w.deploy("web", 8080, "v1")
	w.deploy("other", 9090, "v1")
	makeBridge(t, "tiny0", "10.81.0.1/30")
	w.cli("network", "add", "tiny", "10.81.0.1/30", "--bridge", "tiny0", "--host", "lab")
	w.deploy("small", 9091, "v1", "--network", "tiny")
	before := w.snapshot()

	good := w.helloJSON("bad")
	file := fmt.Sprintf("%q", w.image)
	replace := func(from, to string) string {
		body := strings.Replace(good, from, to, 1)
		if body == good {
			t.Fatalf("the request has no %s", from)
		}
		return body
	}
	for name, c := range map[string]struct {
		subject string // default: fulmar.deploy.web
		body    string
		culprit []string // what the sentence must have
	}{
		"an unknown field":                    {body: replace(`"memory"`, `"memroy"`), culprit: []string{`"memroy"`}},
		"an unknown field of the request":     {body: replace(`{"units"`, `{"replicas":2,"units"`), culprit: []string{`"replicas"`}},
		"an unknown field in protobuf":        {body: "\xf8\x07\x01", culprit: []string{"unknown field number 127"}},
		"a wrong type":                        {body: replace(`"memory":16`, `"memory":"plenty"`), culprit: []string{"memory", "plenty"}},
		"no JSON":                             {body: good[:len(good)-1], culprit: []string{"unexpected"}},
		"nothing":                             {body: "", culprit: []string{"units"}},
		"a stack that albatross refuses":      {subject: "fulmar.deploy.Web_1", body: good, culprit: []string{`stack "Web_1"`}},
		"a unit that albatross refuses":       {body: replace(`"units":[{`, `"units":[{"name":"_x",`), culprit: []string{`unit "_x"`}},
		"names that are too long together":    {body: replace(`"units":[{`, `"units":[{"name":"`+strings.Repeat("u", 60)+`",`), culprit: []string{"stack web with unit uuu", "63 bytes"}},
		"port 0":                              {body: replace(`"port":8080`, `"port":0`), culprit: []string{"unit web", "port 0"}},
		"port 70000":                          {body: replace(`"port":8080`, `"port":70000`), culprit: []string{"unit web", "port 70000"}},
		"target 70000":                        {body: replace(`"target":80`, `"target":70000`), culprit: []string{"unit web", "target 70000"}},
		"a template that does not parse":      {body: replace(`{{.IP}}`, `{{.IP}`), culprit: []string{"unit web", "--ipv4={{.IP}"}},
		"a template of what is not there":     {body: replace(`{{.IP}}`, `{{.IPv4}}`), culprit: []string{"unit web", ".IPv4"}},
		"a file that is not there":            {body: replace(file, `"/nowhere/hello.spt"`), culprit: []string{"unit web", "/nowhere/hello.spt"}},
		"an object that is not there":         {body: replace(`"file":`+file, `"object":"`+strings.Repeat("ab", 32)+`"`), culprit: []string{"unit web", "abab"}},
		"an image that is text":               {body: replace(file, w.write("text", []byte("#!/bin/sh\n"))), culprit: []string{"unit web", "Solo5"}},
		"an image that is another executable": {body: replace(file, fmt.Sprintf("%q", filepath.Join(w.Bin, "gc"))), culprit: []string{"unit web", "Solo5"}},
		"an image that is cut short":          {body: replace(file, w.write("short", w.imageBytes()[:1000])), culprit: []string{"unit web"}},
		"an image of an unsupported target":   {body: replace(file, w.write("virtio", virtio(t, w.imageBytes()))), culprit: []string{"unit web", "virtio", "lab"}},
		"a digest that does not match":        {body: replace(`"file"`, `"sha256":"`+strings.Repeat("ab", 32)+`","file"`), culprit: []string{"unit web", strings.Repeat("ab", 32)}},
		"a device that is not named":          {body: replace(file, fmt.Sprintf("%q", solo5test.Build(t, 2))), culprit: []string{"unit web", `"net0"`, `"net1"`}},
		"a device that is not there":          {body: replace(`"memory"`, `"device":"net7","memory"`), culprit: []string{"unit web", `"net7"`}},
		"memory that is too small":            {body: replace(`"memory":16`, `"memory":1`), culprit: []string{"unit web", "memory of 1 MB"}},
		"an unknown network":                  {body: replace(`{"units"`, `{"network":"moon","units"`), culprit: []string{`"moon"`}},
		"a full prefix":                       {body: replace(`{"units"`, `{"network":"tiny","units"`), culprit: []string{"network tiny", "10.81.0.0/30"}},
		"a port that another stack holds":     {body: replace(`"port":8080`, `"port":9090`), culprit: []string{"port 9090/tcp", "stack other"}},
		"a port twice":                        {body: replace(`"ports":[`, `"ports":[{"port":8080,"target":81},`), culprit: []string{"8080/tcp", "unit web"}},
		"a generation that has moved":         {body: replace(`{"units"`, `{"ifNewest":"7","units"`), culprit: []string{"stack web", "7"}},
		"units that use one another":          {body: `{"units":[` + member("a", "b") + "," + member("b", "a") + `]}`, culprit: []string{"a uses b uses a"}},
		"a unit that is not there":            {body: `{"units":[` + member("a", "b") + `]}`, culprit: []string{"unit a", `unit "b"`}},
		"a rollback to nothing":               {subject: "fulmar.rollback.web", culprit: []string{"stack web"}},
		"a promotion of nothing":              {subject: "fulmar.promote.web", culprit: []string{"stack web"}},
		"a discard of nothing":                {subject: "fulmar.discard.web", culprit: []string{"stack web"}},
		"a renewal of nothing":                {subject: "fulmar.renew.nobody", culprit: []string{"stack nobody"}},
		"a retirement of nothing":             {subject: "fulmar.retire.nobody", culprit: []string{"stack nobody"}},
	} {
		t.Run(name, func(t *testing.T) {
			w := w.in(t)
			subject := c.subject
			if subject == "" {
				subject = "fulmar.deploy.web"
			}
			generation := w.send(subject, c.body)
			s := w.await(strings.Split(subject, ".")[2], generation, messages.Rejected, messages.Failed, messages.Published, messages.Staged)
			reason := s.Event.GetReason()
			if s.Verb != messages.Rejected && s.Verb != messages.Failed || s.Event.GetReasonCode() == 0 || strings.ContainsAny(reason, "\n\u00a0") {
				t.Errorf("it ends as %s (%s): %q", s.Verb, s.Event.GetReasonCode(), reason)
			}
			for _, part := range c.culprit {
				if !strings.Contains(reason, part) {
					t.Errorf("the reason does not name %s: %s", part, reason)
				}
			}
			t.Log(s)
			w.answers(8080, "v1")
			w.untouched(before)
		})
	}
}

// member is a unit of a stack that uses the address of another one.
func member(name, uses string) string {
	return fmt.Sprintf(`{"name":%q,"image":{"file":"/image"},"args":["--peer={{ip \"%s\"}}"]}`, name, uses)
}

// write writes a file and gives its name as a JSON string.
func (w *world) write(name string, content []byte) string {
	w.t.Helper()
	path := filepath.Join(w.t.TempDir(), name)
	if err := os.WriteFile(path, content, 0o600); err != nil {
		w.t.Fatal(err)
	}
	return fmt.Sprintf("%q", path)
}

func (w *world) imageBytes() []byte {
	w.t.Helper()
	b, err := os.ReadFile(w.image)
	if err != nil {
		w.t.Fatal(err)
	}
	return b
}

// virtio makes an image for another target out of one for spt, by what its ABI note says.
func virtio(t *testing.T, image []byte) []byte {
	t.Helper()
	note := []byte("ABI1Solo5\x00\x00\x00\x02\x00\x00\x00") // the kind of the note, its name, the target spt
	if bytes.Count(image, note) != 1 {
		t.Fatal("the image has not one ABI note of an spt image")
	}
	at := bytes.Index(image, note) + len(note) - 4
	changed := bytes.Clone(image)
	binary.LittleEndian.PutUint32(changed[at:], 3)
	return changed
}

// makeBridge makes a bridge with an address. It goes with the lab.
func makeBridge(t *testing.T, name, address string) {
	t.Helper()
	attrs := netlink.NewLinkAttrs()
	attrs.Name = name
	bridge := &netlink.Bridge{LinkAttrs: attrs}
	addr, err := netlink.ParseAddr(address)
	if err == nil {
		err = netlink.LinkAdd(bridge)
	}
	if err == nil {
		err = netlink.AddrAdd(bridge, addr)
	}
	if err == nil {
		err = netlink.LinkSetUp(bridge)
	}
	if err != nil {
		t.Fatal(err)
	}
}
