package client

// This is the only file that uses jwx, so that jwx can be replaced in a day. jwx parses only keys
// from configured places here. Tokens pass delegation.Parse instead, and signature.go verifies
// them.

import (
	"crypto"
	"encoding/base64"
	"errors"
	"fmt"

	"github.com/go-json-experiment/json"
	"github.com/go-json-experiment/json/jsontext"
	"github.com/lestrrat-go/jwx/v2/jwa"
	"github.com/lestrrat-go/jwx/v2/jwk"
	"github.com/lestrrat-go/jwx/v2/jws"
)

// maxKeys is the maximum number of keys in one JWK Set.
const maxKeys = 100

// parseKeys reads a JWK Set (RFC 7517 §5) by the rule of Deputy's own server for the sets of its
// issuers: strict JSON without duplicate members at any level. A key that cannot verify here
// (another key type, no kid, no alg, an alg that its type does not have, a private or symmetric
// key, another use) is ignored: a token that names it is refused. Two usable keys with one kid are
// an error.
func parseKeys(document []byte) (map[string]*verificationKey, error) {
	var set struct {
		Keys []jsontext.Value `json:"keys"`
	}
	if err := json.Unmarshal(document, &set); err != nil || set.Keys == nil {
		return nil, errors.New("not a JWK Set: must be strict JSON, an object with a list of keys")
	}
	if len(set.Keys) > maxKeys {
		return nil, fmt.Errorf("more than %d keys", maxKeys)
	}
	keys := make(map[string]*verificationKey, len(set.Keys))
	for _, raw := range set.Keys {
		key, err := jwk.ParseKey(raw)
		if err != nil || key.KeyID() == "" {
			continue
		}
		usable, err := newVerificationKey(key)
		if err != nil {
			continue
		}
		if _, twice := keys[key.KeyID()]; twice {
			return nil, errors.New("two keys with one kid")
		}
		keys[key.KeyID()] = usable
	}
	if len(keys) == 0 {
		return nil, errors.New("no usable key")
	}
	return keys, nil
}

func newVerificationKey(key jwk.Key) (*verificationKey, error) {
	if private, err := jwk.IsPrivateKey(key); err != nil || private {
		return nil, errors.New("not a public key")
	}
	if use := key.KeyUsage(); use != "" && use != string(jwk.ForSignature) {
		return nil, errors.New("not for signatures")
	}
	var public crypto.PublicKey
	if err := key.Raw(&public); err != nil {
		return nil, err
	}
	usable, err := prepareKey(public)
	if err != nil {
		return nil, err
	}
	if key.Algorithm().String() != usable.algorithm {
		return nil, fmt.Errorf("alg is not %s", usable.algorithm)
	}
	return usable, nil
}

// parsePrivateKey reads one private key: a JWK, or PEM in PKCS #8, PKCS #1 or SEC 1.
func parsePrivateKey(document []byte) (crypto.Signer, string, error) {
	key, err := jwk.ParseKey(document)
	if err != nil {
		if key, err = jwk.ParseKey(document, jwk.WithPEM(true)); err != nil {
			return nil, "", errors.New("neither a private JWK nor a private key in PEM")
		}
	}
	var raw any
	if err := key.Raw(&raw); err != nil {
		return nil, "", errors.New("not a usable key")
	}
	signer, private := raw.(crypto.Signer)
	if !private {
		return nil, "", errors.New("not a private key")
	}
	return signer, key.KeyID(), nil
}

// thumbprint is the RFC 7638 SHA-256 thumbprint.
func thumbprint(public crypto.PublicKey) (string, error) {
	key, err := jwk.FromRaw(public)
	if err != nil {
		return "", err
	}
	sum, err := key.Thumbprint(crypto.SHA256)
	return base64.RawURLEncoding.EncodeToString(sum), err
}

// sign makes a JWS signature (RFC 7515 §5.1). The signer may be local or remote, as in a KMS.
func sign(algorithm string, signer crypto.Signer, signingInput string) ([]byte, error) {
	s, err := jws.NewSigner(jwa.SignatureAlgorithm(algorithm))
	if err != nil {
		return nil, err
	}
	return s.Sign([]byte(signingInput), signer)
}
