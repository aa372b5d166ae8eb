// Package certtest makes certificates for tests: authorities, what they issue, and self-signed
// certificates.
package certtest

import (
	"bytes"
	"crypto"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/base64"
	"encoding/json"
	"encoding/pem"
	"math/big"
	"net/url"
	"os"
	"path/filepath"
	"testing"
	"time"
)

// Change makes a certificate differ from the ordinary one.
type Change func(*x509.Certificate)

// CA is an authority. Chain is what its certificates carry beside themselves: nothing for a root.
type CA struct {
	Certificate *x509.Certificate
	Chain       [][]byte

	key crypto.Signer
}

// NewCA makes a root that has been valid for a day and will be for a year.
func NewCA(t testing.TB, name string, changes ...Change) *CA {
	t.Helper()
	key := newKey(t)
	template := authority(name, changes)
	return &CA{Certificate: sign(t, template, template, key, key), key: key}
}

// Intermediate makes an authority below this one.
func (c *CA) Intermediate(t testing.TB, name string, changes ...Change) *CA {
	t.Helper()
	key := newKey(t)
	certificate := sign(t, authority(name, changes), c.Certificate, key, c.key)
	return &CA{Certificate: certificate, Chain: append([][]byte{certificate.Raw}, c.Chain...), key: key}
}

// Issue makes a client's certificate, with the chain that leads to the root. It is valid from an hour
// ago until an hour from now.
func (c *CA) Issue(t testing.TB, changes ...Change) tls.Certificate {
	t.Helper()
	return c.IssueFor(t, newKey(t), changes...)
}

// IssueFor is Issue for a key that is there.
func (c *CA) IssueFor(t testing.TB, key crypto.Signer, changes ...Change) tls.Certificate {
	t.Helper()
	certificate := sign(t, leaf(changes), c.Certificate, key, c.key)
	return tls.Certificate{Certificate: append([][]byte{certificate.Raw}, c.Chain...), PrivateKey: key, Leaf: certificate}
}

// SVID makes an X.509-SVID for the SPIFFE ID.
func (c *CA) SVID(t testing.TB, id string, changes ...Change) tls.Certificate {
	t.Helper()
	return c.Issue(t, append([]Change{URI(id)}, changes...)...)
}

// Bundle is a SPIFFE bundle of this authority and of JWT authorities, each a public JWK.
func (c *CA) Bundle(t testing.TB, jwks ...string) []byte {
	t.Helper()
	point, err := c.Certificate.PublicKey.(*ecdsa.PublicKey).Bytes() // 4 ‖ x ‖ y
	if err != nil {
		t.Fatal(err)
	}
	keys := []any{map[string]any{
		"use": "x509-svid", "kty": "EC", "crv": "P-256", "x": base64.RawURLEncoding.EncodeToString(point[1:33]),
		"y": base64.RawURLEncoding.EncodeToString(point[33:]), "x5c": []string{base64.StdEncoding.EncodeToString(c.Certificate.Raw)},
	}}
	for _, jwk := range jwks {
		var key map[string]any
		if err := json.Unmarshal([]byte(jwk), &key); err != nil {
			t.Fatal(err)
		}
		key["use"] = "jwt-svid"
		delete(key, "alg")
		keys = append(keys, key)
	}
	bundle, err := json.Marshal(map[string]any{"keys": keys, "spiffe_sequence": 1})
	if err != nil {
		t.Fatal(err)
	}
	return bundle
}

// SelfSigned makes a certificate that no authority signed.
func SelfSigned(t testing.TB, changes ...Change) tls.Certificate {
	t.Helper()
	return SelfSignedBy(t, newKey(t), changes...)
}

// Again makes another certificate of the same key.
func Again(t testing.TB, c tls.Certificate, changes ...Change) tls.Certificate {
	t.Helper()
	return SelfSignedBy(t, c.PrivateKey.(crypto.Signer), changes...)
}

