package exchange_test

import (
	"context"
	"errors"
	"net/http"
	"strings"
	"sync"
	"testing"
	"time"

	"go.uber.org/goleak"

	"deputy.example/deputy/client/delegation"
	"deputy.example/deputy/server/internal/exchange"
	"deputy.example/deputy/server/internal/exchange/exchangetest"
	"deputy.example/deputy/server/internal/guard"
	"deputy.example/deputy/server/internal/ledger"
	"deputy.example/deputy/server/internal/testservers"
)

const (
	alice      = exchangetest.Alice
	planner    = exchangetest.Planner
	researcher = exchangetest.Researcher
	writer     = exchangetest.Writer
	calendar   = exchangetest.Calendar
	mail       = exchangetest.Mail
)

func TestMain(m *testing.M) {
	goleak.VerifyTestMain(testservers.Main(m))
}

func TestAChainFromRootToLeaf(t *testing.T) {
	w := exchangetest.New(t, exchangetest.Config{})
	grants := w.Chain(t, w.Tenant(), planner, researcher, writer)
	leaf := grants[2].Claims
	if got := leaf.Act; len(got) != 3 || got[0] != planner || got[1] != researcher || got[2] != writer {
		t.Errorf("act = %v", got)
	}
	if leaf.Subject != alice || leaf.ClientID != writer || leaf.Scope.String() != "calendar.read" || leaf.Audience[0] != calendar {
		t.Errorf("claims = %+v", leaf)
	}
	if leaf.Delegation.DepthLeft != 5 || len(leaf.Delegation.Hops) != 3 {
		t.Errorf("delegation = %+v", leaf.Delegation)
	}
	for i, g := range grants {
		if g.Claims.Txn != leaf.Txn || leaf.Delegation.Hops[i].ID != g.Claims.ID || leaf.Delegation.Hops[i].Seq != g.Entry {
			t.Errorf("hop %d is not grant %d: %+v, %+v", i, i, leaf.Delegation.Hops[i], g.Claims)
		}
		signed, err := w.Tenant().Trust.Own(g.AccessToken)
		if err != nil || signed.ID != g.Claims.ID {
			t.Errorf("grant %d does not verify: %v", i, err)
		}
	}
	entries, err := w.Ledger.Chain(t.Context(), "default", leaf.ID)
	if err != nil || len(entries) != 3 {
		t.Fatalf("the ledger knows %d hops, %v", len(entries), err)
	}
}

