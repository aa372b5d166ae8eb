package client

import (
	"context"
	"crypto"
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/rsa"
	"crypto/sha256"
	"crypto/x509"
	"encoding/base64"
	"encoding/pem"
	"errors"
	"fmt"
	"math/big"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"deputy.example/deputy/client/delegation"
	deputyv1 "deputy.example/deputy/gen/deputy/v1"
)

const acme = "https://deputy.example/t/acme"

// TestAssertion checks each kind of key with the JOSE library's own verifier.
func TestAssertion(t *testing.T) {
	p256, _ := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	_, ed, _ := ed25519.GenerateKey(rand.Reader)
	rsaKey, err := rsa.GenerateKey(rand.Reader, 2048)
	if err != nil {
		t.Fatal(err)
	}
	for algorithm, signer := range map[string]crypto.Signer{"ES256": p256, "EdDSA": ed, "RS256": rsaKey} {
		t.Run(algorithm, func(t *testing.T) {
			key, err := NewKey(signer, "")
			if err != nil {
				t.Fatal(err)
			}
			clock := newClock()
			credential, err := NewAssertion(AssertionConfig{Issuer: acme, ClientID: "planner", Key: key, Lifetime: time.Minute, Now: clock.now})
			if err != nil {
				t.Fatal(err)
			}
			token, err := credential(t.Context())
			if err != nil {
				t.Fatal(err)
			}
			u, err := delegation.Parse(token)
			if err != nil {
				t.Fatal(err)
			}
			if !verifiesByTheBook(signer.Public(), u.SigningInput, u.Signature) {
				t.Fatal("the signature is wrong")
			}
			r, err := u.Registered()
			if err != nil {
				t.Fatal(err)
			}
			// Deputy does not accept a list of one.
			if aud, _ := u.StringClaim("aud"); aud != acme {
				t.Errorf("aud = %q, want a single string", aud)
			}
			now := clock.now().Unix()
			if r.Issuer != "planner" || r.Subject != "planner" || len(r.Audience) != 1 || r.Audience[0] != acme ||
				r.IssuedAt != now || r.ExpiresAt != now+60 || u.Header.KeyID != key.Thumbprint() || u.Header.Algorithm != algorithm {
				t.Errorf("claims = %+v, header = %+v", r, u.Header)
			}
			again, err := credential(t.Context())
			if err != nil {
				t.Fatal(err)
			}
			if other, _ := delegation.Parse(again); string(other.Payload) == string(u.Payload) {
				t.Error("two assertions have one jti")
			}
		})
	}
}

// verifiesByTheBook is RFC 7518 §3.3 and §3.4 and RFC 8037 §3.1 with the standard library alone.
func verifiesByTheBook(public crypto.PublicKey, input string, signature []byte) bool {
	digest := sha256.Sum256([]byte(input))
	switch key := public.(type) {
	case *ecdsa.PublicKey:
		return len(signature) == 64 && ecdsa.Verify(key, digest[:], new(big.Int).SetBytes(signature[:32]), new(big.Int).SetBytes(signature[32:]))
	case ed25519.PublicKey:
		return ed25519.Verify(key, []byte(input), signature)
	case *rsa.PublicKey:
		return rsa.VerifyPKCS1v15(key, crypto.SHA256, digest[:], signature) == nil
	}
	return false
}

func TestNewAssertionRefuses(t *testing.T) {
	key := newTestKey(t)
	for name, cfg := range map[string]AssertionConfig{
		"no issuer": {ClientID: "planner", Key: key}, "no client": {Issuer: acme, Key: key}, "no key": {Issuer: acme, ClientID: "planner"},
		"too long": {Issuer: acme, ClientID: "planner", Key: key, Lifetime: 61 * time.Second},
	} {
		if _, err := NewAssertion(cfg); err == nil {
			t.Errorf("%s: accepted", name)
		}
	}
	short, err := rsa.GenerateKey(rand.Reader, 1024)
	if err == nil {
		_, err = NewKey(short, "")
	}
	if err == nil {
		t.Error("an RSA key of 1024 bits is accepted")
	}
	if _, err := NewKey(nil, ""); err == nil {
		t.Error("no key is accepted")
	}
}

