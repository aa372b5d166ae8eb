package delegation_test

import (
	"bytes"
	"encoding/base64"
	"encoding/json"
	"slices"
	"strings"
	"testing"

	"deputy.example/deputy/client/delegation"
)

// FuzzParse: a token that the gate accepts has one spelling, a bounded size and no key of its own
// choice. The standard library judges this, not the gate's own reader.
func FuzzParse(f *testing.F) {
	f.Add(compact(goodHeader, `{"iss":"x","exp":1}`))
	f.Add(compact(`{"alg":"none"}`, `{}`))
	f.Add(compact(`{"alg":"ES256","jku":"x"}`, `{}`))
	f.Add(compact(goodHeader, `{"exp":1,"exp":2}`))
	f.Add("..")
	f.Add("e30.e30.AAB")
	f.Add("e30.\ne30.AAAA")
	f.Fuzz(func(t *testing.T, token string) {
		u, err := delegation.Parse(token)
		if err != nil {
			if len(token) > 16 && strings.Contains(err.Error(), token[:16]) {
				t.Errorf("%v repeats the token", err)
			}
			return
		}
		if len(token) > delegation.MaxTokenBytes {
			t.Fatalf("%d bytes are taken", len(token))
		}
		encode := base64.RawURLEncoding.EncodeToString
		head, payload, _ := strings.Cut(u.SigningInput, ".")
		rawHeader, err := base64.RawURLEncoding.DecodeString(head)
		if err != nil || encode(rawHeader)+"."+encode(u.Payload)+"."+encode(u.Signature) != token || encode(u.Payload) != payload {
			t.Fatalf("%q has another spelling", token)
		}
		var header map[string]any
		if err := json.Unmarshal(rawHeader, &header); err != nil || header["alg"] != u.Header.Algorithm {
			t.Fatalf("%s: %v", rawHeader, err)
		}
		for _, name := range []string{"jku", "jwk", "x5u", "x5c", "crit"} {
			if _, there := header[name]; there {
				t.Fatalf("header %s is taken", rawHeader)
			}
		}
		if name := duplicate(json.NewDecoder(bytes.NewReader(u.Payload))); name != "" {
			t.Fatalf("%s holds %q twice", u.Payload, name)
		}
		if _, err := u.Registered(); err == nil {
			var claims map[string]json.RawMessage
			if err := json.Unmarshal(u.Payload, &claims); err != nil || claims["exp"] == nil || claims["iss"] == nil {
				t.Fatalf("%s: %v", u.Payload, err)
			}
		}
	})
}

// duplicate finds a member name that occurs twice in one object.
func duplicate(d *json.Decoder) string {
	type level struct {
		names map[string]bool // nil in an array
		key   bool            // the next string is a name
	}
	var stack []level
	for {
		tok, err := d.Token()
		if err != nil {
			return ""
		}
		top := len(stack) - 1
		switch tok {
		case json.Delim('{'):
			stack = append(stack, level{map[string]bool{}, true})
			continue
		case json.Delim('['):
			stack = append(stack, level{})
			continue
		case json.Delim('}'), json.Delim(']'):
			stack = stack[:top]
			if top--; top < 0 {
				return ""
			}
		default:
			if name, isText := tok.(string); isText && stack[top].key {
				if stack[top].names[name] {
					return name
				}
				stack[top].names[name] = true
				stack[top].key = false
				continue
			}
		}
		stack[top].key = stack[top].names != nil
	}
}