// TestCallerRules is the table of callers and requests. parent is made by hops from a root token.
func TestCallerRules(t *testing.T) {
	type hops []delegation.Principal
	for _, c := range []struct {
		name   string
		parent hops
		change func(*testing.T, *exchangetest.Tenant, *exchange.Call)
		caller delegation.Principal
		actor  delegation.Principal
		want   delegation.Reason // "" for a grant
		act    hops
	}{
		{name: "agent steps in with a root token", caller: planner, act: hops{planner}},
		{name: "agent steps in naming itself by nothing else", caller: planner, actor: planner, act: hops{planner}},
		{name: "parent hands down", parent: hops{planner}, caller: planner, actor: researcher, act: hops{planner, researcher}},
		{name: "self-narrowing keeps the chain", parent: hops{planner}, caller: planner, act: hops{planner}},
		{name: "self-narrowing deep down", parent: hops{planner, researcher}, caller: researcher, act: hops{planner, researcher}},
		{name: "stranger with a derived token", parent: hops{planner}, caller: researcher, want: delegation.CallerNotActor},
		{name: "ancestor with its child's token", parent: hops{planner, researcher}, caller: planner, want: delegation.CallerNotActor},
		{name: "ancestor hands its child's token to another", parent: hops{planner, researcher}, caller: planner, actor: writer, want: delegation.CallerNotActor},
		{name: "root token handed to another", caller: planner, actor: researcher, want: delegation.CallerNotActor},
		{name: "back to an ancestor", parent: hops{planner, researcher}, caller: researcher, actor: planner, want: delegation.ActorInChain},
		{name: "root whose may_act names the caller", caller: planner, act: hops{planner},
			change: func(t *testing.T, n *exchangetest.Tenant, c *exchange.Call) {
				c.SubjectToken = n.Root(t, map[string]any{"may_act": map[string]any{"sub": planner}})
			}},
		{name: "root whose may_act names another", caller: planner, want: delegation.ActorNotAllowed,
			change: func(t *testing.T, n *exchangetest.Tenant, c *exchange.Call) {
				c.SubjectToken = n.Root(t, map[string]any{"may_act": map[string]any{"sub": researcher}})
			}},
		{name: "no credential at all", caller: planner, want: delegation.ClientUnauthenticated,
			change: func(t *testing.T, n *exchangetest.Tenant, c *exchange.Call) { c.Credentials = exchange.Credentials{} }},
		{name: "an actor-audience token authenticates nobody", caller: planner, want: delegation.ClientUnauthenticated,
			change: func(t *testing.T, n *exchangetest.Tenant, c *exchange.Call) {
				c.Tenant, c.Credentials = "default", exchange.Credentials{}
				c.Children[0].ActorToken, c.Children[0].ActorTokenType = n.ActorToken(t, planner), delegation.TokenTypeJWT
			}},
		{name: "the same token as an assertion", caller: planner, want: delegation.ClientUnauthenticated,
			change: func(t *testing.T, n *exchangetest.Tenant, c *exchange.Call) {
				c.Credentials.Assertion = n.ActorToken(t, planner)
			}},
		{name: "workload JWT of caller audience steps in", caller: planner, act: hops{"agent:wl/job"},
			change: func(t *testing.T, n *exchangetest.Tenant, c *exchange.Call) {
				c.Credentials = exchange.Credentials{}
				c.Children[0].ActorToken, c.Children[0].ActorTokenType = n.Workload(t, "job", n.Issuer), delegation.TokenTypeJWT
				n.FGA.Allow("user:alice", "delegator", "agent:wl/job")
				n.FGA.Allow("agent:wl/job", "holder", "scope:calendar.read")
				n.FGA.Allow("agent:wl/job", "accessor", "resource:"+delegation.EncodeID(calendar))
			}},
		{name: "workload JWT of actor audience is handed to", parent: hops{planner}, caller: planner, act: hops{planner, "agent:wl/job"},
			change: func(t *testing.T, n *exchangetest.Tenant, c *exchange.Call) {
				c.Children[0].ActorToken, c.Children[0].ActorTokenType = n.Workload(t, "job", delegation.ActorAudience(n.Issuer)), delegation.TokenTypeJWT
				n.FGA.Allow(string(planner), "delegator", "agent:wl/job")
				n.FGA.Allow("agent:wl/job", "holder", "scope:calendar.read")
				n.FGA.Allow("agent:wl/job", "accessor", "resource:"+delegation.EncodeID(calendar))
			}},
		{name: "caller-audience actor token of somebody else", parent: hops{planner}, caller: planner, want: delegation.ActorTokenInvalid,
			change: func(t *testing.T, n *exchangetest.Tenant, c *exchange.Call) {
				c.Children[0].ActorToken, c.Children[0].ActorTokenType = n.Workload(t, "job", n.Issuer), delegation.TokenTypeJWT
			}},
		{name: "workload JWT as Bearer", caller: planner, want: delegation.EdgeNotPermitted,
			change: func(t *testing.T, n *exchangetest.Tenant, c *exchange.Call) {
				c.Credentials = exchange.Credentials{Bearer: n.Workload(t, "idle", n.Issuer)}
			}},
		{name: "assertion as Bearer", caller: planner, act: hops{planner},
			change: func(t *testing.T, n *exchangetest.Tenant, c *exchange.Call) {
				c.Credentials = exchange.Credentials{Bearer: n.Assertion(t, planner)}
			}},
		{name: "assertion and Bearer", caller: planner, want: delegation.ParameterConflict,
			change: func(t *testing.T, n *exchangetest.Tenant, c *exchange.Call) {
				c.Credentials.Bearer = n.Assertion(t, planner)
			}},
		{name: "client_id of somebody else", caller: planner, want: delegation.ClientUnauthenticated,
			change: func(t *testing.T, n *exchangetest.Tenant, c *exchange.Call) { c.Credentials.ClientID = string(writer) }},
		{name: "requested actor with a registered key", parent: hops{planner}, caller: planner, act: hops{planner, researcher},
			change: func(t *testing.T, n *exchangetest.Tenant, c *exchange.Call) {
				c.Children[0].RequestedActor, c.Children[0].ActorConfirmation = string(researcher), n.Clients[researcher].KeyID
			}},
		{name: "requested actor with a key of another", parent: hops{planner}, caller: planner, want: delegation.ActorUnconfirmed,
			change: func(t *testing.T, n *exchangetest.Tenant, c *exchange.Call) {
				c.Children[0].RequestedActor, c.Children[0].ActorConfirmation = string(researcher), n.Clients[planner].KeyID
			}},
		{name: "requested actor without a key", parent: hops{planner}, caller: planner, want: delegation.ParameterMissing,
			change: func(t *testing.T, n *exchangetest.Tenant, c *exchange.Call) {
				c.Children[0].RequestedActor = string(researcher)
			}},
		{name: "a key without an actor", parent: hops{planner}, caller: planner, want: delegation.ParameterConflict,
			change: func(t *testing.T, n *exchangetest.Tenant, c *exchange.Call) {
				c.Children[0].ActorConfirmation = n.Clients[researcher].KeyID
			}},
		{name: "requested actor beside an actor token", parent: hops{planner}, caller: planner, actor: researcher, want: delegation.ParameterConflict,
			change: func(t *testing.T, n *exchangetest.Tenant, c *exchange.Call) {
				c.Children[0].RequestedActor = string(researcher)
			}},
		{name: "actor token type without a token", caller: planner, want: delegation.ParameterConflict,
			change: func(t *testing.T, n *exchangetest.Tenant, c *exchange.Call) {
				c.Children[0].ActorTokenType = delegation.TokenTypeJWT
			}},
		{name: "actor token without a type", parent: hops{planner}, caller: planner, actor: researcher, want: delegation.ParameterMissing,
			change: func(t *testing.T, n *exchangetest.Tenant, c *exchange.Call) { c.Children[0].ActorTokenType = "" }},
		{name: "a derived token as actor token", parent: hops{planner}, caller: planner, want: delegation.ActorTokenInvalid,
			change: func(t *testing.T, n *exchangetest.Tenant, c *exchange.Call) {
				c.Children[0].ActorToken, c.Children[0].ActorTokenType = c.SubjectToken, delegation.TokenTypeJWT
			}},
	} {
		t.Run(c.name, func(t *testing.T) {
			w := exchangetest.New(t, exchangetest.Config{})
			n := w.Tenant()
			parent := n.Root(t, nil)
			if len(c.parent) > 0 {
				grants := w.Chain(t, n, c.parent...)
				parent = grants[len(grants)-1].AccessToken
			}
			call := n.Call(t, parent, c.caller, c.actor)
			if c.change != nil {
				c.change(t, n, &call)
			}
			grant, err := w.One(t.Context(), call)
			switch {
			case c.want != "" && (err == nil || err.Reason != c.want):
				t.Errorf("want %s, got %v", c.want, err)
			case c.want == "" && err != nil:
				t.Errorf("refused: %v (cause: %v)", err, err.Unwrap())
			case c.want == "" && !equal(grant.Claims.Act, delegation.Chain(c.act)):
				t.Errorf("act = %v, want %v", grant.Claims.Act, c.act)
			}
		})
	}
}

