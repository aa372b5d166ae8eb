package token

import (
	"bytes"
	"crypto"
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/rsa"
	"crypto/x509"
	"encoding/base64"
	"encoding/json"
	"encoding/pem"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"sync/atomic"

	"github.com/lestrrat-go/jwx/v2/jwa"
	"github.com/lestrrat-go/jwx/v2/jwk"
	"github.com/lestrrat-go/jwx/v2/jws"

	"deputy.example/deputy/client/delegation"
	"deputy.example/deputy/server/internal/vault"
)

// KeyFile names one signing key.
type KeyFile struct {
	// Path of the private key: PKCS#8 in PEM, or one private JWK.
	Path string `yaml:"path"`
	// Algorithm of the key, always required: ES256, EdDSA or RS256.
	Algorithm string `yaml:"algorithm"`
}

// KeysetConfig names a tenant's signing keys.
type KeysetConfig struct {
	// Keys of the tenant. The first one signs. The others are published and still verify. To
	// rotate, put the new key last, wait until verifiers have fetched it, put it first, and drop
	// the old one when its last token has expired.
	Keys []KeyFile
	// Create makes the first key's file, readable by its owner only, if it does not exist. It is
	// for development: two machines that each create a key refuse each other's tokens.
	Create bool
}

// Keyset signs a tenant's tokens and publishes the keys that verify them: keys of files, which
// never change, or managed keys, which the clock and other instances change. It is safe for
// concurrent use.
type Keyset struct {
	fixed  *keys                       // keys of files; nil: managed keys
	series *vault.Series[*signingKey]  // nil: keys of files
	latest atomic.Pointer[managedKeys] // the keys of the newest set of the series
}

// keys are a tenant's keys at one time.
type keys struct {
	active *signingKey // nil: no key signs
	public *keyring
	jwks   []byte
}

type signingKey struct {
	*publicKey
	private crypto.Signer
	signer  jws.Signer
	// The encoded JOSE headers with the following dot: of every token, and of every status list.
	header, listHeader string
	frame              int // length of a token without its encoded claims
}

// OpenKeyset reads and tests every key. Errors name the field, such as signing_keys[0].algorithm.
func OpenKeyset(config KeysetConfig) (*Keyset, error) {
	if len(config.Keys) == 0 {
		return nil, fault("signing_keys", "name at least one signing key")
	}
	k := &keys{public: &keyring{byID: make(map[string]*publicKey)}}
	var published []jwk.Key
	for i, file := range config.Keys {
		path := fmt.Sprintf("signing_keys[%d]", i)
		algorithm := jwa.SignatureAlgorithm(file.Algorithm)
		if algorithm != jwa.ES256 && algorithm != jwa.EdDSA && algorithm != jwa.RS256 {
			return nil, fault(path+".algorithm", "must be ES256, EdDSA or RS256")
		}
		if i == 0 && config.Create {
			if err := createKey(file.Path, algorithm); err != nil {
				return nil, fault(path+".path", "cannot create the key: %v", err)
			}
		}
		key, err := openKey(file.Path, algorithm)
		if err != nil {
			return nil, fault(path+".path", "%v", err)
		}
		if k.public.find(key.id) != nil {
			return nil, fault(path+".path", "holds the same key as an earlier entry")
		}
		k.public.byID[key.id] = key.publicKey
		if k.active == nil {
			k.active = key
		}
		entry, err := key.publicJWK()
		if err != nil {
			return nil, fault(path+".path", "%v", err)
		}
		published = append(published, entry)
	}
	var err error
	k.jwks, err = json.Marshal(map[string]any{"keys": published})
	return &Keyset{fixed: k}, err
}

// current returns the keys of this moment.
func (k *Keyset) current() (*keys, error) {
	switch {
	case k.fixed != nil:
		return k.fixed, nil
	case k.series != nil:
		return k.managed()
	}
	return nil, errors.New("the keyset has no keys")
}

