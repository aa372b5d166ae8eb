package client

import (
	"crypto/elliptic"
	"crypto/hmac"
	"crypto/sha256"
	"encoding/base64"
	"encoding/json"
	"errors"
	"math/big"
	"slices"
	"strings"
	"testing"
	"time"

	"deputy.example/deputy/client/delegation"
	"deputy.example/deputy/client/internal/deputytest"
)

const calendar = "https://calendar.example"

func startDeputy(t testing.TB) *deputytest.Server {
	t.Helper()
	s := deputytest.Start()
	t.Cleanup(s.Close)
	return s
}

// fixedVerifier has the server's keys, so that a test is only about tokens.
func fixedVerifier(t testing.TB, s *deputytest.Server) *Verifier {
	t.Helper()
	v, err := NewVerifier(VerifierConfig{Issuer: s.Issuer, Audience: calendar, JWKS: s.JWKS(), IgnoreRevocations: true})
	if err != nil {
		t.Fatal(err)
	}
	return v
}

func accessCode(t testing.TB, err error) (AccessCode, string) {
	t.Helper()
	var e *AccessError
	if !errors.As(err, &e) {
		t.Fatalf("err = %v, want an *AccessError", err)
	}
	return e.Code, e.Description
}

func TestVerifyAccepts(t *testing.T) {
	s := startDeputy(t)
	claims := s.Claims(time.Now())
	d, err := fixedVerifier(t, s).Verify(t.Context(), s.Token(claims))
	if err != nil {
		t.Fatal(err)
	}
	if d.Subject() != "user:alice" || d.Actor() != "agent:researcher" || !slices.Equal(d.Chain(), claims.Act) ||
		d.Expiry().Unix() != claims.ExpiresAt || !d.HasScope("calendar.read") || d.HasScope("calendar.read", "mail.read") {
		t.Errorf("delegation = %+v", d)
	}
}

// TestVerifyRules breaks each rule of the two tables, and checks that the token would be accepted
// without that one rule.
func TestVerifyRules(t *testing.T) {
	s := startDeputy(t)
	now := time.Now()
	change := func(edit func(*delegation.Claims)) string {
		c := s.Claims(now)
		edit(&c)
		return s.Token(c)
	}
	header := func(member string, value any) string {
		h := deputytest.Header()
		h[member] = value
		return s.Sign(h, s.Claims(now))
	}
	tests := map[string]struct{ token, rule string }{
		"typ JWT":             {header("typ", "JWT"), "the token is not an access token: its typ is not at+jwt"},
		"typ of a list":       {header("typ", "statuslist+jwt"), "the token is not an access token: its typ is not at+jwt"},
		"typ of an assertion": {header("typ", "client-authentication+jwt"), "the token is not an access token: its typ is not at+jwt"},
		"other issuer":        {change(func(c *delegation.Claims) { c.Issuer = "https://evil.example" }), "the token is from another issuer"},
		"issuer with a slash": {change(func(c *delegation.Claims) { c.Issuer += "/" }), "the token is from another issuer"},
		"other audience":      {change(func(c *delegation.Claims) { c.Audience = []string{"https://mail.example"} }), "the token is for another audience"},
		"audience prefix":     {change(func(c *delegation.Claims) { c.Audience = []string{calendar + "/"} }), "the token is for another audience"},
		"audience case":       {change(func(c *delegation.Claims) { c.Audience = []string{strings.ToUpper(calendar)} }), "the token is for another audience"},
		"expired this second": {change(func(c *delegation.Claims) { c.IssuedAt, c.NotBefore, c.ExpiresAt = 1, 1, now.Unix() }), "the token has expired"},
		"not valid yet": {change(func(c *delegation.Claims) {
			c.IssuedAt, c.NotBefore, c.ExpiresAt = now.Unix()+60, now.Unix()+60, now.Unix()+120
		}), "the token is not valid yet"},
	}
	for name, test := range tests {
		t.Run(name, func(t *testing.T) {
			v := fixedVerifier(t, s)
			_, err := v.Verify(t.Context(), test.token)
			if code, text := accessCode(t, err); code != AccessInvalidToken || text != test.rule {
				t.Errorf("refused with %s: %s", code, text)
			}
			v.envelope = without(v.envelope, test.rule)
			v.admission = without(v.admission, test.rule)
			if _, err := v.Verify(t.Context(), test.token); err != nil {
				t.Errorf("negative control: without the rule still refused: %v", err)
			}
		})
	}
}