func equal(a, b delegation.Chain) bool {
	return len(a) == len(b) && strings.Join(texts(a), " ") == strings.Join(texts(b), " ")
}

func texts(c delegation.Chain) []string {
	all := make([]string, len(c))
	for i, p := range c {
		all[i] = string(p)
	}
	return all
}

// TestRefusalsAreRecorded: only refusals of authenticated callers are in the ledger.
func TestRefusalsAreRecorded(t *testing.T) {
	w := exchangetest.New(t, exchangetest.Config{})
	n := w.Tenant()
	n.FGA.Deny(string(researcher), "holder", "scope:calendar.read")
	parent := w.Chain(t, n, planner)[0].AccessToken
	seq := uint64(1)
	text := func(s string) *string { return &s }
	for reason, change := range map[delegation.Reason]func(*exchange.Call){
		delegation.SubjectTokenInvalid:   func(c *exchange.Call) { c.SubjectToken = "x.y.z" },
		delegation.TokenTypeUnsupported:  func(c *exchange.Call) { c.SubjectTokenType = delegation.TokenTypeSAML2 },
		delegation.ParameterMissing:      func(c *exchange.Call) { c.SubjectToken = "" },
		delegation.ScopeExceedsParent:    func(c *exchange.Call) { c.Children[0].Scope = text("mail.read") },
		delegation.ScopeMalformed:        func(c *exchange.Call) { c.Children[0].Scope = text("a  b") },
		delegation.AudienceExceedsParent: func(c *exchange.Call) { c.Children[0].Audience = []string{mail} },
		delegation.AudienceMissing:       func(c *exchange.Call) { c.Children[0].Audience = nil },
		delegation.TargetMalformed:       func(c *exchange.Call) { c.Children[0].Resource = []string{"relative"} },
		delegation.DetailsExceedParent:   func(c *exchange.Call) { c.Children[0].AuthorizationDetails = text(`[{"type":"t"}]`) },
		delegation.DetailsMalformed:      func(c *exchange.Call) { c.Children[0].AuthorizationDetails = text(`{}`) },
		delegation.LifetimeExceedsParent: func(c *exchange.Call) { d := 2 * time.Hour; c.Children[0].RequestedLifetime = &d },
		delegation.DepthExceedsParent:    func(c *exchange.Call) { d := uint32(8); c.Children[0].MaxDepth = &d },
		delegation.ActorTokenInvalid: func(c *exchange.Call) {
			c.Children[0].ActorToken, c.Children[0].ActorTokenType = "x.y.z", delegation.TokenTypeJWT
		},
		delegation.ScopeNotPermitted: func(c *exchange.Call) {
			c.Children[0].ActorToken, c.Children[0].ActorTokenType = n.ActorToken(t, researcher), delegation.TokenTypeJWT
		},
	} {
		call := n.Call(t, parent, planner, "")
		change(&call)
		_, err := w.One(t.Context(), call)
		if err == nil || err.Reason != reason {
			t.Errorf("want %s, got %v (cause: %v)", reason, err, errors.Unwrap(err))
			continue
		}
		seq++
		entry, missing := w.Ledger.EntryAt(t.Context(), "default", seq)
		if missing != nil {
			t.Errorf("%s: no entry %d: %v", reason, seq, missing)
			continue
		}
		if entry.Kind != ledger.KindRefusal || entry.Reason != reason || entry.Caller != planner {
			t.Errorf("%s: entry = %+v", reason, entry)
		}
	}
	call := n.Call(t, parent, planner, "")
	call.Credentials.Assertion = "nobody"
	if _, err := w.One(t.Context(), call); err == nil || err.Reason != delegation.ClientUnauthenticated {
		t.Errorf("a stranger: %v", err)
	}
	if _, err := w.Ledger.EntryAt(t.Context(), "default", seq+1); !errors.Is(err, ledger.ErrNotFound) {
		t.Errorf("the stranger is in the ledger: %v", err)
	}
}

