package host_test

import (
	"bufio"
	"cmp"
	"encoding/hex"
	"encoding/json"
	"io"
	"net"
	"os"
	"slices"
	"strings"
	"testing"
	"time"

	gocmp "github.com/google/go-cmp/cmp"

	"fulmar/albatross"
	"fulmar/services/host/hosttest"
	"fulmar/solo5/solo5test"
)

// session is what a real client and the real daemon said to each other.
type session struct {
	ID     string  `json:"id"`
	Frames []frame `json:"frames"`
}

// frame is one message of a session, or bytes of a stream. Of a long one there is no hex.
type frame struct {
	Dir     string `json:"dir"` // c2s or s2c
	Hex     string `json:"hex"`
	Len     int    `json:"len"`
	EOF     bool   `json:"eof"`
	Omitted int    `json:"omitted_frames"` // at least so many, as the one before
	Decoded struct {
		Header struct {
			Name struct {
				String string `json:"string"`
			} `json:"name"`
		} `json:"header"`
		Payload struct {
			Command struct {
				Op     string         `json:"op"`
				Config recordedConfig `json:"config"`
			} `json:"command"`
		} `json:"payload"`
	} `json:"decoded"`
}

// recordedConfig is the part of a create that is carried over to an image of ours.
type recordedConfig struct {
	CPUIDs  []int `json:"cpuids"`
	Memory  int   `json:"memory"`
	Bridges []struct {
		Bridge string `json:"bridge"`
	} `json:"bridges"`
	Blocks []struct {
		Device string `json:"device"`
	} `json:"block_devices"`
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
func (f frame) create(t *testing.T, image []byte, arguments []string) albatross.Wire {
	t.Helper()
	cfg := albatross.Config{Image: image, Args: albatross.Args{CPUs: 1, CPUIDs: f.Decoded.Payload.Command.Config.CPUIDs, Memory: f.Decoded.Payload.Command.Config.Memory}}
	cfg.Arguments = arguments
	for _, b := range f.Decoded.Payload.Command.Config.Bridges {
		cfg.Bridges = append(cfg.Bridges, albatross.Bridge{Netif: "net0", Bridge: b.Bridge})
	}
	for _, b := range f.Decoded.Payload.Command.Config.Blocks {
		cfg.Blocks = append(cfg.Blocks, albatross.Block{Name: "disk0", Device: b.Device})
	}
	return albatross.Wire{Header: albatross.Header{Name: name(t, f.Decoded.Header.Name.String)}, Payload: albatross.UnikernelCreate{Config: cfg}}
}

// send says to host what the client said to the real daemon; the image of a create, and what is not known of a stream, are others.
func (f frame) send(t *testing.T, conn net.Conn, image []byte, arguments []string) {
	t.Helper()
	message, err := hex.DecodeString(f.Hex)
	switch {
	case err != nil:
		t.Fatal(err)
	case f.Hex == "" && f.Decoded.Payload.Command.Op == "unikernel_create":
		message = mustMarshal(t, f.create(t, image, arguments))
	case f.Hex == "":
		message = make([]byte, f.Len)
	}
	if err := albatross.WriteFrame(conn, message); err != nil {
		t.Fatal(err)
	}
}

// normal is a message without what differs from machine to machine, and from order to order.
func normal(w albatross.Wire) albatross.Wire {
	switch p := w.Payload.(type) {
	case albatross.Policies:
		slices.SortFunc(p, func(a, b albatross.NamedPolicy) int { return cmp.Compare(a.Name.String(), b.Name.String()) })
	case albatross.Blocks:
		slices.SortFunc(p, func(a, b albatross.BlockDevice) int { return cmp.Compare(a.Name.String(), b.Name.String()) })
	case albatross.Unikernels:
		for i := range p.List {
			p.List[i] = albatross.Running{Name: p.List[i].Name, Info: albatross.Info{CPUIDs: p.List[i].CPUIDs, Memory: p.List[i].Memory}}
		}
		slices.SortFunc(p.List, func(a, b albatross.Running) int { return cmp.Compare(a.Name.String(), b.Name.String()) })
	}
	return w
}

// replay has a recorded client speak to host, and compares what host says with what the real daemon said.
func (s session) replay(t *testing.T, d *daemon, image []byte, arguments ...string) {
	t.Helper()
	conn := dial(t, d.cfg, albatross.VMMDSocket)
	if err := conn.SetDeadline(time.Now().Add(20 * time.Second)); err != nil {
		t.Fatal(err)
	}
	for n, f := range s.Frames {
		switch {
		case f.Omitted > 0 && s.Frames[n-1].Dir == "c2s":
			for range 256 { // all that was too much for 1 MB
				s.Frames[n-1].send(t, conn, image, arguments)
			}
		case f.EOF && f.Dir == "s2c":
			if _, err := io.Copy(io.Discard, conn); err != nil {
				t.Errorf("after the last frame: %v", err)
			}
		case f.EOF:
			if err := conn.(*net.UnixConn).CloseWrite(); err != nil {
				t.Fatal(err)
			}
		case f.Dir == "c2s":
			f.send(t, conn, image, arguments)
		case f.Dir == "s2c" && f.Hex != "":
			der, err := hex.DecodeString(f.Hex)
			if err != nil {
				t.Fatal(err)
			}
			want, err := albatross.Unmarshal(der)
			if err != nil {
				t.Fatal(err)
			}
			if _, compressed := want.Payload.(albatross.BlockData); compressed {
				_, _ = io.Copy(io.Discard, conn) // there are many ways to compress
				return
			}
			if diff := gocmp.Diff(normal(want), normal(receive(t, conn)), gocmp.Comparer(func(a, b albatross.Name) bool { return a == b })); diff != "" {
				t.Errorf("reply (-albatross +host):\n%s", diff)
			}
		}
	}
}

// The real daemon's policy of the root, as it was in the second run.
const recordedRoot = `{"CPUIDs":[0,1],"Unikernels":4611686018427387903,"Memory":24105,"Block":258019,"Bridges":["alba9","br0","docker0"]}`

func TestPoliciesAsRecorded(t *testing.T) {
	cfg := config(t)
	bridge(t)
	image := hosttest.Guest(t, 1)
	d := start(t, cfg).destroyAll(t)
	var root albatross.Policy
	if err := json.Unmarshal([]byte(recordedRoot), &root); err != nil {
		t.Fatal(err)
	}
	if err := d.AddPolicy(t.Context(), albatross.Path{}, root); err != nil {
		t.Fatal(err)
	}
	for _, s := range sessions(t, "b-") { // each goes on from the one before
		if strings.HasPrefix(s.ID, "b-b-block") {
			continue
		}
		t.Run(s.ID, func(t *testing.T) { s.replay(t, d, image, "wait") })
	}
}

func TestBlockDevicesAsRecorded(t *testing.T) {
	image, err := os.ReadFile(solo5test.BuildSPT(t, solo5test.Features{Blocks: 1}))
	if err != nil {
		t.Fatal(err)
	}
	d := start(t, config(t)).destroyAll(t)
	for _, s := range sessions(t, "a-") {
		t.Run(s.ID, func(t *testing.T) { s.replay(t, d, image, "sleep", "1000") })
	}
}
