package token

import (
	"bytes"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/rsa"
	"crypto/x509"
	"encoding/json"
	"encoding/pem"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"

	"github.com/lestrrat-go/jwx/v2/jwk"

	"deputy.example/deputy/client/delegation"
)

func TestMintedTokensVerify(t *testing.T) {
	for _, algorithm := range []string{"ES256", "EdDSA", "RS256"} {
		t.Run(algorithm, func(t *testing.T) {
			w := newWorld(t, func(c *TrustConfig) { c.Keys = newKeyset(t, algorithm) })
			w.keys = w.config.Keys
			token := w.own(t, nil)
			if _, err := w.Own(token); err != nil {
				t.Fatal(err)
			}
			u, err := delegation.Parse(token)
			if err != nil {
				t.Fatal(err)
			}
			header, _, _ := strings.Cut(token, ".")
			want := segment([]byte(`{"alg":"` + algorithm + `","kid":"` + w.keys.fixed.active.id + `","typ":"at+jwt"}`))
			if header != want {
				t.Errorf("header is %s", header)
			}
			// The payload is the given claims, byte for byte: the ledger holds their digest.
			if canonical, err := w.ownClaim.MarshalJSON(); err != nil || !bytes.Equal(u.Payload, canonical) {
				t.Errorf("payload %s, want %s (%v)", u.Payload, canonical, err)
			}
			// A verifier that fetches the published set can verify the token.
			config := w.config
			config.Issuer, config.Keys = "https://other.example", newKeyset(t, "ES256")
			config.TrustedIssuers = []TrustedIssuer{{
				Issuer: tenantIssuer, Keys: KeySource{JWKS: string(w.keys.JWKS())}, Algorithms: []string{algorithm},
				Principal: Mapping{Type: "user"}, Audiences: []string{api}, ImportAct: &Mapping{Type: "agent", Prefix: "x"},
			}}
			config.Clients = nil
			other, err := NewTrust(config)
			if err != nil {
				t.Fatal(err)
			}
			if _, err := other.Subject(t.Context(), token, accessType); err != nil {
				t.Error(err)
			}
		})
	}
}

func TestPublishedKeysHoldNoSecret(t *testing.T) {
	keys := newKeyset(t, "ES256", "EdDSA", "RS256")
	var set struct{ Keys []map[string]any }
	if err := json.Unmarshal(keys.JWKS(), &set); err != nil || len(set.Keys) != 3 {
		t.Fatalf("%s: %v", keys.JWKS(), err)
	}
	allowed := map[string]bool{"kty": true, "crv": true, "x": true, "y": true, "n": true, "e": true, "kid": true, "alg": true, "use": true}
	for _, key := range set.Keys {
		for member := range key {
			if !allowed[member] {
				t.Errorf("published key has %q", member)
			}
		}
		if key["use"] != "sig" || keys.fixed.public.find(key["kid"].(string)) == nil {
			t.Errorf("published key is %v", key)
		}
	}
}

// RFC 7638 §3.1 gives an RSA key and its thumbprint.
func TestThumbprintIsThatOfRFC7638(t *testing.T) {
	const n = "0vx7agoebGcQSuuPiLJXZptN9nndrQmbXEps2aiAFbWhM78LhWx4cbbfAAtVT86zwu1RK7aPFFxuhDR1L6tSoc_BJECPebWKRXjBZCiFV4n3oknjhMst" +
		"n64tZ_2W-5JsGY4Hc5n9yBXArwl93lqt7_RN5w6Cf0h4QyQ5v-65YGjQR0_FDW2QvzqY368QQMicAtaSqzs8KJZgnYb9c7d0zgdAZHzu6qMQvRL5hajrn1n91CbOpbISD08qNLyrdkt-bFTWhAI4vMQFh6WeZu0fM4lFd2NcRwr3XPksINHaQ-G_xBniIqbw0Ls1jF44-csFCur-kEgU8awapJzKnqDKgw"
	key, err := parseJWK([]byte(`{"kty":"RSA","n":"`+n+`","e":"AQAB"}`), knownAlgorithms()[4:5])
	if err != nil || key.thumbprint != aThumbprint || key.id != aThumbprint {
		t.Errorf("%+v, %v", key, err)
	}
}

