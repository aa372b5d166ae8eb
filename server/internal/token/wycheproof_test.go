package token

import (
	"crypto"
	"encoding/json"
	"errors"
	"os"
	"strings"
	"testing"
	"testing/synctest"

	"github.com/lestrrat-go/jwx/v2/jwa"
	"github.com/lestrrat-go/jwx/v2/jwk"
	"github.com/lestrrat-go/jwx/v2/jws"

	"deputy.example/deputy/client/delegation"
)

type wycheproofFile struct {
	TestGroups []wycheproofGroup `json:"testGroups"`
}

type wycheproofGroup struct {
	Comment string
	Public  json.RawMessage
	Private json.RawMessage
	Tests   []struct {
		ID      int `json:"tcId"`
		Comment string
		JWS     string `json:"jws"`
		Result  string
	}
}

// key returns what an issuer would publish: the public key, or the shared one where there is no
// other.
func (g wycheproofGroup) key() json.RawMessage {
	if g.Public != nil {
		return g.Public
	}
	return g.Private
}

func wycheproof(t *testing.T) []wycheproofGroup {
	t.Helper()
	raw, err := os.ReadFile("../../../client/delegation/testdata/wycheproof/json_web_signature_test.json")
	if err != nil {
		t.Fatal(err)
	}
	var file wycheproofFile
	if err := json.Unmarshal(raw, &file); err != nil {
		t.Fatal(err)
	}
	return file.TestGroups
}

// verifyVector checks header and signature by the gate, the key by the keyring, and the signature
// over the vector's own signing input by the key. It does not read the payload: that of a vector is
// not JSON, and would be refused for that alone.
func verifyVector(ring *keyring, token string) error {
	parts := strings.Split(token, ".")
	if len(parts) != 3 {
		return errors.New("not three parts")
	}
	u, err := delegation.Parse(parts[0] + ".e30." + parts[2])
	if err != nil {
		return err
	}
	u.SigningInput = parts[0] + "." + parts[1]
	key := ring.find(u.Header.KeyID)
	if key == nil {
		return errUnknownKey
	}
	return key.verify(u)
}

// All 355 invalid vectors are refused, by the whole path and, so that the refusal is not for the
// payload alone, by keys and signatures alone.
func TestWycheproofInvalidVectorsAreRefused(t *testing.T) {
	whole, core, valid := 0, 0, 0
	for _, group := range wycheproof(t) {
		set := []byte(toJSON(t, map[string]any{"keys": []json.RawMessage{group.key()}}))
		ring, _, err := parseJWKS(set, knownAlgorithms())
		if err != nil {
			t.Fatal(err)
		}
		synctest.Test(t, func(t *testing.T) {
			f := &fakeIssuer{}
			w := newWorld(t, func(c *TrustConfig) {
				c.Transport = f
				c.TrustedIssuers[0].Keys = KeySource{JWKSURL: idpIssuer + "/jwks"}
				c.TrustedIssuers[0].Algorithms = nil
				for _, algorithm := range knownAlgorithms() {
					c.TrustedIssuers[0].Algorithms = append(c.TrustedIssuers[0].Algorithms, algorithm.String())
				}
			})
			f.body = string(set)
			for _, vector := range group.Tests {
				if doors := w.accepted(t, vector.JWS); doors != nil {
					t.Errorf("%s %d, %s: accepted by %v", group.Comment, vector.ID, vector.Comment, doors)
				} else if vector.Result == "invalid" {
					whole++
				}
				switch err := verifyVector(ring, vector.JWS); {
				case vector.Result == "invalid" && err == nil:
					t.Errorf("%s %d, %s: its signature is accepted", group.Comment, vector.ID, vector.Comment)
				case vector.Result == "invalid":
					core++
				case err == nil:
					valid++
				default:
					wantExplained(t, group, vector.ID, vector.JWS)
				}
			}
		})
	}
	if whole != 355 || core != 355 {
		t.Errorf("refused %d and %d of 355 invalid vectors", whole, core)
	}
	// The control: keys and signatures do accept the valid vectors.
	if valid != 32 {
		t.Errorf("accepted %d of the valid vectors, want 32", valid)
	}
}

