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

// MethodJWTSVID is how a workload is proven by a token of its trust domain (SPIFFE JWT-SVID).
const MethodJWTSVID = "jwt_svid"

// TrustDomain says whose SPIFFE identities are believed: X.509-SVIDs as client certificates, JWT-SVIDs
// as credentials of callers (aud the tenant's issuer) and as actor tokens (aud the actor audience).
// Several trust domains are federated by listing each with its own bundle.
type TrustDomain struct {
	// Name of the trust domain, such as prod.acme.example. Required. A trust domain belongs to one tenant.
	Name string `yaml:"trust_domain"`
	// BundleFile holds the trust domain's authorities: a SPIFFE bundle (JSON), or X.509 authorities alone
	// as PEM. Read again every 45 s; what was removed is refused within 60 s. Required.
	BundleFile string `yaml:"bundle_file"`
	// Principal makes principals of SPIFFE IDs: Type, a colon, and the percent-encoding of Prefix followed
	// by the path without its first slash. spiffe://prod.acme.example/agents/planner becomes
	// agent:agents/planner. Claim cannot be chosen, and there are no conditions. Required.
	Principal Mapping `yaml:"principal"`
	// SharedPrincipals accepts that another source, which must say so too, is able to yield the same
	// principals. Danger: either can then speak for the other's.
	SharedPrincipals bool `yaml:"shared_principals"`
}

// domain is a TrustDomain that was checked.
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
		return nil, fault(path+".principal.when", "has no meaning: a SPIFFE ID is all that an SVID says of its workload")
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

// parseBundle reads a SPIFFE bundle or a PEM bundle of X.509 authorities. What is meant for other
// purposes is passed over.
func (d *domain) parseBundle(data []byte) (*keyring, []string, error) {
	if !bytes.HasPrefix(bytes.TrimSpace(data), []byte("{")) {
		return parseAuthorities(data)
	}
	bundle, err := spiffebundle.Parse(d.name, data)
	if err != nil || !jsontext.Value(data).IsValid() { // which finds what stands twice
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

// svidKey fixes the one algorithm of a JWT authority, as a bundle need not name any: that of its curve,
// and RS256 for RSA.
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

// principal makes the principal of a SPIFFE ID. A trust domain's own ID, which has no path, is no
// workload's.
func (d *domain) principal(id spiffeid.ID) (delegation.Principal, error) {
	path, isWorkload := strings.CutPrefix(id.Path(), "/")
	if !isWorkload {
		return "", broken("the SPIFFE ID names no workload")
	}
	return d.mapping.principal(path)
}

// domainOf finds the trust domain of a certificate that has exactly one URI name and whose name is a
// SPIFFE ID (X509-SVID §2).
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
// authorities alone and at our time.
func (t *Trust) svidOf(d *domain, claimed spiffeid.ID) func(context.Context, []*x509.Certificate) error {
	return func(ctx context.Context, chain []*x509.Certificate) error {
		held, err := d.bundle.holding(ctx)
		if err != nil {
			return err
		}
		if err := t.svidLeaf(chain[0]); err != nil {
			return err
		}
		id, err := t.verifySVID(chain, x509bundle.FromX509Authorities(d.name, held.all()), x509svid.WithTime(t.now()))
		if err != nil || id != claimed {
			return broken("the SVID does not lead to its trust domain's authorities, or is not valid now")
		}
		return nil
	}
}

// svidLeaf is what go-spiffe does not ask of an X.509-SVID.
func svidLeaf(c *x509.Certificate) error {
	switch {
	case c.KeyUsage&x509.KeyUsageDigitalSignature == 0: // §4.3
		return broken("the SVID's key is not for signatures")
	case len(c.ExtKeyUsage)+len(c.UnknownExtKeyUsage) > 0 && !slices.Contains(c.ExtKeyUsage, x509.ExtKeyUsageClientAuth): // §4.4
		return broken("the SVID is not for client authentication")
	}
	return signs(c)
}

func verifySVID(chain []*x509.Certificate, bundle x509bundle.Source, o ...x509svid.VerifyOption) (spiffeid.ID, error) {
	id, _, err := x509svid.Verify(chain, bundle, o...)
	return id, err
}

// svid takes a JWT-SVID as it takes any workload's token. Its issuer is nobody that is configured: the
// trust domain of its sub says with whose keys it is verified, and never with others.
func (t *Trust) svid(ctx context.Context, d *domain, p presented, tokenType string) (Actor, error) {
	if _, err := t.namedBy(ctx, d.bundle, p); err != nil {
		return Actor{}, err
	}
	if tokenType != delegation.TokenTypeJWT {
		return Actor{}, broken("a JWT-SVID is of token type jwt")
	}
	if !t.typFits(typRule{typAbsent, typJWT, typJOSE}, p.Header.Type) { // JWT-SVID §2.3
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

// svidDomain finds the trust domain of a token that no configured issuer or client issued, by its sub.
func (t *Trust) svidDomain(p presented) (*domain, bool) {
	if t.issuers[p.claims.Issuer] != nil || t.clients[p.claims.Issuer] != nil || p.claims.Issuer == t.issuer {
		return nil, false
	}
	d, _, known := t.domainOfID(p.claims.Subject)
	return d, known
}

// mayLackIssuer says whether the token's sub is a SPIFFE ID, in whichever trust domain: how a token is read
// tells nobody which are believed here, and is the same for all tenants that share a Memory. All other rules go
// by iss, and no rule is about the empty one.
func mayLackIssuer(u *delegation.Unverified) bool {
	sub, err := u.StringClaim("sub")
	if err != nil {
		return false
	}
	_, err = spiffeid.FromString(sub)
	return err == nil
}
