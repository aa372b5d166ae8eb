package exchange_test

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	"deputy.example/deputy/client/delegation"
	"deputy.example/deputy/server/internal/exchange"
	"deputy.example/deputy/server/internal/exchange/exchangetest"
	"deputy.example/deputy/server/internal/ledger"
	"deputy.example/deputy/server/internal/policy"
	"deputy.example/deputy/server/internal/testservers"
	"deputy.example/deputy/server/internal/token"
)

// This file attacks the exchange. Each test is one attack.

func ptr[T any](v T) *T { return &v }

// newest is the tenant's last ledger entry.
func newest(t testing.TB, w *exchangetest.World) *ledger.Entry {
	t.Helper()
	all, err := w.Ledger.Entries(t.Context(), "default", 0, 10_000)
	if err != nil || len(all) == 0 {
		t.Fatalf("entries: %d, %v", len(all), err)
	}
	return all[len(all)-1]
}

// TestWhatCannotBeStoredIsRefusedAndRecorded: a value that no database could store is a refusal
// with an entry, and the other children of its batch are unaffected.
func TestWhatCannotBeStoredIsRefusedAndRecorded(t *testing.T) {
	w := exchangetest.New(t, exchangetest.Config{})
	n := w.Tenant()
	parent := w.Chain(t, n, planner)[0].AccessToken
	for name, c := range map[string]struct {
		change func(*exchange.Child)
		want   delegation.Reason
	}{
		"audience that is not UTF-8": {func(c *exchange.Child) { c.Audience = []string{"\xff"} }, delegation.TargetMalformed},
		"audience with a NUL":        {func(c *exchange.Child) { c.Audience = []string{"a\x00b"} }, delegation.TargetMalformed},
		"audience with a line break": {func(c *exchange.Child) { c.Audience = []string{"a\nb"} }, delegation.TargetMalformed},
		"resource that is not UTF-8": {func(c *exchange.Child) { c.Resource = []string{"https://a.example/\xff"} }, delegation.TargetMalformed},
		"one very long scope":        {func(c *exchange.Child) { c.Scope = ptr(strings.Repeat("s", 9000)) }, delegation.ScopeMalformed},
		"many long scopes":           {func(c *exchange.Child) { c.Scope = ptr(manyScopes(100, 100)) }, delegation.ScopeMalformed},
		"very long details": {func(c *exchange.Child) {
			c.AuthorizationDetails = ptr(`[{"type":"` + strings.Repeat("t", 9000) + `"}]`)
		}, delegation.DetailsMalformed},
		"details that grow when they are made canonical": {func(c *exchange.Child) {
			c.AuthorizationDetails = ptr(`[{"type":"t","n":[` + strings.Repeat("1e20,", 1500) + `1]}]`)
		}, delegation.DetailsMalformed},
	} {
		t.Run(name, func(t *testing.T) {
			call := n.Call(t, parent, planner, "")
			bad := call.Children[0]
			c.change(&bad)
			call.Batch, call.Children = true, []exchange.Child{call.Children[0], bad}
			outcomes, err := w.Engine.Exchange(t.Context(), call)
			if err != nil || outcomes[0].Err != nil || outcomes[1].Err == nil || outcomes[1].Err.Reason != c.want {
				t.Fatalf("want a grant and %s, got %+v, %v", c.want, outcomes, err)
			}
			if e := newest(t, w); e.Kind != ledger.KindRefusal || e.Reason != c.want {
				t.Errorf("the refusal is not in the ledger: %+v", e)
			}
		})
	}
}

func manyScopes(count, length int) string {
	all := make([]string, count)
	for i := range all {
		all[i] = fmt.Sprintf("%0*d", length, i)
	}
	return strings.Join(all, " ")
}

