package token

import (
	"bytes"
	"crypto"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/asn1"
	"encoding/base64"
	"encoding/json"
	"net"
	"path/filepath"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/lestrrat-go/jwx/v2/jwk"
	"github.com/spiffe/go-spiffe/v2/spiffeid"

	"deputy.example/deputy/client/delegation"
	"deputy.example/deputy/server/internal/token/certtest"
)

// certWorld is a tenant whose clients have certificates of every kind, with a configured trust
// domain.
type certWorld struct {
	*world
	ca         *certtest.CA // the tenant's own
	stranger   *certtest.CA // of the same name
	prod       *certtest.CA // of the trust domain prod.example
	partner    *certtest.CA // of the trust domain partner.example
	own, x5c   tls.Certificate
	dir        string
	registered string // file
}

var ciName = pkix.Name{CommonName: "ci, builds", OrganizationalUnit: []string{"Agents"}, Organization: []string{"Acme"}}

func newCertWorld(t testing.TB, change ...func(*TrustConfig)) *certWorld {
	t.Helper()
	w := &certWorld{
		ca: certtest.NewCA(t, "authority"), stranger: certtest.NewCA(t, "authority"),
		prod: certtest.NewCA(t, "prod", certtest.URI("spiffe://prod.example")), partner: certtest.NewCA(t, "partner", certtest.URI("spiffe://partner.example")),
		own: certtest.SelfSigned(t), x5c: certtest.SelfSigned(t), dir: t.TempDir(),
	}
	w.registered = w.file(t, "own.pem", certtest.PEM(w.own.Leaf))
	base := func(c *TrustConfig) {
		c.Now = nil // the machine's clock, as for the test's certificates
		c.ClientCAFile = w.file(t, "ca.pem", certtest.PEM(w.ca.Certificate))
		for id, settings := range map[delegation.Principal]ClientTLS{
			"agent:dn":    {SubjectDN: `CN=ci\, builds,OU=Agents,O=Acme`},
			"agent:dns":   {SANDNS: "client.example"},
			"agent:uri":   {SANURI: "https://client.example/a"},
			"agent:ip":    {SANIP: "192.0.2.7"},
			"agent:ip6":   {SANIP: "2001:0DB8::7"},
			"agent:email": {SANEmail: "ci@client.example"},
			"agent:own":   {CertificatesFile: w.registered},
			"agent:x5c":   {CertificatesFile: w.file(t, "x5c.json", x5cSet(t, w.x5c))},
		} {
			c.Clients = append(c.Clients, Client{ID: id, TLS: &settings})
		}
		c.TrustDomains = []TrustDomain{
			{Name: "prod.example", BundleFile: w.file(t, "prod.json", bundleOf(t, []*certtest.CA{w.prod})), Principal: Mapping{Type: "agent", Prefix: "prod/"}},
			{Name: "partner.example", BundleFile: w.file(t, "partner.pem", certtest.PEM(w.partner.Certificate)), Principal: Mapping{Type: "agent", Prefix: "partner/"}},
		}
	}
	w.world = newWorld(t, append([]func(*TrustConfig){base}, change...)...)
	w.clock.at = time.Now()
	w.now = w.clock.now
	for _, s := range w.sources() {
		s.now = w.clock.now
	}
	return w
}

func (w *certWorld) file(t testing.TB, name string, content []byte) string {
	t.Helper()
	path := filepath.Join(w.dir, name)
	certtest.Write(t, path, content)
	return path
}

// jwkOf is a public key as JWK, with members added.
func jwkOf(t testing.TB, public crypto.PublicKey, add object) object {
	t.Helper()
	key, err := jwk.FromRaw(public)
	if err != nil {
		t.Fatal(err)
	}
	var members object
	if err := json.Unmarshal([]byte(toJSON(t, key)), &members); err != nil {
		t.Fatal(err)
	}
	return members.with(add)
}

// x5cSet returns a JWK Set of the certificates' keys, with the certificates.
func x5cSet(t testing.TB, certificates ...tls.Certificate) []byte {
	t.Helper()
	set := []object{}
	for _, c := range certificates {
		set = append(set, jwkOf(t, c.Leaf.PublicKey, object{"x5c": []string{base64.StdEncoding.EncodeToString(c.Certificate[0])}}))
	}
	return []byte(toJSON(t, object{"keys": set}))
}

// bundleOf is a SPIFFE bundle of X.509 and JWT authorities.
func bundleOf(t testing.TB, authorities []*certtest.CA, jwtKeys ...testKey) []byte {
	t.Helper()
	entries := []object{}
	for _, ca := range authorities {
		entries = append(entries, jwkOf(t, ca.Certificate.PublicKey,
			object{"use": "x509-svid", "x5c": []string{base64.StdEncoding.EncodeToString(ca.Certificate.Raw)}}))
	}
	for _, key := range jwtKeys {
		entries = append(entries, jwkOf(t, key.private.Public(), object{"use": "jwt-svid", "kid": key.kid}))
	}
	return []byte(toJSON(t, object{"keys": entries, "spiffe_sequence": 1}))
}

// names returns a list of names as an extension, each with its tag.
func names(t testing.TB, tagged ...asn1.RawValue) certtest.Change {
	t.Helper()
	var body []byte
	for _, n := range tagged {
		n.Class = asn1.ClassContextSpecific
		der, err := asn1.Marshal(n)
		if err != nil {
			t.Fatal(err)
		}
		body = append(body, der...)
	}
	der, err := asn1.Marshal(asn1.RawValue{Class: asn1.ClassUniversal, Tag: asn1.TagSequence, IsCompound: true, Bytes: body})
	if err != nil {
		t.Fatal(err)
	}
	return func(c *x509.Certificate) {
		c.ExtraExtensions = append(c.ExtraExtensions, pkix.Extension{Id: oidSubjectAltName, Value: der})
	}
}

func name(tag int, text string) asn1.RawValue { return asn1.RawValue{Tag: tag, Bytes: []byte(text)} }

func rawSubject(t testing.TB, sequence any) certtest.Change {
	t.Helper()
	der, err := asn1.Marshal(sequence)
	if err != nil {
		t.Fatal(err)
	}
	return func(c *x509.Certificate) { c.RawSubject = der }
}

