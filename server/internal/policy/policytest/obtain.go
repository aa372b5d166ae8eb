package policytest

import (
	"fmt"
	"slices"
	"testing"

	"pgregory.net/rapid"

	"deputy.example/deputy/client/delegation"
	"deputy.example/deputy/server/internal/policy"
)

func all(delegation.Principal) bool { return true }

func people(p delegation.Principal) bool { return p.Type() == "user" }

func obtainable(t testing.TB, c *policy.Checker, s policy.Search) ([]policy.Obtainable, bool) {
	t.Helper()
	if s.Begins == nil {
		s.Begins = people
	}
	if s.Usable == nil {
		s.Usable = all
	}
	list, complete, err := c.Obtainable(t.Context(), s)
	if err != nil {
		t.Fatal(err)
	}
	return list, complete
}

// What an agent could obtain follows from consent along the whole path, and from what both ends
// hold.
func testObtainable(t *testing.T, b Backend) {
	c := NewChecker(t, b)
	_, needed := Exchange()
	write(t, b, needed...)
	write(t, b,
		policy.Relation{User: "user:alice", Relation: "holder", Object: "scope:only.alice"},
		policy.Relation{User: "agent:researcher", Relation: "holder", Object: "scope:only.researcher"},
		policy.Relation{User: "user:alice", Relation: "holder", Object: "scope:a|urn%3Ax"}, // a pair is no scope
		policy.Relation{User: "agent:researcher", Relation: "holder", Object: "scope:a|urn%3Ax"},
		policy.Relation{User: "user:bob", Relation: "delegator", Object: "agent:planner"}, // holds nothing
	)
	want := policy.Obtainable{
		Path:   []delegation.Principal{"user:alice", "agent:planner", "agent:researcher"},
		Scopes: delegation.Scopes{"calendar.read", "mail:send"}, Audiences: []string{"https://calendar.example"},
	}
	search := policy.Search{Agent: "agent:researcher", Depth: 3}
	if list, complete := obtainable(t, c, search); len(list) != 1 || !complete || fmt.Sprint(list[0]) != fmt.Sprint(want) {
		t.Errorf("%+v, complete %t; want %+v", list, complete, want)
	}
	for name, c2 := range map[string]policy.Search{
		"one edge":             {Agent: "agent:researcher", Depth: 1},
		"a suspended ancestor": {Agent: "agent:researcher", Depth: 3, Usable: func(p delegation.Principal) bool { return p != "agent:planner" }},
		"itself suspended":     {Agent: "agent:researcher", Depth: 3, Usable: func(p delegation.Principal) bool { return p != "agent:researcher" }},
		"no subject allowed":   {Agent: "agent:researcher", Depth: 3, Begins: func(delegation.Principal) bool { return false }},
		"an unknown agent":     {Agent: "agent:unknown", Depth: 3},
		"a person":             {Agent: "user:alice", Depth: 3},
		"an unknown type":      {Agent: "robot:a", Depth: 3},
	} {
		list, complete := obtainable(t, c, c2)
		if len(list) > 0 || complete == (name == "one edge") {
			t.Errorf("%s: %+v, complete %t", name, list, complete)
		}
	}
	// Each relation counts: without it something that was obtainable is not, or nothing is.
	for _, r := range needed {
		remove(t, b, r)
		if list, _ := obtainable(t, c, search); len(list) == 1 && fmt.Sprint(list[0]) == fmt.Sprint(want) {
			t.Errorf("the same without %s", r)
		}
		write(t, b, r)
	}
}

// Whatever relationships there are: what is listed, an exchange would be allowed, and what is not
// listed, along a path that was followed, it would not.
func testObtainableProperty(t *testing.T, b Backend) {
	c := NewChecker(t, b)
	principals := []delegation.Principal{"user:a", "user:b", "agent:x", "agent:y", "agent:z"}
	scopes, audiences := []string{"s1", "s2"}, []string{"urn:1", "urn:2"}
	var possible []policy.Relation
	for _, from := range principals {
		for _, to := range principals[2:] {
			possible = append(possible, policy.Relation{User: string(from), Relation: "delegator", Object: string(to)})
		}
		for i := range scopes {
			possible = append(possible,
				policy.Relation{User: string(from), Relation: "holder", Object: "scope:" + scopes[i]},
				policy.Relation{User: string(from), Relation: "accessor", Object: "resource:" + delegation.EncodeID(audiences[i])})
		}
	}
	ask := func(rt *rapid.T, path []delegation.Principal, scope, audience string) bool {
		q := policy.Question{Subject: path[0], Actor: path[len(path)-1], Audiences: []string{audience}}
		for i := range len(path) - 1 {
			q.Edges = append(q.Edges, policy.Edge{From: path[i], To: path[i+1]})
		}
		if scope != "" {
			q.Scopes = delegation.Scopes{scope}
		}
		d, err := c.Ask(t.Context(), q)
		if err != nil {
			rt.Fatal(err)
		}
		return d.Allowed
	}
	rapid.Check(t, func(rt *rapid.T) {
		var world []policy.Relation
		for _, r := range possible {
			if rapid.IntRange(0, 2).Draw(rt, r.String()) > 0 {
				world = append(world, r)
			}
		}
		if len(world) > 0 {
			write(t, b, world...)
			defer remove(t, b, world...)
		}
		list, complete := obtainable(t, c, policy.Search{Agent: "agent:x", Depth: 4})
		if !complete {
			rt.Fatal("the list is reported incomplete")
		}
		for _, path := range pathsTo("agent:x", principals) {
			var found policy.Obtainable
			if i := slices.IndexFunc(list, func(o policy.Obtainable) bool { return slices.Equal(o.Path, path) }); i >= 0 {
				found = list[i]
				list = slices.Delete(list, i, i+1)
			}
			for _, audience := range audiences {
				if allowed := ask(rt, path, "", audience); allowed != slices.Contains(found.Audiences, audience) {
					rt.Fatalf("along %v at %s: allowed %t, listed %v", path, audience, allowed, found.Audiences)
				}
			}
			for _, scope := range scopes {
				allowed := slices.ContainsFunc(audiences, func(audience string) bool { return ask(rt, path, scope, audience) })
				if allowed != slices.Contains(found.Scopes, scope) {
					rt.Fatalf("along %v, %s: allowed %t, listed %v", path, scope, allowed, found.Scopes)
				}
			}
		}
		if len(list) > 0 {
			rt.Fatalf("paths that there are not: %+v", list)
		}
	})
}

// pathsTo returns all paths from a person to the agent on which no principal occurs twice.
func pathsTo(agent delegation.Principal, principals []delegation.Principal) (all [][]delegation.Principal) {
	var grow func(path []delegation.Principal)
	grow = func(path []delegation.Principal) {
		for _, p := range principals {
			longer := append([]delegation.Principal{p}, path...)
			switch {
			case slices.Contains(path, p):
			case people(p):
				all = append(all, longer)
			default:
				grow(longer)
			}
		}
	}
	grow([]delegation.Principal{agent})
	return all
}
