package influx_test

import (
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"fulmar/albatross"
	"fulmar/albatross/influx"
)

func TestLines(t *testing.T) {
	at := time.Unix(1_700_000_000, 123_456_789)
	all := albatross.Stats{
		Rusage: albatross.Rusage{
			UTime: albatross.Timeval{Sec: 3, Usec: 7}, STime: albatross.Timeval{Usec: 20_000}, MaxRSS: 1, IxRSS: 2, IDRSS: 3, IsRSS: 4, MinFlt: 5, MajFlt: 6, NSwap: 7,
			InBlock: 8, OutBlock: 9, MsgSnd: 10, MsgRcv: 11, NSignals: 12, NVCSw: 13, NIvCSw: 14,
		},
		Memory: &albatross.Memory{VSize: 1, RSS: 2, TSize: 3, DSize: 4, SSize: 5, Runtime: 6, Cow: 7, Start: albatross.Timeval{Sec: 1_699_999_990, Usec: 123_456}},
		VMM:    []albatross.Counter{{Key: "vm exits, all=", Value: -1}, {Key: "x", Value: 2}},
		Interfaces: []albatross.Interface{{
			Bridge: "service 1", Flags: 99, SendLength: 1, MaxSendLength: 2, SendDrops: 3, MTU: 1500, Baudrate: 4, InputPackets: 5, InputErrors: 6, OutputPackets: 7,
			OutputErrors: 8, Collisions: 9, InputBytes: 10, OutputBytes: 11, InputMcast: 12, OutputMcast: 13, InputDropped: 14, OutputDropped: 15,
		}},
	}
	usage := "resource_usage,vm=hello utime=0.000000,stime=0.000000,maxrss=0i,ixrss=0i,idrss=0i,isrss=0i,minflt=0i,maxflt=0i,nswap=0i,inblock=0i,outblock=0i," +
		"msgsnd=0i,msgrcv=0i,nsignals=0i,nvcsw=0i,nivcsw=0i"
	for name, c := range map[string]struct {
		vm    string
		stats albatross.Stats
		unit  time.Duration
		want  string
	}{
		"everything": {"hello", all, time.Nanosecond, "" +
			"resource_usage,vm=hello utime=3.000007,stime=0.020000,maxrss=1i,ixrss=2i,idrss=3i,isrss=4i,minflt=5i,maxflt=6i,nswap=7i,inblock=8i,outblock=9i," +
			"msgsnd=10i,msgrcv=11i,nsignals=12i,nvcsw=13i,nivcsw=14i 1700000000123456789\n" +
			"kinfo_mem,vm=hello vsize=1i,rss=2i,tsize=3i,dsize=4i,ssize=5i,cow_faults=7i,runtime=6i,uptime=10.000000 1700000000123456789\n" +
			`vmm,vm=hello vm\ exits\,\ all\==-1i,x=2i 1700000000123456789` + "\n" +
			`interface,vm=hello,bridge=service\ 1 send_queue_length=1i,max_send_queue_length=2i,send_queue_drops=3i,mtu=1500i,baudrate=4i,` +
			"vm_to_host_packets=5i,vm_to_host_errors=6i,vm_to_host_bytes=10i,vm_to_host_mcast=12i,vm_to_host_dropped=14i,collisions=9i," +
			"host_to_vm_packets=7i,host_to_vm_errors=8i,host_to_vm_bytes=11i,host_to_vm_mcast=13i,host_to_vm_dropped=15i 1700000000123456789\n"},
		"what is not told has no line": {"hello", albatross.Stats{VMM: []albatross.Counter{}}, time.Second, usage + " 1700000000\n"},
		"a name with a path":           {"a:b:hello", albatross.Stats{}, time.Millisecond, strings.Replace(usage, "hello", "a:b:hello", 1) + " 1700000000123\n"},
		"a name that would break out":  {"a\nb\\ ,c=", albatross.Stats{}, time.Microsecond, strings.Replace(usage, "hello", `a_b_\ \,c\=`, 1) + " 1700000000123456\n"},
	} {
		t.Run(name, func(t *testing.T) {
			got := influx.AppendLines([]byte("before\n"), c.vm, c.stats, at, c.unit)
			if diff := cmp.Diff("before\n"+c.want, string(got)); diff != "" {
				t.Errorf("lines (-want +got):\n%s", diff)
			}
		})
	}
}
