package lab

import (
	"bytes"
	"errors"
	"fmt"
	"io/fs"
	"net"
	"os"
	"path/filepath"

	"fulmar/albatross"
)

// NewDaemonWire makes a run directory of albatross of which the socket of commands is a wire to the host's daemon. With
// group the socket is for that group too.
func (l *Lab) NewDaemonWire(dir string, group int) (*Wire, error) {
	wrap := func(err error) error { return fmt.Errorf("make a wire to the host: %w", err) }
	path := filepath.Join(dir, albatross.VMMDSocket)
	if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
		return nil, wrap(err)
	}
	if err := os.Remove(path); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return nil, wrap(err)
	}
	if err := os.Symlink(filepath.Join(l.RunDir(), albatross.ConsoleSocket), filepath.Join(dir, albatross.ConsoleSocket)); err != nil && !errors.Is(err, fs.ErrExist) {
		return nil, wrap(err)
	}
	listener, err := net.Listen("unix", path)
	if err != nil {
		return nil, wrap(err)
	}
	if err := errors.Join(os.Chown(path, 0, group), os.Chmod(path, 0o660)); err != nil {
		return nil, wrap(errors.Join(err, listener.Close()))
	}
	to := filepath.Join(l.RunDir(), albatross.VMMDSocket)
	return newWire(listener, func() (net.Conn, error) { return net.Dial("unix", to) }, (*link).serveDaemon), nil
}

// serveDaemon passes one command on, and its answer back.
func (k *link) serveDaemon() {
	frame, err := albatross.ReadFrame(k.client, albatross.DefaultMaxFrame)
	if err != nil {
		return
	}
	asked := command(frame)
	t := k.wire.match(asked)
	if t != nil && t.when == Before && !t.hold(k.closed) {
		return
	}
	var answer []byte
	if err = albatross.WriteFrame(k.server, frame); err == nil {
		answer, err = albatross.ReadFrame(k.server, albatross.DefaultMaxFrame)
	}
	if err == nil && asked.Subject == "create" && done(answer) {
		k.wire.observe(Message{Subject: "created", Body: asked.Body})
	}
	if t != nil && t.when == After && !t.hold(k.closed) || err != nil {
		return
	}
	_ = albatross.WriteFrame(k.client, answer) // a client that is gone does not care
}

// done reports whether an answer says that it was done.
func done(answer []byte) bool {
	w, err := albatross.Unmarshal(bytes.Clone(answer))
	if err != nil {
		return false
	}
	_, ok := w.Payload.(albatross.Success)
	return ok
}

// command says what a frame asks for.
func command(frame []byte) Message {
	w, err := albatross.Unmarshal(bytes.Clone(frame))
	if err != nil {
		return Message{}
	}
	m := Message{Body: []byte(w.Name.Label())}
	switch w.Payload.(type) {
	case albatross.UnikernelCreate:
		m.Subject = "create"
	case albatross.UnikernelDestroy:
		m.Subject = "destroy"
	case albatross.UnikernelInfo:
		m.Subject = "info"
	}
	return m
}
