package albatross

import (
	"bytes"
	"errors"
	"io"
	"strings"
	"testing"
	"testing/iotest"
)

func TestReadFrame(t *testing.T) {
	long := strings.Repeat("x", 3<<20)
	tests := map[string]struct {
		in    string
		limit int
		want  string
		err   error
	}{
		"a frame":                               {"\x00\x00\x00\x03abc", 3, "abc", nil},
		"an empty frame":                        {"\x00\x00\x00\x00", 3, "", nil},
		"only the first of two":                 {"\x00\x00\x00\x01a\x00\x00\x00\x01b", 3, "a", nil},
		"one larger than what is read at first": {"\x00\x30\x00\x00" + long, 4 << 20, long, nil},
		"nothing":                               {"", 3, "", io.EOF},
		"half a length":                         {"\x00\x00", 3, "", io.ErrUnexpectedEOF},
		"half a frame":                          {"\x00\x00\x00\x03ab", 3, "", io.ErrUnexpectedEOF},
		"a length without a frame":              {"\x00\x00\x00\x03", 3, "", io.ErrUnexpectedEOF},
		"half a large frame":                    {"\x00\x30\x00\x00" + long[:2<<20], 4 << 20, "", io.ErrUnexpectedEOF},
		"one byte too long":                     {"\x00\x00\x00\x04abcd", 3, "", ErrFrameTooLarge},
		"four gigabytes":                        {"\xff\xff\xff\xff", 3, "", ErrFrameTooLarge},
	}
	for name, tt := range tests {
		t.Run(name, func(t *testing.T) {
			got, err := ReadFrame(iotest.OneByteReader(strings.NewReader(tt.in)), tt.limit)
			if !errors.Is(err, tt.err) || string(got) != tt.want {
				t.Errorf("got %d bytes, error %v; want %d bytes, error %v", len(got), err, len(tt.want), tt.err)
			}
		})
	}
}

// A frame announced but not sent must not cost memory.
func TestReadFrameAllocatesWhatComes(t *testing.T) {
	boundedAlloc(t, 2<<20/128, func() {
		_, err := ReadFrame(strings.NewReader("\x7f\xff\xff\xffabc"), 1<<31-1)
		if !errors.Is(err, io.ErrUnexpectedEOF) {
			t.Errorf("got %v", err)
		}
	})
}

func TestWriteFrameIsReadAgain(t *testing.T) {
	for _, data := range []string{"", "a", strings.Repeat("b", 2<<20)} {
		var buf bytes.Buffer
		if err := WriteFrame(&buf, []byte(data)); err != nil {
			t.Fatal(err)
		}
		got, err := ReadFrame(&buf, 4<<20)
		if err != nil || string(got) != data || buf.Len() != 0 {
			t.Errorf("%d bytes come back as %d, %d left over, error %v", len(data), len(got), buf.Len(), err)
		}
	}
}
