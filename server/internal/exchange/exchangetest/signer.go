package exchangetest

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/sha256"
	"encoding/base64"
	"encoding/json"
	"maps"
	"math/big"
	"testing"
)

// Signer is a party with an ES256 key: an OpenID provider, a workload, a client.
type Signer struct {
	Issuer string
	KeyID  string // RFC 7638 thumbprint
	key    *ecdsa.PrivateKey
}

// NewSigner creates a key.
func NewSigner(t testing.TB, issuer string) *Signer {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	s := &Signer{Issuer: issuer, key: key}
	x, y := s.coordinates()
	sum := sha256.Sum256([]byte(`{"crv":"P-256","kty":"EC","x":"` + x + `","y":"` + y + `"}`))
	s.KeyID = encode(sum[:])
	return s
}

// JWKS is the signer's public key as a JWK Set.
func (s *Signer) JWKS() string {
	x, y := s.coordinates()
	return `{"keys":[{"kty":"EC","crv":"P-256","alg":"ES256","use":"sig","kid":"` + s.KeyID + `","x":"` + x + `","y":"` + y + `"}]}`
}

// Key is the private key.
func (s *Signer) Key() *ecdsa.PrivateKey { return s.key }

// Sign returns a JWT with the claims. iss is the signer unless the claims have another one. A nil
// value removes a claim.
func (s *Signer) Sign(t testing.TB, typ string, claims map[string]any) string {
	t.Helper()
	all := map[string]any{"iss": s.Issuer}
	maps.Copy(all, claims)
	maps.DeleteFunc(all, func(_ string, v any) bool { return v == nil })
	payload, err := json.Marshal(all)
	if err != nil {
		t.Fatal(err)
	}
	return s.SignRaw(t, `{"alg":"ES256","typ":"`+typ+`","kid":"`+s.KeyID+`"}`, payload)
}

// SignRaw signs any header and payload.
func (s *Signer) SignRaw(t testing.TB, header string, payload []byte) string {
	t.Helper()
	input := encode([]byte(header)) + "." + encode(payload)
	sum := sha256.Sum256([]byte(input))
	r, v, err := ecdsa.Sign(rand.Reader, s.key, sum[:])
	if err != nil {
		t.Fatal(err)
	}
	return input + "." + encode(append(fixed(r), fixed(v)...))
}

func (s *Signer) coordinates() (x, y string) {
	raw, err := s.key.PublicKey.Bytes() // 4 ‖ x ‖ y
	if err != nil {
		panic(err) // a key of a named curve always has this form
	}
	return encode(raw[1:33]), encode(raw[33:65])
}

func fixed(n *big.Int) []byte { return n.FillBytes(make([]byte, 32)) }

func encode(b []byte) string { return base64.RawURLEncoding.EncodeToString(b) }
