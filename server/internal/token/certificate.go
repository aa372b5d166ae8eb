package token

import (
	"context"
	"crypto"
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/rsa"
	"crypto/sha256"
	"crypto/x509"
	"encoding/base64"
	"errors"
	"fmt"
	"slices"
	"time"

	"deputy.example/deputy/client/delegation"
)

// Methods by which a certificate authenticates a caller. In each the TLS handshake has proven that
// the caller has the certificate's key. This package verifies the certificate itself.
const (
	// MethodTLSClientAuth: issued by one of the tenant's authorities (RFC 8705 §2.1).
	MethodTLSClientAuth = "tls_client_auth"
	// MethodSelfSignedTLS: the certificate itself is registered (RFC 8705 §2.2).
	MethodSelfSignedTLS = "self_signed_tls_client_auth"
	// MethodX509SVID: of a workload in one of the tenant's trust domains (SPIFFE X509-SVID).
	MethodX509SVID       = "x509_svid"
	maxCertificates      = 8        // in one chain, the leaf included
	maxCertificateBytes  = 64 << 10 // in one chain, in DER
	maxRegisteredPerFile = 64
)

// CertificateThumbprint is x5t#S256 of RFC 8705 §3.1: SHA-256 of the certificate in DER, as
// unpadded base64url.
func CertificateThumbprint(c *x509.Certificate) string {
	sum := sha256.Sum256(c.Raw)
	return base64.RawURLEncoding.EncodeToString(sum[:])
}

// A claim is a principal that a certificate would authenticate by its own content. Nothing is
// verified yet.
type claim struct {
	principal delegation.Principal
	method    string
	verify    func(context.Context, []*x509.Certificate) error
}

// Knows reports whether a rule of this tenant applies to the certificate at the head of the chain.
// It looks up names and thumbprints and verifies nothing, so unknown certificates cost little. A
// certificate without a rule authenticates no caller, and is no reason to refuse another
// credential.
func (t *Trust) Knows(chain []*x509.Certificate) bool {
	claims, err := t.claims(chain)
	return err == nil && len(claims) > 0
}

// Certificate authenticates a caller by the certificates of its TLS handshake, leaf first: by a
// name in a certificate of the tenant's authorities, by a registered certificate, or as a SPIFFE
// workload. clientID is client_id (RFC 8705 §2.1), or "" where none was sent: then the certificate
// must identify exactly one principal. Caller.Key is the certificate's thumbprint.
//
// Every fault gives the same ClientUnauthenticated. The cause of the error holds the broken rule.
// If the authorities or registered certificates are not available, the error is DependencyDown.
func (t *Trust) Certificate(ctx context.Context, chain []*x509.Certificate, clientID string) (Caller, error) {
	caller, err := t.byCertificate(ctx, chain, clientID)
	if down, typed := errors.AsType[*delegation.Error](err); typed && down.Reason == delegation.DependencyDown {
		return Caller{}, down
	}
	if err != nil {
		return Caller{}, unauthenticated(err)
	}
	return caller, nil
}

func (t *Trust) byCertificate(ctx context.Context, chain []*x509.Certificate, clientID string) (Caller, error) {
	claims, err := t.claims(chain)
	if err != nil {
		return Caller{}, err
	}
	if clientID != "" {
		claims = slices.DeleteFunc(claims, func(c claim) bool { return string(c.principal) != clientID })
	}
	switch len(claims) {
	case 1:
	case 0:
		return Caller{}, broken("no client has this certificate, or client_id names another one")
	default:
		return Caller{}, broken("the certificate is of several principals, and no client_id names one")
	}
	if err := claims[0].verify(ctx, chain); err != nil {
		return Caller{}, err
	}
	return Caller{Principal: claims[0].principal, Key: CertificateThumbprint(chain[0]), Method: claims[0].method}, nil
}