// TestBannedKeyAuthenticatesNobody: a ban stops the thief of a client's key.
func TestBannedKeyAuthenticatesNobody(t *testing.T) {
	w := exchangetest.New(t, exchangetest.Config{})
	n := w.Tenant()
	grant := w.Chain(t, n, planner)[0]
	revoke(t, w, delegation.Target{Kind: delegation.BanKey, ID: n.Clients[planner].KeyID})
	if _, err := w.One(t.Context(), n.Call(t, n.Root(t, nil), planner, "")); err == nil || err.Reason != delegation.ClientUnauthenticated {
		t.Errorf("exchange with a banned key: %v", err)
	}
	if e := newest(t, w); e.Kind != ledger.KindRefusal || e.Reason != delegation.TokenRevoked {
		t.Errorf("entry = %+v", e)
	}
	_, err := w.Engine.Chain(t.Context(), exchange.Inquiry{Tenant: "default", Credentials: n.Credentials(t, planner), ID: grant.Claims.ID})
	if e := delegation.AsError(err); e == nil || e.Reason != delegation.ClientUnauthenticated {
		t.Errorf("chain with a banned key: %v", err)
	}
	if _, err := w.One(t.Context(), n.Call(t, n.Root(t, nil), researcher, "")); err != nil {
		t.Errorf("another key is hit too: %v", err)
	}
}

func TestSuspendedAgentLearnsNothing(t *testing.T) {
	w := exchangetest.New(t, exchangetest.Config{})
	n := w.Tenant()
	grant := w.Chain(t, n, planner)[0]
	revoke(t, w, delegation.Target{Kind: delegation.BanSuspend, ID: string(researcher)})
	q := exchange.Inquiry{Tenant: "default", Credentials: n.Credentials(t, researcher), Token: grant.AccessToken}
	if got, err := w.Engine.Introspect(t.Context(), q); delegation.AsError(err) == nil || delegation.AsError(err).Reason != delegation.ClientUnauthenticated || got.Claims != nil {
		t.Errorf("introspection by a suspended agent: %+v, %v", got, err)
	}
}

// TestChildThatNoVerifierWouldRead: a token that is too long is refused before it is recorded.
func TestChildThatNoVerifierWouldRead(t *testing.T) {
	w := exchangetest.New(t, exchangetest.Config{})
	n := w.Tenant()
	scope := manyScopes(23, 249)
	for s := range strings.SplitSeq(scope, " ") {
		n.FGA.Allow(string(alice), "holder", "scope:"+s)
		n.FGA.Allow(string(planner), "holder", "scope:"+s)
	}
	root := n.Root(t, map[string]any{"scope": scope, "targets": calendar})
	call := n.Call(t, root, planner, "")
	call.Children[0].Scope = &scope
	if _, err := w.One(t.Context(), call); err == nil || err.Reason != delegation.RequestTooLarge {
		t.Fatalf("a child of more than %d bytes: %v", delegation.MaxTokenBytes, err)
	}
	if e := newest(t, w); e.Kind != ledger.KindRefusal || e.Seq != 1 {
		t.Errorf("entry = %+v", e)
	}
	// One scope less each time: a granted token can always be parsed.
	for scopes := strings.Split(scope, " "); len(scopes) > 18; scopes = scopes[1:] {
		call := n.Call(t, root, planner, "")
		call.Children[0].Scope = ptr(strings.Join(scopes, " "))
		grant, err := w.One(t.Context(), call)
		if err == nil {
			if _, err := delegation.Parse(grant.AccessToken); err != nil {
				t.Errorf("%d scopes: %v", len(scopes), err)
			}
			return
		}
		if err.Reason != delegation.RequestTooLarge {
			t.Errorf("%d scopes: %v", len(scopes), err)
		}
	}
	t.Error("nothing was short enough")
}

// TestImportedChainAtTheCeiling: a longest foreign chain cannot grow, and leaves no grant.
func TestImportedChainAtTheCeiling(t *testing.T) {
	w := exchangetest.New(t, exchangetest.Config{ImportAct: &token.Mapping{Type: "agent", Prefix: "far/"}})
	n := w.Tenant()
	for length, want := range map[int]delegation.Reason{delegation.MaxChainDepth - 1: "", delegation.MaxChainDepth: delegation.DepthExhausted} {
		var act map[string]any
		from := alice
		for i := range length {
			inner := act
			act = map[string]any{"sub": fmt.Sprint(i)}
			if inner != nil {
				act["act"] = inner
			}
			to := delegation.Principal(fmt.Sprint("agent:far/", i))
			n.FGA.Allow(string(from), "delegator", string(to))
			from = to
		}
		n.FGA.Allow(string(from), "delegator", string(planner))
		call := n.Call(t, n.Root(t, map[string]any{"act": act, "may_act": map[string]any{"sub": planner}}), planner, "")
		grant, err := w.One(t.Context(), call)
		if want == "" && (err != nil || len(grant.Claims.Act) != length+1) || want != "" && (err == nil || err.Reason != want) {
			t.Errorf("%d imported actors: want %q, got %v", length, want, err)
		}
		if e := newest(t, w); want != "" && e.Kind != ledger.KindRefusal {
			t.Errorf("%d imported actors: entry = %+v", length, e)
		}
	}
}

