package exchange_test

import (
	"crypto/tls"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"deputy.example/deputy/client/delegation"
	"deputy.example/deputy/server/internal/exchange"
	"deputy.example/deputy/server/internal/exchange/exchangetest"
	"deputy.example/deputy/server/internal/token"
	"deputy.example/deputy/server/internal/token/certtest"
)

// certified is a world of two tenants that both know agent:job by the same name. The first also
// knows agent:own by its own certificate, and a trust domain.
type certified struct {
	*exchangetest.World
	ca, prod *certtest.CA
	tokens   *exchangetest.Signer // of the trust domain's JWT-SVIDs
	own      tls.Certificate
}

func newCertified(t *testing.T) *certified {
	t.Helper()
	c := &certified{ca: certtest.NewCA(t, "clients"), prod: certtest.NewCA(t, "prod"), tokens: exchangetest.NewSigner(t, ""), own: certtest.SelfSigned(t)}
	dir := t.TempDir()
	file := func(name string, content []byte) string {
		path := filepath.Join(dir, name)
		certtest.Write(t, path, content)
		return path
	}
	jwk := strings.TrimSuffix(strings.TrimPrefix(c.tokens.JWKS(), `{"keys":[`), `]}`)
	c.World = exchangetest.New(t, exchangetest.Config{
		Tenants: []string{"acme", "other"}, Limits: exchange.Limits{AllowUnbinding: true},
		Trust: func(tenant string, config *token.TrustConfig) {
			config.ClientCAFile = file("ca.pem", certtest.PEM(c.ca.Certificate))
			config.Clients = append(config.Clients, token.Client{ID: "agent:job", TLS: &token.ClientTLS{SANDNS: "job.example"}})
			if tenant == "acme" {
				config.Clients = append(config.Clients,
					token.Client{ID: "agent:only", TLS: &token.ClientTLS{SANDNS: "only.example"}},
					token.Client{ID: "agent:own", TLS: &token.ClientTLS{CertificatesFile: file("own.pem", certtest.PEM(c.own.Leaf))}})
				config.TrustDomains = []token.TrustDomain{{
					Name: "prod.example", BundleFile: file("prod.json", c.prod.Bundle(t, jwk)), Principal: token.Mapping{Type: "agent", Prefix: "prod/"},
				}}
			}
		},
	})
	for _, n := range c.Tenants {
		n.Admit("agent:job", "agent:only", "agent:own", "agent:prod/planner", "agent:wl/job")
		for agent := range n.Clients {
			n.FGA.Allow(string(agent), "delegator", "agent:own")
		}
	}
	return c
}

// call requests a child of a root token for alice over a connection with the certificate.
func (c *certified) call(t *testing.T, door string, shown tls.Certificate, clientID string) exchange.Call {
	t.Helper()
	n := c.Tenants["acme"]
	call := n.Call(t, n.Root(t, nil), planner, "")
	call.Tenant = door
	call.Credentials = exchange.Credentials{ClientID: clientID, Certificates: certtest.Chain(t, shown)}
	return call
}

// TestCertificatesThatAuthenticateNobody: each of these is refused by one protection, which
// tools/mutants removes.
func TestCertificatesThatAuthenticateNobody(t *testing.T) {
	for name, a := range map[string]struct {
		reason delegation.Reason
		call   func(*certified) exchange.Call
	}{
		"over HTTP without client_id": {delegation.ParameterMissing, func(c *certified) exchange.Call {
			return c.call(t, "acme", c.ca.Issue(t, certtest.DNS("only.example")), "")
		}},
		"known to two tenants": {delegation.ClientUnauthenticated, func(c *certified) exchange.Call {
			call := c.call(t, "", c.ca.Issue(t, certtest.DNS("job.example")), "")
			call.SubjectToken = c.Tenants["other"].Root(t, nil)
			return call
		}},
		"beside an actor token that authenticates another": {delegation.ActorTokenInvalid, func(c *certified) exchange.Call {
			n := c.Tenants["acme"]
			call := c.call(t, "", c.own, "")
			parent, refusal := c.One(t.Context(), call)
			if refusal != nil {
				t.Fatal(refusal)
			}
			call.SubjectToken = parent.AccessToken
			n.FGA.Allow("agent:own", "delegator", "agent:wl/job")
			call.Children[0].ActorToken, call.Children[0].ActorTokenType = n.Workload(t, "job", n.Issuer), delegation.TokenTypeJWT
			return call
		}},
	} {
		t.Run(name, func(t *testing.T) {
			c := newCertified(t)
			call := a.call(c)
			_, refusal := c.One(t.Context(), call)
			if refusal == nil || refusal.Reason != a.reason {
				t.Fatalf("%v, want %s", refusal, a.reason)
			}
		})
	}
}

