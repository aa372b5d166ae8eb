package exchange

import (
	"slices"
	"testing"

	"pgregory.net/rapid"

	"deputy.example/deputy/client/delegation"
	"deputy.example/deputy/server/internal/token"
)

// TestCallerRulesForAnyone compares route with the rules of the design, written a second time: who
// may ask, for which actor, and which rule refuses it.
func TestCallerRulesForAnyone(t *testing.T) {
	people := rapid.SampledFrom([]delegation.Principal{"agent:a", "agent:b", "agent:c", "agent:d"})
	bindings := rapid.SampledFrom([]delegation.Confirmation{{}, {JKT: "k1"}, {JKT: "k2"}, {X5T: "c1"}, {X5T: "c2"}})
	seen := map[string]int{}
	rapid.Check(t, func(rt *rapid.T) {
		p := parent{subject: "user:alice"}
		for range rapid.IntRange(0, 3).Draw(rt, "actors") {
			p.actors = append(p.actors, people.Draw(rt, "actor"))
		}
		if len(p.actors) > 0 && rapid.Bool().Draw(rt, "derived") {
			for i := range p.actors {
				bound := bindings.Draw(rt, "bound")
				p.hops = append(p.hops, delegation.Hop{ID: "j", Actor: i, Key: bound.Key()})
				if p.binding = nil; bound.Key() != "" {
					p.binding = &bound
				}
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
			asked = actor{principal: people.Draw(rt, "named"), binding: bindings.Draw(rt, "binding"), proof: "token"}
			named = new(asked)
		}
		held := bindings.Draw(rt, "held")
		if asked.principal == caller && asked.binding.Key() == "" {
			asked.binding = held // a token for the caller is bound to what it has just proven
			if p.binding != nil && p.actors.Current() == caller {
				asked.binding = *p.binding // and stays bound, whatever else is proven
			}
		}
		limits := Limits{ActorMayRecur: rapid.Bool().Draw(rt, "recur")}

		path := rule(p, caller, asked, limits)
		seen[path]++
		got, err := p.route(caller, named, held, limits)
		if (err == nil) != (path != "refused") {
			rt.Fatalf("%s asks for %+v of %+v: want %s, got %v", caller, asked, p, path, err)
		}
		if err != nil {
			if got != (actor{}) || delegation.AsError(err).Reason == delegation.Internal {
				rt.Fatalf("a refusal with an actor or without a reason: %+v, %v", got, err)
			}
			return
		}
		if got.principal != asked.principal || asked.binding.Key() != "" && got.binding != asked.binding {
			rt.Fatalf("asked for %+v, got %+v", asked, got)
		}
		if path == "self-narrowing" && p.binding != nil && got.binding != *p.binding {
			rt.Fatalf("a binding got lost: %+v, %+v", p, got)
		}
		if got.principal != caller && got.binding != asked.binding {
			rt.Fatalf("another's token is bound to what the caller holds: %+v", got)
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
	key := asked.binding.Key()
	keyOfAncestor := key != "" && slices.ContainsFunc(p.hops, func(h delegation.Hop) bool { return h.Key == key })
	path := "refused"
	switch {
	case caller == holder && asked.principal == holder:
		if p.binding == nil && !keyOfAncestor || p.binding != nil && asked.binding == *p.binding {
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
	if again || another || keyOfAncestor {
		return "refused"
	}
	return path
}

func BenchmarkPlan(b *testing.B) {
	s := straight(4)
	p := s.root
	for range 3 {
		p.hops = append(p.hops, delegation.Hop{ID: "01M80JT62K53784X4XRJA5S8VB", Seq: uint64(len(p.hops) + 1), Actor: len(p.actors)})
		p.actors = append(p.actors, someActors[len(p.actors)])
	}
	p.txn, p.depthLeft = "txn", 2
	st, limits := s.steps[3], Limits{AllowBearer: true}.withDefaults()
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