func TestLoadKey(t *testing.T) {
	private, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	pkcs8, err := x509.MarshalPKCS8PrivateKey(private)
	if err != nil {
		t.Fatal(err)
	}
	sec1, err := x509.MarshalECPrivateKey(private)
	if err != nil {
		t.Fatal(err)
	}
	spki, err := x509.MarshalPKIXPublicKey(&private.PublicKey)
	if err != nil {
		t.Fatal(err)
	}
	secret, err := private.Bytes()
	if err != nil {
		t.Fatal(err)
	}
	point, err := private.PublicKey.Bytes()
	if err != nil {
		t.Fatal(err)
	}
	b64 := base64.RawURLEncoding.EncodeToString
	files := map[string]struct {
		content []byte
		id      string // "": refused
	}{
		"pkcs8.pem":  {pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: pkcs8}), "thumbprint"},
		"sec1.pem":   {pem.EncodeToMemory(&pem.Block{Type: "EC PRIVATE KEY", Bytes: sec1}), "thumbprint"},
		"key.jwk":    {fmt.Appendf(nil, `{"kty":"EC","crv":"P-256","kid":"mine","x":"%s","y":"%s","d":"%s"}`, b64(point[1:33]), b64(point[33:]), b64(secret)), "mine"},
		"public.pem": {pem.EncodeToMemory(&pem.Block{Type: "PUBLIC KEY", Bytes: spki}), ""},
		"empty":      {nil, ""},
		"huge":       {make([]byte, 1<<20), ""},
	}
	for name, file := range files {
		path := filepath.Join(t.TempDir(), name)
		if err := os.WriteFile(path, file.content, 0o600); err != nil {
			t.Fatal(err)
		}
		key, err := LoadKey(path)
		if file.id == "" {
			if err == nil {
				t.Errorf("%s: accepted", name)
			}
			continue
		}
		if err != nil {
			t.Errorf("%s: %v", name, err)
			continue
		}
		if want := map[bool]string{true: key.Thumbprint(), false: file.id}[file.id == "thumbprint"]; key.ID() != want {
			t.Errorf("%s: kid %q, want %q", name, key.ID(), want)
		}
		for _, verb := range []string{"%v", "%+v", "%#v", "%s", "%x"} {
			if printed := fmt.Sprintf(verb, AssertionConfig{Key: key}); strings.Contains(printed, fmt.Sprint(new(big.Int).SetBytes(secret))) {
				t.Errorf("%s prints the private key", verb)
			}
		}
		if fmt.Sprintf("%+v", key) != "key "+key.ID() {
			t.Errorf("a key prints as %+v", key)
		}
	}
}

// TestWorkloadFile: a rotated file is used by the next call, and a text that is not a token is not
// sent.
func TestWorkloadFile(t *testing.T) {
	s := startDeputy(t)
	path := filepath.Join(t.TempDir(), "token")
	credential := WorkloadFile(path)
	if _, err := credential(t.Context()); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("no file: %v", err)
	}
	c := connect(t, s, credential)
	if _, err := c.Exchange(t.Context(), toCalendar(s.RootToken("alice"))); reason(t, err) != delegation.ClientUnauthenticated || len(s.Bearers()) != 0 {
		t.Errorf("no file: %v after %d calls", err, len(s.Bearers()))
	}
	for range 2 {
		token := s.RootToken("planner")
		if err := os.WriteFile(path, []byte(token+"\n"), 0o600); err != nil {
			t.Fatal(err)
		}
		if got, err := credential(t.Context()); err != nil || got != token {
			t.Errorf("%v, %v", got == token, err)
		}
	}
	if err := os.WriteFile(path, []byte("-----BEGIN PRIVATE KEY-----"), 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := credential(t.Context()); err == nil {
		t.Error("what is no token is sent")
	}
}

