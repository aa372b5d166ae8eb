package conformance

import (
	"os"
	"regexp"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/goccy/go-yaml"

	"deputy.example/deputy/client/delegation"
	"deputy.example/deputy/server/internal/exchange/exchangetest"
	"deputy.example/deputy/server/internal/rpc"
	"deputy.example/deputy/server/internal/token"
	"deputy.example/deputy/server/internal/token/tokentest"
)

// recipes returns the trusted issuers of docs/trust.md, by their iss.
func recipes(t *testing.T) map[string]token.TrustedIssuer {
	t.Helper()
	page, err := os.ReadFile("../../../../docs/trust.md")
	if err != nil {
		t.Fatal(err)
	}
	found := make(map[string]token.TrustedIssuer)
	for _, block := range regexp.MustCompile("(?s)```yaml\n(- issuer:.*?)```").FindAllSubmatch(page, -1) {
		var some []token.TrustedIssuer
		if err := yaml.UnmarshalWithOptions(block[1], &some, yaml.Strict()); err != nil {
			t.Fatal(err)
		}
		for _, i := range some {
			found[i.Issuer] = i
		}
	}
	return found
}

// fixture is an issuer like those of a platform, on this machine, trusted as the documentation
// shows.
type fixture struct {
	*tokentest.Issuer
	trusted   token.TrustedIssuer
	principal delegation.Principal
}

func fixtures(t *testing.T) map[string]fixture {
	t.Helper()
	documented := recipes(t)
	svid := func(algorithm string) token.TrustedIssuer {
		return token.TrustedIssuer{
			Keys: token.KeySource{Discovery: true}, Algorithms: []string{algorithm}, Workloads: true,
			Principal: token.Mapping{Type: "agent", Prefix: "svid-" + algorithm + "/", When: []token.Condition{{Claim: "sub", Prefixes: []string{"spiffe://acme.example/ns/agents/"}}}},
		}
	}
	all := map[string]fixture{
		"Kubernetes":     {Issuer: tokentest.Kubernetes(t), trusted: documented["https://kubernetes.default.svc.cluster.local"]},
		"GitHub Actions": {Issuer: tokentest.GitHub(t), trusted: documented["https://token.actions.githubusercontent.com"]},
		"Google Cloud":   {Issuer: tokentest.Google(t), trusted: documented["https://accounts.google.com"]},
		"SVIDs by ES256": {Issuer: tokentest.Workload(t, "ES256"), trusted: svid("ES256")},
		"SVIDs by EdDSA": {Issuer: tokentest.Workload(t, "EdDSA"), trusted: svid("EdDSA")},
	}
	for name, f := range all {
		if len(f.trusted.Principal.When) == 0 || !f.trusted.Workloads || !f.trusted.Keys.Discovery || !slices.Equal(f.trusted.Algorithms, []string{f.Algorithm}) {
			t.Fatalf("%s is trusted as %+v: was the recipe read?", name, f.trusted)
		}
		f.trusted.Issuer, f.trusted.Keys.CAFile, f.trusted.Keys.PrivateAddress = f.URL, f.CAFile, true
		var err error
		if f.principal, err = delegation.NewPrincipal("agent", f.trusted.Principal.Prefix+f.Sub); err != nil {
			t.Fatal(err)
		}
		all[name] = f
	}
	return all
}

// workloadDoors opens the endpoints of an engine that trusts the fixtures, with or without their
// conditions. Alice delegates to every ordinary workload.
func workloadDoors(t *testing.T, all map[string]fixture, conditions bool) (*exchangetest.Tenant, map[string]door) {
	t.Helper()
	config := exchangetest.Config{Tenants: []string{"acme"}}
	for _, f := range all {
		if !conditions {
			f.trusted.Principal.When = nil
		}
		config.Issuers = append(config.Issuers, f.trusted)
	}
	w := exchangetest.New(t, config)
	tenant := w.Tenant()
	for _, f := range all {
		agent := string(f.principal)
		tenant.FGA.Allow(string(exchangetest.Alice), "delegator", agent)
		tenant.FGA.Allow(string(exchangetest.Planner), "delegator", agent)
		tenant.FGA.Allow(agent, "holder", "scope:calendar.read")
		tenant.FGA.Allow(agent, "accessor", "resource:"+delegation.EncodeID(exchangetest.Calendar))
	}
	return tenant, doors(t, rpc.For(w.Engine), w.Engine, front(tenant))
}

