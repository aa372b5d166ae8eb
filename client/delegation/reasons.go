package delegation

import (
	"net/http"

	"google.golang.org/grpc/codes"
)

// Reason is why a request was refused. The set is closed: each reason has one meaning, one OAuth
// error code, one gRPC code and one HTTP status. Ledger entries and metrics carry reasons too.
type Reason string

// Reasons for a fault in the form of the request.
const (
	ParameterMissing Reason = "parameter_missing"
	ParameterInvalid Reason = "parameter_invalid"
	ScopeMalformed   Reason = "scope_malformed"
	TargetMalformed  Reason = "target_malformed"
	DetailsMalformed Reason = "details_malformed"
	// ParameterRepeated: a single-valued parameter occurs twice (RFC 6749 §3.2).
	ParameterRepeated    Reason = "parameter_repeated"
	ParameterUnsupported Reason = "parameter_unsupported" // known, but not supported here
	ParameterConflict    Reason = "parameter_conflict"    // two parameters that exclude each other
	GrantUnsupported     Reason = "grant_unsupported"
	MethodNotAllowed     Reason = "method_not_allowed"
	MediaTypeUnsupported Reason = "media_type_unsupported"
	RequestTooLarge      Reason = "request_too_large"
	IdempotencyConflict  Reason = "idempotency_conflict" // the key was used for other input
	// GrantGone: the grant of the key was voided, expired or erased.
	GrantGone Reason = "grant_gone"
)

// Reasons for a fault in the caller's identity or rights.
const (
	// ClientUnauthenticated: no credential, or one that fails for any reason.
	ClientUnauthenticated Reason = "client_unauthenticated"
	AssertionReplayed     Reason = "assertion_replayed"
	// CallerNotActor: the caller may not hand down the subject token.
	CallerNotActor Reason = "caller_not_actor"
	AccessDenied   Reason = "access_denied" // refused by Deputy's own access control
	// NotFound: it does not exist, or this caller may not see it.
	NotFound Reason = "not_found"
)

// Reasons for a fault in a token or a proof.
const (
	SubjectTokenInvalid  Reason = "subject_token_invalid"
	ActorTokenInvalid    Reason = "actor_token_invalid"
	TokenTypeUnsupported Reason = "token_type_unsupported"
	// ProofRequired: the token is bound to a key or a certificate that was not proven.
	ProofRequired Reason = "proof_required"
	// ProofInvalid: a DPoP proof breaks a rule of RFC 9449 §4.3.
	ProofInvalid Reason = "proof_invalid"
	// ProofReplayed: a DPoP proof was used before (RFC 9449 §11.1).
	ProofReplayed Reason = "proof_replayed"
	// ProofNonceNeeded: the DPoP proof lacks the server's nonce (RFC 9449 §8).
	ProofNonceNeeded Reason = "proof_nonce_needed"
	// BearerNotIssued: the token would be bound to no key, which this tenant does not allow.
	BearerNotIssued   Reason = "bearer_not_issued"
	TokenRevoked      Reason = "token_revoked"
	TokenSpent        Reason = "token_spent" // a token with uses 1 was already exchanged
	ForeignActorChain Reason = "foreign_actor_chain"
	RootTooLong       Reason = "root_lifetime_too_long"
	// ActorUnconfirmed: actor_confirmation is not a registered key of that actor.
	ActorUnconfirmed Reason = "actor_unconfirmed"
	ActorInChain     Reason = "actor_in_chain"
	ActorNotAllowed  Reason = "actor_not_allowed" // may_act does not name the actor
)

// Reasons for a request that is wider than the parent.
const (
	ScopeExceedsParent    Reason = "scope_exceeds_parent"
	AudienceExceedsParent Reason = "audience_exceeds_parent"
	AudienceMissing       Reason = "audience_missing"
	// AudienceNotSingle: several audiences need scopes mapped to each.
	AudienceNotSingle     Reason = "audience_not_single"
	DetailsExceedParent   Reason = "details_exceed_parent"
	DetailsUnknownType    Reason = "details_unknown_type"
	LifetimeExceedsParent Reason = "lifetime_exceeds_parent"
	DepthExhausted        Reason = "depth_exhausted"
	DepthExceedsParent    Reason = "depth_exceeds_parent"
)

// Reasons for what OpenFGA does not permit.
const (
	EdgeNotPermitted     Reason = "delegation_not_permitted"
	ScopeNotPermitted    Reason = "scope_not_permitted"
	AudienceNotPermitted Reason = "audience_not_permitted"
	DetailsNotPermitted  Reason = "details_not_permitted"
	TooManyChecks        Reason = "too_many_checks"
)

// Reasons that lie outside the request.
const (
	RateLimited    Reason = "rate_limited"
	DependencyDown Reason = "unavailable"    // a dependency did not answer: try again
	LedgerDamaged  Reason = "ledger_damaged" // the ledger lacks or has changed what it recorded
	Internal       Reason = "internal"
)

