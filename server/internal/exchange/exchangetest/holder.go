package exchangetest

import (
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/json"
	"maps"
	"testing"
	"time"

	"deputy.example/deputy/client/delegation"
	"deputy.example/deputy/client/dpop"
	"deputy.example/deputy/server/internal/exchange"
	"deputy.example/deputy/server/internal/token"
	"deputy.example/deputy/server/internal/token/certtest"
)

// TokenEndpoint is the address that the proofs of a Call are for.
const TokenEndpoint = "https://deputy.example/oauth2/token"

// Prover holds a key that it proves by DPoP.
type Prover struct {
	*Signer
	key *dpop.Key
}

// NewProver creates a key.
func NewProver(t testing.TB) *Prover {
	t.Helper()
	p := &Prover{Signer: NewSigner(t, "")}
	var err error
	if p.key, err = dpop.NewKey(p.Signer.key); err != nil {
		t.Fatal(err)
	}
	return p
}

// Binding is what tokens for the key's holder are bound to.
func (p *Prover) Binding() delegation.Confirmation {
	return delegation.Confirmation{JKT: p.key.Thumbprint()}
}

// Prove returns a proof.
func (p *Prover) Prove(t testing.TB, r dpop.Request, now time.Time) string {
	t.Helper()
	proof, err := p.key.Prove(r, now, nil)
	if err != nil {
		t.Fatal(err)
	}
	return proof
}

// Proof is a proof for a call of the engine at the token endpoint.
func (w *World) Proof(t testing.TB, p *Prover) *exchange.Proof {
	t.Helper()
	r := dpop.Request{Method: "POST", URI: TokenEndpoint}
	return &exchange.Proof{JWT: p.Prove(t, r, w.clock.Now()), Method: r.Method, URI: r.URI}
}

// Forge signs a proof with changes to the usual header and claims. nil removes a member.
func (p *Prover) Forge(t testing.TB, header, claims map[string]any) string {
	t.Helper()
	x, y := p.coordinates()
	h := map[string]any{"typ": "dpop+jwt", "alg": "ES256", "jwk": map[string]any{"kty": "EC", "crv": "P-256", "x": x, "y": y}}
	c := map[string]any{"jti": rand.Text(), "htm": "POST", "htu": TokenEndpoint, "iat": time.Now().Unix()}
	for all, changes := range map[*map[string]any]map[string]any{&h: header, &c: claims} {
		maps.Copy(*all, changes)
		maps.DeleteFunc(*all, func(_ string, v any) bool { return v == nil })
	}
	rawHeader, err := json.Marshal(h)
	if err != nil {
		t.Fatal(err)
	}
	payload, err := json.Marshal(c)
	if err != nil {
		t.Fatal(err)
	}
	return p.SignRaw(t, string(rawHeader), payload)
}

// Certified holds a key and a self-signed certificate.
type Certified struct {
	Certificate *x509.Certificate
	TLS         tls.Certificate
}

// NewCertified creates a key and a certificate, for a client and for a server on this machine.
func NewCertified(t testing.TB, name string) *Certified {
	t.Helper()
	pair := certtest.SelfSigned(t, certtest.Subject(pkix.Name{CommonName: name}), certtest.DNS("localhost"),
		func(c *x509.Certificate) { c.ExtKeyUsage = append(c.ExtKeyUsage, x509.ExtKeyUsageServerAuth) })
	return &Certified{Certificate: pair.Leaf, TLS: pair}
}

// Binding is what tokens for the certificate's holder are bound to.
func (c *Certified) Binding() delegation.Confirmation {
	return delegation.Confirmation{X5T: token.CertificateThumbprint(c.Certificate)}
}
