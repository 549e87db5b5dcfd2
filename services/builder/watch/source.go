package watch

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"strconv"
	"time"

	"fulmar/messages"
	fulmarv1 "fulmar/messages/fulmar/v1"
)

const (
	maxSum  = 4 << 10 // bytes of a text that begins with a SHA-256
	maxETag = 256
)

// Lookers ask the sources what they are now. One that is nil is a kind of source that this builder cannot follow.
type Lookers struct {
	Git    func(context.Context, *fulmarv1.GitSource) (commit string, err error)
	Docker func(context.Context, *fulmarv1.DockerSource) (digest string, err error)
	HTTP   *http.Client // for the text with the SHA-256 of an artefact
}

// busyError is an answer that asks to come back later.
type busyError struct {
	error
	after time.Duration
}

func (b busyError) Unwrap() error { return b.error }

// wait is how long an error asks to stay away.
func wait(err error) time.Duration {
	if b, ok := errors.AsType[busyError](err); ok {
		return b.after
	}
	return 0
}

// look asks one source. What it was at the last look makes the question conditional.
func (l Lookers) look(ctx context.Context, i *fulmarv1.Image, last *fulmarv1.WatchedSource, now time.Time) Answer {
	var a Answer
	switch s := i.GetSource().(type) {
	case *fulmarv1.Image_Git:
		if l.Git == nil {
			return Answer{Err: errors.New("this builder has no git")}
		}
		a.Value, a.Err = l.Git(ctx, s.Git)
	case *fulmarv1.Image_Docker:
		if l.Docker == nil {
			return Answer{Err: errors.New("this builder has no Docker engine")}
		}
		a.Value, a.Err = l.Docker(ctx, s.Docker)
	case *fulmarv1.Image_Url:
		return sum(ctx, l.HTTP, i.GetSha256Url(), last, now)
	}
	if a.Err == nil && a.Value == "" {
		a.Err = errors.New("it cannot be followed")
	}
	return a
}

// sum asks for the text that begins with the SHA-256 of an artefact.
func sum(ctx context.Context, client *http.Client, url string, last *fulmarv1.WatchedSource, now time.Time) Answer {
	r, err := http.NewRequestWithContext(ctx, http.MethodGet, url, nil)
	if err != nil {
		return Answer{Err: err}
	}
	conditional := last.GetEtag() != "" && last.GetFound() != ""
	if conditional {
		r.Header.Set("If-None-Match", last.GetEtag())
	}
	answer, err := client.Do(r)
	if err != nil {
		return Answer{Err: err}
	}
	defer answer.Body.Close()
	switch {
	case answer.StatusCode == http.StatusNotModified && conditional:
		return Answer{Value: last.GetFound(), ETag: last.GetEtag()}
	case answer.StatusCode != http.StatusOK:
		return Answer{Err: busyError{fmt.Errorf("%s: the server answers %s", r.URL.Redacted(), answer.Status), retryAfter(answer.Header, now)}}
	}
	text, err := io.ReadAll(io.LimitReader(answer.Body, maxSum))
	if err != nil {
		return Answer{Err: fmt.Errorf("%s: %w", r.URL.Redacted(), err)}
	}
	value, err := messages.ParseSum(text)
	if err != nil {
		return Answer{Err: fmt.Errorf("%s: %w", r.URL.Redacted(), err)}
	}
	a := Answer{Value: value, ETag: answer.Header.Get("ETag")}
	if len(a.ETag) > maxETag {
		a.ETag = ""
	}
	return a
}

// retryAfter is how long a server asks to stay away: seconds or a date.
func retryAfter(h http.Header, now time.Time) time.Duration {
	text := h.Get("Retry-After")
	if seconds, err := strconv.ParseUint(text, 10, 31); err == nil {
		return time.Duration(seconds) * time.Second
	}
	if at, err := http.ParseTime(text); err == nil {
		return max(at.Sub(now), 0)
	}
	return 0
}
