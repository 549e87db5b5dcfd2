package main

import (
	"fmt"

	"google.golang.org/protobuf/proto"

	"fulmar/bus"
)

// readable gives the records of a bucket that can be read, by their keys, and tells of those that cannot: one that somebody
// spoiled must not hide the others.
func readable[M proto.Message](e *env, b *bus.Bucket[M]) (map[string]M, error) {
	all, bad, err := b.Readable(e.ctx)
	for _, u := range bad {
		e.leftOut(u)
	}
	return all, err
}

// leftOut tells of what cannot be read, without which a command goes on.
func (e *env) leftOut(err error) {
	fmt.Fprintf(e.err, "fulmar: %v; it is left out\n", err)
}
