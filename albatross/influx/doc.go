// Package influx sends the statistics of unikernels to a time series database, in the line protocol of InfluxDB and with the
// names that albatross-influx gives them.
//
// It hears statistics ([Sink.Add]) and says lines, over TCP as albatross-influx does or over HTTP. Its state is what waits to be
// sent, in memory.
//
// The invariant: who adds statistics never waits, and what waits to be sent never takes more memory than it may. An endpoint
// that is away or slow costs the oldest lines, which are counted.
package influx