func without[T any](rules []rule[T], text string) []rule[T] {
	return slices.DeleteFunc(slices.Clone(rules), func(r rule[T]) bool { return r.text == text })
}

// yes is a signature check that accepts everything.
func yes(string, []byte) bool { return true }

// TestVerifySignatures presents tokens whose key or signature is not the issuer's, and checks that
// a verifier without signature checks would accept those of valid form.
func TestVerifySignatures(t *testing.T) {
	s, stranger := startDeputy(t), startDeputy(t)
	good := s.Token(s.Claims(time.Now()))
	head, body, signature := split(t, good)
	hs256 := segment(map[string]any{"alg": "HS256", "typ": "at+jwt", "kid": deputytest.KeyID}) + "." + body
	mac := hmac.New(sha256.New, s.JWKS())
	mac.Write([]byte(hs256))
	encode := base64.RawURLEncoding.EncodeToString
	flipped := slices.Clone(signature)
	flipped[10] ^= 1

	tests := map[string]struct {
		token, text string
		// A verifier without signature checks would accept with it; "": never.
		algorithm string
	}{
		"signed by a stranger under the known kid": {stranger.Token(s.Claims(time.Now())), "the token's signature is wrong", "ES256"},
		"one bit of the signature":                 {head + "." + body + "." + encode(flipped), "the token's signature is wrong", "ES256"},
		"signature of zeros":                       {head + "." + body + "." + encode(make([]byte, 64)), "the token's signature is wrong", "ES256"},
		"signature cut short":                      {head + "." + body + "." + encode(signature[:63]), "the token's signature is wrong", "ES256"},
		"signature with a byte more":               {head + "." + body + "." + encode(append(slices.Clone(signature), 0)), "the token's signature is wrong", "ES256"},
		"signature in DER":                         {head + "." + body + "." + encode(der(signature)), "the token's signature is wrong", "ES256"},
		"other claims under the signature":         {head + "." + segment(s.Claims(time.Now().Add(time.Second))) + "." + encode(signature), "the token's signature is wrong", "ES256"},
		"key confusion with HS256":                 {hs256 + "." + encode(mac.Sum(nil)), "the token's algorithm is not its key's", "HS256"},
		"alg none with a signature":                {algHeader("none") + "." + body + ".AA", "the token's algorithm is not its key's", "none"},
		"alg none":                                 {algHeader("none") + "." + body + ".", "the token is malformed", ""},
		"alg by another case":                      {algHeader("es256") + "." + body + "." + encode(signature), "the token's algorithm is not its key's", "es256"},
		"another algorithm":                        {algHeader("ES384") + "." + body + "." + encode(signature), "the token's algorithm is not its key's", "ES384"},
		"no kid":                                   {s.Sign(map[string]any{"alg": "ES256", "typ": "at+jwt"}, s.Claims(time.Now())), errUnknownKey.Error(), ""},
		"unknown kid":                              {s.Sign(map[string]any{"alg": "ES256", "typ": "at+jwt", "kid": "x"}, s.Claims(time.Now())), errUnknownKey.Error(), ""},
	}
	for name, test := range tests {
		t.Run(name, func(t *testing.T) {
			v := fixedVerifier(t, s)
			_, err := v.Verify(t.Context(), test.token)
			if code, text := accessCode(t, err); code != AccessInvalidToken || text != test.text {
				t.Errorf("refused with %s: %s, want %s", code, text, test.text)
			}
			if test.algorithm == "" {
				return
			}
			v.keys.held.Load().keys[deputytest.KeyID] = &verificationKey{algorithm: test.algorithm, verifies: yes}
			if _, err := v.Verify(t.Context(), test.token); err != nil {
				t.Errorf("negative control: refused without signature checks too: %v", err)
			}
		})
	}
}

func algHeader(alg string) string {
	return segment(map[string]any{"alg": alg, "typ": "at+jwt", "kid": deputytest.KeyID})
}

func segment(v any) string {
	raw, err := json.Marshal(v)
	if err != nil {
		panic(err)
	}
	return base64.RawURLEncoding.EncodeToString(raw)
}

func split(t testing.TB, token string) (head, body string, signature []byte) {
	t.Helper()
	parts := strings.Split(token, ".")
	signature, err := base64.RawURLEncoding.DecodeString(parts[2])
	if err != nil {
		t.Fatal(err)
	}
	return parts[0], parts[1], signature
}

