package vmm

import (
	"slices"

	"github.com/prometheus/client_golang/prometheus"
	"google.golang.org/protobuf/proto"

	"fulmar/messages"
	fulmarv1 "fulmar/messages/fulmar/v1"
)

// unikernels tells Prometheus what each instance that runs uses, as of its last sample. The label is "unikernel" and not
// "instance", because Prometheus names by that what it asked.
type unikernels struct {
	samples func() []*fulmarv1.Stats

	cpu, started, resident, peak, virtual, faults, switches, read, written *prometheus.Desc
	bytes, packets, errors, dropped                                        [2]*prometheus.Desc // receive, transmit
}

func newUnikernels(host string, samples func() []*fulmarv1.Stats) *unikernels {
	desc := func(name, help string, labels ...string) *prometheus.Desc {
		return prometheus.NewDesc("fulmar_unikernel_"+name, help, append([]string{"stack", "unit", "unikernel"}, labels...), prometheus.Labels{"host": host})
	}
	network := func(what, help string) [2]*prometheus.Desc {
		return [2]*prometheus.Desc{
			desc("network_receive_"+what+"_total", help+" that the unikernel received.", "device"),
			desc("network_transmit_"+what+"_total", help+" that the unikernel sent.", "device"),
		}
	}
	return &unikernels{
		samples:  samples,
		cpu:      desc("cpu_seconds_total", "CPU time, of the unikernel itself (user) and of the kernel for it (system).", "mode"),
		started:  desc("start_time_seconds", "When the process was started, in seconds since 1970."),
		resident: desc("resident_memory_bytes", "Memory that it occupies."),
		peak:     desc("resident_memory_max_bytes", "The most memory that it has occupied."),
		virtual:  desc("virtual_memory_bytes", "Its address space."),
		faults:   desc("page_faults_total", "Page faults, without (minor) and with (major) the disk.", "kind"),
		switches: desc("context_switches_total", "Context switches, because it waited (voluntary) or its time was up (involuntary).", "kind"),
		read:     desc("disk_read_bytes_total", "Bytes that were read from disks."),
		written:  desc("disk_written_bytes_total", "Bytes that were written to disks."),
		bytes:    network("bytes", "Bytes"),
		packets:  network("packets", "Packets"),
		errors:   network("errors", "Faulty packets"),
		dropped:  network("drop", "Dropped packets"),
	}
}

// Describe implements prometheus.Collector.
func (u *unikernels) Describe(c chan<- *prometheus.Desc) {
	for _, d := range []*prometheus.Desc{u.cpu, u.started, u.resident, u.peak, u.virtual, u.faults, u.switches, u.read, u.written} {
		c <- d
	}
	for _, both := range [][2]*prometheus.Desc{u.bytes, u.packets, u.errors, u.dropped} {
		c <- both[0]
		c <- both[1]
	}
}

// Collect implements prometheus.Collector.
func (u *unikernels) Collect(c chan<- prometheus.Metric) {
	for _, m := range u.samples() {
		stack, unit, _, _ := messages.ParseInstance(m.GetInstance())
		put := func(d *prometheus.Desc, kind prometheus.ValueType, v float64, labels ...string) {
			c <- prometheus.MustNewConstMetric(d, kind, v, append([]string{stack, unit, m.GetInstance()}, labels...)...)
		}
		total := func(d *prometheus.Desc, v uint64, labels ...string) {
			put(d, prometheus.CounterValue, float64(v), labels...)
		}
		put(u.cpu, prometheus.CounterValue, float64(m.GetUserCpuMicroseconds())/1e6, "user")
		put(u.cpu, prometheus.CounterValue, float64(m.GetSystemCpuMicroseconds())/1e6, "system")
		if m.GetStarted() != nil {
			put(u.started, prometheus.GaugeValue, float64(m.GetStarted().AsTime().UnixMicro())/1e6)
		}
		put(u.resident, prometheus.GaugeValue, float64(m.GetResidentBytes()))
		put(u.peak, prometheus.GaugeValue, float64(m.GetResidentPeakBytes()))
		put(u.virtual, prometheus.GaugeValue, float64(m.GetVirtualBytes()))
		total(u.faults, m.GetMinorFaults(), "minor")
		total(u.faults, m.GetMajorFaults(), "major")
		total(u.switches, m.GetVoluntarySwitches(), "voluntary")
		total(u.switches, m.GetInvoluntarySwitches(), "involuntary")
		total(u.read, m.GetReadBytes())
		total(u.written, m.GetWrittenBytes())
		for _, i := range byDevice(m.GetInterfaces()) {
			total(u.bytes[0], i.GetReceiveBytes(), i.GetDevice())
			total(u.bytes[1], i.GetTransmitBytes(), i.GetDevice())
			total(u.packets[0], i.GetReceivePackets(), i.GetDevice())
			total(u.packets[1], i.GetTransmitPackets(), i.GetDevice())
			total(u.errors[0], i.GetReceiveErrors(), i.GetDevice())
			total(u.errors[1], i.GetTransmitErrors(), i.GetDevice())
			total(u.dropped[0], i.GetReceiveDropped(), i.GetDevice())
			total(u.dropped[1], i.GetTransmitDropped(), i.GetDevice())
		}
	}
}

// byDevice adds up the devices of one name: a real albatrossd names them by their bridge, which may be the same.
func byDevice(list []*fulmarv1.InterfaceStats) []*fulmarv1.InterfaceStats {
	var sums []*fulmarv1.InterfaceStats
	for _, i := range list {
		n := slices.IndexFunc(sums, func(s *fulmarv1.InterfaceStats) bool { return s.GetDevice() == i.GetDevice() })
		if n < 0 {
			sums = append(sums, proto.CloneOf(i))
			continue
		}
		s := sums[n]
		s.ReceiveBytes += i.GetReceiveBytes()
		s.ReceivePackets += i.GetReceivePackets()
		s.ReceiveErrors += i.GetReceiveErrors()
		s.ReceiveDropped += i.GetReceiveDropped()
		s.TransmitBytes += i.GetTransmitBytes()
		s.TransmitPackets += i.GetTransmitPackets()
		s.TransmitErrors += i.GetTransmitErrors()
		s.TransmitDropped += i.GetTransmitDropped()
	}
	return sums
}
