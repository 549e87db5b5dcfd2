package crash_test

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"golang.org/x/sync/errgroup"

	"fulmar/e2e/lab"
)

// atOnce is how many lives are lived at once: all suffer from the crash of one.
const atOnce = 8

// lives runs lives in parallel, each with a stack and a port of its own, and then looks that nothing is left.
func (w *world) lives(all []testLife) {
	w.t.Helper()
	var running errgroup.Group // they mostly wait: there may be more of them than of processors
	running.SetLimit(atOnce)
	for i, one := range spread(all) {
		running.Go(func() error {
			w.t.Run(one.name, func(t *testing.T) { one.live(w.newLife(t, fmt.Sprintf("s%d", i+1), uint16(8000+i))) })
			return nil
		})
	}
	_ = running.Wait()
	w.nothingLeft()
}

// spread changes an order so that lives whose faults hit the same service do not come at once.
func spread(all []testLife) []testLife {
	var order []testLife
	for from := range atOnce {
		for i := from; i < len(all); i += atOnce {
			order = append(order, all[i])
		}
	}
	return order
}

type testLife struct {
	name string
	live func(*life)
}

// at gives the fault that happens at a point of a life.
func (l *life) at(p point, replica string, when lab.When, do func(context.Context) error) map[phase]func() fault {
	faults := map[phase]func() fault{}
	for _, ph := range p.phases {
		faults[ph] = func() fault {
			wire := l.members[p.service+replica].wire
			if p.host {
				wire = l.daemons[p.service+replica]
			}
			return fault{trap: wire.Trap(when, p.is(l.stack)), do: do}
		}
	}
	return faults
}

// ownImageFor gives a life an image of its own if the point needs one, which is used in the first phase only.
func (l *life) ownImageFor(p *point) {
	l.t.Helper()
	if strings.Contains(p.name, "image") {
		l.ownImage()
		p.phases = []phase{first}
	}
}

// ownImage gives a life an image that is not in the store yet.
func (l *life) ownImage() {
	l.t.Helper()
	image, err := os.ReadFile(l.image)
	if err != nil {
		l.t.Fatal(err)
	}
	l.file = filepath.Join(l.Dir, l.stack+".spt")
	if err := os.WriteFile(l.file, append(image, l.stack...), 0o644); err != nil {
		l.t.Fatal(err)
	}
}

func TestServiceKilledAtEachStep(t *testing.T) {
	w := newWorld(t, 1)
	var all []testLife
	for _, p := range points() {
		for _, when := range []lab.When{lab.Before, lab.After} {
			all = append(all, testLife{fmt.Sprintf("%s %s", when, p.name), func(l *life) {
				l.ownImageFor(&p)
				l.through(l.at(p, "", when, func(context.Context) error { return l.members[p.service].kill() }))
			}})
		}
	}
	w.lives(all)
}
