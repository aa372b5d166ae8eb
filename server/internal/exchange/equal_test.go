package exchange_test

import (
	"context"
	"fmt"
	"maps"
	"net"
	"net/http"
	"net/http/httptest"
	"net/url"
	"strings"
	"testing"

	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/test/bufconn"

	"deputy.example/deputy/client/delegation"
	deputyv1 "deputy.example/deputy/gen/deputy/v1"
	"deputy.example/deputy/server/internal/exchange"
	"deputy.example/deputy/server/internal/exchange/exchangetest"
	"deputy.example/deputy/server/internal/httpapi"
	"deputy.example/deputy/server/internal/ledger"
	"deputy.example/deputy/server/internal/rpc"
)

// takenBack reports whether an exchange was refused because of a revocation, with any of the
// reasons that a caller may learn.
func takenBack(refusal *delegation.Error) bool {
	if refusal == nil {
		return false
	}
	switch refusal.Reason {
	case delegation.TokenRevoked, delegation.ClientUnauthenticated, delegation.ActorTokenInvalid, delegation.ActorUnconfirmed:
		return true
	}
	return false
}

// nobodies are principals that no answer may distinguish: an unknown one, a suspended one, one
// whose key is banned, and one that only another tenant knows. Each has a key of its own, and its
// signatures are valid.
var nobodies = []string{"unknown", "suspended", "banned", "elsewhere"}

type lineup struct {
	*exchangetest.World
	tenant  *exchangetest.Tenant
	signers map[string]*exchangetest.Signer
	grpc    *grpc.ClientConn
	http    http.Handler
	parent  string // a token of the planner's
}

func newLineup(t *testing.T) *lineup {
	t.Helper()
	w := exchangetest.New(t, exchangetest.Config{
		Tenants: []string{"default", "other"}, Agents: []delegation.Principal{"agent:suspended", "agent:banned", responder},
		Elsewhere: []delegation.Principal{"agent:elsewhere"},
	})
	n := w.Tenant()
	l := &lineup{World: w, tenant: n, parent: w.Chain(t, n, planner)[0].AccessToken, signers: map[string]*exchangetest.Signer{
		"unknown":   exchangetest.NewSigner(t, "agent:unknown"),
		"suspended": n.Clients["agent:suspended"],
		"banned":    n.Clients["agent:banned"],
		"elsewhere": w.Tenants["other"].Clients["agent:elsewhere"],
	}}
	n.FGA.Allow(string(responder), "responder", "system:deputy")
	for _, target := range []delegation.Target{
		{Kind: delegation.BanSuspend, ID: "agent:suspended"}, {Kind: delegation.BanKey, ID: l.signers["banned"].KeyID},
		{Kind: delegation.BanSuspend, ID: "agent:wl/suspended"},
	} {
		if _, err := w.Engine.Revoke(t.Context(), exchange.RevokeCall{Tenant: n.Name, Credentials: n.Credentials(t, responder), Target: target}); err != nil {
			t.Fatal(err)
		}
	}
	var err error
	if l.http, err = httpapi.New(httpapi.Config{Engine: w.Engine, Tenants: []httpapi.Tenant{{Name: n.Name, Issuer: n.Issuer, JWKS: n.Keys.JWKS}}}); err != nil {
		t.Fatal(err)
	}
	l.grpc = overGRPC(t, w.Engine)
	return l
}

// overGRPC serves an engine by gRPC until the test ends.
func overGRPC(t *testing.T, engine *exchange.Engine) *grpc.ClientConn {
	t.Helper()
	server, err := rpc.New(rpc.Config{Engine: rpc.For(engine)})
	if err != nil {
		t.Fatal(err)
	}
	listener := bufconn.Listen(1 << 20)
	served := make(chan error, 1)
	go func() { served <- server.Serve(listener) }()
	conn, err := grpc.NewClient("passthrough:///deputy.example", grpc.WithTransportCredentials(insecure.NewCredentials()),
		grpc.WithContextDialer(func(ctx context.Context, _ string) (net.Conn, error) { return listener.DialContext(ctx) }))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := conn.Close(); err != nil {
			t.Error(err)
		}
		server.Stop()
		if err := <-served; err != nil {
			t.Error(err)
		}
	})
	return conn
}