func usages(u ...x509.ExtKeyUsage) certtest.Change {
	return func(c *x509.Certificate) { c.ExtKeyUsage = u }
}

func keyUsage(u x509.KeyUsage) certtest.Change {
	return func(c *x509.Certificate) { c.KeyUsage = u }
}

func part(kind asn1.ObjectIdentifier, value string) pkix.AttributeTypeAndValue {
	return pkix.AttributeTypeAndValue{Type: kind, Value: value}
}

func addresses(list ...string) certtest.Change {
	return func(c *x509.Certificate) {
		for _, a := range list {
			c.IPAddresses = append(c.IPAddresses, net.ParseIP(a))
		}
	}
}

// RFC 8705 §2.1, §2.1.2 and §2.2, and X509-SVID, clause by clause. If a protection refuses a case,
// tools/mutants removes that protection and requires the case to succeed.
func TestCertificate(t *testing.T) {
	w := newCertWorld(t)
	now := time.Now()
	past, future := certtest.Valid(now.Add(-2*time.Hour), now.Add(-time.Second)), certtest.Valid(now.Add(time.Minute), now.Add(time.Hour))
	dns := certtest.DNS("client.example")
	inner := w.ca.Intermediate(t, "inner")
	long := func(c tls.Certificate, n int) tls.Certificate {
		for len(c.Certificate) < n {
			c.Certificate = append(c.Certificate, w.ca.Certificate.Raw)
		}
		return c
	}
	weak := func(c *certtest.CA, changes ...certtest.Change) tls.Certificate {
		return c.IssueFor(t, weakKey(t), changes...)
	}
	workload := "spiffe://prod.example/agents/planner"
	const (
		noAuthority      = "does not lead to a known authority"
		noBundle         = "does not lead to its trust domain's authorities"
		notForClients    = "the certificate is not for client authentication"
		notForSignatures = "the certificate's key is not for signatures"
		weakKey          = "too weak"
	)
	type relative = pkix.RelativeDistinguishedNameSET
	cn, ou, o := asn1.ObjectIdentifier{2, 5, 4, 3}, asn1.ObjectIdentifier{2, 5, 4, 11}, asn1.ObjectIdentifier{2, 5, 4, 10}
	for _, c := range []struct {
		clause, name string
		certificate  tls.Certificate
		clientID     string
		who          delegation.Principal // "": no principal
		method       string
		rule         string // the cause of the refusal, where one protection alone refuses the case
	}{
		// §2.1.2: each kind of name.
		{clause: "§2.1.2", name: "subject DN", certificate: w.ca.Issue(t, certtest.Subject(ciName)), who: "agent:dn", method: MethodTLSClientAuth},
		{clause: "§2.1.2", name: "DNS name", certificate: w.ca.Issue(t, dns), who: "agent:dns", method: MethodTLSClientAuth},
		{clause: "§2.1.2", name: "URI", certificate: w.ca.Issue(t, certtest.URI("https://client.example/a")), who: "agent:uri", method: MethodTLSClientAuth},
		{clause: "§2.1.2", name: "IPv4 address", certificate: w.ca.Issue(t, addresses("192.0.2.7")), who: "agent:ip", method: MethodTLSClientAuth},
		{clause: "§2.1.2", name: "IPv6 address", certificate: w.ca.Issue(t, addresses("2001:db8::7")), who: "agent:ip6", method: MethodTLSClientAuth},
		{clause: "§2.1.2", name: "e-mail address", certificate: w.ca.Issue(t, func(c *x509.Certificate) { c.EmailAddresses = []string{"ci@client.example"} }), who: "agent:email", method: MethodTLSClientAuth},
		{clause: "§2.1.2", name: "one name among others", certificate: w.ca.Issue(t, certtest.DNS("a.example", "client.example", "b.example")), who: "agent:dns", method: MethodTLSClientAuth},
		{clause: "§2.1", name: "client_id fits", certificate: w.ca.Issue(t, dns), clientID: "agent:dns", who: "agent:dns", method: MethodTLSClientAuth},
		{clause: "§2.1", name: "an intermediate authority", certificate: inner.Issue(t, dns), who: "agent:dns", method: MethodTLSClientAuth},

		// §2.1.2: names that resemble the registered one.
		{clause: "§2.1.2", name: "common name in place of a DNS name", certificate: w.ca.Issue(t, certtest.Subject(pkix.Name{CommonName: "client.example"}))},
		{clause: "§2.1.2", name: "DNS name in place of a common name", certificate: w.ca.Issue(t, certtest.DNS(`CN=ci\, builds,OU=Agents,O=Acme`))},
		{clause: "§2.1.2", name: "wildcard", certificate: w.ca.Issue(t, certtest.DNS("*.example"))},
		{clause: "§2.1.2", name: "other case", certificate: w.ca.Issue(t, certtest.DNS("Client.example"))},
		{clause: "§2.1.2", name: "final dot", certificate: w.ca.Issue(t, names(t, name(2, "client.example.")))},
		{clause: "§2.1.2", name: "NUL in a DNS name", certificate: w.ca.Issue(t, names(t, name(2, "client.example\x00.evil.example")))},
		{clause: "§2.1.2", name: "NUL at the end", certificate: w.ca.Issue(t, names(t, name(2, "client.example\x00")))},
		{clause: "§2.1.2", name: "subdomain", certificate: w.ca.Issue(t, certtest.DNS("x.client.example"))},
		{clause: "§2.1.2", name: "DNS name as URI", certificate: w.ca.Issue(t, names(t, name(6, "client.example")))},
		{clause: "§2.1.2", name: "URI with an empty fragment", certificate: w.ca.Issue(t, names(t, name(6, "https://client.example/a#")))},
		{clause: "§2.1.2", name: "URI in another case", certificate: w.ca.Issue(t, names(t, name(6, "HTTPS://client.example/a")))},
		{clause: "§2.1.2", name: "IPv4 address as IPv6", certificate: w.ca.Issue(t, names(t, name(7, string(net.ParseIP("192.0.2.7").To16()))))},
		{clause: "§2.1.2", name: "address as DNS name", certificate: w.ca.Issue(t, names(t, name(2, "192.0.2.7")))},
		{clause: "§2.1.2", name: "e-mail in another case", certificate: w.ca.Issue(t, func(c *x509.Certificate) { c.EmailAddresses = []string{"CI@client.example"} })},
		{clause: "§2.1.2", name: "DN with one part more", certificate: w.ca.Issue(t, certtest.Subject(pkix.Name{CommonName: "ci, builds", OrganizationalUnit: []string{"Agents"}, Organization: []string{"Acme"}, Country: []string{"DE"}}))},
		{clause: "§2.1.2", name: "DN in another case", certificate: w.ca.Issue(t, certtest.Subject(pkix.Name{CommonName: "CI, builds", OrganizationalUnit: []string{"Agents"}, Organization: []string{"Acme"}}))},
		{clause: "§2.1.2", name: "DN in another order", certificate: w.ca.Issue(t, rawSubject(t, pkix.RDNSequence{relative{part(cn, "ci, builds")}, relative{part(ou, "Agents")}, relative{part(o, "Acme")}}))},
		{clause: "§2.1.2", name: "DN with parts in one", certificate: w.ca.Issue(t, rawSubject(t, pkix.RDNSequence{relative{part(o, "Acme")}, relative{part(cn, "ci, builds"), part(ou, "Agents")}}))},
		{clause: "§2.1.2", name: "DN with a comma that separates", certificate: w.ca.Issue(t, rawSubject(t, pkix.RDNSequence{relative{part(o, "Acme")}, relative{part(cn, `ci\, builds,OU=Agents`)}}))},

		// §2.1: the chain.
		{clause: "§2.1", name: "another authority of the same name", certificate: w.stranger.Issue(t, dns), rule: noAuthority},
		{clause: "§2.1", name: "self-signed under a registered name", certificate: certtest.SelfSigned(t, dns), rule: noAuthority},
		{clause: "§2.1", name: "the trust domain's authority", certificate: w.prod.Issue(t, dns), rule: noAuthority},
		{clause: "§2.1", name: "expired", certificate: w.ca.Issue(t, dns, past), rule: noAuthority},
		{clause: "§2.1", name: "not valid yet", certificate: w.ca.Issue(t, dns, future), rule: noAuthority},
		{clause: "§2.1", name: "an expired intermediate", certificate: w.ca.Intermediate(t, "old", past).Issue(t, dns), rule: noAuthority},
		{clause: "§2.1", name: "an intermediate that is none", certificate: w.ca.Intermediate(t, "leaf", func(c *x509.Certificate) { c.IsCA = false }).Issue(t, dns), rule: noAuthority},
		{clause: "§2.1", name: "an intermediate that is missing", certificate: without(inner.Issue(t, dns)), rule: noAuthority},
		{clause: "§2.1", name: "for servers only", certificate: w.ca.Issue(t, dns, usages(x509.ExtKeyUsageServerAuth)), rule: notForClients},
		{clause: "§2.1", name: "for nothing in particular", certificate: w.ca.Issue(t, dns, usages()), rule: notForClients},
		{clause: "§2.1", name: "an intermediate for servers only", certificate: w.ca.Intermediate(t, "servers", usages(x509.ExtKeyUsageServerAuth)).Issue(t, dns), rule: noAuthority},
		{clause: "§2.1", name: "an authority itself", certificate: w.ca.Issue(t, dns, func(c *x509.Certificate) { c.IsCA = true }), rule: "the certificate is an authority's"},
		{clause: "§2.1", name: "a key that encrypts", certificate: w.ca.Issue(t, dns, keyUsage(x509.KeyUsageKeyEncipherment)), rule: notForSignatures},
		{clause: "§2.1", name: "a weak key", certificate: weak(w.ca, dns), rule: weakKey},
		{clause: "§2.1", name: "too many certificates", certificate: long(w.ca.Issue(t, dns), maxCertificates+1), rule: "want 1 to"},
		{clause: "§2.1", name: "too long certificates", certificate: w.ca.Issue(t, dns, padding(maxCertificateBytes)), rule: "longer than"},
		{clause: "§2.1", name: "a long chain", certificate: long(w.ca.Issue(t, dns), maxCertificates), who: "agent:dns", method: MethodTLSClientAuth},

		// client_id.
		{clause: "§2", name: "client_id of another", certificate: w.ca.Issue(t, dns), clientID: "agent:uri"},
		{clause: "§2", name: "client_id of one with keys", certificate: w.ca.Issue(t, dns), clientID: "agent:planner"},
		{clause: "§2", name: "client_id of nobody", certificate: w.ca.Issue(t, dns), clientID: "agent:nobody"},
		{clause: "§2", name: "names of two clients", certificate: w.ca.Issue(t, dns, addresses("192.0.2.7"))},
		{clause: "§2", name: "names of two clients and client_id", certificate: w.ca.Issue(t, dns, addresses("192.0.2.7")), clientID: "agent:ip", who: "agent:ip", method: MethodTLSClientAuth},

		// §2.2: registered certificates.
		{clause: "§2.2.2", name: "registered as PEM", certificate: w.own, who: "agent:own", method: MethodSelfSignedTLS},
		{clause: "§2.2.2", name: "registered by x5c", certificate: w.x5c, who: "agent:x5c", method: MethodSelfSignedTLS},
		{clause: "§2.2", name: "not registered", certificate: certtest.SelfSigned(t)},
		{clause: "§2.2", name: "of the registered key, and not registered", certificate: certtest.Again(t, w.own)},
		{clause: "§2.2", name: "registered for another", certificate: w.own, clientID: "agent:x5c"},

		// SPIFFE X509-SVID.
		{clause: "X509-SVID", name: "workload", certificate: w.prod.SVID(t, workload), who: "agent:prod/agents/planner", method: MethodX509SVID},
		{clause: "X509-SVID", name: "workload and client_id", certificate: w.prod.SVID(t, workload), clientID: "agent:prod/agents/planner", who: "agent:prod/agents/planner", method: MethodX509SVID},
		{clause: "X509-SVID", name: "federated workload", certificate: w.partner.SVID(t, "spiffe://partner.example/agents/planner"), who: "agent:partner/agents/planner", method: MethodX509SVID},
		{clause: "X509-SVID §4.1", name: "an intermediate authority", certificate: w.prod.Intermediate(t, "region").SVID(t, workload), who: "agent:prod/agents/planner", method: MethodX509SVID},
		{clause: "X509-SVID §4.4", name: "without extended usages", certificate: w.prod.SVID(t, workload, usages()), who: "agent:prod/agents/planner", method: MethodX509SVID},
		{clause: "X509-SVID", name: "a DNS name beside", certificate: w.prod.SVID(t, workload, certtest.DNS("planner.internal")), who: "agent:prod/agents/planner", method: MethodX509SVID},
		{clause: "X509-SVID §2", name: "two URIs", certificate: w.prod.SVID(t, workload, certtest.URI("https://x.example"))},
		{clause: "X509-SVID §2", name: "two SPIFFE IDs", certificate: w.prod.SVID(t, workload, certtest.URI("spiffe://prod.example/other"))},
		{clause: "X509-SVID §2", name: "an ID that is no SPIFFE ID", certificate: w.prod.Issue(t, names(t, name(6, "spiffe://prod.example/agents/planner#")))},
		{clause: "X509-SVID §2", name: "an ID with encoding", certificate: w.prod.Issue(t, names(t, name(6, "spiffe://prod.example/agents/%70lanner")))},
		{clause: "X509-SVID §2", name: "an ID with dots", certificate: w.prod.Issue(t, names(t, name(6, "spiffe://prod.example/x/../agents/planner")))},
		{clause: "X509-SVID §2", name: "the trust domain itself", certificate: w.prod.SVID(t, "spiffe://prod.example")},
		{clause: "X509-SVID §5", name: "a foreign trust domain", certificate: certtest.NewCA(t, "x").SVID(t, "spiffe://unknown.example/agents/planner")},
		{clause: "X509-SVID §5", name: "another trust domain's authority", certificate: w.partner.SVID(t, workload), rule: noBundle},
		{clause: "X509-SVID §5", name: "the clients' authority", certificate: w.ca.SVID(t, workload), rule: noBundle},
		{clause: "X509-SVID §5", name: "nobody's authority", certificate: certtest.SelfSigned(t, certtest.URI(workload)), rule: noBundle},
		{clause: "X509-SVID §5", name: "expired", certificate: w.prod.SVID(t, workload, past), rule: noBundle},
		{clause: "X509-SVID §5", name: "not valid yet", certificate: w.prod.SVID(t, workload, future), rule: noBundle},
		{clause: "X509-SVID §4.2", name: "an authority itself", certificate: w.prod.SVID(t, workload, func(c *x509.Certificate) { c.IsCA = true }), rule: noBundle},
		{clause: "X509-SVID §4.3", name: "a key that signs certificates", certificate: w.prod.SVID(t, workload, keyUsage(x509.KeyUsageDigitalSignature|x509.KeyUsageCertSign)), rule: noBundle},
		{clause: "X509-SVID §4.3", name: "a key that signs nothing", certificate: w.prod.SVID(t, workload, keyUsage(0)), rule: "the SVID's key is not for signatures"},
		{clause: "X509-SVID §4.4", name: "for servers only", certificate: w.prod.SVID(t, workload, usages(x509.ExtKeyUsageServerAuth)), rule: "the SVID is not for client authentication"},
		{clause: "X509-SVID", name: "a weak key", certificate: weak(w.prod, certtest.URI(workload)), rule: weakKey},
		{clause: "X509-SVID", name: "an SVID as client's certificate", certificate: w.prod.SVID(t, workload, dns), clientID: "agent:dns", rule: noAuthority},
	} {
		t.Run(c.clause+" "+c.name, func(t *testing.T) {
			chain := certtest.Chain(t, c.certificate)
			got, err := w.Certificate(t.Context(), chain, c.clientID)
			if c.who != "" {
				if want := (Caller{Principal: c.who, Method: c.method, Key: CertificateThumbprint(chain[0])}); err != nil || got != want {
					t.Fatalf("%+v, %v; want %+v", got, err, want)
				}
				if !w.Knows(chain) {
					t.Error("nobody knows it")
				}
				return
			}
			wantReason(t, err, delegation.ClientUnauthenticated, "")
			if got != (Caller{}) {
				t.Errorf("%+v beside an error", got)
			}
			if _, strange := w.Certificate(t.Context(), certtest.Chain(t, certtest.SelfSigned(t)), ""); strange.Error() != err.Error() {
				t.Errorf("it can be told from an unknown one: %q, %q", err, strange)
			}
			if c.rule != "" {
				wantCause(t, err, c.rule)
			}
		})
	}
	if pool(nil) == nil {
		t.Error("nobody trusted means everybody that the machine trusts")
	}
	if w.Knows(nil) || w.Knows(certtest.Chain(t, certtest.SelfSigned(t, certtest.DNS("nobody.example")))) {
		t.Error("a stranger is known")
	}
	if log := w.log.text.String(); log != "" {
		t.Errorf("logged: %s", log)
	}
}

