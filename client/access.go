package client

import (
	"errors"
	"fmt"
	"net/http"
	"strconv"
	"strings"
	"time"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"deputy.example/deputy/client/delegation"
)

// AccessCode says in which way a resource server refuses.
type AccessCode string

const (
	// AccessNoToken: the request carries no token. RFC 6750 §3.1 wants no error code on the wire.
	AccessNoToken AccessCode = ""
	// AccessInvalidRequest: the request carries its token in a way that is not allowed.
	AccessInvalidRequest AccessCode = "invalid_request"
	// AccessInvalidToken: the token is malformed, expired, for somebody else, bound to a key that
	// was not proven, or not signed by the issuer.
	AccessInvalidToken AccessCode = "invalid_token"
	// AccessInsufficientScope: the token is good and does not allow this.
	AccessInsufficientScope AccessCode = "insufficient_scope"
	// AccessUnavailable: the token cannot be judged now. Not a code of RFC 6750.
	AccessUnavailable AccessCode = "temporarily_unavailable"
)

// AccessError is the error of a Verifier: a request was refused (RFC 6750 §3.1).
type AccessError struct {
	Code        AccessCode
	Description string            // fit for the wire: never repeats the token
	Scopes      delegation.Scopes // what is needed; AccessInsufficientScope only

	cause error
}

// Error is what the wire may see.
func (e *AccessError) Error() string {
	if e.Code == AccessNoToken {
		return e.Description
	}
	return string(e.Code) + ": " + e.Description
}

// Unwrap gives the cause to the resource server's log. It may quote claims, never a token.
func (e *AccessError) Unwrap() error { return e.cause }

func denied(code AccessCode, format string, args ...any) *AccessError {
	return &AccessError{Code: code, Description: fmt.Sprintf(format, args...)}
}

func (e *AccessError) because(cause error) *AccessError {
	e.cause = cause
	return e
}

// accessError finds the AccessError in err; anything else means that nothing is known.
func accessError(err error) *AccessError {
	var e *AccessError
	if errors.As(err, &e) {
		return e
	}
	return denied(AccessUnavailable, "the token cannot be verified now").because(err)
}

// HTTPStatus is the status code of RFC 6750 §3.1.
func (e *AccessError) HTTPStatus() int {
	switch e.Code {
	case AccessInvalidRequest:
		return http.StatusBadRequest
	case AccessInsufficientScope:
		return http.StatusForbidden
	case AccessUnavailable:
		return http.StatusServiceUnavailable
	}
	return http.StatusUnauthorized
}

// GRPCStatus makes the error a gRPC status.
func (e *AccessError) GRPCStatus() *status.Status {
	code := codes.Unauthenticated
	switch e.Code {
	case AccessInvalidRequest:
		code = codes.InvalidArgument
	case AccessInsufficientScope:
		code = codes.PermissionDenied
	case AccessUnavailable:
		code = codes.Unavailable
	}
	return status.New(code, e.Error())
}

// write answers an HTTP request with the refusal, RFC 6750 §3.
func (e *AccessError) write(w http.ResponseWriter, realm string) {
	h := w.Header()
	h.Set("Cache-Control", "no-store")
	if e.Code == AccessUnavailable {
		h.Set("Retry-After", strconv.Itoa(int(failurePause/time.Second)))
	} else {
		h.Set("WWW-Authenticate", e.challenge(realm))
	}
	http.Error(w, e.Error(), e.HTTPStatus())
}

func (e *AccessError) challenge(realm string) string {
	challenge := "Bearer realm=" + quoted(realm)
	if e.Code == AccessNoToken {
		return challenge
	}
	challenge += ", error=" + quoted(string(e.Code)) + ", error_description=" + quoted(e.Description)
	if len(e.Scopes) > 0 {
		challenge += ", scope=" + quoted(e.Scopes.String())
	}
	return challenge
}

// quoted makes a quoted-string of RFC 9110 §5.6.4 that needs no escapes.
func quoted(s string) string {
	return `"` + strings.Map(func(r rune) rune {
		switch {
		case r == '"' || r == '\\':
			return '\''
		case r < 0x20 || r > 0x7e:
			return '.'
		}
		return r
	}, s) + `"`
}
