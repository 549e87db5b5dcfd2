package albatross

import (
	"encoding/json"
	"strings"
	"testing"
)

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
