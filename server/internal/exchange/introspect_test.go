package exchange_test

import (
	"errors"
	"net/http"
	"testing"

	"deputy.example/deputy/client/delegation"
	"deputy.example/deputy/server/internal/exchange"
	"deputy.example/deputy/server/internal/exchange/exchangetest"
	"deputy.example/deputy/server/internal/token"
)

// Callers that have no part in the chain of a token.
const (
	calendarServer = delegation.Principal("service:calendar") // serves the calendar
	mailServer     = delegation.Principal("service:mail")     // serves mail
	gateway        = delegation.Principal("service:gateway")  // is an introspector
	overseer       = delegation.Principal("service:overseer") // is an auditor
	namesake       = delegation.Principal("service:namesake") // is an audience itself
)

func newInquest(t *testing.T) (*exchangetest.World, []*exchange.Grant) {
	t.Helper()
	w := exchangetest.New(t, exchangetest.Config{
		Tenants: []string{"default", "other"},
		Agents:  []delegation.Principal{stranger, calendarServer, mailServer, gateway, overseer, namesake, alice},
		Trust: func(_ string, c *token.TrustConfig) { // alice has a client of her own
			c.TrustedIssuers[0].SharedPrincipals = true
			for i := range c.Clients {
				c.Clients[i].SharedPrincipals = true
			}
		},
		Servers: map[string][]delegation.Principal{calendar: {calendarServer}, exchangetest.Mail: {mailServer}},
	})
	n := w.Tenant()
	n.FGA.Allow(string(gateway), "introspector", "system:deputy")
	n.FGA.Allow(string(overseer), "auditor", "system:deputy")
	return w, w.Chain(t, n, planner, exchangetest.Researcher, exchangetest.Writer)
}

// TestWhoMayIntrospect: a token is active for principals that have a part in it. For all others the
// answer is the same as for a text that is no token.
func TestWhoMayIntrospect(t *testing.T) {
	w, chain := newInquest(t)
	n := w.Tenant()
	may := map[delegation.Principal][3]bool{ // of the planner, the researcher and the writer
		alice: {true, true, true}, planner: {true, true, true}, researcher: {false, true, true}, writer: {false, false, true},
		calendarServer: {true, true, true}, mailServer: {}, gateway: {true, true, true}, overseer: {true, true, true},
		stranger: {}, namesake: {},
	}
	ask := func(caller delegation.Principal, held string) (exchange.Introspection, error) {
		return w.Engine.Introspect(t.Context(), exchange.Inquiry{Tenant: n.Name, Credentials: n.Credentials(t, caller), Token: held})
	}
	for caller, want := range may {
		for i, grant := range chain {
			if got, err := ask(caller, grant.AccessToken); err != nil || (got.Claims != nil) != want[i] {
				t.Errorf("%s, token %d: active %t, %v", caller, i, got.Claims != nil, err)
			}
		}
		if got, err := ask(caller, "x"); err != nil || got.Claims != nil {
			t.Errorf("%s, no token: %+v, %v", caller, got, err)
		}
		other := w.Tenants["other"]
		if got, err := w.Engine.Introspect(t.Context(), exchange.Inquiry{Tenant: "other", Credentials: other.Credentials(t, caller), Token: chain[0].AccessToken}); err != nil || got.Claims != nil {
			t.Errorf("%s of another tenant: %+v, %v", caller, got, err)
		}
	}
	asked := func(caller delegation.Principal) int {
		before := n.FGA.Asked()
		if got, err := ask(caller, chain[2].AccessToken); err != nil || got.Claims != nil {
			t.Errorf("%s, a token that it may not ask about, or that was revoked: %+v, %v", caller, got, err)
		}
		return n.FGA.Asked() - before
	}
	before := asked(stranger)
	revoke(t, w, delegation.Target{Kind: delegation.BanToken, ID: chain[2].Claims.ID})
	if after := asked(stranger); after != before || before == 0 {
		t.Errorf("OpenFGA is asked %d times about a token in force and %d about a revoked one", before, after)
	}
	asked(writer)
}

// TestIntrospectionWithoutOpenFGA: a principal that has a part in a token gets an answer, and all
// others get an error.
func TestIntrospectionWithoutOpenFGA(t *testing.T) {
	w, chain := newInquest(t)
	n := w.Tenant()
	n.FGA.Gate(func(*http.Request) error { return errors.New("OpenFGA is down") })
	for caller, down := range map[delegation.Principal]bool{planner: false, calendarServer: false, gateway: true, stranger: true} {
		got, err := w.Engine.Introspect(t.Context(), exchange.Inquiry{Tenant: n.Name, Credentials: n.Credentials(t, caller), Token: chain[0].AccessToken})
		if down && (err == nil || reasonOf(delegation.AsError(err)) != delegation.DependencyDown || got.Claims != nil) || !down && (err != nil || got.Claims == nil) {
			t.Errorf("%s: %+v, %v", caller, got, err)
		}
	}
}

// TestAudienceThatIsAPrincipal: a principal whose name is the audience serves it.
func TestAudienceThatIsAPrincipal(t *testing.T) {
	w, _ := newInquest(t)
	n := w.Tenant()
	for _, p := range []delegation.Principal{alice, planner} {
		n.FGA.Allow(string(p), "accessor", "resource:"+delegation.EncodeID(string(namesake)))
	}
	call := n.Call(t, n.Root(t, map[string]any{"targets": []string{string(namesake)}}), planner, "")
	call.Children[0].Audience = []string{string(namesake)}
	grant, refusal := w.One(t.Context(), call)
	if refusal != nil {
		t.Fatal(refusal)
	}
	for caller, may := range map[delegation.Principal]bool{namesake: true, calendarServer: false} {
		got, err := w.Engine.Introspect(t.Context(), exchange.Inquiry{Tenant: n.Name, Credentials: n.Credentials(t, caller), Token: grant.AccessToken})
		if err != nil || (got.Claims != nil) != may {
			t.Errorf("%s: active %t, %v", caller, got.Claims != nil, err)
		}
	}
}
