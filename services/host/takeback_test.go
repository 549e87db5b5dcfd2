package host

import (
	"log/slog"
	"testing"

	"fulmar/albatross"
)

// TestACreateThatFailsTakesNothingFromWhatIsDue has it come before who watched the unikernel that is due has the name, and fail when its process
// was written down.
func TestACreateThatFailsTakesNothingFromWhatIsDue(t *testing.T) {
	log := slog.New(slog.DiscardHandler)
	store, err := openStore(t.TempDir())
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = store.close() })
	name, err := albatross.ParseName(":a")
	if err != nil {
		t.Fatal(err)
	}
	digest := make([]byte, 32)
	if err := store.saveImage(digest, []byte("image")); err != nil {
		t.Fatal(err)
	}
	due := &instance{record: record{Name: name, Digest: digest, Boot: "boot"}, attempt: 3, exited: make(chan struct{}), done: make(chan struct{})}
	close(due.exited)
	close(due.done)
	due.gone.Store(true)
	due.due.Store(true)
	e := &entry{inst: due}
	s := &Service{log: log, store: store, boot: "boot", names: map[albatross.Name]*entry{name: e}}

	if err := s.stop(due); err != nil {
		t.Fatal(err)
	}
	other := due.record
	other.Args.Memory = 99
	if err := store.saveRecord(other); err != nil {
		t.Fatal(err)
	}
	if err := store.saveHandle(name, handle{identity: identity{PID: 1}, Boot: "boot"}); err != nil {
		t.Fatal(err)
	}
	if err := s.takeBack(e, name); err != nil {
		t.Fatal(err)
	}
	if s.settled(due, true) {
		t.Error("it is not started again by this host")
	}
	all, err := store.load(log)
	if err != nil || len(all) != 1 || all[0].handle == nil {
		t.Fatalf("what is written is %+v, %v", all, err)
	}
	if got := all[0]; got.handle.PID != 0 || got.handle.Attempt != 4 || got.Args.Memory != 0 {
		t.Errorf("the next host finds %+v, %+v", got.record, *got.handle)
	}
}