// claims looks the certificate up in all clients and trust domains.
func (t *Trust) claims(chain []*x509.Certificate) ([]claim, error) {
	if err := checkChain(chain); err != nil {
		return nil, err
	}
	leaf := chain[0]
	names, err := namesOf(leaf)
	if err != nil {
		return nil, err
	}
	var claims []claim
	for _, c := range t.clients {
		switch {
		case c.tls == nil:
		case c.tls.name != "":
			if slices.Contains(names, c.tls.name) {
				claims = append(claims, claim{c.principal, MethodTLSClientAuth, t.issuedByAuthority})
			}
		case c.tls.certificates.certifies(CertificateThumbprint(leaf)):
			claims = append(claims, claim{c.principal, MethodSelfSignedTLS, t.registeredFor(c)})
		}
	}
	if d, id, known := t.domainOf(names); known {
		if principal, err := d.principal(id); err == nil {
			claims = append(claims, claim{principal, MethodX509SVID, t.svidOf(d, id)})
		}
	}
	return claims, nil
}

// checkChain bounds the work that an unauthenticated caller can cause, before any other check.
func checkChain(chain []*x509.Certificate) error {
	if len(chain) == 0 || len(chain) > maxCertificates {
		return broken(fmt.Sprintf("want 1 to %d certificates", maxCertificates))
	}
	total := 0
	for _, c := range chain {
		total += len(c.Raw)
	}
	if total > maxCertificateBytes {
		return broken(fmt.Sprintf("the certificates are longer than %d bytes", maxCertificateBytes))
	}
	return nil
}

// issuedByAuthority is RFC 8705 §2.1: a chain to one of the tenant's own authorities, and to no
// other, that was issued for client authentication and is valid now. The name was compared before.
func (t *Trust) issuedByAuthority(ctx context.Context, chain []*x509.Certificate) error {
	held, err := t.authorities.holding(ctx)
	if err != nil {
		return err
	}
	if err := clientLeaf(chain[0]); err != nil {
		return err
	}
	return verifyChain(chain[0], x509.VerifyOptions{
		Roots: pool(held.all()), Intermediates: pool(chain[1:]),
		CurrentTime: t.now(), KeyUsages: []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth},
	})
}

// clientLeaf checks the rules for a client's certificate that crypto/x509 does not check.
func clientLeaf(c *x509.Certificate) error {
	switch {
	case c.IsCA:
		return broken("the certificate is an authority's")
	// Absent does not mean "any" here.
	case !slices.Contains(c.ExtKeyUsage, x509.ExtKeyUsageClientAuth):
		return broken("the certificate is not for client authentication")
	}
	return signs(c)
}

// verifyChain replaces the error text of crypto/x509, which repeats names of the certificate.
func verifyChain(leaf *x509.Certificate, o x509.VerifyOptions) error {
	if _, err := leaf.Verify(o); err != nil {
		return broken("the certificate does not lead to a known authority, is not valid now, or not for this use")
	}
	return nil
}

// registeredFor is RFC 8705 §2.2: the certificate itself is registered, and needs no chain.
func (t *Trust) registeredFor(c *client) func(context.Context, []*x509.Certificate) error {
	return func(ctx context.Context, chain []*x509.Certificate) error {
		held, err := c.tls.certificates.holding(ctx)
		if err != nil {
			return err
		}
		registered := held.certificates[CertificateThumbprint(chain[0])]
		switch {
		case registered == nil || !registered.Equal(chain[0]):
			return broken("the certificate is not registered any more")
		case !isInForce(registered, t.now()):
			return broken("the certificate is not valid now")
		}
		return nil
	}
}

func isInForce(c *x509.Certificate, now time.Time) bool {
	return !now.Before(c.NotBefore) && !now.After(c.NotAfter)
}

// signs requires a strong key, and a certificate that permits signatures of handshakes.
func signs(c *x509.Certificate) error {
	if c.KeyUsage != 0 && c.KeyUsage&x509.KeyUsageDigitalSignature == 0 {
		return broken("the certificate's key is not for signatures")
	}
	if !isStrong(c.PublicKey) {
		return broken("the certificate's key is too weak, too large or of an unknown kind")
	}
	return nil
}

func isStrong(key crypto.PublicKey) bool {
	switch key := key.(type) {
	case *ecdsa.PublicKey:
		return key.Curve.Params().BitSize >= 256
	case ed25519.PublicKey:
		return true
	case *rsa.PublicKey:
		return key.N.BitLen() >= minRSABits && key.N.BitLen() <= maxRSABits
	}
	return false
}

// pool never returns nil: a nil pool makes crypto/x509 trust every authority of the machine.
func pool(certificates []*x509.Certificate) *x509.CertPool {
	p := x509.NewCertPool()
	for _, c := range certificates {
		p.AddCert(c)
	}
	return p
}
