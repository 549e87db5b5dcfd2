package messages

import (
	"errors"
	"fmt"

	fulmarv1 "fulmar/messages/fulmar/v1"
)

// Refusal is an error that no second try can cure: it ends a deployment as rejected or failed, with its text as the
// reason that a person reads.
type Refusal struct {
	Code fulmarv1.ReasonCode
	Err  error
}

// Refuse makes a refusal of a format as [fmt.Errorf] takes it.
func Refuse(code fulmarv1.ReasonCode, format string, args ...any) error {
	return &Refusal{Code: code, Err: fmt.Errorf(format, args...)}
}

// Error is the reason.
func (r *Refusal) Error() string { return r.Err.Error() }

// Unwrap gives the cause.
func (r *Refusal) Unwrap() error { return r.Err }

// AsRefusal finds the refusal in err.
func AsRefusal(err error) (*Refusal, bool) {
	return errors.AsType[*Refusal](err)
}
