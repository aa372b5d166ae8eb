package dpop

import (
	"crypto"
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/elliptic"
	"crypto/rsa"
	"crypto/sha256"
	"crypto/sha512"
	"encoding/base64"
	"errors"
	"fmt"
	"hash"
	"math/big"
	"strings"
)

// The bounds of RSA keys. Smaller keys are weak; larger ones cost a verifier more than an
// unauthenticated peer may cause.
const (
	minRSABits = 2048
	maxRSABits = 4096
)

// Algorithms are the values of alg that a proof may have, for metadata (RFC 9449 §5.1). Ed25519 is
// what RFC 9864 calls the same signatures as EdDSA with an Ed25519 key.
func Algorithms() []string {
	return []string{"ES256", "ES384", "ES512", "EdDSA", "Ed25519", "RS256", "PS256"}
}

// publicKey is the key of a proof with the names by which it is known.
type publicKey struct {
	material   crypto.PublicKey
	jwk        string // canonical: the input of the thumbprint (RFC 7638 §3)
	thumbprint string
}

// secretMembers make a JWK a private or a shared key (RFC 7518 §6).
var secretMembers = []string{"d", "p", "q", "dp", "dq", "qi", "oth", "k"}

// readKey makes a key of a proof's jwk. There is one JWK for each key: what leaves a choice, such
// as leading zeros, is refused.
func readKey(jwk map[string]string) (publicKey, error) {
	for _, name := range secretMembers {
		if _, there := jwk[name]; there {
			return publicKey{}, errors.New("its jwk holds a private or a shared key: treat that key as exposed")
		}
	}
	switch jwk["kty"] {
	case "EC":
		return readEC(jwk)
	case "OKP":
		x, err := coordinate(jwk["x"], ed25519.PublicKeySize)
		if err != nil || jwk["crv"] != "Ed25519" {
			return publicKey{}, errors.New("its jwk is not an Ed25519 key")
		}
		return newKey(ed25519.PublicKey(x))
	case "RSA":
		n, errN := natural(jwk["n"])
		e, errE := natural(jwk["e"])
		if errN != nil || errE != nil || e.BitLen() > 31 {
			return publicKey{}, errors.New("its jwk is not an RSA key")
		}
		return newKey(&rsa.PublicKey{N: n, E: int(e.Int64())})
	}
	return publicKey{}, errors.New("the kty of its jwk is not EC, OKP or RSA")
}

func curveOf(name string) elliptic.Curve {
	switch name {
	case "P-256":
		return elliptic.P256()
	case "P-384":
		return elliptic.P384()
	case "P-521":
		return elliptic.P521()
	}
	return nil
}

func readEC(jwk map[string]string) (publicKey, error) {
	curve := curveOf(jwk["crv"])
	if curve == nil {
		return publicKey{}, errors.New("the crv of its jwk is not P-256, P-384 or P-521")
	}
	size := (curve.Params().BitSize + 7) / 8
	x, errX := coordinate(jwk["x"], size)
	y, errY := coordinate(jwk["y"], size)
	if errX != nil || errY != nil {
		return publicKey{}, fmt.Errorf("the coordinates of its jwk do not have %d bytes each", size)
	}
	material, err := ecdsa.ParseUncompressedPublicKey(curve, append(append([]byte{4}, x...), y...))
	if err != nil {
		return publicKey{}, errors.New("its jwk is not a point of its curve")
	}
	return newKey(material)
}

// newKey checks the material and writes its canonical JWK. It is the only way to a publicKey.
func newKey(material crypto.PublicKey) (publicKey, error) {
	k := publicKey{material: material}
	encode := base64.RawURLEncoding.EncodeToString
	switch material := material.(type) {
	case *ecdsa.PublicKey:
		raw, err := material.Bytes()
		if err != nil || curveOf(material.Params().Name) == nil {
			return publicKey{}, errors.New("the key is not a point of P-256, P-384 or P-521")
		}
		size := (len(raw) - 1) / 2
		k.jwk = fmt.Sprintf(`{"crv":%q,"kty":"EC","x":%q,"y":%q}`, material.Params().Name, encode(raw[1:1+size]), encode(raw[1+size:]))
	case ed25519.PublicKey:
		if len(material) != ed25519.PublicKeySize {
			return publicKey{}, errors.New("the key is not an Ed25519 key")
		}
		k.jwk = fmt.Sprintf(`{"crv":"Ed25519","kty":"OKP","x":%q}`, encode(material))
	case *rsa.PublicKey:
		if bits := material.N.BitLen(); bits < minRSABits || bits > maxRSABits || material.E < 3 || material.E%2 == 0 {
			return publicKey{}, fmt.Errorf("an RSA key must have %d to %d bits and an odd exponent above 2", minRSABits, maxRSABits)
		}
		k.jwk = fmt.Sprintf(`{"e":%q,"kty":"RSA","n":%q}`, encode(big.NewInt(int64(material.E)).Bytes()), encode(material.N.Bytes()))
	default:
		return publicKey{}, errors.New("the kind of key is not supported")
	}
	sum := sha256.Sum256([]byte(k.jwk))
	k.thumbprint = encode(sum[:])
	return k, nil
}

var strictBase64 = base64.RawURLEncoding.Strict()

func coordinate(text string, size int) ([]byte, error) {
	raw, err := strictBase64.DecodeString(text)
	if err != nil || len(raw) != size || strings.ContainsAny(text, "\r\n") {
		return nil, errors.New("not a coordinate")
	}
	return raw, nil
}

// natural reads a Base64urlUInt (RFC 7518 §2), which has no leading zeros.
func natural(text string) (*big.Int, error) {
	raw, err := strictBase64.DecodeString(text)
	if err != nil || len(raw) == 0 || len(raw) > maxRSABits/8 || raw[0] == 0 || strings.ContainsAny(text, "\r\n") {
		return nil, errors.New("not a number")
	}
	return new(big.Int).SetBytes(raw), nil
}

// verifies returns whether the signature was made by this key, with the algorithm in the proof,
// which must be one of the key's own kind.
func (k publicKey) verifies(algorithm, input string, signature []byte) bool {
	switch key := k.material.(type) {
	case *ecdsa.PublicKey:
		name, newHash := ecdsaAlgorithm(key.Curve)
		size := (key.Params().BitSize + 7) / 8
		if algorithm != name || len(signature) != 2*size {
			return false
		}
		h := newHash()
		h.Write([]byte(input))
		r, s := new(big.Int).SetBytes(signature[:size]), new(big.Int).SetBytes(signature[size:])
		return ecdsa.Verify(key, h.Sum(nil), r, s)
	case ed25519.PublicKey:
		return (algorithm == "EdDSA" || algorithm == "Ed25519") && ed25519.Verify(key, []byte(input), signature)
	case *rsa.PublicKey:
		digest := sha256.Sum256([]byte(input))
		switch algorithm {
		case "RS256":
			return rsa.VerifyPKCS1v15(key, crypto.SHA256, digest[:], signature) == nil
		case "PS256":
			return rsa.VerifyPSS(key, crypto.SHA256, digest[:], signature, &rsa.PSSOptions{SaltLength: rsa.PSSSaltLengthEqualsHash}) == nil
		}
	}
	return false
}

func ecdsaAlgorithm(curve elliptic.Curve) (string, func() hash.Hash) {
	switch curve {
	case elliptic.P384():
		return "ES384", sha512.New384
	case elliptic.P521():
		return "ES512", sha512.New
	}
	return "ES256", sha256.New
}
