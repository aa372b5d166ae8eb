package exchange

import (
	"crypto/x509"
	"time"

	"deputy.example/deputy/client/delegation"
)

// Credentials are what a caller presented to authenticate itself. At most one of Assertion, Bearer, DPoP
// and Person may be set; with none, an actor token of caller audience must authenticate.
type Credentials struct {
	AssertionType string // client_assertion_type (RFC 7521 §4.2)
	Assertion     string // client_assertion
	ClientID      string // client_id; optional, must equal the assertion's subject
	Bearer        string // a credential of caller audience from "authorization: Bearer"
	DPoP          string // a credential of caller audience that is bound to the key of Proof, from "authorization: DPoP"
	Proof         *Proof // the one DPoP proof that came with the request, or nil
	// Certificates are what the caller presented in the handshake of its connection, its own first. The
	// handshake proved that it holds the key of that one; nobody has looked at the rest.
	Certificates []*x509.Certificate
	// Person signed in at a front that keeps sessions. People read and revoke; nothing else takes them.
	Person *Person `json:"-"`
}

// Call is one request to exchange, whichever door it came through. Strings are as the caller sent
// them: nothing has been checked but their number. Absent is "" or nil.
type Call struct {
	Tenant           string // named by the door (HTTP path); "": by the caller's credential
	Credentials      Credentials
	SubjectToken     string
	SubjectTokenType string
	Children         []Child // exactly one unless Batch
	IdempotencyKey   string
	ValidateOnly     bool
	Batch            bool
	Peer             string // network address of the caller, for the record
}

// Child is what one derived token shall be: the parameters of RFC 8693 §2.1 and Deputy's extensions
// as deputy.v1.Child documents them.
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

// Outcome is what became of one child: a Grant or an Err, never both.
type Outcome struct {
	Grant *Grant
	Err   *delegation.Error
}

// Grant is an issued token, or with Call.ValidateOnly what would be issued.
type Grant struct {
	AccessToken     string // "" when only validated
	IssuedTokenType string
	ExpiresIn       time.Duration // whole seconds
	Claims          delegation.Claims
	Entry           uint64 // number of the ledger entry
}

// Introspection is the answer of RFC 7662: claims of an active token, or nil.
type Introspection struct {
	Claims *delegation.Claims
}

// Inquiry is a question about one token or grant by an authenticated caller.
type Inquiry struct {
	Tenant      string
	Credentials Credentials
	Token       string // introspection: the token
	ID          string // entry, chain, descendants, proofs: the grant's jti
	Entry       uint64 // entry, proofs: the entry's number, in place of ID
	Peer        string
}
