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

// ExchangeRequest requests one derived token.
type ExchangeRequest struct {
	// SubjectToken is the parent: a root token of a trusted issuer, or a derived token. Required.
	// If it is bound to a key, Config.ProofKey must be that key. If it is bound to a certificate,
	// the connection must be opened with that certificate (Config.TLSConfig).
	SubjectToken Secret
	// SubjectTokenType is a token type URN. Default: delegation.TokenTypeAccessToken.
	SubjectTokenType string
	// Child describes the token to derive.
	Child Child
	// IdempotencyKey makes repetitions return the same grant: same key, caller and content.
	// Default: a new key for each call, which covers only the retries of that call. With
	// ValidateOnly there is nothing to repeat, and Deputy refuses a key.
	IdempotencyKey string
	// ValidateOnly decides and records a check, but issues nothing.
	ValidateOnly bool
}

// Child describes one derived token. Absent never means all: without requested scopes no scope is
// granted, and at least one Audience or Resource must be named. A Child that names no actor keeps
// the parent's actor (self-narrowing).
type Child struct {
	// ActorToken names the new actor by a credential of its own, of audience
	// delegation.ActorAudience of the issuer. The child is bound to the key or certificate of that
	// credential.
	ActorToken Secret
	// ActorTokenType is a token type URN. Default: delegation.TokenTypeJWT if ActorToken is set.
	ActorTokenType string
	// RequestedActor names the new actor without a credential. Needs Confirmation.
	RequestedActor delegation.Principal
	// Confirmation is the SHA-256 thumbprint of a key (RFC 7638) or a certificate (RFC 8705) that
	// is registered for RequestedActor. The child is bound to it: a verifier refuses the child
	// without proof. A child for the caller itself is bound to Config.ProofKey, or else to the
	// certificate of the connection.
	Confirmation string
	// Scopes that the child may use.
	Scopes delegation.Scopes
	// Audience holds the logical names of the services that the child is for.
	Audience []string
	// Resource holds services by absolute URI (RFC 8707).
	Resource []string
	// Details are authorization_details (RFC 9396). Each narrows one of the parent's.
	Details []delegation.Detail
	// Lifetime in whole seconds. Default: the tenant's default, at most the rest of the parent's
	// lifetime.
	Lifetime time.Duration
	// MaxDepth is the number of further hops that may follow the child; 0: none. Default: the
	// parent's remaining depth.
	MaxDepth *int
	// Uses is 1 for a child that may be exchanged at most once. Default: the parent's limit, or
	// none.
	Uses int
}

// Token is a grant: a derived token with Deputy's response fields. With ValidateOnly it describes
// the token that would be granted, and AccessToken is empty.
type Token struct {
	AccessToken     Secret
	IssuedTokenType string
	// TokenType is "DPoP" if the token is sent with a proof of its key, else "Bearer". See
	// Presenter.
	TokenType string
	Expiry    time.Time // counted from before the call, so never later than the token's exp
	Scope     delegation.Scopes
	Details   []delegation.Detail
	JTI       string // the id of the grant
	Txn       string // the id of the chain
	Entry     uint64 // number of the ledger entry; with ValidateOnly, of the check

	asked instant       // before the call
	life  time.Duration // lifetime, counted from asked
}

// Exchange exchanges the subject token for one derived token. Refusals are *delegation.Error. While
// Deputy is unavailable it retries under the same idempotency key, so one call never yields two
// grants.
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

// BatchRequest requests up to 100 children of one parent. Its fields have the meaning that they
// have in ExchangeRequest. Item i has the idempotency key IdempotencyKey/i.
type BatchRequest struct {
	SubjectToken     Secret
	SubjectTokenType string
	Children         []Child
	IdempotencyKey   string
	ValidateOnly     bool
}

// Outcome is the outcome of one child: a Token or an Err, never both.
type Outcome struct {
	Token *Token
	Err   *delegation.Error
}

// BatchExchange derives several children of one parent and returns their outcomes in the order of
// the request. The refusal of one child never fails the others. The error is about the whole
// request.
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

// idempotencyKey generates a key where a retry could otherwise grant twice.
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

// readToken refuses a response that breaks RFC 8693 §2.2.1, or that grants more scope than was
// requested: a sub-agent's token must not depend on a correct response.
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

// Introspection is Deputy's present answer about a token, revocations included (RFC 7662). For a
// token that is unknown, expired, revoked or of another tenant, Active is false and nothing else is
// set. The same holds for a caller without a part in the token: it must be the subject, an actor of
// the chain, a server of an audience (resource_servers of the tenant), or an introspector or
// auditor.
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
	Entry uint64 // number in the ledger
	Actor delegation.Principal
	Key   string // thumbprint of the bound key or certificate, or ""
}

// Introspect returns whether a token is active now, and its claims if it is.
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
