// Package deputytest is a small Deputy for tests and examples of the SDK and the CLI. It has the
// real API over a real connection and signs real tokens, but decides by itself, with no policy, no
// ledger and no database. The server's own tests define what Deputy does; this package defines what
// its wire looks like.
package deputytest

import (
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/sha256"
	"encoding/base64"
	"encoding/json"
	"fmt"
	"net"
	"net/http"
	"net/http/httptest"
	"slices"
	"strings"
	"sync"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/test/bufconn"
	"google.golang.org/protobuf/types/known/timestamppb"

	"deputy.example/deputy/client/delegation"
	deputyv1 "deputy.example/deputy/gen/deputy/v1"
)

// KeyID is the kid of the server's key.
const KeyID = "test-1"

// Server is one tenant's Deputy on loopback ports.
type Server struct {
	Issuer  string // the HTTP address; keys are at Issuer/oauth2/jwks
	Address string // the gRPC address

	deputyv1.UnimplementedTokenExchangeServiceServer
	deputyv1.UnimplementedAuditServiceServer
	deputyv1.UnimplementedRevocationServiceServer

	key     *ecdsa.PrivateKey
	grpc    *grpc.Server
	http    *httptest.Server  // nil in memory
	bufconn *bufconn.Listener // nil on ports
	feed    feed

	mu        sync.Mutex
	proofs    proofs
	fail      []error
	bearers   []string
	keys      []string
	seen      map[string]bool
	stored    map[string]*deputyv1.ExchangeResponse
	journal   journal
	tree      tree
	lineages  map[string]delegation.Claims
	lastEntry uint64
}

// Start makes a server; like httptest.NewServer it panics where there are no ports. The options are those
// of its gRPC side, for instance TLS.
func Start(options ...grpc.ServerOption) *Server {
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		panic(err)
	}
	s := newServer(options...)
	mux := http.NewServeMux()
	mux.HandleFunc("GET /oauth2/jwks", func(w http.ResponseWriter, _ *http.Request) { w.Write(s.JWKS()) })
	s.http = httptest.NewServer(mux)
	s.Issuer, s.Address = s.http.URL, listener.Addr().String()
	go s.grpc.Serve(listener)
	return s
}

// StartInMemory makes a server that Dial alone reaches, and that publishes no keys: it can live in a
// bubble of testing/synctest, where time passes as the test wants.
func StartInMemory() *Server {
	s := newServer()
	s.Issuer, s.Address = "https://deputy.example/t/test", "passthrough:///deputy"
	s.bufconn = bufconn.Listen(1 << 16)
	go s.grpc.Serve(s.bufconn)
	return s
}

// Dial connects to a server in memory, for grpc.WithContextDialer.
func (s *Server) Dial(ctx context.Context, _ string) (net.Conn, error) {
	return s.bufconn.DialContext(ctx)
}

func newServer(options ...grpc.ServerOption) *Server {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		panic(err)
	}
	s := &Server{
		key: key, grpc: grpc.NewServer(options...), lastEntry: DroppedThrough,
		seen: make(map[string]bool), stored: make(map[string]*deputyv1.ExchangeResponse),
		lineages: make(map[string]delegation.Claims), feed: newFeed(), journal: newJournal(), tree: newTree(),
	}
	deputyv1.RegisterTokenExchangeServiceServer(s.grpc, s)
	deputyv1.RegisterAuditServiceServer(s.grpc, s)
	deputyv1.RegisterRevocationServiceServer(s.grpc, s)
	return s
}

// Close stops the server and its goroutines.
func (s *Server) Close() {
	s.grpc.Stop()
	if s.http != nil {
		s.http.Close()
	}
}

// FailNext makes the next calls end with the given errors, one each.
func (s *Server) FailNext(errs ...error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.fail = append(s.fail, errs...)
}

// Bearers are the credentials that calls came with, in their order.
func (s *Server) Bearers() []string {
	s.mu.Lock()
	defer s.mu.Unlock()
	return slices.Clone(s.bearers)
}

// IdempotencyKeys are the keys that exchanges came with, in their order.
func (s *Server) IdempotencyKeys() []string {
	s.mu.Lock()
	defer s.mu.Unlock()
	return slices.Clone(s.keys)
}

// JWKS is the server's key set.
func (s *Server) JWKS() []byte {
	point, err := s.key.PublicKey.Bytes()
	if err != nil {
		panic(err)
	}
	b64 := base64.RawURLEncoding.EncodeToString
	return fmt.Appendf(nil, `{"keys":[{"kty":"EC","crv":"P-256","alg":"ES256","use":"sig","kid":%q,"x":%q,"y":%q}]}`,
		KeyID, b64(point[1:33]), b64(point[33:]))
}

