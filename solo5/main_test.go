package solo5_test

import (
	"os"
	"testing"

	"fulmar/solo5"
)

func TestMain(m *testing.M) {
	solo5.HVTMain() // the test binary is the tender of its hvt guests
	os.Exit(m.Run())
}
