package conformance

import (
	"crypto/tls"
	"crypto/x509"
	"maps"
	"net"
	"net/http"
	"net/http/httptest"
	"net/url"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials"
	"google.golang.org/grpc/metadata"

	"deputy.example/deputy/client/delegation"
	deputyv1 "deputy.example/deputy/gen/deputy/v1"
	"deputy.example/deputy/server/internal/exchange"
	"deputy.example/deputy/server/internal/exchange/exchangetest"
	"deputy.example/deputy/server/internal/httpapi"
	"deputy.example/deputy/server/internal/rpc"
	"deputy.example/deputy/server/internal/token"
	"deputy.example/deputy/server/internal/token/certtest"
)

// tlsWorld is two tenants, acme and other, whose clients have certificates, with HTTP and gRPC
// endpoints over TLS as a server opens it.
type tlsWorld struct {
	*exchangetest.World
	servers    *certtest.CA
	ca, foe    *certtest.CA // of acme's clients, of other's
	prod       *certtest.CA // acme's trust domain prod.example
	partner    *certtest.CA // acme's trust domain partner.example
	own        tls.Certificate
	web        *httptest.Server
	grpc       string
	dir        string
	principals []delegation.Principal
}

func newTLSWorld(t *testing.T) *tlsWorld {
	t.Helper()
	w := &tlsWorld{
		servers: certtest.NewCA(t, "servers"), ca: certtest.NewCA(t, "clients"), foe: certtest.NewCA(t, "clients"),
		prod: certtest.NewCA(t, "prod"), partner: certtest.NewCA(t, "partner"), own: certtest.SelfSigned(t), dir: t.TempDir(),
	}
	file := func(name string, c ...*x509.Certificate) string {
		path := filepath.Join(w.dir, name)
		certtest.Write(t, path, certtest.PEM(c...))
		return path
	}
	clients := map[delegation.Principal]token.ClientTLS{
		"agent:dn": {SubjectDN: "CN=agent"}, "agent:dns": {SANDNS: "agent.example"}, "agent:uri": {SANURI: "https://agent.example/"},
		"agent:ip": {SANIP: "192.0.2.7"}, "agent:email": {SANEmail: "agent@agent.example"},
		"agent:shared": {SANDNS: "shared.example"}, "agent:own": {CertificatesFile: file("own.pem", w.own.Leaf)},
	}
	w.World = exchangetest.New(t, exchangetest.Config{
		Tenants: []string{"acme", "other"}, Limits: exchange.Limits{DefaultLifetime: 10 * time.Minute},
		Trust: func(tenant string, c *token.TrustConfig) {
			if tenant == "other" {
				c.ClientCAFile = file("foe.pem", w.foe.Certificate)
				c.Clients = append(c.Clients, token.Client{ID: "agent:shared", TLS: &token.ClientTLS{SANDNS: "shared.example"}},
					token.Client{ID: "agent:theirs", TLS: &token.ClientTLS{SANDNS: "theirs.example"}})
				return
			}
			c.ClientCAFile = file("ca.pem", w.ca.Certificate)
			for id, settings := range clients {
				c.Clients = append(c.Clients, token.Client{ID: id, TLS: &settings})
			}
			for name, ca := range map[string]*certtest.CA{"prod": w.prod, "partner": w.partner} {
				c.TrustDomains = append(c.TrustDomains, token.TrustDomain{
					Name: name + ".example", BundleFile: file(name+".pem", ca.Certificate), Principal: token.Mapping{Type: "agent", Prefix: name + "/"},
				})
			}
		},
	})
	acme := w.Tenants["acme"]
	w.principals = append(w.principals, "agent:prod/planner", "agent:partner/planner", "agent:wl/planner")
	for id := range clients {
		w.principals = append(w.principals, id)
	}
	acme.Admit(w.principals...)
	w.Tenants["other"].Admit("agent:shared", "agent:theirs")
	w.listen(t)
	return w
}

