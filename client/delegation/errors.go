package delegation

import (
	"errors"
	"fmt"
	"maps"
	"strings"
	"time"

	"google.golang.org/genproto/googleapis/rpc/errdetails"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/types/known/durationpb"
)

// ErrorDomain is the domain of google.rpc.ErrorInfo in every gRPC error that Deputy returns.
const ErrorDomain = "deputy"

// MetadataNonce is the metadata key of a ProofNonceNeeded that holds the nonce for the next DPoP
// proof.
const MetadataNonce = "dpop_nonce"

// Error is the one error of Deputy's API. Both wires carry reason, field, description and metadata.
// The cause stays on the server, for its log and its ledger.
type Error struct {
	Reason      Reason
	Field       string            // the parameter or configuration field with the fault, or ""
	Description string            // which rule was broken and what to do; never holds a credential
	Metadata    map[string]string // facts for programs, such as the missing relation
	RetryAfter  time.Duration     // how long to wait before the next attempt; 0: not known

	cause error
}

// Refuse makes an Error. The description is sent to the caller and must hold no secret.
func Refuse(reason Reason, field, format string, args ...any) *Error {
	return &Error{Reason: reason, Field: field, Description: asciiText(fmt.Sprintf(format, args...))}
}

// Unavailable reports that a dependency did not return a usable answer. The cause never reaches a
// wire.
func Unavailable(dependency string, cause error) *Error {
	e := Refuse(DependencyDown, "", "%s is not available: try again", dependency)
	e.RetryAfter = time.Second
	return e.WithCause(cause)
}

// AsError returns the *Error in a chain of errors. Any other error becomes an Internal error with
// err as its cause, which no wire carries. It returns nil for nil.
func AsError(err error) *Error {
	var e *Error
	switch {
	case err == nil:
		return nil
	case errors.As(err, &e):
		return e
	}
	return Refuse(Internal, "", "internal error").WithCause(err)
}

// WithCause returns a copy with err as its cause.
func (e *Error) WithCause(err error) *Error {
	c := *e
	c.cause = err
	return &c
}

// WithMetadata returns a copy with one more metadata entry.
func (e *Error) WithMetadata(key, value string) *Error {
	c := *e
	c.Metadata = maps.Clone(e.Metadata)
	if c.Metadata == nil {
		c.Metadata = make(map[string]string, 1)
	}
	c.Metadata[key] = value
	return &c
}

// Error returns reason, field and description: only what a wire may carry.
func (e *Error) Error() string {
	if e.Field == "" {
		return fmt.Sprintf("%s: %s", e.Reason, e.Description)
	}
	return fmt.Sprintf("%s: %s: %s", e.Reason, e.Field, e.Description)
}

// Unwrap returns the cause, for the server's log.
func (e *Error) Unwrap() error { return e.cause }

// Temporary reports whether the same request may succeed later.
func (e *Error) Temporary() bool { return e.Reason == DependencyDown || e.Reason == RateLimited }

// Keys of ErrorInfo's metadata that are not metadata of the caller.
const (
	metaField = "field"
	metaOAuth = "error"
)

// GRPCStatus returns the gRPC form: code, description, ErrorInfo and, where RetryAfter is set,
// RetryInfo.
func (e *Error) GRPCStatus() *status.Status {
	wire := e.Reason.Wire()
	info := &errdetails.ErrorInfo{Reason: string(e.Reason), Domain: ErrorDomain, Metadata: map[string]string{metaOAuth: wire.OAuth}}
	maps.Copy(info.Metadata, e.Metadata)
	if e.Field != "" {
		info.Metadata[metaField] = e.Field
	}
	st := status.New(wire.GRPC, e.Description)
	if detailed, err := st.WithDetails(info); err == nil {
		st = detailed
	}
	if e.RetryAfter > 0 {
		if detailed, err := st.WithDetails(&errdetails.RetryInfo{RetryDelay: durationpb.New(e.RetryAfter)}); err == nil {
			st = detailed
		}
	}
	return st
}

// withoutInfo gives the reason for a gRPC code without Deputy's ErrorInfo, from a proxy or from
// gRPC itself. A code that is not listed is Internal.
var withoutInfo = map[codes.Code]Reason{
	codes.Unavailable:       DependencyDown,
	codes.DeadlineExceeded:  DependencyDown,
	codes.Canceled:          DependencyDown,
	codes.ResourceExhausted: RateLimited,
	codes.Unauthenticated:   ClientUnauthenticated,
	codes.PermissionDenied:  AccessDenied,
	codes.NotFound:          NotFound,
	codes.InvalidArgument:   ParameterInvalid,
	codes.Unimplemented:     MethodNotAllowed,
}

// FromStatus rebuilds the Error that a Deputy server sent. An error without Deputy's ErrorInfo, or
// with a reason that this version does not have, gets the reason that is closest to its gRPC code.
func FromStatus(err error) *Error {
	if err == nil {
		return nil
	}
	st := status.Convert(err)
	e := &Error{Reason: Internal, Description: asciiText(st.Message()), cause: err}
	if reason, known := withoutInfo[st.Code()]; known {
		e.Reason = reason
	}
	for _, detail := range st.Details() {
		switch d := detail.(type) {
		case *errdetails.ErrorInfo:
			if d.GetDomain() != ErrorDomain {
				continue
			}
			if reason := Reason(d.GetReason()); reason.Known() {
				e.Reason = reason
			}
			e.Field = asciiText(d.GetMetadata()[metaField])
			e.Metadata = maps.Clone(d.GetMetadata())
			delete(e.Metadata, metaField)
			delete(e.Metadata, metaOAuth)
		case *errdetails.RetryInfo:
			e.RetryAfter = d.GetRetryDelay().AsDuration()
		}
	}
	return e
}

// asciiText limits a description to the characters that RFC 6749 §5.2 allows for error_description,
// so it is inert in headers, logs and terminals too. It writes section signs as a word.
func asciiText(s string) string {
	return strings.Map(func(r rune) rune {
		switch {
		case r == '"' || r == '\\':
			return '\''
		case r < 0x20 || r > 0x7e:
			return '.'
		}
		return r
	}, strings.ReplaceAll(s, "§", "section "))
}
