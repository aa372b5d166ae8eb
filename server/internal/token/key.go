package token

import (
	"crypto"
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/elliptic"
	"crypto/rsa"
	"crypto/x509"
	"encoding/base64"
	"errors"
	"fmt"
	"slices"

	"github.com/go-json-experiment/json"
	"github.com/go-json-experiment/json/jsontext"
	"github.com/lestrrat-go/jwx/v2/jwa"
	"github.com/lestrrat-go/jwx/v2/jwk"
	"github.com/lestrrat-go/jwx/v2/jws"

	"deputy.example/deputy/client/delegation"
)

// RSA moduli below these bounds are too weak. Moduli above cost too much to verify with.
const (
	minRSABits = 2048
	maxRSABits = 8192
)

// publicKey verifies signatures with exactly one algorithm.
type publicKey struct {
	id         string // kid
	thumbprint string // RFC 7638, SHA-256
	algorithm  jwa.SignatureAlgorithm
	material   crypto.PublicKey
	verifier   jws.Verifier
}

// newPublicKey is the only constructor of publicKey: it ensures that the material fits the
// algorithm and is strong enough. An empty id means the thumbprint.
func newPublicKey(id string, algorithm jwa.SignatureAlgorithm, material crypto.PublicKey) (*publicKey, error) {
	if err := checkMaterial(algorithm, material); err != nil {
		return nil, err
	}
	verifier, err := verifierOf(algorithm)
	if err != nil {
		return nil, err
	}
	thumbprint, err := thumbprintOf(material)
	if err != nil {
		return nil, err
	}
	if id == "" {
		id = thumbprint
	}
	return &publicKey{id: id, thumbprint: thumbprint, algorithm: algorithm, material: material, verifier: verifier}, nil
}

// verify checks the signature over exactly the bytes that the gate read.
func (k *publicKey) verify(u *delegation.Unverified) error {
	if u.Header.Algorithm != k.algorithm.String() {
		return broken("its algorithm is not the one of its key")
	}
	if err := k.verifier.Verify([]byte(u.SigningInput), u.Signature, k.material); err != nil {
		return broken("its signature does not verify")
	}
	return nil
}

func verifierOf(algorithm jwa.SignatureAlgorithm) (jws.Verifier, error) {
	switch algorithm {
	case jwa.PS256:
		return pssVerifier{crypto.SHA256}, nil
	case jwa.PS384:
		return pssVerifier{crypto.SHA384}, nil
	case jwa.PS512:
		return pssVerifier{crypto.SHA512}, nil
	}
	return jws.NewVerifier(algorithm)
}

// pssVerifier requires a salt as long as the hash, as RFC 7518 §3.5 does; jwx accepts any length.
type pssVerifier struct{ hash crypto.Hash }

func (v pssVerifier) Verify(signingInput, signature []byte, key any) error {
	material, ok := key.(*rsa.PublicKey)
	if !ok {
		return errors.New("not an RSA key")
	}
	h := v.hash.New()
	h.Write(signingInput)
	return rsa.VerifyPSS(material, v.hash, h.Sum(nil), signature, &rsa.PSSOptions{SaltLength: rsa.PSSSaltLengthEqualsHash})
}

func thumbprintOf(material crypto.PublicKey) (string, error) {
	key, err := jwk.FromRaw(material)
	if err != nil {
		return "", err
	}
	sum, err := key.Thumbprint(crypto.SHA256)
	if err != nil {
		return "", err
	}
	return base64.RawURLEncoding.EncodeToString(sum), nil
}

// knownAlgorithms are only the asymmetric algorithms of RFC 7518 and RFC 8037, so that neither
// "none" nor a shared secret can ever be configured.
func knownAlgorithms() []jwa.SignatureAlgorithm {
	return []jwa.SignatureAlgorithm{
		jwa.ES256, jwa.ES384, jwa.ES512, jwa.EdDSA,
		jwa.RS256, jwa.RS384, jwa.RS512, jwa.PS256, jwa.PS384, jwa.PS512,
	}
}

func parseAlgorithm(name string) (jwa.SignatureAlgorithm, error) {
	known := knownAlgorithms()
	if algorithm := jwa.SignatureAlgorithm(name); slices.Contains(known, algorithm) {
		return algorithm, nil
	}
	return "", fmt.Errorf("algorithm %q is not one of %v", name, known)
}

func checkMaterial(algorithm jwa.SignatureAlgorithm, material crypto.PublicKey) error {
	switch material := material.(type) {
	case *ecdsa.PublicKey:
		if curveOf(algorithm) != material.Curve || material.Curve == nil {
			return fmt.Errorf("the key's curve does not fit %s", algorithm)
		}
		if _, err := material.ECDH(); err != nil {
			return errors.New("the key is not a point of its curve")
		}
		return nil
	case ed25519.PublicKey:
		if algorithm != jwa.EdDSA || len(material) != ed25519.PublicKeySize {
			return fmt.Errorf("the key does not fit %s", algorithm)
		}
		return nil
	case *rsa.PublicKey:
		if algorithm == jwa.EdDSA || curveOf(algorithm) != nil {
			return fmt.Errorf("an RSA key does not fit %s", algorithm)
		}
		if bits := material.N.BitLen(); bits < minRSABits || bits > maxRSABits {
			return fmt.Errorf("an RSA key of %d bits is outside %d to %d", bits, minRSABits, maxRSABits)
		}
		if material.E < 3 || material.E%2 == 0 {
			return errors.New("the exponent of the RSA key is not an odd number above 2")
		}
		return nil
	}
	return errors.New("the kind of key is not supported")
}