// without returns the leaf alone.
func without(c tls.Certificate) tls.Certificate { c.Certificate = c.Certificate[:1]; return c }

func padding(n int) certtest.Change {
	return func(c *x509.Certificate) {
		c.ExtraExtensions = append(c.ExtraExtensions, pkix.Extension{Id: asn1.ObjectIdentifier{1, 2, 3}, Value: make([]byte, n)})
	}
}

func weakKey(t testing.TB) *ecdsa.PrivateKey {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P224(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	return key
}

// Registered certificates have a period of validity, and no chain.
func TestRegisteredCertificateExpires(t *testing.T) {
	w := newCertWorld(t)
	chain := certtest.Chain(t, w.own)
	for name, at := range map[string]time.Time{"expired": w.own.Leaf.NotAfter.Add(time.Second), "not valid yet": w.own.Leaf.NotBefore.Add(-time.Second)} {
		t.Run(name, func(t *testing.T) {
			w.now = func() time.Time { return at }
			_, err := w.Certificate(t.Context(), chain, "")
			wantReason(t, err, delegation.ClientUnauthenticated, "")
			wantCause(t, err, "not valid now")
		})
	}
	for _, at := range []time.Time{w.own.Leaf.NotAfter, w.own.Leaf.NotBefore} {
		w.now = func() time.Time { return at }
		if _, err := w.Certificate(t.Context(), chain, ""); err != nil {
			t.Errorf("refused at %v: %v", at, err)
		}
	}
}

// A removed certificate is refused within a minute, also where only requests load the file.
func TestRemovedCertificateWithoutRun(t *testing.T) {
	w := newCertWorld(t)
	w.file(t, "own.pem", certtest.PEM(certtest.SelfSigned(t).Leaf))
	// The control.
	if _, err := w.Certificate(t.Context(), certtest.Chain(t, w.own), ""); err != nil {
		t.Fatal(err)
	}
	w.clock.advance(time.Minute)
	_, err := w.Certificate(t.Context(), certtest.Chain(t, w.own), "")
	wantReason(t, err, delegation.ClientUnauthenticated, "")
	wantCause(t, err, "not registered any more")
}

// In files of every kind, while Run keeps them fresh, a removed certificate is refused within a
// minute, and an added one is accepted by then.
func TestCertificatesRotate(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newCertWorld(t)
		w.clock.live = true
		// The time of the bubble is not that of the machine: this test verifies who is trusted, not
		// when.
		at := time.Now()
		w.now = func() time.Time { return at }
		nextCA, nextProd := certtest.NewCA(t, "next"), certtest.NewCA(t, "next")
		nextOwn := certtest.SelfSigned(t)
		go func() { _ = w.Run(t.Context()) }()
		authenticates := func(c tls.Certificate) bool {
			t.Helper()
			_, err := w.Certificate(t.Context(), certtest.Chain(t, c), "")
			return err == nil
		}
		pairs := map[string][2]tls.Certificate{
			"authority":  {w.ca.Issue(t, certtest.DNS("client.example")), nextCA.Issue(t, certtest.DNS("client.example"))},
			"registered": {w.own, nextOwn},
			"bundle":     {w.prod.SVID(t, "spiffe://prod.example/a"), nextProd.SVID(t, "spiffe://prod.example/a")},
			"pem bundle": {w.partner.SVID(t, "spiffe://partner.example/a"), nextProd.SVID(t, "spiffe://partner.example/a")},
		}
		expect := func(when string, old, next bool) {
			t.Helper()
			synctest.Wait()
			for name, pair := range pairs {
				if authenticates(pair[0]) != old || authenticates(pair[1]) != next {
					t.Errorf("%s, %s: the old one %v, the new one %v", when, name, !old, !next)
				}
			}
		}
		expect("at first", true, false)
		w.file(t, "ca.pem", append(certtest.PEM(w.ca.Certificate), certtest.PEM(nextCA.Certificate)...))
		w.file(t, "own.pem", certtest.PEM(w.own.Leaf, nextOwn.Leaf))
		w.file(t, "prod.json", bundleOf(t, []*certtest.CA{w.prod, nextProd}))
		w.file(t, "partner.pem", certtest.PEM(w.partner.Certificate, nextProd.Certificate))
		time.Sleep(time.Minute)
		expect("while both are there", true, true)
		w.file(t, "ca.pem", certtest.PEM(nextCA.Certificate))
		w.file(t, "own.pem", certtest.PEM(nextOwn.Leaf))
		w.file(t, "prod.json", bundleOf(t, []*certtest.CA{nextProd}))
		w.file(t, "partner.pem", certtest.PEM(nextProd.Certificate))
		expect("before it is read again (the control)", true, true)
		time.Sleep(time.Minute)
		expect("a minute after its removal", false, true)

		// A truncated file is ignored: the loaded certificates stay. An empty file is intended.
		for _, half := range [][]byte{certtest.PEM(w.ca.Certificate)[:300], []byte(`{"keys":[`), []byte(string(certtest.PEM(w.ca.Certificate)[:300]) + "\n" + string(certtest.PEM(w.ca.Certificate)))} {
			for _, name := range []string{"ca.pem", "own.pem", "prod.json", "partner.pem"} {
				w.file(t, name, half)
			}
			time.Sleep(time.Minute)
			expect("half a file", false, true)
		}
		for name, nothing := range map[string]string{"ca.pem": "", "own.pem": "", "prod.json": `{"keys":[]}`, "partner.pem": ""} {
			w.file(t, name, []byte(nothing))
		}
		time.Sleep(time.Minute)
		expect("an empty file", false, false)
		if strings.Contains(w.log.text.String(), "CERTIFICATE") {
			t.Error(w.log.text.String())
		}
	})
}

