package vmm

import (
	"context"
	"sync"

	"fulmar/messages"
	fulmarv1 "fulmar/messages/fulmar/v1"
)

// wanted gives a context that ends as soon as something newer of the stack is live or staged, with the refusal as its
// cause, and what lets go of it. One that is superseded already is refused at once.
func (s *Service) wanted(ctx context.Context, d *fulmarv1.Deployment) (wanted context.Context, release func(), err error) {
	superseded := func() error { return messages.Superseded(s.heads.Get(d.GetStack()), d.GetGeneration()) }
	if err := superseded(); err != nil {
		return nil, nil, err
	}
	wanted, cancel := context.WithCancelCause(ctx)
	var watching sync.WaitGroup
	watching.Go(func() {
		for {
			changed := s.heads.Changed()
			if err := superseded(); err != nil {
				cancel(err)
				return
			}
			select {
			case <-changed:
			case <-wanted.Done():
				return
			}
		}
	})
	return wanted, func() {
		cancel(nil)
		watching.Wait()
	}, nil
}
