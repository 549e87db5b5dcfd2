package main

import (
	"cmp"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"
	"time"

	"github.com/nats-io/nats.go"
	"google.golang.org/protobuf/encoding/protojson"
	"google.golang.org/protobuf/proto"

	"fulmar/bus"
	"fulmar/messages"
	fulmarv1 "fulmar/messages/fulmar/v1"
)

type statsCmd struct {
	Stack  string `arg:"" optional:"" help:"Only this stack."`
	Follow bool   `short:"f" help:"Go on with what is measured from now on, a line for each instance every ten seconds."`
}

// Help says what the columns are.
func (*statsCmd) Help() string {
	return `CPU is in percent of one CPU; memory is what is resident; RX and TX are what the unikernel received and sent, in bytes a second.
Rates are those between the last two measurements, so an instance that has just started has none. There is one every ten seconds.`
}

// Run prints what instances use.
func (c *statsCmd) Run(e *env) error {
	b, closeBus, err := e.connect()
	if err != nil {
		return err
	}
	defer closeBus()
	if c.Stack != "" {
		if _, err := e.head(b, c.Stack); err != nil {
			return err
		}
	}
	live := make(chan *nats.Msg, 1024)
	if c.Follow { // before the past, so that nothing falls between
		sub, err := b.NC.ChanSubscribe(messages.StatsSubject("*", cmp.Or(c.Stack, "*")+".*.*"), live)
		if err != nil {
			return fmt.Errorf("follow statistics: %w", err)
		}
		defer func() { _ = sub.Unsubscribe() }()
	}
	uses, err := c.last(e, b)
	if !c.Follow {
		return errors.Join(e.printUses(uses), err)
	}
	if err != nil {
		return err
	}
	return c.follow(e, uses, live)
}

// last asks every host for the last two samples of what runs there. A host that does not answer is an error beside what the
// others say.
func (c *statsCmd) last(e *env, b *bus.Bus) (map[string]use, error) {
	hosts, err := readable(e, b.Hosts)
	if err != nil {
		return nil, err
	}
	running, uses := onHosts(hosts), map[string]use{}
	var errs []error
	for _, host := range slices.Sorted(maps.Keys(hosts)) {
		for _, i := range hosts[host].GetInstances() {
			if i.GetRunning() && (c.Stack == "" || strings.HasPrefix(i.GetName(), c.Stack+".")) {
				uses[i.GetName()] = use{sample: &fulmarv1.Stats{Host: host, Instance: i.GetName()}}
			}
		}
		samples, err := b.Stats(e.ctx, host, &fulmarv1.StatsRequest{Stack: c.Stack, Samples: 2})
		if err != nil {
			errs = append(errs, err)
		}
		for _, m := range samples {
			if running[m.GetInstance()].GetRunning() {
				uses[m.GetInstance()] = useOf(uses[m.GetInstance()].sample, m)
			}
		}
	}
	return uses, errors.Join(errs...)
}

// follow prints what is measured until the user has seen enough.
func (c *statsCmd) follow(e *env, uses map[string]use, live <-chan *nats.Msg) error {
	if !e.cli.JSON {
		if _, err := fmt.Fprintf(e.out, useLine, "TIME", "INSTANCE", "CPU", "MEMORY", "RX", "TX", "HOST"); err != nil {
			return err
		}
	}
	for _, instance := range slices.Sorted(maps.Keys(uses)) {
		if uses[instance].sample.GetTime() == nil {
			continue
		}
		if err := e.printUse(uses[instance]); err != nil {
			return err
		}
	}
	for {
		select {
		case <-e.ctx.Done():
			return nil
		case msg := <-live:
			m := &fulmarv1.Stats{}
			if err := proto.Unmarshal(msg.Data, m); err != nil {
				e.leftOut(fmt.Errorf("statistics on %s cannot be read: %w", msg.Subject, err))
				continue
			}
			last := uses[m.GetInstance()].sample
			if last.GetTime() != nil && !m.GetTime().AsTime().After(last.GetTime().AsTime()) {
				continue // it was in the past already
			}
			uses[m.GetInstance()] = useOf(last, m)
			if err := e.printUse(uses[m.GetInstance()]); err != nil {
				return err
			}
		}
	}
}

