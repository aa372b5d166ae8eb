package delegation_test

import (
	"fmt"
	"strings"
	"testing"

	"deputy.example/deputy/client/delegation"
)

func TestGateTakesOneSpellingOnly(t *testing.T) {
	good := compact(goodHeader, `{"iss":"x","exp":1}`)
	u, err := delegation.Parse(good)
	if err != nil {
		t.Fatal(err)
	}
	if u.Header != (delegation.Header{Algorithm: "ES256", Type: "at+jwt", KeyID: "k"}) || string(u.Payload) != `{"iss":"x","exp":1}` ||
		u.SigningInput+".AAAA" != good || string(u.Signature) != "\x00\x00\x00" {
		t.Errorf("%+v", u)
	}
	parts := strings.Split(good, ".")
	h, p, s := parts[0], parts[1], parts[2]
	for name, bad := range map[string]string{
		"nothing": "", "one part": h, "two parts": h + "." + p, "four parts": good + "." + s, "five parts": good + "." + s + "." + s,
		"dots": "..", "a dot behind": good + ".", "a dot before": "." + good,
		"no header": "." + p + "." + s, "no payload": h + ".." + s, "no signature": h + "." + p + ".",
		"padding": h + "." + p + "." + s + "=", "standard alphabet": h + "." + p + ".++//", "spare bits": h + "." + p + ".AAB",
		"one letter": h + "." + p + ".A", "space": h + "." + p + ". AAA", "newline": h + "." + p + ".AA\nAA", "return": h + "." + p + ".AA\rAA",
		"newline in payload": h + "." + p[:4] + "\n" + p[4:] + "." + s, "newline behind": good + "\n", "space before": " " + good,
		"not ASCII": h + "." + p + ".ÄÄÄÄ", "zero byte": h + "." + p + ".AAA\x00",
		"JSON": `{"protected":"` + h + `","payload":"` + p + `","signature":"` + s + `"}`,
	} {
		if _, err := delegation.Parse(bad); err == nil {
			t.Errorf("%s is taken", name)
		}
	}
}

func TestGateBoundsTheToken(t *testing.T) {
	token := func(pad int) string { return compact(goodHeader, `{"a":"`+strings.Repeat("x", pad)+`"}`) }
	longest := 0
	for pad := 6000; ; pad++ {
		if len(token(pad)) > delegation.MaxTokenBytes {
			break
		}
		longest = pad
	}
	if _, err := delegation.Parse(token(longest)); err != nil {
		t.Errorf("%d bytes are refused: %v", len(token(longest)), err)
	}
	for _, pad := range []int{longest + 1, 1 << 20} {
		if _, err := delegation.Parse(token(pad)); err == nil {
			t.Errorf("%d bytes are taken", len(token(pad)))
		}
	}
	if delegation.MaxTokenBytes != 8192 {
		t.Errorf("the documented bound is %d", delegation.MaxTokenBytes)
	}
}

