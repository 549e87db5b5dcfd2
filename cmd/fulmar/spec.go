package main

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"regexp"
	"strconv"
	"strings"

	"go.yaml.in/yaml/v2"
)

// position is where an error is in the JSON that a spec was made into, which nobody wrote.
var position = regexp.MustCompile(`^(?:deploy request: )?(?:syntax error: )?(.*) \(line 1, column (\d+)\)$`)

// several reports whether a text has more than one YAML document that says anything, or that makes no sense. Only the
// first one would be read.
func several(text []byte) bool {
	d := yaml.NewDecoder(bytes.NewReader(text))
	for documents := 0; documents < 2; {
		var document any
		if err := d.Decode(&document); err != nil {
			return documents > 0 && !errors.Is(err, io.EOF) // of the first one, whoever reads it says what is wrong
		}
		if document != nil {
			documents++
		}
	}
	return true
}

// inSpec says of an error where it is in the spec from which body was made: at units[0].image.
func inSpec(err error, body []byte) error {
	m := position.FindStringSubmatch(err.Error())
	if m == nil {
		return err
	}
	column, cerr := strconv.Atoi(m[2])
	if cerr != nil {
		return err
	}
	if at := pathAt(body, column); at != "" {
		return fmt.Errorf("%s: %s", at, m[1])
	}
	return errors.New(m[1])
}

// pathAt gives the path of what begins at a column of one line of JSON, counted in characters from 1.
func pathAt(body []byte, column int) string {
	before := []rune(string(body))
	offset := int64(len(string(before[:min(column-1, len(before))])))
	d := json.NewDecoder(bytes.NewReader(body))
	var steps []step
	for {
		token, err := d.Token()
		if err != nil || token == json.Delim('}') || token == json.Delim(']') {
			if err != nil || d.InputOffset() > offset {
				return pathOf(steps)
			}
			steps = next(steps[:len(steps)-1])
			continue
		}
		if n := len(steps); n > 0 && steps[n-1].object && !steps[n-1].named {
			steps[n-1].key, steps[n-1].named = token.(string), true
			if d.InputOffset() > offset {
				return pathOf(steps)
			}
			continue
		}
		if d.InputOffset() > offset {
			return pathOf(steps)
		}
		switch token {
		case json.Delim('{'):
			steps = append(steps, step{object: true})
		case json.Delim('['):
			steps = append(steps, step{})
		default:
			steps = next(steps)
		}
	}
}

// step is where a reader of JSON is in an object or an array.
type step struct {
	object bool
	named  bool // the key was read, its value was not
	key    string
	index  int
}

// next is where the reader is after a value.
func next(steps []step) []step {
	if n := len(steps); n > 0 {
		steps[n-1].named = false
		steps[n-1].index++
	}
	return steps
}

func pathOf(steps []step) string {
	var b strings.Builder
	for _, s := range steps {
		switch {
		case !s.object:
			fmt.Fprintf(&b, "[%d]", s.index)
		case b.Len() > 0:
			b.WriteString("." + s.key)
		default:
			b.WriteString(s.key)
		}
	}
	return b.String()
}
