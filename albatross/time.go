package albatross

import (
	"errors"
	"fmt"
	"strings"
	"time"
)

var (
	errTimeRange  = errors.New("time is out of range")
	errTimeFormat = errors.New("time has a form that the daemon refuses")
)

// formatTime writes a GeneralizedTime as the reference does: without a fraction or with exactly three digits, cut.
func formatTime(t time.Time) (string, error) {
	t = t.UTC()
	if y := t.Year(); y < 0 || y > 9999 {
		return "", errTimeRange
	}
	if t.Nanosecond() == 0 {
		return t.Format("20060102150405Z"), nil
	}
	return fmt.Sprintf("%s.%03dZ", t.Format("20060102150405"), t.Nanosecond()/1e6), nil
}

// parseTime reads what the reference reads, which is more than DER allows: minutes, seconds, fraction and zone may be
// absent, up to three digits after the point are milliseconds (so .5 is 5 ms), and up to four more are skipped before a Z.
func parseTime(s string) (time.Time, error) {
	r := timeReader{s: s}
	year, month, day, hour := r.number(4), r.number(2), r.number(2), r.number(2)
	if r.bad {
		return time.Time{}, errTimeFormat
	}
	var minute, second, milli int
	if r.digit() {
		minute = r.number(2)
		if r.digit() {
			second = r.number(2)
			if r.skip(".") && r.digit() {
				milli = r.number(3)
			}
		}
	}
	zone := r.zone()
	if r.s != "" {
		return time.Time{}, errTimeFormat
	}
	t := time.Date(year, time.Month(month), day, hour, minute, second, milli*1e6, time.UTC)
	if month < 1 || month > 12 || day < 1 || day > daysIn(year, month) || hour > 23 || minute > 59 || second > 60 {
		return time.Time{}, errTimeRange
	}
	t = t.Add(-zone)
	if y := t.Year(); y < 0 || y > 9999 {
		return time.Time{}, errTimeRange
	}
	return t, nil
}

func daysIn(year, month int) int {
	return time.Date(year, time.Month(month)+1, 0, 0, 0, 0, 0, time.UTC).Day()
}

// timeReader consumes a GeneralizedTime from the left.
type timeReader struct {
	s   string
	bad bool
}

func (r *timeReader) digit() bool { return r.s != "" && r.s[0] >= '0' && r.s[0] <= '9' }

// number reads one to width digits.
func (r *timeReader) number(width int) int {
	if !r.digit() {
		r.bad = true
	}
	v := 0
	for i := 0; i < width && r.digit(); i++ {
		v = v*10 + int(r.s[0]-'0')
		r.s = r.s[1:]
	}
	return v
}

func (r *timeReader) skip(prefix string) bool {
	rest, ok := strings.CutPrefix(r.s, prefix)
	r.s = rest
	return ok
}

// zone reads a zone: hours and minutes that end the input, with or without a sign; or a Z, before which such digits mean nothing.
func (r *timeReader) zone() time.Duration {
	sign := time.Duration(1)
	if !r.skip("+") && r.skip("-") {
		sign = -1
	}
	if r.digit() {
		hours := r.number(2)
		if r.digit() {
			minutes := r.number(2)
			if r.s == "" {
				return sign * (time.Duration(hours)*time.Hour + time.Duration(minutes)*time.Minute)
			}
		}
	}
	r.skip("Z")
	return 0
}
