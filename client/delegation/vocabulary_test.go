package delegation_test

import (
	"encoding/json"
	"reflect"
	"slices"
	"strings"
	"testing"

	"pgregory.net/rapid"

	"deputy.example/deputy/client/delegation"
)

func TestEncodeIDIsInjectiveAndInert(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		raw := rapid.OneOf(rapid.String(), rapid.StringOf(rapid.SampledFrom([]rune("%2Fa5é:#*| "))))
		a, b := raw.Draw(t, "a"), raw.Draw(t, "b")
		ea, eb := delegation.EncodeID(a), delegation.EncodeID(b)
		if (a == b) != (ea == eb) {
			t.Fatalf("%q and %q become %q and %q", a, b, ea, eb)
		}
		if delegation.DecodeID(ea) != a {
			t.Fatalf("%q comes back as %q", a, delegation.DecodeID(ea))
		}
		if strings.ContainsAny(ea, ":#*| \t\r\n\"'&<>") {
			t.Fatalf("%q holds a separator", ea)
		}
	})
	// Arbitrary bytes, not only text.
	seen := map[string]int{}
	for b := range 256 {
		e := delegation.EncodeID(string([]byte{byte(b)}))
		if before, twice := seen[e]; twice {
			t.Errorf("bytes %#x and %#x are both %q", before, b, e)
		}
		seen[e] = b
	}
}

func TestParsePrincipalTakesTheCanonicalFormOnly(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		p := principals().Draw(t, "p")
		again, err := delegation.ParsePrincipal(string(p))
		if err != nil || again != p || string(p) != p.Type()+":"+p.ID() {
			t.Fatalf("%q: %q, %v", p, again, err)
		}
		made, err := delegation.NewPrincipal(p.Type(), delegation.DecodeID(p.ID()))
		if err != nil || made != p {
			t.Fatalf("%q is made again as %q, %v", p, made, err)
		}
		// A change of one byte gives another principal or none, never the same principal in another
		// spelling.
		at := rapid.IntRange(0, len(p)-1).Draw(t, "at")
		changed := string(p[:at]) + string(rune(rapid.ByteRange(0, 127).Draw(t, "byte"))) + string(p[at+1:])
		if other, err := delegation.ParsePrincipal(changed); err == nil && (other == p) != (changed == string(p)) {
			t.Fatalf("%q is read as %q", changed, other)
		}
	})
	for _, bad := range []string{
		"", "alice", ":", "user:", ":alice", "User:alice", "1user:alice", "user :alice", "user:alice bob", "user:alice#member", "user:*",
		"user:a:b", "user:%41", "user:%2f", "user:%3a", "user:%", "user:%2", "user:%GG", "user:é", "user:a\n", "user:a\x00",
		"user:" + strings.Repeat("a", 252),
	} {
		if p, err := delegation.ParsePrincipal(bad); err == nil {
			t.Errorf("%q is read as %q", bad, p)
		}
	}
	if _, err := delegation.ParsePrincipal("user:" + strings.Repeat("a", 251)); err != nil {
		t.Error(err)
	}
}

func TestChainRoundTrip(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		c := chains(delegation.MaxChainDepth).Draw(t, "chain")
		raw, err := c.MarshalJSON()
		if err != nil {
			t.Fatal(err)
		}
		var again delegation.Chain
		if err := again.UnmarshalJSON(raw); err != nil || !slices.Equal(again, c) {
			t.Fatalf("%s: %v, %v", raw, again, err)
		}
		var outer struct{ Sub delegation.Principal }
		if err := json.Unmarshal(raw, &outer); err != nil || outer.Sub != c.Current() {
			t.Fatalf("the outermost actor of %s is not %q", raw, c.Current())
		}
		next := principals().Draw(t, "next")
		longer := c.Extend(next)
		if longer.Current() != next || !slices.Equal(longer[:len(c)], c) || &longer[0] == &c[0] {
			t.Fatalf("%v extended by %q is %v", c, next, longer)
		}
	})
	if _, err := (delegation.Chain{}).MarshalJSON(); err == nil {
		t.Error("an empty chain has a JSON form")
	}
}

