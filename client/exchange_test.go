package client

import (
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"errors"
	"net"
	"slices"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"deputy.example/deputy/client/delegation"
	"deputy.example/deputy/client/internal/deputytest"
	deputyv1 "deputy.example/deputy/gen/deputy/v1"
)

func newTestKey(t testing.TB) *Key {
	t.Helper()
	private, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	key, err := NewKey(private, "planner-1")
	if err != nil {
		t.Fatal(err)
	}
	return key
}

func plannerAssertion(t testing.TB, issuer string) Credential {
	t.Helper()
	credential, err := NewAssertion(AssertionConfig{Issuer: issuer, ClientID: "planner", Key: newTestKey(t)})
	if err != nil {
		t.Fatal(err)
	}
	return credential
}

func connect(t testing.TB, s *deputytest.Server, credential Credential) *Client {
	t.Helper()
	c, err := New(Config{Address: s.Address, Transport: PlaintextLoopback, Credential: credential})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { c.Close() })
	return c
}

func toCalendar(subject string) ExchangeRequest {
	return ExchangeRequest{
		SubjectToken: NewSecret(subject),
		Child:        Child{Scopes: delegation.Scopes{"calendar.read"}, Audience: []string{calendar}, Lifetime: time.Minute},
	}
}

func reason(t testing.TB, err error) delegation.Reason {
	t.Helper()
	var e *delegation.Error
	if !errors.As(err, &e) {
		t.Fatalf("err = %v, want a *delegation.Error", err)
	}
	return e.Reason
}

// TestExchange follows a chain: alice to planner, planner to researcher. The tool verifies the
// token, and the ledger shows both grants.
func TestExchange(t *testing.T) {
	s := startDeputy(t)
	c := connect(t, s, plannerAssertion(t, s.Issuer))
	request := toCalendar(s.RootToken("alice"))
	request.Child.Scopes = delegation.Scopes{"calendar.read", "calendar.write"}
	planner, err := c.Exchange(t.Context(), request)
	if err != nil {
		t.Fatal(err)
	}
	request = toCalendar(planner.AccessToken.Reveal())
	request.Child.RequestedActor = "agent:researcher"
	request.Child.MaxDepth = new(int)
	before := time.Now()
	researcher, err := c.Exchange(t.Context(), request)
	if err != nil {
		t.Fatal(err)
	}
	if researcher.TokenType != "Bearer" || researcher.Scope.String() != "calendar.read" || researcher.JTI == "" || researcher.Entry != planner.Entry+1 ||
		researcher.Expiry.Before(before.Add(time.Minute)) || researcher.Expiry.After(time.Now().Add(time.Minute)) {
		t.Errorf("token = %+v", researcher)
	}
	d, err := fixedVerifier(t, s).Verify(t.Context(), researcher.AccessToken.Reveal())
	if err != nil {
		t.Fatal(err)
	}
	if !slices.Equal(d.Chain(), delegation.Chain{"agent:planner", "agent:researcher"}) || d.Claims().Delegation.DepthLeft != 0 {
		t.Errorf("delegation = %+v", d)
	}
	record, err := c.Chain(t.Context(), researcher.JTI)
	if err != nil {
		t.Fatal(err)
	}
	if record.Subject != "user:alice" || len(record.Grants) != 2 || record.Grants[0].Scope.String() != "calendar.read calendar.write" ||
		record.Grants[1].JTI != researcher.JTI {
		t.Errorf("record = %+v", record)
	}
	in, err := c.Introspect(t.Context(), researcher.AccessToken)
	if err != nil {
		t.Fatal(err)
	}
	if !in.Active || !slices.Equal(in.Actors, d.Chain()) || len(in.Hops) != 2 || in.Hops[1].Actor != "agent:researcher" || in.Expiry != d.Expiry() {
		t.Errorf("introspection = %+v", in)
	}
	if in, err := c.Introspect(t.Context(), NewSecret("a.b.c")); err != nil || in.Active {
		t.Errorf("nonsense is active: %+v, %v", in, err)
	}
	if _, err := c.Chain(t.Context(), "nobody"); reason(t, err) != delegation.NotFound {
		t.Error(err)
	}
}

