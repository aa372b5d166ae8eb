package exchange

import (
	"errors"
	"fmt"
	"slices"
	"testing"
	"time"

	"pgregory.net/rapid"

	"deputy.example/deputy/client/delegation"
)

// scenario is a root token and a sequence of exchanges, each from the token that the one before it
// made. The requests are drawn from few values, so that requests beyond the parent are frequent.
type scenario struct {
	root   parent
	limits Limits
	steps  []step
}

type step struct {
	wish  wish
	actor actor
	after time.Duration // since the step before it
}

var (
	someScopes    = []string{"a.read", "a.write", "b.read", "b.write", "A.read"}
	someAudiences = []string{"https://a.example", "https://b.example", "https://c.example"}
	someActors    = []delegation.Principal{"agent:p", "agent:q", "agent:r", "agent:s", "agent:t", "agent:u", "agent:v", "agent:w", "agent:x"}
	someDetails   = mustDetails(
		`[{"type":"doc","identifier":"1","actions":["read","write"]},{"type":"doc","identifier":"1","actions":["read"]},` +
			`{"type":"doc","identifier":"2","actions":["read"]},{"type":"doc","actions":["read"]},{"type":"pay","limit":10,"actions":["send"]},{"type":"pay","limit":20,"actions":["send"]}]`)
	epoch = time.Unix(1_800_000_000, 0)
)

func mustDetails(s string) []delegation.Detail {
	d, err := delegation.ParseDetails([]byte(s))
	if err != nil {
		panic(err)
	}
	return d
}

func some[T any](t *rapid.T, label string, of []T, most int) []T {
	var picked []T
	for _, i := range rapid.SliceOfNDistinct(rapid.IntRange(0, len(of)-1), 0, most, rapid.ID).Draw(t, label) {
		picked = append(picked, of[i])
	}
	return picked
}

func scopeSet(t *rapid.T, label string) delegation.Scopes {
	s, err := delegation.NewScopes(some(t, label, someScopes, 3)...)
	if err != nil {
		t.Fatal(err)
	}
	return s
}

var scenarios = rapid.Custom(func(t *rapid.T) scenario {
	s := scenario{
		limits: Limits{
			MaxLifetime:     time.Duration(rapid.IntRange(1, 3600).Draw(t, "max lifetime")) * time.Second,
			DefaultLifetime: time.Duration(rapid.IntRange(1, 3600).Draw(t, "default lifetime")) * time.Second,
			MaxDepth:        rapid.IntRange(1, 8).Draw(t, "max depth"),
			AllowBearer:     rapid.IntRange(0, 3).Draw(t, "bearer") > 0,
			AllowUnbinding:  rapid.IntRange(0, 3).Draw(t, "unbinding") == 0,
			ScopeTargets:    map[string][]string{"a.read": someAudiences[:2], "b.read": someAudiences},
		}.withDefaults(),
		root: parent{
			issuer: "https://idp.example", id: "root", root: "digest", subject: "user:alice",
			scopes: scopeSet(t, "root scopes"), audiences: some(t, "root audiences", someAudiences, 3),
			details: some(t, "root details", someDetails, 4), issuedAt: epoch,
			expiresAt: epoch.Add(time.Duration(rapid.IntRange(1, 4000).Draw(t, "root lifetime")) * time.Second),
		},
	}
	s.root.depthLeft = s.limits.MaxDepth
	for range rapid.IntRange(1, 9).Draw(t, "length") {
		w := wish{maxDepth: rapid.IntRange(-1, 4).Draw(t, "max_depth"), uses: rapid.IntRange(0, 1).Draw(t, "uses"), tokenType: delegation.TokenTypeJWT}
		w.scopes, w.audiences = scopeSet(t, "scopes"), some(t, "audiences", someAudiences, 2)
		w.details = some(t, "details", someDetails, 2)
		w.lifetime = time.Duration(max(0, rapid.IntRange(-600, 600).Draw(t, "lifetime"))) * time.Second
		a := actor{principal: rapid.SampledFrom(someActors).Draw(t, "actor"), binding: rapid.SampledFrom([]delegation.Confirmation{{}, {JKT: "k1"}, {X5T: "c1"}}).Draw(t, "binding")}
		s.steps = append(s.steps, step{wish: w, actor: a, after: time.Duration(rapid.IntRange(0, 2500).Draw(t, "after")) * time.Millisecond})
	}
	return s
})

type planner func(p parent, a actor, w wish, l Limits, iss, id, txn string, now time.Time) (delegation.Claims, error)

