package client

import (
	"crypto"
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/elliptic"
	"crypto/rsa"
	"crypto/sha256"
	"fmt"
	"math/big"
)

// The algorithms of RFC 7518 §3.1 and RFC 8037 §3.1 that Deputy signs with.
const (
	algorithmES256 = "ES256"
	algorithmEdDSA = "EdDSA"
	algorithmRS256 = "RS256"
)

const (
	minRSABits = 2048
	// A longer key makes one verification too expensive for unauthenticated callers.
	maxRSABits = 8192
)

// verificationKey is a public key, ready for the one algorithm that it verifies. It is never
// changed: a signature that a key verified stays verified for as long as its issuer publishes this
// key.
type verificationKey struct {
	algorithm string
	public    crypto.PublicKey
	verifies  func(signingInput string, signature []byte) bool
}

// same reports whether two keys verify the same signatures.
func (k *verificationKey) same(other *verificationKey) bool {
	public, ok := k.public.(interface{ Equal(crypto.PublicKey) bool })
	return ok && k.algorithm == other.algorithm && public.Equal(other.public)
}

// prepareKey checks the key once, so that verification need not.
func prepareKey(public crypto.PublicKey) (*verificationKey, error) {
	algorithm, err := algorithmOf(public)
	if err != nil {
		return nil, err
	}
	key := &verificationKey{algorithm: algorithm, public: public}
	switch public := public.(type) {
	case *ecdsa.PublicKey:
		key.verifies = func(input string, signature []byte) bool { return verifyES256(public, input, signature) }
	case ed25519.PublicKey:
		key.verifies = func(input string, signature []byte) bool {
			return ed25519.Verify(public, []byte(input), signature)
		}
	case *rsa.PublicKey:
		key.verifies = func(input string, signature []byte) bool {
			digest := sha256.Sum256([]byte(input))
			return rsa.VerifyPKCS1v15(public, crypto.SHA256, digest[:], signature) == nil
		}
	}
	return key, nil
}

// verifyES256 takes r and s at their full length, one after the other (RFC 7518 §3.4).
func verifyES256(public *ecdsa.PublicKey, input string, signature []byte) bool {
	const size = 32
	if len(signature) != 2*size {
		return false
	}
	digest := sha256.Sum256([]byte(input))
	r, s := new(big.Int).SetBytes(signature[:size]), new(big.Int).SetBytes(signature[size:])
	return ecdsa.Verify(public, digest[:], r, s)
}

// algorithmOf returns the one algorithm for each kind of key.
func algorithmOf(public crypto.PublicKey) (string, error) {
	switch key := public.(type) {
	case *ecdsa.PublicKey:
		// Any two numbers parse as a point. ECDH checks that they are on the curve.
		if _, err := key.ECDH(); err == nil && key.Curve == elliptic.P256() {
			return algorithmES256, nil
		}
	case ed25519.PublicKey:
		if len(key) == ed25519.PublicKeySize {
			return algorithmEdDSA, nil
		}
	case *rsa.PublicKey:
		if bits := key.N.BitLen(); bits >= minRSABits && bits <= maxRSABits && key.E > 2 && key.E%2 == 1 {
			return algorithmRS256, nil
		}
	}
	return "", fmt.Errorf("want a P-256, Ed25519 or RSA key of %d to %d bits", minRSABits, maxRSABits)
}
