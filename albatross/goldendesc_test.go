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

func wireOf(t *testing.T, data []byte) Wire {
	t.Helper()
	var d struct {
		Header struct {
			Sequence int64s
			Name     descName
		}
		Payload struct {
			Kind                   string
			Command, Success, Data json.RawMessage
			Message                text
		}
	}
	mustJSON(t, data, &d)
	w := Wire{Header: Header{Sequence: uint64(d.Header.Sequence), Name: d.Header.Name.Name}}
	switch d.Payload.Kind {
	case "command":
		w.Payload = commandOf(t, d.Payload.Command)
	case "success":
		w.Payload = successOf(t, d.Payload.Success)
	case "failure":
		w.Payload = Failure(d.Payload.Message)
	case "data":
		w.Payload = dataOf(t, d.Payload.Data)
	default:
		t.Fatalf("payload of unknown kind %q", d.Payload.Kind)
	}
	return w
}

func commandOf(t *testing.T, data []byte) Command {
	t.Helper()
	var d struct {
		Op         string
		Count      int
		Since      *descTime
		VMMDev     text
		PID        int
		Taps       []struct{ Bridge, Tap text }
		Config     descConfig
		Arguments  *descArgs
		Level      int
		Size       int
		Compressed bool
		Data       bytesHex `json:"data_hex"`
		Policy     descPolicy
	}
	mustJSON(t, data, &d)
	switch d.Op {
	case "console_add":
		return ConsoleAdd{d.Count}
	case "console_subscribe":
		if d.Since != nil {
			return ConsoleSubscribe{Since: &d.Since.Time}
		}
		return ConsoleSubscribe{Count: d.Count}
	case "console_list_inactive":
		return ConsoleListInactive{}
	case "stats_add":
		m := StatsAdd{VMMDev: string(d.VMMDev), PID: d.PID}
		for _, tap := range d.Taps {
			m.Taps = append(m.Taps, Tap{string(tap.Bridge), string(tap.Tap)})
		}
		return m
	case "stats_remove":
		return StatsRemove{}
	case "stats_subscribe":
		return StatsSubscribe{}
	case "stats_initial":
		return StatsInitial{}
	case "unikernel_info":
		return UnikernelInfo{}
	case "old_unikernel_info4":
		return UnikernelInfo{V3}
	case "old_unikernel_info5":
		return UnikernelInfo{V4}
	case "unikernel_destroy":
		return UnikernelDestroy{}
	case "unikernel_get":
		return UnikernelGet{d.Level}
	case "unikernel_create":
		return UnikernelCreate{Config: d.Config.config()}
	case "unikernel_force_create":
		return UnikernelCreate{Config: d.Config.config(), Force: true}
	case "unikernel_restart":
		if d.Arguments == nil {
			return UnikernelRestart{}
		}
		return UnikernelRestart{Args: new(d.Arguments.args())}
	case "policy_info":
		return PolicyInfo{}
	case "policy_add":
		return PolicyAdd{d.Policy.policy()}
	case "policy_remove":
		return PolicyRemove{}
	case "block_info":
		return BlockInfo{}
	case "block_add":
		return BlockAdd{d.Size}
	case "block_remove":
		return BlockRemove{}
	case "block_set":
		return BlockSet{d.Compressed}
	case "block_dump":
		return BlockDump{d.Level}
	case "old_block_add":
		return OldBlockAdd{d.Size, d.Compressed, d.Data}
	case "old_block_set":
		return OldBlockSet{d.Compressed, d.Data}
	case "old_block_dump":
		return OldBlockDump{d.Level}
	}
	t.Fatalf("command of unknown op %q", d.Op)
	return nil
}