// roles returns the ways in which an endpoint receives a workload's token: as the credential of a
// caller, or as the token that names an actor. Each role has the reason with which a token is
// refused.
func roles(t *testing.T, tenant *exchangetest.Tenant, name string, d door) map[string]role {
	t.Helper()
	parent := func() string { return tenant.Root(t, nil) }
	ask := func(p params, credential string) answer {
		p["subject_token_type"], p["audience"], p["scope"] = []string{delegation.TokenTypeAccessToken}, []string{exchangetest.Calendar}, []string{"calendar.read"}
		got, err := d.exchange(t.Context(), p, credential)
		if err != nil {
			t.Fatal(err)
		}
		if err := repeatsNothing(got, p, credential); err != nil {
			t.Error(err)
		}
		return got
	}
	as := func(token string) params {
		return params{"actor_token": {token}, "actor_token_type": {delegation.TokenTypeJWT}}
	}
	handed := ask(params{"subject_token": {parent()}}, tenant.Assertion(t, exchangetest.Planner))["access_token"].(string)
	all := map[string]role{
		"caller by actor token": {tenant.Issuer, delegation.ClientUnauthenticated, func(token string) answer {
			p := as(token)
			p["subject_token"] = []string{parent()}
			return ask(p, "")
		}},
		"actor": {delegation.ActorAudience(tenant.Issuer), delegation.ActorTokenInvalid, func(token string) answer {
			p := as(token)
			p["subject_token"] = []string{handed}
			return ask(p, tenant.Assertion(t, exchangetest.Planner))
		}},
	}
	if name == "bearer" || name == "sdk" {
		all["caller by credential"] = role{tenant.Issuer, delegation.ClientUnauthenticated, func(token string) answer {
			return ask(params{"subject_token": {parent()}}, token)
		}}
	}
	return all
}

type role struct {
	audience string
	refusal  delegation.Reason
	present  func(token string) answer
}

// TestWorkloadsOfTheWild: tokens in the form of real platforms are accepted at every endpoint in
// every role, exactly for the principals of the recipes.
func TestWorkloadsOfTheWild(t *testing.T) {
	all := fixtures(t)
	tenant, open := workloadDoors(t, all, true)
	careless, unguarded := workloadDoors(t, all, false) // the control: the same without conditions
	for name, f := range all {
		for through, d := range open {
			for as, r := range roles(t, tenant, through, d) {
				t.Run(name+"/"+through+"/"+as, func(t *testing.T) {
					now := time.Now()
					for _, audience := range []any{r.audience, []string{r.audience}} {
						got := r.present(f.Token(t, audience, now, nil))
						if token, _ := got["access_token"].(string); token == "" || actorOf(t, token) != f.principal {
							t.Errorf("an ordinary token: %v", got)
						}
					}
					refused := func(what, token string) {
						if got := r.present(token); got["reason"] != string(r.refusal) {
							t.Errorf("%s: %v, want %s", what, got, r.refusal)
						} else if said, _ := got["error_description"].(string); strings.Contains(said, "evil") || strings.Contains(said, "mallory") {
							t.Errorf("%s: the refusal repeats a claim: %s", what, said)
						}
					}
					for attack, change := range f.Attacks {
						refused(attack, f.Token(t, r.audience, now, change))
					}
					refused("another audience", f.Token(t, "https://kubernetes.default.svc", now, nil))
					refused("another audience beside", f.Token(t, []string{r.audience, "sts.amazonaws.com"}, now, nil))
					refused("yesterday's token", f.Token(t, r.audience, now.Add(-24*time.Hour), nil))
					refused("a token of another issuer's key", f.Token(t, r.audience, now, func(c tokentest.Claims) { c["iss"] = another(all, f).URL }))
					refused("a token without an end", f.Token(t, r.audience, now, func(c tokentest.Claims) { delete(c, "exp") }))
				})
			}
		}
		for as, r := range roles(t, careless, "bearer", unguarded["bearer"]) {
			for attack, change := range f.Attacks {
				// Without conditions such a token is accepted. For some, policy alone still refuses
				// the exchange.
				if got := r.present(f.Token(t, r.audience, time.Now(), change)); got["reason"] == string(r.refusal) {
					t.Errorf("control: %s, %s as %s: refused without the conditions too: %v", name, attack, as, got)
				}
			}
		}
	}
}

// another returns a fixture with other keys.
func another(all map[string]fixture, not fixture) fixture {
	for _, f := range all {
		if f.URL != not.URL {
			return f
		}
	}
	panic("there is only one")
}

func actorOf(t *testing.T, raw string) delegation.Principal {
	t.Helper()
	u, err := delegation.Parse(raw)
	if err != nil {
		t.Fatal(err)
	}
	claims, err := u.Claims()
	if err != nil {
		t.Fatal(err)
	}
	return claims.Act.Current()
}