// der encodes an ECDSA signature in the form of X.509: SEQUENCE of two INTEGERs.
func der(signature []byte) []byte {
	integer := func(b []byte) []byte {
		b = append([]byte{0}, b...)
		return append([]byte{2, byte(len(b))}, b...)
	}
	both := append(integer(signature[:32]), integer(signature[32:])...)
	return append([]byte{0x30, byte(len(both))}, both...)
}

// TestVerifyForms presents texts that do not have the one form of a token.
func TestVerifyForms(t *testing.T) {
	s := startDeputy(t)
	v := fixedVerifier(t, s)
	good := s.Token(s.Claims(time.Now()))
	injected := func(member string, value any) string {
		h := deputytest.Header()
		h[member] = value
		return s.Sign(h, s.Claims(time.Now()))
	}
	forms := map[string]string{
		"empty": "", "dots": "..", "a megabyte of dots": strings.Repeat(".", 1<<20), "a megabyte of As": strings.Repeat("A", 1<<20),
		"five parts":             good + ".AA.AA",
		"padding":                good + "==",
		"leading space":          " " + good,
		"trailing newline":       good + "\n",
		"newline inside":         good[:50] + "\n" + good[50:],
		"standard base64":        strings.Replace(good, good[:1], "+", 1),
		"JSON serialization":     `{"payload":"e30","signatures":[]}`,
		"jku":                    injected("jku", "https://evil.example/keys"),
		"jwk":                    injected("jwk", map[string]any{"kty": "EC"}),
		"x5u":                    injected("x5u", "https://evil.example/cert"),
		"x5c":                    injected("x5c", []string{"MII"}),
		"crit":                   injected("crit", []string{"exp"}),
		"b64":                    injected("b64", false),
		"nested JWT":             injected("cty", "JWT"),
		"enc":                    injected("enc", "A128GCM"),
		"duplicate member":       s.Sign(json.RawMessage(`{"alg":"none","alg":"ES256","typ":"at+jwt","kid":"test-1"}`), s.Claims(time.Now())),
		"claims of another kind": s.Sign(deputytest.Header(), map[string]any{"iss": s.Issuer, "aud": calendar, "exp": time.Now().Unix() + 60}),
	}
	for name, token := range forms {
		_, err := v.Verify(t.Context(), token)
		if code, _ := accessCode(t, err); code != AccessInvalidToken {
			t.Errorf("%s: refused with %q", name, code)
		}
		if len(token) > 100 && strings.Contains(err.Error(), token[:100]) {
			t.Errorf("%s: the error repeats the token", name)
		}
	}
	if _, err := v.Verify(t.Context(), good); err != nil {
		t.Errorf("negative control: the token that all of these are made from is refused: %v", err)
	}
}

// TestVerifyMalleable shows which other strings are the same token. Base64 permits none. ECDSA
// permits the signature (r, n-s), so a token's identity is its issuer and jti, never its bytes.
func TestVerifyMalleable(t *testing.T) {
	s := startDeputy(t)
	v := fixedVerifier(t, s)
	good := s.Token(s.Claims(time.Now()))
	const alphabet = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_"
	last := strings.IndexByte(alphabet, good[len(good)-1])
	// 64 bytes leave four bits of the last character unused.
	for spare := 1; spare < 16; spare++ {
		variant := good[:len(good)-1] + string(alphabet[last^spare])
		if _, err := v.Verify(t.Context(), variant); err == nil {
			t.Errorf("spare bits %04b are accepted", spare)
		}
	}
	head, body, signature := split(t, good)
	twin := new(big.Int).Sub(elliptic.P256().Params().N, new(big.Int).SetBytes(signature[32:]))
	twin.FillBytes(signature[32:])
	d, err := v.Verify(t.Context(), head+"."+body+"."+base64.RawURLEncoding.EncodeToString(signature))
	if err != nil {
		t.Fatalf("(r, n-s) verifies by the mathematics of ECDSA: %v", err)
	}
	if d.Claims().ID != "jti-2" || d.Claims().Issuer != s.Issuer {
		t.Errorf("the twin has another identity: %+v", d.Claims())
	}
}

