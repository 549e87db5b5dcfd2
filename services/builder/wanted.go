package builder

import (
	"context"
	"sync"
	"time"

	"fulmar/messages"
	fulmarv1 "fulmar/messages/fulmar/v1"
)

// wanted gives a context that ends as soon as nobody wants the images of a deployment any more, with the reason as its
// cause, and what lets go of it.
func (s *Service) wanted(ctx context.Context, d *fulmarv1.Deployment) (wanted context.Context, release func()) {
	ctx, cancel := context.WithCancelCause(ctx)
	var watching sync.WaitGroup
	watching.Go(func() {
		for {
			changed := s.heads.Changed()
			if err := unwanted(s.heads.Get(d.GetStack()), d.GetGeneration()); err != nil {
				cancel(err)
				return
			}
			select {
			case <-changed:
			case <-ctx.Done():
				return
			}
		}
	})
	return ctx, func() {
		cancel(nil)
		watching.Wait()
	}
}

// unwanted tells from the head of its stack why a deployment need not be built any more. A deployment gives way only to a
// newer one that is live or staged, and ends when it is condemned, which is said by who condemns it.
func unwanted(h *fulmarv1.Head, generation uint64) error {
	if d := messages.Find(h, generation); d.GetState() == fulmarv1.State_STATE_CONDEMNED || d == nil && h.GetNewest() >= generation {
		return messages.ErrLate
	}
	return messages.Superseded(h, generation)
}

// maxTroubles is how many deployments' troubles are remembered.
const maxTroubles = 4096

// troubles remembers since when the images of deployments could not be got. Nothing rests on it: what is forgotten is tried
// for longer.
type troubles struct {
	mu    sync.Mutex
	since map[string]time.Time // by deployment
}

// last reports how long there has been trouble with a deployment.
func (t *troubles) last(deployment string, now time.Time) time.Duration {
	t.mu.Lock()
	defer t.mu.Unlock()
	since, ok := t.since[deployment]
	if !ok {
		if len(t.since) >= maxTroubles {
			clear(t.since)
		}
		since = now
		t.since[deployment] = now
	}
	return now.Sub(since)
}

func (t *troubles) forget(deployment string) {
	t.mu.Lock()
	defer t.mu.Unlock()
	delete(t.since, deployment)
}
