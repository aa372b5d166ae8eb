package dpop

import (
	"crypto"
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/rsa"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"math/big"
	"slices"
	"strings"
	"testing"
	"time"
)

// The examples of RFC 9449: one key, a proof for a token request (§5) and one for a resource
// (§7.1).
const (
	rfcThumbprint = "0ZcOCORZNYy-DWpqq30jZyJGHTN0d2HglBV3uiguA4I" // §6.1
	rfcHeader     = "eyJ0eXAiOiJkcG9wK2p3dCIsImFsZyI6IkVTMjU2IiwiandrIjp7Imt0eSI6IkVDIiwieCI6Imw4dEZyaHgtMzR0VjNoUklDUkRZOXpDa0RscEJoRjQyVVFVZldWQVdCRnMiLCJ5IjoiOVZFNGpmX09rX282NHpiVFRsY3VOSmFqSG10NnY5VERWclUwQ2R2R1JEQSIsImNydiI6IlAtMjU2In19"
	rfcTokenProof = rfcHeader + ".eyJqdGkiOiItQndDM0VTYzZhY2MybFRjIiwiaHRtIjoiUE9TVCIsImh0dSI6Imh0dHBzOi8vc2VydmVyLmV4YW1wbGUuY29tL3Rva2VuIiwiaWF0IjoxNTYyMjYyNjE2fQ" +
		".2-GxA6T8lP4vfrg8v-FdWP0A0zdrj8igiMLvqRMUvwnQg4PtFLbdLXiOSsX0x7NVY-FNyJK70nfbV37xRZT3Lg"
	rfcResourceProof = rfcHeader + ".eyJqdGkiOiJlMWozVl9iS2ljOC1MQUVCIiwiaHRtIjoiR0VUIiwiaHR1IjoiaHR0cHM6Ly9yZXNvdXJjZS5leGFtcGxlLm9yZy9wcm90ZWN0ZWRyZXNvdXJjZSIsImlhdCI6MTU2MjI2MjYxOCwiYXRoIjoiZlVIeU8ycjJaM0RaNTNFc05yV0JiMHhXWG9hTnk1OUlpS0NBcWtzbVFFbyJ9" +
		".2oW9RP35yRqzhrtNP86L-Ey71EOptxRimPPToA1plemAgR6pxHF8y6-yqyVnmcw6Fy1dqd-jfxSYoMxhAJpLjA"
	rfcAccessToken = "Kz~8mXK1EalYznwH-LC-1fBAo.4Ljp~zsPE_NeO.gxU"
)

func TestRFC9449Examples(t *testing.T) {
	for name, test := range map[string]struct {
		proof, id string
		want      Expectation
	}{
		"§5":   {rfcTokenProof, "-BwC3ESc6acc2lTc", Expectation{Method: "POST", URI: "https://server.example.com/token", Now: time.Unix(1562262616, 0)}},
		"§7.1": {rfcResourceProof, "e1j3V_bKic8-LAEB", Expectation{Method: "GET", URI: "https://resource.example.org/protectedresource", AccessToken: rfcAccessToken, Now: time.Unix(1562262618, 0)}},
	} {
		p, err := Verify(test.proof, test.want)
		if err != nil || p.Thumbprint != rfcThumbprint || p.ID != test.id || !p.IssuedAt.Equal(test.want.Now) || !p.Until.Equal(test.want.Now.Add(MaxAge)) {
			t.Errorf("%s: %+v, %v", name, p, err)
		}
		test.want.Now = test.want.Now.Add(MaxAge)
		if _, err := Verify(test.proof, test.want); err == nil {
			t.Errorf("%s: accepted at the end of its life", name)
		}
	}
}

var at = time.Unix(1_800_000_000, 0)

const (
	tool  = "https://calendar.example/events"
	token = "a.b.c"
)

