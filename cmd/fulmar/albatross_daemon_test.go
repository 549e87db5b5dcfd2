package main

import (
	"io"
	"net"
	"sync"
	"time"

	"fulmar/albatross"
)

// fakeDaemon remembers what it is told and runs nothing.
type fakeDaemon struct {
	mu       sync.Mutex
	dir      string
	running  map[albatross.Name]albatross.Config
	policies map[albatross.Name]albatross.Policy
	blocks   map[albatross.Name][]byte
	watched  albatross.StatsAdd
}

// config is what a unikernel was created from or restarted with.
func (d *fakeDaemon) config(name string) albatross.Config {
	d.mu.Lock()
	defer d.mu.Unlock()
	return d.running[mustParse(name)]
}

// serve answers commands until one that no other may follow.
func (d *fakeDaemon) serve(conn net.Conn) {
	defer func() { _ = conn.Close() }()
	for {
		h, m, err := albatross.ReadRequest(conn, 16<<20)
		if err != nil {
			return
		}
		d.answer(conn, h, m)
		if _, more := m.(albatross.PolicyAdd); !more {
			return
		}
	}
}

func (d *fakeDaemon) answer(conn net.Conn, h albatross.Header, m albatross.Command) {
	d.mu.Lock()
	defer d.mu.Unlock()
	reply := func(p albatross.Payload) { _ = albatross.WriteReply(conn, h, p) }
	switch m := m.(type) {
	case albatross.UnikernelCreate:
		if _, ok := d.running[h.Name]; ok && !m.Force {
			reply(albatross.Failure("Unikernel with same name is already running"))
			return
		}
		d.running[h.Name] = m.Config
		reply(albatross.Text("created unikernel"))
	case albatross.UnikernelRestart:
		cfg := d.running[h.Name]
		if m.Args != nil {
			cfg.Args = *m.Args
			d.running[h.Name] = cfg
		}
		reply(albatross.Text("created unikernel"))
	case albatross.UnikernelDestroy:
		if _, ok := d.running[h.Name]; !ok {
			reply(albatross.Failure("destroy: not found"))
			return
		}
		delete(d.running, h.Name)
		reply(albatross.Text("destroyed unikernel"))
	case albatross.UnikernelInfo:
		list := albatross.Unikernels{}
		for n, cfg := range d.running {
			if shown, ok := shown(h.Name, n); ok {
				info := albatross.Info{Memory: cfg.Memory, CPUIDs: cfg.CPUIDs, CPUs: 1, Arguments: cfg.Arguments, Fail: cfg.Fail, Started: time.UnixMilli(1)}
				for _, b := range cfg.Bridges {
					info.Bridges = append(info.Bridges, albatross.InfoBridge{UnikernelDevice: b.Netif, HostDevice: b.Bridge, MAC: albatross.MAC(n, b.Netif)})
				}
				list.List = append(list.List, albatross.Running{Name: shown, Info: info})
			}
		}
		reply(list)
	case albatross.UnikernelGet:
		cfg := d.running[h.Name]
		reply(albatross.Image{Compressed: cfg.Compressed, Image: cfg.Image})
	case albatross.ConsoleSubscribe:
		reply(albatross.Text("subscribed"))
		for range m.Count {
			_ = albatross.WriteData(conn, h.Name, albatross.ConsoleData{Time: time.UnixMilli(1), Line: "hello from " + h.Name.String()})
		}
	case albatross.ConsoleListInactive:
		reply(albatross.Consoles{mustParse("old")})
	case albatross.StatsSubscribe:
		reply(albatross.Text("subscribed"))
		_ = albatross.WriteData(conn, mustParse("hello"), albatross.Stats{Rusage: albatross.Rusage{MaxRSS: 77}})
		_ = albatross.WriteData(conn, mustParse("hello"), albatross.Stats{Rusage: albatross.Rusage{MaxRSS: 78}})
	case albatross.StatsAdd:
		d.watched = m
		reply(albatross.Text("added"))
	case albatross.StatsRemove:
		d.watched = albatross.StatsAdd{}
		reply(albatross.Text("removed"))
	case albatross.PolicyAdd:
		if m.Policy.Unikernels > 99 {
			reply(albatross.Failure("policy above allows 99 unikernels, which is fewer than 100"))
			return
		}
		d.policies[h.Name] = m.Policy
		reply(albatross.Text("added policy"))
	case albatross.PolicyRemove:
		delete(d.policies, h.Name)
		reply(albatross.Text("removed policy"))
	case albatross.PolicyInfo:
		list := albatross.Policies{}
		for n, p := range d.policies {
			if shown, ok := shown(h.Name, n); ok {
				list = append(list, albatross.NamedPolicy{Name: shown, Policy: p})
			}
		}
		reply(list)
	default:
		d.answerBlock(conn, h, m)
	}
}

func (d *fakeDaemon) answerBlock(conn net.Conn, h albatross.Header, m albatross.Command) {
	reply := func(p albatross.Payload) { _ = albatross.WriteReply(conn, h, p) }
	switch m := m.(type) {
	case albatross.BlockAdd:
		d.blocks[h.Name] = make([]byte, m.Size<<20)
		reply(albatross.Text("added block device"))
	case albatross.BlockRemove:
		delete(d.blocks, h.Name)
		reply(albatross.Text("removed block"))
	case albatross.BlockInfo:
		list := albatross.Blocks{}
		for n, b := range d.blocks {
			if shown, ok := shown(h.Name, n); ok {
				list = append(list, albatross.BlockDevice{Name: shown, Size: len(b) >> 20})
			}
		}
		reply(list)
	case albatross.BlockSet:
		content, err := io.ReadAll(albatross.NewBlockReader(conn))
		if err != nil {
			return
		}
		if m.Compressed {
			if content, err = albatross.Uncompress(content, 1<<20); err != nil {
				reply(albatross.Failure(err.Error()))
				return
			}
		}
		d.blocks[h.Name] = content
		reply(albatross.Text("set block device"))
	case albatross.BlockDump:
		content, ok := d.blocks[h.Name]
		if !ok {
			reply(albatross.Failure("dump block: not found"))
			return
		}
		if m.Level > 0 {
			content, _ = albatross.Compress(content, m.Level)
		}
		reply(albatross.BlockImage{Compressed: m.Level > 0})
		reply(albatross.BlockData{Data: content})
		reply(albatross.BlockData{})
	}
}

// shown is a name in the answer to a question, as albatross gives it.
func shown(asked, n albatross.Name) (albatross.Name, bool) {
	if asked.HasLabel() {
		return n, n == asked
	}
	return asked.Path().Relative(n)
}

func mustParse(s string) albatross.Name {
	n, err := albatross.ParseName(s)
	if err != nil {
		panic(err)
	}
	return n
}
