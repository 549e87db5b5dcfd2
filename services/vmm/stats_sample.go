package vmm

import (
	"strings"
	"time"

	"google.golang.org/protobuf/types/known/timestamppb"

	"fulmar/albatross"
	fulmarv1 "fulmar/messages/fulmar/v1"
)

const fileBlock = 512 // bytes of what getrusage(2) counts as a block

// Sample says what a daemon told of an instance in the words of the bus. Page is the size of a page of memory in bytes.
func Sample(host, instance string, at time.Time, s albatross.Stats, page int) *fulmarv1.Stats {
	u := s.Rusage
	m := &fulmarv1.Stats{
		Host: host, Instance: instance, Time: timestamppb.New(at),
		UserCpuMicroseconds: microseconds(u.UTime), SystemCpuMicroseconds: microseconds(u.STime),
		ResidentPeakBytes: count(u.MaxRSS) * uint64(page),
		MinorFaults:       count(u.MinFlt), MajorFaults: count(u.MajFlt),
		VoluntarySwitches: count(u.NVCSw), InvoluntarySwitches: count(u.NIvCSw),
		ReadBytes: count(u.InBlock) * fileBlock, WrittenBytes: count(u.OutBlock) * fileBlock,
	}
	if s.Memory != nil {
		m.ResidentBytes, m.VirtualBytes = count(s.Memory.RSS)*uint64(page), count(s.Memory.VSize)
		if start := s.Memory.Start; start.Sec > 0 {
			m.Started = timestamppb.New(time.Unix(start.Sec, int64(start.Usec)*1000))
		}
	}
	for _, i := range s.Interfaces { // what comes out of the tap goes into the unikernel
		m.Interfaces = append(m.Interfaces, &fulmarv1.InterfaceStats{
			Device:       plain(i.Bridge),
			ReceiveBytes: count(i.OutputBytes), ReceivePackets: count(i.OutputPackets), ReceiveErrors: count(i.OutputErrors), ReceiveDropped: count(i.OutputDropped),
			TransmitBytes: count(i.InputBytes), TransmitPackets: count(i.InputPackets), TransmitErrors: count(i.InputErrors), TransmitDropped: count(i.InputDropped),
		})
	}
	for _, c := range s.VMM {
		if m.Hypervisor == nil {
			m.Hypervisor = map[string]int64{}
		}
		m.Hypervisor[plain(c.Key)] = c.Value
	}
	return m
}

func microseconds(t albatross.Timeval) uint64 { return count(t.Sec)*1e6 + count(int64(t.Usec)) }

// count is a number that cannot be negative, whatever a daemon says.
func count(n int64) uint64 { return uint64(max(n, 0)) }

// plain is a text that the bus takes.
func plain(s string) string { return strings.ToValidUTF8(s, "\uFFFD") }
