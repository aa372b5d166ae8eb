package client

import (
	"bytes"
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/rsa"
	"encoding/base64"
	"fmt"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"deputy.example/deputy/client/internal/deputytest"
)

// testClock is a clock that moves only when the test moves it.
type testClock struct {
	mu sync.Mutex
	at time.Time
}

func newClock() *testClock { return &testClock{at: time.Now()} }

func (c *testClock) now() time.Time {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.at
}

func (c *testClock) advance(d time.Duration) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.at = c.at.Add(d)
}

// keyServer answers as the test sets, and counts requests.
type keyServer struct {
	*httptest.Server
	fetches atomic.Int64
	answer  atomic.Pointer[http.HandlerFunc]
}

func startKeys(t *testing.T, answer http.HandlerFunc) *keyServer {
	k := &keyServer{}
	k.answer.Store(&answer)
	k.Server = httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		k.fetches.Add(1)
		(*k.answer.Load())(w, r)
	}))
	t.Cleanup(k.Close)
	return k
}

func (k *keyServer) set(answer http.HandlerFunc) { k.answer.Store(&answer) }

func serve(document []byte) http.HandlerFunc {
	return func(w http.ResponseWriter, _ *http.Request) { w.Write(document) }
}

func fetchingVerifier(t *testing.T, s *deputytest.Server, address string, clock *testClock) *Verifier {
	t.Helper()
	transport := &http.Transport{}
	t.Cleanup(transport.CloseIdleConnections)
	v, err := NewVerifier(VerifierConfig{Issuer: s.Issuer, Audience: calendar, JWKSURL: address, HTTPTransport: transport, Now: clock.now, IgnoreRevocations: true})
	if err != nil {
		t.Fatal(err)
	}
	return v
}

// settle waits for a fetch in the background.
func settle(t *testing.T, v *Verifier) {
	t.Helper()
	v.keys.fetching.mu.Lock()
	l := v.keys.fetching.current
	v.keys.fetching.mu.Unlock()
	if l != nil {
		<-l.done
	}
}

func TestKeysFetchedOnceForMany(t *testing.T) {
	s, clock := startDeputy(t), newClock()
	k := startKeys(t, serve(s.JWKS()))
	v := fetchingVerifier(t, s, k.URL, clock)
	token := s.Token(s.Claims(clock.now()))
	var wg sync.WaitGroup
	for range 50 {
		wg.Go(func() {
			if _, err := v.Verify(t.Context(), token); err != nil {
				t.Error(err)
			}
		})
	}
	wg.Wait()
	if n := k.fetches.Load(); n != 1 {
		t.Errorf("%d fetches", n)
	}
}

// TestKeysUnknownKidStorm: invented kids cause one fetch in 30 s and do not affect known kids.
func TestKeysUnknownKidStorm(t *testing.T) {
	s, clock := startDeputy(t), newClock()
	k := startKeys(t, serve(s.JWKS()))
	v := fetchingVerifier(t, s, k.URL, clock)
	good := s.Token(s.Claims(clock.now()))
	if _, err := v.Verify(t.Context(), good); err != nil {
		t.Fatal(err)
	}
	storm := func() {
		for i := range 200 {
			h := deputytest.Header()
			h["kid"] = fmt.Sprint("made-up-", i)
			if _, err := v.Verify(t.Context(), s.Sign(h, s.Claims(clock.now()))); err == nil {
				t.Fatal("a made-up kid is accepted")
			}
		}
	}
	storm()
	if n := k.fetches.Load(); n != 2 {
		t.Errorf("%d fetches, want one for the known kid and one for all others", n)
	}
	clock.advance(29 * time.Second)
	storm()
	if n := k.fetches.Load(); n != 2 {
		t.Errorf("%d fetches within 30 s", n)
	}
	if _, err := v.Verify(t.Context(), good); err != nil {
		t.Errorf("the known key suffers: %v", err)
	}
	v.keys.pause = 0
	if storm(); k.fetches.Load() < 200 {
		t.Errorf("negative control: %d fetches without the ration", k.fetches.Load())
	}
}