// signer returns the key that signs now.
func (k *Keyset) signer() (*signingKey, error) {
	current, err := k.current()
	if err != nil {
		return nil, fmt.Errorf("sign: %w", err)
	}
	if current.active == nil {
		return nil, errors.New("sign: no key signs now")
	}
	return current.active, nil
}

// find returns the key with this kid, if it is in force.
func (k *Keyset) find(kid string) (*publicKey, error) {
	current, err := k.current()
	if err != nil {
		return nil, delegation.Unavailable("the signing keys", err)
	}
	if key := current.public.find(kid); key != nil && kid != "" {
		return key, nil
	}
	return nil, errUnknownKey
}

// SizeOf returns the length of a token with so many bytes of claims.
func (k *Keyset) SizeOf(claims int) (int, error) {
	active, err := k.signer()
	if err != nil {
		return 0, err
	}
	return active.frame + base64.RawURLEncoding.EncodedLen(claims), nil
}

// Sign makes a token of the claims, which must be one JSON object. The header holds exactly alg,
// kid and typ, and the active key signs. A token longer than delegation.MaxTokenBytes is an error,
// because no verifier would read it.
func (k *Keyset) Sign(claims []byte) (string, error) {
	active, err := k.signer()
	if err != nil {
		return "", err
	}
	return active.sign(claims)
}

// SignStatusList makes a signed status list of the claims, which must be one JSON object. Its typ
// prevents its use as a token, here and at every verifier that reads typ (RFC 8725 §3.11).
func (k *Keyset) SignStatusList(claims []byte) (string, error) {
	active, err := k.signer()
	if err != nil {
		return "", err
	}
	return active.signAs(active.listHeader, claims)
}

// JWKS returns the published JWK Set (RFC 7517 §5), public keys only. Callers must not change it.
// It is nil while the managed keys may not be used.
func (k *Keyset) JWKS() []byte {
	current, err := k.current()
	if err != nil {
		return nil
	}
	return current.jwks
}

func (s *signingKey) sign(claims []byte) (string, error) {
	token, err := s.signAs(s.header, claims)
	if err == nil && len(token) > delegation.MaxTokenBytes {
		return "", fmt.Errorf("sign: the token would be %d bytes long, more than %d", len(token), delegation.MaxTokenBytes)
	}
	return token, err
}

func (s *signingKey) signAs(header string, claims []byte) (string, error) {
	unsigned := make([]byte, 0, len(header)+base64.RawURLEncoding.EncodedLen(len(claims))+512)
	unsigned = append(unsigned, header...)
	unsigned = base64.RawURLEncoding.AppendEncode(unsigned, claims)
	signature, err := s.signer.Sign(unsigned, s.private)
	if err != nil {
		return "", fmt.Errorf("sign: %w", err)
	}
	return string(base64.RawURLEncoding.AppendEncode(append(unsigned, '.'), signature)), nil
}

func newSigningKey(algorithm jwa.SignatureAlgorithm, private crypto.Signer) (*signingKey, error) {
	public, err := newPublicKey("", algorithm, private.Public())
	if err != nil {
		return nil, err
	}
	signer, err := jws.NewSigner(algorithm)
	if err != nil {
		return nil, err
	}
	header := func(typ string) string {
		raw := fmt.Sprintf(`{"alg":%q,"kid":%q,"typ":%q}`, algorithm, public.id, typ)
		return base64.RawURLEncoding.EncodeToString([]byte(raw)) + "."
	}
	key := &signingKey{
		publicKey: public, private: private, signer: signer,
		header: header(delegation.HeaderTypeAccessToken), listHeader: header(delegation.HeaderTypeStatusList),
	}

	// A JWK can hold a private part that does not belong to its public part. The probe detects
	// that.
	probe, err := key.sign([]byte(`{}`))
	if err != nil {
		return nil, err
	}
	key.frame = len(probe) - base64.RawURLEncoding.EncodedLen(len(`{}`))
	u, err := delegation.Parse(probe)
	if err != nil {
		return nil, err
	}
	if key.verify(u) != nil {
		return nil, errors.New("the private and the public part of the key do not belong together")
	}
	return key, nil
}

