package exchange_test

import (
	"testing"
	"time"

	"deputy.example/deputy/client/delegation"
	"deputy.example/deputy/server/internal/exchange"
	"deputy.example/deputy/server/internal/exchange/exchangetest"
)

func reason(err error) delegation.Reason {
	if e := delegation.AsError(err); e != nil {
		return e.Reason
	}
	return ""
}

// TestWhatTakesAPerson: a person who signed in may read and revoke. All other calls refuse the
// person.
func TestWhatTakesAPerson(t *testing.T) {
	w := exchangetest.New(t, exchangetest.Config{})
	n := w.Tenant()
	chain := w.Chain(t, n, planner, researcher)
	who := exchange.Credentials{Person: w.SignIn(t, n, "alice")}
	leaf := chain[1].Claims.ID
	for name, c := range map[string]struct {
		ask    func(exchange.Credentials) error
		reason delegation.Reason
	}{
		"Chain": {func(c exchange.Credentials) error {
			_, err := w.Engine.Chain(t.Context(), exchange.Inquiry{Credentials: c, ID: leaf})
			return err
		}, ""},
		"Role": {func(c exchange.Credentials) error {
			role, err := w.Engine.Role(t.Context(), exchange.Inquiry{Credentials: c})
			if err == nil && role != (exchange.Role{Principal: alice}) {
				t.Errorf("alice is taken for %+v", role)
			}
			return err
		}, ""},
		"Receipts": {func(c exchange.Credentials) error {
			_, err := w.Engine.Receipts(t.Context(), exchange.Inquiry{Credentials: c}, 0)
			return err
		}, delegation.NotFound}, // admitted, and there is nothing to see
		"Agents": {func(c exchange.Credentials) error {
			_, err := w.Engine.Agents(t.Context(), exchange.Inquiry{Credentials: c})
			return err
		}, delegation.NotFound},
		"Suspensions": {func(c exchange.Credentials) error {
			_, _, err := w.Engine.Suspensions(t.Context(), exchange.Inquiry{Credentials: c}, 0)
			return err
		}, delegation.NotFound},
		"MayRevoke": {func(c exchange.Credentials) error {
			_, err := w.Engine.MayRevoke(t.Context(), exchange.Inquiry{Credentials: c}, delegation.Target{Kind: delegation.BanToken, ID: leaf})
			return err
		}, ""},
		"Exchange": {func(c exchange.Credentials) error {
			call := n.Call(t, n.Root(t, nil), planner, "")
			call.Credentials = c
			_, err := w.Engine.Exchange(t.Context(), call)
			return err
		}, delegation.ClientUnauthenticated},
		"Exchange with an actor token that authenticates": {func(c exchange.Credentials) error {
			call := n.Call(t, n.Root(t, nil), planner, "")
			call.Credentials = c
			call.Children[0].ActorToken, call.Children[0].ActorTokenType = n.Workload(t, "x", n.Issuer), delegation.TokenTypeJWT
			_, err := w.Engine.Exchange(t.Context(), call)
			return err
		}, delegation.ClientUnauthenticated},
		"Introspect": {func(c exchange.Credentials) error {
			_, err := w.Engine.Introspect(t.Context(), exchange.Inquiry{Credentials: c, Token: chain[1].AccessToken})
			return err
		}, delegation.ClientUnauthenticated},
		"Watch": {func(c exchange.Credentials) error {
			_, err := w.Engine.Watch(t.Context(), exchange.Inquiry{Credentials: c})
			return err
		}, delegation.ClientUnauthenticated},
		"Revoke": {func(c exchange.Credentials) error {
			_, err := w.Engine.Revoke(t.Context(), exchange.RevokeCall{Credentials: c, DryRun: true, Target: delegation.Target{Kind: delegation.BanToken, ID: leaf}})
			return err
		}, ""},
	} {
		t.Run(name, func(t *testing.T) {
			if got := reason(c.ask(who)); got != c.reason {
				t.Errorf("%q, want %q", got, c.reason)
			}
			if got := reason(c.ask(exchange.Credentials{Person: &exchange.Person{}})); got != delegation.ClientUnauthenticated {
				t.Errorf("nobody, signed in by nobody: %q", got)
			}
			both := n.Credentials(t, planner)
			both.Person = who.Person
			if got := reason(c.ask(both)); got != delegation.ParameterConflict && got != delegation.ClientUnauthenticated {
				t.Errorf("a person and an assertion: %q", got)
			}
		})
	}
}

