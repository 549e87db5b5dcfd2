package main

import (
	"fmt"
	"net"
	"net/netip"
	"path/filepath"

	"github.com/coreos/go-systemd/v22/daemon"

	"fulmar/bus"
)

type busCmd struct {
	Data   string `default:"/var/lib/fulmar" env:"FULMAR_DATA" help:"Directory of what must stay through a boot."`
	Listen string `default:"127.0.0.1:4222" env:"FULMAR_LISTEN" help:"Address of the bus."`
}

// Run runs the bus alone until a signal comes.
func (c *busCmd) Run(e *env) error {
	server, err := bus.StartServer(filepath.Join(c.Data, "bus"), c.Listen)
	if err != nil {
		return err
	}
	defer server.Stop()
	if risk := exposed(c.Listen); risk != "" {
		fmt.Fprintf(e.err, "note: the bus listens on %s: %s\n", c.Listen, risk)
	}
	if _, err := daemon.SdNotify(false, daemon.SdNotifyReady); err != nil {
		return fmt.Errorf("notify systemd: %w", err)
	}
	fmt.Fprintf(e.out, "fulmar %s: the bus is up at %s\n", bus.Version, server.URL())
	<-e.ctx.Done()
	return nil
}

// exposed says what it means that the bus listens on an address, unless only this machine can reach that: it asks nobody who
// they are.
func exposed(listen string) string {
	host, _, err := net.SplitHostPort(listen)
	if err != nil || host == "localhost" {
		return "" // what is no address is refused by the bus itself
	}
	if ip, err := netip.ParseAddr(host); err == nil && ip.IsLoopback() {
		return ""
	}
	return "whoever reaches it can deploy, change every record, and have files below --file-root read; see \"Who may do what\" in docs/OPERATIONS.md"
}
