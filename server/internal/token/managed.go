package token

import (
	"crypto/x509"
	"encoding/json"
	"errors"
	"time"

	"github.com/lestrrat-go/jwx/v2/jwa"
	"github.com/lestrrat-go/jwx/v2/jwk"

	"deputy.example/deputy/server/internal/vault"
)

// managedKeys is a keyset made of managed keys.
type managedKeys struct {
	*keys
	of *vault.Set[*signingKey]
}

// NewManagedKeyset makes a keyset of managed keys. It has keys, and signs, once a vault has opened
// the series. A nil now means time.Now.
func NewManagedKeyset(plan vault.Plan, now func() time.Time) (*Keyset, vault.Member) {
	series := vault.NewSeries(plan, vault.Maker[*signingKey]{Make: makeSealable, Open: openSealable}, now)
	return &Keyset{series: series}, series
}

func makeSealable(algorithm string) ([]byte, error) {
	private, err := generateKey(jwa.SignatureAlgorithm(algorithm))
	if err != nil {
		return nil, err
	}
	return x509.MarshalPKCS8PrivateKey(private)
}

func openSealable(der []byte, algorithm string) (*signingKey, string, error) {
	raw, err := x509.ParsePKCS8PrivateKey(der)
	if err != nil {
		return nil, "", errors.New("not a PKCS#8 private key")
	}
	private, err := usable(raw)
	if err != nil {
		return nil, "", err
	}
	key, err := newSigningKey(jwa.SignatureAlgorithm(algorithm), private)
	if err != nil {
		return nil, "", err
	}
	return key, key.id, nil
}

// managed builds the keys only when the series has another set.
func (k *Keyset) managed() (*keys, error) {
	set, err := k.series.Now()
	if err != nil {
		return nil, err
	}
	if latest := k.latest.Load(); latest != nil && latest.of == set {
		return latest.keys, nil
	}
	made := &keys{public: &keyring{byID: make(map[string]*publicKey)}}
	published := []jwk.Key{}
	for _, held := range set.Keys {
		entry, err := held.Key.publicJWK()
		if err != nil {
			return nil, err
		}
		published = append(published, entry)
		made.public.byID[held.Key.id] = held.Key.publicKey
		if held.Phase == vault.Signing {
			made.active = held.Key
		}
	}
	if made.jwks, err = json.Marshal(map[string]any{"keys": published}); err != nil {
		return nil, err
	}
	k.latest.Store(&managedKeys{made, set})
	return made, nil
}
