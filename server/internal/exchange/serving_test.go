package exchange_test

import (
	"errors"
	"testing"

	"deputy.example/deputy/client/delegation"
	"deputy.example/deputy/server/internal/exchange"
	"deputy.example/deputy/server/internal/exchange/exchangetest"
	"deputy.example/deputy/server/internal/guard"
	"deputy.example/deputy/server/internal/testservers"
)

// entryPoints are all that says what a token is worth, and what takes it back.
func entryPoints(t *testing.T, f *fleet, w *exchangetest.World) map[string]func() error {
	t.Helper()
	crew := f.crew("crew", 2)
	root := f.rootOf(t, exchangetest.Alice)
	f.welcome(exchangetest.Alice, crew...)

	one := func(change func(*exchange.Call)) error {
		call := f.byWorkload(t, root, crew[0], "")
		call.SubjectTokenType = delegation.TokenTypeJWT
		change(&call)
		outcomes, err := w.Engine.Exchange(t.Context(), call)
		if err == nil && outcomes[0].Err != nil {
			err = outcomes[0].Err
		}
		return err
	}
	if err := one(func(c *exchange.Call) { c.IdempotencyKey = "once" }); err != nil {
		t.Fatal(err, errors.Unwrap(err))
	}
	token := w.Chain(t, f.n, exchangetest.Planner)[0].AccessToken
	watch, err := w.Engine.Watch(t.Context(), exchange.Inquiry{Tenant: f.n.Name, Credentials: f.n.Credentials(t, exchangetest.Writer)})
	if err != nil {
		t.Fatal(err)
	}
	inquiry := func() exchange.Inquiry {
		return exchange.Inquiry{Tenant: f.n.Name, Credentials: f.n.Credentials(t, exchangetest.Writer), Token: token}
	}
	return map[string]func() error{
		"exchange":      func() error { return one(func(*exchange.Call) {}) },
		"batch":         func() error { return one(func(c *exchange.Call) { c.Batch = true }) },
		"validate_only": func() error { return one(func(c *exchange.Call) { c.ValidateOnly = true }) },
		"retry":         func() error { return one(func(c *exchange.Call) { c.IdempotencyKey = "once" }) },
		"introspect":    func() error { _, err := w.Engine.Introspect(t.Context(), inquiry()); return err },
		"watch":         func() error { _, err := w.Engine.Watch(t.Context(), inquiry()); return err },
		"echo":          func() error { _, _, err := watch.Last(t.Context()); return err },
		"snapshot":      func() error { _, _, _, err := watch.Snapshot(t.Context()); return err },
		"status list":   func() error { _, err := w.Engine.StatusList(t.Context(), f.n.Name, 0); return err },
		"readiness": func() error {
			return errors.Join(w.Engine.Standing(t.Context()), w.Engine.Ready(t.Context(), f.n.Name))
		},
		"revoke": func() error {
			_, err := f.revoke(t, w, delegation.Target{Kind: delegation.BanChain, ID: "nobody's"})
			return err
		},
		"suspend": func() error {
			_, err := f.revoke(t, w, delegation.Target{Kind: delegation.BanSuspend, ID: "agent:wl/nobody"})
			return err
		},
	}
}