// A missing file's certificates are used as long as an issuer's keys, and then no longer.
func TestAuthoritiesThatCannotBeRead(t *testing.T) {
	w := newCertWorld(t)
	chain := certtest.Chain(t, w.ca.Issue(t, certtest.DNS("client.example"), certtest.Valid(time.Now().Add(-time.Hour), time.Now().AddDate(0, 0, 1))))
	w.authorities.load = nil
	if _, err := w.Certificate(t.Context(), chain, ""); err != nil {
		t.Fatal(err)
	}
	source := w.authorities
	// JSON, which is not PEM.
	source.load = w.domains[spiffeid.RequireTrustDomainFromString("prod.example")].bundle.load
	w.clock.advance(source.timing.keep - time.Second)
	if _, err := w.Certificate(t.Context(), chain, ""); err != nil {
		t.Errorf("the last good ones do not serve: %v", err)
	}
	w.clock.advance(time.Second)
	_, err := w.Certificate(t.Context(), chain, "")
	wantReason(t, err, delegation.DependencyDown, "")
}

func TestCertificateSettings(t *testing.T) {
	w := newCertWorld(t)
	other := certtest.SelfSigned(t)
	swapped := bytes.Replace(x5cSet(t, w.x5c), []byte(base64.StdEncoding.EncodeToString(w.x5c.Certificate[0])), []byte(base64.StdEncoding.EncodeToString(other.Certificate[0])), 1)
	leafBundle := w.file(t, "leaf.pem", certtest.PEM(other.Leaf))
	weak := certtest.SelfSignedBy(t, weakKey(t))
	client := func(s ClientTLS) func(*TrustConfig) {
		return func(c *TrustConfig) { c.Clients = []Client{{ID: "agent:x", TLS: &s}} }
	}
	two := func(a, b ClientTLS) func(*TrustConfig) {
		return func(c *TrustConfig) { c.Clients = []Client{{ID: "agent:x", TLS: &a}, {ID: "agent:y", TLS: &b}} }
	}
	domains := func(d ...TrustDomain) func(*TrustConfig) {
		return func(c *TrustConfig) { c.TrustDomains = d }
	}
	pem := filepath.Join(w.dir, "partner.pem")
	good := TrustDomain{Name: "a.example", BundleFile: pem, Principal: Mapping{Type: "agent", Prefix: "a/"}}
	with := func(change func(*TrustDomain)) TrustDomain { d := good; change(&d); return d }
	for _, c := range []struct {
		name         string
		change       func(*TrustConfig)
		field, words string // "": it is accepted
	}{
		{"nothing", client(ClientTLS{}), "clients[0].tls", "exactly one"},
		{"two", client(ClientTLS{SANDNS: "a", SANIP: "192.0.2.1"}), "clients[0].tls", "exactly one"},
		{"no authorities", func(c *TrustConfig) { client(ClientTLS{SANDNS: "a.example"})(c); c.ClientCAFile = "" }, "clients[0].tls", "client_ca_file"},
		{"registered, no authorities", func(c *TrustConfig) { client(ClientTLS{CertificatesFile: w.registered})(c); c.ClientCAFile = "" }, "", ""},
		{"wildcard", client(ClientTLS{SANDNS: "*.example"}), "clients[0].tls.san_dns", "wildcards"},
		{"upper case", client(ClientTLS{SANDNS: "A.example"}), "clients[0].tls.san_dns", "lower case"},
		{"relative URI", client(ClientTLS{SANURI: "/a"}), "clients[0].tls.san_uri", "absolute"},
		{"SPIFFE ID", client(ClientTLS{SANURI: "Spiffe://a/b"}), "clients[0].tls.san_uri", "under spiffe"},
		{"no address", client(ClientTLS{SANIP: "a.example"}), "clients[0].tls.san_ip", "IP address"},
		{"address with a zone", client(ClientTLS{SANIP: "fe80::1%eth0"}), "clients[0].tls.san_ip", "IP address"},
		{"display name", client(ClientTLS{SANEmail: "A <a@b.example>"}), "clients[0].tls.san_email", "e-mail"},
		{"DN with spaces", client(ClientTLS{SubjectDN: "CN=a, O=b"}), "clients[0].tls.subject_dn", "RFC 4514"},
		{"DN with slashes", client(ClientTLS{SubjectDN: "/O=b/CN=a"}), "clients[0].tls.subject_dn", "RFC 4514"},
		{"DN with an unknown name", client(ClientTLS{SubjectDN: "emailAddress=a"}), "clients[0].tls.subject_dn", "RFC 4514"},
		{"DN with escapes", client(ClientTLS{SubjectDN: `CN=\#a\, b\ ,1.2.840.113549.1.9.1=#1601ff+OU=ü`}), "", ""},
		{"one name twice", two(ClientTLS{SANDNS: "a.example"}, ClientTLS{SANDNS: "a.example"}), "clients[1].tls", "agent:x"},
		{"one address twice", two(ClientTLS{SANIP: "2001:db8::1"}, ClientTLS{SANIP: "2001:DB8:0::1"}), "clients[1].tls", "agent:x"},
		{"one certificate twice", two(ClientTLS{CertificatesFile: w.registered}, ClientTLS{CertificatesFile: w.registered}), "clients[1].tls", "agent:x"},
		{"no file", client(ClientTLS{CertificatesFile: "nowhere"}), "clients[0].tls.certificates_file", "nowhere"},
		{"a key in the file", client(ClientTLS{CertificatesFile: w.file(t, "key.pem", []byte("-----BEGIN PRIVATE KEY-----\nAAAA\n-----END PRIVATE KEY-----\n"))}), "clients[0].tls.certificates_file", "nothing else"},
		{"empty file", client(ClientTLS{CertificatesFile: w.file(t, "empty", nil)}), "clients[0].tls.certificates_file", "have 0"},
		{"weak certificate", client(ClientTLS{CertificatesFile: w.file(t, "weak.pem", certtest.PEM(weak.Leaf))}), "clients[0].tls.certificates_file", "too weak"},
		{"x5c of another key", client(ClientTLS{CertificatesFile: w.file(t, "swapped.json", swapped)}), "clients[0].tls.certificates_file", "another key"},
		{"JWK without x5c", client(ClientTLS{CertificatesFile: w.file(t, "bare.json", []byte(jwks(t, w.agent)))}), "clients[0].tls.certificates_file", "no x5c"},
		{"keys beside", func(c *TrustConfig) {
			c.Clients = []Client{{ID: "agent:x", TLS: &ClientTLS{SANDNS: "a.example"}, Keys: KeySource{JWKS: jwks(t, w.agent)}, Algorithms: []string{"ES256"}}}
		}, "", ""},
		{"algorithms without keys", func(c *TrustConfig) {
			c.Clients = []Client{{ID: "agent:x", TLS: &ClientTLS{SANDNS: "a.example"}, Algorithms: []string{"ES256"}}}
		}, "clients[0].keys", "exactly one"},
		{"neither", func(c *TrustConfig) { c.Clients = []Client{{ID: "agent:x"}} }, "clients[0].algorithms", "missing"},
		{"authorities that are none", func(c *TrustConfig) { c.ClientCAFile = leafBundle }, "client_ca_file", "not an authority's"},
		{"trust domain", domains(good), "", ""},
		{"trust domain as ID", domains(with(func(d *TrustDomain) { d.Name = "spiffe://a.example" })), "spiffe[0].trust_domain", "bare name"},
		{"trust domain in upper case", domains(with(func(d *TrustDomain) { d.Name = "A.example" })), "spiffe[0].trust_domain", "bare name"},
		{"trust domain twice", domains(good, with(func(d *TrustDomain) { d.Principal.Prefix = "b/" })), "spiffe[1].trust_domain", "twice"},
		{"no bundle", domains(with(func(d *TrustDomain) { d.BundleFile = "" })), "spiffe[0].bundle_file", "missing"},
		{"a bundle of nothing", domains(with(func(d *TrustDomain) { d.BundleFile = w.file(t, "none.json", []byte(`{"keys":[]}`)) })), "spiffe[0].bundle_file", "have 0"},
		{"no bundle at all", domains(with(func(d *TrustDomain) { d.BundleFile = w.file(t, "no.json", []byte(`{"a":1}`)) })), "spiffe[0].bundle_file", "not a SPIFFE bundle"},
		{"leaf as authority", domains(with(func(d *TrustDomain) { d.BundleFile = leafBundle })), "spiffe[0].bundle_file", "not an authority's"},
		{"claim", domains(with(func(d *TrustDomain) { d.Principal.Claim = "sub" })), "spiffe[0].principal.claim", "cannot be chosen"},
		{"conditions", domains(with(func(d *TrustDomain) { d.Principal.When = []Condition{{Claim: "aud", Values: []string{"x"}}} })), "spiffe[0].principal.when", "no meaning"},
		{"no type", domains(with(func(d *TrustDomain) { d.Principal.Type = "" })), "spiffe[0].principal", "type"},
		{"principals of a client", domains(with(func(d *TrustDomain) { d.Principal.Prefix = "" })), "spiffe[0].principal", "same principals"},
		{"principals of an issuer", domains(with(func(d *TrustDomain) { d.Principal.Prefix = "spire/x" })), "spiffe[0].principal", "same principals"},
		{"principals of another trust domain", domains(good, with(func(d *TrustDomain) { d.Name, d.Principal.Prefix = "b.example", "a/b" })), "spiffe[1].principal", "same principals"},
	} {
		t.Run(c.name, func(t *testing.T) {
			config := w.config
			c.change(&config)
			_, err := NewTrust(config)
			if c.field == "" {
				if err != nil {
					t.Errorf("refused: %v", err)
				}
				return
			}
			wantReason(t, err, delegation.ParameterInvalid, c.words)
			if field := delegation.AsError(err).Field; field != c.field {
				t.Errorf("field %q, want %q", field, c.field)
			}
		})
	}
}

