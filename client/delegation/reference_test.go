package delegation_test

import (
	"bytes"
	"encoding/json"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"testing"
	"unicode/utf8"

	"pgregory.net/rapid"

	"deputy.example/deputy/client/delegation"
)

// reference reads claims with the standard library alone, in two steps that the package takes as
// one: whether the text is strict, and what it contains. Each rule of strictness can be left out.
type reference struct{ duplicates, depth, utf8, surrogates, integers, unknown bool }

func (ref reference) claims(payload []byte) (c delegation.Claims, ok bool) {
	if !ref.strict(payload) {
		return c, false
	}
	var m map[string]any
	d := json.NewDecoder(bytes.NewReader(payload))
	d.UseNumber()
	if d.Decode(&m) != nil || m == nil {
		return c, false
	}
	r := reading{reference: ref}
	c = delegation.Claims{
		Issuer: r.text(m, "iss"), Subject: r.principal(m, "sub"), ClientID: r.principal(m, "client_id"),
		ID: r.text(m, "jti"), Txn: r.text(m, "txn"), Act: r.chain(m["act"]), Delegation: r.delegation(m["delegation"]),
		IssuedAt: r.seconds(m, "iat"), NotBefore: r.seconds(m, "nbf"), ExpiresAt: r.seconds(m, "exp"),
	}
	switch aud := m["aud"].(type) {
	case string:
		c.Audience = []string{aud}
	case []any:
		for i := range aud {
			c.Audience = append(c.Audience, r.element(aud, i))
		}
	}
	r.bad = r.bad || slices.Contains(c.Audience, "")
	if _, present := m["scope"]; present {
		scopes, err := delegation.ParseScopes(r.text(m, "scope"))
		c.Scope, r.bad = scopes, r.bad || err != nil
	}
	if cnf, present := m["cnf"]; present {
		if object, _ := cnf.(map[string]any); object["x5t#S256"] != nil {
			c.Confirmation = &delegation.Confirmation{X5T: r.text(r.object(cnf, "x5t#S256"), "x5t#S256")}
		} else {
			c.Confirmation = &delegation.Confirmation{JKT: r.text(r.object(cnf, "jkt"), "jkt")}
		}
	}
	if mayAct, present := m["may_act"]; present {
		c.MayAct = &delegation.MayAct{Sub: r.principal(r.object(mayAct, "sub"), "sub")}
	}
	if status, present := m["status"]; present {
		list := r.object(r.object(status, "status_list")["status_list"], "idx", "uri")
		idx, _ := list["idx"].(json.Number)
		place, err := strconv.ParseUint(idx.String(), 10, 64)
		c.Status, r.bad = &delegation.Status{Index: place, URI: r.text(list, "uri")}, r.bad || err != nil
	}
	if _, present := m["authorization_details"]; present {
		var raw map[string]json.RawMessage
		r.bad = r.bad || json.Unmarshal(payload, &raw) != nil
		details, err := delegation.ParseDetails(raw["authorization_details"])
		c.Details, r.bad = details, r.bad || err != nil
	}
	return c, !r.bad && c.Check() == nil
}

// strict checks the rules that json.Unmarshal does not check.
func (ref reference) strict(text []byte) bool {
	return json.Valid(text) && (ref.utf8 || utf8.Valid(text)) && (ref.surrogates || !loneSurrogate.Match(pairs.ReplaceAll(text, nil))) &&
		ref.walk(json.NewDecoder(bytes.NewReader(text)), 40)
}

var (
	pairs         = regexp.MustCompile(`\\\\|\\u[dD][89abAB][0-9a-fA-F]{2}\\u[dD][c-fC-F][0-9a-fA-F]{2}`)
	loneSurrogate = regexp.MustCompile(`\\u[dD][89a-fA-F]`)
	integer       = regexp.MustCompile(`^-?[0-9]+$`)
)

// walk reads one value. It reports whether no object holds a member twice and the nesting is not
// too deep.
func (ref reference) walk(d *json.Decoder, depth int) bool {
	token, err := d.Token()
	open, nested := token.(json.Delim)
	if err != nil || !nested {
		return err == nil
	}
	if depth == 0 && !ref.depth {
		return false
	}
	names := make(map[json.Token]bool)
	for d.More() {
		if open == '{' {
			name, err := d.Token()
			if err != nil || names[name] && !ref.duplicates {
				return false
			}
			names[name] = true
		}
		if !ref.walk(d, depth-1) {
			return false
		}
	}
	_, err = d.Token()
	return err == nil
}

