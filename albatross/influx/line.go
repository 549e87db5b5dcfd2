package influx

import (
	"strconv"
	"strings"
	"time"

	"fulmar/albatross"
)

// AppendLines appends the lines of one sample of a unikernel's statistics. Vm is its name in them, and a unit of time, such as
// [time.Nanosecond], is what the timestamps count.
//
// Measurements, tags and fields are those of albatross-influx 2.7, so "maxflt" are the major faults. It writes no timestamps,
// which are needed here because a line may wait.
func AppendLines(b []byte, vm string, s albatross.Stats, at time.Time, unit time.Duration) []byte {
	l := lines{buf: b, vm: escape(vm), end: " " + strconv.FormatInt(at.UnixNano()/int64(unit), 10) + "\n"}
	l.usage(s.Rusage)
	if s.Memory != nil {
		l.memory(*s.Memory, at)
	}
	l.hypervisor(s.VMM)
	for _, i := range s.Interfaces {
		l.network(i)
	}
	return l.buf
}

// lines is what is being written.
type lines struct {
	buf []byte
	vm  string
	end string
	sep byte // before the next field
}

func (l *lines) begin(measurement string) {
	l.buf = append(l.buf, measurement...)
	l.buf = append(l.buf, ",vm="...)
	l.buf = append(l.buf, l.vm...)
	l.sep = ' '
}

func (l *lines) field(key string) {
	l.buf = append(l.buf, l.sep)
	l.buf = append(l.buf, key...)
	l.buf = append(l.buf, '=')
	l.sep = ','
}

func (l *lines) integer(key string, v int64) {
	l.field(key)
	l.buf = strconv.AppendInt(l.buf, v, 10)
	l.buf = append(l.buf, 'i')
}

func (l *lines) seconds(key string, v float64) {
	l.field(key)
	l.buf = strconv.AppendFloat(l.buf, v, 'f', 6, 64)
}

func (l *lines) finish() { l.buf = append(l.buf, l.end...) }

func (l *lines) usage(u albatross.Rusage) {
	l.begin("resource_usage")
	l.seconds("utime", float64(u.UTime.Sec)+float64(u.UTime.Usec)/1e6)
	l.seconds("stime", float64(u.STime.Sec)+float64(u.STime.Usec)/1e6)
	l.integer("maxrss", u.MaxRSS)
	l.integer("ixrss", u.IxRSS)
	l.integer("idrss", u.IDRSS)
	l.integer("isrss", u.IsRSS)
	l.integer("minflt", u.MinFlt)
	l.integer("maxflt", u.MajFlt)
	l.integer("nswap", u.NSwap)
	l.integer("inblock", u.InBlock)
	l.integer("outblock", u.OutBlock)
	l.integer("msgsnd", u.MsgSnd)
	l.integer("msgrcv", u.MsgRcv)
	l.integer("nsignals", u.NSignals)
	l.integer("nvcsw", u.NVCSw)
	l.integer("nivcsw", u.NIvCSw)
	l.finish()
}

func (l *lines) memory(m albatross.Memory, at time.Time) {
	l.begin("kinfo_mem")
	l.integer("vsize", m.VSize)
	l.integer("rss", m.RSS)
	l.integer("tsize", m.TSize)
	l.integer("dsize", m.DSize)
	l.integer("ssize", m.SSize)
	l.integer("cow_faults", int64(m.Cow))
	l.integer("runtime", m.Runtime)
	l.seconds("uptime", float64(at.UnixMicro())/1e6-float64(m.Start.Sec)-float64(m.Start.Usec)/1e6)
	l.finish()
}

func (l *lines) hypervisor(counters []albatross.Counter) {
	if len(counters) == 0 { // a line without fields is none
		return
	}
	l.begin("vmm")
	for _, c := range counters {
		l.integer(escape(c.Key), c.Value)
	}
	l.finish()
}

func (l *lines) network(i albatross.Interface) {
	l.begin("interface")
	if i.Bridge != "" { // a tag without a value is none
		l.buf = append(l.buf, ",bridge="...)
		l.buf = append(l.buf, escape(i.Bridge)...)
	}
	l.integer("send_queue_length", int64(i.SendLength))
	l.integer("max_send_queue_length", int64(i.MaxSendLength))
	l.integer("send_queue_drops", int64(i.SendDrops))
	l.integer("mtu", int64(i.MTU))
	l.integer("baudrate", i.Baudrate)
	l.integer("vm_to_host_packets", i.InputPackets)
	l.integer("vm_to_host_errors", i.InputErrors)
	l.integer("vm_to_host_bytes", i.InputBytes)
	l.integer("vm_to_host_mcast", i.InputMcast)
	l.integer("vm_to_host_dropped", i.InputDropped)
	l.integer("collisions", i.Collisions)
	l.integer("host_to_vm_packets", i.OutputPackets)
	l.integer("host_to_vm_errors", i.OutputErrors)
	l.integer("host_to_vm_bytes", i.OutputBytes)
	l.integer("host_to_vm_mcast", i.OutputMcast)
	l.integer("host_to_vm_dropped", i.OutputDropped)
	l.finish()
}

// escape writes what stands in a tag or a key. A line break cannot be escaped, and a backslash before what is escaped would
// take that away.
func escape(s string) string {
	if !strings.ContainsAny(s, ", =\n\r\\") {
		return s
	}
	return escapes().Replace(s)
}

func escapes() *strings.Replacer {
	return strings.NewReplacer(",", `\,`, " ", `\ `, "=", `\=`, "\n", "_", "\r", "_", `\`, "_")
}