func TestGateReadsHeadersStrictly(t *testing.T) {
	for _, row := range []struct {
		header string
		want   delegation.Header // the zero Header: refused
	}{
		{`{"alg":"ES256"}`, delegation.Header{Algorithm: "ES256"}},
		{`{"alg":"ES256","typ":"JWT"}`, delegation.Header{Algorithm: "ES256", Type: "jwt"}},
		{`{"alg":"ES256","typ":"application/AT+JWT"}`, delegation.Header{Algorithm: "ES256", Type: "at+jwt"}},
		{`{"alg":"ES256","typ":"text/at+jwt"}`, delegation.Header{Algorithm: "ES256", Type: "text/at+jwt"}},
		{`{"alg":"ES256","typ":"application/application/at+jwt"}`, delegation.Header{Algorithm: "ES256", Type: "application/at+jwt"}},
		{`{"alg":"ES256","x-unknown":1}`, delegation.Header{Algorithm: "ES256"}},
		// GitHub Actions
		{`{"typ":"JWT","alg":"RS256","x5t":"eBZ_cn3sXYAd0ch4THBKHIgOwOE","kid":"k"}`, delegation.Header{Algorithm: "RS256", Type: "jwt", KeyID: "k"}},
		{`{}`, delegation.Header{}}, {`{"alg":null}`, delegation.Header{}}, {`{"alg":1}`, delegation.Header{}}, {`{"Alg":"ES256"}`, delegation.Header{}},
		{`{"alg":"ES256","alg":"ES256"}`, delegation.Header{}}, {`{"alg":"ES256","\u0061lg":"none"}`, delegation.Header{}},
		{`{"alg":"ES256","typ":""}`, delegation.Header{}}, {`{"alg":"ES256","typ":null}`, delegation.Header{}}, {`{"alg":"ES256","kid":""}`, delegation.Header{}},
		{`{"alg":"ES256","kid":1}`, delegation.Header{}}, {`{"alg":"ES256","kid":null}`, delegation.Header{}}, {`{"alg":"ES256","kid":["k"]}`, delegation.Header{}},
		{`["alg"]`, delegation.Header{}}, {`"alg"`, delegation.Header{}}, {`null`, delegation.Header{}}, {``, delegation.Header{}},
		{`{"alg":"ES256"} `, delegation.Header{Algorithm: "ES256"}}, {`{"alg":"ES256"}{}`, delegation.Header{}}, {`{"alg":"ES256"`, delegation.Header{}},
		{"{\"alg\":\"ES256\",\"kid\":\"\xff\"}", delegation.Header{}}, {`{"alg":"ES256","kid":"\ud800"}`, delegation.Header{}},
	} {
		u, err := delegation.Parse(compact(row.header, `{}`))
		if row.want == (delegation.Header{}) {
			if err == nil {
				t.Errorf("%s is read as %+v", row.header, u.Header)
			}
			continue
		}
		if err != nil || u.Header != row.want {
			t.Errorf("%s: %+v, %v", row.header, u, err)
		}
	}
	for _, name := range []string{"jku", "jwk", "x5u", "x5c", "crit", "b64", "zip", "enc", "epk", "cty"} {
		for _, value := range []string{`null`, `""`, `"x"`, `[]`, `["exp"]`, `{}`, `false`} {
			if _, err := delegation.Parse(compact(fmt.Sprintf(`{"alg":"ES256",%q:%s}`, name, value), `{}`)); err == nil || !strings.Contains(err.Error(), name) {
				t.Errorf("header with %s %s: %v", name, value, err)
			}
		}
	}
}

func TestGateReadsPayloadsStrictly(t *testing.T) {
	nested := func(open, end string, depth int) string {
		return `{"a":` + strings.Repeat(open, depth) + strings.Repeat(end, depth) + `}`
	}
	for name, bad := range map[string]string{
		"array": `[]`, "text": `"x"`, "null": `null`, "number": `1`, "a token": compact(goodHeader, `{}`),
		"duplicate": `{"a":1,"a":1}`, "duplicate below": `{"a":{"b":[{"c":1,"c":2}]}}`, "duplicate by escape": `{"exp":1,"\u0065xp":2}`,
		"deep arrays": nested("[", "]", 40), "deep objects": `{"a":` + strings.Repeat(`{"a":`, 40) + `1` + strings.Repeat(`}`, 41),
		"deeper than any stack": nested("[", "]", 2500), "not closed": `{"a":1`, "two": `{}{}`, "trailing": `{}x`, "comma": `{"a":1,}`, "comment": `{/**/}`,
		"single quotes": `{'a':1}`, "bad UTF-8": "{\"a\":\"\xff\"}", "bad UTF-8 name": "{\"\xff\":1}", "lone surrogate": `{"a":"\ud800"}`,
		"lone low surrogate": `{"a":"\udc00x"}`, "lone surrogate name": `{"\ud800":1}`, "control character": "{\"a\":\"\x01\"}", "NaN": `{"a":NaN}`,
		"leading zero": `{"a":01}`, "byte order mark": "\ufeff{}",
	} {
		if u, err := delegation.Parse(compact(goodHeader, bad)); err == nil {
			t.Errorf("%s is read as %s", name, u.Payload)
		}
	}
	for name, good := range map[string]string{
		"empty": `{}`, "white space": " {\n\"a\" : [ 1 ]\t} ", "as deep as a chain": nested("[", "]", 39), "brackets in text": `{"a":"` + strings.Repeat("[", 99) + `\"{{"}`,
		"surrogate pair": `{"a":"\ud83d\ude00"}`, "other case beside": `{"exp":1,"Exp":2,"EXP":3}`,
	} {
		if _, err := delegation.Parse(compact(goodHeader, good)); err != nil {
			t.Errorf("%s: %v", name, err)
		}
	}
}