// TestKeysRotate: a new key is found at once. A removed one is refused within 60 s, whether the
// issuer answers or not.
func TestKeysRotate(t *testing.T) {
	s, next, clock := startDeputy(t), startDeputy(t), newClock()
	rename := func(document []byte) []byte { return bytes.Replace(document, []byte("test-1"), []byte("test-2"), 1) }
	k := startKeys(t, serve(s.JWKS()))
	v := fetchingVerifier(t, s, k.URL, clock)
	old := s.Token(s.Claims(clock.now()))
	h := deputytest.Header()
	h["kid"] = "test-2"
	fresh := next.Sign(h, s.Claims(clock.now()))
	if _, err := v.Verify(t.Context(), old); err != nil {
		t.Fatal(err)
	}
	clock.advance(time.Second)
	k.set(serve(rename(next.JWKS())))
	if _, err := v.Verify(t.Context(), fresh); err != nil {
		t.Errorf("the new key: %v", err)
	}
	if _, err := v.Verify(t.Context(), old); err == nil {
		t.Error("the removed key is accepted")
	}

	k.set(func(w http.ResponseWriter, _ *http.Request) { http.Error(w, "down", http.StatusBadGateway) })
	clock.advance(45 * time.Second)
	if _, err := v.Verify(t.Context(), fresh); err != nil {
		t.Errorf("the last good keys serve for 60 s: %v", err)
	}
	settle(t, v)
	clock.advance(16 * time.Second)
	_, err := v.Verify(t.Context(), fresh)
	if code, _ := accessCode(t, err); code != AccessUnavailable {
		t.Errorf("after 60 s without an answer: %v", err)
	}
	v.keys.maxAge = time.Hour
	if _, err := v.Verify(t.Context(), fresh); err != nil {
		t.Errorf("negative control: refused without the bound: %v", err)
	}
	settle(t, v)
	v.keys.maxAge = time.Minute
	k.set(serve(rename(next.JWKS())))
	clock.advance(2 * time.Second)
	if _, err := v.Verify(t.Context(), fresh); err != nil {
		t.Errorf("recovery: %v", err)
	}
}

func TestKeysSourceFaults(t *testing.T) {
	s := startDeputy(t)
	elsewhere := startKeys(t, serve(s.JWKS()))
	doubled := []byte(strings.Replace(string(s.JWKS()), `]}`, `,`+strings.TrimSuffix(strings.TrimPrefix(string(s.JWKS()), `{"keys":[`), `]}`)+`]}`, 1))
	faults := map[string]http.HandlerFunc{
		"status 500": func(w http.ResponseWriter, _ *http.Request) {
			http.Error(w, string(s.JWKS()), http.StatusInternalServerError)
		},
		"redirect":              func(w http.ResponseWriter, r *http.Request) { http.Redirect(w, r, elsewhere.URL, http.StatusFound) },
		"not JSON":              serve([]byte("<html>")),
		"no keys":               serve([]byte(`{}`)),
		"too large":             serve(append(bytes.Repeat([]byte(" "), maxKeySetBytes), s.JWKS()...)),
		"two keys with one kid": serve(doubled),
		"hangs up": func(w http.ResponseWriter, _ *http.Request) {
			w.Header().Set("Content-Length", "1000")
			w.Write([]byte("{"))
		},
	}
	for name, fault := range faults {
		t.Run(name, func(t *testing.T) {
			clock := newClock()
			k := startKeys(t, fault)
			v := fetchingVerifier(t, s, k.URL, clock)
			token := s.Token(s.Claims(clock.now()))
			for range 20 {
				_, err := v.Verify(t.Context(), token)
				if code, _ := accessCode(t, err); code != AccessUnavailable {
					t.Fatalf("err = %v", err)
				}
			}
			if n := k.fetches.Load(); n != 1 {
				t.Errorf("%d fetches in a second: a broken issuer must not be hammered", n)
			}
			k.set(serve(s.JWKS()))
			clock.advance(failurePause)
			if _, err := v.Verify(t.Context(), token); err != nil {
				t.Errorf("recovery: %v", err)
			}
		})
	}
	t.Run("negative control: a client that follows redirects", func(t *testing.T) {
		v := fetchingVerifier(t, s, startKeys(t, faults["redirect"]).URL, newClock())
		v.keys.client.CheckRedirect = nil
		if _, err := v.Verify(t.Context(), s.Token(s.Claims(time.Now()))); err != nil {
			t.Errorf("the redirect leads nowhere: %v", err)
		}
	})
}