func signer(t testing.TB, kind string) crypto.Signer {
	t.Helper()
	var key crypto.Signer
	var err error
	switch kind {
	case "P-256":
		key, err = ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	case "P-384":
		key, err = ecdsa.GenerateKey(elliptic.P384(), rand.Reader)
	case "P-521":
		key, err = ecdsa.GenerateKey(elliptic.P521(), rand.Reader)
	case "Ed25519":
		_, key, err = ed25519.GenerateKey(rand.Reader)
	case "RSA":
		key, err = rsa.GenerateKey(rand.Reader, 2048)
	}
	if err != nil {
		t.Fatal(err)
	}
	return key
}

func newTestKey(t testing.TB, kind string) *Key {
	t.Helper()
	key, err := NewKey(signer(t, kind))
	if err != nil {
		t.Fatal(err)
	}
	return key
}

func prove(t testing.TB, k *Key, r Request, now time.Time) string {
	t.Helper()
	proof, err := k.Prove(r, now, nil)
	if err != nil {
		t.Fatal(err)
	}
	return proof
}

// forge signs any header and claims with a key. A nil member is left out.
func forge(t testing.TB, k *Key, header, claims map[string]any) string {
	t.Helper()
	h := map[string]any{"typ": "dpop+jwt", "alg": k.algorithm, "jwk": json.RawMessage(k.public.jwk)}
	c := map[string]any{"jti": "id-1", "htm": "GET", "htu": tool, "iat": at.Unix(), "ath": hashOf(token)}
	input := part(t, changed(h, header)) + "." + part(t, changed(c, claims))
	signature, err := k.sign(input)
	if err != nil {
		t.Fatal(err)
	}
	return input + "." + base64.RawURLEncoding.EncodeToString(signature)
}

func changed(members, changes map[string]any) map[string]any {
	for name, value := range changes {
		if members[name] = value; value == nil {
			delete(members, name)
		}
	}
	return members
}

func part(t testing.TB, v any) string {
	t.Helper()
	raw, err := json.Marshal(v)
	if err != nil {
		t.Fatal(err)
	}
	return base64.RawURLEncoding.EncodeToString(raw)
}