// TestCutOffReachesImportedActors: a cut-off of an agent also hits tokens of imported chains.
func TestCutOffReachesImportedActors(t *testing.T) {
	w := exchangetest.New(t, exchangetest.Config{ImportAct: &token.Mapping{Type: "agent", Prefix: "far/"}})
	n := w.Tenant()
	n.FGA.Allow(string(alice), "delegator", "agent:far/x")
	n.FGA.Allow("agent:far/x", "delegator", string(planner))
	root := n.Root(t, map[string]any{"act": map[string]any{"sub": "x"}, "may_act": map[string]any{"sub": planner}})
	grant, err := w.One(t.Context(), n.Call(t, root, planner, ""))
	if err != nil {
		t.Fatal(err)
	}
	revoke(t, w, delegation.Target{Kind: delegation.CutAgent, ID: "agent:far/x"})
	if _, err := w.One(t.Context(), n.Call(t, grant.AccessToken, planner, "")); err == nil || err.Reason != delegation.TokenRevoked {
		t.Errorf("derived before the cut-off: %v", err)
	}
	if _, err := w.One(t.Context(), n.Call(t, root, planner, "")); err == nil || err.Reason != delegation.TokenRevoked {
		t.Errorf("the root token of before the cut-off: %v", err)
	}
	w.Clock().Advance(2 * time.Minute)
	root = n.Root(t, map[string]any{"act": map[string]any{"sub": "x"}, "may_act": map[string]any{"sub": planner}})
	if _, err := w.One(t.Context(), n.Call(t, root, planner, "")); err != nil {
		t.Errorf("a root token of after the cut-off: %v", err)
	}
}

// TestNumbersInDetailsKeepTheirValue: a number that a reader may round is another number.
func TestNumbersInDetailsKeepTheirValue(t *testing.T) {
	for _, number := range []string{"9007199254740993", "123456789012345678901", "0.12345678901234567", "1e400", "-1e400", "1e-400", "1.5e-320", "1.0000000000000000001"} {
		if d, err := delegation.ParseDetails([]byte(`[{"type":"pay","account":` + number + `}]`)); err == nil {
			t.Errorf("%s became %s", number, d[0])
		}
	}
	for _, number := range []string{"0", "-0", "0.0", "1", "9007199254740992", "-9007199254740991", "10.50", "1e3", "1E+20", "123456789012345", "0.1", "1.5e-300", "100000000000000000000"} {
		if _, err := delegation.ParseDetails([]byte(`[{"type":"pay","nested":[{"amount":` + number + `}]}]`)); err != nil {
			t.Errorf("%s: %v", number, err)
		}
	}
}

// TestNarrowingIsCheapWhateverIsAsked: no form of a request costs more than a moment.
func TestNarrowingIsCheapWhateverIsAsked(t *testing.T) {
	list := func(n int) string {
		return `["` + strings.Repeat(`a","`, n) + `a"]`
	}
	var wide, narrow []string
	for range 32 {
		wide = append(wide, `{"type":"t","actions":["`+strings.Join(strings.Split(strings.Repeat("b", 40), ""), `","`)+`","a"],"x":1}`)
		narrow = append(narrow, `{"type":"t","actions":`+list(450)+`,"x":2}`)
	}
	parse := func(of []string) []delegation.Detail {
		d, err := delegation.ParseDetails([]byte("[" + strings.Join(of, ",") + "]"))
		if err != nil {
			t.Fatal(err)
		}
		return d
	}
	parent, child := parse(wide), parse(narrow)
	began := time.Now()
	for _, d := range child {
		if d.NarrowsAny(parent) {
			t.Fatal("it narrows")
		}
	}
	if took := time.Since(began); took > time.Second {
		t.Errorf("32 elements against 32: %v", took)
	}
}

