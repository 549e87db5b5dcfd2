package messages

import (
	"fmt"
	"strings"
)

// ParseSum gives the SHA-256 that a text begins with, in lower case: the text is as sha256sum prints it.
func ParseSum(text []byte) (string, error) {
	words := strings.Fields(strings.TrimPrefix(string(text), "\\")) // before a file name with a newline in it
	if len(words) == 0 {
		return "", fmt.Errorf("the text is empty")
	}
	sum := strings.ToLower(words[0])
	if !IsDigest(sum) {
		return "", fmt.Errorf("the text begins with %.70q and not with a SHA-256 of 64 hexadecimal digits", words[0])
	}
	return sum, nil
}