func TestChainIsReadStrictly(t *testing.T) {
	deep := strings.Repeat(`{"sub":"a:b","act":`, delegation.MaxChainDepth) + `{"sub":"a:b"}` + strings.Repeat("}", delegation.MaxChainDepth)
	for _, bad := range []string{
		``, `null`, `[]`, `"agent:a"`, `{}`, `{"sub":null}`, `{"sub":1}`, `{"sub":""}`, `{"sub":"alice"}`, `{"Sub":"a:b"}`,
		`{"sub":"a:b","act":null}`, `{"sub":"a:b","act":[]}`, `{"sub":"a:b","act":{}}`, `{"sub":"a:b","iss":"x"}`,
		`{"sub":"a:b","sub":"a:c"}`, `{"sub":"a:b","act":{"sub":"a:b","sub":"a:c"}}`, `{"sub":"a:b"} {}`, `{"sub":"a:\ud800"}`, deep,
	} {
		var c delegation.Chain
		if err := c.UnmarshalJSON([]byte(bad)); err == nil {
			t.Errorf("%s is read as %v", bad, c)
		}
	}
}

func TestScopeSetLaws(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		a, b, c := scopes().Draw(t, "a"), scopes().Draw(t, "b"), scopes().Draw(t, "c")
		if !slices.IsSorted(a) || len(slices.Compact(slices.Clone(a))) != len(a) {
			t.Fatalf("%q is not a sorted set", a)
		}
		if !a.SubsetOf(a) || !(delegation.Scopes{}).SubsetOf(a) || !(delegation.Scopes(nil)).SubsetOf(a) {
			t.Fatal("not reflexive, or the empty set is no subset")
		}
		if a.SubsetOf(b) && b.SubsetOf(c) && !a.SubsetOf(c) {
			t.Fatal("not transitive")
		}
		if a.SubsetOf(b) && b.SubsetOf(a) && a.String() != b.String() {
			t.Fatal("not antisymmetric")
		}
		rest := a.Without(b)
		if !rest.SubsetOf(a) || a.SubsetOf(b) != (len(rest) == 0) {
			t.Fatalf("%q without %q is %q", a, b, rest)
		}
		for _, token := range a {
			if !a.Contains(token) || rest.Contains(token) == b.Contains(token) {
				t.Fatalf("%q without %q is %q, which is wrong about %q", a, b, rest, token)
			}
		}
		if len(a) == 0 {
			return
		}
		again, err := delegation.ParseScopes(a.String())
		if err != nil || !slices.Equal(again, a) {
			t.Fatalf("%q comes back as %q, %v", a, again, err)
		}
	})
	rapid.Check(t, func(t *rapid.T) {
		tokens := rapid.SliceOfN(scopeTokens(), 1, 8).Draw(t, "tokens")
		s, err := delegation.ParseScopes(strings.Join(tokens, " "))
		if err != nil {
			t.Fatal(err)
		}
		for _, token := range tokens {
			for _, probe := range []string{token, token + "!", token[1:], strings.ToUpper(token)} {
				if s.Contains(probe) != slices.Contains(tokens, probe) {
					t.Fatalf("%q is wrong about %q", s, probe)
				}
			}
		}
	})
	for _, bad := range []string{"", " ", "a ", " a", "a  b", "a\tb", "a\nb", `a"`, `a\`, "é", "a\x00", "a\u00a0b", strings.Repeat("a ", 128) + "a"} {
		if s, err := delegation.ParseScopes(bad); err == nil {
			t.Errorf("%q is read as %q", bad, s)
		}
	}
	for _, pair := range [][2]string{{"read", "Read"}, {"read", "read.all"}, {"read.all", "read"}, {"*", "read"}, {"read*", "read"}} {
		a, b := delegation.Scopes{pair[0]}, delegation.Scopes{pair[1]}
		if b.SubsetOf(a) {
			t.Errorf("%q is taken for %q", b, a)
		}
	}
}

func TestNarrowingOfDetails(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		ds := details(3, 3).Draw(t, "details")
		a, b, c := ds[0], ds[1], ds[2]
		if !a.Narrows(a) {
			t.Fatalf("%s does not narrow itself", a)
		}
		if a.Narrows(b) && b.Narrows(c) && !a.Narrows(c) {
			t.Fatalf("%s narrows %s narrows %s", a, b, c)
		}
		if a.Narrows(b) {
			if a.Type() != b.Type() || !slices.Equal(a.Fields(), b.Fields()) {
				t.Fatalf("%s narrows %s", a, b)
			}
			for _, list := range []string{"actions", "locations", "datatypes", "privileges"} {
				for _, value := range a.List(list) {
					if !slices.Contains(b.List(list), value) {
						t.Fatalf("%s narrows %s and adds %s %q", a, b, list, value)
					}
				}
			}
			if !a.NarrowsAny(ds) || a.NarrowsAny(nil) {
				t.Fatal("NarrowsAny disagrees")
			}
		}
	})
	one := func(text string) delegation.Detail {
		parsed, err := delegation.ParseDetails([]byte("[" + text + "]"))
		if err != nil {
			t.Fatalf("%s: %v", text, err)
		}
		return parsed[0]
	}
	wide := `{"type":"payment","actions":["read","write"],"limit":10,"payee":{"iban":"X","bic":"Y"}}`
	for _, row := range []struct {
		name, narrow string
		want         bool
	}{
		{"the same in another order", `{"payee":{"bic":"Y","iban":"X"},"limit":10,"actions":["write","read"],"type":"payment"}`, true},
		{"fewer actions", `{"type":"payment","actions":["read"],"limit":10,"payee":{"iban":"X","bic":"Y"}}`, true},
		{"an action repeated", `{"type":"payment","actions":["read","read"],"limit":1e1,"payee":{"iban":"X","bic":"Y"}}`, true},
		{"another action", `{"type":"payment","actions":["admin"],"limit":10,"payee":{"iban":"X","bic":"Y"}}`, false},
		{"an action in other case", `{"type":"payment","actions":["Read"],"limit":10,"payee":{"iban":"X","bic":"Y"}}`, false},
		{"actions left out", `{"type":"payment","limit":10,"payee":{"iban":"X","bic":"Y"}}`, false},
		{"limit left out", `{"type":"payment","actions":["read"],"payee":{"iban":"X","bic":"Y"}}`, false},
		{"a higher limit", `{"type":"payment","actions":["read"],"limit":11,"payee":{"iban":"X","bic":"Y"}}`, false},
		{"a lower limit, which only the resource understands", `{"type":"payment","actions":["read"],"limit":9,"payee":{"iban":"X","bic":"Y"}}`, false},
		{"limit as text", `{"type":"payment","actions":["read"],"limit":"10","payee":{"iban":"X","bic":"Y"}}`, false},
		{"another payee", `{"type":"payment","actions":["read"],"limit":10,"payee":{"iban":"Z","bic":"Y"}}`, false},
		{"a member more", `{"type":"payment","actions":["read"],"limit":10,"payee":{"iban":"X","bic":"Y"},"x":1}`, false},
		{"a location more", `{"type":"payment","actions":["read"],"limit":10,"payee":{"iban":"X","bic":"Y"},"locations":["a"]}`, false},
		{"another type", `{"type":"Payment","actions":["read"],"limit":10,"payee":{"iban":"X","bic":"Y"}}`, false},
	} {
		if got := one(row.narrow).Narrows(one(wide)); got != row.want {
			t.Errorf("%s: Narrows is %t", row.name, got)
		}
	}
}

func TestDetailsAreReadStrictly(t *testing.T) {
	for _, bad := range []string{
		``, `null`, `{}`, `[]`, `[1]`, `[null]`, `[[]]`, `[{}]`, `[{"type":""}]`, `[{"type":1}]`, `[{"type":null}]`, `[{"Type":"x"}]`,
		`[{"type":"x","type":"y"}]`, `[{"type":"x","a":{"b":1,"b":2}}]`, `[{"type":"x","actions":"read"}]`, `[{"type":"x","actions":[]}]`,
		`[{"type":"x","actions":null}]`, `[{"type":"x","actions":[1]}]`, `[{"type":"x","locations":{}}]`, `[{"type":"x"}] ` + "x", `[{"type":"x"}],"b":[]`,
		`[{"type":"x"}],"a":[{"type":"y"}]`, `[{"type":"x"}]}`, `[{"type":"x"}`, `[{"type":"\ud800"}]`, `[{"type":"x"},]`,
		`[` + strings.Repeat(`{"type":"x"},`, 32) + `{"type":"x"}]`, `[{"type":"x","a":` + strings.Repeat("[", 100) + strings.Repeat("]", 100) + `}]`,
	} {
		if parsed, err := delegation.ParseDetails([]byte(bad)); err == nil {
			t.Errorf("%s is read as %v", bad, parsed)
		}
	}
	rapid.Check(t, func(t *rapid.T) {
		text := detailText().Draw(t, "detail")
		first, err := delegation.ParseDetails([]byte("[" + text + "]"))
		if err != nil {
			t.Fatal(err)
		}
		second, err := delegation.ParseDetails([]byte("[" + first[0].String() + "]"))
		if err != nil || second[0].String() != first[0].String() || !second[0].Narrows(first[0]) || !first[0].Narrows(second[0]) {
			t.Fatalf("%s: canonical %s, then %v, %v", text, first[0], second, err)
		}
	})
}

func TestClaimsRoundTripInCanonicalBytes(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		c := claims().Draw(t, "claims")
		if err := c.Check(); err != nil {
			t.Fatalf("%+v: %v", c, err)
		}
		raw, err := c.MarshalJSON()
		if err != nil {
			t.Fatal(err)
		}
		decoded, err := delegation.DecodeClaims(raw)
		if err != nil {
			t.Fatalf("%s: %v", raw, err)
		}
		token := compact(goodHeader, string(raw))
		if len(token) <= delegation.MaxTokenBytes {
			u, err := delegation.Parse(token)
			if err != nil {
				t.Fatal(err)
			}
			parsed, err := u.Claims()
			if err != nil || !reflect.DeepEqual(parsed, decoded) {
				t.Fatalf("%+v and %+v, %v", parsed, decoded, err)
			}
		}
		again, err := decoded.MarshalJSON()
		if err != nil || string(again) != string(raw) {
			t.Fatalf("%s comes back as %s, %v", raw, again, err)
		}
		if !reflect.DeepEqual(decoded.Act, c.Act) || !reflect.DeepEqual(decoded.Delegation, c.Delegation) || decoded.Subject != c.Subject ||
			decoded.Scope.String() != c.Scope.String() || !slices.Equal(decoded.Audience, c.Audience) ||
			!reflect.DeepEqual(decoded.Confirmation, c.Confirmation) || !reflect.DeepEqual(decoded.MayAct, c.MayAct) ||
			!reflect.DeepEqual(decoded.Status, c.Status) || len(decoded.Details) != len(c.Details) {
			t.Fatalf("%+v comes back as %+v", c, decoded)
		}
		lineage := decoded.Lineage()
		if lineage.Root != c.Delegation.Root || lineage.Txn != c.Txn || lineage.Subject != c.Subject || len(lineage.Hops) != len(c.Delegation.Hops) {
			t.Fatalf("lineage %+v", lineage)
		}
	})
}