// Header is what the server signs under.
func Header() map[string]any {
	return map[string]any{"alg": "ES256", "typ": delegation.HeaderTypeAccessToken, "kid": KeyID}
}

// Sign makes a token of any header and claims, with the server's key.
func (s *Server) Sign(header, claims any) string {
	input := segment(header) + "." + segment(claims)
	digest := sha256.Sum256([]byte(input))
	r, ss, err := ecdsa.Sign(rand.Reader, s.key, digest[:])
	if err != nil {
		panic(err)
	}
	signature := make([]byte, 64)
	r.FillBytes(signature[:32])
	ss.FillBytes(signature[32:])
	return input + "." + base64.RawURLEncoding.EncodeToString(signature)
}

// Token signs claims as Deputy does.
func (s *Server) Token(c delegation.Claims) string { return s.Sign(Header(), c) }

func segment(v any) string {
	raw, err := json.Marshal(v)
	if err != nil {
		panic(err)
	}
	return base64.RawURLEncoding.EncodeToString(raw)
}

// RootToken is what a foreign provider would have issued to a user.
func (s *Server) RootToken(subject string) string {
	return s.Sign(map[string]any{"alg": "ES256", "kid": KeyID}, map[string]any{
		"iss": "https://idp.example", "sub": subject, "aud": "planner", "scope": "calendar.read calendar.write mail.read",
		"iat": time.Now().Unix(), "exp": time.Now().Add(time.Hour).Unix(), "jti": "root-1",
	})
}

// Claims are those of a token two hops deep: user:alice, agent:planner, agent:researcher.
func (s *Server) Claims(now time.Time) delegation.Claims {
	at := now.Unix()
	return delegation.Claims{
		Issuer: s.Issuer, Subject: "user:alice", ClientID: "agent:researcher", Audience: []string{"https://calendar.example"},
		Scope: delegation.Scopes{"calendar.read"}, IssuedAt: at, NotBefore: at, ExpiresAt: at + 300, ID: "jti-2", Txn: "txn-1",
		Act: delegation.Chain{"agent:planner", "agent:researcher"},
		Delegation: delegation.Delegation{Root: "9f2c", DepthLeft: 2, Hops: []delegation.Hop{
			{ID: "jti-1", Seq: 41, Actor: 0}, {ID: "jti-2", Seq: 57, Actor: 1},
		}},
	}
}

// enter notes the caller's credential and what it holds, and ends the call where a test wants it to end.
func (s *Server) enter(ctx context.Context) error {
	authorization := strings.Join(metadata.ValueFromIncomingContext(ctx, "authorization"), ",")
	s.mu.Lock()
	defer s.mu.Unlock()
	s.bearers = append(s.bearers, authorization)
	if len(s.fail) > 0 {
		err := s.fail[0]
		s.fail = s.fail[1:]
		return err
	}
	scheme, credential, _ := strings.Cut(authorization, " ")
	held, err := s.proofs.judge(ctx, scheme, credential)
	if err != nil {
		return err
	}
	return s.authenticate(scheme, credential, held)
}

func (s *Server) authenticate(scheme, assertion string, held delegation.Confirmation) error {
	u, err := delegation.Parse(assertion)
	if err != nil {
		return delegation.Refuse(delegation.ClientUnauthenticated, "", "the caller is not authenticated")
	}
	r, err := u.Registered()
	cnf, bound := u.Claim("cnf")
	want := delegation.Confirmation{}
	if bound {
		if c, err := delegation.ReadConfirmation(cnf); err == nil {
			want = *c
		}
	}
	switch {
	case (scheme == "DPoP") != (want.JKT != "") || bound && want != held:
		return delegation.Refuse(delegation.ClientUnauthenticated, "", "the caller does not hold the key of its credential")
	case bound && err == nil && slices.Equal(r.Audience, []string{s.Issuer}):
		return nil // a workload's, good until it expires
	case err != nil || !slices.Equal(r.Audience, []string{s.Issuer}) || time.Until(time.Unix(r.ExpiresAt, 0)) > time.Minute:
		return delegation.Refuse(delegation.ClientUnauthenticated, "", "the caller is not authenticated")
	case s.seen[r.ID]:
		return delegation.Refuse(delegation.AssertionReplayed, "", "the assertion was used before")
	}
	s.seen[r.ID] = true
	return nil
}