// The result is a JWT of one of the nobodies for an audience, signed with its key.
func (l *lineup) says(t *testing.T, who, audience string) string {
	t.Helper()
	now := l.Clock().Now().Unix()
	id := fmt.Sprintf("%s-%d", who, l.Clock().Now().UnixNano())
	return l.signers[who].Sign(t, "JWT", map[string]any{"sub": "agent:" + who, "aud": audience, "iat": now, "exp": now + 60, "jti": id})
}

// post sends a form and returns the complete response: status, headers and body.
func (l *lineup) post(path string, form url.Values) string {
	r := httptest.NewRequest(http.MethodPost, path, strings.NewReader(form.Encode()))
	r.Header.Set("Content-Type", "application/x-www-form-urlencoded")
	w := httptest.NewRecorder()
	l.http.ServeHTTP(w, r)
	return fmt.Sprint(w.Code, w.Header(), w.Body)
}

func form(assertion string, pairs ...string) url.Values {
	v := url.Values{"client_assertion": {assertion}, "client_assertion_type": {delegation.ClientAssertionTypeJWTBearer}}
	for i := 0; i < len(pairs); i += 2 {
		v.Set(pairs[i], pairs[i+1])
	}
	return v
}

func (l *lineup) exchangeForm(assertion string, pairs ...string) url.Values {
	v := form(assertion, "grant_type", delegation.GrantTypeTokenExchange, "subject_token", l.parent, "subject_token_type", delegation.TokenTypeAccessToken,
		"scope", "calendar.read", "audience", calendar)
	maps.Copy(v, form(assertion, pairs...))
	return v
}

func bearer(ctx context.Context, credential string) context.Context {
	return metadata.AppendToOutgoingContext(ctx, "authorization", "Bearer "+credential)
}

