// Package remote manages the unikernels of another machine over mutual TLS, as albatross does: the command is in the client's
// certificate.
//
// A [Server] hears TLS 1.3 connections. It takes the command from an extension of the client's certificate, the policies from
// the CA certificates between that and the root, and the name from their common names; it says the same to the daemon's
// sockets and relays the answers. An [Endpoint] is the other side: it puts each command of an [albatross.Client] into a
// certificate that holds for five minutes. An [Authority] makes certificates.
//
// The package keeps no state but its open connections: what a client may do stands in certificates, and the daemon enforces it.
//
// The invariant: nothing reaches the daemon that the holder of the root's key, or somebody to whom it delegated the path, did
// not sign; and no client can hold more than its share of connections, memory and time.
package remote
