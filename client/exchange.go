package client

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"time"

	"google.golang.org/protobuf/types/known/durationpb"

	"deputy.example/deputy/client/delegation"
	deputyv1 "deputy.example/deputy/gen/deputy/v1"
)

// ExchangeRequest asks for one derived token.
type ExchangeRequest struct {
	// SubjectToken is the parent: a root token of a trusted issuer, or a derived token. Required. One
	// that is bound to a key needs Config.ProofKey to be that key; one that is bound to a certificate,
	// a connection with it (Config.TLSConfig).
	SubjectToken Secret
	// SubjectTokenType is a token type URN. Default: delegation.TokenTypeAccessToken.
	SubjectTokenType string
	// Child is what to derive.
	Child Child
	// IdempotencyKey makes repetitions return the same grant: same key, caller and content.
	// Default: a new one for each call, which serves the call's own retries only. With
	// ValidateOnly there is nothing to repeat, and Deputy refuses a key.
	IdempotencyKey string
	// ValidateOnly decides and records a check, but issues nothing.
	ValidateOnly bool
}

// Child is what one derived token shall be. Absent never means all: no scope asked for is no scope
// granted, and at least one Audience or Resource must be named. A Child that names no actor keeps
// the parent's (self-narrowing).
type Child struct {
	// ActorToken names the new actor by a credential of its own, of audience
	// delegation.ActorAudience(issuer). The child is bound to what it is bound to.
	ActorToken Secret
	// ActorTokenType is a token type URN. Default: delegation.TokenTypeJWT where there is an ActorToken.
	ActorTokenType string
	// RequestedActor names the new actor without a credential; needs Confirmation.
	RequestedActor delegation.Principal
	// Confirmation is the SHA-256 thumbprint of a key (RFC 7638) or a certificate (RFC 8705) that is
	// registered for RequestedActor. The child is bound to it: a verifier refuses the child without
	// proof. A child of the caller's own is bound to Config.ProofKey, or else to the certificate of the
	// connection.
	Confirmation string
	// Scopes that the child may use.
	Scopes delegation.Scopes
	// Audience holds the logical names of the services that the child is for.
	Audience []string
	// Resource holds services by absolute URI (RFC 8707).
	Resource []string
	// Details each narrow one of the parent's authorization_details (RFC 9396).
	Details []delegation.Detail
	// Lifetime in whole seconds. Default: the tenant's default, cut to what the parent has left.
	Lifetime time.Duration
	// MaxDepth is how many further hops the child may make; 0: none. Default: what the parent has left.
	MaxDepth *int
	// Uses is 1 for a child that may be exchanged at most once. Default: the parent's limit, or none.
	Uses int
}

// Token is a grant: a derived token and what Deputy said about it. With ValidateOnly it is what
// would have been granted, and AccessToken is empty.
type Token struct {
	AccessToken     Secret
	IssuedTokenType string
	TokenType       string    // how to present it: "DPoP" with a proof of its key, else "Bearer". See Presenter
	Expiry          time.Time // counted from before the call, so never later than the token's own
	Scope           delegation.Scopes
	Details         []delegation.Detail
	JTI             string // the grant's id
	Txn             string // the chain's id
	Entry           uint64 // number of the ledger entry; with ValidateOnly that of the check

	asked instant       // before the call
	life  time.Duration // from then on
}