// TestMissingRelationIsNamedOnlyForWhatTheCallerShowed: other principals are not named.
func TestMissingRelationIsNamedOnlyForWhatTheCallerShowed(t *testing.T) {
	w := exchangetest.New(t, exchangetest.Config{})
	n := w.Tenant()
	n.FGA.Deny(string(researcher), "holder", "scope:calendar.read")
	parent := w.Chain(t, n, planner)[0].AccessToken

	_, err := w.One(t.Context(), n.Call(t, parent, planner, researcher))
	if err == nil || err.Metadata["user"] != string(researcher) || err.Metadata["object"] != "scope:calendar.read" {
		t.Errorf("named by its token: %+v", err)
	}
	call := n.Call(t, parent, planner, "")
	call.Children[0].RequestedActor, call.Children[0].ActorConfirmation = string(researcher), n.Clients[researcher].KeyID
	_, err = w.One(t.Context(), call)
	if err == nil || err.Reason != delegation.ScopeNotPermitted || len(err.Metadata) != 0 || strings.Contains(err.Description, "researcher") {
		t.Errorf("named by request only: %+v", err)
	}
	entry, missing := w.Ledger.EntryAt(t.Context(), "default", 3)
	if missing != nil || !strings.Contains(entry.Detail, "agent:researcher") {
		t.Errorf("the ledger does not say what is missing: %+v, %v", entry, missing)
	}
}

