package messages

import (
	"strings"
	"testing"
)

func TestParseSum(t *testing.T) {
	sum := strings.Repeat("0123456789abcdef", 4)
	for text, want := range map[string]string{
		sum:                              sum,
		sum + "  www.hvt\n":              sum,
		strings.ToUpper(sum) + " *a.hvt": sum,
		"\\" + sum + "  a\\nb":           sum,
		"":                               "",
		sum[1:] + "  www.hvt":            "",
		"<html>not found</html>":         "",
	} {
		got, err := ParseSum([]byte(text))
		if got != want || (err == nil) != (want != "") {
			t.Errorf("%q gives %q, %v", text, got, err)
		}
	}
}
