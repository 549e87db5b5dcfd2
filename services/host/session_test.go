package host_test

import (
	"bufio"
	"bytes"
	"cmp"
	"compress/flate"
	"encoding/hex"
	"encoding/json"
	"errors"
	"io"
	"net"
	"os"
	"slices"
	"strings"
	"testing"
	"time"

	gocmp "github.com/google/go-cmp/cmp"
	"golang.org/x/sys/unix"

	"fulmar/albatross"
	"fulmar/services/host/hosttest"
)

// session is what a real client and the real daemon said to each other.
type session struct {
	ID     string  `json:"id"`
	Socket string  `json:"socket"` // vmmd, console or stat
	Frames []frame `json:"frames"`
}

// frame is one message of a session, or bytes of a stream. Of a long one there is no hex.
type frame struct {
	Dir      string `json:"dir"` // c2s or s2c
	Hex      string `json:"hex"`
	Len      int    `json:"len"`
	EOF      bool   `json:"eof"`
	Leftover string `json:"leftover_hex"`   // bytes before the end that are no frame
	Omitted  int    `json:"omitted_frames"` // at least so many, as the one before
	Decoded  struct {
		Header struct {
			Sequence uint64 `json:"sequence,string"`
			Name     struct {
				String string `json:"string"`
			} `json:"name"`
		} `json:"header"`
		Payload struct {
			Command struct {
				Op     string         `json:"op"`
				Config recordedConfig `json:"config"`
			} `json:"command"`
			Success struct {
				Op         string `json:"op"`
				Compressed bool   `json:"compressed"`
			} `json:"success"`
		} `json:"payload"`
	} `json:"decoded"`
}

// recordedConfig is the configuration of a create.
type recordedConfig struct {
	Compressed bool `json:"compressed"`
	Image      struct {
		MD5 string `json:"md5"`
	} `json:"image_hex"`
	Startup *int `json:"startup"`
	AddName bool `json:"add_name"`
	Fail    struct {
		Type  string `json:"type"`
		Codes []int  `json:"exit_codes"`
	} `json:"fail_behaviour"`
	CPUIDs  []int `json:"cpuids"`
	Memory  int   `json:"memory"`
	Bridges []struct {
		Netif  string `json:"netif"`
		Bridge string `json:"bridge"`
		MAC    string `json:"mac"`
	} `json:"bridges"`
	Blocks []struct {
		Name   string `json:"name"`
		Device string `json:"device"`
	} `json:"block_devices"`
	Arguments []string `json:"argv"`
	CPUs      int      `json:"numcpus"`
	Typ       string   `json:"typ"`
}

// images are ours in place of the recorded ones, which were built for Solo5's own tests.
type images struct{ hello, net, block []byte }

func recordedImages(t *testing.T) images {
	t.Helper()
	return images{hello: hosttest.Recorded(t, 0, 0), net: hosttest.Recorded(t, 1, 0), block: hosttest.Recorded(t, 0, 1)}
}

// instead is the image of ours for a recorded one.
func (all images) instead(t *testing.T, c recordedConfig) (image []byte) {
	t.Helper()
	switch c.Image.MD5 {
	case "52f994542cfc412b48c55c94100eb807", "08174818055bf1b6bca77f25bc56fd5b": // test_net, and that compressed
		image = all.net
	case "3e4d32cbdb63d9a39b09b0cc21a7ae4b":
		image = all.block
	case "e907e0ef1bb1e3611adaf451eef97c53":
		return retarget(all.hello, 3) // virtio
	case "899396ce017f84524e81b1dd39477fb3": // deflated without the header of zlib
		var b bytes.Buffer
		w, err := flate.NewWriter(&b, 9)
		if err != nil {
			t.Fatal(err)
		}
		if _, err := w.Write(all.hello); err != nil {
			t.Fatal(err)
		}
		if err := w.Close(); err != nil {
			t.Fatal(err)
		}
		return b.Bytes()
	default:
		image = all.hello
	}
	if c.Compressed {
		var err error
		if image, err = albatross.Compress(image, 9); err != nil {
			t.Fatal(err)
		}
	}
	return image
}

// sessions reads those of one run of the real daemon.
func sessions(t *testing.T, run string) (all []session) {
	t.Helper()
	f, err := os.Open("testdata/sessions.jsonl")
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = f.Close() }()
	lines := bufio.NewScanner(f)
	lines.Buffer(nil, 1<<20)
	for lines.Scan() {
		var s session
		if err := json.Unmarshal(lines.Bytes(), &s); err != nil {
			t.Fatal(err)
		}
		if strings.HasPrefix(s.ID, run) {
			all = append(all, s)
		}
	}
	if err := lines.Err(); err != nil || len(all) == 0 {
		t.Fatalf("%d sessions of run %s: %v", len(all), run, err)
	}
	return all
}

