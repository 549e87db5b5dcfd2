package firewall

import (
	"bufio"
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"strconv"
	"strings"
	"sync"
	"time"
)

const (
	// patience bounds one change of the rules: others who change some at the same time make it try again.
	patience = 10 * time.Second
	// probe bounds the first answer of a restorer. It is long: one that is only late must not be taken to be mute for ever.
	probe = 5 * time.Second
)

// restorer is an iptables-restore that waits for input all the time, so that a switch does not wait for a program to
// start, nor a removal for one to end (the kernel makes its end wait until the removed rules are out of use). With
// --verbose it repeats comments on its output: a comment behind a change says that the change was committed. An input
// that it refuses ends it.
type restorer struct {
	cmd    *exec.Cmd
	in     io.WriteCloser
	out    *bufio.Reader
	stderr *bytes.Buffer
	last   int // the number of the last comment
}

// errMute reports a restorer that does not repeat comments: not all versions do.
var errMute = errors.New("iptables-restore does not answer")

// startRestorer starts a restorer and waits for its first answer.
func startRestorer(program string, probe time.Duration) (*restorer, error) {
	r := &restorer{cmd: exec.Command(program, "--noflush", "--verbose", "--wait", seconds(patience)), stderr: &bytes.Buffer{}}
	r.cmd.Stderr = r.stderr
	out, err := r.cmd.StdoutPipe()
	if err != nil {
		return nil, err
	}
	if r.in, err = r.cmd.StdinPipe(); err != nil {
		return nil, err
	}
	r.out = bufio.NewReader(out)
	if err := r.cmd.Start(); err != nil {
		return nil, err
	}
	ctx, cancel := context.WithTimeout(context.Background(), probe)
	defer cancel()
	if err := r.restore(ctx, ""); err != nil {
		r.stop()
		if ctx.Err() != nil {
			err = errMute
		}
		return nil, err
	}
	return r, nil
}

// restore commits an input. After an error the restorer is of no use any more and must be stopped.
func (r *restorer) restore(ctx context.Context, input string) error {
	r.last++
	answer := "# " + strconv.Itoa(r.last) + "\n"
	kept := context.AfterFunc(ctx, func() { _ = r.cmd.Process.Kill() })
	defer kept()
	var written sync.WaitGroup
	written.Go(func() { _, _ = io.WriteString(r.in, input+answer) }) // an error shows by the end of its output
	defer written.Wait()
	for {
		text, err := r.out.ReadString('\n')
		switch {
		case text == answer && kept(): // else it is being killed, and the next input would meet that
			return nil
		case ctx.Err() != nil:
			return ctx.Err()
		case errors.Is(err, io.EOF) || errors.Is(err, os.ErrClosed):
			return r.failure()
		case err != nil:
			return err
		}
	}
}

// failure is why the restorer ended by itself.
func (r *restorer) failure() error {
	err := r.cmd.Wait()
	if err == nil {
		err = io.ErrUnexpectedEOF
	}
	return fmt.Errorf("iptables-restore: %w: %s", err, oneLine(r.stderr.String()))
}

// stop ends the restorer, if it has not ended. It is idle or of no use, so there is nothing to wait for.
func (r *restorer) stop() {
	_ = r.in.Close()
	if r.cmd.ProcessState == nil {
		_ = r.cmd.Process.Kill()
		_ = r.cmd.Wait()
	}
}

func seconds(d time.Duration) string { return strconv.Itoa(int(d / time.Second)) }

// oneLine makes what a program complained about fit an error.
func oneLine(s string) string { return strings.Join(strings.Fields(s), " ") }
