package crash_test

import (
	"context"
	"fmt"
	"testing"

	"fulmar/e2e/lab"
)

func TestBusKilledAtEachStep(t *testing.T) {
	w := newWorld(t, 1)
	var all []testLife
	for _, p := range steps() {
		for _, when := range []lab.When{lab.Before, lab.After} {
			all = append(all, testLife{fmt.Sprintf("%s %s", when, p.name), func(l *life) {
				l.through(l.at(p, "", when, func(context.Context) error { return l.members["bus"].kill() }))
			}})
		}
	}
	w.lives(all)
}