// create is a recorded create with an image of ours.
func (f frame) create(t *testing.T, all images) albatross.Wire {
	t.Helper()
	c := f.Decoded.Payload.Command.Config
	cfg := albatross.Config{Compressed: c.Compressed, Image: all.instead(t, c), Args: albatross.Args{
		Fail:    albatross.FailBehaviour{Restart: c.Fail.Type == "restart", ExitCodes: c.Fail.Codes},
		Startup: c.Startup, AddName: c.AddName, CPUIDs: c.CPUIDs, Memory: c.Memory, Arguments: c.Arguments, CPUs: c.CPUs,
	}}
	if c.Typ == "bhyve" {
		cfg.Typ = albatross.BHyve
	}
	for _, b := range c.Bridges {
		bridge := albatross.Bridge{Netif: b.Netif, Bridge: b.Bridge}
		if b.MAC != "" {
			var err error
			if bridge.MAC, err = net.ParseMAC(b.MAC); err != nil {
				t.Fatal(err)
			}
		}
		cfg.Bridges = append(cfg.Bridges, bridge)
	}
	for _, b := range c.Blocks {
		cfg.Blocks = append(cfg.Blocks, albatross.Block{Name: b.Name, Device: b.Device})
	}
	h := f.Decoded.Header
	return albatross.Wire{Header: albatross.Header{Sequence: h.Sequence, Name: name(t, h.Name.String)}, Payload: albatross.UnikernelCreate{
		Config: cfg, Force: f.Decoded.Payload.Command.Op == "unikernel_force_create",
	}}
}

// message is what the client said; the image of a create, the process of whom statistics are wanted, and what is not known of a stream, are
// others.
func (f frame) message(t *testing.T, all images) []byte {
	t.Helper()
	if f.Hex == "" && strings.HasSuffix(f.Decoded.Payload.Command.Op, "create") {
		return mustMarshal(t, f.create(t, all))
	}
	if f.Hex == "" {
		return make([]byte, f.Len)
	}
	der := unhex(t, f.Hex)
	if w, err := albatross.Unmarshal(der); err == nil {
		if add, ok := w.Payload.(albatross.StatsAdd); ok && add.PID < 1<<20 {
			add.PID = os.Getpid()
			w.Payload = add
			return mustMarshal(t, w)
		}
	}
	return der
}

func unhex(t *testing.T, text string) []byte {
	t.Helper()
	raw, err := hex.DecodeString(text)
	if err != nil {
		t.Fatal(err)
	}
	return raw
}

// replay has a recorded client speak to host, and compares what host says with what the real daemon said.
func (s session) replay(t *testing.T, d *daemon, all images) {
	t.Helper()
	conn := dial(t, d.cfg, map[string]string{"vmmd": albatross.VMMDSocket, "console": albatross.ConsoleSocket, "stat": albatross.StatsSocket}[s.Socket])
	if err := conn.SetDeadline(time.Now().Add(20 * time.Second)); err != nil {
		t.Fatal(err)
	}
	if _, err := conn.Write(s.noise(t)); err != nil {
		t.Fatal(err)
	}
	heard := &answers{t: t, conn: conn, all: all}
	for n, f := range s.Frames {
		switch {
		case f.Omitted > 0 && s.Frames[n-1].Dir == "c2s":
			for range 256 { // all that was too much for 1 MB
				writeFrame(t, conn, s.Frames[n-1].message(t, all))
			}
		case f.EOF && f.Dir == "s2c":
			if heard.sync(); t.Failed() {
				return
			}
			if _, err := io.Copy(io.Discard, conn); err != nil && !errors.Is(err, unix.ECONNRESET) { // it left something unread
				t.Errorf("after the last frame: %v", err)
			}
		case f.EOF:
			heard.sync()
			_ = conn.(*net.UnixConn).CloseWrite() // host may have closed it
		case f.Dir == "c2s":
			heard.sync()
			writeFrame(t, conn, f.message(t, all))
		case f.Dir == "s2c":
			heard.want = append(heard.want, f)
		}
	}
}