func TestWithdrawnConsentCutsEverythingBelow(t *testing.T) {
	w := exchangetest.New(t, exchangetest.Config{})
	n := w.Tenant()
	grants := w.Chain(t, n, planner, researcher)
	n.FGA.Deny(string(alice), "delegator", string(planner))
	if _, err := w.One(t.Context(), n.Call(t, grants[1].AccessToken, researcher, writer)); err == nil || err.Reason != delegation.EdgeNotPermitted {
		t.Errorf("the grandchild still delegates: %v", err)
	}
	if _, err := w.One(t.Context(), n.Call(t, grants[1].AccessToken, researcher, "")); err == nil || err.Reason != delegation.EdgeNotPermitted {
		t.Errorf("the grandchild still narrows: %v", err)
	}
}

func TestIdempotentRetryReturnsTheSameGrantOnce(t *testing.T) {
	w := exchangetest.New(t, exchangetest.Config{})
	peer := w.Peer(t)
	n := w.Tenant()
	uses := uint32(1)
	once := n.Call(t, n.Root(t, nil), planner, "")
	once.Children[0].Uses = &uses
	parent, err := w.One(t.Context(), once)
	if err != nil {
		t.Fatal(err)
	}
	retry := func(w *exchangetest.World, key string, change func(*exchange.Call)) (*exchange.Grant, *delegation.Error) {
		call := n.Call(t, parent.AccessToken, planner, researcher) // new credentials each time
		call.IdempotencyKey = key
		if change != nil {
			change(&call)
		}
		return w.One(t.Context(), call)
	}
	first, err := retry(w, "k", nil)
	if err != nil {
		t.Fatal(err)
	}
	second, err := retry(peer, "k", nil)
	if err != nil {
		t.Fatalf("the other instance refuses the retry: %v (cause %v)", err, err.Unwrap())
	}
	if first.Claims.ID != second.Claims.ID || first.Entry != second.Entry {
		t.Errorf("two grants: %s and %s", first.Claims.ID, second.Claims.ID)
	}
	if _, err := retry(w, "k", func(c *exchange.Call) { c.Children[0].Scope = nil }); err == nil || err.Reason != delegation.IdempotencyConflict {
		t.Errorf("other content under the same key: %v", err)
	}
	if _, err := retry(w, "k2", nil); err == nil || err.Reason != delegation.TokenSpent {
		t.Errorf("uses 1, a second exchange: %v", err)
	}
	w.Clock().Advance(10 * time.Minute)
	if _, err := retry(w, "k", nil); err == nil {
		t.Error("a retry after expiry was answered with a grant")
	}
}

func TestAssertionReplay(t *testing.T) {
	redis := testservers.NewRedis(t)
	w := exchangetest.New(t, exchangetest.Config{RedisURL: redis.URL()})
	peer := w.Peer(t)
	n := w.Tenant()
	call := n.Call(t, n.Root(t, nil), planner, "")
	if _, err := w.One(t.Context(), call); err != nil {
		t.Fatal(err)
	}
	refused := func(w *exchangetest.World, where string) {
		t.Helper()
		if _, err := w.One(t.Context(), call); err == nil || err.Reason != delegation.AssertionReplayed {
			t.Errorf("%s: %v", where, err)
		}
		q := exchange.Inquiry{Tenant: "default", Credentials: call.Credentials, Token: "x"}
		if _, err := w.Engine.Introspect(t.Context(), q); delegation.AsError(err) == nil || delegation.AsError(err).Reason != delegation.AssertionReplayed {
			t.Errorf("%s, introspection: %v", where, err)
		}
	}
	refused(w, "same instance")
	refused(peer, "other instance")
	redis.Kill()
	redis.Start() // empty: the replay memory is gone
	refused(w.Peer(t), "after Redis lost its memory")
}

