package exchange_test

import (
	"testing"
	"time"

	"deputy.example/deputy/client/delegation"
	"deputy.example/deputy/server/internal/exchange"
	"deputy.example/deputy/server/internal/exchange/exchangetest"
)

// states are those of a chain's grants, root to leaf, as an auditor reads them.
func states(t *testing.T, w *exchangetest.World, leaf string) (all [3]exchange.State, by [3]uint64) {
	t.Helper()
	chain, err := w.Engine.Chain(t.Context(), exchange.Inquiry{Tenant: "default", Credentials: w.Tenant().Credentials(t, planner), ID: leaf})
	if err != nil || len(chain) != 3 {
		t.Fatalf("%d grants, %v", len(chain), err)
	}
	for i, r := range chain {
		all[i], by[i] = r.State, r.RevokedBy
	}
	return all, by
}

// TestStates: the state of a grant, before and after its expiry.
func TestStates(t *testing.T) {
	const live, expired, revoked = exchange.StateLive, exchange.StateExpired, exchange.StateRevoked
	for name, c := range map[string]struct {
		target     func(chain []*exchange.Grant) delegation.Target
		during     [3]exchange.State
		afterwards [3]exchange.State
	}{
		"nothing": {nil, [3]exchange.State{live, live, live}, [3]exchange.State{expired, expired, expired}},
		"the chain": {func(g []*exchange.Grant) delegation.Target {
			return delegation.Target{Kind: delegation.BanChain, ID: g[0].Claims.Txn}
		}, [3]exchange.State{revoked, revoked, revoked}, [3]exchange.State{revoked, revoked, revoked}},
		"the middle token": {func(g []*exchange.Grant) delegation.Target {
			return delegation.Target{Kind: delegation.BanToken, ID: g[1].Claims.ID}
		}, [3]exchange.State{live, revoked, revoked}, [3]exchange.State{expired, revoked, expired}}, // the leaf's own entry does not name it
		"an agent": {func([]*exchange.Grant) delegation.Target {
			return delegation.Target{Kind: delegation.CutAgent, ID: string(researcher)}
		}, [3]exchange.State{live, revoked, revoked}, [3]exchange.State{expired, revoked, revoked}},
		"the subject": {func([]*exchange.Grant) delegation.Target {
			return delegation.Target{Kind: delegation.CutSubject, ID: string(alice)}
		}, [3]exchange.State{revoked, revoked, revoked}, [3]exchange.State{revoked, revoked, revoked}},
	} {
		t.Run(name, func(t *testing.T) {
			w, _, chain := hospital(t)
			leaf := chain[2].Claims.ID
			var number uint64
			if c.target != nil {
				done, refusal := take(w, t, responder, c.target(chain))
				if refusal != nil {
					t.Fatal(refusal)
				}
				number = done.Revocation.Seq
			}
			check := func(when string, want [3]exchange.State) {
				t.Helper()
				got, by := states(t, w, leaf)
				for i := range got {
					if got[i] != want[i] || (by[i] != 0) != (want[i] == revoked) || by[i] != 0 && by[i] != number {
						t.Errorf("%s, grant %d: %s by %d; want %s by %d", when, i, got[i], by[i], want[i], number)
					}
				}
			}
			check("while it lives", c.during)
			w.Clock().Advance(15*time.Minute + time.Second)
			check("afterwards", c.afterwards)
			if c.target == nil { // and a grant that is revoked after its expiry has expired
				if _, refusal := take(w, t, responder, delegation.Target{Kind: delegation.BanChain, ID: chain[0].Claims.Txn}); refusal != nil {
					t.Fatal(refusal)
				}
				check("revoked after its end", c.afterwards)
			}
		})
	}
}

