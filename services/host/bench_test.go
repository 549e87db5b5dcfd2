package host_test

import (
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"testing"
	"time"

	"github.com/vishvananda/netlink"

	"fulmar/albatross"
	"fulmar/services/host/hosttest"
)

// BenchmarkCreate measures from the request to the reply, which is sent when the unikernel has been let run, and destroy likewise, for an image
// of 100 KB with one tap, on a bridge that has an address, as the unikernel has, beside another. Both medians are reported; ns/op is of the pair.
func BenchmarkCreate(b *testing.B) {
	cfg := config(b)
	br := bridge(b)
	addr, err := netlink.ParseAddr("10.9.0.1/24")
	if err == nil {
		err = netlink.AddrAdd(br, addr)
	}
	if err != nil {
		b.Fatal(err)
	}
	d := start(b, cfg).destroyAll(b)
	d.create(b, name(b, ":beside"), unikernel(hosttest.Guest(b, 1), 1, "wait", "--ipv4=10.9.0.2/24"))
	image := append(hosttest.Guest(b, 1), make([]byte, 90<<10)...)
	for _, kept := range []bool{true, false} {
		b.Run(fmt.Sprintf("image on disk=%v", kept), func(b *testing.B) {
			if kept {
				d.create(b, name(b, ":keep"), unikernel(image, 1, "wait"))
				defer func() {
					if err := d.Destroy(b.Context(), name(b, ":keep")); err != nil {
						b.Error(err)
					}
				}()
			}
			var creates, destroys []time.Duration
			i := 0
			for b.Loop() {
				n := name(b, fmt.Sprintf(":x%d", i))
				i++
				begin := time.Now()
				d.create(b, n, unikernel(image, 1, "wait", "--ipv4=10.9.0.3/24"))
				creates = append(creates, time.Since(begin))
				begin = time.Now()
				if err := d.Destroy(b.Context(), n); err != nil {
					b.Fatal(err)
				}
				destroys = append(destroys, time.Since(begin))
			}
			b.ReportMetric(median(creates), "ms/create")
			b.ReportMetric(median(destroys), "ms/destroy")
		})
	}
}

// median is that of durations, in milliseconds.
func median(list []time.Duration) float64 {
	slices.Sort(list)
	return float64(list[len(list)/2].Microseconds()) / 1000
}

// BenchmarkFloor measures what a create cannot do without on this machine: two files written for good.
func BenchmarkFloor(b *testing.B) {
	dir := b.TempDir()
	for i := 0; b.Loop(); i++ {
		f, err := os.Create(filepath.Join(dir, fmt.Sprint(i)))
		if err != nil {
			b.Fatal(err)
		}
		if _, err := f.Write(make([]byte, 500)); err != nil {
			b.Fatal(err)
		}
		if err := f.Sync(); err != nil {
			b.Fatal(err)
		}
		if err := f.Close(); err != nil {
			b.Fatal(err)
		}
	}
}

// BenchmarkInfo measures the smallest question.
func BenchmarkInfo(b *testing.B) {
	d := start(b, config(b))
	for b.Loop() {
		if _, err := d.Info(b.Context(), albatross.Name{}); err != nil {
			b.Fatal(err)
		}
	}
}
