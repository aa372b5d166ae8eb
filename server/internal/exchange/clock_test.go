package exchange_test

import (
	"io"
	"net/http"
	"slices"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"deputy.example/deputy/client/delegation"
	"deputy.example/deputy/server/internal/clock"
	"deputy.example/deputy/server/internal/exchange"
	"deputy.example/deputy/server/internal/exchange/exchangetest"
	"deputy.example/deputy/server/internal/token"
)

// timed is an instance whose clocks a test steps.
type timed struct {
	*exchangetest.World
	wall atomic.Int64
}

// newTimed opens one. remote returns how far ahead the clock of a source is.
func newTimed(t testing.TB, w *exchangetest.World, wall time.Duration, remote func(source string) time.Duration) *timed {
	t.Helper()
	m := &timed{}
	m.wall.Store(int64(wall))
	truth := w.Clock().Now
	began := truth()
	m.World = w.Elsewhere(t, clock.Config{
		Now:     func() time.Time { return truth().Add(time.Duration(m.wall.Load())) },
		Elapsed: func() time.Duration { return truth().Sub(began) },
		Remote:  func(source string, _ time.Time) time.Time { return truth().Add(remote(source)) },
	})
	return m
}

func exact(string) time.Duration { return 0 }

// TestAWrongClockAnswersNothing makes each kind of call to an instance whose clock was stepped.
func TestAWrongClockAnswersNothing(t *testing.T) {
	w := exchangetest.New(t, exchangetest.Config{Agents: []delegation.Principal{responder}})
	n := w.Tenant()
	n.FGA.Allow(string(responder), "responder", "system:deputy")
	m := newTimed(t, w, 0, exact)
	chain := w.Chain(t, n, planner, researcher)
	leaf := chain[1]
	watch, err := m.Engine.Watch(t.Context(), exchange.Inquiry{Tenant: "default", Credentials: n.Credentials(t, planner)})
	if err != nil {
		t.Fatal(err)
	}
	asks := map[string]func() error{
		"exchange": func() error {
			_, err := m.Engine.Exchange(t.Context(), n.Call(t, leaf.AccessToken, researcher, writer))
			return err
		},
		"introspection": func() error {
			got, err := m.Engine.Introspect(t.Context(), exchange.Inquiry{Tenant: "default", Credentials: n.Credentials(t, planner), Token: leaf.AccessToken})
			if err == nil && got.Claims == nil {
				t.Error("introspection says not active")
			}
			return err
		},
		"snapshot": func() error { _, _, _, err := watch.Snapshot(t.Context()); return err },
		"echo": func() error {
			_, at, err := watch.Last(t.Context())
			if err == nil && at.Sub(w.Clock().Now()).Abs() > clock.DefaultBound {
				t.Errorf("ledger time is %v off", at.Sub(w.Clock().Now()))
			}
			return err
		},
		"status list": func() error { _, err := m.Engine.StatusList(t.Context(), "default", 0); return err },
	}
	for name, ask := range asks {
		for _, step := range []time.Duration{0, -48 * time.Hour, -3 * time.Second, 3 * time.Second, 40 * time.Minute, 0} {
			m.wall.Store(int64(step))
			err := ask()
			if refused := err != nil && delegation.AsError(err).Reason == delegation.DependencyDown; refused != (step != 0) || err != nil && step == 0 {
				t.Errorf("%s with a clock %v ahead: %v", name, step, err)
			}
		}
	}
	m.wall.Store(int64(40 * time.Minute))
	if _, refusal := take(m.World, t, responder, delegation.Target{Kind: delegation.BanToken, ID: leaf.Claims.ID}); refusal != nil {
		t.Errorf("a revocation at an instance with a wrong clock: %v (cause %v)", refusal, refusal.Unwrap())
	}
	if active(t, w, leaf) {
		t.Error("what it revoked is active elsewhere")
	}
}

