package remote

import (
	"net"
	"slices"
	"sync"

	"fulmar/albatross"
)

// connection is one client. Its fields belong to connections.
type connection struct {
	net.Conn
	known bool           // the root or who it delegated to signed it
	path  albatross.Path // that of whom the root delegated to
}

// connections are the clients, oldest first.
type connections struct {
	mu       sync.Mutex
	limit    int
	unknowns int // that may be in their handshake at once: each may hold a large certificate
	all      []*connection
	group    sync.WaitGroup
}

func newConnections(limit int) *connections {
	return &connections{limit: limit, unknowns: min(limit, max(limit/4, 8))}
}

// add takes a client in. If there are too many, the oldest that has not yet said who it is gives way; if all have, there is no
// room: nil.
func (cs *connections) add(conn net.Conn) *connection {
	cs.mu.Lock()
	defer cs.mu.Unlock()
	oldest, unknowns := -1, 0
	for i, c := range slices.Backward(cs.all) {
		if !c.known {
			oldest = i
			unknowns++
		}
	}
	switch {
	case len(cs.all) < cs.limit && unknowns < cs.unknowns:
	case oldest < 0:
		return nil
	default:
		_ = cs.all[oldest].Close() // its goroutine ends and finds itself removed
		cs.all = slices.Delete(cs.all, oldest, oldest+1)
	}
	c := &connection{Conn: conn}
	cs.all = append(cs.all, c)
	return c
}

// delegate is the path with one label that a path is in, or the root: who has that can delegate what is below it as often as they like.
func delegate(path albatross.Path) albatross.Path {
	for parent, ok := path.Parent(); ok && !parent.IsRoot(); parent, ok = path.Parent() {
		path = parent
	}
	return path
}

// authenticated says whose a client is: it gives way to nobody any more. It is false if there are too many of whom the root delegated its path to.
func (cs *connections) authenticated(c *connection, path albatross.Path) bool {
	path = delegate(path)
	cs.mu.Lock()
	defer cs.mu.Unlock()
	same := 0
	for _, other := range cs.all {
		if other.known && other.path == path {
			same++
		}
	}
	if same >= max(cs.limit/4, 1) {
		return false
	}
	c.known, c.path = true, path
	return true
}

// remove ends a client.
func (cs *connections) remove(c *connection) {
	cs.mu.Lock()
	defer cs.mu.Unlock()
	if i := slices.Index(cs.all, c); i >= 0 {
		cs.all = slices.Delete(cs.all, i, i+1)
	}
}

// wait blocks until every client is done.
func (cs *connections) wait() { cs.group.Wait() }