// play runs a scenario and compares each resulting token with all of its ancestors, independently
// of how a plan is made. made is the number of tokens.
func play(s scenario, plan planner) (made int, err error) {
	p, now := s.root, epoch
	ancestors := []parent{s.root}
	for i, st := range s.steps {
		now = now.Add(st.after)
		c, err := plan(p, st.actor, st.wish, s.limits, "https://deputy.example", fmt.Sprint("id", i), fmt.Sprint("txn", i), now)
		if err != nil {
			var refusal *delegation.Error
			if !errors.As(err, &refusal) || !refusal.Reason.Known() {
				return made, fmt.Errorf("step %d: refused without a reason: %w", i, err)
			}
			continue
		}
		c.Delegation.Hops[len(c.Delegation.Hops)-1].Seq = uint64(i + 1)
		for _, above := range ancestors {
			if err := narrower(above, c, st, s.limits, now); err != nil {
				return made, fmt.Errorf("step %d: %w", i, err)
			}
		}
		direct := ancestors[len(ancestors)-1]
		if want := chainAfter(direct.actors, st.actor.principal); !slices.Equal(c.Act, want) {
			return made, fmt.Errorf("step %d: I4: chain %v, want %v", i, c.Act, want)
		}
		if err := c.Check(); err != nil {
			return made, fmt.Errorf("step %d: claims disagree with themselves: %w", i, err)
		}
		made++
		p = parent{
			issuer: c.Issuer, id: c.ID, root: c.Delegation.Root, txn: c.Txn, subject: c.Subject, actors: c.Act, hops: c.Delegation.Hops,
			scopes: c.Scope, audiences: c.Audience, details: c.Details, expiresAt: time.Unix(c.ExpiresAt, 0),
			depthLeft: c.Delegation.DepthLeft, uses: c.Delegation.Uses,
		}
		ancestors = append(ancestors, p)
	}
	return made, nil
}

func chainAfter(above delegation.Chain, next delegation.Principal) delegation.Chain {
	if len(above) > 0 && above[len(above)-1] == next {
		return above
	}
	return append(slices.Clone(above), next)
}

// narrower checks I1 to I5 and the decrease of uses and depth, for one ancestor and one descendant.
func narrower(above parent, c delegation.Claims, st step, l Limits, now time.Time) error {
	for _, scope := range c.Scope {
		if !slices.Contains(above.scopes, scope) || !slices.Contains(st.wish.scopes, scope) {
			return fmt.Errorf("I1: scope %s", scope)
		}
	}
	if len(c.Audience) == 0 {
		return errors.New("I2: no audience")
	}
	if len(c.Audience) > 1 && len(c.Scope) == 0 {
		return errors.New("I2: several audiences and no scope that is mapped to them")
	}
	for _, audience := range c.Audience {
		if !slices.Contains(above.audiences, audience) || !slices.Contains(st.wish.audiences, audience) {
			return fmt.Errorf("I2: audience %s", audience)
		}
		for _, scope := range c.Scope {
			if len(c.Audience) > 1 && !slices.Contains(l.ScopeTargets[scope], audience) {
				return fmt.Errorf("I2: pair %s, %s", scope, audience)
			}
		}
	}
	if c.ExpiresAt > above.expiresAt.Unix() || c.ExpiresAt > now.Add(l.MaxLifetime).Unix() || c.ExpiresAt <= now.Unix() {
		return fmt.Errorf("I3: exp %d", c.ExpiresAt)
	}
	if len(c.Delegation.Hops) > l.MaxDepth || c.Delegation.DepthLeft >= above.depthLeft || len(c.Act) < len(above.actors) {
		return errors.New("I4: depth")
	}
	for i, p := range above.actors {
		if c.Act[i] != p {
			return fmt.Errorf("I4: actor %d became %s", i, c.Act[i])
		}
	}
	for i, hop := range above.hops {
		if c.Delegation.Hops[i] != hop {
			return fmt.Errorf("I4: hop %d changed", i)
		}
	}
	if c.Subject != above.subject || c.Delegation.Root != above.root || above.txn != "" && c.Txn != above.txn {
		return errors.New("I4: another chain")
	}
	for _, d := range c.Details {
		if !slices.ContainsFunc(above.details, func(wide delegation.Detail) bool { return allowsNoMore(d, wide) }) {
			return fmt.Errorf("I5: %s", d)
		}
	}
	own := c.Delegation.Hops[len(c.Delegation.Hops)-1]
	if bound := st.actor.binding; own.Key != bound.Key() || (c.Confirmation == nil) != (bound.Key() == "") || c.Confirmation != nil && *c.Confirmation != bound {
		return errors.New("I6: the child is not bound to its actor's key")
	}
	if c.Confirmation == nil && !l.AllowBearer {
		return errors.New("I6: a bearer token where none may be")
	}
	if c.Confirmation == nil && above.bound() && !l.AllowUnbinding {
		return errors.New("I6: a bearer token in a bound chain")
	}
	if above.uses > 0 && c.Delegation.Uses != above.uses {
		return errors.New("uses: the child may be used more often than its parent")
	}
	return nil
}