// TestRules breaks each rule by itself, so that no other rule refuses the proof in its place.
func TestRules(t *testing.T) {
	k, other := newTestKey(t, "P-256"), newTestKey(t, "P-256")
	want := Expectation{Method: "GET", URI: tool, AccessToken: token, Now: at, Skew: 10 * time.Second}
	good := forge(t, k, nil, nil)
	if p, err := Verify(good, want); err != nil || p.Thumbprint != k.Thumbprint() || p.ID != "id-1" || !p.Until.Equal(at.Add(70*time.Second)) {
		t.Fatalf("the proof that all of these are made from: %+v, %v", p, err)
	}
	claim := func(name string, value any) string { return forge(t, k, nil, map[string]any{name: value}) }
	swapped := strings.Split(forge(t, other, map[string]any{"jwk": json.RawMessage(k.public.jwk)}, nil), ".")
	nonces := want
	nonces.Nonces = []string{"current", "previous"}
	bound := want
	bound.AccessToken = "a.b.d"
	bare := want
	bare.AccessToken = ""
	tests := map[string]struct {
		proof  string
		want   Expectation
		clause string
	}{
		"typ of a token":           {forge(t, k, map[string]any{"typ": "at+jwt"}, nil), want, "4"},
		"typ JWT":                  {forge(t, k, map[string]any{"typ": "JWT"}, nil), want, "4"},
		"typ in capitals":          {forge(t, k, map[string]any{"typ": "DPOP+JWT"}, nil), want, "4"},
		"signed by another key":    {strings.Join(swapped, "."), want, "6"},
		"claims changed":           {rejoined(good, 1, part(t, map[string]any{"jti": "id-2", "htm": "GET", "htu": tool, "iat": at.Unix(), "ath": hashOf(token)})), want, "6"},
		"signature cut short":      {good[:len(good)-2], want, "6"},
		"alg of another curve":     {forge(t, k, map[string]any{"alg": "ES384"}, nil), want, "6"},
		"alg of another kind":      {forge(t, k, map[string]any{"alg": "RS256"}, nil), want, "6"},
		"another method":           {claim("htm", "POST"), want, "8"},
		"the method's case":        {claim("htm", "get"), want, "8"},
		"another path":             {claim("htu", tool+"/1"), want, "9"},
		"another host":             {claim("htu", "https://mail.example/events"), want, "9"},
		"another scheme":           {claim("htu", "http://calendar.example/events"), want, "9"},
		"another port":             {claim("htu", "https://calendar.example:8443/events"), want, "9"},
		"no address":               {claim("htu", "/events"), want, "9"},
		"too old by a second":      {claim("iat", at.Unix()-70), want, "11"},
		"ahead by a second":        {claim("iat", at.Unix()+11), want, "11"},
		"no ath":                   {claim("ath", nil), want, "12"},
		"ath of another token":     {good, bound, "12"},
		"ath in hex":               {claim("ath", fmt.Sprintf("%x", token)), want, "12"},
		"ath without a token":      {good, bare, "12"},
		"no nonce":                 {good, nonces, "10"},
		"an unknown nonce":         {claim("nonce", "x"), nonces, "10"},
		"a nonce in another case":  {claim("nonce", "Current"), nonces, "10"},
		"a nonce and its neighbor": {claim("nonce", "current,previous"), nonces, "10"},
	}
	seen := make(map[string]bool)
	for name, test := range tests {
		t.Run(name, func(t *testing.T) {
			_, err := Verify(test.proof, test.want)
			broken := slices.IndexFunc(rules(), func(r rule) bool { return r.broken.Error() == fmt.Sprint(err) })
			if broken < 0 || rules()[broken].clause != test.clause {
				t.Fatalf("refused with %v", err)
			}
			seen[rules()[broken].broken.Error()] = true
			if errors.Is(err, ErrNonce) != (test.clause == "10") {
				t.Errorf("a client is told to use a nonce for %v", err)
			}
		})
	}
	// alg "none" and HS256 have no key that signs: rule 5 refuses them before rule 6 has to.
	for _, alg := range []string{"none", "HS256", "es256", "ES256K"} {
		proof := forge(t, k, map[string]any{"alg": alg}, nil)
		_, err := Verify(proof, want)
		if err == nil || !strings.Contains(err.Error(), "alg") {
			t.Errorf("alg %s: %v", alg, err)
		}
		seen[fmt.Sprint(err)] = true
	}
	for _, r := range rules() {
		if !seen[r.broken.Error()] {
			t.Errorf("no proof broke rule %s: %v", r.clause, r.broken)
		}
	}
	for name, edge := range map[string]string{"as old as may be": claim("iat", at.Unix()-69), "as far ahead": claim("iat", at.Unix()+10), "more claims": claim("more", []int{1})} {
		if _, err := Verify(edge, want); err != nil {
			t.Errorf("%s: %v", name, err)
		}
	}
	for _, nonce := range nonces.Nonces {
		if p, err := Verify(claim("nonce", nonce), nonces); err != nil || p.Nonce != nonce {
			t.Errorf("nonce %s: %+v, %v", nonce, p, err)
		}
	}
}

// rejoined replaces one of the three parts.
func rejoined(proof string, i int, with string) string {
	parts := strings.Split(proof, ".")
	parts[i] = with
	return strings.Join(parts, ".")
}