func (w *tlsWorld) listen(t *testing.T) {
	t.Helper()
	config := &tls.Config{
		MinVersion: tls.VersionTLS13, ClientAuth: tls.RequestClientCert, SessionTicketsDisabled: true,
		Certificates: []tls.Certificate{w.servers.Issue(t, certtest.DNS("localhost"))},
	}
	handler, err := httpapi.New(httpapi.Config{Engine: w.Engine, Tenants: []httpapi.Tenant{front(w.Tenants["acme"]), front(w.Tenants["other"])}})
	if err != nil {
		t.Fatal(err)
	}
	w.web = httptest.NewUnstartedServer(handler)
	w.web.TLS = config.Clone()
	w.web.StartTLS()
	t.Cleanup(w.web.Close)

	server, err := rpc.New(rpc.Config{Engine: rpc.For(w.Engine), TLS: credentials.NewTLS(config.Clone())})
	if err != nil {
		t.Fatal(err)
	}
	w.grpc = serveGRPC(t, server, loopback(t))
}

// through opens HTTP and gRPC on connections of their own. The connections present the certificate,
// if there is one.
func (w *tlsWorld) through(t *testing.T, tenant string, shown *tls.Certificate) map[string]door {
	t.Helper()
	roots := x509.NewCertPool()
	roots.AddCert(w.servers.Certificate)
	config := &tls.Config{RootCAs: roots, ServerName: "localhost"}
	if shown != nil {
		config.Certificates = []tls.Certificate{*shown}
	}
	transport := &http.Transport{TLSClientConfig: config}
	t.Cleanup(transport.CloseIdleConnections)
	conn, err := grpc.NewClient(w.grpc, grpc.WithTransportCredentials(credentials.NewTLS(config.Clone())))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := conn.Close(); err != nil {
			t.Error(err)
		}
	})
	return map[string]door{
		"http": httpDoor{&http.Client{Transport: transport}, w.web.URL + "/t/" + tenant},
		"grpc": grpcDoor{stub: deputyv1.NewTokenExchangeServiceClient(conn)},
	}
}

// request returns the parameters of a token request for the caller, with a root token for alice.
func (w *tlsWorld) request(t *testing.T, tenant string, change params) params {
	t.Helper()
	p := params{
		"subject_token": {w.Tenants[tenant].Root(t, nil)}, "subject_token_type": {delegation.TokenTypeAccessToken},
		"audience": {exchangetest.Calendar}, "scope": {"calendar.read"},
	}
	maps.Copy(p, change)
	return p
}

