package exchange_test

import (
	"slices"
	"sync"
	"testing"
	"time"

	"deputy.example/deputy/client/delegation"
	"deputy.example/deputy/server/internal/exchange"
	"deputy.example/deputy/server/internal/exchange/exchangetest"
	"deputy.example/deputy/server/internal/ledger/ledgertest"
	"deputy.example/deputy/server/internal/testservers"
)

const treeDepth = 5

// grow makes a tree of n tokens below one root token of the user's, each leaf at the full depth if
// n allows. Each level has two workloads of its own, and each token as many children as the size
// needs.
func (f *fleet) grow(t *testing.T, user delegation.Principal, crew []delegation.Principal, n int) []held {
	t.Helper()
	fan := 1
	for size := 0; size < n; fan++ {
		size = 1
		for level, width := 1, 1; level < treeDepth; level++ {
			width *= fan
			size += width
		}
	}
	fan--
	first, refusal := f.at(0).One(t.Context(), f.byWorkload(t, f.rootOf(t, user), crew[0], ""))
	if refusal != nil {
		t.Fatal(refusal, refusal.Unwrap())
	}
	all := []held{{grant: first, holder: crew[0]}}
	// Depth first, so that a tree that is not full still has the full depth.
	var below func(parent held, level int)
	below = func(parent held, level int) {
		if level == treeDepth {
			return
		}
		var holders []delegation.Principal
		for i := range min(fan, n-len(all)) {
			holders = append(holders, crew[2*level+i%2])
		}
		if len(holders) == 0 {
			return
		}
		call := f.byWorkload(t, parent.grant.AccessToken, parent.holder, holders...)
		outcomes, err := f.at(level).Engine.Exchange(t.Context(), call)
		if err != nil {
			t.Fatal(err)
		}
		from := len(all)
		for i, o := range outcomes {
			if o.Err != nil {
				t.Fatal(o.Err, o.Err.Unwrap())
			}
			all = append(all, held{grant: o.Grant, holder: holders[i]})
		}
		for _, child := range slices.Clone(all[from:]) {
			below(child, level+1)
		}
	}
	below(all[0], 1)
	return all
}

// killed reports whether one of the revocations hits the token.
func killed(h held, revocations []delegation.Revocation) bool {
	return slices.ContainsFunc(revocations, func(r delegation.Revocation) bool { return kills(r, h.grant.Claims) })
}

// living is the number of tokens that no revocation hits.
func living(tokens []held, revocations []delegation.Revocation) (n int) {
	for _, h := range tokens {
		if !killed(h, revocations) {
			n++
		}
	}
	return n
}

// sweep introspects all tokens at all instances. It records the answers that the revocations so far
// do not permit.
func (f *fleet) sweep(t *testing.T, found *findings, tokens []held, revocations []delegation.Revocation) {
	t.Helper()
	var all sync.WaitGroup
	for i, w := range f.instances {
		all.Go(func() {
			for _, h := range tokens {
				if active, err := f.introspect(t, w, h.grant.AccessToken); err != nil || active == killed(h, revocations) {
					found.add("instance %d, entry %d: active %t, want %t (%v)", i, h.grant.Entry, active, !active, err)
				}
			}
		})
	}
	all.Wait()
}

// TestCampaignTree: a tree of tokens loses a branch, an agent for one user, the agent altogether,
// and its user. Each time everything that is named is dead at both instances, and nothing else.
func TestCampaignTree(t *testing.T) {
	f := newFleet(t, exchangetest.Config{DSN: testservers.Postgres(t)}, 2)
	crew := f.crew("tree", 2*treeDepth)
	f.welcome(alice, crew...)
	f.welcome(bob, crew...)
	n := testservers.Campaign(1000, 200)
	old := f.rootOf(t, alice)
	tokens := f.grow(t, alice, crew, n)
	if len(tokens) != n {
		t.Fatalf("the tree has %d tokens", len(tokens))
	}
	deepest := slices.MaxFunc(tokens, func(a, b held) int {
		return len(a.grant.Claims.Delegation.Hops) - len(b.grant.Claims.Delegation.Hops)
	})
	if depth := len(deepest.grant.Claims.Delegation.Hops); depth != treeDepth {
		t.Fatalf("the tree is %d deep", depth)
	}
	tokens = append(tokens, f.grow(t, bob, crew, n/10)...)

	branch := tokens[slices.IndexFunc(tokens, func(h held) bool { return len(h.grant.Claims.Delegation.Hops) == 3 })].grant.Claims.ID
	agent := string(crew[7]) // of the fourth level
	var revocations []delegation.Revocation
	for _, step := range []struct {
		name   string
		target delegation.Target
	}{
		{"nothing yet", delegation.Target{}},
		{"a middle token", delegation.Target{Kind: delegation.BanToken, ID: branch}},
		{"an agent for one user", delegation.Target{Kind: delegation.CutAgentSubject, ID: agent, Subject: alice}},
		{"the agent", delegation.Target{Kind: delegation.CutAgent, ID: agent}},
		{"the user", delegation.Target{Kind: delegation.CutSubject, ID: string(alice)}},
	} {
		before := living(tokens, revocations)
		if step.target.Kind != "" {
			done, err := f.at(len(revocations)).Engine.Revoke(t.Context(), exchange.RevokeCall{
				Tenant: f.n.Name, Credentials: f.n.Credentials(t, responder), Target: step.target,
			})
			if err != nil {
				t.Fatal(err)
			}
			revocations = append(revocations, *done.Revocation)
		}
		acknowledged := time.Now()
		found := &findings{}
		f.sweep(t, found, tokens, revocations)
		alive := living(tokens, revocations)
		found.report(t)
		if step.target.Kind != "" && alive == before {
			t.Errorf("%s: nobody died", step.name)
		}
		t.Logf("%s: %d of %d die, %d live; all of them asked for at both instances within %v of the acknowledgement",
			step.name, before-alive, before, alive, time.Since(acknowledged).Round(time.Millisecond))
	}

	if _, refusal := f.at(1).One(t.Context(), f.byWorkload(t, old, crew[0], "")); !takenBack(refusal) {
		t.Errorf("a root token from before the cut-off: %v", refusal)
	}
	f.instances[0].Clock().Advance(pastDoubt)
	fresh := f.grow(t, alice, crew, 10)
	found := &findings{}
	f.sweep(t, found, fresh, revocations)
	if alive := living(fresh, revocations); alive != len(fresh) {
		t.Errorf("after a fresh login %d of %d live", alive, len(fresh))
	}
	found.report(t)
	if err := ledgertest.Check(t.Context(), f.instances[0].Ledger, "default"); err != nil {
		t.Errorf("the ledger: %v", err)
	}

	// The control: an instance that receives no revocation is found.
	f.splitOff(t)
	found = &findings{}
	f.sweep(t, found, tokens[:10], revocations)
	if len(found.all) == 0 {
		t.Error("an instance on another ledger was not noticed")
	}
}
