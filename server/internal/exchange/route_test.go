package exchange

import (
	"slices"
	"testing"

	"pgregory.net/rapid"

	"deputy.example/deputy/client/delegation"
	"deputy.example/deputy/server/internal/token"
)

// TestCallerRulesForAnyone holds route against the rules as the design states them, written a second
// time: who may ask, whom for, and what may stand against it.
func TestCallerRulesForAnyone(t *testing.T) {
	people := rapid.SampledFrom([]delegation.Principal{"agent:a", "agent:b", "agent:c", "agent:d"})
	keys := rapid.SampledFrom([]string{"", "k1", "k2"})
	seen := map[string]int{}
	rapid.Check(t, func(rt *rapid.T) {
		p := parent{subject: "user:alice"}
		for range rapid.IntRange(0, 3).Draw(rt, "actors") {
			p.actors = append(p.actors, people.Draw(rt, "actor"))
		}
		if len(p.actors) > 0 && rapid.Bool().Draw(rt, "derived") {
			for i := range p.actors {
				p.hops = append(p.hops, delegation.Hop{ID: "j", Actor: i, Key: keys.Draw(rt, "held")})
			}
		}
		if rapid.Bool().Draw(rt, "may_act") {
			who := people.Draw(rt, "may_act")
			p.mayAct = &who
		}
		caller := people.Draw(rt, "caller")
		var named *actor
		asked := actor{principal: caller}
		if rapid.Bool().Draw(rt, "named") {
			asked = actor{principal: people.Draw(rt, "named"), key: keys.Draw(rt, "key"), proof: "token"}
			named = &asked
		}
		limits := Limits{ActorMayRecur: rapid.Bool().Draw(rt, "recur")}

		path := rule(p, caller, asked, limits)
		seen[path]++
		got, err := p.route(caller, named, limits)
		if (err == nil) != (path != "refused") {
			rt.Fatalf("%s asks for %+v of %+v: want %s, got %v", caller, asked, p, path, err)
		}
		if err != nil {
			if got != (actor{}) || delegation.AsError(err).Reason == delegation.Internal {
				rt.Fatalf("a refusal with an actor or without a reason: %+v, %v", got, err)
			}
			return
		}
		if got.principal != asked.principal || asked.key != "" && got.key != asked.key {
			rt.Fatalf("asked for %+v, got %+v", asked, got)
		}
		if held := heldKey(p); path == "self-narrowing" && held != "" && got.key != held {
			rt.Fatalf("a binding got lost: %+v, %+v", p, got)
		}
	})
	for _, path := range []string{"hand down", "self-narrowing", "step in", "refused"} {
		if seen[path] == 0 {
			t.Errorf("%s never happened", path)
		}
	}
}

// rule names the path that design section 2 gives, or "refused".
func rule(p parent, caller delegation.Principal, asked actor, l Limits) string {
	var holder delegation.Principal
	if len(p.actors) > 0 {
		holder = p.actors[len(p.actors)-1]
	}
	root := len(p.hops) == 0
	mayAct := func(who delegation.Principal) bool { return p.mayAct != nil && *p.mayAct == who }
	path := "refused"
	switch {
	case caller == holder && asked.principal == holder:
		if held := heldKey(p); held == "" || asked.key == "" || asked.key == held {
			path = "self-narrowing"
		}
		return path
	case caller == holder:
		path = "hand down"
	case caller == asked.principal && (holder == "" || mayAct(caller)):
		path = "step in"
	}
	again := slices.Contains(p.actors, asked.principal) && !l.ActorMayRecur
	another := root && p.mayAct != nil && !mayAct(asked.principal)
	keyOfAncestor := asked.key != "" && slices.ContainsFunc(p.hops, func(h delegation.Hop) bool { return h.Key == asked.key })
	if again || another || keyOfAncestor {
		return "refused"
	}
	return path
}

func heldKey(p parent) string {
	if len(p.hops) == 0 {
		return ""
	}
	return p.hops[len(p.hops)-1].Key
}

func BenchmarkPlan(b *testing.B) {
	s := straight(4)
	p := s.root
	for range 3 {
		p.hops = append(p.hops, delegation.Hop{ID: "01M80JT62K53784X4XRJA5S8VB", Seq: uint64(len(p.hops) + 1), Actor: len(p.actors)})
		p.actors = append(p.actors, someActors[len(p.actors)])
	}
	p.txn, p.depthLeft = "txn", 2
	st, limits := s.steps[3], Limits{}.withDefaults()
	keys, err := token.OpenKeyset(token.KeysetConfig{Keys: []token.KeyFile{{Path: b.TempDir() + "/key.pem", Algorithm: "ES256"}}, Create: true})
	if err != nil {
		b.Fatal(err)
	}
	tenant := &Tenant{Keys: keys}
	b.ReportAllocs()
	for b.Loop() {
		c, err := p.claims(st.actor, st.wish, limits, "https://deputy.example", "id", "", epoch)
		if err != nil {
			b.Fatal(err)
		}
		if err := tenant.fits(c); err != nil {
			b.Fatal(err)
		}
	}
}