// wantExplained checks why a vector is refused here that RFC 7515 calls valid.
func wantExplained(t *testing.T, group wycheproofGroup, id int, token string) {
	t.Helper()
	var key struct{ Kty, Alg string }
	if err := json.Unmarshal(group.key(), &key); err != nil {
		t.Fatal(err)
	}
	switch {
	case key.Kty == "oct": // a shared secret: never accepted
	case key.Alg == "ES521": // the vector's key names an algorithm that does not exist
	default:
		header, err := delegation.Parse(strings.SplitN(token, ".", 2)[0] + ".e30.AAAA")
		// The key is for another algorithm than the token: RFC 7517 §4.4.
		if err == nil && header.Header.Algorithm != key.Alg {
			return
		}
		t.Errorf("%s %d is valid and refused, and nothing explains it", group.Comment, id)
	}
}

// The vectors whose fault is in the header, re-shaped as tokens: their header over valid claims,
// with a signature of the right key. Only the header can be why they are refused.
func TestWycheproofHeadersOverGoodClaimsAreRefused(t *testing.T) {
	refused, groups := 0, 0
	for _, group := range wycheproof(t) {
		private, algorithm, ok := signerOf(group)
		if !ok {
			continue
		}
		sound := map[string]bool{}
		for _, vector := range group.Tests {
			header, _, _ := strings.Cut(vector.JWS, ".")
			u, err := delegation.Parse(header + ".e30.AAAA")
			if vector.Result == "valid" && err == nil && u.Header.Algorithm == algorithm.String() {
				sound[header] = true
			}
		}
		w := newWorld(t, func(c *TrustConfig) {
			c.TrustedIssuers[0].Keys = KeySource{JWKS: toJSON(t, map[string]any{"keys": []json.RawMessage{group.Public}})}
			c.TrustedIssuers[0].Algorithms = []string{algorithm.String()}
			c.TrustedIssuers[0].UntypedAccessTokens = true
		})
		signer, err := jws.NewSigner(algorithm)
		if err != nil {
			t.Fatal(err)
		}
		accepted := 0
		for _, vector := range group.Tests {
			header, _, _ := strings.Cut(vector.JWS, ".")
			unsigned := header + "." + segment([]byte(toJSON(t, w.rootClaims())))
			signature, err := signer.Sign([]byte(unsigned), private)
			if err != nil {
				t.Fatal(err)
			}
			_, err = w.root(t.Context(), unsigned+"."+segment(signature))
			switch {
			case sound[header] && err != nil:
				t.Errorf("%s %d, %s: refused with a sound header: %v", group.Comment, vector.ID, vector.Comment, err)
			case sound[header]:
				accepted++
			case err == nil:
				t.Errorf("%s %d, %s: accepted with header %s", group.Comment, vector.ID, vector.Comment, header)
			default:
				refused++
			}
		}
		if accepted > 0 {
			groups++
		}
	}
	if groups != 11 || refused != 25 {
		t.Errorf("%d headers refused, want 25; sound headers accepted in %d groups, want 11", refused, groups)
	}
}

// signerOf returns the private key of a group that has valid vectors and a supported key.
func signerOf(group wycheproofGroup) (crypto.Signer, jwa.SignatureAlgorithm, bool) {
	if group.Public == nil {
		return nil, "", false
	}
	key, err := jwk.ParseKey(group.Private)
	if err != nil {
		return nil, "", false
	}
	var raw any
	if key.Raw(&raw) != nil {
		return nil, "", false
	}
	private, ok := raw.(crypto.Signer)
	algorithm, err := parseAlgorithm(key.Algorithm().String())
	return private, algorithm, ok && err == nil
}