func TestExchangeRefusals(t *testing.T) {
	s := startDeputy(t)
	c := connect(t, s, plannerAssertion(t, s.Issuer))
	root := s.RootToken("alice")
	tests := map[string]struct {
		edit func(*ExchangeRequest)
		want delegation.Reason
	}{
		"more scope than the parent": {func(r *ExchangeRequest) { r.Child.Scopes = delegation.Scopes{"admin"} }, delegation.ScopeExceedsParent},
		"no audience":                {func(r *ExchangeRequest) { r.Child.Audience = nil }, delegation.AudienceMissing},
		"no subject token":           {func(r *ExchangeRequest) { r.SubjectToken = Secret{} }, delegation.ParameterMissing},
		"two scopes in one":          {func(r *ExchangeRequest) { r.Child.Scopes = delegation.Scopes{"a b"} }, delegation.ScopeMalformed},
		"half a second":              {func(r *ExchangeRequest) { r.Child.Lifetime = time.Second / 2 }, delegation.ParameterInvalid},
		"a negative lifetime":        {func(r *ExchangeRequest) { r.Child.Lifetime = -time.Second }, delegation.ParameterInvalid},
		"a negative depth":           {func(r *ExchangeRequest) { r.Child.MaxDepth = new(-1) }, delegation.ParameterInvalid},
		"uses that mean nothing":     {func(r *ExchangeRequest) { r.Child.Uses = 2 }, delegation.ParameterInvalid},
		"not a token":                {func(r *ExchangeRequest) { r.SubjectToken = NewSecret("x") }, delegation.SubjectTokenInvalid},
	}
	for name, test := range tests {
		request := toCalendar(root)
		test.edit(&request)
		_, err := c.Exchange(t.Context(), request)
		if got := reason(t, err); got != test.want {
			t.Errorf("%s: %s, want %s", name, got, test.want)
		}
	}
	if _, err := c.Exchange(t.Context(), toCalendar(root)); err != nil {
		t.Errorf("negative control: %v", err)
	}
}

func TestBatchExchange(t *testing.T) {
	s := startDeputy(t)
	c := connect(t, s, plannerAssertion(t, s.Issuer))
	good, bad := toCalendar("").Child, toCalendar("").Child
	bad.Scopes = delegation.Scopes{"admin"}
	outcomes, err := c.BatchExchange(t.Context(), BatchRequest{SubjectToken: NewSecret(s.RootToken("alice")), Children: []Child{good, bad, good}})
	if err != nil {
		t.Fatal(err)
	}
	if outcomes[0].Err != nil || outcomes[2].Err != nil || outcomes[0].Token.JTI == outcomes[2].Token.JTI {
		t.Errorf("the good ones: %+v, %+v", outcomes[0], outcomes[2])
	}
	if outcomes[1].Token != nil || outcomes[1].Err.Reason != delegation.ScopeExceedsParent || outcomes[1].Err.Field != "scope" {
		t.Errorf("the bad one: %+v", outcomes[1])
	}
}

func unavailable() error { return delegation.Unavailable("OpenFGA", nil) }

// TestExchangeRetries: same idempotency key, another assertion, one grant.
func TestExchangeRetries(t *testing.T) {
	s := startDeputy(t)
	c := connect(t, s, plannerAssertion(t, s.Issuer))
	s.FailNext(status.Error(codes.Unavailable, "gone"), unavailable())
	token, err := c.Exchange(t.Context(), toCalendar(s.RootToken("alice")))
	if err != nil {
		t.Fatal(err)
	}
	keys, bearers := s.IdempotencyKeys(), s.Bearers()
	if len(keys) != 3 || len(keys[0]) != 26 || keys[0] != keys[1] || keys[1] != keys[2] {
		t.Errorf("idempotency keys = %q", keys)
	}
	slices.Sort(bearers)
	if len(slices.Compact(bearers)) != 3 {
		t.Errorf("assertions were used twice")
	}
	request := toCalendar(s.RootToken("alice"))
	request.IdempotencyKey = keys[0]
	again, err := c.Exchange(t.Context(), request)
	if err != nil || again.JTI != token.JTI {
		t.Errorf("the same key gives another grant: %v, %v", again, err)
	}
	other, err := c.Exchange(t.Context(), toCalendar(s.RootToken("alice")))
	if err != nil || other.JTI == token.JTI {
		t.Errorf("negative control: calls of their own share a grant: %v, %v", other, err)
	}
}

