package httpapi

import (
	"context"
	"fmt"
	"net/http"
	"testing"
	"time"

	"go.uber.org/goleak"

	"deputy.example/deputy/client/delegation"
	"deputy.example/deputy/server/internal/exchange"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// script is an engine that records its calls and returns scripted answers.
type script struct {
	calls      []exchange.Call
	inquiries  []exchange.Inquiry
	exchange   func(context.Context, exchange.Call) ([]exchange.Outcome, error)
	introspect func(context.Context, exchange.Inquiry) (exchange.Introspection, error)
	revoked    []exchange.RevokeCall
	revoke     func(context.Context, exchange.RevokeCall) (exchange.Revoked, error)
	listed     []string // tenant and number
	list       func() (exchange.StatusList, error)
}

func (s *script) Exchange(ctx context.Context, c exchange.Call) ([]exchange.Outcome, error) {
	s.calls = append(s.calls, c)
	return s.exchange(ctx, c)
}

func (s *script) Introspect(ctx context.Context, q exchange.Inquiry) (exchange.Introspection, error) {
	s.inquiries = append(s.inquiries, q)
	return s.introspect(ctx, q)
}

func (s *script) Revoke(ctx context.Context, c exchange.RevokeCall) (exchange.Revoked, error) {
	s.revoked = append(s.revoked, c)
	return s.revoke(ctx, c)
}

func (s *script) StatusList(_ context.Context, tenant string, number uint64) (exchange.StatusList, error) {
	s.listed = append(s.listed, fmt.Sprint(tenant, " ", number))
	return s.list()
}

// signedToken is a secret of a request. It must not occur in a log, a span or an error.
const signedToken = "eyJhbGciOiJub25lIn0.e30.c2VjcmV0"

func sampleClaims(t testing.TB) delegation.Claims {
	t.Helper()
	details, err := delegation.ParseDetails([]byte(`[{"type":"document","actions":["read"]}]`))
	if err != nil {
		t.Fatal(err)
	}
	scopes, err := delegation.NewScopes("calendar.read", "calendar.write")
	if err != nil {
		t.Fatal(err)
	}
	return delegation.Claims{
		Issuer: acmeIssuer, Subject: "user:alice", ClientID: "agent:researcher",
		Audience: []string{"https://calendar.example"}, Scope: scopes, Details: details,
		IssuedAt: 1795305600, NotBefore: 1795305600, ExpiresAt: 1795305900, ID: "01JID", Txn: "01JTXN",
		Act: delegation.Chain{"agent:planner", "agent:researcher"},
		Delegation: delegation.Delegation{
			Root:      "9f2c",
			Hops:      []delegation.Hop{{ID: "01JP", Seq: 41}, {ID: "01JID", Seq: 57, Actor: 1}},
			DepthLeft: 2,
		},
	}
}

// granting returns an engine that grants every request.
func granting(t testing.TB) *script {
	claims := sampleClaims(t)
	return &script{
		exchange: func(_ context.Context, c exchange.Call) ([]exchange.Outcome, error) {
			grant := &exchange.Grant{
				AccessToken: signedToken, IssuedTokenType: delegation.TokenTypeAccessToken,
				ExpiresIn: 5 * time.Minute, Claims: claims, Entry: 57,
			}
			if c.ValidateOnly {
				grant.AccessToken = ""
			}
			return []exchange.Outcome{{Grant: grant}}, nil
		},
		introspect: func(context.Context, exchange.Inquiry) (exchange.Introspection, error) {
			return exchange.Introspection{Claims: &claims}, nil
		},
		revoke: func(context.Context, exchange.RevokeCall) (exchange.Revoked, error) {
			return exchange.Revoked{Revocation: &delegation.Revocation{Seq: 58}, Tokens: 1, Chains: 1}, nil
		},
		list: func() (exchange.StatusList, error) {
			return exchange.StatusList{Token: signedToken, MaxAge: 4 * time.Second}, nil
		},
	}
}

const (
	rootIssuer = "https://deputy.example"
	acmeIssuer = "https://deputy.example/t/acme"
)

func tenants() []Tenant {
	keys := func() []byte { return []byte(`{"keys":[]}`) }
	return []Tenant{
		{Name: "default", Issuer: rootIssuer, JWKS: keys, AssertionAlgorithms: []string{"ES256"}},
		{Name: "acme", Issuer: acmeIssuer, JWKS: keys, AssertionAlgorithms: []string{"ES256", "EdDSA"}, DetailTypes: []string{"document"}},
	}
}

func newHandler(t testing.TB, c Config) *handler {
	t.Helper()
	if c.Tenants == nil {
		c.Tenants = tenants()
	}
	h, err := New(c)
	if err != nil {
		t.Fatal(err)
	}
	return h.(*handler)
}

var _ http.Handler = (*handler)(nil)