// A JWT-SVID is a workload's token that no configured issuer issued.
func TestJWTSVID(t *testing.T) {
	prod, partner := newTestKey(t, "ES256", "p1"), newTestKey(t, "RS256", "p1")
	edwards := newTestKey(t, "EdDSA", "p2")
	w := newCertWorld(t, func(c *TrustConfig) {
		for i, key := range []testKey{prod, partner} {
			path := filepath.Join(t.TempDir(), "bundle.json")
			certtest.Write(t, path, bundleOf(t, nil, key))
			c.TrustDomains[i].BundleFile = path
		}
	})
	claims := object{"sub": "spiffe://prod.example/agents/planner", "aud": []string{tenantIssuer}, "exp": w.seconds(5 * time.Minute), "iat": w.seconds(0)}
	actor := delegation.ActorAudience(tenantIssuer)
	for _, c := range []struct {
		name   string
		key    testKey
		typ    string
		change object
		header object
		who    delegation.Principal
	}{
		{name: "caller", who: "agent:prod/agents/planner"},
		{name: "typ JWT", typ: "JWT", who: "agent:prod/agents/planner"},
		{name: "typ JOSE", typ: "JOSE", who: "agent:prod/agents/planner"},
		{name: "actor", change: object{"aud": actor}, who: "agent:prod/agents/planner"},
		{name: "federated", key: partner, change: object{"sub": "spiffe://partner.example/x"}, who: "agent:partner/x"},
		{name: "an iss that nobody is", change: object{"iss": "https://spire.prod.example"}, who: "agent:prod/agents/planner"},
		{name: "an iss that somebody is", change: object{"iss": idpIssuer}},
		{name: "a client as iss", change: object{"iss": "agent:planner"}},
		{name: "ourselves as iss", change: object{"iss": tenantIssuer}},
		{name: "the other trust domain's key", key: partner},
		{name: "the other trust domain's ID", change: object{"sub": "spiffe://partner.example/x"}},
		{name: "a foreign trust domain", change: object{"sub": "spiffe://unknown.example/x"}},
		{name: "the trust domain itself", change: object{"sub": "spiffe://prod.example"}},
		{name: "an ID that is none", change: object{"sub": "spiffe://prod.example/a/../b"}},
		{name: "two audiences", change: object{"aud": []string{tenantIssuer, "https://other.example"}}},
		{name: "another audience", change: object{"aud": "https://other.example"}},
		{name: "no audience", change: object{"aud": nil}},
		{name: "no sub", change: object{"sub": nil}},
		{name: "expired", change: object{"exp": w.seconds(0), "iat": w.seconds(-time.Minute)}},
		{name: "never expires", change: object{"exp": nil}},
		{name: "of tomorrow", change: object{"nbf": w.seconds(time.Minute)}},
		{name: "access token", typ: "at+jwt"},
		{name: "an unknown key", key: edwards},
		{name: "another key under the kid", header: object{"kid": "p1"}, key: newTestKey(t, "ES256", "p1")},
		{name: "another algorithm", header: object{"alg": "ES384"}},
		{name: "delegated", change: object{"act": object{"sub": "x"}}},
		{name: "bound to what nobody understands", change: object{"cnf": object{"jku": "https://x.example"}}},
	} {
		t.Run(c.name, func(t *testing.T) {
			key := prod
			if c.key.private != nil {
				key = c.key
			}
			token := key.sign(t, c.typ, claims.with(c.change), c.header)
			names := c.change["aud"] == actor
			got, err := w.Actor(t.Context(), token, delegation.TokenTypeJWT)
			if want := (Actor{Principal: c.who, Method: MethodJWTSVID, Authenticates: !names}); c.who != "" && (err != nil || got != want) {
				t.Errorf("actor: %+v, %v", got, err)
			} else if c.who == "" && err == nil {
				t.Errorf("actor: %+v", got)
			}
			caller, err := w.Bearer(t.Context(), token)
			if c.who != "" && !names {
				if want := (Caller{Principal: c.who, Method: MethodJWTSVID}); err != nil || caller != want {
					t.Errorf("caller: %+v, %v", caller, err)
				}
			} else {
				wantReason(t, err, delegation.ClientUnauthenticated, "")
			}
			if c.who != "" {
				if _, err := w.Actor(t.Context(), token, delegation.TokenTypeAccessToken); err == nil {
					t.Error("it passes for an access token")
				}
				if _, err := w.Subject(t.Context(), token, delegation.TokenTypeJWT); err == nil {
					t.Error("it is a subject")
				}
			}
		})
	}
	thumbprint := strings.Repeat("A", 43)
	bound, err := w.Bearer(t.Context(), prod.sign(t, "", claims.with(object{"cnf": object{"x5t#S256": thumbprint}})))
	if err != nil || bound.Confirmation == nil || *bound.Confirmation != (delegation.Confirmation{X5T: thumbprint}) {
		t.Errorf("a bound one: %+v, %v", bound, err)
	}
	t.Run("forged", func(t *testing.T) {
		forged := newTestKey(t, "ES256", "p1").sign(t, "", claims)
		if _, err := w.Actor(t.Context(), forged, delegation.TokenTypeJWT); err == nil {
			t.Error("it names an actor")
		}
	})
}

