package albatross

import (
	"errors"
	"strings"
)

// What a failure of a daemon can be, for errors.Is.
var (
	// ErrExists reports that a unikernel of the name runs, or that a block device of the name exists.
	ErrExists = errors.New("albatross: already exists")
	// ErrNotFound reports that there is nothing of the name.
	ErrNotFound = errors.New("albatross: not found")
	// ErrInUse reports that a unikernel uses the block device.
	ErrInUse = errors.New("albatross: in use")
	// ErrPolicy reports that a policy forbids it.
	ErrPolicy = errors.New("albatross: forbidden by policy")
)

// ErrNoReply reports that the daemon closed the connection without an answer: it does not know the command, or it ended.
var ErrNoReply = errors.New("albatross: no reply")

// ErrUnexpected reports an answer that does not fit the question.
var ErrUnexpected = errors.New("albatross: unexpected reply")

// ErrNoLabel reports a name without a label where one thing must be named. It is not sent: a create of it makes every later
// create of a real daemon fail.
var ErrNoLabel = errors.New("albatross: name has no label")

// FailureError is a failure that the daemon answered.
type FailureError struct {
	Command string // what was asked, such as "create"
	Name    Name
	Message string // of the daemon
}

// Error returns what was asked and the daemon's message.
func (e *FailureError) Error() string {
	return "albatross: " + e.Command + " " + e.Name.String() + ": " + e.Message
}

// Is tells whether the daemon's message means [ErrExists], [ErrNotFound], [ErrInUse] or [ErrPolicy].
func (e *FailureError) Is(target error) bool {
	return target != nil && target == meaning(e.Message)
}

// meaning tells the messages of albatross 2.7 apart.
func meaning(message string) error {
	switch message {
	case "Unikernel with same name is already running", "block device with same name already exists":
		return ErrExists
	case "get: no unikernel found", "unknown policy":
		return ErrNotFound
	case "remove block: is in use":
		return ErrInUse
	}
	if strings.HasSuffix(message, ": not found") { // destroy (also of restart), dump block, set block, remove block
		return ErrNotFound
	}
	for _, part := range []string{"allowed by policy", "set by policy", "policy above", "policy allows", "maximum allowed memory", "maximum amount of unikernels"} {
		if strings.Contains(message, part) {
			return ErrPolicy
		}
	}
	return nil
}
