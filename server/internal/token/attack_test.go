package token

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/x509"
	"encoding/base64"
	"encoding/pem"
	"errors"
	"math/big"
	"net/http"
	"runtime"
	"strings"
	"testing"

	"deputy.example/deputy/client/delegation"
)

// noNetwork fails the test if anything is fetched.
type noNetwork struct{ testing.TB }

func (n noNetwork) RoundTrip(r *http.Request) (*http.Response, error) {
	n.Errorf("a token made the server fetch %s", r.URL)
	return nil, errors.New("no network")
}

// All entry points of a token, under one signature.
func (w *world) doors(t *testing.T) map[string]func(string) error {
	ctx := t.Context()
	return map[string]func(string) error{
		"Own":    func(raw string) error { _, err := w.Own(raw); return err },
		"Caller": func(raw string) error { _, err := w.Caller(ctx, raw); return err },
		"Bearer": func(raw string) error { _, err := w.Bearer(ctx, raw); return err },
		"Actor":  func(raw string) error { _, err := w.Actor(ctx, raw, jwtType); return err },
		"Subject access_token": func(raw string) error {
			_, err := w.Subject(ctx, raw, accessType)
			return err
		},
		"Subject id_token": func(raw string) error { _, err := w.Subject(ctx, raw, idType); return err },
		"Subject jwt":      func(raw string) error { _, err := w.Subject(ctx, raw, jwtType); return err },
		"SignIn": func(raw string) error {
			_, err := w.SignIn(ctx, SignIn{IDToken: raw, Issuer: idpIssuer, ClientID: consoleClient, Nonce: "n-1"})
			return err
		},
	}
}

// valid returns tokens that some entry point accepts.
func (w *world) valid(t *testing.T) map[string]string {
	return map[string]string{
		"derived":   w.own(t, nil),
		"root":      w.idp.sign(t, "at+jwt", w.rootClaims()),
		"assertion": w.agent.sign(t, "JWT", w.assertionClaims()),
		"workload":  w.spire.sign(t, "JWT", w.workloadClaims()),
		"sign-in":   w.idp.sign(t, "JWT", w.signInClaims()),
	}
}

// accepted lists the entry points that accept a token.
func (w *world) accepted(t *testing.T, raw string) []string {
	t.Helper()
	var doors []string
	for name, door := range w.doors(t) {
		if err := door(raw); err == nil {
			doors = append(doors, name)
		} else {
			reasonOf(t, err)
		}
	}
	return doors
}

// malleable returns other spellings of one token: same content, same signature.
func malleable(t *testing.T, token string) map[string]string {
	t.Helper()
	parts := strings.Split(token, ".")
	join := func(h, p, s string) string { return h + "." + p + "." + s }
	variants := map[string]string{
		"space before":         " " + token,
		"space behind":         token + " ",
		"newline behind":       token + "\n",
		"dot behind":           token + ".",
		"dot before":           "." + token,
		"dot doubled":          parts[0] + ".." + parts[1] + "." + parts[2],
		"signature twice":      token + "." + parts[2],
		"padded signature":     token + "==",
		"over-padded":          token + "====",
		"percent-encoded dot":  strings.Replace(token, ".", "%2E", 1),
		"flattened JSON":       toJSON(t, object{"protected": parts[0], "payload": parts[1], "signature": parts[2]}),
		"general JSON":         toJSON(t, object{"payload": parts[1], "signatures": []object{{"protected": parts[0], "signature": parts[2]}}}),
		"zero byte behind":     token + "\x00",
		"byte order mark":      "\ufeff" + token,
		"signature cut":        token[:len(token)-1],
		"signature absent":     parts[0] + "." + parts[1] + ".",
		"signature part gone":  parts[0] + "." + parts[1],
		"Bearer before":        "Bearer " + token,
		"two tokens":           token + " " + token,
		"standard alphabet":    join(parts[0], parts[1], strings.NewReplacer("-", "+", "_", "/").Replace(parts[2]+"")),
		"newline in header":    join(parts[0][:4]+"\n"+parts[0][4:], parts[1], parts[2]),
		"newline in payload":   join(parts[0], parts[1][:8]+"\r\n"+parts[1][8:], parts[2]),
		"newline in signature": join(parts[0], parts[1], parts[2][:4]+"\n"+parts[2][4:]),
		"tab in payload":       join(parts[0], parts[1][:8]+"\t"+parts[1][8:], parts[2]),
		"padding in payload":   join(parts[0], parts[1]+"=", parts[2]),
	}
	for n, name := range []string{"header", "payload", "signature"} {
		if other, spare := spareBits(parts[n]); spare {
			changed := append([]string(nil), parts...)
			changed[n] = other
			variants["spare bits in "+name] = strings.Join(changed, ".")
		}
	}
	if variants["standard alphabet"] == token { // a signature without - and _
		delete(variants, "standard alphabet")
	}
	return variants
}

