package exchange_test

import (
	"context"
	"database/sql"
	"strings"
	"testing"
	"time"

	"deputy.example/deputy/client/delegation"
	"deputy.example/deputy/server/internal/exchange"
	"deputy.example/deputy/server/internal/exchange/exchangetest"
	"deputy.example/deputy/server/internal/ledger"
	"deputy.example/deputy/server/internal/ledger/ledgertest"
)

const (
	responder = delegation.Principal("agent:responder")
	operator  = delegation.Principal("agent:operator")
	stranger  = delegation.Principal("agent:stranger")
)

// hospital is a world with principals that may revoke, and a chain planner → researcher → writer.
func hospital(t testing.TB) (*exchangetest.World, *exchangetest.Tenant, []*exchange.Grant) {
	t.Helper()
	return hospitalOf(t, exchangetest.Config{})
}

// hospitalOf is a hospital with another configuration.
func hospitalOf(t testing.TB, c exchangetest.Config) (*exchangetest.World, *exchangetest.Tenant, []*exchange.Grant) {
	t.Helper()
	c.Agents = []delegation.Principal{responder, operator, stranger}
	w := exchangetest.New(t, c)
	n := w.Tenant()
	n.FGA.Allow(string(responder), "responder", "system:deputy")
	n.FGA.Allow(string(operator), "operator", string(researcher))
	return w, n, w.Chain(t, n, planner, researcher, writer)
}

func take(w *exchangetest.World, t *testing.T, by delegation.Principal, target delegation.Target) (exchange.Revoked, *delegation.Error) {
	t.Helper()
	got, err := w.Engine.Revoke(t.Context(), exchange.RevokeCall{
		Tenant: "default", Credentials: w.Tenant().Credentials(t, by), Target: target, Reason: "drill",
	})
	return got, delegation.AsError(err)
}

func active(t *testing.T, w *exchangetest.World, g *exchange.Grant) bool {
	t.Helper()
	got, err := w.Engine.Introspect(t.Context(), exchange.Inquiry{Tenant: "default", Credentials: w.Tenant().Credentials(t, planner), Token: g.AccessToken})
	if err != nil {
		t.Fatal(err)
	}
	return got.Claims != nil
}

// TestWhoMayRevoke: which caller may revoke what, for each kind of target. The answer to any other
// caller is that there is nothing.
func TestWhoMayRevoke(t *testing.T) {
	w, n, chain := hospital(t)
	leaf := chain[2].Claims
	targets := map[string]delegation.Target{
		"token":         {Kind: delegation.BanToken, ID: leaf.ID},
		"unseen token":  {Kind: delegation.BanToken, ID: "01ARZ3NDEKTSV4RRFFQ69G5FAV"},
		"chain":         {Kind: delegation.BanChain, ID: leaf.Txn},
		"root":          {Kind: delegation.BanRoot, ID: leaf.Delegation.Root},
		"key":           {Kind: delegation.BanKey, ID: n.Clients[writer].KeyID},
		"suspend":       {Kind: delegation.BanSuspend, ID: string(researcher)},
		"resume":        {Kind: delegation.Resume, ID: string(researcher)},
		"subject":       {Kind: delegation.CutSubject, ID: string(alice)},
		"agent":         {Kind: delegation.CutAgent, ID: string(researcher)},
		"agent subject": {Kind: delegation.CutAgentSubject, ID: string(researcher), Subject: alice},
		"tenant":        {Kind: delegation.CutTenant},
	}
	may := map[delegation.Principal]map[string]bool{
		planner:    {"token": true, "chain": true},
		researcher: {"token": true, "agent": true},
		writer:     {"token": true, "key": true},
		operator:   {"suspend": true, "resume": true, "agent": true, "agent subject": true},
		stranger:   {},
	}
	for who, allowed := range may {
		for name, target := range targets {
			call := exchange.RevokeCall{Tenant: "default", Credentials: n.Credentials(t, who), Target: target, DryRun: true}
			_, err := w.Engine.Revoke(t.Context(), call)
			refusal := delegation.AsError(err)
			if allowed[name] != (refusal == nil) || refusal != nil && refusal.Reason != delegation.NotFound {
				t.Errorf("%s and %s: %v", who, name, refusal)
			}
		}
	}
	for name, target := range targets {
		call := exchange.RevokeCall{Tenant: "default", Credentials: n.Credentials(t, responder), Target: target, DryRun: true}
		if _, err := w.Engine.Revoke(t.Context(), call); err != nil {
			t.Errorf("the responder and %s: %v", name, err)
		}
	}
	for _, g := range chain {
		if !active(t, w, g) {
			t.Error("a dry run revoked something")
		}
	}
}