func TestValidateOnlyRecordsACheckAndIssuesNothing(t *testing.T) {
	w := exchangetest.New(t, exchangetest.Config{})
	n := w.Tenant()
	call := n.Call(t, n.Root(t, nil), planner, "")
	call.ValidateOnly = true
	grant, err := w.One(t.Context(), call)
	if err != nil || grant.AccessToken != "" || grant.Entry != 1 {
		t.Fatalf("grant = %+v, %v", grant, err)
	}
	entry, missing := w.Ledger.EntryAt(t.Context(), "default", 1)
	if missing != nil || entry.Kind != ledger.KindCheck || entry.Outcome != ledger.Granted {
		t.Errorf("entry = %+v, %v", entry, missing)
	}
	if _, err := w.One(t.Context(), call); err == nil || err.Reason != delegation.AssertionReplayed {
		t.Errorf("a check does not spend its assertion: %v", err)
	}
}

func TestBatch(t *testing.T) {
	w := exchangetest.New(t, exchangetest.Config{})
	n := w.Tenant()
	parent := w.Chain(t, n, planner)[0].AccessToken
	asked := n.FGA.Asked()
	call := n.Call(t, parent, planner, "")
	call.Batch, call.IdempotencyKey = true, "fan-out"
	good, bad := call.Children[0], call.Children[0]
	wide := "mail.read"
	bad.Scope = &wide
	call.Children = []exchange.Child{good, bad, good}
	outcomes, err := w.Engine.Exchange(t.Context(), call)
	if err != nil {
		t.Fatal(err)
	}
	if outcomes[0].Err != nil || outcomes[2].Err != nil || outcomes[1].Err == nil || outcomes[1].Err.Reason != delegation.ScopeExceedsParent {
		t.Fatalf("outcomes = %+v", outcomes)
	}
	if outcomes[0].Grant.Claims.ID == outcomes[2].Grant.Claims.ID {
		t.Error("two items are one grant")
	}
	if n.FGA.Asked() != asked+2 { // one question, one reading of changes
		t.Errorf("OpenFGA was asked %d times for one batch", n.FGA.Asked()-asked)
	}
	if _, err := w.Engine.Exchange(t.Context(), call); delegation.AsError(err) == nil || delegation.AsError(err).Reason != delegation.AssertionReplayed {
		t.Errorf("a replayed batch: %v", err)
	}
	call.Credentials = n.Credentials(t, planner)
	again, err := w.Engine.Exchange(t.Context(), call)
	if err != nil || again[0].Grant == nil || again[0].Grant.Claims.ID != outcomes[0].Grant.Claims.ID || again[2].Grant.Claims.ID != outcomes[2].Grant.Claims.ID {
		t.Errorf("a retried batch: %+v, %v", again, err)
	}
	call = n.Call(t, parent, planner, "")
	call.Batch, call.Children = true, make([]exchange.Child, 101)
	if outcomes, err := w.Engine.Exchange(t.Context(), call); err != nil || outcomes[100].Err == nil || outcomes[100].Err.Reason != delegation.ParameterInvalid {
		t.Errorf("101 children: %v", err)
	}
}

