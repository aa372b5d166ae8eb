package delegation_test

import (
	"encoding/base64"
	"fmt"
	"strings"
	"testing"

	"pgregory.net/rapid"

	"deputy.example/deputy/client/delegation"
)

// The generators draw values that can be in force: canonical principals and consistent claims.

func principals() *rapid.Generator[delegation.Principal] {
	return rapid.Custom(func(t *rapid.T) delegation.Principal {
		typ := rapid.StringMatching(`[a-z][a-z0-9_-]{0,7}`).Draw(t, "type")
		p, err := delegation.NewPrincipal(typ, rapid.StringN(1, 12, 48).Draw(t, "id"))
		if err != nil {
			t.Fatal(err)
		}
		return p
	})
}

func chains(longest int) *rapid.Generator[delegation.Chain] {
	return rapid.Custom(func(t *rapid.T) delegation.Chain {
		return rapid.SliceOfN(principals(), 1, longest).Draw(t, "actors")
	})
}

func scopeTokens() *rapid.Generator[string] { return rapid.StringMatching(`[!#-\[\]-~]{1,6}`) }

// scopes draws from few tokens, so sets overlap.
func scopes() *rapid.Generator[delegation.Scopes] {
	return rapid.Custom(func(t *rapid.T) delegation.Scopes {
		s, err := delegation.NewScopes(rapid.SliceOfN(rapid.SampledFrom([]string{"a", "b", "c", "ab", "A", "a:b"}), 0, 8).Draw(t, "tokens")...)
		if err != nil {
			t.Fatal(err)
		}
		return s
	})
}

func details(least, most int) *rapid.Generator[[]delegation.Detail] {
	return rapid.Custom(func(t *rapid.T) []delegation.Detail {
		n := rapid.IntRange(least, most).Draw(t, "details")
		if n == 0 {
			return nil
		}
		var texts []string
		for range n {
			texts = append(texts, detailText().Draw(t, "detail"))
		}
		parsed, err := delegation.ParseDetails([]byte("[" + strings.Join(texts, ",") + "]"))
		if err != nil {
			t.Fatal(err)
		}
		return parsed
	})
}

// detailText draws one authorization detail from few values, so some details narrow others.
func detailText() *rapid.Generator[string] {
	return rapid.Custom(func(t *rapid.T) string {
		members := []string{fmt.Sprintf(`"type":%q`, rapid.SampledFrom([]string{"payment", "document"}).Draw(t, "type"))}
		for _, list := range []string{"actions", "locations", "datatypes", "privileges"} {
			if rapid.Bool().Draw(t, "has "+list) {
				values := rapid.SliceOfN(rapid.SampledFrom([]string{`"r"`, `"w"`, `"x"`}), 1, 3).Draw(t, list)
				members = append(members, fmt.Sprintf(`%q:[%s]`, list, strings.Join(values, ",")))
			}
		}
		for _, field := range []string{"identifier", "limit"} {
			if rapid.Bool().Draw(t, "has "+field) {
				value := rapid.SampledFrom([]string{`"1"`, `1`, `1.0`, `2`, `null`, `{"a":1,"b":[]}`, `{"b":[],"a":1}`}).Draw(t, field)
				members = append(members, fmt.Sprintf(`%q:%s`, field, value))
			}
		}
		return "{" + strings.Join(rapid.Permutation(members).Draw(t, "order"), ",") + "}"
	})
}

func claims() *rapid.Generator[delegation.Claims] {
	return rapid.Custom(func(t *rapid.T) delegation.Claims {
		name := rapid.StringN(1, 8, 32)
		act := chains(8).Draw(t, "act")
		c := delegation.Claims{
			Issuer: name.Draw(t, "iss"), Subject: principals().Draw(t, "sub"), ClientID: act.Current(),
			Audience: rapid.SliceOfN(name, 1, 3).Draw(t, "aud"), Scope: scopes().Draw(t, "scope"),
			IssuedAt: rapid.Int64Range(1, 1<<40).Draw(t, "iat"), ID: name.Draw(t, "jti"), Txn: name.Draw(t, "txn"), Act: act,
			Details: details(0, 3).Draw(t, "details"),
		}
		c.NotBefore = c.IssuedAt + rapid.Int64Range(0, 9).Draw(t, "nbf")
		c.ExpiresAt = c.NotBefore + rapid.Int64Range(1, 9).Draw(t, "exp")
		seq := uint64(0)
		for actor := range act {
			for range rapid.IntRange(1, 3).Draw(t, "hops") {
				seq += rapid.Uint64Range(1, 1<<50).Draw(t, "seq")
				c.Delegation.Hops = append(c.Delegation.Hops, delegation.Hop{
					ID: name.Draw(t, "hop"), Seq: seq, Actor: actor,
					Key: rapid.SampledFrom([]string{"", "thumbprint"}).Draw(t, "key"),
				})
			}
		}
		last := &c.Delegation.Hops[len(c.Delegation.Hops)-1]
		last.ID = c.ID
		if last.Key != "" {
			c.Confirmation = &delegation.Confirmation{JKT: last.Key}
			if rapid.Bool().Draw(t, "certificate") {
				c.Confirmation = &delegation.Confirmation{X5T: last.Key}
			}
		}
		c.Delegation.Root = name.Draw(t, "root")
		c.Delegation.DepthLeft = rapid.IntRange(0, delegation.MaxChainDepth-len(c.Delegation.Hops)).Draw(t, "depth_left")
		c.Delegation.Uses = rapid.IntRange(0, 1).Draw(t, "uses")
		if rapid.Bool().Draw(t, "has may_act") {
			c.MayAct = &delegation.MayAct{Sub: principals().Draw(t, "may_act")}
		}
		if rapid.Bool().Draw(t, "has status") {
			c.Status = &delegation.Status{Index: rapid.Uint64().Draw(t, "idx"), URI: name.Draw(t, "uri")}
		}
		return c
	})
}

// compact puts a payload into a token of valid form. It has no valid signature.
func compact(header, payload string) string {
	encode := base64.RawURLEncoding.EncodeToString
	return encode([]byte(header)) + "." + encode([]byte(payload)) + ".AAAA"
}

const goodHeader = `{"alg":"ES256","typ":"at+jwt","kid":"k"}`

func parse(tb testing.TB, payload string) *delegation.Unverified {
	tb.Helper()
	u, err := delegation.Parse(compact(goodHeader, payload))
	if err != nil {
		tb.Fatalf("%v: %s", err, payload)
	}
	return u
}