// TestStateOfAVoidedGrant: a grant whose token was not delivered is voided, before and after its
// expiry.
func TestStateOfAVoidedGrant(t *testing.T) {
	keys := &keyClock{}
	w, n, chain := hospitalOf(t, exchangetest.Config{KeysNow: keys.now})
	keys.failSigning(true, func() {})
	if _, refusal := w.One(t.Context(), n.Call(t, chain[0].AccessToken, planner, "")); refusal == nil || refusal.Reason != delegation.Internal {
		t.Fatal("signed, or refused before it was recorded:", refusal)
	}
	keys.mend()
	for range 2 {
		got, err := w.Engine.Entry(t.Context(), exchange.Inquiry{Tenant: "default", Credentials: n.Credentials(t, planner), Entry: 4})
		if err != nil || got.State != exchange.StateVoided {
			t.Errorf("%s, %v", got.State, err)
		}
		w.Clock().Advance(time.Hour)
	}
}

// TestReach: a Reach separates what an agent holds from what it could obtain. The latter is empty
// while the agent is suspended.
func TestReach(t *testing.T) {
	w, n, chain := hospital(t)
	ask := func() exchange.Reach {
		t.Helper()
		got, err := w.Engine.Reach(t.Context(), exchange.Inquiry{Tenant: "default", Credentials: n.Credentials(t, operator)}, researcher, 1)
		if err != nil {
			t.Fatal(err)
		}
		return got
	}
	got := ask()
	if got.Suspended || len(got.Tokens) != 1 || got.Tokens[0].ID != chain[1].Claims.ID || got.Tokens[0].State != exchange.StateLive || got.Live != 1 || got.Below != 1 || got.Entry < 3 {
		t.Errorf("held: %+v", got)
	}
	found := false
	for _, o := range got.Obtainable {
		found = found || len(o.Path) == 2 && o.Path[0] == alice && o.Path[1] == researcher && len(o.Scopes) == 3 && len(o.Audiences) == 2
	}
	if !found || !got.ObtainableTruncated { // other agents may hand on to it too, beyond one edge
		t.Errorf("obtainable: %+v, truncated %t", got.Obtainable, got.ObtainableTruncated)
	}
	n.FGA.Deny(string(alice), "delegator", string(researcher))
	if got := ask(); len(got.Obtainable) > 0 {
		t.Errorf("without consent: %+v", got.Obtainable)
	}
	n.FGA.Allow(string(alice), "delegator", string(researcher))
	if _, refusal := take(w, t, operator, delegation.Target{Kind: delegation.BanSuspend, ID: string(researcher)}); refusal != nil {
		t.Fatal(refusal)
	}
	if got := ask(); !got.Suspended || len(got.Tokens) > 0 || len(got.Obtainable) > 0 {
		t.Errorf("suspended: %+v", got)
	}
}

// TestTailEnds: a tail ends soon after its caller is no auditor any more, and with its credential.
func TestTailEnds(t *testing.T) {
	w, n, _ := hospital(t)
	n.FGA.Allow(string(stranger), "auditor", "system:deputy")
	open := func() *exchange.Tail {
		t.Helper()
		tail, err := w.Engine.Tail(t.Context(), exchange.Inquiry{Tenant: "default", Credentials: n.Credentials(t, stranger)})
		if err != nil {
			t.Fatal(err)
		}
		return tail
	}
	tail := open()
	if page, err := tail.Next(t.Context(), 1); err != nil || len(page) != 2 || page[0].Seq != 2 || tail.Head() != 3 {
		t.Fatalf("%d entries up to %d, %v", len(page), tail.Head(), err)
	}
	n.FGA.Deny(string(stranger), "auditor", "system:deputy")
	w.Clock().Advance(time.Minute)
	if _, err := tail.Next(t.Context(), 1); reason(err) != delegation.NotFound {
		t.Errorf("no auditor any more: %v", err)
	}
	n.FGA.Allow(string(stranger), "auditor", "system:deputy")
	tail = open()
	w.Clock().Advance(11 * time.Minute)
	if _, err := tail.Next(t.Context(), 1); reason(err) != delegation.ClientUnauthenticated {
		t.Errorf("an old credential: %v", err)
	}
	tail = open()
	if _, refusal := take(w, t, responder, delegation.Target{Kind: delegation.BanSuspend, ID: string(stranger)}); refusal != nil {
		t.Fatal(refusal)
	}
	w.Clock().Advance(time.Minute)
	if _, err := tail.Next(t.Context(), 1); reason(err) != delegation.ClientUnauthenticated {
		t.Errorf("suspended: %v", err)
	}
}