// spareBits returns another spelling of the same bytes, if the length leaves unused bits.
func spareBits(segment string) (string, bool) {
	const alphabet = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_"
	if len(segment)%4 == 0 {
		return "", false
	}
	last := strings.IndexByte(alphabet, segment[len(segment)-1])
	return segment[:len(segment)-1] + string(alphabet[last|1]), last|1 != last
}

func TestOtherSpellingsOfATokenAreRefused(t *testing.T) {
	w := newWorld(t)
	for kind, token := range w.valid(t) {
		if len(w.accepted(t, token)) == 0 {
			t.Fatalf("%s: no door accepts the token itself", kind)
		}
		for name, variant := range malleable(t, token) {
			if doors := w.accepted(t, variant); doors != nil {
				t.Errorf("%s, %s: accepted by %v", kind, name, doors)
			}
		}
	}

	// The control: without their lax encodings, the variants are valid tokens.
	forgiven := 0
	for name, variant := range malleable(t, w.own(t, nil)) {
		if w.accepted(t, forgive(variant)) != nil {
			forgiven++
		} else if strings.Contains(name, "newline") || strings.Contains(name, "padd") {
			t.Errorf("%s: refused without the gate too: what does the gate refuse?", name)
		}
	}
	if forgiven < 8 {
		t.Errorf("without the gate only %d variants are accepted", forgiven)
	}
}

// forgive returns the token that lenient libraries read: they ignore white space, padding and unused
// bits.
func forgive(token string) string {
	parts := strings.Split(strings.NewReplacer("=", "", " ", "", "\t", "", "\r", "", "\n", "", "+", "-", "/", "_").Replace(token), ".")
	for n, part := range parts {
		if raw, err := base64.RawURLEncoding.DecodeString(part); err == nil {
			parts[n] = segment(raw)
		}
	}
	return strings.Join(parts, ".")
}

// ECDSA has a second valid signature for every signature. Both verify, so no identity may depend on
// the bytes of a signature: not a root token's digest, and not the single use of an assertion.
func TestSecondSignatureIsTheSameToken(t *testing.T) {
	w := newWorld(t)
	for name, claims := range map[string]object{"with jti": w.rootClaims(), "without jti": w.rootClaims().with(object{"jti": nil})} {
		token := w.idp.sign(t, "at+jwt", claims)
		first, err := w.root(t.Context(), token)
		if err != nil {
			t.Fatal(err)
		}
		second, err := w.root(t.Context(), otherSignature(t, token))
		if err != nil {
			t.Fatalf("%s: Go's verifier takes both signatures: %v", name, err)
		}
		if first.Digest != second.Digest || first.ID != second.ID {
			t.Errorf("%s: one token has the identities %s and %s", name, first.Digest, second.Digest)
		}
	}
	assertion := w.agent.sign(t, "JWT", w.assertionClaims())
	first, err := w.Caller(t.Context(), assertion)
	if err != nil {
		t.Fatal(err)
	}
	second, err := w.Caller(t.Context(), otherSignature(t, assertion))
	if err != nil || *first.Use != *second.Use {
		t.Errorf("one assertion has the uses %+v and %+v (%v)", first.Use, second.Use, err)
	}
}

// otherSignature replaces s by n − s.
func otherSignature(t *testing.T, token string) string {
	t.Helper()
	dot := strings.LastIndexByte(token, '.')
	raw, err := base64.RawURLEncoding.DecodeString(token[dot+1:])
	if err != nil {
		t.Fatal(err)
	}
	s := new(big.Int).SetBytes(raw[32:])
	s.Sub(elliptic.P256().Params().N, s).FillBytes(raw[32:])
	return token[:dot+1] + segment(raw)
}