// TestForms covers checks 2, 3 and 7: malformed proofs. The last column is a part of the error.
func TestForms(t *testing.T) {
	k := newTestKey(t, "P-256")
	good := forge(t, k, nil, nil)
	claim := func(name string, value any) string { return forge(t, k, nil, map[string]any{name: value}) }
	header := func(name string, value any) string { return forge(t, k, map[string]any{name: value}, nil) }
	for name, test := range map[string]struct{ proof, says string }{
		"empty":             {"", "compact"},
		"two in one header": {good + "," + good, "compact"},
		"padding":           {good + "=", "base64url"},
		"a line break":      {good[:40] + "\n" + good[40:], "base64url"},
		"too long":          {claim("more", strings.Repeat("x", 9000)), "longer"},
		"no typ":            {header("typ", nil), "typ"},
		"no alg":            {header("alg", nil), "alg"},
		"no jwk":            {header("jwk", nil), "exactly typ, alg and jwk"},
		"jwk is a string":   {header("jwk", "x"), "exactly typ, alg and jwk"},
		"kid":               {header("kid", "x"), "exactly typ, alg and jwk"},
		"crit":              {header("crit", []string{"exp"}), "exactly typ, alg and jwk"},
		"x5c":               {header("x5c", []string{"MII"}), "exactly typ, alg and jwk"},
		"no jti":            {claim("jti", nil), "jti"},
		"jti is empty":      {claim("jti", ""), "jti"},
		"jti is a number":   {claim("jti", 1), "jti"},
		"jti too long":      {claim("jti", strings.Repeat("x", 257)), "jti"},
		"no htm":            {claim("htm", nil), "htm"},
		"no htu":            {claim("htu", nil), "htu"},
		"htu is a list":     {claim("htu", []string{tool}), "htu"},
		"no iat":            {claim("iat", nil), "iat"},
		"iat is a string":   {claim("iat", "1800000000"), "iat"},
		"iat is a fraction": {claim("iat", 1800000000.5), "iat"},
		"iat is negative":   {claim("iat", -1), "iat"},
		"ath is null":       {claim("ath", json.RawMessage("null")), "ath"},
		"ath is empty":      {claim("ath", ""), "ath"},
		"nonce is a number": {claim("nonce", 7), "nonce"},
		"nonce too long":    {claim("nonce", strings.Repeat("x", 257)), "nonce"},
		"duplicate claims":  {rejoined(good, 1, base64.RawURLEncoding.EncodeToString([]byte(`{"jti":"a","jti":"b"}`))), "payload"},
		"claims are a list": {rejoined(good, 1, base64.RawURLEncoding.EncodeToString([]byte(`["jti"]`))), "payload"},
	} {
		_, err := Verify(test.proof, Expectation{Method: "GET", URI: tool, AccessToken: token, Now: at})
		if err == nil || !strings.Contains(err.Error(), test.says) || len(test.proof) > 0 && strings.Contains(err.Error(), test.proof) {
			t.Errorf("%s: %v", name, err)
		}
	}
}

// TestAlgorithms: every kind of key makes proofs that verify, and none under the name of another
// algorithm.
func TestAlgorithms(t *testing.T) {
	made := make(map[string]bool)
	for _, kind := range []string{"P-256", "P-384", "P-521", "Ed25519", "RSA"} {
		k := newTestKey(t, kind)
		want := Expectation{Method: "POST", URI: tool, AccessToken: token, Nonces: []string{"n"}, Now: at}
		p, err := Verify(prove(t, k, Request{Method: "POST", URI: tool + "?q=1#f", AccessToken: token, Nonce: "n"}, at), want)
		if err != nil || p.Thumbprint != k.Thumbprint() || len(p.ID) != 22 {
			t.Errorf("%s: %+v, %v", kind, p, err)
		}
		made[k.algorithm] = true
		for _, alg := range Algorithms() {
			_, err := Verify(forge(t, k, map[string]any{"alg": alg}, nil), Expectation{Method: "GET", URI: tool, AccessToken: token, Now: at})
			same := alg == k.algorithm || k.algorithm == "EdDSA" && alg == "Ed25519"
			if (err == nil) != same {
				t.Errorf("%s signed, and says %s: %v", k.algorithm, alg, err)
			}
		}
	}
	// PS256 is made by others only.
	private := signer(t, "RSA").(*rsa.PrivateKey)
	k, err := NewKey(private)
	if err != nil {
		t.Fatal(err)
	}
	input := strings.Join(strings.Split(forge(t, k, map[string]any{"alg": "PS256"}, nil), ".")[:2], ".")
	digest := crypto.SHA256.New()
	digest.Write([]byte(input))
	for salt, good := range map[int]bool{rsa.PSSSaltLengthEqualsHash: true, 20: false} {
		signature, err := rsa.SignPSS(rand.Reader, private, crypto.SHA256, digest.Sum(nil), &rsa.PSSOptions{SaltLength: salt})
		if err != nil {
			t.Fatal(err)
		}
		_, err = Verify(input+"."+base64.RawURLEncoding.EncodeToString(signature), Expectation{Method: "GET", URI: tool, AccessToken: token, Now: at})
		if (err == nil) != good {
			t.Errorf("PS256 with salt %d: %v", salt, err)
		}
	}
	made["PS256"], made["Ed25519"] = true, true
	for _, alg := range Algorithms() {
		if !made[alg] {
			t.Errorf("nothing shows %s", alg)
		}
	}
}