func TestInspect(t *testing.T) {
	s := startDeputy(t)
	v := fixedVerifier(t, s)
	in, err := v.Inspect(t.Context(), s.Token(s.Claims(time.Now().Add(-time.Hour))))
	if err != nil {
		t.Fatal(err)
	}
	if _, text := accessCode(t, in.Refusal); text != "the token has expired" || in.Header.KeyID != deputytest.KeyID || in.Claims.ID != "jti-2" {
		t.Errorf("inspection = %+v", in)
	}
	if in, err = v.Inspect(t.Context(), s.Token(s.Claims(time.Now()))); err != nil || in.Refusal != nil {
		t.Errorf("a token in force: %+v, %v", in, err)
	}
	if _, err := v.Inspect(t.Context(), startDeputy(t).Token(s.Claims(time.Now()))); err == nil {
		t.Error("a token that somebody else signed is explained")
	}
}

// gRPC drops the query and the fragment of a target.
func TestNewRefusesPartsOfAnAddress(t *testing.T) {
	for _, address := range []string{"deputy.example:443#a", "dns:///deputy.example:443?a=b", "unix:///run/a#1/deputy.sock"} {
		c, err := New(Config{Address: address})
		if err == nil {
			_ = c.Close()
		}
		if err == nil || !strings.Contains(err.Error(), "no query and no fragment") {
			t.Errorf("%s: %v", address, err)
		}
	}
}

func TestNewVerifierRefuses(t *testing.T) {
	const issuer = "https://deputy.example/t/acme"
	c, err := New(Config{Address: "deputy.example:443"})
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	tests := map[string]VerifierConfig{
		"no issuer":          {Audience: calendar, IgnoreRevocations: true},
		"issuer with query":  {Issuer: issuer + "?a", Audience: calendar, IgnoreRevocations: true},
		"issuer, fragment":   {Issuer: issuer + "#a", Audience: calendar, IgnoreRevocations: true},
		"keys of a fragment": {Issuer: issuer, Audience: calendar, JWKSURL: issuer + "/k#a", IgnoreRevocations: true},
		"no audience":        {Issuer: issuer, IgnoreRevocations: true},
		"http keys":          {Issuer: "http://deputy.example", Audience: calendar, IgnoreRevocations: true},
		"keys of a file":     {Issuer: issuer, Audience: calendar, JWKSURL: "file:///etc/passwd", IgnoreRevocations: true},
		"password in URL":    {Issuer: issuer, Audience: calendar, JWKSURL: "https://u:p@deputy.example/jwks", IgnoreRevocations: true},
		"two sources":        {Issuer: issuer, Audience: calendar, JWKSURL: issuer + "/k", JWKS: []byte(`{}`), IgnoreRevocations: true},
		"empty key set":      {Issuer: issuer, Audience: calendar, JWKS: []byte(`{"keys":[]}`), IgnoreRevocations: true},
		"keys age too fast":  {Issuer: issuer, Audience: calendar, MaxKeyAge: time.Second, IgnoreRevocations: true},
		"keys age too slow":  {Issuer: issuer, Audience: calendar, MaxKeyAge: 24 * time.Hour, IgnoreRevocations: true},
		"something like JWK": {Issuer: issuer, Audience: calendar, JWKS: []byte(`[]`), IgnoreRevocations: true},

		"neither followed nor ignored": {Issuer: issuer, Audience: calendar},
		"both":                         {Issuer: issuer, Audience: calendar, Client: c, IgnoreRevocations: true},
		"ignored, and a bound":         {Issuer: issuer, Audience: calendar, MaxStaleness: 5 * time.Second, IgnoreRevocations: true},
		"ignored, and asked for":       {Issuer: issuer, Audience: calendar, IntrospectWhenStale: true, IgnoreRevocations: true},
		"stale for longer":             {Issuer: issuer, Audience: calendar, Client: c, MaxStaleness: 11 * time.Second},
		"stale at once":                {Issuer: issuer, Audience: calendar, Client: c, MaxStaleness: time.Second},
		"stale before it begins":       {Issuer: issuer, Audience: calendar, Client: c, MaxStaleness: -time.Second},
	}
	for name, cfg := range tests {
		if _, err := NewVerifier(cfg); err == nil {
			t.Errorf("%s: accepted", name)
		}
	}
	for _, cfg := range []VerifierConfig{
		{Issuer: issuer, Audience: calendar, IgnoreRevocations: true},
		{Issuer: issuer, Audience: calendar, Client: c, MaxStaleness: 3 * time.Second},
	} {
		v, err := NewVerifier(cfg)
		if err != nil {
			t.Fatalf("negative control: %v", err)
		}
		v.Close()
	}
}