// bound is isBound, implemented a second time: by its own binding, or by the last hop's key.
func (p parent) bound() bool {
	return p.binding != nil || len(p.hops) > 0 && p.hops[len(p.hops)-1].Key != ""
}

// allowsNoMore is I5's comparator, implemented a second time and more simply: equal but for fewer
// actions.
func allowsNoMore(d, wide delegation.Detail) bool {
	idD, hasD := d.Text("identifier")
	idW, hasW := wide.Text("identifier")
	for _, action := range d.List("actions") {
		if !slices.Contains(wide.List("actions"), action) {
			return false
		}
	}
	return d.Type() == wide.Type() && idD == idW && hasD == hasW && (d.Type() != "pay" || d.String() == wide.String())
}

func TestNarrowingHoldsForAnySequenceOfExchanges(t *testing.T) {
	made, deepest := 0, 0
	rapid.Check(t, func(rt *rapid.T) {
		n, err := play(scenarios.Draw(rt, "scenario"), parent.claims)
		if err != nil {
			rt.Fatal(err)
		}
		made, deepest = made+n, max(deepest, n)
	})
	for depth := 1; depth <= 8; depth++ {
		if n, err := play(straight(depth), parent.claims); err != nil || n != depth {
			t.Errorf("a straight chain of depth %d: %d tokens, %v", depth, n, err)
		}
	}
	if made == 0 {
		t.Error("the scenarios made no token: the property says nothing")
	}
}

// TestBoundAncestorKeepsTheChainBound: a token that is not bound itself, because unbinding was allowed
// when it was issued, has a bound ancestor. A bearer child of it needs what any unbinding needs.
func TestBoundAncestorKeepsTheChainBound(t *testing.T) {
	for _, allowed := range []bool{false, true} {
		s := straight(3)
		s.limits.AllowUnbinding = allowed
		s.root.actors = []delegation.Principal{someActors[0]}
		s.root.hops = []delegation.Hop{{ID: "a", Seq: 1, Key: "thumbprint"}, {ID: "b", Seq: 2}}
		_, err := parent.claims(s.root, s.steps[1].actor, s.steps[1].wish, s.limits, "https://deputy.example", "c", "txn", epoch)
		if (err == nil) != allowed {
			t.Errorf("unbinding allowed %v: %v", allowed, err)
		}
	}
}

// TestSeveralAudiencesNeedAScope: a token without scope is for one audience, whatever is mapped.
func TestSeveralAudiencesNeedAScope(t *testing.T) {
	s := straight(3)
	s.root.audiences = someAudiences[:2]
	w := s.steps[0].wish
	w.audiences, w.scopes, w.details = someAudiences[:2], nil, nil
	_, err := parent.claims(s.root, s.steps[0].actor, w, s.limits, "https://deputy.example", "c", "txn", epoch)
	if delegation.AsError(err).Reason != delegation.AudienceNotSingle {
		t.Errorf("two audiences: %v", err)
	}
	w.audiences = someAudiences[:1]
	if _, err := parent.claims(s.root, s.steps[0].actor, w, s.limits, "https://deputy.example", "c", "txn", epoch); err != nil {
		t.Errorf("one audience: %v", err)
	}
}

// straight is a chain that requests exactly what its parent has, as deep as possible.
func straight(depth int) scenario {
	scopes, _ := delegation.NewScopes("a.read")
	s := scenario{
		limits: Limits{MaxDepth: depth, AllowBearer: true}.withDefaults(),
		root: parent{
			issuer: "https://idp.example", root: "digest", subject: "user:alice", scopes: scopes, audiences: someAudiences[:1],
			details: someDetails[:1], issuedAt: epoch, expiresAt: epoch.Add(time.Hour), depthLeft: depth,
		},
	}
	for i := range depth + 1 { // one more than there is room for
		s.steps = append(s.steps, step{
			wish:  wish{scopes: scopes, audiences: someAudiences[:1], details: someDetails[1:2], maxDepth: -1},
			actor: actor{principal: someActors[i]},
		})
	}
	return s
}