func TestRotation(t *testing.T) {
	dir := t.TempDir()
	file := func(name string) KeyFile { return KeyFile{Path: filepath.Join(dir, name), Algorithm: "ES256"} }
	open := func(files ...KeyFile) *Keyset {
		keys, err := OpenKeyset(KeysetConfig{Keys: files, Create: true})
		if err != nil {
			t.Fatal(err)
		}
		return keys
	}
	first, second := open(file("a")), open(file("b"))
	both := open(file("b"), file("a"))
	if both.fixed.active.id != second.fixed.active.id || both.fixed.public.find(first.fixed.active.id) == nil {
		t.Error("the first key does not sign, or the others do not verify")
	}
	if open(file("a")).fixed.active.id != first.fixed.active.id {
		t.Error("a restart makes another key")
	}
	w := newWorld(t)
	w.keys = first
	old := w.own(t, nil)
	w.Trust.keys = both
	if _, err := w.Own(old); err != nil {
		t.Errorf("a token of the former key is refused: %v", err)
	}
	w.Trust.keys = second
	if _, err := w.Own(old); err == nil {
		t.Error("a token of a dropped key is accepted")
	}
}

func TestCreatedKeyIsPrivateAndWhole(t *testing.T) {
	path := filepath.Join(t.TempDir(), "key.pem")
	ids := make(chan string, 8)
	var starts sync.WaitGroup
	for range cap(ids) { // several processes may start at once
		starts.Go(func() {
			keys, err := OpenKeyset(KeysetConfig{Keys: []KeyFile{{Path: path, Algorithm: "EdDSA"}}, Create: true})
			if err != nil {
				t.Error(err)
				return
			}
			ids <- keys.fixed.active.id
		})
	}
	starts.Wait()
	close(ids)
	first := <-ids
	for id := range ids {
		if id != first {
			t.Error("two starts have two keys")
		}
	}
	info, err := os.Stat(path)
	if err != nil || info.Mode().Perm() != 0o600 {
		t.Errorf("%v, %v", info.Mode(), err)
	}
	if left, err := filepath.Glob(filepath.Join(filepath.Dir(path), "*")); err != nil || len(left) != 1 {
		t.Errorf("left behind: %v, %v", left, err)
	}
	if left, err := filepath.Glob(filepath.Join(filepath.Dir(path), ".*")); err != nil || len(left) != 0 {
		t.Errorf("left behind: %v, %v", left, err)
	}
}