// Only a presenter with an SVID of a trust domain learns that the domain is configured: a forged
// one breaks the same rule in a configured domain and in any other, and costs as much.
func TestForgedSVIDsTellNoTrustDomain(t *testing.T) {
	prod := newTestKey(t, "ES256", "p1")
	w := newCertWorld(t, func(c *TrustConfig) {
		path := filepath.Join(t.TempDir(), "bundle.json")
		certtest.Write(t, path, bundleOf(t, nil, prod))
		c.TrustDomains[0].BundleFile = path
	})
	checked := w.counted()
	asked := 0
	for _, kid := range []string{"p1", "p2"} {
		forger := newTestKey(t, "ES256", kid)
		for _, id := range []string{"spiffe://prod.example/agents/planner", "spiffe://unknown.example/agents/planner"} {
			for _, typ := range []string{"JWT", "at+jwt"} {
				for _, iss := range []any{"https://spire.unlisted.example", nil} {
					for _, tokenType := range []string{delegation.TokenTypeJWT, delegation.TokenTypeAccessToken} {
						forged := forger.sign(t, typ, object{"sub": id, "aud": "elsewhere", "exp": 1}.with(object{"iss": iss}))
						_, err := w.Actor(t.Context(), forged, tokenType)
						if asked++; err == nil || err.Error() != NamesNobody().Error() || checked.total() != asked {
							t.Errorf("%s, kid %s, typ %s, iss %v, as %s: %v, %d verifications", id, kid, typ, iss, tokenType, err, checked.total())
						}
					}
				}
			}
		}
	}
}