func successOf(t *testing.T, data []byte) Success {
	t.Helper()
	var d struct {
		Op       string
		String   text
		Policies []struct {
			Name   descName
			Policy descPolicy
		}
		Blocks []struct {
			Name   descName
			Size   int
			Active bool
		}
		Unikernels []struct {
			Name descName
			Info descInfo
		}
		Names      []descName
		Compressed bool
		Image      bytesHex `json:"image_hex"`
	}
	mustJSON(t, data, &d)
	running := []Running{}
	for _, u := range d.Unikernels {
		running = append(running, Running{u.Name.Name, u.Info.info()})
	}
	switch d.Op {
	case "empty":
		return Empty{}
	case "string":
		return Text(d.String)
	case "policies":
		list := Policies{}
		for _, p := range d.Policies {
			list = append(list, NamedPolicy{p.Name.Name, p.Policy.policy()})
		}
		return list
	case "block_devices":
		list := Blocks{}
		for _, b := range d.Blocks {
			list = append(list, BlockDevice{b.Name.Name, b.Size, b.Active})
		}
		return list
	case "unikernel_image":
		return Image{d.Compressed, d.Image}
	case "old_block_device_image":
		return OldBlockImage{d.Compressed, d.Image}
	case "block_device_image":
		return BlockImage{d.Compressed}
	case "consoles":
		list := Consoles{}
		for _, n := range d.Names {
			list = append(list, n.Name)
		}
		return list
	case "unikernel_info":
		return Unikernels{List: running}
	case "old_unikernel_info5":
		return Unikernels{List: running, Generation: V4}
	case "old_unikernel_info4":
		return Unikernels{List: running, Generation: V3}
	}
	t.Fatalf("success of unknown op %q", d.Op)
	return nil
}

func dataOf(t *testing.T, data []byte) Data {
	t.Helper()
	var d struct {
		Op        string
		Timestamp descTime
		Line      text
		Data      bytesHex `json:"data_hex"`
		Stats     descStats
	}
	mustJSON(t, data, &d)
	switch d.Op {
	case "console_data":
		return ConsoleData{d.Timestamp.Time, string(d.Line)}
	case "block_data":
		return BlockData{d.Data}
	case "stats_data":
		return d.Stats.stats()
	}
	t.Fatalf("data of unknown op %q", d.Op)
	return nil
}

type descTimeval struct {
	Sec  int64s
	Usec int
}

func (d descTimeval) timeval() Timeval { return Timeval{int64(d.Sec), d.Usec} }

// descCounters is an object of numbers, looked up by the names of the wire.
type descCounters map[string]json.RawMessage

func (d descCounters) number(name string) (v int64) {
	var n int64s
	if json.Unmarshal(d[name], &n) != nil {
		panic("description lacks " + name)
	}
	return int64(n)
}

func (d descCounters) timeval(name string) Timeval {
	var v descTimeval
	if json.Unmarshal(d[name], &v) != nil {
		panic("description lacks " + name)
	}
	return v.timeval()
}

type descStats struct {
	Rusage descCounters
	Memory descCounters `json:"kinfo_mem"`
	VMM    []struct {
		Key   text
		Value int64s
	}
	Interfaces []descCounters `json:"ifdata"`
}

// snake turns a field name of ours into one of the descriptions.
func snake(s string) string {
	var b strings.Builder
	for _, r := range s {
		if r >= 'A' && r <= 'Z' {
			b.WriteByte('_')
			r += 'a' - 'A'
		}
		b.WriteRune(r)
	}
	return b.String()
}

func (d descStats) stats() Stats {
	s := Stats{Rusage: Rusage{UTime: d.Rusage.timeval("utime"), STime: d.Rusage.timeval("stime")}}
	for _, f := range s.Rusage.counters() {
		*f.value = d.Rusage.number(f.name)
	}
	if d.Memory != nil {
		s.Memory = &Memory{Cow: int(d.Memory.number("cow")), Start: d.Memory.timeval("start")}
		for _, f := range s.Memory.counters() {
			*f.value = d.Memory.number(f.name)
		}
	}
	if d.VMM != nil {
		s.VMM = []Counter{}
	}
	for _, c := range d.VMM {
		s.VMM = append(s.VMM, Counter{string(c.Key), int64(c.Value)})
	}
	for _, m := range d.Interfaces {
		var bridge text
		if json.Unmarshal(m["bridge"], &bridge) != nil {
			panic("description lacks bridge")
		}
		i := Interface{
			Bridge: string(bridge), Flags: int32(m.number("flags")), SendLength: int32(m.number("send_length")),
			MaxSendLength: int32(m.number("max_send_length")), SendDrops: int32(m.number("send_drops")), MTU: int32(m.number("mtu")),
		}
		for _, f := range i.counters() {
			*f.value = m.number(snake(f.name))
		}
		s.Interfaces = append(s.Interfaces, i)
	}
	return s
}