func TestRegisteredClaimsHaveTheirTypes(t *testing.T) {
	const most = 1 << 53
	for value, want := range map[string]int64{
		`1`: 1, `1795305600`: 1795305600, `9007199254740992`: most, `9007199254740993`: 0, `9223372036854775808`: 0, `0`: 0, `-1`: 0, `-0`: 0,
		`1.0`: 0, `1.5`: 0, `1e3`: 0, `1E3`: 0, `"1"`: 0, `null`: 0, `true`: 0, `[1]`: 0, `{}`: 0, `1` + strings.Repeat("0", 400): 0,
	} {
		for _, name := range []string{"exp", "nbf", "iat"} {
			payload := fmt.Sprintf(`{"iss":"x","exp":1,%q:%s}`, name, value)
			if name == "exp" {
				payload = fmt.Sprintf(`{"iss":"x","exp":%s}`, value)
			}
			r, err := parse(t, payload).Registered()
			got := map[string]int64{"exp": r.ExpiresAt, "nbf": r.NotBefore, "iat": r.IssuedAt}[name]
			if (err == nil) != (want != 0) || got != want {
				t.Errorf("%s: %d, %v", payload, got, err)
			}
		}
	}
	for _, bad := range []string{
		`{"iss":"x"}`, `{"iss":"x","Exp":1}`, `{"iss":"x","EXP":1}`, `{"exp":1}`, `{"exp":1,"Iss":"x"}`, `{"exp":1,"iss":null}`, `{"exp":1,"iss":["x"]}`,
		`{"iss":"x","exp":1,"sub":""}`, `{"iss":"x","exp":1,"sub":1}`, `{"iss":"x","exp":1,"sub":null}`, `{"iss":"x","exp":1,"jti":""}`, `{"iss":"x","exp":1,"jti":{}}`,
		`{"iss":"x","exp":1,"aud":""}`, `{"iss":"x","exp":1,"aud":null}`, `{"iss":"x","exp":1,"aud":1}`, `{"iss":"x","exp":1,"aud":{}}`, `{"iss":"x","exp":1,"aud":["a",""]}`,
		`{"iss":"x","exp":1,"aud":["a",1]}`, `{"iss":"x","exp":1,"aud":["a",["b"]]}`, `{"iss":"x","exp":1,"aud":[null]}`,
	} {
		if r, err := parse(t, bad).Registered(); err == nil {
			t.Errorf("%s is read as %+v", bad, r)
		}
	}
	if r, err := parse(t, `{"exp":1,"sub":"spiffe://a/b"}`).RegisteredSVID(); err != nil || r.Issuer != "" || r.Subject != "spiffe://a/b" {
		t.Errorf("an SVID without iss: %+v, %v", r, err)
	}
	for _, payload := range []string{`{"exp":1,"iss":""}`, `{"exp":1,"iss":null}`, `{"exp":1,"iss":["x"]}`, `{"iss":"x"}`} {
		if _, err := parse(t, payload).RegisteredSVID(); err == nil {
			t.Errorf("accepted: %s", payload)
		}
	}
	r, err := parse(t, `{"iss":"x","exp":2,"nbf":1,"iat":1,"sub":"s","jti":"j","aud":["a","b"],"Sub":"other"}`).Registered()
	if err != nil || r.Issuer != "x" || r.Subject != "s" || r.ID != "j" || strings.Join(r.Audience, " ") != "a b" {
		t.Errorf("%+v, %v", r, err)
	}
}