// TestCertificatesAtBothDoors checks RFC 8705 §2 at both endpoints, on real connections. An
// authenticated caller is the current actor of its token, which is bound to the certificate. Any
// other caller gets no information.
func TestCertificatesAtBothDoors(t *testing.T) {
	w := newTLSWorld(t)
	acme := w.Tenants["acme"]
	now := time.Now()
	dns := certtest.DNS("agent.example")
	email := func(c *x509.Certificate) { c.EmailAddresses = []string{"agent@agent.example"} }
	address := func(c *x509.Certificate) { c.IPAddresses = []net.IP{net.ParseIP("192.0.2.7")} }
	stranger := certtest.SelfSigned(t, certtest.DNS("stranger.example"))
	assertion := func(change params) func() params {
		return func() params {
			p := params{"client_assertion": {acme.Assertion(t, exchangetest.Planner)}}
			maps.Copy(p, change)
			return p
		}
	}
	workload := func(name, audience string) func() params {
		return func() params {
			return params{"actor_token": {acme.Workload(t, name, audience)}, "actor_token_type": {delegation.TokenTypeJWT}}
		}
	}
	both := func(a, b func() params) func() params {
		return func() params { p := a(); maps.Copy(p, b()); return p }
	}
	as := func(id string) func() params { return func() params { return params{"client_id": {id}} } }
	const anonymous = "client_unauthenticated"
	for _, c := range []struct {
		clause, name string
		shown        tls.Certificate // none: no certificate
		http         func() params   // what the form holds besides
		// grpc is what the message holds besides. nil: nothing, so that only the certificate
		// authenticates.
		grpc       func() params
		who        string // "": refused
		reason     string // over HTTP
		grpcReason string // where it differs
		stranger   bool   // the caller is authenticated by something else than the certificate
	}{
		{clause: "§2.1.2", name: "subject DN", shown: w.ca.Issue(t, subject("agent")), http: as("agent:dn"), who: "agent:dn"},
		{clause: "§2.1.2", name: "DNS name", shown: w.ca.Issue(t, dns), http: as("agent:dns"), who: "agent:dns"},
		{clause: "§2.1.2", name: "URI", shown: w.ca.Issue(t, certtest.URI("https://agent.example/")), http: as("agent:uri"), who: "agent:uri"},
		{clause: "§2.1.2", name: "address", shown: w.ca.Issue(t, address), http: as("agent:ip"), who: "agent:ip"},
		{clause: "§2.1.2", name: "e-mail", shown: w.ca.Issue(t, email), http: as("agent:email"), who: "agent:email"},
		{clause: "§2.2.2", name: "registered", shown: w.own, http: as("agent:own"), who: "agent:own"},
		{clause: "SPIFFE", name: "workload", shown: w.prod.SVID(t, "spiffe://prod.example/planner"), http: as("agent:prod/planner"), who: "agent:prod/planner"},
		{clause: "SPIFFE", name: "federated workload", shown: w.partner.Intermediate(t, "x").SVID(t, "spiffe://partner.example/planner"), http: as("agent:partner/planner"), who: "agent:partner/planner"},
		{clause: "§2", name: "client_id at both", shown: w.ca.Issue(t, dns), http: as("agent:dns"), grpc: as("agent:dns"), who: "agent:dns"},

		{clause: "§2", name: "no client_id", shown: w.ca.Issue(t, dns), reason: "parameter_missing", grpcReason: "-"},
		{clause: "§2", name: "client_id of another", shown: w.ca.Issue(t, dns), http: as("agent:uri"), grpc: as("agent:uri"), reason: anonymous},
		{clause: "§2", name: "client_id of nobody", shown: w.ca.Issue(t, dns), http: as("agent:nobody"), grpc: as("agent:nobody"), reason: anonymous},
		{clause: "§2", name: "client_id without a certificate", http: as("agent:dns"), grpc: as("agent:dns"), reason: "parameter_missing"},
		{clause: "§2", name: "client_id beside a stranger's certificate", shown: stranger, http: as("agent:dns"), grpc: as("agent:dns"), reason: anonymous},
		{clause: "§2.1", name: "wrong authority", shown: w.foe.Issue(t, dns), http: as("agent:dns"), reason: anonymous},
		{clause: "§2.1", name: "nobody's authority", shown: certtest.SelfSigned(t, dns), http: as("agent:dns"), reason: anonymous},
		{clause: "§2.1", name: "expired", shown: w.ca.Issue(t, dns, certtest.Valid(now.Add(-2*time.Hour), now.Add(-time.Minute))), http: as("agent:dns"), reason: anonymous},
		{clause: "§2.1", name: "not valid yet", shown: w.ca.Issue(t, dns, certtest.Valid(now.Add(time.Hour), now.Add(2*time.Hour))), http: as("agent:dns"), reason: anonymous},
		{clause: "§2.1", name: "for servers", shown: w.ca.Issue(t, dns, serverOnly), http: as("agent:dns"), reason: anonymous},
		{clause: "§2.1.2", name: "common name alone", shown: w.ca.Issue(t, subject("agent.example")), http: as("agent:dns"), reason: anonymous},
		{clause: "§2.2", name: "another certificate of the registered key", shown: certtest.Again(t, w.own), http: as("agent:own"), reason: anonymous},
		{clause: "SPIFFE", name: "another trust domain's authority", shown: w.partner.SVID(t, "spiffe://prod.example/planner"), http: as("agent:prod/planner"), reason: anonymous},
		{clause: "I7", name: "another tenant's client", shown: w.foe.Issue(t, certtest.DNS("theirs.example")), http: as("agent:theirs"), reason: anonymous, grpcReason: "-"},

		{clause: "§3", name: "a stranger's certificate and an assertion", shown: stranger, http: assertion(nil), grpc: assertion(nil), who: "agent:planner", stranger: true},
		{clause: "§3", name: "another's certificate and an assertion", shown: w.own, http: assertion(nil), grpc: assertion(nil), who: "agent:planner", stranger: true},
		{clause: "§3", name: "a stranger's certificate and an actor token", shown: stranger, http: workload("planner", acme.Issuer), grpc: workload("planner", acme.Issuer), who: "agent:wl/planner", stranger: true},
		{clause: "§3", name: "a stranger's certificate alone", shown: stranger, reason: anonymous},
		{clause: "RFC 8693 §2.1", name: "an actor token of caller audience beside another's certificate", shown: w.own,
			http: both(as("agent:own"), workload("planner", acme.Issuer)), grpc: workload("planner", acme.Issuer), reason: "actor_token_invalid"},
		{clause: "RFC 8693 §2.1", name: "an actor token that only names, and nobody's certificate", shown: stranger,
			http: workload("planner", delegation.ActorAudience(acme.Issuer)), grpc: workload("planner", delegation.ActorAudience(acme.Issuer)), reason: anonymous},
	} {
		t.Run(c.clause+" "+c.name, func(t *testing.T) {
			shown := &c.shown
			if c.shown.Certificate == nil {
				shown = nil
			}
			for name, d := range w.through(t, "acme", shown) {
				say, reason := c.http, c.reason
				if name == "grpc" {
					say = c.grpc
					if c.grpcReason != "" {
						reason = c.grpcReason
					}
				}
				p := w.request(t, "acme", nil)
				if say != nil {
					maps.Copy(p, say())
				}
				got, err := d.exchange(t.Context(), p, "")
				if err != nil {
					t.Fatalf("%s: %v", name, err)
				}
				if reason == "-" { // the caller is authenticated there, as cases of its own check
					continue
				}
				if c.who == "" {
					if got["reason"] != reason {
						t.Errorf("%s: %v, want %s", name, got, reason)
					}
					continue
				}
				access, _ := got["access_token"].(string)
				claims, err := w.Tenants["acme"].Trust.Own(access)
				if err != nil {
					t.Fatalf("%s: %v, %v", name, got, err)
				}
				if string(claims.Act.Current()) != c.who || claims.Confirmation == nil || claims.Confirmation.X5T != token.CertificateThumbprint(c.shown.Leaf) {
					t.Errorf("%s: %+v", name, claims)
				}
				// RFC 8705 §3: a Bearer token on a connection with the certificate.
				if got["token_type"] != "Bearer" {
					t.Errorf("%s: %v", name, got["token_type"])
				}
			}
		})
	}
}

