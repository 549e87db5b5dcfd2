package oci

// Bound lowers the bounds of a layout for a test.
func (l *Layout) Bound(unpacked int64, nodes int) { l.unpacked, l.nodes = unpacked, nodes }
