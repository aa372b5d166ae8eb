package token

import (
	"bytes"
	"context"
	"crypto"
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/elliptic"
	"crypto/hmac"
	"crypto/rand"
	"crypto/rsa"
	"crypto/sha256"
	"encoding/base64"
	"encoding/json"
	"errors"
	"log/slog"
	"maps"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/lestrrat-go/jwx/v2/jwk"
	"go.uber.org/goleak"

	"deputy.example/deputy/client/delegation"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

const (
	tenantIssuer = "https://deputy.example/t/acme"
	idpIssuer    = "https://idp.example"
	spireIssuer  = "https://spire.example"
	api          = "https://api.example" // the audience of the identity provider's tokens
)

// clock is a clock that only the test moves, or, if live, the clock of a synctest bubble.
type clock struct {
	mu   sync.Mutex
	at   time.Time
	live bool
}

func (c *clock) now() time.Time {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.live {
		return time.Now()
	}
	return c.at
}

func (c *clock) advance(d time.Duration) { c.mu.Lock(); defer c.mu.Unlock(); c.at = c.at.Add(d) }

// testKey signs with the standard library alone, so that no test compares jwx with itself.
type testKey struct {
	alg     string
	kid     string
	private crypto.Signer
}

func newTestKey(tb testing.TB, alg, kid string) testKey {
	tb.Helper()
	var private crypto.Signer
	var err error
	switch alg {
	case "ES256":
		private, err = ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	case "ES384":
		private, err = ecdsa.GenerateKey(elliptic.P384(), rand.Reader)
	case "EdDSA":
		_, private, err = ed25519.GenerateKey(rand.Reader)
	default:
		private, err = rsa.GenerateKey(rand.Reader, 2048)
	}
	if err != nil {
		tb.Fatal(err)
	}
	return testKey{alg: alg, kid: kid, private: private}
}

// jwk returns the key as a JWK Set entry, with some members replaced; nil removes one.
func (k testKey) jwk(tb testing.TB, change map[string]any) map[string]any {
	tb.Helper()
	key, err := jwk.FromRaw(k.private.Public())
	if err != nil {
		tb.Fatal(err)
	}
	members, err := key.AsMap(context.Background())
	if err != nil {
		tb.Fatal(err)
	}
	raw, err := json.Marshal(members)
	if err != nil {
		tb.Fatal(err)
	}
	out := map[string]any{}
	if err := json.Unmarshal(raw, &out); err != nil {
		tb.Fatal(err)
	}
	out["kid"], out["alg"], out["use"] = k.kid, k.alg, "sig"
	maps.Copy(out, change)
	maps.DeleteFunc(out, func(_ string, v any) bool { return v == nil })
	return out
}

func jwks(tb testing.TB, keys ...testKey) string {
	tb.Helper()
	entries := []any{}
	for _, key := range keys {
		entries = append(entries, key.jwk(tb, nil))
	}
	return toJSON(tb, map[string]any{"keys": entries})
}

func toJSON(tb testing.TB, v any) string {
	tb.Helper()
	raw, err := json.Marshal(v)
	if err != nil {
		tb.Fatal(err)
	}
	return string(raw)
}

// object is a JSON object under construction.
type object map[string]any

// with returns a copy in which the given members are replaced; nil removes one.
func (o object) with(change object) object {
	out := maps.Clone(o)
	maps.Copy(out, change)
	maps.DeleteFunc(out, func(_ string, v any) bool { return v == nil })
	return out
}

func segment(data []byte) string { return base64.RawURLEncoding.EncodeToString(data) }

// signRaw signs arbitrary header and payload bytes.
func (k testKey) signRaw(tb testing.TB, header, payload []byte) string {
	tb.Helper()
	unsigned := segment(header) + "." + segment(payload)
	return unsigned + "." + segment(k.signature(tb, unsigned))
}

func (k testKey) signature(tb testing.TB, unsigned string) []byte {
	tb.Helper()
	digest, hash := sha256.Sum256([]byte(unsigned)), crypto.SHA256
	message := digest[:]
	switch k.alg {
	case "EdDSA":
		message, hash = []byte(unsigned), 0
	case "ES384":
		h := crypto.SHA384.New()
		h.Write([]byte(unsigned))
		message, hash = h.Sum(nil), crypto.SHA384
	}
	if private, ok := k.private.(*ecdsa.PrivateKey); ok {
		r, s, err := ecdsa.Sign(rand.Reader, private, message)
		if err != nil {
			tb.Fatal(err)
		}
		half := (private.Curve.Params().BitSize + 7) / 8
		return append(r.FillBytes(make([]byte, half)), s.FillBytes(make([]byte, half))...)
	}
	signature, err := k.private.Sign(rand.Reader, message, hash)
	if err != nil {
		tb.Fatal(err)
	}
	return signature
}

// sign makes a token. Header members of change replace the usual ones.
func (k testKey) sign(tb testing.TB, typ string, claims object, change ...object) string {
	tb.Helper()
	header := object{"alg": k.alg, "kid": k.kid, "typ": typ}
	if typ == "" {
		delete(header, "typ")
	}
	for _, c := range change {
		header = header.with(c)
	}
	return k.signRaw(tb, []byte(toJSON(tb, header)), []byte(toJSON(tb, claims)))
}

func hs256(secret []byte, unsigned string) string {
	mac := hmac.New(sha256.New, secret)
	mac.Write([]byte(unsigned))
	return unsigned + "." + segment(mac.Sum(nil))
}

// logBuffer holds the logged text.
type logBuffer struct {
	mu   sync.Mutex
	text bytes.Buffer
}

func (b *logBuffer) Write(p []byte) (int, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.text.Write(p)
}

func (b *logBuffer) String() string { b.mu.Lock(); defer b.mu.Unlock(); return b.text.String() }

// world is one tenant with an identity provider, a workload issuer and a client.
type world struct {
	*Trust
	clock    *clock
	keys     *Keyset
	idp      testKey
	spire    testKey
	agent    testKey // of the client agent:planner
	config   TrustConfig
	log      *logBuffer
	ownClaim delegation.Claims
}

func newWorld(tb testing.TB, change ...func(*TrustConfig)) *world {
	tb.Helper()
	w := &world{
		clock: &clock{at: time.Unix(1_795_305_600, 0)},
		idp:   newTestKey(tb, "ES256", "idp-1"),
		spire: newTestKey(tb, "EdDSA", "spire-1"),
		agent: newTestKey(tb, "ES256", "agent-1"),
		log:   &logBuffer{},
	}
	w.keys = newKeyset(tb, "ES256")
	w.config = TrustConfig{
		Issuer: tenantIssuer,
		Keys:   w.keys,
		Now:    w.clock.now,
		Logger: slog.New(slog.NewJSONHandler(w.log, nil)),
		TrustedIssuers: []TrustedIssuer{{
			Issuer:     idpIssuer,
			Keys:       KeySource{JWKS: jwks(tb, w.idp)},
			Algorithms: []string{"ES256"},
			Principal:  Mapping{Type: "user"},
			Audiences:  []string{api},
			IDTokens:   true,
			RootGrants: RootGrants{ScopesClaim: "scope"},
		}, {
			Issuer:     spireIssuer,
			Keys:       KeySource{JWKS: jwks(tb, w.spire)},
			Algorithms: []string{"EdDSA"},
			Principal:  Mapping{Type: "agent", Prefix: "spire/"},
			Workloads:  true,
		}},
		Clients: []Client{{
			ID: "agent:planner", Keys: KeySource{JWKS: jwks(tb, w.agent)}, Algorithms: []string{"ES256"},
		}},
	}
	for _, c := range change {
		c(&w.config)
	}
	trust, err := NewTrust(w.config)
	if err != nil {
		tb.Fatal(err)
	}
	w.Trust = trust
	now := w.clock.now().Unix()
	w.ownClaim = delegation.Claims{
		Issuer: tenantIssuer, Subject: "user:alice", ClientID: "agent:researcher", Audience: []string{api},
		Scope: delegation.Scopes{"calendar.read"}, IssuedAt: now, NotBefore: now, ExpiresAt: now + 300,
		ID: "01K0000000000000000000000B", Txn: "01K0000000000000000000000T", Act: delegation.Chain{"agent:planner", "agent:researcher"},
		Delegation: delegation.Delegation{
			Root:      RootDigest(idpIssuer, "root-1"),
			Hops:      []delegation.Hop{{ID: "01K0000000000000000000000A", Seq: 41}, {ID: "01K0000000000000000000000B", Seq: 57, Actor: 1}},
			DepthLeft: 2,
		},
	}
	return w
}

func newKeyset(tb testing.TB, algorithms ...string) *Keyset {
	tb.Helper()
	var files []KeyFile
	for n, algorithm := range algorithms {
		path := filepath.Join(tb.TempDir(), algorithm+".pem")
		files = append(files, KeyFile{Path: path, Algorithm: algorithm})
		if n > 0 { // Create makes the first key only
			if _, err := OpenKeyset(KeysetConfig{Keys: files[n:], Create: true}); err != nil {
				tb.Fatal(err)
			}
		}
	}
	keys, err := OpenKeyset(KeysetConfig{Keys: files, Create: true})
	if err != nil {
		tb.Fatal(err)
	}
	return keys
}

// own signs a derived token as the exchange does.
func (w *world) own(tb testing.TB, change func(*delegation.Claims)) string {
	tb.Helper()
	claims := w.ownClaim
	if change != nil {
		change(&claims)
	}
	raw, err := claims.MarshalJSON()
	if err != nil {
		tb.Fatal(err)
	}
	token, err := w.keys.Sign(raw)
	if err != nil {
		tb.Fatal(err)
	}
	return token
}

// ownKey is the tenant's signing key as a testKey.
func (w *world) ownKey() testKey {
	return testKey{alg: w.keys.fixed.active.algorithm.String(), kid: w.keys.fixed.active.id, private: w.keys.fixed.active.private}
}

func (w *world) seconds(offset time.Duration) int64 { return w.clock.now().Add(offset).Unix() }

// rootClaims are the claims of an access token of the identity provider.
func (w *world) rootClaims() object {
	return object{
		"iss": idpIssuer, "sub": "alice", "aud": api, "jti": "root-1", "scope": "calendar.read mail.send",
		"iat": w.seconds(0), "exp": w.seconds(10 * time.Minute),
	}
}

// workloadClaims are the claims of a JWT-SVID that authenticates.
func (w *world) workloadClaims() object {
	return object{"iss": spireIssuer, "sub": "spiffe://acme/researcher", "aud": []string{tenantIssuer}, "exp": w.seconds(5 * time.Minute)}
}

// assertionClaims are the claims of a client assertion.
func (w *world) assertionClaims() object {
	return object{
		"iss": "agent:planner", "sub": "agent:planner", "aud": tenantIssuer, "jti": "assertion-1",
		"iat": w.seconds(0), "exp": w.seconds(time.Minute),
	}
}

func (w *world) root(ctx context.Context, token string) (*Root, error) {
	s, err := w.Subject(ctx, token, delegation.TokenTypeAccessToken)
	return s.Root, err
}

// reasonOf returns the reason of a refusal, or "" without an error, and fails for any other error.
func reasonOf(tb testing.TB, err error) delegation.Reason {
	tb.Helper()
	if err == nil {
		return ""
	}
	refusal, ok := errors.AsType[*delegation.Error](err)
	if !ok {
		tb.Fatalf("%T is no *delegation.Error: %v", err, err)
	}
	if !refusal.Reason.Known() {
		tb.Fatalf("reason %q is not registered", refusal.Reason)
	}
	return refusal.Reason
}

func wantReason(tb testing.TB, err error, want delegation.Reason, words string) {
	tb.Helper()
	if got := reasonOf(tb, err); got != want {
		tb.Errorf("reason %q, want %q (%v)", got, want, err)
	} else if err != nil && !strings.Contains(err.Error(), words) {
		tb.Errorf("error %q does not say %q", err, words)
	}
}

// wantCause requires words in the cause, which the wire does not carry.
func wantCause(tb testing.TB, err error, words string) {
	tb.Helper()
	if cause := errors.Unwrap(err); cause == nil || !strings.Contains(cause.Error(), words) {
		tb.Errorf("cause %q does not say %q", cause, words)
	}
}