// reading records whether a value broke a rule.
type reading struct {
	reference
	bad bool
}

func (r *reading) text(m map[string]any, name string) string {
	s, isText := m[name].(string)
	r.bad = r.bad || !isText
	return s
}

func (r *reading) principal(m map[string]any, name string) delegation.Principal {
	p, err := delegation.ParsePrincipal(r.text(m, name))
	r.bad = r.bad || err != nil
	return p
}

func (r *reading) element(list []any, i int) string {
	s, isText := list[i].(string)
	r.bad = r.bad || !isText
	return s
}

func (r *reading) whole(v any) int64 {
	number, isNumber := v.(json.Number)
	n, err := strconv.ParseInt(number.String(), 10, 64)
	if !integer.MatchString(number.String()) && r.integers {
		f, _ := number.Float64()
		n, err = int64(f), nil
	}
	r.bad = r.bad || !isNumber || err != nil
	return n
}

func (r *reading) seconds(m map[string]any, name string) int64 {
	n := r.whole(m[name])
	r.bad = r.bad || n <= 0 || n > 1<<53
	return n
}

// object returns a value that has only these members.
func (r *reading) object(v any, names ...string) map[string]any {
	m, isObject := v.(map[string]any)
	r.bad = r.bad || !isObject
	for name := range m {
		r.bad = r.bad || !slices.Contains(names, name) && !r.unknown
	}
	return m
}

func (r *reading) chain(v any) (oldestFirst delegation.Chain) {
	m := r.object(v, "sub", "act")
	if inner, more := m["act"]; more {
		oldestFirst = r.chain(inner)
	}
	r.bad = r.bad || len(oldestFirst) == delegation.MaxChainDepth
	return append(oldestFirst, r.principal(m, "sub"))
}

func (r *reading) delegation(v any) delegation.Delegation {
	m := r.object(v, "root", "hops", "depth_left", "uses")
	d := delegation.Delegation{Root: r.text(m, "root"), DepthLeft: int(r.whole(m["depth_left"]))}
	if uses, present := m["uses"]; present {
		d.Uses = int(r.whole(uses))
	}
	hops, isList := m["hops"].([]any)
	r.bad = r.bad || !isList || len(hops) > delegation.MaxChainDepth
	for _, hop := range hops {
		parts, isList := hop.([]any)
		if r.bad = r.bad || !isList || len(parts) != 4; r.bad {
			break
		}
		number, _ := parts[1].(json.Number) // may exceed what whole can hold
		seq, err := strconv.ParseUint(number.String(), 10, 64)
		r.bad = r.bad || err != nil
		d.Hops = append(d.Hops, delegation.Hop{ID: r.element(parts, 0), Seq: seq, Actor: int(r.whole(parts[2])), Key: r.element(parts, 3)})
	}
	return d
}

// agree compares the reader of claims with the reference, and reports whether both accept.
func agree(t interface {
	Helper()
	Fatalf(string, ...any)
}, payload []byte) bool {
	t.Helper()
	got, err := delegation.DecodeClaims(payload)
	want, ok := reference{}.claims(payload)
	if (err == nil) != ok {
		t.Fatalf("%q: read with %v, by the reference with %t", payload, err, ok)
	}
	if err != nil {
		return false
	}
	gotBytes, gotErr := got.MarshalJSON()
	wantBytes, wantErr := want.MarshalJSON()
	if gotErr != nil || wantErr != nil || !bytes.Equal(gotBytes, wantBytes) {
		t.Fatalf("%q: read as %s, by the reference as %s", payload, gotBytes, wantBytes)
	}
	return true
}

// referenceClaims hold every member that claims can have.
const referenceClaims = `{"iss":"i","sub":"user:alice","client_id":"agent:b","aud":["x","y"],"scope":"a b","authorization_details":[{"type":"t","actions":["r"],"n":1}],` +
	`"iat":1,"nbf":1,"exp":2,"jti":"j1","txn":"t","act":{"sub":"agent:b","act":{"sub":"agent:a"}},` +
	`"delegation":{"root":"r","hops":[["j0",1,0,""],["j1",2,1,"key"]],"depth_left":2,"uses":1},"cnf":{"jkt":"key"},"may_act":{"sub":"agent:c"},"status":{"status_list":{"idx":7,"uri":"u"}},"later":[{}]}`

