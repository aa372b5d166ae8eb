package exchange

import (
	"deputy.example/deputy/client/delegation"
	"deputy.example/deputy/server/internal/ledger"
)

// MaxText is the largest length of any text in a request, in bytes. It is the size that an HTTP
// form has room for.
const MaxText = 64 << 10

// Lengths in bytes of values that are only compared or looked up.
const (
	maxName       = 256 // a principal, or the URN of a type
	maxIdentifier = 128 // a trace, a number or the position in a list of pages
	maxTarget     = 512 // an audience or a resource
)

// bounds are the largest lengths in bytes of the fields of a request, by the name in RFC 8693, RFC
// 7662, RFC 7009 and deputy.v1. MaxText is the bound of fields that a later check bounds more
// narrowly, with a refusal that is recorded for an authenticated caller. That check is
// delegation.Parse for tokens (8 KiB), parseWish for what a child requests, and
// delegation.Target.Check for targets of revocations.
var bounds = map[string]int{
	"grant_type": maxName,

	"subject_token": MaxText, "subject_token_type": maxName,
	"actor_token": MaxText, "actor_token_type": maxName,
	"token": MaxText, "root_token": MaxText, "token_type_hint": maxName,
	"requested_token_type": maxName,

	"client_assertion": MaxText, "client_assertion_type": maxName, "client_id": maxName,

	"audience": MaxText, "resource": MaxText, "scope": MaxText, "authorization_details": MaxText,
	"requested_actor": MaxText, "actor_confirmation": maxName, "idempotency_key": MaxText,
	"requested_lifetime": maxIdentifier, "max_depth": maxIdentifier, "uses": maxIdentifier, "validate_only": maxIdentifier,

	"reason": MaxText, "id": MaxText, "subject": MaxText, "agent": MaxText,
	"actor": MaxText, "caller": MaxText,

	"jti": MaxText, // a value that is no ULID is not looked up
	"txn": maxIdentifier, "key": maxIdentifier, "peer": maxIdentifier, "trace_id": maxIdentifier, "page_token": maxIdentifier,
}

// Bound returns the largest length in bytes of the field with this name. It is 0 for a field that
// bounds does not list, so a new field is refused until it has a bound.
func Bound(name string) int { return bounds[name] }

// Fits refuses the value of a field that is longer than its bound.
func Fits(field string, length, most int) error {
	if length > most {
		return delegation.Refuse(delegation.ParameterInvalid, field, "must have at most %d bytes", most)
	}
	return nil
}

// searchable refuses a filter that is longer than the value of any entry.
func searchable(q ledger.Query) error {
	for _, f := range []struct {
		field, value string
		most         int
	}{
		{"audience", q.Audience, maxTarget}, {"scope", q.Scope, delegation.MaxTokenBytes}, {"trace_id", q.TraceID, maxIdentifier},
		{"reason", string(q.Reason), maxIdentifier}, {"jti", q.ID, maxIdentifier}, {"txn", q.Txn, maxIdentifier},
		{"key", q.Key, maxIdentifier}, {"peer", q.Peer, maxIdentifier},
	} {
		if err := Fits(f.field, len(f.value), f.most); err != nil {
			return err
		}
	}
	return nil
}
