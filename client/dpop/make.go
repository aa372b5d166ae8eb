package dpop

import (
	"crypto"
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/rand"
	"crypto/rsa"
	"crypto/sha256"
	"encoding/asn1"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"math/big"
	"time"
)

// Key makes proofs with one private key, held here or, as a crypto.Signer, in a KMS or an HSM. It
// is safe for concurrent use if its signer is.
type Key struct {
	public    publicKey
	signer    crypto.Signer
	algorithm string
	header    string // encoded, with the dot behind it
}

// NewKey wraps a key on P-256, P-384 or P-521, an Ed25519 key or an RSA key of 2048 to 4096 bits,
// to be used with ES256, ES384, ES512, EdDSA or RS256.
func NewKey(signer crypto.Signer) (*Key, error) {
	if signer == nil {
		return nil, errors.New("dpop: the key is missing")
	}
	public, err := newKey(signer.Public())
	if err != nil {
		return nil, fmt.Errorf("dpop: %w", err)
	}
	k := &Key{public: public, signer: signer}
	switch material := public.material.(type) {
	case *ecdsa.PublicKey:
		k.algorithm, _ = ecdsaAlgorithm(material.Curve)
	case ed25519.PublicKey:
		k.algorithm = "EdDSA"
	case *rsa.PublicKey:
		k.algorithm = "RS256"
	}
	header := fmt.Sprintf(`{"typ":"dpop+jwt","alg":%q,"jwk":%s}`, k.algorithm, public.jwk)
	k.header = base64.RawURLEncoding.EncodeToString([]byte(header)) + "."
	return k, nil
}

// Thumbprint is what tokens that are bound to this key hold in cnf.jkt (RFC 9449 §6.1).
func (k *Key) Thumbprint() string { return k.public.thumbprint }

// Format implements fmt.Formatter: a key prints as its thumbprint.
func (k *Key) Format(f fmt.State, _ rune) { fmt.Fprintf(f, "DPoP key %s", k.Thumbprint()) }

// Request is what a proof is made for.
type Request struct {
	Method string // htm: the HTTP method; POST for gRPC
	URI    string // htu; query and fragment are left out. See CallURI for gRPC
	// AccessToken that the request carries in its Authorization; "" if it carries none, as requests
	// to a token endpoint do.
	AccessToken string
	Nonce       string // the newest that the server has given, or ""
}

// proofClaims are those of RFC 9449 §4.2, in its order.
type proofClaims struct {
	ID    string `json:"jti"`
	HTM   string `json:"htm"`
	HTU   string `json:"htu"`
	IAT   int64  `json:"iat"`
	ATH   string `json:"ath,omitempty"`
	Nonce string `json:"nonce,omitempty"`
}

// Prove makes a proof for one request, never to be sent again. random gives the bytes of its jti;
// nil means crypto/rand.
func (k *Key) Prove(r Request, now time.Time, random io.Reader) (string, error) {
	if random == nil {
		random = rand.Reader
	}
	id := make([]byte, 16)
	if _, err := io.ReadFull(random, id); err != nil {
		return "", fmt.Errorf("dpop: reading random bytes: %w", err)
	}
	if r.Method == "" {
		return "", errors.New("dpop: the method of the request is missing")
	}
	htu, err := withoutQuery(r.URI)
	if err != nil {
		return "", fmt.Errorf("dpop: %w", err)
	}
	claims := proofClaims{ID: base64.RawURLEncoding.EncodeToString(id), HTM: r.Method, HTU: htu, IAT: now.Unix(), Nonce: r.Nonce}
	if r.AccessToken != "" {
		claims.ATH = hashOf(r.AccessToken)
	}
	payload, err := json.Marshal(claims)
	if err != nil {
		return "", fmt.Errorf("dpop: %w", err)
	}
	input := k.header + base64.RawURLEncoding.EncodeToString(payload)
	signature, err := k.sign(input)
	if err != nil {
		return "", fmt.Errorf("dpop: signing: %w", err)
	}
	return input + "." + base64.RawURLEncoding.EncodeToString(signature), nil
}

// hashOf is ath: the SHA-256 of the token's ASCII bytes.
func hashOf(token string) string {
	sum := sha256.Sum256([]byte(token))
	return base64.RawURLEncoding.EncodeToString(sum[:])
}

// sign makes the JWS signature, which for ECDSA is r and s at their full length (RFC 7518 §3.4).
func (k *Key) sign(input string) ([]byte, error) {
	switch public := k.public.material.(type) {
	case *ecdsa.PublicKey:
		_, newHash := ecdsaAlgorithm(public.Curve)
		h := newHash()
		h.Write([]byte(input))
		options := map[int]crypto.Hash{32: crypto.SHA256, 48: crypto.SHA384, 64: crypto.SHA512}[h.Size()]
		der, err := k.signer.Sign(rand.Reader, h.Sum(nil), options)
		if err != nil {
			return nil, err
		}
		var pair struct{ R, S *big.Int }
		if rest, err := asn1.Unmarshal(der, &pair); err != nil || len(rest) > 0 {
			return nil, errors.New("the signer returned no ECDSA signature")
		}
		size := (public.Params().BitSize + 7) / 8
		if pair.R.Sign() < 0 || pair.S.Sign() < 0 || pair.R.BitLen() > 8*size || pair.S.BitLen() > 8*size {
			return nil, errors.New("the signer returned no ECDSA signature")
		}
		signature := make([]byte, 2*size)
		pair.R.FillBytes(signature[:size])
		pair.S.FillBytes(signature[size:])
		return signature, nil
	case ed25519.PublicKey:
		return k.signer.Sign(rand.Reader, []byte(input), crypto.Hash(0))
	}
	digest := sha256.Sum256([]byte(input))
	return k.signer.Sign(rand.Reader, digest[:], crypto.SHA256)
}