// TestValidateOnlySeesRevocations: validate_only promises what any instance would do now.
func TestValidateOnlySeesRevocations(t *testing.T) {
	w := exchangetest.New(t, exchangetest.Config{})
	idle := w.Peer(t)
	n := w.Tenant()
	parent := w.Chain(t, n, planner)[0]
	check := func() *delegation.Error {
		call := n.Call(t, parent.AccessToken, planner, researcher)
		call.ValidateOnly = true
		_, err := idle.One(t.Context(), call)
		return err
	}
	if err := check(); err != nil {
		t.Fatal(err)
	}
	revoke(t, w, delegation.Target{Kind: delegation.BanSuspend, ID: string(researcher)})
	if err := check(); err == nil || err.Reason != delegation.ActorTokenInvalid {
		t.Errorf("for a suspended actor: %v", err)
	}
	revoke(t, w, delegation.Target{Kind: delegation.BanToken, ID: parent.Claims.ID})
	if err := check(); err == nil || err.Reason != delegation.TokenRevoked {
		t.Errorf("from a revoked parent: %v", err)
	}
}

// TestDetailsAreForOneAudience: nothing maps authorization_details to audiences.
func TestDetailsAreForOneAudience(t *testing.T) {
	const one = `[{"type":"event","identifier":"1","actions":["read"]}]`
	w := exchangetest.New(t, exchangetest.Config{
		Limits: exchange.Limits{ScopeTargets: map[string][]string{"calendar.read": {calendar, mail}}},
		Mapping: policy.Mapping{Details: map[string]policy.DetailRule{
			"event": {Object: "event:{identifier}", Relations: map[string]string{"read": "reader"}},
		}},
	})
	n := w.Tenant()
	n.FGA.Allow(string(alice), "reader", "event:1")
	n.FGA.Allow(string(planner), "reader", "event:1")
	call := func(audiences ...string) *delegation.Error {
		c := n.Call(t, n.Root(t, map[string]any{"authorization_details": []any{map[string]any{"type": "event", "identifier": "1", "actions": []string{"read"}}}}), planner, "")
		c.Children[0].AuthorizationDetails, c.Children[0].Audience = ptr(one), audiences
		_, err := w.One(t.Context(), c)
		return err
	}
	if err := call(calendar); err != nil {
		t.Errorf("one audience: %v", err)
	}
	if err := call(calendar, mail); err == nil || err.Reason != delegation.AudienceNotSingle {
		t.Errorf("two audiences: %v", err)
	}
}

// TestRefusalsStayShort: an error is sent in headers and trailers, so it must be short.
func TestRefusalsStayShort(t *testing.T) {
	w := exchangetest.New(t, exchangetest.Config{})
	n := w.Tenant()
	call := n.Call(t, n.Root(t, nil), planner, "")
	call.Children[0].Scope = ptr(manyScopes(100, 60))
	_, err := w.One(t.Context(), call)
	if err == nil || err.Reason != delegation.ScopeExceedsParent || err.Metadata["scope"] == "" {
		t.Fatalf("refusal = %+v", err)
	}
	if size := len(err.Error()) + len(err.Metadata["scope"]); size > 2048 {
		t.Errorf("the refusal has %d bytes", size)
	}
}

// TestAnAncestorsKeyIsNotTheChilds: a child must not be bound to a key with which another principal
// of the chain authenticates. An actor token may name any key.
func TestAnAncestorsKeyIsNotTheChilds(t *testing.T) {
	w := exchangetest.New(t, exchangetest.Config{})
	n := w.Tenant()
	parent := w.Chain(t, n, planner)[0].AccessToken
	bound := func(key string) *delegation.Error {
		call := n.Call(t, parent, planner, "")
		now := w.Clock().Now().Unix()
		call.Children[0].ActorTokenType = delegation.TokenTypeJWT
		call.Children[0].ActorToken = n.Clients[researcher].Sign(t, "JWT", map[string]any{
			"sub": string(researcher), "aud": delegation.ActorAudience(n.Issuer), "iat": now, "exp": now + 60, "cnf": map[string]any{"jkt": key},
		})
		_, err := w.One(t.Context(), call)
		return err
	}
	if err := bound(n.Clients[planner].KeyID); err == nil || err.Reason != delegation.ActorUnconfirmed {
		t.Errorf("to the planner's key: %v", err)
	}
	if err := bound(n.Clients[researcher].KeyID); err != nil {
		t.Errorf("to its own key: %v", err)
	}
}