func TestForgedTokensAreRefused(t *testing.T) {
	w := newWorld(t, func(c *TrustConfig) { c.Transport = noNetwork{t} })
	attacker := newTestKey(t, "ES256", "")
	spki, err := x509.MarshalPKIXPublicKey(w.idp.private.Public())
	if err != nil {
		t.Fatal(err)
	}
	forged := map[string]string{}
	for kind, of := range map[string]struct {
		typ    string
		claims object
		key    testKey
	}{
		"derived":   {"at+jwt", object{}, w.ownKey()},
		"root":      {"at+jwt", w.rootClaims(), w.idp},
		"assertion": {"JWT", w.assertionClaims(), w.agent},
		"workload":  {"JWT", w.workloadClaims(), w.spire},
		"sign-in":   {"JWT", w.signInClaims(), w.idp},
	} {
		payload := []byte(toJSON(t, of.claims))
		if kind == "derived" {
			if payload, err = w.ownClaim.MarshalJSON(); err != nil {
				t.Fatal(err)
			}
		}
		header := object{"alg": of.key.alg, "typ": of.typ, "kid": of.key.kid}
		unsigned := func(change object) string {
			return segment([]byte(toJSON(t, header.with(change)))) + "." + segment(payload)
		}
		for _, none := range []string{"none", "None", "nOnE", "NONE", ""} {
			forged[kind+": alg "+none+" without signature"] = unsigned(object{"alg": none}) + "."
			forged[kind+": alg "+none+" with a signature"] = unsigned(object{"alg": none}) + ".AAAA"
		}
		for name, secret := range map[string][]byte{
			"DER": spki, "PEM": pem.EncodeToMemory(&pem.Block{Type: "PUBLIC KEY", Bytes: spki}),
			"JWK": []byte(toJSON(t, of.key.jwk(t, nil))), "nothing": nil, "JWKS": w.keys.JWKS(),
		} {
			forged[kind+": HS256 with the public key as "+name] = hs256(secret, unsigned(object{"alg": "HS256"}))
			forged[kind+": HMAC under the key's own alg as "+name] = hs256(secret, unsigned(nil))
		}
		attacker.kid = of.key.kid
		forged[kind+": signed by another key"] = attacker.signRaw(t, []byte(toJSON(t, header.with(object{"alg": "ES256"}))), payload)
		forged[kind+": signed by another key of the algorithm"] = newTestKey(t, of.key.alg, of.key.kid).signRaw(t, []byte(toJSON(t, header)), payload)
		forged[kind+": signed over another payload"] = segment([]byte(toJSON(t, header))) + "." + segment(append(payload, ' ')) + "." +
			strings.Split(of.key.signRaw(t, []byte(toJSON(t, header)), payload), ".")[2]
		for _, length := range []int{1, 63, 64, 65, 128, 256} {
			forged[kind+": signature of zeros"+strings.Repeat(" ", length)] = unsigned(nil) + "." + segment(make([]byte, length))
		}
		// A header that points to a key of the token's own choice, or holds one, is refused for
		// every signer.
		for name, value := range map[string]any{
			"jku": "https://attacker.example/jwks", "x5u": "https://attacker.example/cert", "jwk": attacker.jwk(t, nil),
			"x5c": []string{base64.StdEncoding.EncodeToString(spki)}, "crit": []string{"exp"}, "b64": false, "zip": "DEF",
			"cty": "JWT", "enc": "A256GCM", "epk": attacker.jwk(t, nil),
		} {
			injected := []byte(toJSON(t, header.with(object{name: value})))
			forged[kind+": header "+name+", signed by the attacker"] = attacker.signRaw(t, injected, payload)
			forged[kind+": header "+name+", signed by the right key"] = of.key.signRaw(t, injected, payload)
		}
		for _, kid := range []string{
			"../../../../dev/null", "/dev/null", "file:///etc/passwd", "https://attacker.example/jwks", "' OR 1=1 --",
			"%00", "\x00", of.key.kid + "\x00", " " + of.key.kid, strings.ToUpper(of.key.kid) + "x", strings.Repeat("k", 4000),
		} {
			attacker.kid = kid
			forged[kind+": kid "+kid] = attacker.signRaw(t, []byte(toJSON(t, header.with(object{"kid": kid, "alg": "ES256"}))), payload)
		}
		forged[kind+": alg twice"] = of.key.signRaw(t, []byte(`{"alg":"none",`+toJSON(t, header)[1:]), payload)
		forged[kind+": alg in other case beside"] = attacker.signRaw(t, []byte(`{"Alg":"`+of.key.alg+`","alg":"none","typ":"`+of.typ+`"}`), payload)
		forged[kind+": claims twice"] = of.key.signRaw(t, []byte(toJSON(t, header)), []byte(`{"exp":1,`+string(payload[1:])))
		forged[kind+": nested"] = of.key.signRaw(t, []byte(toJSON(t, header)), []byte(w.own(t, nil)))
		forged[kind+": nested as a JSON string"] = of.key.signRaw(t, []byte(toJSON(t, header)), []byte(toJSON(t, w.own(t, nil))))
		forged[kind+": two objects"] = of.key.signRaw(t, []byte(toJSON(t, header)), append(append([]byte{}, payload...), payload...))
	}
	forged["JWE"] = "eyJhbGciOiJSU0EtT0FFUCIsImVuYyI6IkEyNTZHQ00ifQ.AAAA.AAAA.AAAA.AAAA"
	forged["JWE with alg dir in three parts"] = segment([]byte(`{"alg":"dir","enc":"A256GCM"}`)) + ".e30.AAAA"

	for name, token := range forged {
		if doors := w.accepted(t, token); doors != nil {
			t.Errorf("%s: accepted by %v", name, doors)
		}
	}

	// Only the signature is wrong here. tools/mutants removes its check and requires each of these
	// tokens to be accepted.
	for kind := range w.valid(t) {
		t.Run(kind, func(t *testing.T) {
			if doors := w.accepted(t, forged[kind+": signed by another key of the algorithm"]); doors != nil {
				t.Errorf("accepted by %v", doors)
			}
		})
	}
}