// TestWhoKnowsBetterDoesNotServe is the table of docs/incidents.md: what each state refuses.
func TestWhoKnowsBetterDoesNotServe(t *testing.T) {
	for name, state := range map[string]struct {
		bring   func(t *testing.T, w *exchangetest.World, g *guard.Guard)
		refuses bool // all; false: nothing
	}{
		"sound": {func(*testing.T, *exchangetest.World, *guard.Guard) {}, false},
		"a ledger that is doubted": {func(t *testing.T, w *exchangetest.World, _ *guard.Guard) {
			w.Ledger.Doubt(t.Context(), errors.New("a test"))
		}, true},
		"redis knows a later incarnation": {func(t *testing.T, w *exchangetest.World, g *guard.Guard) {
			must(t, g.Testify(t.Context(), map[string]guard.Witness{"default": {Number: 99, ID: "later", Seq: 1}}))
			must(t, w.Engine.Arbitrate(t.Context(), "default"))
		}, true},
		"redis knows a later incarnation of another tenant": {func(t *testing.T, w *exchangetest.World, g *guard.Guard) {
			mine, _ := w.Ledger.Incarnation()
			must(t, g.Testify(t.Context(), map[string]guard.Witness{"other": {Number: 99, ID: "later", Seq: 1}}))
			must(t, g.Testify(t.Context(), map[string]guard.Witness{"default": {Number: mine.Number, ID: mine.ID, Seq: 1}}))
			must(t, w.Engine.Arbitrate(t.Context(), "other"))
			must(t, w.Engine.Arbitrate(t.Context(), "default"))
			must(t, g.Discard(t.Context(), "other")) // it is gone, and has not changed
			must(t, w.Engine.Arbitrate(t.Context(), "other"))
		}, true},
		"redis knows another one of this number": {func(t *testing.T, w *exchangetest.World, g *guard.Guard) {
			must(t, g.Discard(t.Context(), "default"))
			must(t, g.Testify(t.Context(), map[string]guard.Witness{"default": {ID: "twin", Seq: 1}}))
			must(t, w.Engine.Arbitrate(t.Context(), "default"))
		}, true},
		"redis knows more entries": {func(t *testing.T, w *exchangetest.World, g *guard.Guard) {
			mine, _ := w.Ledger.Incarnation()
			must(t, g.Testify(t.Context(), map[string]guard.Witness{"default": {Number: mine.Number, ID: mine.ID, Seq: 1000}}))
			must(t, w.Engine.Compare(t.Context(), "default"))
		}, true},
		"redis knows another entry": {func(t *testing.T, w *exchangetest.World, g *guard.Guard) {
			mine, _ := w.Ledger.Incarnation()
			must(t, g.Discard(t.Context(), "default"))
			must(t, g.Testify(t.Context(), map[string]guard.Witness{"default": {Number: mine.Number, ID: mine.ID, Seq: 1, Leaf: [32]byte{7}}}))
			must(t, w.Engine.Compare(t.Context(), "default"))
		}, true},
		"redis knows more revocations": {func(t *testing.T, w *exchangetest.World, g *guard.Guard) {
			must(t, g.Republish(t.Context(), "default", nil, 1000))
			must(t, w.Engine.Compare(t.Context(), "default"))
		}, true},
		"redis forgot everything": {func(t *testing.T, w *exchangetest.World, g *guard.Guard) {
			must(t, g.Discard(t.Context(), "default"))
			must(t, w.Engine.Compare(t.Context(), "default"))
		}, false},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			server := testservers.NewRedis(t)
			f := newFleet(t, exchangetest.Config{RedisURL: server.URL()}, 1)
			w := f.at(0)
			points := entryPoints(t, f, w)
			for point, call := range points {
				if err := call(); err != nil {
					t.Fatalf("%s before: %v (%v)", point, err, errors.Unwrap(err))
				}
			}
			state.bring(t, w, guardAt(t, server.URL()))
			for point, call := range points {
				if err := call(); (err != nil) != state.refuses || err != nil && point != "readiness" && reason(err) != delegation.DependencyDown {
					t.Errorf("%s: %v", point, err)
				}
			}
		})
	}
}

// TestRedisDownIsNoFork: what was compared stays compared, and what never was is not served.
func TestRedisDownIsNoFork(t *testing.T) {
	server := testservers.NewRedis(t)
	f := newFleet(t, exchangetest.Config{RedisURL: server.URL()}, 1)
	w := f.at(0)
	points := entryPoints(t, f, w)
	fresh := w.Peer(t)
	server.Stop()
	for _, point := range []string{"echo", "snapshot", "status list", "readiness"} {
		if err := points[point](); err != nil {
			t.Errorf("%s with Redis down: %v (%v)", point, err, errors.Unwrap(err))
		}
	}
	if _, err := fresh.Engine.StatusList(t.Context(), f.n.Name, 0); reason(err) != delegation.DependencyDown {
		t.Errorf("an instance that never compared its ledger: %v", err)
	}
}

// TestHopsAheadOfTheLedgerAreNotActive: a token with a number that this ledger never gave.
func TestHopsAheadOfTheLedgerAreNotActive(t *testing.T) {
	f := newFleet(t, exchangetest.Config{}, 1)
	w := f.at(0)
	grant := w.Chain(t, f.n, exchangetest.Planner)[0]
	for above, want := range map[uint64]bool{0: true, 50: false} {
		claims := grant.Claims
		hops := append([]delegation.Hop(nil), claims.Delegation.Hops...)
		hops[0].Seq += above
		claims.Delegation.Hops = hops
		payload, err := claims.MarshalJSON()
		must(t, err)
		token, err := f.n.Keys.Sign(payload)
		must(t, err)
		active, err := f.introspect(t, w, token)
		must(t, err)
		if active != want {
			t.Errorf("%d above: active %v", above, active)
		}

		for _, validate := range []bool{true, false} {
			call := f.n.Call(t, token, exchangetest.Planner, exchangetest.Researcher)
			call.ValidateOnly = validate
			if _, err := w.One(t.Context(), call); (err == nil) != want || err != nil && err.Reason != delegation.TokenRevoked {
				t.Errorf("%d above, validate only %v: %v", above, validate, err)
			}
		}
	}
}
