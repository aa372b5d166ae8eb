package exchange

import (
	"crypto/x509"
	"time"

	"deputy.example/deputy/client/delegation"
)

// Credentials are what a caller sends to authenticate itself. At most one of Assertion, Bearer,
// DPoP and Person may be set. If none is set, an actor token of caller audience or the certificate
// of the connection must authenticate the caller.
type Credentials struct {
	AssertionType string // client_assertion_type (RFC 7521 §4.2)
	Assertion     string // client_assertion
	ClientID      string // client_id; optional, must equal the assertion's subject
	Bearer        string // a credential of caller audience from "authorization: Bearer"
	DPoP          string // from "authorization: DPoP", of caller audience, bound to the key of Proof
	Proof         *Proof // the one DPoP proof that came with the request, or nil
	// Certificates are the chain from the handshake of the caller's connection, the leaf first. The
	// handshake proved possession of the leaf's key. Nothing has verified the rest of the chain.
	Certificates []*x509.Certificate
	// Person signed in at an endpoint that keeps sessions. Only calls that read or revoke accept
	// it.
	Person *Person `json:"-"`
}

// Call is one request to exchange, from any endpoint. The strings are as the caller sent them; only
// their number and length are checked. Absent is "" or nil.
type Call struct {
	Tenant           string // from the endpoint (HTTP path); "": from the caller's credential
	Credentials      Credentials
	SubjectToken     string
	SubjectTokenType string
	Children         []Child // exactly one unless Batch
	IdempotencyKey   string
	ValidateOnly     bool
	Batch            bool
	Peer             string // network address of the caller, for the record
}

// Child is the request for one derived token: the parameters of RFC 8693 §2.1 and Deputy's
// extensions, as deputy.v1.Child documents them.
type Child struct {
	ActorToken           string
	ActorTokenType       string
	Resource             []string
	Audience             []string
	Scope                *string
	RequestedTokenType   string
	AuthorizationDetails *string
	RequestedActor       string
	ActorConfirmation    string
	RequestedLifetime    *time.Duration
	MaxDepth             *uint32
	Uses                 *uint32
}

// Outcome is the result for one child: exactly one of Grant and Err.
type Outcome struct {
	Grant *Grant
	Err   *delegation.Error
}

// Grant is an issued token, or with Call.ValidateOnly the token that an exchange would issue.
type Grant struct {
	AccessToken     string // "" if only validated
	IssuedTokenType string
	ExpiresIn       time.Duration // whole seconds
	Claims          delegation.Claims
	Entry           uint64 // number of the ledger entry
}

// Introspection is the response of RFC 7662: the claims of an active token, or nil.
type Introspection struct {
	Claims *delegation.Claims
}

// Inquiry is a question of an authenticated caller about one token or grant.
type Inquiry struct {
	Tenant      string
	Credentials Credentials
	Token       string // introspection: the token
	ID          string // entry, chain, descendants, proofs: the grant's jti
	Entry       uint64 // entry, proofs: the entry's number, in place of ID
	Peer        string
}
