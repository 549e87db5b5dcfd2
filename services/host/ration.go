package host

import (
	"bytes"
	"errors"
	"sync"

	"fulmar/albatross"
)

const (
	freeBytes    = 64 << 10 // of a request, that count towards no budget
	keepMax      = 1 << 20  // bytes that are uncompressed once
	budgetImages = 4        // times MaxImage: what all requests that are being read or carried out may hold
)

// errBusy reports that there are too many large requests.
const errBusy = refusal("too many large requests at once, try again")

// budget counts the bytes that requests hold.
type budget struct {
	mu   sync.Mutex
	used int64
}

func (b *budget) take(n, limit int64) bool {
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.used+n > limit {
		return false
	}
	b.used += n
	return true
}

func (b *budget) give(n int64) {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.used -= n
}

// ration is what one request has of the budget of all: what it brings, and what becomes of that in memory.
type ration struct {
	budget *budget
	limit  int64
	held   int64
	taken  int64
}

// ration is that of a new request.
func (s *Service) ration() *ration {
	return &ration{budget: &s.budget, limit: int64(s.cfg.MaxImage) * budgetImages}
}

// take counts n bytes more. The error is [errBusy] if there is no room for them.
func (r *ration) take(n int) error {
	r.held += int64(n)
	if want := r.held - freeBytes; want > r.taken {
		if !r.budget.take(want-r.taken, r.limit) {
			return errBusy
		}
		r.taken = want
	}
	return nil
}

// release gives all back.
func (r *ration) release() { r.budget.give(r.taken) }

// uncompress returns what a zlib stream of a request holds, at most limit bytes, and counts it: a small request may hold much. What is large is
// uncompressed twice, because only then it is known how much memory it needs; a buffer that grows would take thrice as much.
func (r *ration) uncompress(data []byte, limit int) ([]byte, error) {
	first := &measured{ration: r}
	err := albatross.UncompressTo(first, data, limit)
	out := first.data
	if err == nil && out.Len() < first.size {
		out = *bytes.NewBuffer(make([]byte, 0, first.size))
		err = albatross.UncompressTo(&out, data, limit)
	}
	switch {
	case errors.Is(err, errBusy):
		return nil, errBusy
	case err != nil:
		return nil, uncompressRefusal(err)
	}
	return out.Bytes(), nil
}

// measured counts what is written to it, as far as its ration goes, and keeps it if that is not much.
type measured struct {
	size   int
	data   bytes.Buffer
	ration *ration
}

// Write implements io.Writer.
func (m *measured) Write(p []byte) (int, error) {
	if err := m.ration.take(len(p)); err != nil {
		return 0, err
	}
	if m.size += len(p); m.size <= keepMax {
		return m.data.Write(p)
	}
	return len(p), nil
}