// TestBatchThatAnActorTokenAuthenticates: the first child's actor token authenticates the batch.
// Each further child needs its own right: an actor token of another caller, or of the actor
// audience without the caller being the holder, is refused.
func TestBatchThatAnActorTokenAuthenticates(t *testing.T) {
	w := exchangetest.New(t, exchangetest.Config{})
	n := w.Tenant()
	for _, job := range []string{"agent:wl/job", "agent:wl/other"} {
		n.FGA.Allow(string(alice), "delegator", job)
		n.FGA.Allow(job, "holder", "scope:calendar.read")
		n.FGA.Allow(job, "accessor", "resource:"+delegation.EncodeID(calendar))
	}
	call := n.Call(t, n.Root(t, nil), planner, "")
	call.Credentials, call.Batch = exchange.Credentials{}, true
	child := func(actorToken string) exchange.Child {
		c := call.Children[0]
		if actorToken != "" {
			c.ActorToken, c.ActorTokenType = actorToken, delegation.TokenTypeJWT
		}
		return c
	}
	call.Children = []exchange.Child{
		child(n.Workload(t, "job", n.Issuer)),
		child(""), // the caller is the actor
		child(n.Workload(t, "other", n.Issuer)),
		child(n.Workload(t, "other", delegation.ActorAudience(n.Issuer))),
	}
	outcomes, err := w.Engine.Exchange(t.Context(), call)
	if err != nil {
		t.Fatal(err)
	}
	for i, want := range []delegation.Reason{"", "", delegation.ActorTokenInvalid, delegation.CallerNotActor} {
		got := delegation.Reason("")
		if outcomes[i].Err != nil {
			got = outcomes[i].Err.Reason
		} else if outcomes[i].Grant.Claims.ClientID != "agent:wl/job" {
			t.Errorf("child %d is for %s", i, outcomes[i].Grant.Claims.ClientID)
		}
		if got != want {
			t.Errorf("child %d: want %q, got %q", i, want, got)
		}
	}
	slices.Reverse(call.Children) // now the first one only names
	if _, err := w.Engine.Exchange(t.Context(), call); delegation.AsError(err) == nil || delegation.AsError(err).Reason != delegation.ClientUnauthenticated {
		t.Errorf("an actor-audience token first: %v", err)
	}
}

// TestIdempotencyKeysOfOthers: a key belongs to its caller and to one content.
func TestIdempotencyKeysOfOthers(t *testing.T) {
	w := exchangetest.New(t, exchangetest.Config{})
	n := w.Tenant()
	root := n.Root(t, nil)
	with := func(parent string, caller delegation.Principal, key string, batch bool) (*exchange.Grant, *delegation.Error) {
		call := n.Call(t, parent, caller, "")
		call.IdempotencyKey, call.Batch = key, batch
		return w.One(t.Context(), call)
	}
	mine, err := with(root, planner, "k", false)
	if err != nil {
		t.Fatal(err)
	}
	if theirs, err := with(root, researcher, "k", false); err != nil || theirs.Claims.ID == mine.Claims.ID {
		t.Errorf("another caller's key: %+v, %v", theirs, err)
	}
	if _, err := with(n.Root(t, nil), planner, "k", false); err == nil || err.Reason != delegation.IdempotencyConflict {
		t.Errorf("another parent: %v", err)
	}
	if _, err := with(mine.AccessToken, planner, "k", false); err == nil || err.Reason != delegation.IdempotencyConflict {
		t.Errorf("the grant itself as parent: %v", err)
	}
	// Item 0 of batch b has the key b/0: requested by itself it is the same grant, never another
	// one.
	item, err := with(root, planner, "b", true)
	if err != nil {
		t.Fatal(err)
	}
	if single, err := with(root, planner, "b/0", false); err != nil || single.Claims.ID != item.Claims.ID {
		t.Errorf("the key of a batch item: %+v, %v", single, err)
	}
	if _, err := with(n.Root(t, nil), planner, "b/0", false); err == nil || err.Reason != delegation.IdempotencyConflict {
		t.Errorf("the key of a batch item for another parent: %v", err)
	}
}

