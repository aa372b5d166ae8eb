package rpc

import (
	"context"
	"encoding/json"
	"fmt"
	"time"

	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/reflect/protoreflect"
	"google.golang.org/protobuf/types/known/durationpb"

	"deputy.example/deputy/client/delegation"
	deputyv1 "deputy.example/deputy/gen/deputy/v1"
	"deputy.example/deputy/server/internal/exchange"
)

// maxChildren bounds a batch.
const maxChildren = 100

type exchangeService struct {
	deputyv1.UnimplementedTokenExchangeServiceServer
	credentialReader
	engine Engine
}

// Exchange derives one child.
func (s *exchangeService) Exchange(ctx context.Context, r *deputyv1.ExchangeRequest) (*deputyv1.ExchangeResponse, error) {
	call, err := s.newCall(ctx, r, []*deputyv1.Child{r.GetChild()})
	if err != nil {
		return nil, err
	}
	outcomes, err := s.exchange(ctx, call)
	if err != nil {
		return nil, err
	}
	if outcomes[0].Err != nil {
		return nil, outcomes[0].Err
	}
	return newResponse(call, outcomes[0].Grant)
}

// BatchExchange derives up to maxChildren children, each with an outcome of its own.
func (s *exchangeService) BatchExchange(ctx context.Context, r *deputyv1.BatchExchangeRequest) (*deputyv1.BatchExchangeResponse, error) {
	if n := len(r.GetChildren()); n < 1 || n > maxChildren {
		return nil, delegation.Refuse(delegation.ParameterInvalid, "children", "there must be 1 to %d, not %d", maxChildren, n)
	}
	call, err := s.newCall(ctx, r, r.GetChildren())
	if err != nil {
		return nil, err
	}
	call.Batch = true
	outcomes, err := s.exchange(ctx, call)
	if err != nil {
		return nil, err
	}
	response := &deputyv1.BatchExchangeResponse{Outcomes: make([]*deputyv1.BatchOutcome, len(outcomes))}
	for i, outcome := range outcomes {
		if response.Outcomes[i], err = newBatchOutcome(call, outcome); err != nil {
			return nil, err
		}
	}
	return response, nil
}

// exchange calls the engine, and requires exactly one outcome for each child.
func (s *exchangeService) exchange(ctx context.Context, call exchange.Call) ([]exchange.Outcome, error) {
	outcomes, err := s.engine.Exchange(ctx, call)
	if err != nil {
		return nil, err
	}
	if len(outcomes) != len(call.Children) {
		return nil, broken("%d outcomes for %d children", len(outcomes), len(call.Children))
	}
	return outcomes, nil
}

// broken returns the internal error of a defect below this front. A defect never appears as
// success.
func broken(format string, args ...any) error {
	return delegation.Refuse(delegation.Internal, "", "internal error").WithCause(fmt.Errorf(format, args...))
}

// exchangeRequest is what ExchangeRequest and BatchExchangeRequest have in common.
type exchangeRequest interface {
	proto.Message
	GetSubjectToken() string
	GetSubjectTokenType() string
	GetClient() *deputyv1.ClientAuthentication
	GetIdempotencyKey() string
	GetValidateOnly() bool
}

func (from credentialReader) newCall(ctx context.Context, r exchangeRequest, children []*deputyv1.Child) (exchange.Call, error) {
	if err := refuseUnknown(r, r.GetClient()); err != nil {
		return exchange.Call{}, err
	}
	who, err := from.credentialsOf(ctx, r.GetClient())
	if err != nil {
		return exchange.Call{}, err
	}
	call := exchange.Call{
		Credentials:      who,
		SubjectToken:     r.GetSubjectToken(),
		SubjectTokenType: r.GetSubjectTokenType(),
		Children:         make([]exchange.Child, len(children)),
		IdempotencyKey:   r.GetIdempotencyKey(),
		ValidateOnly:     r.GetValidateOnly(),
		Peer:             peerOf(ctx),
	}
	for i, child := range children {
		if call.Children[i], err = newChild(child); err != nil {
			return exchange.Call{}, err
		}
	}
	return call, nil
}

// newChild keeps the difference between absent and zero where the proto does. An empty string means
// absent, as in the HTTP form. A child whose form is wrong fails the whole call, as it would in a
// form. The outcome of an item is for what the engine refuses.
func newChild(c *deputyv1.Child) (exchange.Child, error) {
	if err := refuseUnknown(c); err != nil {
		return exchange.Child{}, err
	}
	lifetime, err := lifetimeOf(c.GetRequestedLifetime())
	if err != nil {
		return exchange.Child{}, err
	}
	child := exchange.Child{
		ActorToken:           c.GetActorToken(),
		ActorTokenType:       c.GetActorTokenType(),
		Resource:             withContent(c.GetResource()),
		Audience:             withContent(c.GetAudience()),
		Scope:                optional(c.GetScope()),
		RequestedTokenType:   c.GetRequestedTokenType(),
		AuthorizationDetails: optional(c.GetAuthorizationDetails()),
		RequestedActor:       c.GetRequestedActor(),
		ActorConfirmation:    c.GetActorConfirmation(),
		RequestedLifetime:    lifetime,
	}
	if c != nil {
		child.MaxDepth, child.Uses = c.MaxDepth, c.Uses
	}
	return child, nil
}

// refuseUnknown refuses fields that this version has no name for. Such a field may request a
// narrower token. To ignore it would widen the token. The error informs a newer client.
func refuseUnknown(messages ...proto.Message) error {
	for _, m := range messages {
		reflected := m.ProtoReflect()
		if !reflected.IsValid() || len(reflected.GetUnknown()) == 0 {
			continue
		}
		return delegation.Refuse(delegation.ParameterUnsupported, "", "%s has a field that this server does not know", shortName(reflected))
	}
	return nil
}

