package conformance

import (
	"context"
	"encoding/json"
	"fmt"
	"io"
	"maps"
	"net"
	"net/http"
	"net/http/httptest"
	"net/url"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/metadata"
	"google.golang.org/protobuf/types/known/durationpb"

	"deputy.example/deputy/client"
	"deputy.example/deputy/client/delegation"
	deputyv1 "deputy.example/deputy/gen/deputy/v1"
	"deputy.example/deputy/server/internal/httpapi"
	"deputy.example/deputy/server/internal/rpc"
)

// params are the parameters of one request by their names in RFC 8693 and docs/http-api.md.
// audience and resource may have several values.
type params map[string][]string

func (p params) get(name string) string {
	if len(p[name]) == 0 {
		return ""
	}
	return p[name][0]
}

// answer is the answer of an endpoint in the form of HTTP: error and reason of a refusal, or the
// members of a success.
type answer map[string]any

// The interface is one way to call Deputy. credential is "" for a caller that does not
// authenticate.
type door interface {
	exchange(ctx context.Context, p params, credential string) (answer, error)
	introspect(ctx context.Context, token, credential string) (answer, error)
}

// The function opens every endpoint of the engine: gRPC, HTTP, and the SDK. The servers end with
// the test.
func doors(t *testing.T, calls rpc.Engine, forms httpapi.Engine, tenant httpapi.Tenant) map[string]door {
	t.Helper()
	handler, err := httpapi.New(httpapi.Config{Engine: forms, Tenants: []httpapi.Tenant{tenant}})
	if err != nil {
		t.Fatal(err)
	}
	web := httptest.NewServer(handler)
	t.Cleanup(web.Close)
	issuer, err := url.Parse(tenant.Issuer)
	if err != nil {
		t.Fatal(err)
	}

	server, err := rpc.New(rpc.Config{Engine: calls})
	if err != nil {
		t.Fatal(err)
	}
	address := serveGRPC(t, server, loopback(t))
	conn, err := grpc.NewClient(address, grpc.WithTransportCredentials(insecure.NewCredentials()))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := conn.Close(); err != nil {
			t.Error(err)
		}
	})
	stub := deputyv1.NewTokenExchangeServiceClient(conn)
	return map[string]door{
		"http":   httpDoor{web.Client(), web.URL + issuer.Path},
		"grpc":   grpcDoor{stub: stub},
		"bearer": grpcDoor{stub: stub, metadata: true},
		"sdk":    sdkDoor{address},
	}
}

// httpDoor sends forms.
type httpDoor struct {
	client *http.Client
	base   string
}

func (d httpDoor) exchange(ctx context.Context, p params, credential string) (answer, error) {
	form := url.Values{"grant_type": {delegation.GrantTypeTokenExchange}}
	maps.Copy(form, p)
	return d.post(ctx, "/oauth2/token", authenticated(form, credential))
}

func (d httpDoor) introspect(ctx context.Context, token, credential string) (answer, error) {
	return d.post(ctx, "/oauth2/introspect", authenticated(url.Values{"token": {token}}, credential))
}

// authenticated adds the assertion, unless the case brings its own.
func authenticated(form url.Values, credential string) url.Values {
	if credential != "" && !form.Has("client_assertion") {
		form.Set("client_assertion", credential)
	}
	if form.Has("client_assertion") && !form.Has("client_assertion_type") {
		form.Set("client_assertion_type", delegation.ClientAssertionTypeJWTBearer)
	}
	return form
}

// post also checks every answer against what RFC 6749 §5 and RFC 8693 §2.2 require of all answers.
func (d httpDoor) post(ctx context.Context, path string, form url.Values) (answer, error) {
	request, err := http.NewRequestWithContext(ctx, http.MethodPost, d.base+path, strings.NewReader(form.Encode()))
	if err != nil {
		return nil, err
	}
	request.Header.Set("Content-Type", "application/x-www-form-urlencoded")
	response, err := d.client.Do(request)
	if err != nil {
		return nil, err
	}
	defer response.Body.Close()
	body, err := io.ReadAll(response.Body)
	if err != nil {
		return nil, err
	}
	got := make(answer)
	if err := json.Unmarshal(body, &got); err != nil {
		return nil, fmt.Errorf("not JSON: %q", body)
	}
	header := response.Header
	if header.Get("Cache-Control") != "no-store" || header.Get("Pragma") != "no-cache" || header.Get("Content-Type") != "application/json" {
		return nil, fmt.Errorf("headers %v", header)
	}
	if got["error"] == nil {
		if response.StatusCode != http.StatusOK {
			return nil, fmt.Errorf("%s without an error", response.Status)
		}
		return got, nil
	}
	reason, _ := got["reason"].(string)
	wire := delegation.Reason(reason).Wire()
	if response.StatusCode != wire.HTTP || got["error"] != wire.OAuth || got["error_description"] == "" {
		return nil, fmt.Errorf("%s with %s", response.Status, body)
	}
	if response.StatusCode == http.StatusUnauthorized && header.Get("WWW-Authenticate") == "" {
		return nil, fmt.Errorf("401 without WWW-Authenticate")
	}
	return got, nil
}

