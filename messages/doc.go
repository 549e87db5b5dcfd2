// Package messages is the contract of Fulmar: the protobuf messages, the subjects, streams and buckets they travel
// and rest in, the head of a stack with its transitions, and the checks of what people send.
//
// Everything here is pure: it knows no connection, clock or log. The invariant it guards is rule 1 of the design: a
// head is edited only by the transitions of head.go, and its states only grow.
package messages