func FuzzChain(f *testing.F) {
	f.Add([]byte(`{"sub":"agent:b","act":{"sub":"agent:a"}}`))
	f.Add([]byte(`{"sub":"agent:b","act":null}`))
	f.Add([]byte(`{"sub":"agent:b","sub":"agent:a"}`))
	f.Add([]byte(strings.Repeat(`{"sub":"a:b","act":`, 40)))
	f.Fuzz(func(t *testing.T, data []byte) {
		var c delegation.Chain
		if c.UnmarshalJSON(data) != nil {
			return
		}
		if len(c) == 0 || len(c) > delegation.MaxChainDepth {
			t.Fatalf("%d actors", len(c))
		}
		for _, p := range c {
			if again, err := delegation.ParsePrincipal(string(p)); err != nil || again != p {
				t.Fatalf("%q: %v", p, err)
			}
		}
		raw, err := c.MarshalJSON()
		if err != nil {
			t.Fatal(err)
		}
		var again delegation.Chain
		if err := again.UnmarshalJSON(raw); err != nil || !slices.Equal(again, c) {
			t.Fatalf("%s: %v, %v", raw, again, err)
		}
	})
}

func FuzzScopes(f *testing.F) {
	for _, seed := range []string{"a", "a b a", "", " a", "a  b", `a"b`, "é", "read:* write"} {
		f.Add(seed)
	}
	f.Fuzz(func(t *testing.T, text string) {
		s, err := delegation.ParseScopes(text)
		if err != nil {
			return
		}
		tokens := strings.Split(text, " ")
		slices.Sort(tokens)
		if !slices.Equal(slices.Compact(tokens), s) {
			t.Fatalf("%q is read as %q", text, s)
		}
		if again, err := delegation.ParseScopes(s.String()); err != nil || !slices.Equal(again, s) {
			t.Fatalf("%q comes back as %q, %v", s, again, err)
		}
	})
}

func FuzzClaims(f *testing.F) {
	f.Add([]byte(`{"iss":"i","sub":"user:alice","client_id":"agent:b","aud":["x"],"scope":"a b","iat":1,"nbf":1,"exp":2,"jti":"j1","txn":"t",` +
		`"act":{"sub":"agent:b","act":{"sub":"agent:a"}},"delegation":{"root":"r","hops":[["j0",1,0,""],["j1",2,1,"key"]],"depth_left":2},"cnf":{"jkt":"key"}}`))
	f.Add([]byte(`{"iss":"i","sub":"user:alice","client_id":"agent:a","aud":"x","iat":1,"nbf":1,"exp":2,"jti":"j0","txn":"t","act":{"sub":"agent:a"},` +
		`"authorization_details":[{"type":"x","limit":1e2}],"delegation":{"root":"r","hops":[["j0",1,0,""]],"depth_left":0,"uses":1},"may_act":{"sub":"agent:c"},"status":{"status_list":{"idx":1,"uri":"u"}}}`))
	f.Fuzz(func(t *testing.T, payload []byte) {
		c, err := delegation.DecodeClaims(payload)
		if err != nil {
			return
		}
		if err := c.Check(); err != nil {
			t.Fatalf("%s is decoded and fails the check: %v", payload, err)
		}
		raw, err := c.MarshalJSON()
		if err != nil {
			t.Fatal(err)
		}
		again, err := delegation.DecodeClaims(raw)
		if err != nil {
			t.Fatalf("%s: %v", raw, err)
		}
		if second, err := again.MarshalJSON(); err != nil || !bytes.Equal(second, raw) {
			t.Fatalf("%s comes back as %s, %v", raw, second, err)
		}
	})
}

func FuzzDetails(f *testing.F) {
	for _, seed := range []string{
		`[{"type":"payment","actions":["read","write"],"limit":10}]`, `[{"type":"x","a":{"b":[1,1.0,1e0]}}]`, `[{"type":"x"}],"b":[]`,
		`[{"type":"x","limit":9007199254740993}]`, `[{"type":"x","limit":-0}]`, `[{"type":"x","s":"\u0041\/"}]`, `[]`, `[{"type":"x","actions":[]}]`,
	} {
		f.Add([]byte(seed))
	}
	f.Fuzz(func(t *testing.T, data []byte) {
		ds, err := delegation.ParseDetails(data)
		if err != nil {
			return
		}
		if len(ds) == 0 || !json.Valid(data) {
			t.Fatalf("%s is read as %v", data, ds)
		}
		for _, d := range ds {
			if d.Type() == "" || !d.Narrows(d) || !d.NarrowsAny(ds) {
				t.Fatalf("%s", d)
			}
			again, err := delegation.ParseDetails([]byte("[" + d.String() + "]"))
			if err != nil || again[0].String() != d.String() || !again[0].Narrows(d) || !d.Narrows(again[0]) {
				t.Fatalf("%s comes back as %v, %v", d, again, err)
			}
		}
	})
}