// A registered certificate can bind its client's tokens. A certificate that counts by its name is
// unknown before it is presented.
func TestRegisteredCertificates(t *testing.T) {
	w := newCertWorld(t)
	own, named := CertificateThumbprint(w.own.Leaf), CertificateThumbprint(w.ca.Issue(t, certtest.DNS("client.example")).Leaf)
	key, err := thumbprintOf(w.agent.private.Public())
	if err != nil {
		t.Fatal(err)
	}
	for _, c := range []struct {
		who        delegation.Principal
		thumbprint string
		want       delegation.Confirmation
	}{
		{"agent:own", own, delegation.Confirmation{X5T: own}},
		{"agent:planner", key, delegation.Confirmation{JKT: key}},
		{"agent:planner", own, delegation.Confirmation{}},
		{"agent:own", key, delegation.Confirmation{}},
		{"agent:own", "", delegation.Confirmation{}},
		{"agent:x5c", own, delegation.Confirmation{}},
		{"agent:dns", named, delegation.Confirmation{}},
		{"agent:dns", "", delegation.Confirmation{}},
		{"agent:nobody", own, delegation.Confirmation{}},
	} {
		if got := w.Binding(c.who, c.thumbprint); got != c.want || w.Registered(c.who, c.thumbprint) != (c.want != delegation.Confirmation{}) {
			t.Errorf("%s, %s: %+v", c.who, c.thumbprint, got)
		}
	}
}

