// Package albatross speaks the protocol of the albatross daemons, which run Solo5 unikernels, as a client and as a server.
//
// It hears and says DER-encoded messages ([Wire]) in length-prefixed frames ([ReadFrame], [WriteFrame]) on the Unix stream
// sockets of a daemon's run directory: util/vmmd.sock, util/console.sock and util/stat.sock. [Client] asks one question per
// connection; [ReadRequest], [WriteReply] and [WriteData] are the other side of the same conversation.
//
// The package keeps no state but the generation of its server that a Client has learnt.
//
// The invariant: what [Unmarshal] returns can be given to [Marshal], and what Marshal writes is what the reference
// implementation writes, byte for byte, for the newest and the older generations. No input makes it panic or
// allocate more than a small multiple of the input's size. Byte strings that Unmarshal returns share memory with its input.
package albatross