// damage lists texts that change valid claims. Most results are invalid, some stay valid.
var damage = []string{
	``, ` `, `null`, `true`, `-0`, `0`, `1`, `2`, `1.0`, `2e0`, `9007199254740993`, `18446744073709551615`, `18446744073709551616`, `""`, `"x"`, `"\u0061"`, `"\ud83d\ude00"`, `"\ud800"`, `"\udc00\ud800"`,
	`"\\ud800"`, "\"\xff\"", "\"\x01\"", `[]`, `["x"]`, `{}`, `{"sub":"agent:a"}`, `"exp":2,`, `"exp":3,`, `"Exp":3,`, `"\u0065xp":3,`, `"":0,"":0,`, `"uses":0,`, `"sub":"agent:a",`,
	`"x":1,`, `,`, `]`, `}`, `{`, `[`, "\ufeff", `{"a":[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[]]]]]]]]]]]]]]]]]]]]]]]]]]]]]]]]]]]]]]}`,
}

// TestClaimsAgreeWithTheReference damages valid claims at the ends of their JSON tokens, where a
// change has an effect.
func TestClaimsAgreeWithTheReference(t *testing.T) {
	token := regexp.MustCompile(`"[a-z_]+":|"[^"]*"|[0-9]+|[][{},]`)
	accepted, refused := 0, 0
	rapid.Check(t, func(t *rapid.T) {
		payload := []byte(referenceClaims)
		if rapid.Bool().Draw(t, "drawn") {
			var err error
			if payload, err = claims().Draw(t, "claims").MarshalJSON(); err != nil {
				t.Fatal(err)
			}
		}
		for range rapid.IntRange(0, 2).Draw(t, "wounds") {
			at := rapid.SampledFrom(token.FindAllIndex(payload, -1)).Draw(t, "at")
			instead := rapid.SampledFrom(damage).Draw(t, "instead")
			if rapid.Bool().Draw(t, "before") {
				at[1] = at[0]
			}
			payload = slices.Concat(payload[:at[0]], []byte(instead), payload[at[1]:])
		}
		if agree(t, payload) {
			accepted++
		} else {
			refused++
		}
	})
	if accepted == 0 || refused == 0 {
		t.Errorf("%d accepted and %d refused show nothing", accepted, refused)
	}
}

// TestReferenceIsStrict is the control: if one rule is left out of the reference, the two disagree.
func TestReferenceIsStrict(t *testing.T) {
	if !agree(t, []byte(referenceClaims)) {
		t.Fatal("good claims are refused")
	}
	deep := strings.Repeat("[", 40) + strings.Repeat("]", 40)
	for name, c := range map[string]struct {
		without  reference
		old, new string
	}{
		"duplicates":      {reference{duplicates: true}, `"later":[{}]`, `"later":1,"later":2`},
		"escaped":         {reference{duplicates: true}, `"later":[{}]`, `"later":1,"\u006cater":2`},
		"duplicates deep": {reference{duplicates: true}, `[{}]`, `[{"":1,"":2}]`},
		"depth":           {reference{depth: true}, `[{}]`, deep},
		"UTF-8":           {reference{utf8: true}, `[{}]`, "\"\xff\""},
		"surrogates":      {reference{surrogates: true}, `[{}]`, `"\ud800"`},
		"integers":        {reference{integers: true}, `"exp":2`, `"exp":2.0`},
		"exponents":       {reference{integers: true}, `"depth_left":2`, `"depth_left":2e0`},
		"unknown members": {reference{unknown: true}, `"uses":1`, `"uses":1,"narrower":true`},
	} {
		payload := []byte(strings.Replace(referenceClaims, c.old, c.new, 1))
		if agree(t, payload) {
			t.Errorf("%s: both accept %s", name, payload)
		}
		if _, ok := c.without.claims(payload); !ok {
			t.Errorf("%s: the reference refuses %s without the rule too", name, payload)
		}
	}
	if !agree(t, []byte(strings.Replace(referenceClaims, `[{}]`, deep[1:len(deep)-1], 1))) {
		t.Error("claims at the bound are refused")
	}
}

func FuzzClaimsReference(f *testing.F) {
	f.Add([]byte(referenceClaims))
	for _, instead := range damage {
		f.Add([]byte(strings.Replace(referenceClaims, `[{}]`, instead, 1)))
	}
	f.Fuzz(func(t *testing.T, payload []byte) { agree(t, payload) })
}