func TestTenantsAreApart(t *testing.T) {
	w := exchangetest.New(t, exchangetest.Config{Tenants: []string{"default", "acme"}})
	ours, theirs := w.Tenants["default"], w.Tenants["acme"]
	theirToken := w.Chain(t, theirs, planner)[0]
	ourToken := w.Chain(t, ours, planner)[0]

	call := ours.Call(t, theirToken.AccessToken, planner, "")
	if _, err := w.One(t.Context(), call); err == nil || err.Reason != delegation.SubjectTokenInvalid {
		t.Errorf("their token as our subject: %v", err)
	}
	call = ours.Call(t, ourToken.AccessToken, planner, "")
	call.Credentials = theirs.Credentials(t, planner)
	if _, err := w.One(t.Context(), call); err == nil || err.Reason != delegation.ClientUnauthenticated {
		t.Errorf("their caller at our door: %v", err)
	}
	call = ours.Call(t, ourToken.AccessToken, planner, "")
	call.Children[0].ActorToken, call.Children[0].ActorTokenType = theirs.ActorToken(t, researcher), delegation.TokenTypeJWT
	if _, err := w.One(t.Context(), call); err == nil || err.Reason != delegation.ActorTokenInvalid {
		t.Errorf("their actor with our token: %v", err)
	}
	ask := func(n *exchangetest.Tenant, token, jti string) (bool, *delegation.Error) {
		got, err := w.Engine.Introspect(t.Context(), exchange.Inquiry{Credentials: n.Credentials(t, planner), Token: token})
		if err != nil {
			t.Fatal(err)
		}
		_, err = w.Engine.Chain(t.Context(), exchange.Inquiry{Credentials: n.Credentials(t, planner), ID: jti})
		return got.Claims != nil, delegation.AsError(err)
	}
	if active, err := ask(theirs, theirToken.AccessToken, theirToken.Claims.ID); !active || err != nil {
		t.Errorf("their own token: active %v, chain %v", active, err)
	}
	foreignActive, foreign := ask(ours, theirToken.AccessToken, theirToken.Claims.ID)
	unknownActive, unknown := ask(ours, "x.y.z", "no-such-id")
	if foreignActive || unknownActive || foreign == nil || unknown == nil || foreign.Error() != unknown.Error() {
		t.Errorf("another tenant's can be told from nonexistent: %v, %v", foreign, unknown)
	}
}

func TestRateLimit(t *testing.T) {
	w := exchangetest.New(t, exchangetest.Config{CallerRate: guard.Limit{Rate: 1, Burst: 2}})
	n := w.Tenant()
	root := n.Root(t, nil)
	var last *delegation.Error
	for range 4 {
		_, last = w.One(t.Context(), n.Call(t, root, planner, ""))
	}
	if last == nil || last.Reason != delegation.RateLimited || last.RetryAfter <= 0 {
		t.Errorf("the fourth call: %+v", last)
	}
	if _, err := w.One(t.Context(), n.Call(t, root, researcher, "")); err != nil && err.Reason == delegation.RateLimited {
		t.Error("one caller's rate is another's")
	}
}

func TestReplaysUseUpNobodysRate(t *testing.T) {
	w := exchangetest.New(t, exchangetest.Config{CallerRate: guard.Limit{Rate: 1, Burst: 2}})
	n := w.Tenant()
	captured := n.Call(t, n.Root(t, nil), planner, "")
	w.One(t.Context(), captured)
	for range 5 {
		if _, err := w.One(t.Context(), captured); err == nil || err.Reason != delegation.AssertionReplayed {
			t.Fatalf("the same assertion again: %v", err)
		}
	}
	if _, err := w.One(t.Context(), n.Call(t, n.Root(t, nil), planner, "")); err != nil {
		t.Errorf("after five replays its owner is turned away: %v", err)
	}
}

// TestRevocationDuringPolicyNeverYieldsAGrant: a revocation that is committed while a request waits
// for OpenFGA prevents the grant, at each instance: the ledger's own check refuses.
func TestRevocationDuringPolicyNeverYieldsAGrant(t *testing.T) {
	for _, by := range []string{"this instance", "the other instance"} {
		for _, kind := range kinds {
			t.Run(by+"/"+string(kind), func(t *testing.T) {
				w := exchangetest.New(t, exchangetest.Config{})
				revoker := w
				if by == "the other instance" {
					revoker = w.Peer(t)
				}
				n := w.Tenant()
				parent := w.Chain(t, n, planner)[0]
				target := delegation.Target{Kind: kind}
				switch kind {
				case delegation.BanToken:
					target.ID = parent.Claims.ID
				case delegation.BanChain:
					target.ID = parent.Claims.Txn
				case delegation.BanRoot:
					target.ID = parent.Claims.Delegation.Root
				case delegation.BanKey: // the caller's
					target.ID = n.Clients[planner].KeyID
				case delegation.BanSuspend: // the new actor
					target.ID = string(researcher)
				case delegation.CutSubject:
					target.ID = string(alice)
				case delegation.CutAgent:
					target.ID = string(planner)
				case delegation.CutAgentSubject:
					target.ID, target.Subject = string(planner), alice
				}
				var once sync.Once
				n.FGA.Gate(func(*http.Request) error {
					once.Do(func() { revoke(t, revoker, target) })
					return nil
				})
				_, err := w.One(t.Context(), n.Call(t, parent.AccessToken, planner, researcher))
				if err == nil || err.Reason != delegation.TokenRevoked {
					t.Errorf("granted after the revocation: %v", err)
				}
				if kind == delegation.BanKey || kind == delegation.BanSuspend { // the parent is in force
					return
				}
				got, fail := w.Engine.Introspect(t.Context(), exchange.Inquiry{Credentials: n.Credentials(t, planner), Token: parent.AccessToken})
				if fail != nil || got.Claims != nil {
					t.Errorf("introspection of the revoked token: %+v, %v", got, fail)
				}
			})
		}
	}
}