// TestNothingToRevokeIsOneAnswer: a caller cannot distinguish a token that it may not revoke from a
// text that is no token.
func TestNothingToRevokeIsOneAnswer(t *testing.T) {
	w, n, chain := hospital(t)
	answer := func(change func(*exchange.RevokeCall)) string {
		call := exchange.RevokeCall{Tenant: n.Name, Credentials: n.Credentials(t, stranger)}
		change(&call)
		_, err := w.Engine.Revoke(t.Context(), call)
		if reason(err) != delegation.NotFound {
			t.Fatal(err)
		}
		refusal := delegation.AsError(err)
		return refusal.Field + ": " + refusal.Description
	}
	for name, texts := range map[string][2]string{"token": {chain[2].AccessToken, "none"}, "root_token": {n.Root(t, nil), "none"}} {
		var got [2]string
		for i, text := range texts {
			got[i] = answer(func(c *exchange.RevokeCall) {
				if name == "token" {
					c.Token = text
				} else {
					c.RootToken = text
				}
			})
		}
		if got[0] != got[1] {
			t.Errorf("%s: %q for one of another caller, %q for none", name, got[0], got[1])
		}
	}
}

// TestWhatARevocationKills: each kind of target hits what it names, everything below that, and
// nothing else, in tokens that exist and at the next exchange.
func TestWhatARevocationKills(t *testing.T) {
	for name, c := range map[string]struct {
		target func(*exchangetest.Tenant, []*exchange.Grant) delegation.Target
		dead   [3]bool // planner's, researcher's and writer's token
		fresh  bool    // whether a new login makes a whole new chain
	}{
		"the middle token": {func(_ *exchangetest.Tenant, g []*exchange.Grant) delegation.Target {
			return delegation.Target{Kind: delegation.BanToken, ID: g[1].Claims.ID}
		}, [3]bool{false, true, true}, true},
		"the chain": {func(_ *exchangetest.Tenant, g []*exchange.Grant) delegation.Target {
			return delegation.Target{Kind: delegation.BanChain, ID: g[0].Claims.Txn}
		}, [3]bool{true, true, true}, true},
		"the root": {func(_ *exchangetest.Tenant, g []*exchange.Grant) delegation.Target {
			return delegation.Target{Kind: delegation.BanRoot, ID: g[0].Claims.Delegation.Root}
		}, [3]bool{true, true, true}, true},
		"the agent, suspended": {func(*exchangetest.Tenant, []*exchange.Grant) delegation.Target {
			return delegation.Target{Kind: delegation.BanSuspend, ID: string(researcher)}
		}, [3]bool{false, true, true}, false},
		"the agent, cut off": {func(*exchangetest.Tenant, []*exchange.Grant) delegation.Target {
			return delegation.Target{Kind: delegation.CutAgent, ID: string(writer)}
		}, [3]bool{false, false, true}, true},
		"the agent for alice": {func(*exchangetest.Tenant, []*exchange.Grant) delegation.Target {
			return delegation.Target{Kind: delegation.CutAgentSubject, ID: string(researcher), Subject: alice}
		}, [3]bool{false, true, true}, true},
		"the agent for bob": {func(*exchangetest.Tenant, []*exchange.Grant) delegation.Target {
			return delegation.Target{Kind: delegation.CutAgentSubject, ID: string(researcher), Subject: "user:bob"}
		}, [3]bool{false, false, false}, true},
		"the subject": {func(*exchangetest.Tenant, []*exchange.Grant) delegation.Target {
			return delegation.Target{Kind: delegation.CutSubject, ID: string(alice)}
		}, [3]bool{true, true, true}, true},
		"the tenant": {func(*exchangetest.Tenant, []*exchange.Grant) delegation.Target {
			return delegation.Target{Kind: delegation.CutTenant}
		}, [3]bool{true, true, true}, true},
	} {
		t.Run(name, func(t *testing.T) {
			w, n, chain := hospitalOf(t, exchangetest.Config{Patience: time.Second}) // for a busy machine
			target := c.target(n, chain)
			dry, err := w.Engine.Revoke(t.Context(), exchange.RevokeCall{Tenant: "default", Credentials: n.Credentials(t, responder), Target: target, DryRun: true})
			if err != nil {
				t.Fatal(err)
			}
			done, refusal := take(w, t, responder, target)
			if refusal != nil {
				t.Fatal(refusal, refusal.Unwrap())
			}
			killed := 0
			holders := []delegation.Principal{planner, researcher, writer}
			for i, g := range chain {
				if active(t, w, g) == c.dead[i] {
					t.Errorf("token %d: active %t", i, !c.dead[i])
				}
				_, refusal := w.One(t.Context(), n.Call(t, g.AccessToken, holders[i], ""))
				if c.dead[i] != (refusal != nil) {
					t.Errorf("token %d at the exchange: %v", i, refusal)
				}
				if c.dead[i] {
					killed++
				}
			}
			if !done.Counted || !dry.Counted || done.Tokens != killed || dry.Tokens != killed || len(dry.Grants) != killed {
				t.Errorf("said %d, dry run %d with %d grants; killed %d", done.Tokens, dry.Tokens, len(dry.Grants), killed)
			}
			w.Clock().Advance(time.Hour) // past the skew of all clocks: clearly a later login
			again := n.Call(t, n.Root(t, nil), planner, "")
			first, refusal := w.One(t.Context(), again)
			if refusal != nil {
				t.Fatalf("a fresh login: %v", refusal)
			}
			_, refusal = w.One(t.Context(), n.Call(t, first.AccessToken, planner, researcher))
			if c.fresh != (refusal == nil) {
				t.Errorf("a fresh chain: %v", refusal)
			}
		})
	}
}

