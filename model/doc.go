// Package model holds only tests: a model of the whole of Fulmar over its real decisions. The transitions of the head, the
// entry of a request, the choice of instances and addresses, the verdicts of gc and the names of messages are the
// project's own code; the bus, the kernel, the host and the workers around them are a few maps.
//
// A schedule is one random interleaving of all workers, with crashes, doubled and frozen workers, forgotten
// acknowledgements, sweeps and a small pool of addresses. The same seed makes the same schedule. The invariants: an address
// is held by one instance; what the kernel publishes runs; neither kernel nor head goes back; one deployment is live, and
// one stack holds a port; at rest nothing is left over, nothing is silent, and every request has ended once.
//
// Each rule of the design, taken out, is caught. FULMAR_SCHEDULES says how many schedules to run, FULMAR_SEED from which
// on.
package model
