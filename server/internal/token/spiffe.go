package token

import (
	"bytes"
	"context"
	"crypto"
	"crypto/ecdsa"
	"crypto/rsa"
	"crypto/x509"
	"errors"
	"fmt"
	"slices"
	"strings"

	"github.com/go-json-experiment/json/jsontext"
	"github.com/lestrrat-go/jwx/v2/jwa"
	"github.com/spiffe/go-spiffe/v2/bundle/spiffebundle"
	"github.com/spiffe/go-spiffe/v2/bundle/x509bundle"
	"github.com/spiffe/go-spiffe/v2/spiffeid"
	"github.com/spiffe/go-spiffe/v2/svid/x509svid"

	"deputy.example/deputy/client/delegation"
)

// MethodJWTSVID is the method by which a token of its trust domain proves a workload (SPIFFE
// JWT-SVID).
const MethodJWTSVID = "jwt_svid"

// TrustDomain configures a trust domain whose SPIFFE identities are accepted: X.509-SVIDs as client
// certificates, JWT-SVIDs as credentials of callers (aud is the tenant's issuer) and as actor
// tokens (aud is the actor audience). To federate several trust domains, list each with its own
// bundle.
type TrustDomain struct {
	// Name of the trust domain, such as prod.acme.example. Required. A trust domain belongs to one
	// tenant.
	Name string `yaml:"trust_domain"`
	// BundleFile holds the trust domain's authorities: a SPIFFE bundle (JSON), or X.509 authorities
	// alone as PEM. It is read again every 45 s, and a removed authority is refused within 60 s.
	// Required.
	BundleFile string `yaml:"bundle_file"`
	// Principal maps SPIFFE IDs to principals: Type, a colon, and the percent-encoding of Prefix
	// followed by the path without its first slash. spiffe://prod.acme.example/agents/planner
	// becomes agent:agents/planner. Claim cannot be chosen, and there are no conditions. Required.
	Principal Mapping `yaml:"principal"`
	// SharedPrincipals permits that another source, which must set it too, can yield the same
	// principals. Danger: either can then act as the principals of the other.
	SharedPrincipals bool `yaml:"shared_principals"`
}

// domain is a checked TrustDomain.
type domain struct {
	name    spiffeid.TrustDomain
	mapping Mapping
	bundle  *source
}

func (b *builder) domain(path string, c TrustDomain) (*domain, error) {
	name, err := spiffeid.TrustDomainFromString(c.Name)
	if err != nil || name.Name() != c.Name {
		return nil, fault(path+".trust_domain", "must be the bare name of a trust domain, such as prod.acme.example")
	}
	if c.Principal.Claim != "" {
		return nil, fault(path+".principal.claim", "cannot be chosen: a workload is named by its SPIFFE ID")
	}
	if len(c.Principal.When) > 0 {
		return nil, fault(path+".principal.when", "has no meaning: a SPIFFE ID is the only claim of an SVID about its workload")
	}
	own, err := c.Principal.realm(path+".principal", name.IDString(), c.SharedPrincipals)
	if err != nil {
		return nil, err
	}
	b.realms = append(b.realms, own)
	if c.BundleFile == "" {
		return nil, fault(path+".bundle_file", "missing: name the file of the trust domain's bundle")
	}
	d := &domain{name: name, mapping: c.Principal}
	d.bundle = b.newSource(c.Name, d.parseBundle)
	d.bundle.load = func(context.Context) ([]byte, error) { return readFile(c.BundleFile) }
	return d, d.bundle.loadNow(path+".bundle_file", d.bundle.load)
}

// parseBundle reads a SPIFFE bundle or a PEM bundle of X.509 authorities. Keys for other purposes
// are ignored.
func (d *domain) parseBundle(data []byte) (*keyring, []string, error) {
	if !bytes.HasPrefix(bytes.TrimSpace(data), []byte("{")) {
		return parseAuthorities(data)
	}
	bundle, err := spiffebundle.Parse(d.name, data)
	if err != nil || !jsontext.Value(data).IsValid() { // IsValid detects duplicate members
		return nil, nil, errors.New("is not a SPIFFE bundle")
	}
	var ignored []string
	var authorities []*x509.Certificate
	for i, c := range bundle.X509Authorities() {
		if err := isAuthority(c); err != nil {
			ignored = append(ignored, fmt.Sprintf("X.509 authority %d: %v", i+1, err))
			continue
		}
		authorities = append(authorities, c)
	}
	ring := newCertificates(authorities)
	ring.byID = make(map[string]*publicKey)
	for id, material := range bundle.JWTAuthorities() {
		key, err := svidKey(id, material)
		if err != nil {
			ignored = append(ignored, fmt.Sprintf("a JWT authority: %v", err))
			continue
		}
		ring.byID[key.id] = key
	}
	return ring, ignored, nil
}