// use is what an instance uses: a sample, and the rates since the one before.
type use struct {
	sample  *fulmarv1.Stats // without a time: none has come yet
	rated   bool            // the rates are known
	percent float64         // of one CPU
	rx, tx  float64         // bytes a second
}

// useOf compares two samples, of which the first may be missing. One of another process, which was started again, is no measure.
func useOf(before, after *fulmarv1.Stats) use {
	u := use{sample: after}
	seconds := after.GetTime().AsTime().Sub(before.GetTime().AsTime()).Seconds()
	if before.GetTime() == nil || seconds <= 0 || !proto.Equal(before.GetStarted(), after.GetStarted()) || cpu(after) < cpu(before) {
		return u
	}
	rx, tx := traffic(after)
	rx0, tx0 := traffic(before)
	if rx < rx0 || tx < tx0 {
		return u
	}
	u.rated, u.percent = true, float64(cpu(after)-cpu(before))/1e4/seconds
	u.rx, u.tx = float64(rx-rx0)/seconds, float64(tx-tx0)/seconds
	return u
}

// cpu is in microseconds.
func cpu(m *fulmarv1.Stats) uint64 { return m.GetUserCpuMicroseconds() + m.GetSystemCpuMicroseconds() }

func traffic(m *fulmarv1.Stats) (rx, tx uint64) {
	for _, i := range m.GetInterfaces() {
		rx, tx = rx+i.GetReceiveBytes(), tx+i.GetTransmitBytes()
	}
	return rx, tx
}

// cells says the CPU time, memory, traffic and host of an instance for people.
func (u use) cells() []string {
	cells := []string{"-", "-", "-", "-", u.sample.GetHost()}
	if u.sample.GetTime() != nil {
		cells[1] = bytesOf(float64(u.sample.GetResidentBytes()))
	}
	if u.rated {
		cells[0], cells[2], cells[3] = fmt.Sprintf("%.1f %%", u.percent), bytesOf(u.rx)+"/s", bytesOf(u.tx)+"/s"
	}
	return cells
}

// useLine is what a line of what is followed looks like: time, instance, CPU time, memory, traffic and host.
const useLine = "%-12s  %-24s  %8s  %8s  %10s  %10s  %s\n"

// bytesOf says a number of bytes for people.
func bytesOf(n float64) string {
	unit := "B"
	for _, next := range []string{"kB", "MB", "GB", "TB"} {
		if n < 1000 {
			break
		}
		n, unit = n/1000, next
	}
	if unit == "B" || n >= 100 {
		return fmt.Sprintf("%.0f %s", n, unit)
	}
	return fmt.Sprintf("%.1f %s", n, unit)
}

// printUses prints what instances use as a table.
func (e *env) printUses(uses map[string]use) error {
	var rows []string
	for _, instance := range slices.Sorted(maps.Keys(uses)) {
		if e.cli.JSON {
			if err := e.printUse(uses[instance]); err != nil {
				return err
			}
			continue
		}
		rows = append(rows, instance+"\t"+strings.Join(uses[instance].cells(), "\t"))
	}
	if e.cli.JSON {
		return nil
	}
	return e.table("INSTANCE CPU MEMORY RX TX HOST", rows)
}

// printUse prints what one instance uses on a line.
func (e *env) printUse(u use) error {
	if !e.cli.JSON {
		c := u.cells()
		_, err := fmt.Fprintf(e.out, useLine, u.sample.GetTime().AsTime().Local().Format("15:04:05.000"), u.sample.GetInstance(), c[0], c[1], c[2], c[3], c[4])
		return err
	}
	line := map[string]any{"host": u.sample.GetHost(), "instance": u.sample.GetInstance()}
	if u.sample.GetTime() != nil {
		sample, err := protojson.Marshal(u.sample)
		if err != nil {
			return fmt.Errorf("print JSON: %w", err)
		}
		line["time"], line["memory_bytes"] = u.sample.GetTime().AsTime().Format(time.RFC3339Nano), u.sample.GetResidentBytes()
		line["sample"] = json.RawMessage(sample)
	}
	if u.rated {
		line["cpu_percent"], line["receive_bytes_per_second"], line["transmit_bytes_per_second"] = u.percent, u.rx, u.tx
	}
	return e.printJSON(line)
}