func subject(commonName string) certtest.Change {
	return func(c *x509.Certificate) { c.Subject.CommonName = commonName }
}

func serverOnly(c *x509.Certificate) { c.ExtKeyUsage = []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth} }

// TestCertificatesFindTheirTenant: the tenant of a call over gRPC is the tenant of its certificate.
// A certificate that two tenants know finds no tenant. Over HTTP the address names the tenant, and
// its authorities decide.
func TestCertificatesFindTheirTenant(t *testing.T) {
	w := newTLSWorld(t)
	shared := certtest.DNS("shared.example")
	for _, c := range []struct {
		name, tenant string
		shown        tls.Certificate
		clientID     string
		http, grpc   bool
	}{
		{"of acme", "acme", w.ca.Issue(t, certtest.DNS("agent.example")), "agent:dns", true, true},
		{"of other", "other", w.foe.Issue(t, certtest.DNS("theirs.example")), "agent:theirs", true, true},
		{"of other, issued by acme's authority", "other", w.ca.Issue(t, certtest.DNS("theirs.example")), "agent:theirs", false, false},
		{"known to both, of acme", "acme", w.ca.Issue(t, shared), "agent:shared", true, false},
		{"known to both, of other", "other", w.foe.Issue(t, shared), "agent:shared", true, false},
		{"known to both, at the wrong one", "other", w.ca.Issue(t, shared), "agent:shared", false, false},
		{"a workload of acme, at other", "other", w.prod.SVID(t, "spiffe://prod.example/planner"), "agent:prod/planner", false, false},
	} {
		for name, d := range w.through(t, c.tenant, &c.shown) {
			for _, clientID := range []string{c.clientID, ""} {
				want := c.http
				if name == "grpc" {
					want = c.grpc
				} else if clientID == "" {
					continue
				}
				got, err := d.exchange(t.Context(), w.request(t, c.tenant, params{"client_id": {clientID}}), "")
				if err != nil {
					t.Fatal(err)
				}
				if granted := got["error"] == nil; granted != want || !granted && got["reason"] != "client_unauthenticated" && got["reason"] != "subject_token_invalid" {
					t.Errorf("%s, %s, client_id %q: %v", c.name, name, clientID, got)
				}
			}
		}
	}
}