func TestSigningKeyRules(t *testing.T) {
	dir := t.TempDir()
	save := func(name string, content []byte) string {
		path := filepath.Join(dir, name)
		if err := os.WriteFile(path, content, 0o600); err != nil {
			t.Fatal(err)
		}
		return path
	}
	private := func(alg string) any { return newTestKey(t, alg, "").private }
	pkcs8 := func(key any) []byte {
		der, err := x509.MarshalPKCS8PrivateKey(key)
		if err != nil {
			t.Fatal(err)
		}
		return pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: der})
	}
	asJWK := func(key any, change object) []byte {
		k, err := jwk.FromRaw(key)
		if err != nil {
			t.Fatal(err)
		}
		members := object{}
		if err := json.Unmarshal([]byte(toJSON(t, k)), &members); err != nil {
			t.Fatal(err)
		}
		return []byte(toJSON(t, members.with(change)))
	}
	es := private("ES256")
	otherX := asJWK(private("ES256"), nil)
	var other object
	if err := json.Unmarshal(otherX, &other); err != nil {
		t.Fatal(err)
	}
	weak, err := rsa.GenerateKey(rand.Reader, 1024)
	if err != nil {
		t.Fatal(err)
	}
	p384, err := ecdsa.GenerateKey(elliptic.P384(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	good := save("good.pem", pkcs8(es))
	for _, row := range []struct {
		name         string
		files        []KeyFile
		field, words string
	}{
		{"PKCS#8", []KeyFile{{good, "ES256"}}, "", ""},
		{"JWK", []KeyFile{{save("good.jwk", asJWK(es, nil)), "ES256"}}, "", ""},
		{"JWK of RSA", []KeyFile{{save("rsa.jwk", asJWK(private("RS256"), nil)), "RS256"}}, "", ""},
		{"JWK of Ed25519", []KeyFile{{save("ed.jwk", asJWK(private("EdDSA"), nil)), "EdDSA"}}, "", ""},
		{"none", nil, "signing_keys", "at least one"},
		{"no algorithm", []KeyFile{{Path: good}}, "signing_keys[0].algorithm", "must be"},
		{"algorithm HS256", []KeyFile{{good, "HS256"}}, "signing_keys[0].algorithm", "must be"},
		{"algorithm PS256", []KeyFile{{good, "PS256"}}, "signing_keys[0].algorithm", "must be"},
		{"algorithm of another kind", []KeyFile{{good, "RS256"}}, "signing_keys[0].path", "does not fit RS256"},
		{"another curve", []KeyFile{{save("p384.pem", pkcs8(p384)), "ES256"}}, "signing_keys[0].path", "curve"},
		{"file that is not there", []KeyFile{{good, "ES256"}, {filepath.Join(dir, "nothing"), "ES256"}}, "signing_keys[1].path", "no such file"},
		{"the same key twice", []KeyFile{{good, "ES256"}, {filepath.Join(dir, "good.jwk"), "ES256"}}, "signing_keys[1].path", "same key"},
		{"not a key", []KeyFile{{save("text", []byte("secret text")), "ES256"}}, "signing_keys[0].path", "neither"},
		{"two keys in one file", []KeyFile{{save("two.pem", append(pkcs8(es), pkcs8(es)...)), "ES256"}}, "signing_keys[0].path", "neither"},
		{"a public key", []KeyFile{{save("public.jwk", asJWK(es.(*ecdsa.PrivateKey).Public(), nil)), "ES256"}}, "signing_keys[0].path", "not a private key"},
		{"a shared key", []KeyFile{{save("oct.jwk", []byte(`{"kty":"oct","k":"AAAA"}`)), "ES256"}}, "signing_keys[0].path", "not a private key"},
		{"a JWK for another algorithm", []KeyFile{{save("alg.jwk", asJWK(es, object{"alg": "ES384"})), "ES256"}}, "signing_keys[0].path", "alg is not ES256"},
		{"a JWK whose halves differ", []KeyFile{{save("halves.jwk", asJWK(es, object{"x": other["x"], "y": other["y"]})), "ES256"}}, "signing_keys[0].path", ""},
		{"RSA of 1024 bits", []KeyFile{{save("weak.pem", pkcs8(weak)), "RS256"}}, "signing_keys[0].path", "1024 bits"},
	} {
		t.Run(row.name, func(t *testing.T) {
			keys, err := OpenKeyset(KeysetConfig{Keys: row.files})
			if row.field == "" {
				if err != nil {
					t.Error(err)
				}
				return
			}
			if keys != nil || err == nil || !strings.Contains(err.Error(), row.field+": ") || !strings.Contains(err.Error(), row.words) {
				t.Errorf("%v and %v, want field %s and words %q", keys, err, row.field, row.words)
			}
		})
	}
}

func TestTokenThatNobodyWouldReadIsNotMinted(t *testing.T) {
	keys := newKeyset(t, "ES256")
	if token, err := keys.Sign([]byte(`{"x":"` + strings.Repeat("x", delegation.MaxTokenBytes) + `"}`)); err == nil {
		t.Errorf("a token of %d bytes is minted", len(token))
	}
	// The longest token that Sign makes is accepted.
	for n := 5000; ; n++ {
		token, err := keys.Sign([]byte(`{"x":"` + strings.Repeat("x", n) + `"}`))
		if err != nil {
			break
		}
		if _, err := delegation.Parse(token); err != nil {
			t.Fatalf("a token of %d bytes is minted and not read: %v", len(token), err)
		}
	}
}