// TestKeys reads JWKs. There is one form for each key, or else one key could have two thumbprints.
func TestKeys(t *testing.T) {
	read := func(document string) (publicKey, error) {
		var members map[string]any
		if err := json.Unmarshal([]byte(document), &members); err != nil {
			t.Fatal(err)
		}
		jwk := make(map[string]string)
		for name, value := range members {
			jwk[name], _ = value.(string)
		}
		return readKey(jwk)
	}
	ec, okp, rs := newTestKey(t, "P-256").public, newTestKey(t, "Ed25519").public, newTestKey(t, "RSA").public
	for _, k := range []publicKey{ec, okp, rs, newTestKey(t, "P-384").public, newTestKey(t, "P-521").public} {
		if got, err := read(k.jwk); err != nil || got.thumbprint != k.thumbprint {
			t.Errorf("%s: %v", k.jwk, err)
		}
		if got, err := read(strings.TrimSuffix(k.jwk, "}") + `,"use":"sig","kid":"x","key_ops":["verify"]}`); err != nil || got.thumbprint != k.thumbprint {
			t.Errorf("with members that say nothing of the key: %v", err)
		}
		for _, secret := range secretMembers {
			if _, err := read(strings.TrimSuffix(k.jwk, "}") + `,"` + secret + `":"AQAB"}`); err == nil || !strings.Contains(err.Error(), "exposed") {
				t.Errorf("a jwk with %s: %v", secret, err)
			}
			if _, err := read(strings.TrimSuffix(k.jwk, "}") + `,"` + secret + `":[1]}`); err == nil {
				t.Errorf("a jwk with %s that is no string is accepted", secret)
			}
		}
	}
	encode := base64.RawURLEncoding.EncodeToString
	point := ec.material.(*ecdsa.PublicKey)
	raw, err := point.Bytes()
	if err != nil {
		t.Fatal(err)
	}
	x, y := raw[1:33], raw[33:]
	ecWith := func(crv string, x, y []byte) string {
		return fmt.Sprintf(`{"kty":"EC","crv":%q,"x":%q,"y":%q}`, crv, encode(x), encode(y))
	}
	offCurve := slices.Clone(y)
	offCurve[31] ^= 1
	modulus := rs.material.(*rsa.PublicKey).N.Bytes()
	rsaWith := func(n []byte, e string) string { return fmt.Sprintf(`{"kty":"RSA","n":%q,"e":%q}`, encode(n), e) }
	field := elliptic.P256().Params().P
	for name, document := range map[string]string{
		"nothing":               `{}`,
		"no kty":                strings.Replace(ec.jwk, `"kty":"EC",`, "", 1),
		"kty oct":               `{"kty":"oct"}`,
		"kty by another case":   strings.Replace(ec.jwk, `"EC"`, `"ec"`, 1),
		"kty of another kind":   strings.Replace(ec.jwk, `"EC"`, `"OKP"`, 1),
		"crv of another curve":  ecWith("P-384", x, y),
		"crv secp256k1":         ecWith("secp256k1", x, y),
		"crv X25519":            strings.Replace(okp.jwk, "Ed25519", "X25519", 1),
		"crv Ed448":             strings.Replace(okp.jwk, "Ed25519", "Ed448", 1),
		"a leading zero":        ecWith("P-256", append([]byte{0}, x...), y),
		"a byte short":          ecWith("P-256", x[1:], y),
		"off the curve":         ecWith("P-256", x, offCurve),
		"the point at infinity": ecWith("P-256", make([]byte, 32), make([]byte, 32)),
		"beyond the field":      ecWith("P-256", new(big.Int).Add(field, big.NewInt(1)).Bytes(), y),
		"no y":                  fmt.Sprintf(`{"kty":"EC","crv":"P-256","x":%q}`, encode(x)),
		"padding":               fmt.Sprintf(`{"kty":"EC","crv":"P-256","x":%q,"y":%q}`, encode(x)+"=", encode(y)),
		"a line break":          fmt.Sprintf(`{"kty":"EC","crv":"P-256","x":%q,"y":%q}`, encode(x)+"\n", encode(y)),
		"spare bits":            fmt.Sprintf(`{"kty":"EC","crv":"P-256","x":%q,"y":%q}`, encode(x)[:42]+nextLetter(encode(x)[42]), encode(y)),
		"x is a number":         `{"kty":"EC","crv":"P-256","x":1,"y":2}`,
		"Ed25519 cut short":     `{"kty":"OKP","crv":"Ed25519","x":"AQAB"}`,
		"RSA of 1024 bits":      rsaWith(modulus[:128], "AQAB"),
		"RSA of 4104 bits":      rsaWith(append(slices.Clone(modulus), append(slices.Clone(modulus), 1)...), "AQAB"),
		"RSA with leading zero": rsaWith(append([]byte{0}, modulus...), "AQAB"),
		"RSA with e 1":          rsaWith(modulus, "AQ"),
		"RSA with e 2":          rsaWith(modulus, "Ag"),
		"RSA with an even e":    rsaWith(modulus, "AQAA"),
		"RSA with a long e":     rsaWith(modulus, "AQAAAAE"),
		"RSA with e padded":     rsaWith(modulus, "AAEAAQ"),
		"RSA without e":         fmt.Sprintf(`{"kty":"RSA","n":%q}`, encode(modulus)),
	} {
		if _, err := read(document); err == nil {
			t.Errorf("%s: accepted", name)
		}
	}
	for name, s := range map[string]crypto.Signer{"nil": nil, "P-224": must(ecdsa.GenerateKey(elliptic.P224(), rand.Reader))} {
		if _, err := NewKey(s); err == nil {
			t.Errorf("%s: a key is made of it", name)
		}
	}
}

