package albatross

import (
	"time"

	"golang.org/x/crypto/cryptobyte"
)

// Command is what a client asks for.
type Command interface {
	Payload
	addCommand(*cryptobyte.Builder)
}

// The commands of the console daemon.
type (
	// ConsoleAdd announces a unikernel whose FIFO is to be read. Daemons send it to one another.
	ConsoleAdd struct {
		Count int // of unikernels that the policy of the path allows
	}
	// ConsoleSubscribe asks for the lines of a unikernel as they come, and for some of the past.
	ConsoleSubscribe struct {
		Since *time.Time // if set, of the past those since then, to the millisecond; or else
		Count int        // the last so many
	}
	// ConsoleListInactive asks for the unikernels that do not run and whose lines are still kept.
	ConsoleListInactive struct{}
)

// The commands of the statistics daemon.
type (
	// StatsAdd announces a process to be watched. Daemons send it to one another.
	StatsAdd struct {
		VMMDev string
		PID    int
		Taps   []Tap
	}
	// StatsRemove ends what StatsAdd began.
	StatsRemove struct{}
	// StatsSubscribe asks for statistics as they are gathered.
	StatsSubscribe struct{}
	// StatsInitial opens the connection over which the daemon announces processes.
	StatsInitial struct{}
)

// Tap is a network device of a unikernel on the host.
type Tap struct{ Bridge, Tap string }

// The commands for unikernels.
type (
	// UnikernelInfo asks for the unikernel of a name, or for all in a path; the answer is [Unikernels] of the same generation.
	UnikernelInfo struct{ Generation Generation }
	// UnikernelGet asks for the image of a unikernel; the answer is an [Image].
	UnikernelGet struct {
		Level int // of compression, 0 (none) to 9
	}
	// UnikernelCreate starts a unikernel. Never send it with a name that has no label.
	UnikernelCreate struct {
		Config     Config
		Force      bool // stop the one that runs by that name first
		Generation Generation
	}
	// UnikernelRestart stops a unikernel and starts it again.
	UnikernelRestart struct {
		Args       *Args // new ones; nil keeps the old
		Generation Generation
	}
	// UnikernelDestroy stops a unikernel.
	UnikernelDestroy struct{}
)

// The commands for policies.
type (
	// PolicyInfo asks for the policies of a path and below; the answer is [Policies].
	PolicyInfo struct{}
	// PolicyAdd sets the policy of a path. The connection stays open for the next command.
	PolicyAdd struct{ Policy Policy }
	// PolicyRemove removes the policy of a path.
	PolicyRemove struct{}
)

// The commands for block devices.
type (
	// BlockInfo asks for the block device of a name, or for all in a path; the answer is [Blocks].
	BlockInfo struct{}
	// BlockAdd makes a block device.
	BlockAdd struct {
		Size int // in MB
	}
	// BlockRemove removes a block device.
	BlockRemove struct{}
	// BlockSet fills a block device with what follows in frames; the stream ends with an empty one.
	BlockSet struct {
		Compressed bool
	}
	// BlockDump asks for the content of a block device; the answer is a [BlockImage], then [BlockData] until one without data.
	BlockDump struct {
		Level int // of compression, 0 (none) to 9
	}
	// OldBlockAdd is BlockAdd with content, of albatross before 2.6.
	OldBlockAdd struct {
		Size       int // in MB
		Compressed bool
		Data       []byte // nil if there is none
	}
	// OldBlockSet is BlockSet with the content in the message, of albatross before 2.6.
	OldBlockSet struct {
		Compressed bool
		Data       []byte
	}
	// OldBlockDump is BlockDump of albatross before 2.6; the answer is an [OldBlockImage].
	OldBlockDump struct{ Level int }
)

func (ConsoleAdd) payload()          {}
func (ConsoleSubscribe) payload()    {}
func (ConsoleListInactive) payload() {}
func (StatsAdd) payload()            {}
func (StatsRemove) payload()         {}
func (StatsSubscribe) payload()      {}
func (StatsInitial) payload()        {}
func (UnikernelInfo) payload()       {}
func (UnikernelGet) payload()        {}
func (UnikernelCreate) payload()     {}
func (UnikernelRestart) payload()    {}
func (UnikernelDestroy) payload()    {}
func (PolicyInfo) payload()          {}
func (PolicyAdd) payload()           {}
func (PolicyRemove) payload()        {}
func (BlockInfo) payload()           {}
func (BlockAdd) payload()            {}
func (BlockRemove) payload()         {}
func (BlockSet) payload()            {}
func (BlockDump) payload()           {}
func (OldBlockAdd) payload()         {}
func (OldBlockSet) payload()         {}
func (OldBlockDump) payload()        {}
