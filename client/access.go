package client

import (
	"errors"
	"fmt"
	"net/http"
	"strconv"
	"strings"
	"time"

	"google.golang.org/genproto/googleapis/rpc/errdetails"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"deputy.example/deputy/client/delegation"
	"deputy.example/deputy/client/dpop"
)

// AccessCode is the kind of a resource server's refusal.
type AccessCode string

const (
	// AccessNoToken: the request carries no token. RFC 6750 §3.1 sends no error code on the wire.
	AccessNoToken AccessCode = ""
	// AccessInvalidRequest: the request carries its token in a way that is not allowed.
	AccessInvalidRequest AccessCode = "invalid_request"
	// AccessInvalidToken: the token is malformed, expired, for another audience, bound to a key or
	// a certificate that was not proven, or not signed by the issuer.
	AccessInvalidToken AccessCode = "invalid_token"
	// AccessInvalidProof: the DPoP proof is missing, breaks a rule or was used before (RFC 9449
	// §7.1).
	AccessInvalidProof AccessCode = "invalid_dpop_proof"
	// AccessUseNonce: the DPoP proof lacks the server's nonce (RFC 9449 §9). AccessError.Nonce
	// holds it.
	AccessUseNonce AccessCode = "use_dpop_nonce"
	// AccessInsufficientScope: the token is valid and does not allow this request.
	AccessInsufficientScope AccessCode = "insufficient_scope"
	// AccessUnavailable: the token cannot be verified now. It is not a code of RFC 6750.
	AccessUnavailable AccessCode = "temporarily_unavailable"
)

// AccessError is the error with which a Verifier refuses a request (RFC 6750 §3.1).
type AccessError struct {
	Code        AccessCode
	Description string            // safe to send: never repeats the token
	Scopes      delegation.Scopes // the required scopes; AccessInsufficientScope only
	Nonce       string            // for the next proof; AccessUseNonce only

	scheme string // of the refused Authorization, or ""
	cause  error
}

// Error returns code and description: only what a wire may carry.
func (e *AccessError) Error() string {
	if e.Code == AccessNoToken {
		return e.Description
	}
	return string(e.Code) + ": " + e.Description
}

// Unwrap returns the cause, for the resource server's log. It may quote claims, never a token.
func (e *AccessError) Unwrap() error { return e.cause }

func denied(code AccessCode, format string, args ...any) *AccessError {
	return &AccessError{Code: code, Description: fmt.Sprintf(format, args...)}
}

func (e *AccessError) because(cause error) *AccessError {
	e.cause = cause
	return e
}

// as returns a copy that records the scheme of the refused request.
func (e *AccessError) as(scheme string) *AccessError {
	c := *e
	c.scheme = scheme
	return &c
}

// accessError returns the AccessError in err. Any other error becomes AccessUnavailable.
func accessError(err error) *AccessError {
	var e *AccessError
	if errors.As(err, &e) {
		return e
	}
	return denied(AccessUnavailable, "the token cannot be verified now").because(err)
}

// HTTPStatus returns the status code of RFC 6750 §3.1.
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

// GRPCStatus returns the error as a gRPC status. With AccessUseNonce, the nonce is in Deputy's
// ErrorInfo, as in the answers of Deputy itself.
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
	st := status.New(code, e.Error())
	if e.Code != AccessUseNonce {
		return st
	}
	info := &errdetails.ErrorInfo{
		Reason: string(delegation.ProofNonceNeeded), Domain: delegation.ErrorDomain,
		Metadata: map[string]string{delegation.MetadataNonce: e.Nonce},
	}
	if detailed, err := st.WithDetails(info); err == nil {
		return detailed
	}
	return st
}

// write answers an HTTP request with the refusal (RFC 6750 §3, RFC 9449 §7.1). proofs is whether
// the server accepts tokens that are bound to a key.
func (e *AccessError) write(w http.ResponseWriter, realm string, proofs bool) {
	h := w.Header()
	h.Set("Cache-Control", "no-store")
	if e.Code == AccessUnavailable {
		h.Set("Retry-After", strconv.Itoa(int(failurePause/time.Second)))
	} else {
		h["Www-Authenticate"] = e.challenges(realm, proofs)
	}
	if e.Nonce != "" {
		h.Set(headerNonce, e.Nonce)
	}
	http.Error(w, e.Error(), e.HTTPStatus())
}

// challenges offers each scheme that is accepted. The error is in the challenge of the scheme that
// the request used.
func (e *AccessError) challenges(realm string, proofs bool) []string {
	bearer := "Bearer realm=" + quoted(realm)
	if !proofs {
		return []string{bearer + e.challenged()}
	}
	proof := "DPoP realm=" + quoted(realm) + ", algs=" + quoted(strings.Join(dpop.Algorithms(), " "))
	if strings.EqualFold(e.scheme, schemeDPoP) {
		return []string{bearer, proof + e.challenged()}
	}
	return []string{bearer + e.challenged(), proof}
}

// challenged returns the error parameters of a challenge for the refused request.
func (e *AccessError) challenged() string {
	if e.Code == AccessNoToken {
		return ""
	}
	text := ", error=" + quoted(string(e.Code)) + ", error_description=" + quoted(e.Description)
	if len(e.Scopes) > 0 {
		text += ", scope=" + quoted(e.Scopes.String())
	}
	return text
}

// quoted makes a quoted-string (RFC 9110 §5.6.4) that needs no escapes.
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