// Exchange trades the subject token for one derived token. Refusals are *delegation.Error. While
// Deputy is unavailable it tries again, under the same idempotency key, so that one call never
// yields two grants.
func (c *Client) Exchange(ctx context.Context, request ExchangeRequest) (*Token, error) {
	child, err := request.Child.message()
	if err != nil {
		return nil, err
	}
	key, err := c.idempotencyKey(request.IdempotencyKey, request.ValidateOnly)
	if err != nil {
		return nil, err
	}
	if request.SubjectToken.IsZero() {
		return nil, delegation.Refuse(delegation.ParameterMissing, "subject_token", "the token to exchange is missing")
	}
	asked := c.clock.now()
	response, err := call(ctx, c, c.tokens.Exchange, &deputyv1.ExchangeRequest{
		SubjectToken:     request.SubjectToken.Reveal(),
		SubjectTokenType: tokenType(request.SubjectTokenType, delegation.TokenTypeAccessToken),
		Child:            child,
		IdempotencyKey:   key,
		ValidateOnly:     request.ValidateOnly,
	})
	if err != nil {
		return nil, err
	}
	return readToken(response, request.Child.Scopes, request.ValidateOnly, asked)
}

// BatchRequest asks for up to 100 children of one parent. Fields mean what they mean in
// ExchangeRequest; item i has the idempotency key IdempotencyKey/i.
type BatchRequest struct {
	SubjectToken     Secret
	SubjectTokenType string
	Children         []Child
	IdempotencyKey   string
	ValidateOnly     bool
}

// Outcome is what became of one child: a Token or an Err, never both.
type Outcome struct {
	Token *Token
	Err   *delegation.Error
}

// BatchExchange makes several children of one parent and returns their outcomes in the order of
// the request. One child's refusal never fails the others; the error is about the whole request.
func (c *Client) BatchExchange(ctx context.Context, request BatchRequest) ([]Outcome, error) {
	message := &deputyv1.BatchExchangeRequest{
		SubjectToken:     request.SubjectToken.Reveal(),
		SubjectTokenType: tokenType(request.SubjectTokenType, delegation.TokenTypeAccessToken),
		ValidateOnly:     request.ValidateOnly,
	}
	for i, child := range request.Children {
		m, err := child.message()
		if err != nil {
			return nil, fmt.Errorf("child %d: %w", i, err)
		}
		message.Children = append(message.Children, m)
	}
	if request.SubjectToken.IsZero() {
		return nil, delegation.Refuse(delegation.ParameterMissing, "subject_token", "the token to exchange is missing")
	}
	var err error
	if message.IdempotencyKey, err = c.idempotencyKey(request.IdempotencyKey, request.ValidateOnly); err != nil {
		return nil, err
	}
	asked := c.clock.now()
	response, err := call(ctx, c, c.tokens.BatchExchange, message)
	if err != nil {
		return nil, err
	}
	if len(response.GetOutcomes()) != len(request.Children) {
		return nil, malformed("%d outcomes for %d children", len(response.GetOutcomes()), len(request.Children))
	}
	outcomes := make([]Outcome, len(request.Children))
	for i, outcome := range response.GetOutcomes() {
		outcomes[i] = readOutcome(outcome, request.Children[i].Scopes, request.ValidateOnly, asked)
	}
	return outcomes, nil
}

func readOutcome(outcome *deputyv1.BatchOutcome, asked delegation.Scopes, validateOnly bool, at instant) Outcome {
	if grant := outcome.GetGrant(); grant != nil {
		token, err := readToken(grant, asked, validateOnly, at)
		return Outcome{Token: token, Err: delegation.AsError(err)}
	}
	refusal := outcome.GetRefusal()
	if refusal.GetReason() == "" {
		return Outcome{Err: malformed("an outcome that is neither grant nor refusal")}
	}
	return Outcome{Err: &delegation.Error{
		Reason: delegation.Reason(refusal.GetReason()), Field: refusal.GetField(), Description: refusal.GetDescription(),
		Metadata: refusal.GetMetadata(), RetryAfter: refusal.GetRetryAfter().AsDuration(),
	}}
}