// Each row breaks valid claims in one place.
func TestClaimsOfADerivedTokenAreReadStrictly(t *testing.T) {
	const good = `{"iss":"i","sub":"user:alice","client_id":"agent:b","aud":["x"],"scope":"a b","iat":1,"nbf":1,"exp":2,"jti":"j1","txn":"t",` +
		`"act":{"sub":"agent:b","act":{"sub":"agent:a"}},"delegation":{"root":"r","hops":[["j0",1,0,""],["j1",2,1,"key"]],"depth_left":2},"cnf":{"jkt":"key"}}`
	if _, err := delegation.DecodeClaims([]byte(good)); err != nil {
		t.Fatal(err)
	}
	if _, err := delegation.DecodeClaims([]byte(strings.Replace(good, `"iss"`, `"later":{"a":1},"iss"`, 1))); err != nil {
		t.Errorf("an unknown claim is refused: %v", err)
	}
	for _, row := range [][2]string{
		{`"iss":"i"`, `"iss":""`}, {`"sub":"user:alice"`, `"sub":"alice"`}, {`"sub":"user:alice",`, ``}, {`"client_id":"agent:b"`, `"client_id":"agent:a"`},
		{`"client_id":"agent:b",`, ``}, {`"aud":["x"]`, `"aud":[]`}, {`"aud":["x"],`, ``}, {`"scope":"a b"`, `"scope":["a","b"]`}, {`"scope":"a b"`, `"scope":""`},
		{`"scope":"a b"`, `"scope":"a  b"`}, {`"scope":"a b"`, `"scope":null`}, {`"iat":1,`, ``}, {`"nbf":1,`, ``}, {`"exp":2`, `"exp":1`}, {`"nbf":1`, `"nbf":2`}, {`"iat":1`, `"iat":2`},
		{`"jti":"j1",`, ``}, {`"jti":"j1"`, `"jti":"j0"`}, {`"txn":"t",`, ``}, {`"txn":"t"`, `"txn":""`}, {`"txn":"t"`, `"txn":1`},
		{`"act":{"sub":"agent:b","act":{"sub":"agent:a"}},`, ``}, {`"act":{"sub":"agent:a"}}`, `"act":null}`}, {`{"sub":"agent:a"}`, `{"sub":"agent:a","iss":"i"}`},
		{`"delegation":`, `"Delegation":`}, {`"root":"r"`, `"root":""`}, {`"root":"r",`, ``}, {`"root":"r"`, `"root":null`}, {`"depth_left":2`, `"depth_left":-1`},
		{`"depth_left":2`, `"depth_left":31`}, {`"depth_left":2`, `"depth_left":1.5`}, {`"depth_left":2`, `"depth_left":"2"`}, {`"depth_left":2`, `"depth_left":2,"uses":2`},
		{`"depth_left":2`, `"depth_left":2,"uses":-1`}, {`"depth_left":2`, `"depth_left":2,"narrower":true`}, {`"depth_left":2`, `"Depth_left":2`},
		{`["j0",1,0,""]`, `["j0",0,0,""]`}, {`["j0",1,0,""]`, `["j0",2,0,""]`}, {`["j0",1,0,""]`, `["j0",1,1,""],["j9",1,1,""]`}, {`["j0",1,0,""]`, `["j0",1,-1,""]`},
		{`["j0",1,0,""]`, `["j0",1,2,""]`}, {`["j0",1,0,""]`, `["",1,0,""]`}, {`["j0",1,0,""]`, `["j0",1,0]`}, {`["j0",1,0,""]`, `["j0",1,0,"",""]`}, {`["j0",1,0,""]`, `["j0",1,0,null]`},
		{`["j0",1,0,""]`, `["j0","1",0,""]`}, {`["j0",1,0,""]`, `["j0",1.0,0,""]`}, {`["j0",1,0,""]`, `{"j0":1}`}, {`["j0",1,0,""]`, `null`}, {`["j0",1,0,""],["j1",2,1,"key"]`, ``},
		{`["j1",2,1,"key"]`, `["j1",2,0,"key"]`}, {`["j1",2,1,"key"]`, `["j1",2,1,""]`}, {`["j1",2,1,"key"]`, `["j1",2,1,"other"]`}, {`["j1",2,1,"key"]`, `["j2",2,1,"key"]`},
		{`,"cnf":{"jkt":"key"}`, ``}, {`"cnf":{"jkt":"key"}`, `"cnf":null`}, {`"cnf":{"jkt":"key"}`, `"cnf":{}`}, {`"cnf":{"jkt":"key"}`, `"cnf":{"jkt":""}`}, {`"cnf":{"jkt":"key"}`, `"cnf":{"jkt":"other"}`},
		{`"cnf":{"jkt":"key"}`, `"cnf":{"jkt":"key","x5t#S256":"y"}`}, {`"cnf":{"jkt":"key"}`, `"cnf":{"JKT":"key"}`}, {`"cnf":{"jkt":"key"}`, `"cnf":{"x5t#S256":"other"}`}, {`"cnf":{"jkt":"key"}`, `"cnf":{"x5t":"key"}`}, {`"cnf":{"jkt":"key"}`, `"cnf":{"x5t#s256":"key"}`}, {`"cnf":{"jkt":"key"}`, `"cnf":"key"`}, {`"cnf":{"jkt":"key"}`, `"Cnf":{"jkt":"key"}`},
		{`"cnf":`, `"may_act":null,"cnf":`}, {`"cnf":`, `"may_act":{},"cnf":`}, {`"cnf":`, `"may_act":{"sub":"bob"},"cnf":`}, {`"cnf":`, `"may_act":{"sub":"agent:c","iss":"i"},"cnf":`},
		{`"cnf":`, `"may_act":[{"sub":"agent:c"}],"cnf":`}, {`"cnf":`, `"authorization_details":[],"cnf":`}, {`"cnf":`, `"authorization_details":null,"cnf":`},
		{`"cnf":`, `"status":null,"cnf":`}, {`"cnf":`, `"status":{},"cnf":`}, {`"cnf":`, `"status":{"status_list":null},"cnf":`}, {`"cnf":`, `"status":{"status_list":{"idx":1}},"cnf":`},
		{`"cnf":`, `"status":{"status_list":{"uri":"u","index":1}},"cnf":`}, {`"cnf":`, `"status":{"status_list":{"idx":-1,"uri":"u"}},"cnf":`}, {`"cnf":`, `"status":{"status_list":{"idx":"1","uri":"u"}},"cnf":`},
		{`"cnf":`, `"status":{"status_list":{"idx":1,"uri":""}},"cnf":`}, {`"cnf":`, `"status":{"status_list":{"idx":1,"uri":"u","more":1}},"cnf":`},
		{`"cnf":`, `"status":{"status_list":{"idx":1,"uri":"u"},"other_mechanism":{}},"cnf":`}, {`"cnf":`, `"status":{"other_mechanism":{}},"cnf":`},
		{`"cnf":`, `"authorization_details":{"type":"x"},"cnf":`}, {`"exp":2`, `"exp":2,"exp":9`}, {`"exp":2`, `"exp":2.0`}, {`"exp":2`, `"exp":2e0`},
	} {
		bad := strings.Replace(good, row[0], row[1], 1)
		if bad == good {
			t.Fatalf("the row %q changes nothing", row)
		}
		if c, err := delegation.DecodeClaims([]byte(bad)); err == nil {
			t.Errorf("%s in place of %s is read as %+v", row[1], row[0], c)
		}
	}
}