// TestSessionsEnd: a session ends by its age, with the issuer that named its person, and with each
// revocation of that person.
func TestSessionsEnd(t *testing.T) {
	w := exchangetest.New(t, exchangetest.Config{Tenants: []string{"default", "other"}, Agents: []delegation.Principal{responder}})
	n := w.Tenant()
	n.FGA.Allow(string(responder), "responder", "system:deputy")
	signedIn := w.SignIn(t, n, "alice")
	session := exchange.Session{Principal: signedIn.Principal(), Issuer: signedIn.Issuer(), SignedIn: signedIn.SignedIn()}
	restore := func(tenant string, change func(*exchange.Session)) delegation.Reason {
		t.Helper()
		s := session
		if change != nil {
			change(&s)
		}
		person, err := w.Engine.Restore(t.Context(), tenant, s)
		if err == nil && person != *signedIn {
			t.Errorf("restored as %+v", person)
		}
		return reason(err)
	}
	if got := restore("default", nil); got != "" {
		t.Fatalf("its own session: %s", got)
	}
	for name, got := range map[string]delegation.Reason{
		"an unknown tenant":    restore("nowhere", nil),
		"another tenant":       restore("other", nil),
		"an unknown issuer":    restore("default", func(s *exchange.Session) { s.Issuer = "https://elsewhere.example" }),
		"an agent":             restore("default", func(s *exchange.Session) { s.Principal = planner }),
		"begun tomorrow":       restore("default", func(s *exchange.Session) { s.SignedIn = s.SignedIn.Add(time.Minute) }),
		"begun the day before": restore("default", func(s *exchange.Session) { s.SignedIn = s.SignedIn.Add(-exchange.MaxSession) }),
	} {
		if got != delegation.ClientUnauthenticated {
			t.Errorf("%s: %q", name, got)
		}
	}
	if _, err := w.Engine.Role(t.Context(), exchange.Inquiry{Tenant: "other", Credentials: exchange.Credentials{Person: signedIn}}); reason(err) != delegation.ClientUnauthenticated {
		t.Errorf("a person at another tenant's door: %v", err)
	}

	w.Clock().Advance(2 * time.Second)
	if _, refusal := take(w, t, responder, delegation.Target{Kind: delegation.CutSubject, ID: string(alice)}); refusal != nil {
		t.Fatal(refusal)
	}
	if got := restore("default", nil); got != delegation.ClientUnauthenticated {
		t.Errorf("after its subject was cut off: %q", got)
	}
	if _, err := w.Engine.Role(t.Context(), exchange.Inquiry{Credentials: exchange.Credentials{Person: signedIn}}); reason(err) != delegation.ClientUnauthenticated {
		t.Errorf("a person in hand after its subject was cut off: %v", err)
	}
	w.Clock().Advance(2 * time.Second)
	w.SignIn(t, n, "alice") // a new sign-in is newer than the cut-off
	if _, refusal := take(w, t, responder, delegation.Target{Kind: delegation.BanSuspend, ID: string(alice)}); refusal != nil {
		t.Fatal(refusal)
	}
	if _, err := w.Engine.SignIn(t.Context(), exchange.SignInCall{
		Tenant: "default", IDToken: n.IDToken(t, nil), Issuer: n.IDP.Issuer, ClientID: exchangetest.Front, Nonce: "nonce",
	}); reason(err) != delegation.ClientUnauthenticated {
		t.Errorf("a suspended person signs in: %v", err)
	}
}

// TestSignInSaysNothing: the fault of an ID token is not disclosed; the answer is that the sign-in
// failed.
func TestSignInSaysNothing(t *testing.T) {
	w := exchangetest.New(t, exchangetest.Config{})
	n := w.Tenant()
	good := exchange.SignInCall{Tenant: "default", IDToken: n.IDToken(t, nil), Issuer: n.IDP.Issuer, ClientID: exchangetest.Front, Nonce: "nonce"}
	var answers []string
	for name, change := range map[string]func(*exchange.SignInCall){
		"tenant": func(c *exchange.SignInCall) { c.Tenant = "nowhere" },
		"nonce":  func(c *exchange.SignInCall) { c.Nonce = "another" },
		"client": func(c *exchange.SignInCall) { c.ClientID = "another" },
		"issuer": func(c *exchange.SignInCall) { c.Issuer = n.Workloads.Issuer },
		"token":  func(c *exchange.SignInCall) { c.IDToken = "x.y.z" },
	} {
		call := good
		change(&call)
		_, err := w.Engine.SignIn(t.Context(), call)
		if reason(err) != delegation.ClientUnauthenticated {
			t.Errorf("%s: %v", name, err)
			continue
		}
		answers = append(answers, err.Error())
	}
	for _, a := range answers {
		if a != answers[0] {
			t.Errorf("the answers differ: %q and %q", answers[0], a)
		}
	}
	if _, err := w.Engine.SignIn(t.Context(), good); err != nil {
		t.Errorf("the control: %v", err)
	}
}

// TestSessionsEndByRevocation: a session continues until a revocation cuts off its person.
func TestSessionsEndByRevocation(t *testing.T) {
	w := exchangetest.New(t, exchangetest.Config{Agents: []delegation.Principal{responder}})
	n := w.Tenant()
	n.FGA.Allow(string(responder), "responder", "system:deputy")
	q := exchange.Inquiry{Credentials: exchange.Credentials{Person: w.SignIn(t, n, "alice")}}
	if _, err := w.Engine.Role(t.Context(), q); err != nil {
		t.Fatalf("before the cut-off: %v", err)
	}
	if _, refusal := take(w, t, responder, delegation.Target{Kind: delegation.CutTenant}); refusal != nil {
		t.Fatal(refusal)
	}
	if _, err := w.Engine.Role(t.Context(), q); reason(err) != delegation.ClientUnauthenticated {
		t.Errorf("after all was cut off: %v", err)
	}
}