// SelfSignedBy is SelfSigned for a key that is there.
func SelfSignedBy(t testing.TB, key crypto.Signer, changes ...Change) tls.Certificate {
	t.Helper()
	template := leaf(changes)
	certificate := sign(t, template, template, key, key)
	return tls.Certificate{Certificate: [][]byte{certificate.Raw}, PrivateKey: key, Leaf: certificate}
}

// URI adds URI names.
func URI(names ...string) Change {
	return func(c *x509.Certificate) {
		for _, name := range names {
			u, err := url.Parse(name)
			if err != nil {
				panic(err) // a test that cannot be meant
			}
			c.URIs = append(c.URIs, u)
		}
	}
}

// DNS adds DNS names.
func DNS(names ...string) Change {
	return func(c *x509.Certificate) { c.DNSNames = append(c.DNSNames, names...) }
}

// Subject sets the distinguished name.
func Subject(name pkix.Name) Change { return func(c *x509.Certificate) { c.Subject = name } }

// Valid sets the period.
func Valid(from, until time.Time) Change {
	return func(c *x509.Certificate) { c.NotBefore, c.NotAfter = from, until }
}

// Chain reads what the certificate presents in a handshake, leaf first.
func Chain(t testing.TB, c tls.Certificate) []*x509.Certificate {
	t.Helper()
	var chain []*x509.Certificate
	for _, der := range c.Certificate {
		certificate, err := x509.ParseCertificate(der)
		if err != nil {
			t.Fatal(err)
		}
		chain = append(chain, certificate)
	}
	return chain
}

// PEM encodes certificates.
func PEM(certificates ...*x509.Certificate) []byte {
	var out bytes.Buffer
	for _, c := range certificates {
		_ = pem.Encode(&out, &pem.Block{Type: "CERTIFICATE", Bytes: c.Raw}) // a Buffer takes everything
	}
	return out.Bytes()
}

// Write replaces a file as operators are asked to: by a rename.
func Write(t testing.TB, path string, content []byte) {
	t.Helper()
	next := path + ".next"
	if err := os.MkdirAll(filepath.Dir(path), 0o700); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(next, content, 0o600); err != nil {
		t.Fatal(err)
	}
	if err := os.Rename(next, path); err != nil {
		t.Fatal(err)
	}
}

// WritePair writes a certificate with its chain, and its key.
func WritePair(t testing.TB, certFile, keyFile string, c tls.Certificate) {
	t.Helper()
	der, err := x509.MarshalPKCS8PrivateKey(c.PrivateKey)
	if err != nil {
		t.Fatal(err)
	}
	Write(t, keyFile, pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: der}))
	Write(t, certFile, PEM(Chain(t, c)...))
}

func authority(name string, changes []Change) *x509.Certificate {
	return change(&x509.Certificate{
		Subject: pkix.Name{CommonName: name}, IsCA: true, BasicConstraintsValid: true, KeyUsage: x509.KeyUsageCertSign,
		NotBefore: time.Now().AddDate(0, 0, -1), NotAfter: time.Now().AddDate(1, 0, 0),
	}, changes)
}

func leaf(changes []Change) *x509.Certificate {
	return change(&x509.Certificate{
		KeyUsage: x509.KeyUsageDigitalSignature, ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth, x509.ExtKeyUsageClientAuth},
		BasicConstraintsValid: true, NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(time.Hour),
	}, changes)
}

func change(c *x509.Certificate, changes []Change) *x509.Certificate {
	for _, apply := range changes {
		apply(c)
	}
	return c
}

func newKey(t testing.TB) crypto.Signer {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	return key
}

func sign(t testing.TB, template, parent *x509.Certificate, key, parentKey crypto.Signer) *x509.Certificate {
	t.Helper()
	serial, err := rand.Int(rand.Reader, new(big.Int).Lsh(big.NewInt(1), 120))
	if err != nil {
		t.Fatal(err)
	}
	template.SerialNumber = serial
	der, err := x509.CreateCertificate(rand.Reader, template, parent, key.Public(), parentKey)
	if err != nil {
		t.Fatal(err)
	}
	certificate, err := x509.ParseCertificate(der)
	if err != nil {
		t.Fatal(err)
	}
	return certificate
}