func must[T any](v T, err error) T {
	if err != nil {
		panic(err)
	}
	return v
}

// nextLetter differs from the letter in the lowest bit of base64url, which is spare at the end of
// 32 bytes.
func nextLetter(letter byte) string {
	const alphabet = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_"
	return string(alphabet[strings.IndexByte(alphabet, letter)^1])
}

// TestMalleable: an observer of a proof can encode its signature differently, and it is the same
// proof: memories of used proofs are keyed by thumbprint and jti.
func TestMalleable(t *testing.T) {
	k := newTestKey(t, "P-256")
	proof := forge(t, k, nil, nil)
	signature := must(base64.RawURLEncoding.DecodeString(strings.Split(proof, ".")[2]))
	s := new(big.Int).Sub(elliptic.P256().Params().N, new(big.Int).SetBytes(signature[32:]))
	s.FillBytes(signature[32:])
	twin := rejoined(proof, 2, base64.RawURLEncoding.EncodeToString(signature))
	want := Expectation{Method: "GET", URI: tool, AccessToken: token, Now: at}
	first, errFirst := Verify(proof, want)
	second, errSecond := Verify(twin, want)
	if errFirst != nil || errSecond != nil || twin == proof || first != second {
		t.Errorf("%+v, %v\n%+v, %v", first, errFirst, second, errSecond)
	}
}