// TestPanicIsLoggedWithoutItsValue: the value of a panic may repeat what was read.
func TestPanicIsLoggedWithoutItsValue(t *testing.T) {
	w, n, keys := managed(t)
	keys.failSigning(false, func() { panic("a-credential") })
	if grant, err := w.One(t.Context(), n.Call(t, n.Root(t, nil), planner, "")); grant != nil || err == nil || err.Reason != delegation.Internal {
		t.Fatalf("%+v, %v", grant, err)
	}
	log := w.Log.String()
	for _, part := range []string{"msg=panic", "step=mint", "type=string", "TestPanicIsLoggedWithoutItsValue"} {
		if !strings.Contains(log, part) {
			t.Errorf("the log lacks %q:\n%s", part, log)
		}
	}
	if strings.Contains(log, "a-credential") {
		t.Errorf("the log has the panic's value:\n%s", log)
	}
}

// TestFailedSignature: a grant without a signature is voided, also if its caller hung up. A grant
// whose token may have been delivered is not.
func TestFailedSignature(t *testing.T) {
	w, n, keys := managed(t)
	root := n.Root(t, nil)
	ctx, hangUp := context.WithCancel(t.Context())
	call := func(ctx context.Context) (*exchange.Grant, *delegation.Error) {
		c := n.Call(t, root, planner, "")
		c.IdempotencyKey = "k"
		return w.One(ctx, c)
	}
	keys.failSigning(false, hangUp)
	if grant, err := call(ctx); grant != nil || err == nil || err.Reason != delegation.Internal {
		t.Fatalf("unsigned: %+v, %v", grant, err)
	}
	if e := newest(t, w); e.Kind != ledger.KindVoid || e.Voids != 1 {
		t.Errorf("not taken back: %+v", e)
	}
	keys.mend()
	if _, err := call(t.Context()); err == nil || err.Reason != delegation.GrantGone {
		t.Errorf("a retry of what was taken back: %v", err)
	}

	root = n.Root(t, nil)
	c := n.Call(t, root, planner, "")
	c.IdempotencyKey = "handed-out"
	first, err := w.One(t.Context(), c)
	if err != nil {
		t.Fatal(err)
	}
	before := newest(t, w).Seq
	keys.failSigning(false, hangUp)
	c.Credentials = n.Credentials(t, planner)
	if grant, err := w.One(t.Context(), c); grant != nil || err == nil || err.Reason != delegation.Internal {
		t.Errorf("unsigned retry: %+v, %v", grant, err)
	}
	if e := newest(t, w); e.Seq != before {
		t.Errorf("a token that is out there was voided: %+v", e)
	}
	keys.mend()
	c.Credentials = n.Credentials(t, planner)
	if again, err := w.One(t.Context(), c); err != nil || again.Claims.ID != first.Claims.ID {
		t.Errorf("the next retry: %+v, %v", again, err)
	}
}