// approaches are the ways in which a caller uses a principal: as itself, or by naming it. Each
// returns the complete response.
func (l *lineup) approaches() map[string]func(t *testing.T, who string) string {
	tokens, audits, revoking := deputyv1.NewTokenExchangeServiceClient(l.grpc), deputyv1.NewAuditServiceClient(l.grpc), deputyv1.NewRevocationServiceClient(l.grpc)
	name := func(who string) string { return "agent:" + who }
	as := func(t *testing.T, who string) context.Context {
		return bearer(t.Context(), l.says(t, who, l.tenant.Issuer))
	}
	by := func(t *testing.T, agent delegation.Principal) context.Context {
		return bearer(t.Context(), l.tenant.Assertion(t, agent))
	}
	ask := func(call func(t *testing.T, who string) error) func(*testing.T, string) string {
		return func(t *testing.T, who string) string { return canonical(t, call(t, who)) }
	}
	child := func(c *deputyv1.Child) *deputyv1.ExchangeRequest {
		c.Scope, c.Audience = "calendar.read", []string{calendar}
		return &deputyv1.ExchangeRequest{SubjectToken: l.parent, SubjectTokenType: delegation.TokenTypeAccessToken, Child: c}
	}
	actor := func(t *testing.T, who string) string {
		return l.says(t, who, delegation.ActorAudience(l.tenant.Issuer))
	}
	all := map[string]func(*testing.T, string) string{
		"caller, HTTP token": func(t *testing.T, who string) string {
			return l.post("/oauth2/token", l.exchangeForm(l.says(t, who, l.tenant.Issuer)))
		},
		"caller, HTTP introspect": func(t *testing.T, who string) string {
			return l.post("/oauth2/introspect", form(l.says(t, who, l.tenant.Issuer), "token", l.parent))
		},
		"caller, HTTP revoke": func(t *testing.T, who string) string {
			return l.post("/oauth2/revoke", form(l.says(t, who, l.tenant.Issuer), "token", l.parent))
		},
		"caller, gRPC Exchange": ask(func(t *testing.T, who string) error {
			_, err := tokens.Exchange(as(t, who), child(&deputyv1.Child{}))
			return err
		}),
		"caller, gRPC BatchExchange": ask(func(t *testing.T, who string) error {
			_, err := tokens.BatchExchange(as(t, who), &deputyv1.BatchExchangeRequest{SubjectToken: l.parent, SubjectTokenType: delegation.TokenTypeAccessToken, Children: []*deputyv1.Child{{}}})
			return err
		}),
		"caller, gRPC Introspect": ask(func(t *testing.T, who string) error {
			_, err := tokens.Introspect(as(t, who), &deputyv1.IntrospectRequest{Token: l.parent})
			return err
		}),
		"caller, gRPC Revoke": ask(func(t *testing.T, who string) error {
			_, err := revoking.Revoke(as(t, who), &deputyv1.RevokeRequest{Token: l.parent})
			return err
		}),
		"caller, gRPC GetReceipts": ask(func(t *testing.T, who string) error {
			_, err := revoking.GetReceipts(as(t, who), &deputyv1.GetReceiptsRequest{})
			return err
		}),
		"caller, gRPC GetChain": ask(func(t *testing.T, who string) error {
			_, err := audits.GetChain(as(t, who), &deputyv1.GetChainRequest{Jti: "x"})
			return err
		}),
		"caller, gRPC SearchEntries": ask(func(t *testing.T, who string) error {
			_, err := audits.SearchEntries(as(t, who), &deputyv1.SearchEntriesRequest{Actor: name(who)})
			return err
		}),
		"caller, gRPC Reach": ask(func(t *testing.T, who string) error {
			_, err := audits.Reach(as(t, who), &deputyv1.ReachRequest{Agent: name(who)})
			return err
		}),
		"caller, gRPC StreamEntries": ask(func(t *testing.T, who string) error {
			stream, err := audits.StreamEntries(as(t, who), &deputyv1.StreamEntriesRequest{})
			if err == nil {
				_, err = stream.Recv()
			}
			return err
		}),
		"caller, gRPC WatchRevocations": ask(func(t *testing.T, who string) error {
			stream, err := revoking.WatchRevocations(as(t, who))
			if err == nil {
				_, err = stream.Recv()
			}
			return err
		}),
		"caller again with what it has used, HTTP": func(t *testing.T, who string) string {
			assertion := l.says(t, who, l.tenant.Issuer)
			l.post("/oauth2/introspect", form(assertion, "token", l.parent))
			return l.post("/oauth2/introspect", form(assertion, "token", l.parent))
		},
		"caller again with what it has used, gRPC": ask(func(t *testing.T, who string) error {
			ctx := as(t, who)
			if _, err := tokens.Exchange(ctx, child(&deputyv1.Child{})); err == nil {
				t.Error("a nobody exchanged")
			}
			_, err := tokens.Exchange(ctx, child(&deputyv1.Child{}))
			return err
		}),
		"caller whose proof is none, gRPC": ask(func(t *testing.T, who string) error {
			_, err := tokens.Introspect(metadata.AppendToOutgoingContext(as(t, who), "dpop", "none"), &deputyv1.IntrospectRequest{Token: l.parent})
			return err
		}),
		"actor_token, HTTP": func(t *testing.T, who string) string {
			return l.post("/oauth2/token", l.exchangeForm(l.tenant.Assertion(t, planner), "actor_token", actor(t, who), "actor_token_type", delegation.TokenTypeJWT))
		},
		"actor_token, gRPC": ask(func(t *testing.T, who string) error {
			_, err := tokens.Exchange(by(t, planner), child(&deputyv1.Child{ActorToken: actor(t, who), ActorTokenType: delegation.TokenTypeJWT}))
			return err
		}),
		"forged actor_token that breaks other rules too, gRPC": ask(func(t *testing.T, who string) error {
			forged := exchangetest.NewSigner(t, name(who)).Sign(t, "at+jwt", map[string]any{"sub": name(who), "aud": "elsewhere", "exp": 1})
			_, err := tokens.Exchange(by(t, planner), child(&deputyv1.Child{ActorToken: forged, ActorTokenType: delegation.TokenTypeAccessToken}))
			return err
		}),
		"actor_token of somebody who may not ask, gRPC": ask(func(t *testing.T, who string) error {
			_, err := tokens.Exchange(by(t, researcher), child(&deputyv1.Child{ActorToken: actor(t, who), ActorTokenType: delegation.TokenTypeJWT}))
			return err
		}),
		"requested_actor, HTTP": func(t *testing.T, who string) string {
			return l.post("/oauth2/token", l.exchangeForm(l.tenant.Assertion(t, planner), "requested_actor", name(who), "actor_confirmation", l.signers[who].KeyID))
		},
		"requested_actor, gRPC": ask(func(t *testing.T, who string) error {
			_, err := tokens.Exchange(by(t, planner), child(&deputyv1.Child{RequestedActor: name(who), ActorConfirmation: l.signers[who].KeyID}))
			return err
		}),
		"requested_actor of somebody who may not ask, gRPC": ask(func(t *testing.T, who string) error {
			_, err := tokens.Exchange(by(t, researcher), child(&deputyv1.Child{RequestedActor: name(who), ActorConfirmation: l.signers[who].KeyID}))
			return err
		}),
		"Suspend": ask(func(t *testing.T, who string) error {
			_, err := revoking.Suspend(by(t, researcher), &deputyv1.SuspendRequest{Agent: name(who)})
			return err
		}),
		"Resume": ask(func(t *testing.T, who string) error {
			_, err := revoking.Resume(by(t, researcher), &deputyv1.ResumeRequest{Agent: name(who)})
			return err
		}),
		"Revoke its key": ask(func(t *testing.T, who string) error {
			target := &deputyv1.RevocationTarget{Kind: deputyv1.RevocationKind_REVOCATION_KIND_KEY, Id: l.signers[who].KeyID}
			_, err := revoking.Revoke(by(t, researcher), &deputyv1.RevokeRequest{Target: target})
			return err
		}),
		"Revoke it": ask(func(t *testing.T, who string) error {
			target := &deputyv1.RevocationTarget{Kind: deputyv1.RevocationKind_REVOCATION_KIND_AGENT, Id: name(who)}
			_, err := revoking.Revoke(by(t, researcher), &deputyv1.RevokeRequest{Target: target})
			return err
		}),
		"Reach": ask(func(t *testing.T, who string) error {
			_, err := audits.Reach(by(t, researcher), &deputyv1.ReachRequest{Agent: name(who)})
			return err
		}),
		"SearchEntries": ask(func(t *testing.T, who string) error {
			_, err := audits.SearchEntries(by(t, researcher), &deputyv1.SearchEntriesRequest{Actor: name(who)})
			return err
		}),
	}
	return all
}