// TestAddresses is check 9: which addresses are one.
func TestAddresses(t *testing.T) {
	for _, test := range []struct {
		htu, request string
		same         bool
	}{
		{"https://h.example/p", "https://h.example/p", true},
		{"https://h.example/p?q=1#f", "https://h.example/p?other", true},
		{"HTTPS://H.Example/p", "https://h.example/p", true},
		{"https://h.example:443/p", "https://h.example/p", true},
		{"https://h.example:/p", "https://h.example/p", true},
		{"http://h.example:80/p", "http://h.example/p", true},
		{"https://h.example", "https://h.example/", true},
		{"https://h.example/%7euser", "https://h.example/~user", true},
		{"https://h.example/a%2fb", "https://h.example/a%2Fb", true},
		{"https://[::1]:443/p", "https://[::1]/p", true},
		{"https://h.example/a%2Fb", "https://h.example/a/b", false},
		{"https://h.example/P", "https://h.example/p", false},
		{"https://h.example/p/", "https://h.example/p", false},
		{"https://h.example//p", "https://h.example/p", false},
		{"https://h.example/a/../p", "https://h.example/p", false},
		{"https://h.example/a/%2e%2E/p", "https://h.example/p", false},
		{"https://h.example/./p", "https://h.example/./p", false},
		{"https://h.example:80/p", "https://h.example/p", false},
		{"http://h.example:443/p", "https://h.example/p", false},
		{"http://h.example/p", "https://h.example/p", false},
		{"https://h.example:8443/p", "https://h.example/p", false},
		{"https://h.example./p", "https://h.example/p", false},
		{"https://h.example.evil/p", "https://h.example/p", false},
		{"https://h.example@evil/p", "https://evil/p", false},
		{"https://user@h.example/p", "https://h.example/p", false},
		{"//h.example/p", "https://h.example/p", false},
		{"/p", "/p", false},
		{"", "", false},
		{"https:h.example/p", "https:h.example/p", false},
		{"ftp://h.example/p", "ftp://h.example/p", false},
		{"https://h.example/p%", "https://h.example/p%", false},
		{"https://h.example/p\n", "https://h.example/p\n", false},
	} {
		if sameAddress(test.htu, test.request) != test.same || sameAddress(test.request, test.htu) != test.same {
			t.Errorf("%q and %q: same is not %v", test.htu, test.request, test.same)
		}
	}
	if got := CallURI("calendar.example:8443", "/calendar.v1.Calendar/List"); got != "https://calendar.example:8443/calendar.v1.Calendar/List" {
		t.Error(got)
	}
}

// TestProve refuses what no proof can be made for, and never makes two with one jti.
func TestProve(t *testing.T) {
	k := newTestKey(t, "P-256")
	for name, r := range map[string]Request{
		"no method": {URI: tool}, "no host": {Method: "GET", URI: "/events"}, "a password": {Method: "GET", URI: "https://u:p@h.example/"}, "nothing": {Method: "GET"},
	} {
		if _, err := k.Prove(r, at, nil); err == nil {
			t.Errorf("%s: a proof is made", name)
		}
	}
	if _, err := k.Prove(Request{Method: "GET", URI: tool}, at, strings.NewReader("short")); err == nil {
		t.Error("a proof is made without randomness")
	}
	ids := make(map[string]bool)
	for range 100 {
		p, err := Verify(prove(t, k, Request{Method: "GET", URI: tool}, at), Expectation{Method: "GET", URI: tool, Now: at})
		if err != nil || ids[p.ID] {
			t.Fatalf("%+v, %v", p, err)
		}
		ids[p.ID] = true
	}
	if text := fmt.Sprintf("%v %+v %#v %s", k, k, k, k); strings.Count(text, k.Thumbprint()) != 4 || len(text) > 400 {
		t.Errorf("a key prints as %s", text)
	}
	if _, err := must(NewKey(refusing{signer(t, "P-256")})).Prove(Request{Method: "GET", URI: tool}, at, nil); !errors.Is(err, errRefusing) {
		t.Errorf("err = %v", err)
	}
}

var errRefusing = errors.New("the HSM is away")

type refusing struct{ crypto.Signer }

func (refusing) Sign(_ io.Reader, _ []byte, _ crypto.SignerOpts) ([]byte, error) {
	return nil, errRefusing
}