// TestNarrowingPropertyCatchesEachMissingProtection: each control makes one comparison of the plan
// vacuous, as if it were absent. The property above must find it.
func TestNarrowingPropertyCatchesEachMissingProtection(t *testing.T) {
	everything, _ := delegation.NewScopes(someScopes...)
	controls := map[string]planner{
		"I1 scope": func(p parent, a actor, w wish, l Limits, iss, id, txn string, now time.Time) (delegation.Claims, error) {
			p.scopes = everything
			return p.claims(a, w, l, iss, id, txn, now)
		},
		"I2 audience": func(p parent, a actor, w wish, l Limits, iss, id, txn string, now time.Time) (delegation.Claims, error) {
			p.audiences = someAudiences
			return p.claims(a, w, l, iss, id, txn, now)
		},
		"I2 pairs": func(p parent, a actor, w wish, l Limits, iss, id, txn string, now time.Time) (delegation.Claims, error) {
			l.ScopeTargets = map[string][]string{}
			for _, scope := range someScopes {
				l.ScopeTargets[scope] = someAudiences
			}
			return p.claims(a, w, l, iss, id, txn, now)
		},
		"I3 parent": func(p parent, a actor, w wish, l Limits, iss, id, txn string, now time.Time) (delegation.Claims, error) {
			p.expiresAt = p.expiresAt.Add(time.Hour)
			return p.claims(a, w, l, iss, id, txn, now)
		},
		"I3 tenant": func(p parent, a actor, w wish, l Limits, iss, id, txn string, now time.Time) (delegation.Claims, error) {
			l.MaxLifetime += time.Hour
			return p.claims(a, w, l, iss, id, txn, now)
		},
		"I4 depth": func(p parent, a actor, w wish, l Limits, iss, id, txn string, now time.Time) (delegation.Claims, error) {
			p.depthLeft, l.MaxDepth = delegation.MaxChainDepth, delegation.MaxChainDepth
			return p.claims(a, w, l, iss, id, txn, now)
		},
		"I4 chain": func(p parent, a actor, w wish, l Limits, iss, id, txn string, now time.Time) (delegation.Claims, error) {
			p.actors = nil
			return p.claims(a, w, l, iss, id, txn, now)
		},
		"I4 hops": func(p parent, a actor, w wish, l Limits, iss, id, txn string, now time.Time) (delegation.Claims, error) {
			p.hops = nil
			return p.claims(a, w, l, iss, id, txn, now)
		},
		"I5 details": func(p parent, a actor, w wish, l Limits, iss, id, txn string, now time.Time) (delegation.Claims, error) {
			p.details = someDetails
			return p.claims(a, w, l, iss, id, txn, now)
		},
		"I6 sender": func(p parent, a actor, w wish, l Limits, iss, id, txn string, now time.Time) (delegation.Claims, error) {
			a.binding, l.AllowBearer = delegation.Confirmation{}, true
			return p.claims(a, w, l, iss, id, txn, now)
		},
		"I6 bearer": func(p parent, a actor, w wish, l Limits, iss, id, txn string, now time.Time) (delegation.Claims, error) {
			l.AllowBearer = true
			return p.claims(a, w, l, iss, id, txn, now)
		},
		"I6 unbinding": func(p parent, a actor, w wish, l Limits, iss, id, txn string, now time.Time) (delegation.Claims, error) {
			l.AllowUnbinding = true
			return p.claims(a, w, l, iss, id, txn, now)
		},
		"uses": func(p parent, a actor, w wish, l Limits, iss, id, txn string, now time.Time) (delegation.Claims, error) {
			p.uses = 0
			return p.claims(a, w, l, iss, id, txn, now)
		},
	}
	for name, broken := range controls {
		t.Run(name, func(t *testing.T) {
			for seed := range 20000 {
				if _, err := play(scenarios.Example(seed), func(p parent, a actor, w wish, l Limits, iss, id, txn string, now time.Time) (delegation.Claims, error) {
					return broken(p, a, w, l, iss, id, txn, now)
				}); err != nil {
					return
				}
			}
			t.Error("nobody noticed that the protection is off")
		})
	}
}

// TestFirstMisplacedTokenIsNamed puts tokens into all fields from one on. Each call names the same
// field.
func TestFirstMisplacedTokenIsNamed(t *testing.T) {
	const misplaced = "eyJhbGciOiJFUzI1NiJ9.eyJzdWIiOiJhIn0.c2lnbmF0dXJl"
	if !delegation.HoldsToken(misplaced) {
		t.Fatal("the test holds no token")
	}
	order := []string{"resource", "audience", "requested_token_type", "scope", "authorization_details"}
	for first, want := range order {
		text := misplaced
		c := Child{AuthorizationDetails: &text}
		if first <= 3 {
			c.Scope = &text
		}
		if first <= 2 {
			c.RequestedTokenType = text
		}
		if first <= 1 {
			c.Audience = []string{text}
		}
		if first == 0 {
			c.Resource = []string{text}
		}
		for range 20 {
			if _, err := parseWish(c); delegation.AsError(err) == nil || delegation.AsError(err).Field != want {
				t.Fatalf("tokens in %v: %v", order[first:], err)
			}
		}
	}
}