func shortName(m protoreflect.Message) string { return string(m.Descriptor().Name()) }

func optional(s string) *string {
	if s == "" {
		return nil
	}
	return &s
}

func withContent(values []string) []string {
	var kept []string
	for _, value := range values {
		if value != "" {
			kept = append(kept, value)
		}
	}
	return kept
}

// lifetimeOf refuses a Duration that breaks its own rules, because its value could be read in two
// ways. The engine decides whether the value is whole, positive and small enough.
func lifetimeOf(d *durationpb.Duration) (*time.Duration, error) {
	if d == nil {
		return nil, nil
	}
	if !d.IsValid() {
		return nil, delegation.Refuse(delegation.ParameterInvalid, "requested_lifetime", "it is not a valid google.protobuf.Duration")
	}
	lifetime := d.AsDuration()
	return &lifetime, nil
}

func newResponse(call exchange.Call, grant *exchange.Grant) (*deputyv1.ExchangeResponse, error) {
	if grant == nil || (grant.AccessToken == "") != call.ValidateOnly {
		return nil, broken("an outcome has neither a refusal nor a fitting grant")
	}
	details, err := detailsText(grant.Claims.Details)
	if err != nil {
		return nil, err
	}
	response := &deputyv1.ExchangeResponse{
		AccessToken:          grant.AccessToken,
		IssuedTokenType:      grant.IssuedTokenType,
		TokenType:            tokenType(grant.Claims),
		ExpiresIn:            int64(grant.ExpiresIn / time.Second),
		Scope:                grant.Claims.Scope.String(),
		AuthorizationDetails: details,
		Entry:                grant.Entry,
	}
	if !call.ValidateOnly { // a validation records no grant that could be looked up
		response.Jti, response.Txn = grant.Claims.ID, grant.Claims.Txn
	}
	return response, nil
}

func newBatchOutcome(call exchange.Call, outcome exchange.Outcome) (*deputyv1.BatchOutcome, error) {
	if outcome.Err == nil {
		grant, err := newResponse(call, outcome.Grant)
		return &deputyv1.BatchOutcome{Outcome: &deputyv1.BatchOutcome_Grant{Grant: grant}}, err
	}
	refusal := &deputyv1.Refusal{
		Error:       outcome.Err.Reason.Wire().OAuth,
		Reason:      string(outcome.Err.Reason),
		Description: outcome.Err.Description,
		Field:       outcome.Err.Field,
		Metadata:    outcome.Err.Metadata,
	}
	if outcome.Err.RetryAfter > 0 {
		refusal.RetryAfter = durationpb.New(outcome.Err.RetryAfter)
	}
	return &deputyv1.BatchOutcome{Outcome: &deputyv1.BatchOutcome_Refusal{Refusal: refusal}}, nil
}

// Introspect reports whether a token is active now.
func (s *exchangeService) Introspect(ctx context.Context, r *deputyv1.IntrospectRequest) (*deputyv1.IntrospectResponse, error) {
	if err := refuseUnknown(r, r.GetClient()); err != nil {
		return nil, err
	}
	who, err := s.credentialsOf(ctx, r.GetClient())
	if err != nil {
		return nil, err
	}
	found, err := s.engine.Introspect(ctx, exchange.Inquiry{Credentials: who, Token: r.GetToken(), Peer: peerOf(ctx)})
	if err != nil {
		return nil, err
	}
	if found.Claims == nil {
		return &deputyv1.IntrospectResponse{}, nil
	}
	return newIntrospection(*found.Claims)
}

func newIntrospection(c delegation.Claims) (*deputyv1.IntrospectResponse, error) {
	details, err := detailsText(c.Details)
	if err != nil {
		return nil, err
	}
	response := &deputyv1.IntrospectResponse{
		Active:               true,
		Scope:                c.Scope.String(),
		ClientId:             string(c.ClientID),
		TokenType:            tokenType(c),
		Exp:                  c.ExpiresAt,
		Iat:                  c.IssuedAt,
		Nbf:                  c.NotBefore,
		Sub:                  string(c.Subject),
		Aud:                  c.Audience,
		Iss:                  c.Issuer,
		Jti:                  c.ID,
		Txn:                  c.Txn,
		AuthorizationDetails: details,
		DepthLeft:            uint32(max(c.Delegation.DepthLeft, 0)),
	}
	for i := len(c.Act) - 1; i >= 0; i-- {
		response.Act = append(response.Act, string(c.Act[i]))
	}
	for _, hop := range c.Delegation.Hops {
		if hop.Actor < 0 || hop.Actor >= len(c.Act) {
			return nil, broken("a hop names an actor that is not there")
		}
		response.Hops = append(response.Hops, &deputyv1.Hop{Jti: hop.ID, Entry: hop.Seq, Actor: string(c.Act[hop.Actor]), Key: hop.Key})
	}
	if c.Confirmation != nil {
		response.Cnf = &deputyv1.Confirmation{Jkt: c.Confirmation.JKT, X5TS256: c.Confirmation.X5T}
	}
	return response, nil
}

func detailsText(details []delegation.Detail) (string, error) {
	if len(details) == 0 {
		return "", nil
	}
	text, err := json.Marshal(details)
	return string(text), err
}

// tokenType returns the scheme with which to present the token. A token that is bound to a key
// needs a proof (RFC 9449 §5). A token that is bound to a certificate is a Bearer token on a
// connection with that certificate (RFC 8705 §3).
func tokenType(c delegation.Claims) string {
	if c.Confirmation != nil && c.Confirmation.JKT != "" {
		return "DPoP"
	}
	return "Bearer"
}