// TestLoweredLimitsReviveNothing revokes a token of two hours under limits that allow fifteen
// minutes.
func TestLoweredLimitsReviveNothing(t *testing.T) {
	w := exchangetest.New(t, exchangetest.Config{
		Agents: []delegation.Principal{responder}, Limits: exchange.Limits{MaxLifetime: 2 * time.Hour, DefaultLifetime: 2 * time.Hour},
	})
	n := w.Tenant()
	n.FGA.Allow(string(responder), "responder", "system:deputy")
	call := n.Call(t, n.Root(t, map[string]any{"exp": w.Clock().Now().Add(3 * time.Hour).Unix()}), planner, "")
	long, refusal := w.One(t.Context(), call)
	if refusal != nil {
		t.Fatal(refusal)
	}
	lowered := w.Limited(t, exchange.Limits{MaxLifetime: 15 * time.Minute})
	if _, refusal := take(lowered, t, responder, delegation.Target{Kind: delegation.BanToken, ID: long.Claims.ID}); refusal != nil {
		t.Fatal(refusal)
	}
	for range 10 {
		w.Clock().Advance(10 * time.Minute)
		for _, instance := range []*exchangetest.World{lowered, w.Peer(t)} {
			if active(t, instance, long) {
				t.Fatalf("active again at %v", w.Clock().Now())
			}
		}
	}
}

// TestIdempotencyKeysOutliveTheirGrant repeats a request after its grant has expired. While the
// parent lives and the key is kept, nothing is granted again.
func TestIdempotencyKeysOutliveTheirGrant(t *testing.T) {
	w := exchangetest.New(t, exchangetest.Config{})
	n := w.Tenant()
	root := n.Root(t, map[string]any{"exp": w.Clock().Now().Add(9 * time.Hour).Unix()})
	try := func(key string) (*exchange.Grant, *delegation.Error) {
		call := n.Call(t, root, planner, "")
		call.IdempotencyKey = key
		return w.One(t.Context(), call)
	}
	if _, refusal := try("key"); refusal != nil {
		t.Fatal(refusal)
	}
	for range 8 {
		w.Clock().Advance(time.Hour)
		if _, refusal := try("fresh-" + w.Clock().Now().Format("150405")); refusal != nil { // prunes
			t.Fatal(refusal)
		}
		if _, refusal := try("key"); refusal == nil || refusal.Reason != delegation.GrantGone {
			t.Fatalf("after the grant's end: %v", refusal)
		}
	}
}

// TestSkewOfOneIssuer cuts off a root token of an issuer with a longer skew than the tenant's,
// issued in that future.
func TestSkewOfOneIssuer(t *testing.T) {
	w := exchangetest.New(t, exchangetest.Config{
		Agents: []delegation.Principal{responder},
		Trust:  func(_ string, c *token.TrustConfig) { c.TrustedIssuers[0].Skew = time.Minute },
	})
	n := w.Tenant()
	n.FGA.Allow(string(responder), "responder", "system:deputy")
	ahead := n.Root(t, map[string]any{"iat": w.Clock().Now().Add(50 * time.Second).Unix()})
	if _, refusal := w.One(t.Context(), n.Call(t, ahead, planner, "")); refusal != nil {
		t.Fatal(refusal)
	}
	if _, refusal := take(w, t, responder, delegation.Target{Kind: delegation.CutSubject, ID: string(alice)}); refusal != nil {
		t.Fatal(refusal)
	}
	if _, refusal := w.One(t.Context(), n.Call(t, ahead, planner, "")); refusal == nil || refusal.Reason != delegation.TokenRevoked {
		t.Errorf("a root token that was out before the cut-off: %v", refusal)
	}
	w.Clock().Advance(70 * time.Second)
	if _, refusal := w.One(t.Context(), n.Call(t, n.Root(t, nil), planner, "")); refusal != nil {
		t.Errorf("a fresh sign-in: %v", refusal)
	}
}