// countingServer grants tokens that live for a minute, and counts.
func countingServer(grants *atomic.Int64, fail *atomic.Pointer[delegation.Error]) *Client {
	return stubClient(func(ctx context.Context, _ *deputyv1.ExchangeRequest) (*deputyv1.ExchangeResponse, error) {
		time.Sleep(10 * time.Millisecond) // the network; time in a bubble costs nothing
		if e := fail.Load(); e != nil {
			return nil, e
		}
		n := grants.Add(1)
		r := granted("calendar.read")
		r.Jti = fmt.Sprint("jti-", n)
		return r, nil
	})
}

func TestTokenSource(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var grants atomic.Int64
		var fail atomic.Pointer[delegation.Error]
		source := countingServer(&grants, &fail).TokenSource(func(context.Context) (ExchangeRequest, error) { return toCalendar("t"), nil })
		var wg sync.WaitGroup
		for range 100 {
			wg.Go(func() {
				if _, err := source.Token(t.Context()); err != nil {
					t.Error(err)
				}
			})
		}
		wg.Wait()
		if n := grants.Load(); n != 1 {
			t.Errorf("%d exchanges for callers at one time", n)
		}
		time.Sleep(41 * time.Second)
		if token, _ := source.Token(t.Context()); token.JTI != "jti-1" {
			t.Errorf("renewed early: %v", token)
		}
		time.Sleep(8 * time.Second) // 12 s before expiry it is due for certain
		if token, _ := source.Token(t.Context()); token.JTI != "jti-2" {
			t.Errorf("not renewed: %v", token)
		}

		fail.Store(delegation.Unavailable("OpenFGA", nil))
		time.Sleep(50 * time.Second)
		if token, err := source.Token(t.Context()); err != nil || token.JTI != "jti-2" {
			t.Errorf("while Deputy is down the old token serves: %v, %v", token, err)
		}
		time.Sleep(10 * time.Second)
		if token, err := source.Token(t.Context()); err == nil {
			t.Errorf("an expired token serves: %v", token)
		}

		fail.Store(nil)
		if token, err := source.Token(t.Context()); err != nil || token.JTI != "jti-3" {
			t.Errorf("recovery: %v, %v", token, err)
		}
		time.Sleep(50 * time.Second)
		fail.Store(delegation.Refuse(delegation.TokenRevoked, "subject_token", "revoked"))
		for range 2 {
			if token, err := source.Token(t.Context()); err == nil || reason(t, err) != delegation.TokenRevoked {
				t.Errorf("after a refusal the old token serves: %v, %v", token, err)
			}
		}
	})
}

func TestTokenSourceOutlivesOneCaller(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var grants atomic.Int64
		var fail atomic.Pointer[delegation.Error]
		source := countingServer(&grants, &fail).TokenSource(func(context.Context) (ExchangeRequest, error) { return toCalendar("t"), nil })
		ctx, cancel := context.WithCancel(t.Context())
		var wg sync.WaitGroup
		wg.Go(func() {
			if _, err := source.Token(ctx); !errors.Is(err, context.Canceled) {
				t.Errorf("the caller that gave up: %v", err)
			}
		})
		synctest.Wait()
		wg.Go(func() {
			if _, err := source.Token(t.Context()); err != nil {
				t.Errorf("the one that waits: %v", err)
			}
		})
		synctest.Wait()
		cancel()
		wg.Wait()
	})
}

func TestTokenSourceRequestFails(t *testing.T) {
	broken := errors.New("no subject token")
	source := stubClient(nil).TokenSource(func(context.Context) (ExchangeRequest, error) { return ExchangeRequest{}, broken })
	if _, err := source.Token(t.Context()); !errors.Is(err, broken) {
		t.Errorf("err = %v", err)
	}
}

func TestRenewalMargin(t *testing.T) {
	for _, left := range []time.Duration{0, time.Nanosecond, time.Second, time.Minute, 24 * time.Hour} {
		for range 100 {
			if margin := renewalMargin(left); margin > left+1 || margin < min(left/5, time.Minute) || margin > 90*time.Second+1 {
				t.Fatalf("what has %v left is renewed %v before its end", left, margin)
			}
		}
	}
}