// message checks what the wire form cannot express and leaves every decision to the server.
func (child Child) message() (*deputyv1.Child, error) {
	scopes, err := delegation.NewScopes(child.Scopes...)
	if err != nil {
		return nil, delegation.Refuse(delegation.ScopeMalformed, "scope", "%v", err)
	}
	m := &deputyv1.Child{
		ActorToken:        child.ActorToken.Reveal(),
		ActorTokenType:    child.ActorTokenType,
		RequestedActor:    string(child.RequestedActor),
		ActorConfirmation: child.Confirmation,
		Scope:             scopes.String(),
		Audience:          child.Audience,
		Resource:          child.Resource,
	}
	if m.ActorToken != "" {
		m.ActorTokenType = tokenType(m.ActorTokenType, delegation.TokenTypeJWT)
	}
	if len(child.Details) > 0 {
		m.AuthorizationDetails = joinDetails(child.Details)
	}
	switch {
	case child.Lifetime < 0 || child.Lifetime%time.Second != 0:
		return nil, delegation.Refuse(delegation.ParameterInvalid, "requested_lifetime", "want whole seconds, got %v", child.Lifetime)
	case child.Lifetime > 0:
		m.RequestedLifetime = durationpb.New(child.Lifetime)
	}
	if child.MaxDepth != nil {
		if *child.MaxDepth < 0 || *child.MaxDepth > delegation.MaxChainDepth {
			return nil, delegation.Refuse(delegation.ParameterInvalid, "max_depth", "want 0 to %d, got %d", delegation.MaxChainDepth, *child.MaxDepth)
		}
		m.MaxDepth = new(uint32(*child.MaxDepth))
	}
	switch child.Uses {
	case 0:
	case 1:
		m.Uses = new(uint32(1))
	default:
		return nil, delegation.Refuse(delegation.ParameterInvalid, "uses", "want 1, or 0 for no limit of its own, got %d", child.Uses)
	}
	return m, nil
}

func joinDetails(details []delegation.Detail) string {
	elements := make([]string, len(details))
	for i, d := range details {
		elements[i] = d.String()
	}
	return "[" + strings.Join(elements, ",") + "]"
}

func tokenType(given, otherwise string) string {
	if given == "" {
		return otherwise
	}
	return given
}

// idempotencyKey makes one up where a retry could otherwise grant twice.
func (c *Client) idempotencyKey(given string, validateOnly bool) (string, error) {
	if given != "" || validateOnly {
		return given, nil
	}
	key, err := newKey(c.rand)
	if err != nil {
		return "", delegation.AsError(err)
	}
	return key, nil
}

// readToken refuses a reply that is not what RFC 8693 §2.2.1 says, or more than was asked for: what
// a sub-agent is handed must not depend on the reply being right.
func readToken(r *deputyv1.ExchangeResponse, asked delegation.Scopes, validateOnly bool, at instant) (*Token, error) {
	life := time.Duration(r.GetExpiresIn()) * time.Second
	token := &Token{
		AccessToken: NewSecret(r.GetAccessToken()), IssuedTokenType: r.GetIssuedTokenType(), TokenType: r.GetTokenType(),
		Expiry: at.wall.Add(life), asked: at, life: life,
		JTI: r.GetJti(), Txn: r.GetTxn(), Entry: r.GetEntry(),
	}
	var err error
	if r.GetScope() != "" {
		if token.Scope, err = delegation.ParseScopes(r.GetScope()); err != nil {
			return nil, malformed("scope: %v", err)
		}
	}
	if r.GetAuthorizationDetails() != "" {
		if token.Details, err = delegation.ParseDetails([]byte(r.GetAuthorizationDetails())); err != nil {
			return nil, malformed("%v", err)
		}
	}
	want, err := delegation.NewScopes(asked...)
	switch {
	case validateOnly != token.AccessToken.IsZero():
		return nil, malformed("a token where none was to be issued, or none where one was")
	case !validateOnly && !strings.EqualFold(token.TokenType, "Bearer") && token.TokenType != "DPoP":
		return nil, malformed("token_type is neither Bearer nor DPoP")
	case r.GetExpiresIn() <= 0:
		return nil, malformed("expires_in is not positive")
	case err != nil || !token.Scope.SubsetOf(want):
		return nil, malformed("more scope than was asked for")
	}
	return token, nil
}