// TestEqualAnswers: for a caller, an unknown, a suspended, a banned and another tenant's principal
// are the same, byte for byte, over gRPC and over HTTP, as the caller and when named. The policy
// gets the same number of questions about each.
func TestEqualAnswers(t *testing.T) {
	l := newLineup(t)
	for approach, ask := range l.approaches() {
		t.Run(approach, func(t *testing.T) {
			want, wantAsked := "", 0
			for _, who := range nobodies {
				before := l.tenant.FGA.Asked()
				got := ask(t, who)
				asked := l.tenant.FGA.Asked() - before
				if who == nobodies[0] {
					want, wantAsked = got, asked
					if strings.Contains(got, who) {
						t.Errorf("the answer names whom it is about: %q", got)
					}
				}
				if got != want || asked != wantAsked {
					t.Errorf("%s, after %d questions: %q\nwant, as for %s, after %d: %q", who, asked, got, nobodies[0], wantAsked, want)
				}
			}
		})
	}
}

// TestSuspendedWorkload: a suspended workload of a trusted issuer is treated as unknown too: as the
// caller, by each of its credentials, and as the named actor.
func TestSuspendedWorkload(t *testing.T) {
	l := newLineup(t)
	tokens := deputyv1.NewTokenExchangeServiceClient(l.grpc)
	forger := exchangetest.NewSigner(t, l.tenant.Workloads.Issuer)
	real := func(audience string) string { return l.tenant.Workload(t, "suspended", audience) }
	forged := func(audience string) string {
		now := l.Clock().Now().Unix()
		return forger.Sign(t, "JWT", map[string]any{"sub": "suspended", "aud": audience, "iat": now, "exp": now + 600})
	}
	request := func(actorToken string) *deputyv1.ExchangeRequest {
		return &deputyv1.ExchangeRequest{SubjectToken: l.parent, SubjectTokenType: delegation.TokenTypeAccessToken, Child: &deputyv1.Child{
			ActorToken: actorToken, ActorTokenType: delegation.TokenTypeJWT, Scope: "calendar.read", Audience: []string{calendar},
		}}
	}
	for name, ask := range map[string]func(make func(string) string) error{
		"as Bearer": func(make func(string) string) error {
			_, err := tokens.Introspect(bearer(t.Context(), make(l.tenant.Issuer)), &deputyv1.IntrospectRequest{Token: l.parent})
			return err
		},
		"by its actor token": func(make func(string) string) error {
			_, err := tokens.Exchange(t.Context(), request(make(l.tenant.Issuer)))
			return err
		},
		"as the actor": func(make func(string) string) error {
			_, err := tokens.Exchange(bearer(t.Context(), l.tenant.Assertion(t, planner)), request(make(delegation.ActorAudience(l.tenant.Issuer))))
			return err
		},
	} {
		if got, want := canonical(t, ask(real)), canonical(t, ask(forged)); got != want {
			t.Errorf("%s: %q, but for a forged one %q", name, got, want)
		}
	}
}