// TestSuspendedCertificate: the holder of a suspended client's certificate learns no more by
// omitting client_id.
func TestSuspendedCertificate(t *testing.T) {
	c := newCertified(t)
	n := c.Tenants["acme"]
	n.FGA.Allow(string(planner), "operator", "agent:only")
	suspend := exchange.RevokeCall{Tenant: n.Name, Credentials: n.Credentials(t, planner), Target: delegation.Target{Kind: delegation.BanSuspend, ID: "agent:only"}}
	if _, err := c.Engine.Revoke(t.Context(), suspend); err != nil {
		t.Fatal(err)
	}
	for _, clientID := range []string{"agent:only", ""} {
		if _, refusal := c.One(t.Context(), c.call(t, "acme", c.ca.Issue(t, certtest.DNS("only.example")), clientID)); refusal == nil || refusal.Reason != delegation.ClientUnauthenticated {
			t.Errorf("client_id %q: %v", clientID, refusal)
		}
	}
}

// TestBothIdentitiesOfAWorkload: the workload's own X.509-SVID and JWT-SVID are one caller.
func TestBothIdentitiesOfAWorkload(t *testing.T) {
	c := newCertified(t)
	n := c.Tenants["acme"]
	svid := c.prod.SVID(t, "spiffe://prod.example/planner")
	now := c.Clock().Now().Unix()
	say := func(audience string) string {
		return c.tokens.Sign(t, "JWT", map[string]any{ // SPIRE omits iss
			"iss": nil, "sub": "spiffe://prod.example/planner", "aud": audience, "iat": now, "exp": now + 300,
		})
	}
	for name, change := range map[string]func(*exchange.Call){
		"certificate":               func(*exchange.Call) {},
		"token in the metadata":     func(call *exchange.Call) { call.Credentials.Bearer = say(n.Issuer) },
		"token as actor token":      func(call *exchange.Call) { call.Credentials.Certificates = nil; actAs(call, say(n.Issuer)) },
		"certificate and its token": func(call *exchange.Call) { actAs(call, say(n.Issuer)) },
		"certificate, named by its token": func(call *exchange.Call) {
			actAs(call, say(delegation.ActorAudience(n.Issuer)))
		},
	} {
		call := c.call(t, "", svid, "")
		change(&call)
		grant, refusal := c.One(t.Context(), call)
		if refusal != nil {
			t.Errorf("%s: %v (%v)", name, refusal, refusal.Unwrap())
			continue
		}
		bound := grant.Claims.Confirmation
		if shown := call.Credentials.Certificates != nil; grant.Claims.Act.Current() != "agent:prod/planner" || (bound != nil) != shown ||
			shown && bound.X5T != token.CertificateThumbprint(svid.Leaf) {
			t.Errorf("%s: %+v", name, grant.Claims)
		}
	}
	c.Clock().Advance(5 * time.Minute)
	call := c.call(t, "", svid, "")
	call.Credentials.Bearer = say(n.Issuer)
	if _, refusal := c.One(t.Context(), call); refusal == nil || refusal.Reason != delegation.ClientUnauthenticated {
		t.Errorf("an expired token beside a good certificate: %v", refusal)
	}
}

func actAs(call *exchange.Call, actorToken string) {
	call.Children[0].ActorToken, call.Children[0].ActorTokenType = actorToken, delegation.TokenTypeJWT
}

// TestRegisteredCertificateAsConfirmation: a registered certificate can be named in
// actor_confirmation. The child is bound to it, and cannot be used without it. A ban on the
// certificate hits the child, and each holder of the certificate.
func TestRegisteredCertificateAsConfirmation(t *testing.T) {
	c := newCertified(t)
	n := c.Tenants["acme"]
	thumbprint := token.CertificateThumbprint(c.own.Leaf)
	parent := c.Chain(t, n, planner)[0]
	call := n.Call(t, parent.AccessToken, planner, "")
	call.Children[0].RequestedActor, call.Children[0].ActorConfirmation = "agent:own", thumbprint
	grant, refusal := c.One(t.Context(), call)
	if refusal != nil {
		t.Fatal(refusal)
	}
	if grant.Claims.Confirmation == nil || *grant.Claims.Confirmation != (delegation.Confirmation{X5T: thumbprint}) {
		t.Fatalf("bound to %+v", grant.Claims.Confirmation)
	}
	narrow := func(shown tls.Certificate) *delegation.Error {
		t.Helper()
		call := c.call(t, "acme", shown, "agent:own")
		call.SubjectToken = grant.AccessToken
		_, refusal := c.One(t.Context(), call)
		return refusal
	}
	if refusal := narrow(c.own); refusal != nil {
		t.Errorf("with the certificate: %v", refusal)
	}
	if refusal := narrow(certtest.Again(t, c.own)); refusal == nil {
		t.Error("with another certificate of the same key")
	}
	n.FGA.Allow(string(planner), "responder", "system:deputy")
	if _, err := c.Engine.Revoke(t.Context(), exchange.RevokeCall{
		Tenant: "acme", Credentials: n.Credentials(t, planner), Target: delegation.Target{Kind: delegation.BanKey, ID: thumbprint}, Reason: "stolen",
	}); err != nil {
		t.Fatal(err)
	}
	if refusal := narrow(c.own); refusal == nil || refusal.Reason != delegation.ClientUnauthenticated {
		t.Errorf("with a banned certificate: %v", refusal)
	}
	if _, refusal := c.One(t.Context(), c.call(t, "acme", c.own, "agent:own")); refusal == nil || refusal.Reason != delegation.ClientUnauthenticated {
		t.Errorf("a root token with a banned certificate: %v", refusal)
	}
}