func malformed(format string, args ...any) *delegation.Error {
	return delegation.Refuse(delegation.Internal, "", "Deputy's reply was refused: %s", fmt.Sprintf(format, args...))
}

// Introspection is what Deputy says about a token at this moment, revocations included (RFC 7662).
// Only Active is set, to false, for a token that is unknown, expired, revoked or of another tenant, and for
// one in which the caller has no part: it must be the subject, an actor of the chain, a server of an
// audience (resource_servers of the tenant), or an introspector or auditor.
type Introspection struct {
	Active       bool
	Issuer       string
	Subject      delegation.Principal
	ClientID     delegation.Principal // the current actor
	Audience     []string
	Scope        delegation.Scopes
	Details      []delegation.Detail
	TokenType    string
	IssuedAt     time.Time
	NotBefore    time.Time
	Expiry       time.Time
	JTI          string
	Txn          string
	Actors       delegation.Chain // oldest first
	Hops         []Hop            // oldest first
	DepthLeft    int
	Confirmation *delegation.Confirmation // nil for a bearer token
}

// Hop is one grant of a chain.
type Hop struct {
	JTI   string
	Entry uint64 // the ledger's number
	Actor delegation.Principal
	Key   string // thumbprint of the key or certificate that the grant is bound to, or ""
}

// Introspect asks whether a token is active now.
func (c *Client) Introspect(ctx context.Context, token Secret) (*Introspection, error) {
	r, err := call(ctx, c, c.tokens.Introspect, &deputyv1.IntrospectRequest{Token: token.Reveal()})
	if err != nil {
		return nil, err
	}
	if !r.GetActive() {
		return &Introspection{}, nil
	}
	in := &Introspection{
		Active: true, Issuer: r.GetIss(), Audience: r.GetAud(), TokenType: r.GetTokenType(),
		IssuedAt: seconds(r.GetIat()), NotBefore: seconds(r.GetNbf()), Expiry: seconds(r.GetExp()),
		JTI: r.GetJti(), Txn: r.GetTxn(), DepthLeft: int(r.GetDepthLeft()),
	}
	if err := in.readNames(r); err != nil {
		return nil, malformed("%v", err)
	}
	if r.GetCnf() != nil {
		in.Confirmation = &delegation.Confirmation{JKT: r.GetCnf().GetJkt(), X5T: r.GetCnf().GetX5TS256()}
	}
	return in, nil
}

func (in *Introspection) readNames(r *deputyv1.IntrospectResponse) error {
	var errs [5]error
	in.Subject, errs[0] = delegation.ParsePrincipal(r.GetSub())
	in.ClientID, errs[1] = delegation.ParsePrincipal(r.GetClientId())
	if r.GetScope() != "" {
		in.Scope, errs[2] = delegation.ParseScopes(r.GetScope())
	}
	if r.GetAuthorizationDetails() != "" {
		in.Details, errs[3] = delegation.ParseDetails([]byte(r.GetAuthorizationDetails()))
	}
	// The wire lists the current actor first, a Chain the oldest.
	act := r.GetAct()
	for i := len(act) - 1; i >= 0 && errs[4] == nil; i-- {
		var actor delegation.Principal
		actor, errs[4] = delegation.ParsePrincipal(act[i])
		in.Actors = append(in.Actors, actor)
	}
	for _, hop := range r.GetHops() {
		actor, err := delegation.ParsePrincipal(hop.GetActor())
		if err != nil {
			return err
		}
		in.Hops = append(in.Hops, Hop{JTI: hop.GetJti(), Entry: hop.GetEntry(), Actor: actor, Key: hop.GetKey()})
	}
	return errors.Join(errs[:]...)
}

func seconds(n int64) time.Time {
	if n == 0 {
		return time.Time{}
	}
	return time.Unix(n, 0)
}