func TestOldRootCannotMintAfterItsSubjectWasCutOff(t *testing.T) {
	w, n, _ := hospital(t)
	old := n.Root(t, nil)
	undated := n.Root(t, map[string]any{"iat": nil})
	if _, refusal := take(w, t, responder, delegation.Target{Kind: delegation.CutSubject, ID: string(alice)}); refusal != nil {
		t.Fatal(refusal)
	}
	for name, root := range map[string]string{"old": old, "undated": undated} {
		if _, refusal := w.One(t.Context(), n.Call(t, root, planner, "")); refusal == nil {
			t.Errorf("the %s root mints again", name)
		}
	}
}

func TestResumeRevivesNothing(t *testing.T) {
	w, n, chain := hospital(t)
	suspend, resume := delegation.Target{Kind: delegation.BanSuspend, ID: string(researcher)}, delegation.Target{Kind: delegation.Resume, ID: string(researcher)}
	if _, refusal := take(w, t, operator, suspend); refusal != nil {
		t.Fatal(refusal)
	}
	if _, refusal := w.One(t.Context(), n.Call(t, chain[0].AccessToken, planner, researcher)); refusal == nil || refusal.Reason != delegation.ActorTokenInvalid {
		t.Errorf("a grant to a suspended agent: %v", refusal)
	}
	if _, refusal := take(w, t, operator, resume); refusal != nil {
		t.Fatal(refusal)
	}
	if active(t, w, chain[1]) || active(t, w, chain[2]) || !active(t, w, chain[0]) {
		t.Error("the resumed agent's old tokens live, or its parent's died")
	}
	if _, refusal := w.One(t.Context(), n.Call(t, chain[0].AccessToken, planner, researcher)); refusal != nil {
		t.Errorf("the resumed agent gets nothing new: %v", refusal)
	}
}

