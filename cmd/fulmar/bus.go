package main

import (
	"fmt"
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
	if _, err := daemon.SdNotify(false, daemon.SdNotifyReady); err != nil {
		return fmt.Errorf("notify systemd: %w", err)
	}
	fmt.Fprintf(e.out, "fulmar %s: the bus is up at %s\n", bus.Version, server.URL())
	<-e.ctx.Done()
	return nil
}
