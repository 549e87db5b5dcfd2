package albatross

import (
	"golang.org/x/crypto/cryptobyte"
)

// Stats is what a unikernel has used so far, or uses. It is a [Data].
type Stats struct {
	Rusage     Rusage
	Interfaces []Interface
	VMM        []Counter // of the hypervisor; nil if it tells none
	Memory     *Memory   // nil if the system tells none
}

// Rusage is the process's resource usage, with the field names of getrusage(2).
type Rusage struct {
	UTime, STime                             Timeval
	MaxRSS, IxRSS, IDRSS, IsRSS              int64
	MinFlt, MajFlt, NSwap, InBlock, OutBlock int64
	MsgSnd, MsgRcv, NSignals, NVCSw, NIvCSw  int64
}

// Timeval is a time or duration.
type Timeval struct {
	Sec  int64
	Usec int
}

// Memory is the process's memory, with the field names of FreeBSD's kinfo_proc. Sizes but VSize are in pages.
type Memory struct {
	VSize                    int64 // in bytes
	RSS, TSize, DSize, SSize int64
	Runtime                  int64 // in microseconds
	Cow                      int   // copy-on-write faults
	Start                    Timeval
}

// Interface is the counters of a tap; Bridge is where it is plugged in.
type Interface struct {
	Bridge                                           string
	Flags, SendLength, MaxSendLength, SendDrops, MTU int32
	Baudrate                                         int64
	InputPackets, InputErrors                        int64
	OutputPackets, OutputErrors                      int64
	Collisions, InputBytes, OutputBytes              int64
	InputMcast, OutputMcast                          int64
	InputDropped, OutputDropped                      int64
}

// Counter is a number that a hypervisor tells.
type Counter struct {
	Key   string
	Value int64
}

func (m Stats) add(b *cryptobyte.Builder) {
	addSequence(b, func(b *cryptobyte.Builder) {
		addSequence(b, m.Rusage.add)
		addSequence(b, func(b *cryptobyte.Builder) {
			for i := range m.Interfaces {
				addSequence(b, m.Interfaces[i].add)
			}
		})
		if m.VMM != nil {
			addExplicit(b, 0, func(b *cryptobyte.Builder) { addCounters(b, m.VMM) })
		}
		if m.Memory != nil {
			addExplicit(b, 1, m.Memory.add) // implicit: the tag stands in place of the sequence's
		}
	})
}

func readStats(c *cursor) (m Stats) {
	c = c.sequence("statistics")
	defer c.end()
	m.Rusage = readRusage(c)
	for seq := c.sequence("interfaces"); seq.more(); {
		m.Interfaces = append(m.Interfaces, readInterface(seq))
	}
	if c.next(contextTag(0)) {
		e := c.explicit(0, "vmm")
		m.VMM = readCounters(e)
		e.end()
	}
	if c.next(contextTag(1)) {
		m.Memory = new(readMemory(c))
	}
	return m
}

func (t Timeval) add(b *cryptobyte.Builder) {
	addSequence(b, func(b *cryptobyte.Builder) {
		addInt64(b, t.Sec)
		addInteger(b, "microseconds", t.Usec)
	})
}

func readTimeval(c *cursor, field string) Timeval {
	c = c.sequence(field)
	defer c.end()
	return Timeval{Sec: c.integer64("seconds"), Usec: c.integer("microseconds")}
}

// counter is one field of a fixed list, for reading and writing in one order.
type counter struct {
	name  string
	value *int64
}

func (r *Rusage) counters() []counter {
	return []counter{
		{"maxrss", &r.MaxRSS},
		{"ixrss", &r.IxRSS},
		{"idrss", &r.IDRSS},
		{"isrss", &r.IsRSS},
		{"minflt", &r.MinFlt},
		{"majflt", &r.MajFlt},
		{"nswap", &r.NSwap},
		{"inblock", &r.InBlock},
		{"outblock", &r.OutBlock},
		{"msgsnd", &r.MsgSnd},
		{"msgrcv", &r.MsgRcv},
		{"nsignals", &r.NSignals},
		{"nvcsw", &r.NVCSw},
		{"nivcsw", &r.NIvCSw},
	}
}

func (r Rusage) add(b *cryptobyte.Builder) {
	r.UTime.add(b)
	r.STime.add(b)
	for _, f := range r.counters() {
		addInt64(b, *f.value)
	}
}

func readRusage(c *cursor) (r Rusage) {
	c = c.sequence("rusage")
	defer c.end()
	r.UTime = readTimeval(c, "utime")
	r.STime = readTimeval(c, "stime")
	for _, f := range r.counters() {
		*f.value = c.integer64(f.name)
	}
	return r
}

func (m *Memory) counters() []counter {
	return []counter{
		{"vsize", &m.VSize}, {"rss", &m.RSS}, {"tsize", &m.TSize}, {"dsize", &m.DSize}, {"ssize", &m.SSize}, {"runtime", &m.Runtime},
	}
}

func (m Memory) add(b *cryptobyte.Builder) {
	for _, f := range m.counters() {
		addInt64(b, *f.value)
	}
	addInteger(b, "memory.cow", m.Cow)
	m.Start.add(b)
}

func readMemory(c *cursor) (m Memory) {
	c = c.explicit(1, "memory")
	defer c.end()
	for _, f := range m.counters() {
		*f.value = c.integer64(f.name)
	}
	m.Cow = c.integer("cow")
	m.Start = readTimeval(c, "start")
	return m
}

func (i *Interface) counters() []counter {
	return []counter{
		{"baudrate", &i.Baudrate},
		{"inputPackets", &i.InputPackets},
		{"inputErrors", &i.InputErrors},
		{"outputPackets", &i.OutputPackets},
		{"outputErrors", &i.OutputErrors},
		{"collisions", &i.Collisions},
		{"inputBytes", &i.InputBytes},
		{"outputBytes", &i.OutputBytes},
		{"inputMcast", &i.InputMcast},
		{"outputMcast", &i.OutputMcast},
		{"inputDropped", &i.InputDropped},
		{"outputDropped", &i.OutputDropped},
	}
}

func (i Interface) add(b *cryptobyte.Builder) {
	addText(b, i.Bridge)
	for _, v := range []int32{i.Flags, i.SendLength, i.MaxSendLength, i.SendDrops, i.MTU} {
		b.AddASN1Int64(int64(v))
	}
	for _, f := range i.counters() {
		addInt64(b, *f.value)
	}
}

func readInterface(c *cursor) (i Interface) {
	c = c.sequence("interface")
	defer c.end()
	i.Bridge = c.text("bridge")
	i.Flags = c.integer32("flags")
	i.SendLength = c.integer32("sendLength")
	i.MaxSendLength = c.integer32("maxSendLength")
	i.SendDrops = c.integer32("sendDrops")
	i.MTU = c.integer32("mtu")
	for _, f := range i.counters() {
		*f.value = c.integer64(f.name)
	}
	return i
}

func addCounters(b *cryptobyte.Builder, list []Counter) {
	addSequence(b, func(b *cryptobyte.Builder) {
		for _, v := range list {
			addSequence(b, func(b *cryptobyte.Builder) {
				addText(b, v.Key)
				addInt64(b, v.Value)
			})
		}
	})
}

func readCounters(c *cursor) []Counter {
	list := []Counter{}
	for seq := c.sequence(""); seq.more(); {
		e := seq.sequence("counter")
		list = append(list, Counter{Key: e.text("key"), Value: e.integer64("value")})
		e.end()
	}
	return list
}