// Exchange implements deputyv1.TokenExchangeServiceServer.
func (s *Server) Exchange(ctx context.Context, r *deputyv1.ExchangeRequest) (*deputyv1.ExchangeResponse, error) {
	if err := s.enter(ctx); err != nil {
		s.mu.Lock()
		s.keys = append(s.keys, r.GetIdempotencyKey())
		s.mu.Unlock()
		return nil, err
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	s.keys = append(s.keys, r.GetIdempotencyKey())
	if r.GetValidateOnly() && r.GetIdempotencyKey() != "" {
		return nil, delegation.Refuse(delegation.ParameterConflict, "idempotency_key", "validate_only issues nothing that could be repeated")
	}
	if response, again := s.stored[r.GetIdempotencyKey()]; again {
		return response, nil
	}
	response, refusal := s.derive(ctx, r.GetSubjectToken(), r.GetChild(), r.GetValidateOnly())
	if refusal != nil {
		return nil, refusal
	}
	if r.GetIdempotencyKey() != "" {
		s.stored[r.GetIdempotencyKey()] = response
	}
	return response, nil
}

// BatchExchange implements deputyv1.TokenExchangeServiceServer.
func (s *Server) BatchExchange(ctx context.Context, r *deputyv1.BatchExchangeRequest) (*deputyv1.BatchExchangeResponse, error) {
	if err := s.enter(ctx); err != nil {
		return nil, err
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	response := &deputyv1.BatchExchangeResponse{}
	for _, child := range r.GetChildren() {
		grant, e := s.derive(ctx, r.GetSubjectToken(), child, r.GetValidateOnly())
		outcome := &deputyv1.BatchOutcome{Outcome: &deputyv1.BatchOutcome_Grant{Grant: grant}}
		if e != nil {
			outcome.Outcome = &deputyv1.BatchOutcome_Refusal{Refusal: &deputyv1.Refusal{
				Error: e.Reason.Wire().OAuth, Reason: string(e.Reason), Description: e.Description, Field: e.Field, Metadata: e.Metadata,
			}}
		}
		response.Outcomes = append(response.Outcomes, outcome)
	}
	return response, nil
}

// derive makes a child of the parent, under the lock.
func (s *Server) derive(ctx context.Context, parent string, child *deputyv1.Child, validateOnly bool) (*deputyv1.ExchangeResponse, *delegation.Error) {
	c, allowed, err := s.parent(parent)
	if err != nil {
		return nil, delegation.Refuse(delegation.SubjectTokenInvalid, "subject_token", "the subject token is not valid")
	}
	holds := held(ctx)
	if c.Confirmation != nil && *c.Confirmation != holds {
		return nil, delegation.Refuse(delegation.ProofRequired, "subject_token", "it is bound to a key that was not proven")
	}
	if child.GetScope() != "" {
		if c.Scope, err = delegation.ParseScopes(child.GetScope()); err != nil {
			return nil, delegation.Refuse(delegation.ScopeMalformed, "scope", "%v", err)
		}
	} else {
		c.Scope = nil
	}
	if wider := c.Scope.Without(allowed); len(wider) > 0 {
		return nil, delegation.Refuse(delegation.ScopeExceedsParent, "scope", "the subject token does not allow %s", wider)
	}
	c.Audience = slices.Concat(child.GetResource(), child.GetAudience())
	if len(c.Audience) == 0 {
		return nil, delegation.Refuse(delegation.AudienceMissing, "audience", "name an audience or a resource")
	}
	if actor := child.GetRequestedActor(); actor != "" {
		c.Act = c.Act.Extend(delegation.Principal(actor))
	} else if len(c.Act) == 0 {
		c.Act = delegation.Chain{"agent:planner"}
	}
	c.ClientID = c.Act.Current()
	bound := delegation.Confirmation{JKT: child.GetActorConfirmation()}
	if child.GetRequestedActor() == "" {
		bound = holds
	}
	key, tokenType := bound.Key(), "Bearer"
	c.Confirmation = nil
	if key != "" {
		c.Confirmation = &bound
	}
	if bound.JKT != "" {
		tokenType = "DPoP"
	}
	lifetime := 5 * time.Minute
	if child.GetRequestedLifetime() != nil {
		lifetime = child.GetRequestedLifetime().AsDuration()
	}
	now, limit := time.Now(), c.ExpiresAt // of the parent; 0 of a root token
	c.IssuedAt, c.NotBefore, c.ExpiresAt = now.Unix(), now.Unix(), now.Add(lifetime).Unix()
	if limit > 0 {
		c.ExpiresAt = min(c.ExpiresAt, limit)
	}
	s.lastEntry++
	c.ID = fmt.Sprintf("jti-%d", s.lastEntry)
	c.Delegation.Hops = append(slices.Clone(c.Delegation.Hops), delegation.Hop{ID: c.ID, Seq: s.lastEntry, Actor: len(c.Act) - 1, Key: key})
	c.Delegation.DepthLeft--
	if child.MaxDepth != nil {
		c.Delegation.DepthLeft = int(child.GetMaxDepth())
	}
	response := &deputyv1.ExchangeResponse{
		IssuedTokenType: delegation.TokenTypeAccessToken, TokenType: tokenType, ExpiresIn: c.ExpiresAt - c.IssuedAt,
		Scope: c.Scope.String(), AuthorizationDetails: child.GetAuthorizationDetails(), Jti: c.ID, Txn: c.Txn, Entry: s.lastEntry,
	}
	entry := &deputyv1.Entry{
		Kind: deputyv1.EntryKind_ENTRY_KIND_CHECK, Outcome: deputyv1.EntryOutcome_ENTRY_OUTCOME_GRANTED,
		Jti: c.ID, Txn: c.Txn, Root: c.Delegation.Root, Subject: string(c.Subject), Actor: string(c.ClientID), Caller: string(c.Act[0]),
		Scope: c.Scope, Audience: c.Audience, ExpiresAt: timestamppb.New(time.Unix(c.ExpiresAt, 0)), ActorProof: "registered_key", Key: key,
		ModelId: "model-1", AuthorizationDetails: child.GetAuthorizationDetails(),
	}
	for _, actor := range c.Act {
		entry.Actors = append(entry.Actors, string(actor))
	}
	if hops := c.Delegation.Hops; len(hops) > 1 {
		entry.Parent = hops[len(hops)-2].ID
	}
	if !validateOnly {
		response.AccessToken = s.Token(c)
		s.lineages[c.ID] = c
		entry.Kind = deputyv1.EntryKind_ENTRY_KIND_GRANT
	}
	s.append(entry)
	return response, nil
}

// parent reads a subject token: one of the server's own, or any other as the root of a new chain.
func (s *Server) parent(token string) (delegation.Claims, delegation.Scopes, error) {
	u, err := delegation.Parse(token)
	if err != nil {
		return delegation.Claims{}, nil, err
	}
	if issuer, _ := u.StringClaim("iss"); issuer == s.Issuer {
		c, err := u.Claims()
		return c, c.Scope, err
	}
	r, err := u.Registered()
	if err != nil {
		return delegation.Claims{}, nil, err
	}
	scope, err := u.StringClaim("scope")
	if err != nil {
		return delegation.Claims{}, nil, err
	}
	allowed, err := delegation.ParseScopes(scope)
	return delegation.Claims{
		Issuer: s.Issuer, Subject: delegation.Principal("user:" + delegation.EncodeID(r.Subject)), Txn: "txn-1",
		Delegation: delegation.Delegation{Root: "9f2c", DepthLeft: 4},
	}, allowed, err
}

// Introspect implements deputyv1.TokenExchangeServiceServer.
func (s *Server) Introspect(ctx context.Context, r *deputyv1.IntrospectRequest) (*deputyv1.IntrospectResponse, error) {
	if err := s.enter(ctx); err != nil {
		return nil, err
	}
	c, scopes, err := s.parent(r.GetToken())
	if err != nil || c.ID == "" || s.Revoked(c) {
		return &deputyv1.IntrospectResponse{}, nil
	}
	response := &deputyv1.IntrospectResponse{
		Active: true, Scope: scopes.String(), ClientId: string(c.ClientID), TokenType: "Bearer", Exp: c.ExpiresAt, Iat: c.IssuedAt,
		Nbf: c.NotBefore, Sub: string(c.Subject), Aud: c.Audience, Iss: c.Issuer, Jti: c.ID, Txn: c.Txn, DepthLeft: uint32(c.Delegation.DepthLeft),
	}
	if c.Confirmation != nil {
		response.Cnf = &deputyv1.Confirmation{Jkt: c.Confirmation.JKT, X5TS256: c.Confirmation.X5T}
	}
	for _, actor := range slices.Backward(c.Act) {
		response.Act = append(response.Act, string(actor))
	}
	for _, hop := range c.Delegation.Hops {
		response.Hops = append(response.Hops, &deputyv1.Hop{Jti: hop.ID, Entry: hop.Seq, Actor: string(c.Act[hop.Actor]), Key: hop.Key})
	}
	return response, nil
}
