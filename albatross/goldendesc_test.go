package albatross

import (
	"bytes"
	"encoding/hex"
	"encoding/json"
	"net"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
)

// names compares names by what they print.
var names = cmp.Comparer(func(a, b Name) bool { return a == b })

func mustJSON(t *testing.T, data []byte, v any) {
	t.Helper()
	if err := json.Unmarshal(data, v); err != nil {
		t.Fatalf("description %.200s: %v", data, err)
	}
}

func jsonString(t *testing.T, data []byte) string {
	t.Helper()
	var s text
	mustJSON(t, data, &s)
	return string(s)
}

// text is a string of the vectors: JSON, or {"hex": ...} if it is not UTF-8.
type text string

func (s *text) UnmarshalJSON(data []byte) error {
	if bytes.HasPrefix(data, []byte("{")) {
		var v struct{ Hex bytesHex }
		err := json.Unmarshal(data, &v)
		*s = text(v.Hex)
		return err
	}
	return json.Unmarshal(data, (*string)(s))
}

type bytesHex []byte

func (b *bytesHex) UnmarshalJSON(data []byte) error {
	var s *string
	err := json.Unmarshal(data, &s)
	if err != nil || s == nil {
		return err
	}
	v, err := hex.DecodeString(*s)
	*b = append([]byte{}, v...)
	return err
}

type descMAC net.HardwareAddr

func (m *descMAC) UnmarshalJSON(data []byte) error {
	var s string
	err := json.Unmarshal(data, &s)
	if err != nil || s == "" {
		return err
	}
	mac, err := net.ParseMAC(s)
	*m = descMAC(mac)
	return err
}

type int64s int64

func (i *int64s) UnmarshalJSON(data []byte) error {
	v, err := strconv.ParseInt(strings.Trim(string(data), `"`), 10, 64)
	*i = int64s(v)
	return err
}

type descTime struct{ time.Time }

func (d *descTime) UnmarshalJSON(data []byte) error {
	var v struct {
		Sec int64s `json:"unix_seconds"`
		Ps  int64s `json:"picoseconds"`
	}
	err := json.Unmarshal(data, &v)
	ns := int64(v.Ps) / 1000
	if ns == 0 && v.Ps > 0 {
		ns = 1 // no time of Go lies between zero and a nanosecond
	}
	d.Time = time.Unix(int64(v.Sec), ns).UTC()
	return err
}

type descName struct {
	Name
}

func (n *descName) UnmarshalJSON(data []byte) error {
	var v struct {
		String string
		Path   []string
		Label  *string
	}
	if err := json.Unmarshal(data, &v); err != nil {
		return err
	}
	n.Name = Name{path: Path{s: strings.Join(v.Path, ":")}}
	if v.Label != nil {
		n.label = *v.Label
	}
	return nil
}

func nameOf(t *testing.T, data []byte) Name {
	t.Helper()
	var n descName
	mustJSON(t, data, &n)
	return n.Name
}

type descArgs struct {
	Startup *int
	AddName bool `json:"add_name"`
	Fail    struct {
		Type  string
		Codes []int `json:"exit_codes"`
	} `json:"fail_behaviour"`
	CPUIDs []int `json:"cpuids"`
	Memory int
	Blocks []struct {
		Name, Device text
		SectorSize   int `json:"sector_size"`
	} `json:"block_devices"`
	Bridges []struct {
		Netif, Bridge text
		MAC           descMAC
	}
	Argv []text
	CPUs int   `json:"numcpus"`
	Boot *text `json:"linux_boot_partition"`
}

func (d descArgs) args() Args {
	a := Args{
		Startup: d.Startup, AddName: d.AddName, Fail: FailBehaviour{Restart: d.Fail.Type == "restart"},
		CPUIDs: d.CPUIDs, Memory: d.Memory, CPUs: d.CPUs, Arguments: textsOf(d.Argv),
	}
	if len(d.Fail.Codes) > 0 {
		a.Fail.ExitCodes = d.Fail.Codes
	}
	for _, b := range d.Blocks {
		a.Blocks = append(a.Blocks, Block{string(b.Name), string(b.Device), b.SectorSize})
	}
	for _, b := range d.Bridges {
		a.Bridges = append(a.Bridges, Bridge{string(b.Netif), string(b.Bridge), net.HardwareAddr(b.MAC)})
	}
	if d.Boot != nil {
		a.LinuxBootPartition = new(string(*d.Boot))
	}
	return a
}

func textsOf(list []text) []string {
	if list == nil {
		return nil
	}
	out := []string{}
	for _, s := range list {
		out = append(out, string(s))
	}
	return out
}

type descConfig struct {
	Typ        string
	Compressed bool
	Image      bytesHex `json:"image_hex"`
	descArgs
}

func typOf(s string) Typ {
	if s == "bhyve" {
		return BHyve
	}
	return Solo5
}

func (d descConfig) config() Config {
	return Config{Typ: typOf(d.Typ), Compressed: d.Compressed, Image: d.Image, Args: d.args()}
}

type descInfo struct {
	Typ    string
	Digest bytesHex `json:"digest_hex"`
	Blocks []struct {
		UnikernelDevice text `json:"unikernel_device"`
		HostDevice      text `json:"host_device"`
		SectorSize      int  `json:"sector_size"`
		Size            int
	} `json:"block_devices"`
	Bridges []struct {
		UnikernelDevice text `json:"unikernel_device"`
		HostDevice      text `json:"host_device"`
		MAC             descMAC
	}
	Started descTime
	descArgs
}

func (d descInfo) info() Info {
	a := d.args()
	i := Info{
		Typ: typOf(d.Typ), Startup: a.Startup, Fail: a.Fail, CPUIDs: a.CPUIDs, Memory: a.Memory, Digest: d.Digest,
		Arguments: a.Arguments, Started: d.Started.Time, CPUs: a.CPUs, LinuxBootPartition: a.LinuxBootPartition,
	}
	for _, b := range d.Blocks {
		i.Blocks = append(i.Blocks, InfoBlock{string(b.UnikernelDevice), string(b.HostDevice), b.SectorSize, b.Size})
	}
	for _, b := range d.Bridges {
		i.Bridges = append(i.Bridges, InfoBridge{string(b.UnikernelDevice), string(b.HostDevice), net.HardwareAddr(b.MAC)})
	}
	return i
}

type descPolicy struct {
	Unikernels int
	CPUIDs     []int
	Memory     int
	Block      *int
	Bridges    []text
}

func (d descPolicy) policy() Policy {
	return Policy{CPUIDs: d.CPUIDs, Unikernels: d.Unikernels, Memory: d.Memory, Block: d.Block, Bridges: textsOf(d.Bridges)}
}

// newest returns a message with configurations and arguments in the newest generation, which is all that descriptions tell.
func newest(w Wire) Wire { return setGeneration(w, V5) }

func setGeneration(w Wire, g Generation) Wire {
	switch p := w.Payload.(type) {
	case UnikernelCreate:
		p.Generation = g
		w.Payload = p
	case UnikernelRestart:
		p.Generation = g
		w.Payload = p
	}
	return w
}

func generationOf(w Wire) Generation {
	switch p := w.Payload.(type) {
	case UnikernelCreate:
		return p.Generation
	case UnikernelRestart:
		return p.Generation
	}
	return V5
}
