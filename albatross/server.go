package albatross

import (
	"errors"
	"fmt"
	"io"
)

// ErrNotACommand reports a message from a client that is a reply or data.
var ErrNotACommand = errors.New("albatross: message is not a command")

// ReadRequest reads one command of at most limit bytes, as a server does. It is io.EOF if the client has closed instead,
// [ErrFrameTooLarge], [ErrMalformed] or [ErrNotACommand]: of a malformed message the header is not known, so a server can only
// close the connection, as the reference does. Byte strings of the command are not shared with anything.
func ReadRequest(r io.Reader, limit int) (Header, Command, error) {
	frame, err := ReadFrame(r, limit)
	if err != nil {
		return Header{}, nil, err
	}
	w, err := Unmarshal(frame)
	if err != nil {
		return Header{}, nil, err
	}
	m, ok := w.Payload.(Command)
	if !ok {
		return w.Header, nil, fmt.Errorf("%w: %T", ErrNotACommand, w.Payload)
	}
	return w.Header, m, nil
}

// WriteReply answers the command of a header, which is echoed, with a [Success], a [Failure], or [Data] that echoes it too
// (that of a block device).
func WriteReply(w io.Writer, to Header, p Payload) error {
	der, err := Marshal(Wire{Header: to, Payload: p})
	if err != nil {
		return err
	}
	return WriteFrame(w, der)
}

// WriteData sends console or statistics data about a unikernel to a subscriber. Its sequence is 0.
func WriteData(w io.Writer, about Name, d Data) error {
	return WriteReply(w, Header{Name: about}, d)
}
