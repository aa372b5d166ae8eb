package exchange_test

import (
	"errors"
	"slices"
	"testing"
	"time"

	"deputy.example/deputy/client/delegation"
	"deputy.example/deputy/server/internal/exchange"
	"deputy.example/deputy/server/internal/exchange/exchangetest"
	"deputy.example/deputy/server/internal/ledger"
)

// FuzzExchange makes calls with any values, by any caller, with parents of any depth. Nothing
// panics, each answer is typed and recorded, and no grant is wider than its parent.
func FuzzExchange(f *testing.F) {
	w := exchangetest.New(f, exchangetest.Config{Limits: exchange.Limits{MaxLifetime: 9 * time.Hour, DefaultLifetime: 9 * time.Hour}})
	n := w.Tenant()
	grants := w.Chain(f, n, planner, researcher)
	next := uint64(len(grants)) // entries so far
	now := w.Clock().Now()
	root := delegation.Claims{
		Scope: delegation.Scopes{"calendar.read", "calendar.write", "mail.read"}, Audience: []string{calendar, mail},
		ExpiresAt: now.Add(10 * time.Hour).Unix(), Delegation: delegation.Delegation{DepthLeft: 8},
	}
	rootToken := n.Root(f, map[string]any{"exp": root.ExpiresAt, "iat": now.Unix()})
	parents := []delegation.Claims{root, grants[0].Claims, grants[1].Claims}
	tokens := []string{rootToken, grants[0].AccessToken, grants[1].AccessToken}
	people := []delegation.Principal{planner, researcher, writer}

	// who: parent, caller, and the named actor with the way of naming it. flags: validate_only,
	// batch, scope and details given.
	f.Add(uint16(0), uint8(4), "calendar.read", calendar, "", "", int64(60), uint32(1), uint32(1), "", "")
	f.Add(uint16(0x0110), uint8(6), "calendar.read", calendar, "", "", int64(0), uint32(0), uint32(1), delegation.TokenTypeJWT, "key")
	f.Add(uint16(0x0221), uint8(7), "mail.read", mail, "https://a.example/#x", "", int64(-1), uint32(40), uint32(2), "x", "k/0")
	f.Add(uint16(0x1110), uint8(12), "a b  c", "\xff", "http:", `[{"type":"t","n":1e400}]`, int64(1)<<62, uint32(9), uint32(0), "", "\n")
	f.Fuzz(func(t *testing.T, who uint16, flags uint8, scope, audience, resource, details string, seconds int64, depth, uses uint32, tokenType, key string) {
		parent := int(who&0xf) % len(parents)
		caller := people[int(who>>4&0xf)%len(people)]
		actor := people[int(who>>8&0xf)%len(people)]
		call := n.Call(t, tokens[parent], caller, "")
		c := &call.Children[0]
		switch who >> 12 & 3 {
		case 1:
			c.ActorToken, c.ActorTokenType = n.ActorToken(t, actor), delegation.TokenTypeJWT
		case 2:
			c.RequestedActor, c.ActorConfirmation = string(actor), n.Clients[actor].KeyID
		case 3:
			c.RequestedActor, c.ActorConfirmation = audience, resource
		}
		call.ValidateOnly, call.Batch = flags&1 > 0, flags&2 > 0
		call.IdempotencyKey = key
		c.Scope, c.AuthorizationDetails = nil, nil
		if flags&4 > 0 {
			c.Scope = &scope
		}
		if flags&8 > 0 {
			c.AuthorizationDetails = &details
		}
		c.Audience, c.Resource, c.RequestedTokenType = []string{audience}, nil, tokenType
		if resource != "" {
			c.Resource = []string{resource}
		}
		if seconds != 0 {
			lifetime := time.Duration(seconds) * time.Second
			c.RequestedLifetime = &lifetime
		}
		if depth > 0 {
			c.MaxDepth = ptr(depth - 1)
		}
		if uses > 0 {
			c.Uses = ptr(uses)
		}
		outcomes, err := w.Engine.Exchange(t.Context(), call)
		if err != nil || len(outcomes) != 1 || (outcomes[0].Grant == nil) == (outcomes[0].Err == nil) {
			t.Fatalf("%+v, %v", outcomes, err)
		}
		grant, refusal := outcomes[0].Grant, outcomes[0].Err
		entry, missing := w.Ledger.EntryAt(t.Context(), "default", next+1)
		retried := grant != nil && key != "" && errors.Is(missing, ledger.ErrNotFound)
		if !retried {
			if next++; missing != nil {
				t.Fatalf("no entry for %+v: %v", outcomes[0], missing)
			}
		}
		switch {
		case refusal != nil:
			if !refusal.Reason.Known() || refusal.Reason == delegation.Internal || entry.Outcome != ledger.Refused || entry.Reason != refusal.Reason {
				t.Fatalf("%v (cause: %v) is in the ledger as %+v", refusal, refusal.Unwrap(), entry)
			}
		case !retried && entry.Outcome != ledger.Granted:
			t.Fatalf("a grant is in the ledger as %+v", entry)
		default:
			narrower(t, n, parents[parent], grant, call.ValidateOnly)
		}
	})
}

func narrower(t *testing.T, n *exchangetest.Tenant, p delegation.Claims, g *exchange.Grant, checkOnly bool) {
	t.Helper()
	c := g.Claims
	above, hops := p.Act, len(p.Delegation.Hops)
	switch {
	case !c.Scope.SubsetOf(p.Scope), len(c.Details) > 0, len(c.Audience) == 0,
		slices.ContainsFunc(c.Audience, func(a string) bool { return !slices.Contains(p.Audience, a) }):
		t.Fatalf("wider: %+v from %+v", c, p)
	case c.ExpiresAt > p.ExpiresAt, c.Delegation.DepthLeft >= p.Delegation.DepthLeft, len(c.Delegation.Hops) != hops+1:
		t.Fatalf("longer: %+v from %+v", c, p)
	case len(c.Act) < len(above), len(c.Act) > len(above)+1, !slices.Equal(c.Act[:len(above)], above),
		!slices.Equal(c.Delegation.Hops[:hops], p.Delegation.Hops), c.Subject != alice:
		t.Fatalf("another chain: %+v from %+v", c, p)
	case checkOnly != (g.AccessToken == ""):
		t.Fatalf("validate_only: %t, token: %q", checkOnly, g.AccessToken)
	}
	if checkOnly {
		return
	}
	if signed, err := n.Trust.Own(g.AccessToken); err != nil || signed.ID != c.ID {
		t.Fatalf("the token is not what was granted: %v", err)
	}
}
