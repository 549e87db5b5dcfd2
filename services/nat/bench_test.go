package nat

import (
	"context"
	"fmt"
	"net/netip"
	"sync"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"google.golang.org/protobuf/types/known/timestamppb"

	"fulmar/bus"
	"fulmar/bus/bustest"
	"fulmar/firewall"
	"fulmar/firewall/nstest"
	"fulmar/messages"
	fulmarv1 "fulmar/messages/fulmar/v1"
)

// BenchmarkPublish is the step as a whole, from the event to the answer, beside other stacks that are live.
func BenchmarkPublish(b *testing.B) {
	nstest.NeedRoot(b)
	for _, c := range []struct {
		backend firewall.Backend
		others  int
	}{{firewall.IPTables, 10}, {firewall.IPTables, 1000}, {firewall.NFTables, 10}, {firewall.NFTables, 1000}} {
		b.Run(fmt.Sprintf("%s beside %d stacks", c.backend, c.others), func(b *testing.B) {
			emptyFirewall(b)
			nstest.Bridge(b, "br-nat", netip.MustParsePrefix("10.79.0.1/16"))
			server := bustest.Server(b)
			opened := bustest.Open(b, server, bus.Options{Service: "nat", Host: testHost})
			network := lan()
			network.Prefix = "10.79.0.0/16"
			if err := opened.Networks.Put(b.Context(), "lan", network, 0); err != nil {
				b.Fatal(err)
			}
			for n := range c.others {
				d := benchDeployment(uint64(n+1), n+1)
				d.State, d.Leased = fulmarv1.State_STATE_LIVE, true
				stack := fmt.Sprintf("other%d", n)
				if err := opened.Heads.Put(b.Context(), stack, &fulmarv1.Head{Stack: stack, Newest: d.GetGeneration(), Deployments: []*fulmarv1.HeadDeployment{d}}, 0); err != nil {
					b.Fatal(err)
				}
			}
			s, err := New(opened, Config{Host: testHost, FirewallFlags: FirewallFlags{FirewallBackend: c.backend}}, prometheus.NewRegistry())
			if err != nil {
				b.Fatal(err)
			}
			ctx, cancel := context.WithCancel(context.WithoutCancel(b.Context()))
			var wg sync.WaitGroup
			wg.Go(func() { _ = s.heads.Run(ctx) })
			wg.Go(func() { _ = s.networks.Run(ctx) })
			b.Cleanup(func() {
				cancel()
				wg.Wait()
				s.kernel.Close()
			})
			if err := s.look(ctx, "start"); err != nil {
				b.Fatal(err)
			}
			for generation := uint64(5000); b.Loop(); generation++ {
				b.StopTimer()
				d := benchDeployment(generation, 60000)
				if _, err := opened.Heads.Edit(ctx, "web", func(h *fulmarv1.Head) (*fulmarv1.Head, error) {
					h, err := messages.Accept(h, "web", d)
					if err != nil {
						return nil, err
					}
					for len(h.GetDeployments()) > 3 {
						h.Deployments = h.GetDeployments()[1:]
					}
					return messages.SetInstances(h, generation, d.GetContent(), d.GetInstances())
				}); err != nil {
					b.Fatal(err)
				}
				b.StartTimer()
				e := &fulmarv1.Event{Deployment: &fulmarv1.Deployment{Stack: "web", Generation: generation, Content: d.GetContent(), Network: network}}
				if verb, err := s.publish(ctx, e); verb != messages.Published || err != nil {
					b.Fatal(verb, err)
				}
			}
		})
	}
}

func benchDeployment(generation uint64, port int) *fulmarv1.HeadDeployment {
	return &fulmarv1.HeadDeployment{
		Generation: generation, Host: testHost, Deadline: timestamppb.New(time.Now().Add(time.Hour)),
		Content:   &fulmarv1.Content{Units: []*fulmarv1.UnitSpec{{Name: "u", Ports: []*fulmarv1.Port{{Port: uint32(port), Target: 80, Protocol: "tcp"}}}}},
		Instances: []*fulmarv1.Instance{{Unit: "u", Name: fmt.Sprintf("x.u.%d", generation), Network: "lan", Address: netip.AddrFrom4([4]byte{10, 79, byte(generation >> 8), byte(generation)}).String()}},
	}
}