func (s *signingKey) publicJWK() (jwk.Key, error) {
	key, err := jwk.FromRaw(s.material)
	if err != nil {
		return nil, err
	}
	for name, value := range map[string]any{jwk.KeyIDKey: s.id, jwk.AlgorithmKey: s.algorithm, jwk.KeyUsageKey: jwk.ForSignature} {
		if err := key.Set(name, value); err != nil {
			return nil, err
		}
	}
	return key, nil
}

// openKey reads a private key. Its errors never hold content of the file.
func openKey(path string, algorithm jwa.SignatureAlgorithm) (*signingKey, error) {
	data, err := os.ReadFile(path)
	if err != nil {
		return nil, err
	}
	private, err := parsePrivateKey(data, algorithm)
	if err != nil {
		return nil, err
	}
	return newSigningKey(algorithm, private)
}

func parsePrivateKey(data []byte, algorithm jwa.SignatureAlgorithm) (crypto.Signer, error) {
	var raw any
	if trimmed := bytes.TrimSpace(data); len(trimmed) > 0 && trimmed[0] == '{' {
		key, err := jwk.ParseKey(trimmed)
		if err != nil {
			return nil, errors.New("not a JWK")
		}
		if name := key.Algorithm().String(); name != "" && name != algorithm.String() {
			return nil, fmt.Errorf("the JWK's alg is not %s", algorithm)
		}
		if err := key.Raw(&raw); err != nil {
			return nil, errors.New("not a usable JWK")
		}
	} else {
		block, rest := pem.Decode(data)
		if block == nil || block.Type != "PRIVATE KEY" || len(bytes.TrimSpace(rest)) > 0 {
			return nil, errors.New("neither one PKCS#8 private key in PEM nor one JWK")
		}
		var err error
		if raw, err = x509.ParsePKCS8PrivateKey(block.Bytes); err != nil {
			return nil, errors.New("not a PKCS#8 private key")
		}
	}
	return usable(raw)
}

func usable(raw any) (crypto.Signer, error) {
	switch private := raw.(type) {
	case *ecdsa.PrivateKey:
		return private, nil
	case ed25519.PrivateKey:
		return private, nil
	case *rsa.PrivateKey:
		if err := private.Validate(); err != nil {
			return nil, errors.New("not a consistent RSA key")
		}
		private.Precompute()
		return private, nil
	}
	return nil, errors.New("not a private key of a supported kind")
}

// createKey writes a new key unless the file exists. The name appears only when the content is
// durable, and never replaces a key that another process wrote meanwhile: a crash or a race leaves
// one complete key.
func createKey(path string, algorithm jwa.SignatureAlgorithm) error {
	if _, err := os.Stat(path); !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	private, err := generateKey(algorithm)
	if err != nil {
		return err
	}
	der, err := x509.MarshalPKCS8PrivateKey(private)
	if err != nil {
		return err
	}
	// CreateTemp makes the file with mode 0600.
	temp, err := os.CreateTemp(filepath.Dir(path), ".signing-key-*")
	if err != nil {
		return err
	}
	defer os.Remove(temp.Name())
	defer temp.Close()
	if err := pem.Encode(temp, &pem.Block{Type: "PRIVATE KEY", Bytes: der}); err != nil {
		return err
	}
	if err := temp.Sync(); err != nil {
		return err
	}
	if err := os.Link(temp.Name(), path); err != nil && !errors.Is(err, fs.ErrExist) {
		return err
	}
	return syncDir(filepath.Dir(path))
}

func syncDir(path string) error {
	dir, err := os.Open(path)
	if err != nil {
		return err
	}
	defer dir.Close()
	return dir.Sync()
}

func generateKey(algorithm jwa.SignatureAlgorithm) (crypto.Signer, error) {
	switch algorithm {
	case jwa.EdDSA:
		_, private, err := ed25519.GenerateKey(rand.Reader)
		return private, err
	case jwa.RS256:
		return rsa.GenerateKey(rand.Reader, minRSABits)
	}
	return ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
}