func TestRevokedByItsBytes(t *testing.T) {
	w, n, chain := hospital(t)
	call := func(change func(*exchange.RevokeCall)) *delegation.Error {
		c := exchange.RevokeCall{Tenant: "default", Credentials: n.Credentials(t, planner)}
		change(&c)
		_, err := w.Engine.Revoke(t.Context(), c)
		return delegation.AsError(err)
	}
	if refusal := call(func(c *exchange.RevokeCall) { c.Token = "x.y.z" }); refusal == nil || refusal.Reason != delegation.NotFound {
		t.Errorf("no token at all: %v", refusal)
	}
	if refusal := call(func(c *exchange.RevokeCall) { c.Token, c.Target.Kind = chain[0].AccessToken, delegation.CutTenant }); refusal == nil || refusal.Reason != delegation.ParameterInvalid {
		t.Errorf("two targets: %v", refusal)
	}
	if refusal := call(func(*exchange.RevokeCall) {}); refusal == nil || refusal.Reason != delegation.ParameterInvalid {
		t.Errorf("no target: %v", refusal)
	}
	root := n.Root(t, nil)
	if refusal := call(func(c *exchange.RevokeCall) { c.RootToken, c.Credentials = root, n.Credentials(t, responder) }); refusal != nil {
		t.Error(refusal)
	}
	if _, refusal := w.One(t.Context(), n.Call(t, root, planner, "")); refusal == nil || refusal.Reason != delegation.TokenRevoked {
		t.Errorf("a revoked root token mints: %v", refusal)
	}
	w.Clock().Advance(20 * time.Minute)
	if refusal := call(func(c *exchange.RevokeCall) { c.Token = chain[0].AccessToken }); refusal != nil {
		t.Errorf("an expired token: %v", refusal)
	}
	entry, err := w.Ledger.Entries(t.Context(), "default", 0, 100)
	if err != nil {
		t.Fatal(err)
	}
	kinds := map[ledger.Kind]int{}
	for _, e := range entry {
		kinds[e.Kind]++
	}
	if kinds[ledger.KindRevocation] != 2 || kinds[ledger.KindRefusal] != 4 {
		t.Errorf("recorded: %v", kinds)
	}
}

// TestUnseenIsDeadOnArrival: a revoked id that was never seen is refused when it comes. Here the
// ban comes before the grant.
func TestUnseenIsDeadOnArrival(t *testing.T) {
	w, n, chain := hospital(t)
	if _, refusal := take(w, t, responder, delegation.Target{Kind: delegation.BanKey, ID: n.Clients[writer].KeyID}); refusal != nil {
		t.Fatal(refusal)
	}
	call := n.Call(t, chain[1].AccessToken, researcher, "")
	call.Children[0].RequestedActor, call.Children[0].ActorConfirmation = string(writer), n.Clients[writer].KeyID
	if _, refusal := w.One(t.Context(), call); refusal == nil {
		t.Error("bound to a banned key")
	}
	if _, refusal := w.One(t.Context(), n.Call(t, chain[2].AccessToken, writer, "")); refusal == nil {
		t.Error("a caller with a banned key")
	}
}

// TestFollow: followers bring the other instance and Redis up to date without a notification.
func TestFollow(t *testing.T) {
	w, _, chain := hospital(t)
	peer := w.Peer(t)
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error, 2)
	for _, e := range []*exchange.Engine{w.Engine, peer.Engine} {
		go func() { done <- e.Follow(ctx) }()
	}
	watch, err := peer.Engine.Watch(t.Context(), exchange.Inquiry{Tenant: "default", Credentials: w.Tenant().Credentials(t, planner)})
	if err != nil {
		t.Fatal(err)
	}
	_, last, _, err := watch.Snapshot(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	_, _, changed := watch.Events(last)
	if _, refusal := take(w, t, responder, delegation.Target{Kind: delegation.BanToken, ID: chain[0].Claims.ID}); refusal != nil {
		t.Fatal(refusal)
	}
	select {
	case <-changed:
	case <-time.After(10 * time.Second):
		t.Fatal("the other instance never heard of it")
	}
	events, complete, _ := watch.Events(last)
	if !complete || len(events) != 1 || events[0].Target.ID != chain[0].Claims.ID || events[0].Prev != last {
		t.Errorf("events = %+v, %t", events, complete)
	}
	cancel()
	for range 2 {
		if err := <-done; err != nil {
			t.Error(err)
		}
	}
}