func revoke(t testing.TB, w *exchangetest.World, target delegation.Target) {
	t.Helper()
	results := w.Ledger.AppendAll(context.WithoutCancel(t.Context()), "default", []*ledger.Draft{{
		Kind: ledger.KindRevocation, Caller: "user:responder", Revocation: &delegation.Revocation{Target: target},
	}}, nil)
	if results[0].Err != nil {
		t.Errorf("revoke: %v", results[0].Err)
	}
}

// TestPolicyFaultsNeverGrant: a fault is a typed answer in time, without token and entry.
func TestPolicyFaultsNeverGrant(t *testing.T) {
	w := exchangetest.New(t, exchangetest.Config{Prompt: true})
	n := w.Tenant()
	root := n.Root(t, nil)
	for name, gate := range map[string]func(*http.Request) error{
		"down":  func(*http.Request) error { return errors.New("connection refused") },
		"slow":  func(r *http.Request) error { <-r.Context().Done(); return r.Context().Err() },
		"panic": func(*http.Request) error { panic("in the transport") },
	} {
		n.FGA.Gate(gate)
		grant, err := w.One(t.Context(), n.Call(t, root, planner, ""))
		if grant != nil || err == nil || err.Reason != delegation.DependencyDown && err.Reason != delegation.Internal {
			t.Errorf("%s: %+v, %v", name, grant, err)
		}
	}
	n.FGA.Gate(nil)
	if _, err := w.One(t.Context(), n.Call(t, root, planner, "")); err != nil {
		t.Errorf("no recovery: %v", err)
	}
}

func TestNoCredentialIsLogged(t *testing.T) {
	w := exchangetest.New(t, exchangetest.Config{})
	n := w.Tenant()
	var secrets []string
	keep := func(c exchange.Call) exchange.Call {
		secrets = append(secrets, c.SubjectToken, c.Credentials.Assertion, c.Credentials.Bearer, c.Children[0].ActorToken)
		return c
	}
	grant, err := w.One(t.Context(), keep(n.Call(t, n.Root(t, nil), planner, "")))
	if err != nil {
		t.Fatal(err)
	}
	secrets = append(secrets, grant.AccessToken)
	var said []string
	for _, change := range []func(*exchange.Call){
		func(c *exchange.Call) { c.SubjectToken += "A" },
		func(c *exchange.Call) {
			c.Credentials.Assertion = c.Credentials.Assertion[:len(c.Credentials.Assertion)-2]
		},
		func(c *exchange.Call) { c.Children[0].ActorToken += "." },
		func(c *exchange.Call) { c.SubjectToken = "!" + c.SubjectToken },
	} {
		call := n.Call(t, grant.AccessToken, planner, researcher)
		change(&call)
		_, err := w.One(t.Context(), keep(call))
		said = append(said, err.Error())
	}
	said = append(said, w.Log.String())
	for _, secret := range secrets {
		for part := range strings.SplitSeq(secret, ".") {
			if len(part) > 40 && strings.Contains(strings.Join(said, "\n"), part) {
				t.Errorf("a credential shows: %.20s…", part)
			}
		}
	}
}