// Signatures at the limits of ECDSA's ranges.
func TestDegenerateSignaturesAreRefused(t *testing.T) {
	w := newWorld(t)
	n := w.idp.private.(*ecdsa.PrivateKey).Curve.Params().N
	token := w.idp.sign(t, "at+jwt", w.rootClaims())
	unsigned := token[:strings.LastIndexByte(token, '.')+1]
	numbers := map[string]*big.Int{
		"0": big.NewInt(0), "1": big.NewInt(1), "n": n, "n-1": new(big.Int).Sub(n, big.NewInt(1)), "n+1": new(big.Int).Add(n, big.NewInt(1)),
		"2^256-1": new(big.Int).Sub(new(big.Int).Lsh(big.NewInt(1), 256), big.NewInt(1)),
	}
	for rName, r := range numbers {
		for sName, s := range numbers {
			raw := append(r.FillBytes(make([]byte, 32)), s.FillBytes(make([]byte, 32))...)
			if _, err := w.root(t.Context(), unsigned+segment(raw)); err == nil {
				t.Errorf("r = %s, s = %s is accepted", rName, sName)
			}
		}
	}
}

// One rule alone refuses each token: tools/mutants removes the rule and requires the token to be
// accepted.
func TestControlsOfTypAndAudience(t *testing.T) {
	w := newWorld(t)
	ctx := t.Context()
	derivedAsAssertion := w.agent.sign(t, "at+jwt", w.assertionClaims())
	idAsAccess := w.idp.sign(t, "JWT", w.rootClaims())
	elsewhere := w.idp.sign(t, "at+jwt", w.rootClaims().with(object{"aud": "https://other.example"}))
	try := map[string]func() error{
		"typ of an assertion": func() error { _, err := w.Caller(ctx, derivedAsAssertion); return err },
		"typ of a subject":    func() error { _, err := w.root(ctx, idAsAccess); return err },
		"aud of a subject":    func() error { _, err := w.root(ctx, elsewhere); return err },
		"aud of an assertion": func() error {
			_, err := w.Caller(ctx, w.agent.sign(t, "JWT", w.assertionClaims().with(object{"aud": api})))
			return err
		},
		"aud of a workload": func() error {
			_, err := w.Actor(ctx, w.spire.sign(t, "JWT", w.workloadClaims().with(object{"aud": api})), jwtType)
			return err
		},
	}
	for name, attempt := range try {
		t.Run(name, func(t *testing.T) {
			if attempt() == nil {
				t.Error("it does not count")
			}
		})
	}
}