// TestWatchOfTheTakenBack: a stream of revocations ends when its verifier is suspended, or when a
// key that it used is banned: of its assertion, of its proof, or its certificate.
func TestWatchOfTheTakenBack(t *testing.T) {
	shown := holders(t)["key and certificate"]
	for name, target := range map[string]func(*exchangetest.Tenant) delegation.Target{
		"its suspension": func(*exchangetest.Tenant) delegation.Target {
			return delegation.Target{Kind: delegation.BanSuspend, ID: string(writer)}
		},
		"its key": func(n *exchangetest.Tenant) delegation.Target {
			return delegation.Target{Kind: delegation.BanKey, ID: n.Clients[writer].KeyID}
		},
		"the key it proved": func(*exchangetest.Tenant) delegation.Target {
			return delegation.Target{Kind: delegation.BanKey, ID: shown.key.Binding().JKT}
		},
		"its certificate": func(*exchangetest.Tenant) delegation.Target {
			return delegation.Target{Kind: delegation.BanKey, ID: shown.cert.Binding().X5T}
		},
		"another's suspension": func(*exchangetest.Tenant) delegation.Target {
			return delegation.Target{Kind: delegation.BanSuspend, ID: string(researcher)}
		},
	} {
		w, n, _ := hospital(t)
		call := exchange.Call{Credentials: n.Credentials(t, writer)}
		shown.onto(t, w, &call)
		watch, err := w.Engine.Watch(t.Context(), exchange.Inquiry{Tenant: "default", Credentials: call.Credentials})
		if err != nil || watch.Standing() != nil {
			t.Fatal(name, err)
		}
		if _, refusal := take(w, t, responder, target(n)); refusal != nil {
			t.Fatal(name, refusal)
		}
		if ended, other := watch.Standing() != nil, name == "another's suspension"; ended == other {
			t.Errorf("%s: ended %t", name, ended)
		}
	}
}

// TestRevokeWithoutCount: a tenant with more live grants than can be counted in time can still
// revoke. A dry run, which is only the count, fails.
func TestRevokeWithoutCount(t *testing.T) {
	dsn := ledgertest.Postgres(t)
	w, _, chain := hospitalOf(t, exchangetest.Config{Deadline: 3 * time.Second, DSN: dsn})
	db, err := sql.Open("pgx", dsn)
	if err != nil {
		t.Fatal(err)
	}
	defer db.Close()
	var hold *sql.Tx
	// A revocation by agent reads the claims only to count, so only the count waits for the lock.
	lock := func() {
		t.Helper()
		if hold, err = db.Begin(); err != nil {
			t.Fatal(err)
		}
		if _, err := hold.Exec("LOCK TABLE claims IN ACCESS EXCLUSIVE MODE"); err != nil {
			t.Fatal(err)
		}
	}
	lock()
	got, refusal := take(w, t, operator, delegation.Target{Kind: delegation.CutAgent, ID: string(researcher)})
	if refusal != nil || got.Revocation == nil || got.Tokens != 0 || got.Chains != 0 || got.Counted {
		t.Fatalf("%+v %v", got, refusal)
	}
	if !strings.Contains(w.Log.String(), "revocation not counted in time") {
		t.Error("the answer waited for its count until the deadline of the call")
	}
	if err := hold.Rollback(); err != nil {
		t.Fatal(err)
	}
	if active(t, w, chain[1]) || active(t, w, chain[2]) || !active(t, w, chain[0]) {
		t.Error("the revocation does not hold")
	}
	lock()
	_, err = w.Engine.Revoke(t.Context(), exchange.RevokeCall{
		Tenant: "default", Credentials: w.Tenant().Credentials(t, operator), DryRun: true,
		Target: delegation.Target{Kind: delegation.CutAgent, ID: string(researcher)},
	})
	if e := delegation.AsError(err); e == nil || e.Reason != delegation.DependencyDown {
		t.Errorf("the dry run: %v", err)
	}
	if err := hold.Rollback(); err != nil {
		t.Error(err)
	}
}

// TestAReasonIsWords: the reason of a revocation is recorded, so it must hold no token.
func TestAReasonIsWords(t *testing.T) {
	w := exchangetest.New(t, exchangetest.Config{})
	n := w.Tenant()
	token := w.Chain(t, n, planner)[0].AccessToken
	for reason, refused := range map[string]bool{"drill": false, "leaked: " + token: true, strings.Repeat("x", 1001): true} {
		_, err := w.Engine.Revoke(t.Context(), exchange.RevokeCall{
			Tenant: "default", Credentials: n.Credentials(t, planner), Token: token, Reason: reason,
		})
		if e := delegation.AsError(err); err != nil != refused || refused && (e.Reason != delegation.ParameterInvalid || e.Field != "reason" || strings.Contains(e.Error(), token)) {
			t.Errorf("%.20q: %v", reason, err)
		}
	}
}