// TestCertificatesOnOpenConnections: a certificate authenticates introspections too, and is checked
// for each call of a connection. The connection may outlive the trust that it began with.
func TestCertificatesOnOpenConnections(t *testing.T) {
	w := newTLSWorld(t)
	shown := w.ca.Issue(t, certtest.DNS("agent.example"), certtest.Valid(time.Now().Add(-time.Hour), time.Now().AddDate(0, 0, 1)))
	doors := w.through(t, "acme", &shown)
	ask := func(d door, name string) answer {
		t.Helper()
		var got answer
		var err error
		if h, isHTTP := d.(httpDoor); isHTTP {
			got, err = h.post(t.Context(), "/oauth2/introspect", url.Values{"token": {"x"}, "client_id": {"agent:dns"}})
		} else {
			got, err = d.introspect(t.Context(), "x", "")
		}
		if err != nil {
			t.Fatalf("%s: %v", name, err)
		}
		return got
	}
	for name, d := range doors {
		if got := ask(d, name); got["active"] != false || got["error"] != nil {
			t.Errorf("%s: %v", name, got)
		}
	}
	certtest.Write(t, filepath.Join(w.dir, "ca.pem"), certtest.PEM(w.foe.Certificate))
	for name, d := range doors { // the control: the file has not been read yet
		if got := ask(d, name); got["error"] != nil {
			t.Errorf("%s: %v", name, got)
		}
	}
	w.Clock().Advance(time.Minute)
	for name, d := range doors {
		if got := ask(d, name); got["reason"] != "client_unauthenticated" {
			t.Errorf("%s, a minute after the authority was removed: %v", name, got)
		}
	}
}

// TestForwardedCertificatesAuthenticateNobody: a certificate in a header is a claim, not a proof.
// Deputy does not read it, under any name that proxies use.
func TestForwardedCertificatesAuthenticateNobody(t *testing.T) {
	w := newTLSWorld(t)
	shown := w.ca.Issue(t, certtest.DNS("agent.example"))
	pem := url.QueryEscape(string(certtest.PEM(shown.Leaf)))
	forwarded := http.Header{
		"X-Forwarded-Client-Cert": {"Cert=\"" + pem + "\""}, "Client-Cert": {":" + pem + ":"}, "X-Ssl-Client-Cert": {pem},
		"Ssl-Client-Cert": {pem}, "X-Client-Cert": {pem}, "X-Ssl-Client-Verify": {"SUCCESS"},
	}
	for _, held := range []*tls.Certificate{nil, &shown} { // the latter is the control
		doors := w.through(t, "acme", held)
		h := doors["http"].(httpDoor)
		r, err := http.NewRequestWithContext(t.Context(), http.MethodPost, h.base+"/oauth2/introspect",
			strings.NewReader(url.Values{"token": {"x"}, "client_id": {"agent:dns"}}.Encode()))
		if err != nil {
			t.Fatal(err)
		}
		r.Header = forwarded.Clone()
		r.Header.Set("Content-Type", "application/x-www-form-urlencoded")
		response, err := h.client.Do(r)
		if err != nil {
			t.Fatal(err)
		}
		_ = response.Body.Close()
		if in := response.StatusCode == http.StatusOK; in != (held != nil) {
			t.Errorf("HTTP, with the certificate %v: %s", held != nil, response.Status)
		}
		ctx := t.Context()
		for header, values := range forwarded {
			ctx = metadata.AppendToOutgoingContext(ctx, strings.ToLower(header), values[0])
		}
		got, err := doors["grpc"].introspect(ctx, "x", "")
		if in := got["error"] == nil; err != nil || in != (held != nil) {
			t.Errorf("gRPC, with the certificate %v: %v, %v", held != nil, got, err)
		}
	}
}