// Wire is the form of a reason on both wires.
type Wire struct {
	OAuth string     // error code of RFC 6749 §5.2, 8693 §2.2.2, 8707 §2, 9396 §5, 9449 §5 and §8
	GRPC  codes.Code // status code
	HTTP  int        // status code
}

var (
	badRequest = Wire{"invalid_request", codes.InvalidArgument, http.StatusBadRequest}
	forbidden  = Wire{"invalid_request", codes.PermissionDenied, http.StatusBadRequest}
	badTarget  = Wire{"invalid_target", codes.PermissionDenied, http.StatusBadRequest}
	badScope   = Wire{"invalid_scope", codes.PermissionDenied, http.StatusBadRequest}
	badDetails = Wire{"invalid_authorization_details", codes.PermissionDenied, http.StatusBadRequest}
	badProof   = Wire{"invalid_dpop_proof", codes.Unauthenticated, http.StatusBadRequest}
	badClient  = Wire{"invalid_client", codes.Unauthenticated, http.StatusUnauthorized}
)

// wires is the registry. An invalid subject or actor token is invalid_request, never invalid_grant:
// RFC 8693 §2.2.2 requires it (MUST).
var wires = map[Reason]Wire{
	ParameterMissing:     badRequest,
	ParameterInvalid:     badRequest,
	ScopeMalformed:       {"invalid_scope", codes.InvalidArgument, http.StatusBadRequest},
	TargetMalformed:      {"invalid_target", codes.InvalidArgument, http.StatusBadRequest},
	DetailsMalformed:     {"invalid_authorization_details", codes.InvalidArgument, http.StatusBadRequest},
	ParameterRepeated:    badRequest,
	ParameterUnsupported: badRequest,
	ParameterConflict:    badRequest,
	GrantUnsupported:     {"unsupported_grant_type", codes.InvalidArgument, http.StatusBadRequest},
	MethodNotAllowed:     {"invalid_request", codes.Unimplemented, http.StatusMethodNotAllowed},
	MediaTypeUnsupported: {"invalid_request", codes.InvalidArgument, http.StatusUnsupportedMediaType},
	RequestTooLarge:      badRequest,
	IdempotencyConflict:  badRequest,
	GrantGone:            {"invalid_request", codes.FailedPrecondition, http.StatusBadRequest},

	ClientUnauthenticated: badClient,
	AssertionReplayed:     badClient,
	CallerNotActor:        forbidden,
	AccessDenied:          {"access_denied", codes.PermissionDenied, http.StatusForbidden},
	NotFound:              {"invalid_request", codes.NotFound, http.StatusNotFound},

	SubjectTokenInvalid:  badRequest,
	ActorTokenInvalid:    badRequest,
	TokenTypeUnsupported: badRequest,
	ProofRequired:        forbidden,
	ProofInvalid:         badProof,
	ProofReplayed:        badProof,
	ProofNonceNeeded:     {"use_dpop_nonce", codes.Unauthenticated, http.StatusBadRequest},
	BearerNotIssued:      forbidden,
	TokenRevoked:         forbidden,
	TokenSpent:           forbidden,
	ForeignActorChain:    forbidden,
	RootTooLong:          forbidden,
	ActorUnconfirmed:     forbidden,
	ActorInChain:         forbidden,
	ActorNotAllowed:      forbidden,

	ScopeExceedsParent:    badScope,
	AudienceExceedsParent: badTarget,
	AudienceMissing:       {"invalid_target", codes.InvalidArgument, http.StatusBadRequest},
	AudienceNotSingle:     {"invalid_target", codes.InvalidArgument, http.StatusBadRequest},
	DetailsExceedParent:   badDetails,
	DetailsUnknownType:    {"invalid_authorization_details", codes.InvalidArgument, http.StatusBadRequest},
	LifetimeExceedsParent: forbidden,
	DepthExhausted:        forbidden,
	DepthExceedsParent:    forbidden,

	EdgeNotPermitted:     forbidden,
	ScopeNotPermitted:    badScope,
	AudienceNotPermitted: badTarget,
	DetailsNotPermitted:  badDetails,
	TooManyChecks:        badRequest,

	RateLimited:    {"temporarily_unavailable", codes.ResourceExhausted, http.StatusTooManyRequests},
	DependencyDown: {"temporarily_unavailable", codes.Unavailable, http.StatusServiceUnavailable},
	LedgerDamaged:  {"server_error", codes.DataLoss, http.StatusInternalServerError},
	Internal:       {"server_error", codes.Internal, http.StatusInternalServerError},
}

// Wire returns the form of the reason on both wires. A reason that is not registered has the form
// of Internal.
func (r Reason) Wire() Wire {
	if w, known := wires[r]; known {
		return w
	}
	return wires[Internal]
}

// Known reports whether the reason is registered.
func (r Reason) Known() bool { _, known := wires[r]; return known }