// grpcDoor sends messages, with the assertion in them or as metadata.
type grpcDoor struct {
	stub     deputyv1.TokenExchangeServiceClient
	metadata bool
}

func (d grpcDoor) authenticate(ctx context.Context, form url.Values) (context.Context, *deputyv1.ClientAuthentication) {
	client := &deputyv1.ClientAuthentication{
		ClientAssertionType: form.Get("client_assertion_type"), ClientAssertion: form.Get("client_assertion"), ClientId: form.Get("client_id"),
	}
	switch {
	case d.metadata && client.ClientAssertion != "":
		return metadata.AppendToOutgoingContext(ctx, "authorization", "Bearer "+client.ClientAssertion), nil
	case client.ClientAssertion == "" && client.ClientAssertionType == "" && client.ClientId == "":
		return ctx, nil
	}
	return ctx, client
}

func (d grpcDoor) exchange(ctx context.Context, p params, credential string) (answer, error) {
	child, err := childMessage(p)
	if err != nil {
		return nil, err
	}
	ctx, client := d.authenticate(ctx, authenticated(url.Values(maps.Clone(p)), credential))
	r, err := d.stub.Exchange(ctx, &deputyv1.ExchangeRequest{
		SubjectToken: p.get("subject_token"), SubjectTokenType: p.get("subject_token_type"), Child: child, Client: client,
		IdempotencyKey: p.get("idempotency_key"), ValidateOnly: p.get("validate_only") == "true",
	})
	if err != nil {
		return refusal(delegation.FromStatus(err)), nil
	}
	got := answer{
		"access_token": r.GetAccessToken(), "issued_token_type": r.GetIssuedTokenType(), "token_type": r.GetTokenType(),
		"expires_in": float64(r.GetExpiresIn()), "scope": r.GetScope(), "jti": r.GetJti(), "txn": r.GetTxn(), "entry": float64(r.GetEntry()),
	}
	return got.clean("access_token", "jti", "txn"), got.addDetails(r.GetAuthorizationDetails())
}

func childMessage(p params) (*deputyv1.Child, error) {
	child := &deputyv1.Child{
		ActorToken: p.get("actor_token"), ActorTokenType: p.get("actor_token_type"), Resource: p["resource"], Audience: p["audience"],
		Scope: p.get("scope"), RequestedTokenType: p.get("requested_token_type"), AuthorizationDetails: p.get("authorization_details"),
		RequestedActor: p.get("requested_actor"), ActorConfirmation: p.get("actor_confirmation"),
	}
	for name, into := range map[string]func(uint64){
		"requested_lifetime": func(n uint64) {
			child.RequestedLifetime = durationpb.New(time.Duration(n) * time.Second)
		},
		"max_depth": func(n uint64) { depth := uint32(n); child.MaxDepth = &depth },
		"uses":      func(n uint64) { uses := uint32(n); child.Uses = &uses },
	} {
		if p.get(name) == "" {
			continue
		}
		n, err := strconv.ParseUint(p.get(name), 10, 32)
		if err != nil {
			return nil, err
		}
		into(n)
	}
	return child, nil
}

func (d grpcDoor) introspect(ctx context.Context, token, credential string) (answer, error) {
	ctx, client := d.authenticate(ctx, authenticated(url.Values{}, credential))
	r, err := d.stub.Introspect(ctx, &deputyv1.IntrospectRequest{Token: token, Client: client})
	if err != nil {
		return refusal(delegation.FromStatus(err)), nil
	}
	if !r.GetActive() {
		if rest := r.String(); rest != "" {
			return nil, fmt.Errorf("an inactive token is described: %s", rest)
		}
		return answer{"active": false}, nil
	}
	var actors delegation.Chain
	for _, actor := range slices.Backward(r.GetAct()) {
		actors = append(actors, delegation.Principal(actor))
	}
	got := answer{
		"active": true, "iss": r.GetIss(), "sub": r.GetSub(), "client_id": r.GetClientId(), "aud": texts(r.GetAud()), "scope": r.GetScope(),
		"token_type": r.GetTokenType(), "exp": float64(r.GetExp()), "iat": float64(r.GetIat()), "nbf": float64(r.GetNbf()),
		"jti": r.GetJti(), "txn": r.GetTxn(), "act": nested(actors),
	}
	return got, got.addDetails(r.GetAuthorizationDetails())
}

// sdkDoor calls as a program with the Go client does.
type sdkDoor struct{ address string }

func (d sdkDoor) open(credential string) (*client.Client, error) {
	config := client.Config{Address: d.address, Transport: client.PlaintextLoopback}
	if credential != "" {
		config.Credential = func(context.Context) (string, error) { return credential, nil }
	}
	return client.New(config)
}