// TestEachProtectionBearsWeight: each attack is refused by the one protection that is named.
// tools/mutants removes each of them, and requires its attack to succeed.
func TestEachProtectionBearsWeight(t *testing.T) {
	type attack func(t *testing.T, w *exchangetest.World, peer func() *exchangetest.World) error
	one := func(t *testing.T, w *exchangetest.World, c exchange.Call) error {
		if _, err := w.One(t.Context(), c); err != nil {
			return err
		}
		return nil
	}
	for name, a := range map[string]attack{
		"caller rules": func(t *testing.T, w *exchangetest.World, _ func() *exchangetest.World) error {
			return one(t, w, w.Tenant().Call(t, w.Chain(t, w.Tenant(), planner)[0].AccessToken, researcher, ""))
		},
		"an actor-audience token authenticates nobody": func(t *testing.T, w *exchangetest.World, _ func() *exchangetest.World) error {
			c := w.Tenant().Call(t, w.Tenant().Root(t, nil), planner, "")
			c.Credentials = exchange.Credentials{}
			c.Children[0].ActorToken, c.Children[0].ActorTokenType = w.Tenant().ActorToken(t, planner), delegation.TokenTypeJWT
			return one(t, w, c)
		},
		"a caller-audience token is its caller's alone": func(t *testing.T, w *exchangetest.World, _ func() *exchangetest.World) error {
			n := w.Tenant()
			n.FGA.Allow(string(planner), "delegator", "agent:wl/job")
			n.FGA.Allow("agent:wl/job", "holder", "scope:calendar.read")
			n.FGA.Allow("agent:wl/job", "accessor", "resource:"+delegation.EncodeID(calendar))
			c := n.Call(t, w.Chain(t, n, planner)[0].AccessToken, planner, "")
			c.Children[0].ActorToken, c.Children[0].ActorTokenType = n.Workload(t, "job", n.Issuer), delegation.TokenTypeJWT
			return one(t, w, c)
		},
		"a bound token needs its proof": func(t *testing.T, w *exchangetest.World, _ func() *exchangetest.World) error {
			n := w.Tenant()
			c := n.Call(t, w.Chain(t, n, planner)[0].AccessToken, planner, "")
			c.Children[0].RequestedActor, c.Children[0].ActorConfirmation = string(researcher), n.Clients[researcher].KeyID
			bound, err := w.One(t.Context(), c)
			if err != nil {
				t.Fatal(err)
			}
			return one(t, w, n.Call(t, bound.AccessToken, researcher, ""))
		},
		"policy": func(t *testing.T, w *exchangetest.World, _ func() *exchangetest.World) error {
			w.Tenant().FGA.Deny(string(alice), "holder", "scope:calendar.read")
			return one(t, w, w.Tenant().Call(t, w.Tenant().Root(t, nil), planner, ""))
		},
		"an assertion serves once, also after Redis forgot it": func(t *testing.T, w *exchangetest.World, peer func() *exchangetest.World) error {
			c := w.Tenant().Call(t, w.Tenant().Root(t, nil), planner, "")
			if err := one(t, w, c); err != nil {
				t.Fatal(err)
			}
			return one(t, peer(), c)
		},
		"uses": func(t *testing.T, w *exchangetest.World, _ func() *exchangetest.World) error {
			n := w.Tenant()
			c := n.Call(t, n.Root(t, nil), planner, "")
			c.Children[0].Uses = ptr(uint32(1))
			once, err := w.One(t.Context(), c)
			if err != nil {
				t.Fatal(err)
			}
			if err := one(t, w, n.Call(t, once.AccessToken, planner, researcher)); err != nil {
				t.Fatal(err)
			}
			return one(t, w, n.Call(t, once.AccessToken, planner, writer))
		},
		"an idempotency key has one grant": func(t *testing.T, w *exchangetest.World, _ func() *exchangetest.World) error {
			root, made := w.Tenant().Root(t, nil), map[string]bool{}
			for range 2 {
				c := w.Tenant().Call(t, root, planner, "")
				c.IdempotencyKey = "k"
				grant, err := w.One(t.Context(), c)
				if err != nil {
					t.Fatal(err)
				}
				made[grant.Claims.ID] = true
			}
			if len(made) == 1 {
				return errors.New("one grant")
			}
			return nil
		},
		"a check sees revocations": func(t *testing.T, w *exchangetest.World, _ func() *exchangetest.World) error {
			grant := w.Chain(t, w.Tenant(), planner)[0]
			revoke(t, w, delegation.Target{Kind: delegation.BanToken, ID: grant.Claims.ID})
			c := w.Tenant().Call(t, grant.AccessToken, planner, "")
			c.ValidateOnly = true
			return one(t, w, c)
		},
	} {
		t.Run(name, func(t *testing.T) {
			redis := testservers.NewRedis(t)
			w := exchangetest.New(t, exchangetest.Config{RedisURL: redis.URL()})
			err := a(t, w, func() *exchangetest.World {
				redis.Kill()
				redis.Start() // empty
				return w.Peer(t)
			})
			if err == nil {
				t.Error("the attack succeeds")
			}
		})
	}
}

// TestChainOfAnOddID: an odd id does not disclose that there is a database.
func TestChainOfAnOddID(t *testing.T) {
	w := exchangetest.New(t, exchangetest.Config{DSN: testservers.Postgres(t)})
	n := w.Tenant()
	for _, id := range []string{"", "a\x00b", "\xff", strings.Repeat("x", 100_000)} {
		_, err := w.Engine.Chain(t.Context(), exchange.Inquiry{Tenant: "default", Credentials: n.Credentials(t, planner), ID: id})
		if e := delegation.AsError(err); e == nil || e.Reason != delegation.NotFound {
			t.Errorf("%.10q: %v", id, err)
		}
	}
}