// Two different names never have one string.
func TestDistinguishedNames(t *testing.T) {
	type relative = pkix.RelativeDistinguishedNameSET
	cn, o, email := asn1.ObjectIdentifier{2, 5, 4, 3}, asn1.ObjectIdentifier{2, 5, 4, 10}, asn1.ObjectIdentifier{1, 2, 840, 113549, 1, 9, 1}
	for want, sequence := range map[string]pkix.RDNSequence{
		`CN=a,O=b`:                 {relative{part(o, "b")}, relative{part(cn, "a")}},
		`CN=a+O=b`:                 {relative{part(cn, "a"), part(o, "b")}},
		`CN=a\,O=b`:                {relative{part(cn, "a,O=b")}},
		`CN=a\+O=b`:                {relative{part(cn, "a+O=b")}},
		`CN=\ a\ `:                 {relative{part(cn, " a ")}},
		`CN=\#a#\"\\\<\>\;`:        {relative{part(cn, `#a#"\<>;`)}},
		`CN=Zoë Müller`:            {relative{part(cn, "Zoë Müller")}},
		`CN=a b`:                   {relative{part(cn, "a b")}},
		`1.2.840.113549.1.9.1=#13`: {relative{part(email, "a@b")}},
		"":                         {relative{part(cn, "a\x00b")}},
	} {
		der, err := asn1.Marshal(sequence)
		if err != nil {
			t.Fatal(err)
		}
		got, comparable := distinguishedName(der)
		if strings.HasSuffix(want, "#13") { // Go chooses the kind of string
			if !strings.HasPrefix(got, "1.2.840.113549.1.9.1=#") || !strings.HasSuffix(got, "03614062") {
				t.Errorf("got %s", got)
			}
			want = got
		}
		if got != want || comparable != (want != "") || want != "" && !subjectDN.MatchString(got) {
			t.Errorf("%q (%v), want %q, which can be configured: %v", got, comparable, want, subjectDN.MatchString(got))
		}
	}
	number, err := asn1.Marshal(pkix.RDNSequence{relative{{Type: cn, Value: 65}}})
	if err != nil {
		t.Fatal(err)
	}
	for what, der := range map[string][]byte{"an empty name": {0x30, 0}, "a number": number, "no name": {0x04, 0}} {
		if name, comparable := distinguishedName(der); comparable {
			t.Errorf("%s is the name %q", what, name)
		}
	}
}