func (d sdkDoor) exchange(ctx context.Context, p params, credential string) (answer, error) {
	request, err := sdkRequest(p)
	if err != nil {
		return nil, err
	}
	c, err := d.open(credential)
	if err != nil {
		return nil, err
	}
	defer c.Close()
	token, err := c.Exchange(ctx, request)
	if err != nil {
		return refusal(delegation.AsError(err)), nil
	}
	got := answer{
		"access_token": token.AccessToken.Reveal(), "issued_token_type": token.IssuedTokenType, "token_type": token.TokenType,
		"expires_in": float64(time.Until(token.Expiry).Round(time.Second) / time.Second), "scope": token.Scope.String(),
		"jti": token.JTI, "txn": token.Txn, "entry": float64(token.Entry),
	}
	if len(token.Details) > 0 {
		got["authorization_details"] = plain(token.Details)
	}
	return got.clean("access_token", "jti", "txn"), nil
}

func sdkRequest(p params) (client.ExchangeRequest, error) {
	child, err := childMessage(p)
	if err != nil {
		return client.ExchangeRequest{}, err
	}
	request := client.ExchangeRequest{
		SubjectToken: client.NewSecret(p.get("subject_token")), SubjectTokenType: p.get("subject_token_type"),
		IdempotencyKey: p.get("idempotency_key"), ValidateOnly: p.get("validate_only") == "true",
		Child: client.Child{
			ActorToken: client.NewSecret(child.ActorToken), ActorTokenType: child.ActorTokenType,
			RequestedActor: delegation.Principal(child.RequestedActor), Confirmation: child.ActorConfirmation,
			Audience: child.Audience, Resource: child.Resource, Lifetime: child.RequestedLifetime.AsDuration(), Uses: int(child.GetUses()),
		},
	}
	if child.MaxDepth != nil {
		depth := int(child.GetMaxDepth())
		request.Child.MaxDepth = &depth
	}
	if child.Scope != "" {
		if request.Child.Scopes, err = delegation.ParseScopes(child.Scope); err != nil {
			return client.ExchangeRequest{}, err
		}
	}
	if child.AuthorizationDetails != "" {
		request.Child.Details, err = delegation.ParseDetails([]byte(child.AuthorizationDetails))
	}
	return request, err
}

func (d sdkDoor) introspect(ctx context.Context, token, credential string) (answer, error) {
	c, err := d.open(credential)
	if err != nil {
		return nil, err
	}
	defer c.Close()
	found, err := c.Introspect(ctx, client.NewSecret(token))
	if err != nil {
		return refusal(delegation.AsError(err)), nil
	}
	if !found.Active {
		return answer{"active": false}, nil
	}
	return answer{
		"active": true, "iss": found.Issuer, "sub": string(found.Subject), "client_id": string(found.ClientID), "aud": texts(found.Audience),
		"scope": found.Scope.String(), "token_type": found.TokenType, "exp": float64(found.Expiry.Unix()), "iat": float64(found.IssuedAt.Unix()),
		"nbf": float64(found.NotBefore.Unix()), "jti": found.JTI, "txn": found.Txn, "act": nested(found.Actors),
	}, nil
}

func refusal(e *delegation.Error) answer {
	got := answer{"error": e.Reason.Wire().OAuth, "reason": string(e.Reason), "error_description": e.Description, "field": e.Field}
	if len(e.Metadata) > 0 {
		got["metadata"] = plain(e.Metadata)
	}
	return got
}

// clean removes empty members, as JSON does over HTTP.
func (a answer) clean(names ...string) answer {
	for _, name := range names {
		if a[name] == "" {
			delete(a, name)
		}
	}
	return a
}

func (a answer) addDetails(text string) error {
	if text == "" {
		return nil
	}
	var details any
	err := json.Unmarshal([]byte(text), &details)
	a["authorization_details"] = details
	return err
}

func nested(actors delegation.Chain) any {
	if len(actors) == 0 {
		return nil
	}
	return plain(actors)
}

func texts(values []string) any { return plain(values) }

// plain returns the value as encoding/json decodes it.
func plain(value any) any {
	raw, err := json.Marshal(value)
	if err != nil {
		return err
	}
	var out any
	if err := json.Unmarshal(raw, &out); err != nil {
		return err
	}
	return out
}

func loopback(t *testing.T) net.Listener {
	t.Helper()
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	return listener
}

// serveGRPC serves until the test ends and returns the address.
func serveGRPC(t *testing.T, server *rpc.Server, listener net.Listener) string {
	t.Helper()
	served := make(chan error, 1)
	go func() { served <- server.Serve(listener) }()
	t.Cleanup(func() {
		server.Stop()
		if err := <-served; err != nil {
			t.Error(err)
		}
	})
	return listener.Addr().String()
}