// A status list is signed by the key that signs tokens. It is never accepted as a token, whatever
// it holds.
func TestStatusListIsNoToken(t *testing.T) {
	w := newWorld(t)
	w.own(t, nil)
	claims, err := w.ownClaim.MarshalJSON()
	if err != nil {
		t.Fatal(err)
	}
	list, err := w.keys.SignStatusList(claims)
	if err != nil {
		t.Fatal(err)
	}
	if doors := w.accepted(t, list); len(doors) > 0 {
		t.Errorf("a status list with the claims of a token is let in by %v", doors)
	}
	if _, err := w.Issued(list); err == nil {
		t.Error("a status list can be revoked like a token")
	}
	u, err := delegation.Parse(list)
	if err != nil || u.Header.Type != delegation.HeaderTypeStatusList || w.keys.fixed.active.verify(u) != nil {
		t.Errorf("header %+v, %v", u, err)
	}
	_, err = w.Own(list)
	wantReason(t, err, delegation.SubjectTokenInvalid, "its typ is not at+jwt")
	if long, err := w.keys.SignStatusList([]byte(`{"lst":"` + strings.Repeat("A", 2*delegation.MaxTokenBytes) + `"}`)); err != nil || len(long) < 2*delegation.MaxTokenBytes {
		t.Errorf("a list longer than a token: %d bytes, %v", len(long), err)
	}
}

// A large or deep token is refused before any work is spent on it.
func TestHostileSizesCostLittle(t *testing.T) {
	w := newWorld(t)
	head := segment([]byte(`{"alg":"ES256","kid":"idp-1","typ":"at+jwt"}`))
	const room = delegation.MaxTokenBytes*3/4 - 200
	for _, row := range []struct {
		name, token string
		bytes       uint64 // that one call may allocate
	}{
		{"a megabyte of dots", strings.Repeat(".", 1<<20), 4 << 10},
		{"a megabyte of letters", strings.Repeat("A", 1<<20), 4 << 10},
		{"a megabyte of payload", head + "." + strings.Repeat("A", 1<<20) + ".AAAA", 4 << 10},
		{"8 KiB of dots", strings.Repeat(".", delegation.MaxTokenBytes), 4 << 10},
		{"deep arrays", head + "." + segment([]byte(`{"a":`+strings.Repeat("[", room))) + ".AAAA", 256 << 10},
		{"deep objects", head + "." + segment([]byte(strings.Repeat(`{"a":`, room/5))) + ".AAAA", 256 << 10},
		{"many members", head + "." + segment([]byte(manyMembers(room))) + ".AAAA", 1 << 20},
		{"long number", head + "." + segment([]byte(`{"iss":"x","exp":`+strings.Repeat("9", room-20)+`}`)) + ".AAAA", 256 << 10},
	} {
		t.Run(row.name, func(t *testing.T) {
			const rounds = 20
			var before, after runtime.MemStats
			runtime.ReadMemStats(&before)
			for range rounds {
				if _, err := w.root(t.Context(), row.token); err == nil {
					t.Fatal("accepted")
				}
			}
			runtime.ReadMemStats(&after)
			if spent := (after.TotalAlloc - before.TotalAlloc) / rounds; spent > row.bytes {
				t.Errorf("one refusal allocates %d bytes, more than %d", spent, row.bytes)
			}
		})
	}
}

func manyMembers(size int) string {
	var b strings.Builder
	b.WriteString(`{"exp":1`)
	for n := 0; b.Len() < size-10; n++ {
		b.WriteString(`,"` + string(rune('a'+n%26)) + string(rune('a'+n/26%26)) + string(rune('a'+n/676)) + `":1`)
	}
	return b.String() + "}"
}