// TestCheckOfAForgottenParent: the revocations of the parent's lifetime are forgotten while the
// keys of a child's actor are fetched. The set that answered for the parent can then not answer any
// more.
func TestCheckOfAForgottenParent(t *testing.T) {
	fetched := func() {}
	signer := exchangetest.NewSigner(t, "https://late.example")
	w := exchangetest.New(t, exchangetest.Config{Trust: func(_ string, c *token.TrustConfig) {
		c.TrustedIssuers = append(c.TrustedIssuers, token.TrustedIssuer{
			Issuer: signer.Issuer, Keys: token.KeySource{JWKSURL: signer.Issuer + "/jwks"}, Algorithms: []string{"ES256"},
			Principal: token.Mapping{Type: "agent", Prefix: "late/"}, Workloads: true,
		})
		c.Transport = answering(func() string {
			fetched()
			return signer.JWKS()
		})
	}})
	n := w.Tenant()
	n.Admit("agent:late/job")
	n.FGA.Allow(string(planner), "delegator", "agent:late/job")
	parent := w.Chain(t, n, planner)[0]
	check := func() *delegation.Error {
		now := w.Clock().Now().Unix()
		call := n.Call(t, parent.AccessToken, planner, "")
		call.ValidateOnly = true
		call.Children[0].ActorTokenType = delegation.TokenTypeJWT
		call.Children[0].ActorToken = signer.Sign(t, "JWT", map[string]any{
			"sub": "job", "aud": delegation.ActorAudience(n.Issuer), "iat": now, "exp": now + 600,
		})
		_, refusal := w.One(t.Context(), call)
		return refusal
	}
	fetched = func() {
		set, err := w.Ledger.Revocations(t.Context(), n.Name, false)
		if err != nil {
			t.Error(err)
			return
		}
		set.Expire(time.Unix(parent.Claims.ExpiresAt, 0))
	}
	if refusal := check(); refusal == nil || refusal.Reason != delegation.SubjectTokenInvalid {
		t.Errorf("granted by a set that has forgotten: %v", refusal)
	}
}

// TestCheckOfABannedSigner: a caller names itself by an actor token that another of its keys
// signed, which is banned. An exchange would reach the check of the ledger; a check has no later
// one.
func TestCheckOfABannedSigner(t *testing.T) {
	second := exchangetest.NewSigner(t, string(planner))
	w := exchangetest.New(t, exchangetest.Config{Trust: func(_ string, c *token.TrustConfig) {
		i := slices.IndexFunc(c.Clients, func(client token.Client) bool { return client.ID == planner })
		c.Clients[i].Keys.JWKS = strings.TrimSuffix(c.Clients[i].Keys.JWKS, "]}") + "," + strings.TrimPrefix(second.JWKS(), `{"keys":[`)
	}})
	n := w.Tenant()
	parent := w.Chain(t, n, planner)[0]
	check := func() delegation.Reason {
		now := w.Clock().Now()
		call := n.Call(t, parent.AccessToken, planner, "")
		call.ValidateOnly = true
		call.Children[0].ActorTokenType = delegation.TokenTypeJWT
		call.Children[0].ActorToken = second.Sign(t, "JWT", map[string]any{
			"sub": string(planner), "aud": delegation.ActorAudience(n.Issuer), "iat": now.Unix(), "exp": now.Unix() + 60, "jti": now.String(),
		})
		_, refusal := w.One(t.Context(), call)
		return reasonOf(refusal)
	}
	if got := check(); got != "" {
		t.Fatalf("before the ban: %s", got)
	}
	revoke(t, w, delegation.Target{Kind: delegation.BanKey, ID: second.KeyID})
	if got := check(); got != delegation.TokenRevoked {
		t.Errorf("with a banned key: %q", got)
	}
}

// answering is a transport that answers each request with the same JSON.
type answering func() string

func (a answering) RoundTrip(*http.Request) (*http.Response, error) {
	return &http.Response{
		StatusCode: http.StatusOK, Header: http.Header{"Content-Type": {"application/json"}}, Body: io.NopCloser(strings.NewReader(a())),
	}, nil
}
