package host

import (
	"bufio"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"time"

	"fulmar/albatross"
)

// keptConsole is a console in the file in which host leaves them to the next one: JSON values, the first of which is the boot id of the machine.
type keptConsole struct {
	Name    albatross.Name
	Ended   time.Time // when the last of its unikernels did
	Stopped bool      // by a command
	Lines   []keptLine
}

// keptLine is a line of a console; its text is any bytes.
type keptLine struct {
	At   time.Time
	Text []byte
}

// consolesPath is where host leaves the consoles to the next one.
func (s *Service) consolesPath() string { return filepath.Join(s.cfg.RunDir, "consoles") }

// leaveConsoles writes the consoles for the next host, which has no other way to them. One that is killed leaves none.
func (s *Service) leaveConsoles() (err error) {
	temp := s.consolesPath() + ".new"
	f, err := os.OpenFile(temp, os.O_WRONLY|os.O_CREATE|os.O_TRUNC, 0o600)
	if err != nil {
		return fmt.Errorf("leave the consoles: %w", err)
	}
	defer func() {
		if err != nil {
			err = errors.Join(fmt.Errorf("leave the consoles: %w", err), removeFile(temp))
		}
	}()
	w := bufio.NewWriter(f)
	out := json.NewEncoder(w)
	err = out.Encode(s.boot)
	for _, kept := range s.consoles.kept() {
		err = errors.Join(err, out.Encode(kept))
	}
	if err = errors.Join(err, w.Flush(), f.Close()); err != nil {
		return err
	}
	return os.Rename(temp, s.consolesPath())
}

// takeConsoles takes the consoles over that the host before has left in this boot, if it did. They are nobody's after that.
func (s *Service) takeConsoles() error {
	f, err := os.Open(s.consolesPath())
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return fmt.Errorf("take the consoles over: %w", err)
	}
	defer func() { _ = f.Close() }()
	if err := removeFile(s.consolesPath()); err != nil {
		return err
	}
	in := json.NewDecoder(bufio.NewReader(f))
	var boot string
	if err := in.Decode(&boot); err != nil || boot != s.boot {
		return nil //nolint:nilerr // it is of another boot, or nothing that we can read
	}
	for {
		var kept keptConsole
		err := in.Decode(&kept)
		if errors.Is(err, io.EOF) {
			return nil
		}
		if err != nil {
			return fmt.Errorf("take the consoles over: %w", err)
		}
		s.consoles.restore(kept)
	}
}

// kept lists the consoles of which a unikernel ran.
func (c *consoles) kept() (all []keptConsole) {
	c.mu.Lock()
	defer c.mu.Unlock()
	for name, con := range c.byName {
		con.mu.Lock()
		if con.used {
			kept := keptConsole{Name: name, Ended: con.ended, Stopped: con.stopped}
			for _, l := range con.kept() {
				kept.Lines = append(kept.Lines, keptLine{l.at, []byte(l.text)})
			}
			all = append(all, kept)
		}
		con.mu.Unlock()
	}
	return all
}

// restore puts a console back as one whose unikernel has ended; it is told if that runs.
func (c *consoles) restore(kept keptConsole) {
	con := &console{used: true, ended: kept.Ended, stopped: kept.Stopped}
	for _, l := range kept.Lines {
		con.add(line{at: l.At, text: string(l.Text)})
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	c.byName[kept.Name] = con
}