// svidKey fixes the one algorithm of a JWT authority, as a bundle need not name any: the algorithm
// of its curve, and RS256 for RSA.
func svidKey(id string, material crypto.PublicKey) (*publicKey, error) {
	algorithm := jwa.NoSignature
	switch material := material.(type) {
	case *ecdsa.PublicKey:
		for _, a := range []jwa.SignatureAlgorithm{jwa.ES256, jwa.ES384, jwa.ES512} {
			if curveOf(a) == material.Curve {
				algorithm = a
			}
		}
	case *rsa.PublicKey:
		algorithm = jwa.RS256
	}
	if algorithm == jwa.NoSignature {
		return nil, errors.New("the kind of key is not supported")
	}
	return newPublicKey(id, algorithm, material)
}

// principal makes the principal of a SPIFFE ID. The ID of the trust domain itself has no path and
// names no workload.
func (d *domain) principal(id spiffeid.ID) (delegation.Principal, error) {
	path, isWorkload := strings.CutPrefix(id.Path(), "/")
	if !isWorkload {
		return "", broken("the SPIFFE ID names no workload")
	}
	return d.mapping.principal(path)
}

// domainOf finds the trust domain of a certificate with exactly one URI name, which is a SPIFFE ID
// (X509-SVID §2).
func (t *Trust) domainOf(names []string) (*domain, spiffeid.ID, bool) {
	uris := slices.DeleteFunc(slices.Clone(names), func(n string) bool { return !strings.HasPrefix(n, nameURI) })
	if len(uris) != 1 {
		return nil, spiffeid.ID{}, false
	}
	return t.domainOfID(strings.TrimPrefix(uris[0], nameURI))
}

func (t *Trust) domainOfID(text string) (*domain, spiffeid.ID, bool) {
	id, err := spiffeid.FromString(text)
	if err != nil {
		return nil, spiffeid.ID{}, false
	}
	d, known := t.domains[id.TrustDomain()]
	return d, id, known
}

// svidOf is SPIFFE X509-SVID §5: go-spiffe verifies path and form, against this trust domain's
// authorities alone and at the time of the tenant's clock.
func (t *Trust) svidOf(d *domain, claimed spiffeid.ID) func(context.Context, []*x509.Certificate) error {
	return func(ctx context.Context, chain []*x509.Certificate) error {
		held, err := d.bundle.holding(ctx)
		if err != nil {
			return err
		}
		if err := svidLeaf(chain[0]); err != nil {
			return err
		}
		id, _, err := x509svid.Verify(chain, x509bundle.FromX509Authorities(d.name, held.all()), x509svid.WithTime(t.now()))
		if err != nil || id != claimed {
			return broken("the SVID does not lead to its trust domain's authorities, or is not valid now")
		}
		return nil
	}
}

// svidLeaf checks the rules for an X.509-SVID that go-spiffe does not check.
func svidLeaf(c *x509.Certificate) error {
	switch {
	case c.KeyUsage&x509.KeyUsageDigitalSignature == 0: // §4.3
		return broken("the SVID's key is not for signatures")
	// §4.4
	case len(c.ExtKeyUsage)+len(c.UnknownExtKeyUsage) > 0 && !slices.Contains(c.ExtKeyUsage, x509.ExtKeyUsageClientAuth):
		return broken("the SVID is not for client authentication")
	}
	return signs(c)
}

// svid verifies a JWT-SVID as any workload's token. It needs no configured issuer: the trust domain
// of its sub selects the keys that verify it, and no other keys do.
func (t *Trust) svid(ctx context.Context, d *domain, p presented, tokenType string) (Actor, error) {
	if _, err := t.namedBy(ctx, d.bundle, p); err != nil {
		return Actor{}, err
	}
	if tokenType != delegation.TokenTypeJWT {
		return Actor{}, broken("a JWT-SVID is of token type jwt")
	}
	if !(typRule{typAbsent, typJWT, typJOSE}).fits(p.Header.Type) { // JWT-SVID §2.3
		return Actor{}, broken("its typ is not that of a JWT-SVID")
	}
	if err := t.timely(p.claims, t.skew); err != nil {
		return Actor{}, err
	}
	a, err := t.workloadOf(p)
	if err != nil {
		return Actor{}, err
	}
	_, id, _ := t.domainOfID(p.claims.Subject)
	a.Method = MethodJWTSVID
	a.Principal, err = d.principal(id)
	return a, err
}

// svidDomain finds the trust domain, by the sub, of a token that no configured issuer or client
// issued.
func (t *Trust) svidDomain(p presented) (*domain, bool) {
	if t.issuers[p.claims.Issuer] != nil || t.clients[p.claims.Issuer] != nil || p.claims.Issuer == t.issuer {
		return nil, false
	}
	d, _, known := t.domainOfID(p.claims.Subject)
	return d, known
}

// mayLackIssuer reports whether the token's sub is a SPIFFE ID of any trust domain. So the form of
// a token reveals nothing about the configured trust domains, and is the same for all tenants that
// share a Memory. All other rules use iss, and no rule matches an empty iss.
func mayLackIssuer(u *delegation.Unverified) bool {
	sub, err := u.StringClaim("sub")
	if err != nil {
		return false
	}
	_, err = spiffeid.FromString(sub)
	return err == nil
}
