package main

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/sha256"
	"encoding/base64"
	"encoding/json"
	"errors"
	"math/big"
	"strings"
)

// signer signs tokens with a key of its own (ES256): what people's provider and the platform of
// workloads do elsewhere.
type signer struct {
	key    *ecdsa.PrivateKey
	public []byte // JWK Set
}

func newSigner() (*signer, error) {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return nil, err
	}
	point, err := key.PublicKey.Bytes() // 0x04, X, Y
	if err != nil {
		return nil, err
	}
	encode := base64.RawURLEncoding.EncodeToString
	public, err := json.Marshal(map[string]any{"keys": []map[string]string{{
		"kty": "EC", "crv": "P-256", "x": encode(point[1:33]), "y": encode(point[33:]), "kid": keyID, "alg": "ES256", "use": "sig",
	}}})
	return &signer{key: key, public: public}, err
}

// keyID names each signer's only key.
const keyID = "loadtest"

// sign makes a compact JWS of the claims (RFC 7515 section 3.1).
func (s *signer) sign(typ string, claims map[string]any) (string, error) {
	header, err := json.Marshal(map[string]string{"alg": "ES256", "kid": keyID, "typ": typ})
	if err != nil {
		return "", err
	}
	payload, err := json.Marshal(claims)
	if err != nil {
		return "", err
	}
	input := base64.RawURLEncoding.EncodeToString(header) + "." + base64.RawURLEncoding.EncodeToString(payload)
	digest := sha256.Sum256([]byte(input))
	r, v, err := ecdsa.Sign(rand.Reader, s.key, digest[:])
	if err != nil {
		return "", err
	}
	var signature [64]byte // RFC 7518 section 3.4: R and S, 32 bytes each
	r.FillBytes(signature[:32])
	v.FillBytes(signature[32:])
	return input + "." + base64.RawURLEncoding.EncodeToString(signature[:]), nil
}

// signatureCheck takes a token apart and returns what verifies it: a hash and the bare ES256.
func signatureCheck(public *ecdsa.PublicKey, token string) (check func() bool, err error) {
	at := strings.LastIndexByte(token, '.')
	if at < 0 {
		return nil, errors.New("not a JWS")
	}
	signature, err := base64.RawURLEncoding.Strict().DecodeString(token[at+1:])
	if err != nil || len(signature) != 64 {
		return nil, errors.New("not a JWS")
	}
	r, s := new(big.Int).SetBytes(signature[:32]), new(big.Int).SetBytes(signature[32:])
	return func() bool {
		digest := sha256.Sum256([]byte(token[:at]))
		return ecdsa.Verify(public, digest[:], r, s)
	}, nil
}

// verifyES256 is the least that a server has to do with a token: it checks the signature and reads
// the claims.
func verifyES256(public *ecdsa.PublicKey, token string) (claims map[string]any, err error) {
	check, err := signatureCheck(public, token)
	if err != nil {
		return nil, err
	}
	if !check() {
		return nil, errors.New("the signature is not the key's")
	}
	payload := strings.Split(token, ".")[1]
	text, err := base64.RawURLEncoding.Strict().DecodeString(payload)
	if err != nil {
		return nil, err
	}
	return claims, json.Unmarshal(text, &claims)
}