// TestParseKeys: a key that does not fit exactly one algorithm is not used at all.
func TestParseKeys(t *testing.T) {
	b64 := base64.RawURLEncoding.EncodeToString
	p256, _ := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	p384, _ := ecdsa.GenerateKey(elliptic.P384(), rand.Reader)
	edPublic, edPrivate, _ := ed25519.GenerateKey(rand.Reader)
	rsaKey, err := rsa.GenerateKey(rand.Reader, 2048)
	if err != nil {
		t.Fatal(err)
	}
	ec := func(key *ecdsa.PrivateKey, rest string) string {
		point, err := key.PublicKey.Bytes()
		if err != nil {
			t.Fatal(err)
		}
		size := (len(point) - 1) / 2
		return fmt.Sprintf(`{"kty":"EC","crv":"%s","x":"%s","y":"%s"%s}`, key.Params().Name, b64(point[1:1+size]), b64(point[1+size:]), rest)
	}
	okp := func(rest string) string {
		return fmt.Sprintf(`{"kty":"OKP","crv":"Ed25519","x":"%s"%s}`, b64(edPublic), rest)
	}
	rs := func(n []byte, rest string) string {
		return fmt.Sprintf(`{"kty":"RSA","e":"AQAB","n":"%s"%s}`, b64(n), rest)
	}
	tests := map[string]struct {
		key    string
		usable bool
	}{
		"ES256":                 {ec(p256, `,"kid":"k","alg":"ES256"`), true},
		"EdDSA":                 {okp(`,"kid":"k","alg":"EdDSA","use":"sig"`), true},
		"RS256":                 {rs(rsaKey.N.Bytes(), `,"kid":"k","alg":"RS256"`), true},
		"no alg":                {ec(p256, `,"kid":"k"`), false},
		"no kid":                {ec(p256, `,"alg":"ES256"`), false},
		"alg of another type":   {ec(p256, `,"kid":"k","alg":"RS256"`), false},
		"HS256 on a public key": {rs(rsaKey.N.Bytes(), `,"kid":"k","alg":"HS256"`), false},
		"none":                  {ec(p256, `,"kid":"k","alg":"none"`), false},
		"another curve":         {ec(p384, `,"kid":"k","alg":"ES256"`), false},
		"for encryption":        {ec(p256, `,"kid":"k","alg":"ES256","use":"enc"`), false},
		"short RSA":             {rs(rsaKey.N.Bytes()[:128], `,"kid":"k","alg":"RS256"`), false},
		"symmetric":             {`{"kty":"oct","k":"c2VjcmV0","kid":"k","alg":"HS256"}`, false},
		"private":               {okp(fmt.Sprintf(`,"kid":"k","alg":"EdDSA","d":"%s"`, b64(edPrivate.Seed()))), false},
		"off the curve":         {fmt.Sprintf(`{"kty":"EC","crv":"P-256","x":"%s","y":"%s","kid":"k","alg":"ES256"}`, b64(make([]byte, 32)), b64(make([]byte, 32))), false},
	}
	for name, test := range tests {
		keys, err := parseKeys([]byte(`{"keys":[` + test.key + `]}`))
		if (err == nil) != test.usable || test.usable != (len(keys) == 1) {
			t.Errorf("%s: %d keys, %v", name, len(keys), err)
		}
	}
	good := tests["ES256"].key
	for name, set := range map[string]string{
		"keys twice":              `{"keys":[` + good + `],"keys":[` + good + `]}`,
		"keys twice, one empty":   `{"keys":[],"keys":[` + good + `]}`,
		"keys of another case":    `{"KEYS":[` + good + `]}`,
		"another member twice":    `{"a":1,"a":2,"keys":[` + good + `]}`,
		"a member of a key":       `{"keys":[` + strings.Replace(good, `"kid"`, `"kid":"other","kid"`, 1) + `]}`,
		"escaped, a member twice": `{"keys":[` + strings.Replace(good, `"kid"`, `"\u006bid":"other","kid"`, 1) + `]}`,
		"within a member":         `{"keys":[` + strings.Replace(good, `"kid"`, `"x":{"a":1,"a":2},"kid"`, 1) + `]}`,
		"something behind":        `{"keys":[` + good + `]}{}`,
		"no UTF-8":                "{\"\xff\":1,\"keys\":[" + good + "]}",
		"keys are null":           `{"keys":null}`,
		"keys are an object":      `{"keys":{}}`,
	} {
		if keys, err := parseKeys([]byte(set)); err == nil {
			t.Errorf("%s: %d keys", name, len(keys))
		}
	}
	mixed := `{"keys":[` + tests["symmetric"].key + `,{"kty":"future","kid":"f"},` + tests["ES256"].key + `]}`
	if keys, err := parseKeys([]byte(mixed)); err != nil || len(keys) != 1 {
		t.Errorf("unusable keys spoil the usable one: %d, %v", len(keys), err)
	}
}
