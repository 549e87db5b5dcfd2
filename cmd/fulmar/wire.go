package main

import (
	"bufio"
	"bytes"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"os"

	"fulmar/albatross"
	"fulmar/albatross/wirejson"
)

type wireCmd struct {
	Decode wireDecodeCmd `cmd:"" help:"Read messages of albatross's protocol from standard input and print each as a line of JSON."`
	Encode wireEncodeCmd `cmd:"" help:"Read lines of JSON from standard input, as decode prints them, and write the messages."`
}

type wireDecodeCmd struct{}

// Run prints messages as JSON.
func (wireDecodeCmd) Run(e *env) error { return decodeWire(os.Stdin, e.out) }

// decodeWire reads raw frames, or hexadecimal lines of frames or single messages.
func decodeWire(from io.Reader, to io.Writer) error {
	in := bufio.NewReader(from)
	first, err := in.Peek(64)
	if len(first) == 0 {
		if errors.Is(err, io.EOF) {
			return errors.New("there is nothing on standard input: give raw frames, or lines of hexadecimal")
		}
		return fmt.Errorf("read messages: %w", err)
	}
	if !isHex(first) {
		return decodeFrames(in, to)
	}
	lines := bufio.NewScanner(in)
	lines.Buffer(nil, 2*albatross.DefaultMaxFrame)
	for n := 1; lines.Scan(); n++ {
		raw, err := hex.DecodeString(string(bytes.Join(bytes.Fields(lines.Bytes()), nil)))
		switch {
		case err != nil:
		case len(raw) == 0:
			continue
		case raw[0] == 0x30: // a message: a frame of that length would be larger than any
			err = decodeMessage(raw, to)
		default:
			err = decodeFrames(bytes.NewReader(raw), to)
		}
		if err != nil {
			return fmt.Errorf("line %d: %w", n, err)
		}
	}
	return lines.Err()
}

func isHex(text []byte) bool {
	for _, c := range text {
		if !bytes.ContainsRune([]byte("0123456789abcdefABCDEF \t\r\n"), rune(c)) {
			return false
		}
	}
	return true
}

func decodeFrames(from io.Reader, to io.Writer) error {
	for n := 1; ; n++ {
		frame, err := albatross.ReadFrame(from, albatross.DefaultMaxFrame)
		if errors.Is(err, io.EOF) {
			return nil
		}
		if err == nil && len(frame) > 0 { // an empty one ends a stream
			err = decodeMessage(frame, to)
		}
		if err != nil {
			return fmt.Errorf("frame %d: %w", n, err)
		}
	}
}

func decodeMessage(der []byte, to io.Writer) error {
	w, err := albatross.Unmarshal(der)
	if err != nil {
		return err
	}
	text, err := wirejson.Marshal(w)
	if err != nil {
		return err
	}
	_, err = fmt.Fprintln(to, string(text))
	return err
}

type wireEncodeCmd struct {
	Hex bool `help:"Write hexadecimal, a frame a line, in place of raw frames."`
}

// Run writes messages.
func (c *wireEncodeCmd) Run(e *env) error { return encodeWire(os.Stdin, e.out, c.Hex) }

func encodeWire(from io.Reader, to io.Writer, asHex bool) error {
	lines := bufio.NewScanner(from)
	lines.Buffer(nil, 2*albatross.DefaultMaxFrame)
	for n := 1; lines.Scan(); n++ {
		if len(bytes.TrimSpace(lines.Bytes())) == 0 {
			continue
		}
		w, err := wirejson.Unmarshal(lines.Bytes())
		var der []byte
		if err == nil {
			der, err = albatross.Marshal(w)
		}
		if err != nil {
			return fmt.Errorf("line %d: %w", n, err)
		}
		var frame bytes.Buffer
		if err := albatross.WriteFrame(&frame, der); err != nil {
			return err
		}
		if asHex {
			_, err = fmt.Fprintf(to, "%x\n", frame.Bytes())
		} else {
			_, err = to.Write(frame.Bytes())
		}
		if err != nil {
			return err
		}
	}
	return lines.Err()
}
