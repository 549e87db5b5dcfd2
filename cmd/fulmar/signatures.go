package main

import (
	"errors"
	"fmt"
	"io/fs"
	"os"

	"fulmar/messages"
)

// signaturesBeside reads the signatures that lie beside an image file, as minisign and cosign name them.
func signaturesBeside(path string) ([]string, error) {
	var found []string
	for _, name := range []string{path + ".minisig", path + ".sig"} {
		info, err := os.Stat(name)
		if errors.Is(err, fs.ErrNotExist) {
			continue
		}
		if err != nil {
			return nil, fmt.Errorf("signature: %w", err)
		}
		if !info.Mode().IsRegular() || info.Size() > messages.MaxSignature {
			return nil, fmt.Errorf("signature %s is not a file of at most %d bytes", name, messages.MaxSignature)
		}
		text, err := os.ReadFile(name)
		if err != nil {
			return nil, fmt.Errorf("signature: %w", err)
		}
		found = append(found, string(text))
	}
	return found, nil
}