func curveOf(algorithm jwa.SignatureAlgorithm) elliptic.Curve {
	switch algorithm {
	case jwa.ES256:
		return elliptic.P256()
	case jwa.ES384:
		return elliptic.P384()
	case jwa.ES512:
		return elliptic.P521()
	}
	return nil
}

// keyring holds the keys of one issuer or client at one moment. The nil keyring is empty.
type keyring struct {
	byID         map[string]*publicKey
	certificates map[string]*x509.Certificate // by thumbprint: authorities or registered ones
}

// find returns the key that a token names, or nil. A token may omit its kid only where there is
// exactly one key: keys are never tried one after the other.
func (r *keyring) find(kid string) *publicKey {
	if r == nil {
		return nil
	}
	if kid == "" && len(r.byID) == 1 {
		for _, key := range r.byID {
			return key
		}
	}
	return r.byID[kid]
}

// errOtherPurpose is about a valid key that is not for signatures.
var errOtherPurpose = errors.New("is not for signatures")

// maxKeys bounds one JWK Set: each key costs work before any token names it.
const maxKeys = 100

// parseJWKS reads a JWK Set (RFC 7517 §5) of at most maxKeys. Keys for other purposes are ignored.
// Keys for signatures that must not verify here are left out, and the reasons are returned. A kid
// that two keys share names neither.
func parseJWKS(data []byte, algorithms []jwa.SignatureAlgorithm) (*keyring, []string, error) {
	var set struct {
		Keys []jsontext.Value `json:"keys"`
	}
	if err := json.Unmarshal(data, &set); err != nil || set.Keys == nil {
		return nil, nil, errors.New("not a strict JSON object with a list of keys")
	}
	if len(set.Keys) > maxKeys {
		return nil, nil, fmt.Errorf("more than %d keys", maxKeys)
	}
	ring := &keyring{byID: make(map[string]*publicKey, len(set.Keys))}
	var ignored []string
	ambiguous := make(map[string]bool)
	for i, raw := range set.Keys {
		key, err := parseJWK(raw, algorithms)
		if errors.Is(err, errOtherPurpose) {
			continue
		}
		if err != nil {
			ignored = append(ignored, fmt.Sprintf("keys[%d]: %v", i, err))
			continue
		}
		if _, twice := ring.byID[key.id]; twice {
			ambiguous[key.id] = true
		}
		ring.byID[key.id] = key
	}
	for id := range ambiguous {
		delete(ring.byID, id)
		ignored = append(ignored, "several keys have one kid")
	}
	return ring, ignored, nil
}

// jwkMembers are the members that decide whether a JWK may verify signatures.
type jwkMembers struct {
	Use    string         `json:"use"`
	KeyOps []string       `json:"key_ops"`
	Alg    string         `json:"alg"`
	Kid    string         `json:"kid"`
	D      jsontext.Value `json:"d"`
	P      jsontext.Value `json:"p"`
	Q      jsontext.Value `json:"q"`
	DP     jsontext.Value `json:"dp"`
	DQ     jsontext.Value `json:"dq"`
	QI     jsontext.Value `json:"qi"`
	Oth    jsontext.Value `json:"oth"`
	K      jsontext.Value `json:"k"`
}

func (m *jwkMembers) holdsSecret() bool {
	for _, secret := range []jsontext.Value{m.D, m.P, m.Q, m.DP, m.DQ, m.QI, m.Oth, m.K} {
		if secret != nil {
			return true
		}
	}
	return false
}

// parseJWK reads one public key and fixes its algorithm: the one that it names, which must be among
// the configured ones, or else the only configured one that fits its kind.
func parseJWK(raw []byte, algorithms []jwa.SignatureAlgorithm) (*publicKey, error) {
	var m jwkMembers
	if err := json.Unmarshal(raw, &m); err != nil {
		return nil, errors.New("malformed")
	}
	switch {
	case m.holdsSecret():
		return nil, errors.New("holds a private or a shared key")
	case m.Use != "" && m.Use != "sig", m.KeyOps != nil && !slices.Contains(m.KeyOps, "verify"):
		return nil, errOtherPurpose
	}
	material, err := parseMaterial(raw)
	if err != nil {
		return nil, err
	}
	var fit []jwa.SignatureAlgorithm
	for _, algorithm := range algorithms {
		if (m.Alg == "" || m.Alg == algorithm.String()) && checkMaterial(algorithm, material) == nil {
			fit = append(fit, algorithm)
		}
	}
	if len(fit) != 1 {
		return nil, fmt.Errorf("fits %d of the configured algorithms, want exactly one", len(fit))
	}
	return newPublicKey(m.Kid, fit[0], material)
}

func parseMaterial(raw []byte) (crypto.PublicKey, error) {
	key, err := jwk.ParseKey(raw)
	if err != nil {
		return nil, errors.New("not a JWK of a known kind")
	}
	var material any
	if err := key.Raw(&material); err != nil {
		return nil, errors.New("not a usable key")
	}
	return material, nil
}