func TestExchangeRetriesNeedFreshAssertions(t *testing.T) {
	s := startDeputy(t)
	assertion, err := plannerAssertion(t, s.Issuer)(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	stale := connect(t, s, func(context.Context) (string, error) { return assertion, nil })
	if _, err := stale.Exchange(t.Context(), toCalendar(s.RootToken("alice"))); err != nil {
		t.Fatal(err)
	}
	if _, err = stale.Exchange(t.Context(), toCalendar(s.RootToken("alice"))); reason(t, err) != delegation.AssertionReplayed {
		t.Errorf("negative control: a second use of one assertion: %v", err)
	}
}

func TestExchangeDoesNotRetryRefusals(t *testing.T) {
	s := startDeputy(t)
	c := connect(t, s, plannerAssertion(t, s.Issuer))
	s.FailNext(delegation.Refuse(delegation.TokenRevoked, "subject_token", "revoked"))
	if _, err := c.Exchange(t.Context(), toCalendar(s.RootToken("alice"))); reason(t, err) != delegation.TokenRevoked {
		t.Error(err)
	}
	if n := len(s.Bearers()); n != 1 {
		t.Errorf("%d calls", n)
	}
}

func TestValidateOnly(t *testing.T) {
	s := startDeputy(t)
	c := connect(t, s, plannerAssertion(t, s.Issuer))
	request := toCalendar(s.RootToken("alice"))
	request.ValidateOnly = true
	token, err := c.Exchange(t.Context(), request)
	if err != nil || !token.AccessToken.IsZero() || token.Scope.String() != "calendar.read" || token.Entry == 0 {
		t.Errorf("%+v, %v", token, err)
	}
	request.IdempotencyKey = "once"
	if _, err := c.Exchange(t.Context(), request); reason(t, err) != delegation.ParameterConflict {
		t.Errorf("a key with nothing to repeat: %v", err)
	}
}

// stubExchanges is a server without a network, for tests that control the time.
type stubExchanges struct {
	deputyv1.TokenExchangeServiceClient
	exchange func(context.Context, *deputyv1.ExchangeRequest) (*deputyv1.ExchangeResponse, error)
}

func (s stubExchanges) Exchange(ctx context.Context, r *deputyv1.ExchangeRequest, _ ...grpc.CallOption) (*deputyv1.ExchangeResponse, error) {
	return s.exchange(ctx, r)
}

func stubClient(exchange func(context.Context, *deputyv1.ExchangeRequest) (*deputyv1.ExchangeResponse, error)) *Client {
	c := newClient(Config{})
	c.tokens = stubExchanges{exchange: exchange}
	return c
}

func TestRetriesAreBounded(t *testing.T) {
	calls := 0
	down := func(context.Context, *deputyv1.ExchangeRequest) (*deputyv1.ExchangeResponse, error) {
		calls++
		return nil, unavailable()
	}
	t.Run("by their number", func(t *testing.T) {
		synctest.Test(t, func(t *testing.T) {
			calls = 0
			began := time.Now()
			_, err := stubClient(down).Exchange(t.Context(), toCalendar("t"))
			if reason(t, err) != delegation.DependencyDown || calls != 4 {
				t.Errorf("%d calls, %v", calls, err)
			}
			if d := time.Since(began); d < 3*time.Second || d > 6*time.Second {
				t.Errorf("three pauses of a second and jitter took %v", d)
			}
		})
	})
	t.Run("by the deadline", func(t *testing.T) {
		synctest.Test(t, func(t *testing.T) {
			calls = 0
			began := time.Now()
			ctx, cancel := context.WithTimeout(t.Context(), 1500*time.Millisecond)
			defer cancel()
			_, err := stubClient(down).Exchange(ctx, toCalendar("t"))
			if reason(t, err) != delegation.DependencyDown || calls > 2 || time.Since(began) > 1500*time.Millisecond {
				t.Errorf("%d calls in %v, %v", calls, time.Since(began), err)
			}
		})
	})
	t.Run("by the caller", func(t *testing.T) {
		synctest.Test(t, func(t *testing.T) {
			ctx, cancel := context.WithCancel(t.Context())
			hangs := func(ctx context.Context, _ *deputyv1.ExchangeRequest) (*deputyv1.ExchangeResponse, error) {
				cancel()
				<-ctx.Done()
				return nil, status.FromContextError(ctx.Err()).Err()
			}
			if _, err := stubClient(hangs).Exchange(ctx, toCalendar("t")); !errors.Is(err, context.Canceled) {
				t.Errorf("err = %v", err)
			}
		})
	})
	t.Run("attempts by their timeout", func(t *testing.T) {
		synctest.Test(t, func(t *testing.T) {
			calls := 0
			slow := func(ctx context.Context, _ *deputyv1.ExchangeRequest) (*deputyv1.ExchangeResponse, error) {
				if calls++; calls > 1 {
					return granted("calendar.read"), nil
				}
				<-ctx.Done()
				return nil, status.FromContextError(ctx.Err()).Err()
			}
			if _, err := stubClient(slow).Exchange(t.Context(), toCalendar("t")); err != nil || calls != 2 {
				t.Errorf("%d calls, %v", calls, err)
			}
		})
	})
}

func granted(scope string) *deputyv1.ExchangeResponse {
	return &deputyv1.ExchangeResponse{AccessToken: canary, TokenType: "Bearer", ExpiresIn: 60, Scope: scope, Jti: "jti-1", Txn: "txn-1", Entry: 1}
}

// TestRepliesAreJudged: a sub-agent's token does not depend on a correct response.
func TestRepliesAreJudged(t *testing.T) {
	tests := map[string]func(*deputyv1.ExchangeResponse){
		"more scope than asked": func(r *deputyv1.ExchangeResponse) { r.Scope = "admin calendar.read" },
		"no token":              func(r *deputyv1.ExchangeResponse) { r.AccessToken = "" },
		"no token type":         func(r *deputyv1.ExchangeResponse) { r.TokenType = "" },
		"no lifetime":           func(r *deputyv1.ExchangeResponse) { r.ExpiresIn = 0 },
		"malformed scope":       func(r *deputyv1.ExchangeResponse) { r.Scope = "a  b" },
		"malformed details":     func(r *deputyv1.ExchangeResponse) { r.AuthorizationDetails = "{}" },
		"":                      func(*deputyv1.ExchangeResponse) {},
	}
	for name, spoil := range tests {
		_, err := stubClient(func(context.Context, *deputyv1.ExchangeRequest) (*deputyv1.ExchangeResponse, error) {
			r := granted("calendar.read")
			spoil(r)
			return r, nil
		}).Exchange(t.Context(), toCalendar("t"))
		if name == "" && err != nil {
			t.Errorf("negative control: %v", err)
		}
		if name != "" && reason(t, err) != delegation.Internal {
			t.Errorf("%s: %v", name, err)
		}
		if err != nil && strings.Contains(err.Error(), canary) {
			t.Errorf("%s: the error holds the token", name)
		}
	}
}

// farConn is a connection that ends at an address of another machine.
type farConn struct{ net.Conn }

func (farConn) RemoteAddr() net.Addr { return &net.TCPAddr{IP: net.IPv4(203, 0, 113, 1), Port: 9090} }

// TestPlaintextStaysHere: whatever a name resolves to, no credential leaves this machine
// unencrypted.
func TestPlaintextStaysHere(t *testing.T) {
	s := startDeputy(t)
	far := grpc.WithContextDialer(func(ctx context.Context, _ string) (net.Conn, error) {
		conn, err := new(net.Dialer).DialContext(ctx, "tcp", s.Address)
		return farConn{conn}, err
	})
	try := func(transport Transport) error {
		c, err := New(Config{
			Address: "passthrough:///localhost:9090", Transport: transport, Attempts: 1,
			Credential: plannerAssertion(t, s.Issuer), DialOptions: []grpc.DialOption{far},
		})
		if err != nil {
			t.Fatal(err)
		}
		defer c.Close()
		_, err = c.Exchange(t.Context(), toCalendar(s.RootToken("alice")))
		return err
	}
	if err := try(PlaintextLoopback); reason(t, err) != delegation.DependencyDown || len(s.Bearers()) != 0 {
		t.Errorf("err = %v after %d calls", err, len(s.Bearers()))
	}
	if err := try(TLS); reason(t, err) != delegation.DependencyDown || len(s.Bearers()) != 0 {
		t.Errorf("TLS against a server without it: %v after %d calls", err, len(s.Bearers()))
	}
	if err := try(PlaintextTrustedNetwork); err != nil {
		t.Errorf("negative control: %v", err)
	}
	if _, err := grpc.NewClient("localhost:1", grpc.WithPerRPCCredentials(plannerAssertion(t, s.Issuer))); err == nil {
		t.Error("a Credential by itself can be used without transport security")
	}
}