func writeFrame(t *testing.T, conn net.Conn, message []byte) {
	t.Helper()
	if err := albatross.WriteFrame(conn, message); err != nil && !errors.Is(err, unix.EPIPE) { // host may have answered what was before
		t.Fatal(err)
	}
}

// noise is what a session consists of if it is no frames.
func (s session) noise(t *testing.T) (all []byte) {
	t.Helper()
	for _, f := range s.Frames {
		all = append(all, unhex(t, f.Leftover)...)
	}
	return all
}

// answers are frames that the real daemon sent one after another.
type answers struct {
	t    *testing.T
	conn net.Conn
	all  images
	want []frame
}

// sync reads what host says in place of those frames, and compares.
func (a *answers) sync() {
	a.t.Helper()
	frames := a.want
	a.want = nil
	var data []albatross.Wire
	for _, f := range frames {
		if f.Hex == "" {
			a.long(f)
			continue
		}
		want, err := albatross.Unmarshal(unhex(a.t, f.Hex))
		if err != nil {
			a.t.Fatal(err)
		}
		switch want.Payload.(type) {
		case albatross.BlockData:
			_, _ = io.Copy(io.Discard, a.conn) // there are many ways to compress
			return
		case albatross.ConsoleData, albatross.Stats:
			data = append(data, want)
			continue
		}
		same := gocmp.Comparer(func(a, b albatross.Name) bool { return a == b })
		if diff := gocmp.Diff(normal(want), normal(receive(a.t, a.conn)), same); diff != "" {
			a.t.Errorf("reply (-albatross +host):\n%s", diff)
		}
	}
	if len(data) > 0 {
		a.follow(data)
	}
}

// long compares an answer that was recorded in part: it is an image, or a piece of a block device.
func (a *answers) long(f frame) {
	a.t.Helper()
	want := f.Decoded.Payload.Success
	if want.Op != "unikernel_image" {
		return // of a block device, whose end is waited for
	}
	got, ok := receive(a.t, a.conn).Payload.(albatross.Image)
	if ok && got.Compressed {
		var err error
		if got.Image, err = albatross.Uncompress(got.Image, 1<<20); err != nil {
			a.t.Error(err)
		}
	}
	if !ok || got.Compressed && !want.Compressed || !slices.ContainsFunc([][]byte{a.all.hello, a.all.net, a.all.block}, func(b []byte) bool { return bytes.Equal(b, got.Image) }) {
		a.t.Errorf("an image of %d bytes, compressed %v", len(got.Image), got.Compressed)
	}
}

// follow compares what a subscriber hears: whose it is, and of statistics the interfaces. What the lines say is the guest's, and how many
// there are; but no more come at once than were asked for, and of statistics as many of each.
func (a *answers) follow(want []albatross.Wire) {
	a.t.Helper()
	var got []albatross.Wire
	if _, console := want[0].Payload.(albatross.ConsoleData); console {
		want = want[:min(len(want), 3)]
	}
	for range want {
		got = append(got, receive(a.t, a.conn))
	}
	if diff := gocmp.Diff(whose(want), whose(got)); diff != "" {
		a.t.Errorf("data (-albatross +host):\n%s", diff)
	}
}

// whose says of whom there was data, sorted.
func whose(list []albatross.Wire) (all []string) {
	for _, w := range list {
		text := w.Name.String() + " is told of"
		switch data := w.Payload.(type) {
		case albatross.Stats:
			for _, i := range data.Interfaces {
				text += " " + i.Bridge
			}
		case albatross.ConsoleData:
			text += " a line"
		default:
			text += " something else"
		}
		if w.Sequence != 0 {
			text += " in answer to a question"
		}
		all = append(all, text)
	}
	slices.Sort(all)
	return all
}

// normal is a message without what differs from machine to machine, and from order to order.
func normal(w albatross.Wire) albatross.Wire {
	byName := func(a, b albatross.Name) int { return cmp.Compare(a.String(), b.String()) }
	switch p := w.Payload.(type) {
	case albatross.Policies:
		slices.SortFunc(p, func(a, b albatross.NamedPolicy) int { return byName(a.Name, b.Name) })
	case albatross.Blocks:
		slices.SortFunc(p, func(a, b albatross.BlockDevice) int { return byName(a.Name, b.Name) })
	case albatross.Consoles:
		slices.SortFunc(p, byName)
	case albatross.Unikernels:
		for i := range p.List {
			p.List[i].Started, p.List[i].Digest = time.Time{}, nil
		}
		slices.SortFunc(p.List, func(a, b albatross.Running) int { return byName(a.Name, b.Name) })
	}
	return w
}
