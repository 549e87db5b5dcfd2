package docker

import (
	"bytes"
	"path"

	"github.com/moby/patternmatcher"
	"github.com/moby/patternmatcher/ignorefile"

	"fulmar/messages"
	fulmarv1 "fulmar/messages/fulmar/v1"
)

// KeepFile reads a .dockerignore file and gives what of a context it lets through, which always has the Dockerfile. An
// engine leaves that to its clients.
func KeepFile(ignore []byte, dockerfile string) (func(path string) bool, error) {
	patterns, err := ignorefile.ReadAll(bytes.NewReader(ignore))
	if err != nil {
		return nil, messages.Refuse(fulmarv1.ReasonCode_REASON_CODE_BUILD, "%w", err)
	}
	matcher, err := patternmatcher.New(patterns)
	if err != nil {
		return nil, messages.Refuse(fulmarv1.ReasonCode_REASON_CODE_BUILD, "%w", err)
	}
	return func(name string) bool {
		if name == path.Clean(dockerfile) {
			return true
		}
		ignored, err := matcher.MatchesOrParentMatches(name)
		return err != nil || !ignored
	}, nil
}