// FuzzParseProof looks for a text that is both a proof and a token, and for a header with members
// that the gate does not permit.
func FuzzParseProof(f *testing.F) {
	jws := func(header, payload string) string {
		return base64.RawURLEncoding.EncodeToString([]byte(header)) + "." + base64.RawURLEncoding.EncodeToString([]byte(payload)) + ".AA"
	}
	for _, header := range []string{
		`{"typ":"dpop+jwt","alg":"ES256","jwk":{"kty":"EC","crv":"P-256","x":"AA","y":"AA"}}`,
		`{"typ":"dpop+jwt","alg":"ES256","jwk":{"kty":"EC","d":1}}`, `{"typ":"dpop+jwt","alg":"ES256","jwk":{},"crit":[]}`,
		`{"typ":"dpop+jwt","alg":"ES256","jwk":[]}`, `{"alg":"ES256","kid":"x"}`, `{"typ":"a","typ":"b","alg":"c"}`,
	} {
		f.Add(jws(header, `{"jti":"a","htm":"GET","htu":"https://h.example/","iat":1800000000}`))
	}
	f.Add("..")
	f.Fuzz(func(t *testing.T, proof string) {
		u, jwk, err := delegation.ParseProof(proof)
		if err != nil {
			if len(proof) > 40 && strings.Contains(err.Error(), proof) {
				t.Errorf("the error repeats the proof: %v", err)
			}
			return
		}
		if _, err := delegation.Parse(proof); err == nil {
			t.Error("a proof and a token at once")
		}
		if jwk == nil || u.Header.KeyID != "" || len(proof) > delegation.MaxTokenBytes || u.SigningInput+"."+base64.RawURLEncoding.EncodeToString(u.Signature) != proof {
			t.Errorf("parsed: %+v", u)
		}
	})
}

// FuzzConfirmation: a confirmation that is accepted is one of one kind, and its thumbprint has one
// spelling.
func FuzzConfirmation(f *testing.F) {
	thumbprint := strings.Repeat("A", 43)
	for _, seed := range []string{
		`{"jkt":"` + thumbprint + `"}`, `{"x5t#S256":"` + thumbprint + `"}`, `{"jkt":"` + thumbprint + `","x5t#S256":"` + thumbprint + `"}`,
		`{"jkt":"` + thumbprint + `\n"}`, `{"jkt":"` + thumbprint[1:] + `B"}`, `{"JKT":"` + thumbprint + `"}`, `{"jwk":{}}`, `{}`, `[]`, `null`, ``,
	} {
		f.Add([]byte(seed))
	}
	f.Fuzz(func(t *testing.T, claim []byte) {
		c, err := delegation.ReadConfirmation(claim)
		if err != nil {
			return
		}
		sum, err := base64.RawURLEncoding.DecodeString(c.Key())
		if err != nil || len(sum) != 32 || base64.RawURLEncoding.EncodeToString(sum) != c.Key() || (c.JKT == "") == (c.X5T == "") {
			t.Errorf("%q is read as %+v", claim, c)
		}
		again, err := json.Marshal(c)
		if err != nil {
			t.Fatal(err)
		}
		if same, err := delegation.ReadConfirmation(again); err != nil || *same != *c {
			t.Errorf("%q becomes %s, which is read as %+v, %v", claim, again, same, err)
		}
	})
}