// TestAttemptsOfTheSuspendedAreRecorded: an attempt of a suspended principal, or with a banned key,
// is in the ledger for responders, with the reason that the answer did not contain.
func TestAttemptsOfTheSuspendedAreRecorded(t *testing.T) {
	l := newLineup(t)
	for approach, ask := range l.approaches() {
		for who, named := range map[string]bool{"suspended": true, "banned": true, "unknown": false, "elsewhere": false} {
			if !strings.HasPrefix(approach, "caller,") {
				continue
			}
			before := newest(t, l.World).Seq
			ask(t, who)
			e := newest(t, l.World)
			if !named {
				if e.Seq != before {
					t.Errorf("%s: a stranger wrote entry %d", approach, e.Seq)
				}
				continue
			}
			if e.Seq != before+1 || e.Kind != ledger.KindRefusal || e.Reason != delegation.TokenRevoked || e.Caller != delegation.Principal("agent:"+who) || e.Peer == "" {
				t.Errorf("%s by %s: %+v", approach, who, e)
			}
		}
	}
	for _, approach := range []string{"actor_token, gRPC", "requested_actor, HTTP"} {
		l.approaches()[approach](t, "suspended")
		if e := newest(t, l.World); e.Kind != ledger.KindRefusal || e.Reason != delegation.TokenRevoked || e.Actor != "agent:suspended" || e.Caller != planner {
			t.Errorf("%s: %+v", approach, e)
		}
	}
}
