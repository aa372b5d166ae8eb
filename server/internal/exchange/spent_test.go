package exchange_test

import (
	"context"
	"errors"
	"net/http"
	"testing"
	"time"

	"deputy.example/deputy/client/delegation"
	"deputy.example/deputy/client/dpop"
	"deputy.example/deputy/server/internal/exchange"
	"deputy.example/deputy/server/internal/exchange/exchangetest"
	"deputy.example/deputy/server/internal/guard"
	"deputy.example/deputy/server/internal/ledger"
	"deputy.example/deputy/server/internal/testservers"
)

// forgetful is a world whose Redis a test can make forget everything.
type forgetful struct {
	*exchangetest.World
	redis *testservers.RedisServer
}

func newForgetful(t *testing.T, c exchangetest.Config) *forgetful {
	t.Helper()
	redis := testservers.NewRedis(t)
	c.RedisURL = redis.URL()
	return &forgetful{exchangetest.New(t, c), redis}
}

// forget returns an instance that meets an empty Redis.
func (f *forgetful) forget(t *testing.T) *exchangetest.World {
	t.Helper()
	f.redis.Kill()
	f.redis.Start()
	return f.Peer(t)
}

// calls are all entry points that spend an assertion, each with the reason of its answer.
func calls(t *testing.T, n *exchangetest.Tenant, root string) map[string]func(*exchangetest.World, exchange.Credentials) delegation.Reason {
	t.Helper()
	exchanges := func(change func(*exchange.Call)) func(*exchangetest.World, exchange.Credentials) delegation.Reason {
		return func(w *exchangetest.World, c exchange.Credentials) delegation.Reason {
			call := n.Call(t, root, planner, "")
			call.Credentials = c
			change(&call)
			outcomes, err := w.Engine.Exchange(t.Context(), call)
			if err != nil {
				return reasonOf(delegation.AsError(err))
			}
			reason := delegation.Reason("granted")
			for _, o := range outcomes {
				if o.Err != nil {
					reason = o.Err.Reason
				}
			}
			return reason
		}
	}
	asks := func(ask func(context.Context, *exchange.Engine, exchange.Inquiry) error) func(*exchangetest.World, exchange.Credentials) delegation.Reason {
		return func(w *exchangetest.World, c exchange.Credentials) delegation.Reason {
			err := ask(t.Context(), w.Engine, exchange.Inquiry{Tenant: n.Name, Credentials: c, Token: "x", ID: unknown})
			if err == nil {
				return "granted"
			}
			return reasonOf(delegation.AsError(err))
		}
	}
	return map[string]func(*exchangetest.World, exchange.Credentials) delegation.Reason{
		"exchange":                        exchanges(func(*exchange.Call) {}),
		"exchange that is refused early":  exchanges(func(c *exchange.Call) { c.SubjectToken = "x" }),
		"exchange that the plan refuses":  exchanges(func(c *exchange.Call) { c.Children[0].Audience = []string{"https://other.example"} }),
		"exchange that OpenFGA refuses":   exchanges(func(c *exchange.Call) { c.Children[0].Audience = []string{exchangetest.Mail} }),
		"exchange for an unknown actor":   exchanges(func(c *exchange.Call) { c.Children[0].RequestedActor = "agent:x" }),
		"check":                           exchanges(func(c *exchange.Call) { c.ValidateOnly = true }),
		"batch":                           exchanges(func(c *exchange.Call) { c.Batch, c.Children = true, append(c.Children, exchange.Child{}) }),
		"exchange with another client_id": exchanges(func(c *exchange.Call) { c.Credentials.ClientID = string(researcher) }),
		"introspection": asks(func(ctx context.Context, e *exchange.Engine, q exchange.Inquiry) error {
			_, err := e.Introspect(ctx, q)
			return err
		}),
		"introspection without a token": asks(func(ctx context.Context, e *exchange.Engine, q exchange.Inquiry) error {
			q.Token = ""
			_, err := e.Introspect(ctx, q)
			return err
		}),
		"chain": asks(func(ctx context.Context, e *exchange.Engine, q exchange.Inquiry) error {
			_, err := e.Chain(ctx, q)
			return err
		}),
		"search": asks(func(ctx context.Context, e *exchange.Engine, q exchange.Inquiry) error {
			_, _, err := e.Search(ctx, q, ledger.Query{})
			return err
		}),
		"revocation of what is not there": asks(func(ctx context.Context, e *exchange.Engine, q exchange.Inquiry) error {
			_, err := e.Revoke(ctx, exchange.RevokeCall{Tenant: q.Tenant, Credentials: q.Credentials, Token: "x"})
			return err
		}),
	}
}

// TestReplayIsTheAnswer: what is sent a second time is answered as a replay, whatever would have been answered
// to it, and also where Redis has forgotten the first time.
func TestReplayIsTheAnswer(t *testing.T) {
	f := newForgetful(t, exchangetest.Config{})
	n := f.Tenant()
	n.FGA.Deny(string(planner), "accessor", "resource:"+delegation.EncodeID(exchangetest.Mail))
	key := exchangetest.NewProver(t)
	spent := map[string]exchange.Credentials{}
	proven := map[string]exchange.Credentials{}
	all := calls(t, n, n.Root(t, nil))
	for name, call := range all {
		spent[name] = n.Credentials(t, planner)
		call(f.World, spent[name])
		c := n.Credentials(t, planner)
		c.Proof = f.Proof(t, key)
		call(f.World, c)
		proven[name] = exchange.Credentials{Proof: c.Proof}
	}
	after := f.forget(t)
	for name, call := range all {
		if got := call(after, spent[name]); got != delegation.AssertionReplayed {
			t.Errorf("%s, with an assertion that was used: %s", name, got)
		}
		c := n.Credentials(t, planner)
		c.Proof = proven[name].Proof
		want := delegation.ProofReplayed
		if name == "exchange with another client_id" {
			want = delegation.ClientUnauthenticated // before its proof is looked at
		}
		if got := call(after, c); got != want {
			t.Errorf("%s, with a proof that was used: %s, want %s", name, got, want)
		}
	}
	after = f.forget(t)
	call := n.Call(t, n.Root(t, nil), planner, "")
	call.Credentials, call.SubjectToken = spent["exchange"], "x"
	if _, err := after.One(t.Context(), call); err == nil || err.Reason != delegation.AssertionReplayed {
		t.Errorf("a replay: %v", err)
	}
	if e := newest(t, after); e.Kind != ledger.KindRefusal || e.Reason != delegation.AssertionReplayed {
		t.Errorf("the ledger has %s %s", e.Kind, e.Reason)
	}
}

// TestReplayWithoutOpenFGA: what cannot be decided spends its assertion, and a replay is no question for
// OpenFGA.
func TestReplayWithoutOpenFGA(t *testing.T) {
	f := newForgetful(t, exchangetest.Config{})
	n := f.Tenant()
	down := func(*http.Request) error { return errors.New("OpenFGA is down") }
	n.FGA.Gate(down)
	call := n.Call(t, n.Root(t, nil), planner, "")
	if _, err := f.One(t.Context(), call); err == nil || err.Reason != delegation.DependencyDown {
		t.Fatalf("OpenFGA is down: %v", err)
	}
	after := f.forget(t)
	for _, open := range []bool{false, true} {
		n.FGA.Gate(map[bool]func(*http.Request) error{false: down}[open])
		if _, err := after.One(t.Context(), call); err == nil || err.Reason != delegation.AssertionReplayed {
			t.Errorf("OpenFGA answers %t: %v", open, err)
		}
	}
	n.FGA.Gate(down)
	batch := n.Call(t, n.Root(t, nil), planner, "")
	batch.Credentials, batch.Batch = call.Credentials, true
	batch.Children = append(batch.Children, exchange.Child{}) // is refused, which is recorded; the other cannot be decided
	outcomes, err := f.forget(t).Engine.Exchange(t.Context(), batch)
	if err != nil {
		t.Fatal(err)
	}
	for i, o := range outcomes {
		if o.Err == nil || o.Err.Reason != delegation.AssertionReplayed {
			t.Errorf("child %d of a replayed batch: %+v", i, o)
		}
	}
}

// TestUndecidedCallSpendsItsAssertion: what Redis, or the state of the instance, keeps undecided is good for no later call.
func TestUndecidedCallSpendsItsAssertion(t *testing.T) {
	for state, bring := range map[string]func(*forgetful){
		"redis is down": func(f *forgetful) { f.redis.Kill() },
		"redis knows more revocations": func(f *forgetful) {
			must(t, guardAt(t, f.redis.URL()).Republish(t.Context(), "default", nil, 1000))
			must(t, f.Engine.Compare(t.Context(), "default"))
		},
	} {
		t.Run(state, func(t *testing.T) {
			f := newForgetful(t, exchangetest.Config{})
			n := f.Tenant()
			all := calls(t, n, n.Root(t, nil))
			bring(f)
			used := map[string]exchange.Credentials{"exchange": n.Credentials(t, planner), "check": n.Credentials(t, planner), "batch": n.Credentials(t, planner)}
			if state != "redis is down" {
				used["revocation of what is not there"] = n.Credentials(t, planner)
			}
			for name, c := range used {
				if got := all[name](f.World, c); got != delegation.DependencyDown {
					t.Fatalf("%s: %s", name, got)
				}
			}
			after := f.forget(t)
			for name, c := range used {
				if got := all[name](after, c); got != delegation.AssertionReplayed {
					t.Errorf("%s, later: %s", name, got)
				}
			}
		})
	}
}

// TestCallOfACallerThatHangsUpSpendsItsAssertion: where the caller hangs up before Redis, or the ledger, has answered,
// nothing is decided, and the assertion is spent.
func TestCallOfACallerThatHangsUpSpendsItsAssertion(t *testing.T) {
	for name, call := range map[string]func(f *forgetful, r *relay, c exchange.Credentials) error{
		"before the revocations are read": func(f *forgetful, r *relay, c exchange.Credentials) error {
			ctx, hangUp := context.WithCancel(t.Context())
			// An instance that has answered nothing yet compares its ledger with Redis first.
			r.seen("hgetall", hangUp)
			check := f.Tenant().Call(t, f.Tenant().Root(t, nil), planner, "")
			check.Credentials, check.ValidateOnly = c, true
			_, err := f.Peer(t).One(ctx, check)
			return err
		},
		"while OpenFGA is asked": func(f *forgetful, _ *relay, c exchange.Credentials) error {
			ctx, hangUp := context.WithCancel(t.Context())
			f.Tenant().FGA.Gate(func(*http.Request) error {
				hangUp()
				return errors.New("OpenFGA is down")
			})
			call := f.Tenant().Call(t, f.Tenant().Root(t, nil), planner, "")
			call.Credentials = c
			_, err := f.One(ctx, call)
			return err
		},
		"before it is admitted to revoke": func(f *forgetful, _ *relay, c exchange.Credentials) error {
			ctx, hangUp := context.WithCancel(t.Context())
			hangUp()
			_, err := f.Engine.Revoke(ctx, exchange.RevokeCall{Tenant: f.Tenant().Name, Credentials: c, Token: "x"})
			return err
		},
		"once its assertion is spent": func(f *forgetful, _ *relay, c exchange.Credentials) error {
			ctx, hangUp := context.WithCancel(t.Context())
			return f.Engine.AdmitUntil(ctx, exchange.Inquiry{Tenant: f.Tenant().Name, Credentials: c, Token: "x"}, hangUp)
		},
	} {
		t.Run(name, func(t *testing.T) {
			redis := testservers.NewRedis(t)
			r := newRelay(t, redis.Addr)
			f := &forgetful{exchangetest.New(t, exchangetest.Config{RedisURL: r.url()}), redis}
			credentials := f.Tenant().Credentials(t, planner)
			if err := call(f, r, credentials); reason(err) != delegation.DependencyDown {
				t.Fatalf("the call: %v", err)
			}
			_, err := f.forget(t).Engine.Introspect(t.Context(), exchange.Inquiry{Tenant: f.Tenant().Name, Credentials: credentials, Token: "x"})
			if reason(err) != delegation.AssertionReplayed {
				t.Errorf("the same assertion later: %v", err)
			}
		})
	}
}

// TestRefusedProofSpendsTheAssertion: an assertion that was verified is spent, whatever is wrong beside it.
func TestRefusedProofSpendsTheAssertion(t *testing.T) {
	f := newForgetful(t, exchangetest.Config{})
	n, key := f.Tenant(), exchangetest.NewProver(t)
	all := calls(t, n, n.Root(t, nil))
	now := f.Clock().Now()
	for kind, proof := range map[string]*exchange.Proof{
		"no proof at all":   {JWT: "x", Method: "POST", URI: "https://deputy.example/oauth2/token"},
		"of another method": {JWT: key.Prove(t, dpop.Request{Method: "GET", URI: "https://deputy.example/oauth2/token"}, now), Method: "POST", URI: "https://deputy.example/oauth2/token"},
		"too old":           {JWT: key.Prove(t, dpop.Request{Method: "POST", URI: "https://deputy.example/oauth2/token"}, now.Add(-time.Hour)), Method: "POST", URI: "https://deputy.example/oauth2/token"},
		"with ath":          {JWT: key.Prove(t, dpop.Request{Method: "POST", URI: "https://deputy.example/oauth2/token", AccessToken: "a.b.c"}, now), Method: "POST", URI: "https://deputy.example/oauth2/token"},
		"of no known name":  {JWT: "x", Method: "POST"},
	} {
		spent := map[string]exchange.Credentials{}
		for name, call := range all {
			if name == "exchange with another client_id" {
				continue
			}
			c := n.Credentials(t, planner)
			spent[name] = c
			c.Proof = proof
			if got := call(f.World, c); got != delegation.ProofInvalid {
				t.Errorf("%s, with a proof %s: %s", name, kind, got)
			}
		}
		after := f.forget(t)
		for name, c := range spent {
			if got := all[name](after, c); got != delegation.AssertionReplayed {
				t.Errorf("%s, whose assertion came with a proof %s: %s", name, kind, got)
			}
		}
	}
}

// TestOversizedBatchSpendsItsAssertion: a call that no waiting would admit spends its assertion too.
func TestOversizedBatchSpendsItsAssertion(t *testing.T) {
	f := newForgetful(t, exchangetest.Config{CallerRate: guard.Limit{Rate: 10, Burst: 10}})
	n := f.Tenant()
	call := n.Call(t, n.Root(t, nil), planner, "")
	small := call
	call.Batch, call.Children = true, make([]exchange.Child, 11)
	if _, err := f.One(t.Context(), call); err == nil || err.Reason != delegation.RequestTooLarge {
		t.Fatalf("11 children: %v", err)
	}
	if _, err := f.forget(t).One(t.Context(), small); err == nil || err.Reason != delegation.AssertionReplayed {
		t.Errorf("its assertion: %v", err)
	}
}

// TestSuspendedCallerSpendsItsAssertion: a caller that is refused as an unknown one cannot use its assertion
// once it is resumed.
func TestSuspendedCallerSpendsItsAssertion(t *testing.T) {
	f := newForgetful(t, exchangetest.Config{})
	n := f.Tenant()
	revoke(t, f.World, delegation.Target{Kind: delegation.BanSuspend, ID: string(planner)})
	call := n.Call(t, n.Root(t, nil), planner, "")
	if _, err := f.One(t.Context(), call); err == nil || err.Reason != delegation.ClientUnauthenticated {
		t.Fatalf("suspended: %v", err)
	}
	revoke(t, f.World, delegation.Target{Kind: delegation.Resume, ID: string(planner)})
	if _, err := f.forget(t).One(t.Context(), call); err == nil || err.Reason != delegation.AssertionReplayed {
		t.Errorf("resumed: %v", err)
	}
}

// TestChecksSeeWhatIsSpent: validate_only answers as the exchange would.
func TestChecksSeeWhatIsSpent(t *testing.T) {
	w := exchangetest.New(t, exchangetest.Config{})
	n := w.Tenant()
	first, once := n.Call(t, n.Root(t, nil), planner, ""), uint32(1)
	first.Children[0].Uses = &once
	parent, err := w.One(t.Context(), first)
	if err != nil {
		t.Fatal(err)
	}
	ask := func(validate bool, children int) []exchange.Outcome {
		call := n.Call(t, parent.AccessToken, planner, "")
		for len(call.Children) < children {
			call.Children = append(call.Children, call.Children[0])
		}
		call.ValidateOnly, call.Batch = validate, children > 1
		outcomes, err := w.Engine.Exchange(t.Context(), call)
		if err != nil {
			t.Fatal(err)
		}
		return outcomes
	}
	granted := func(o exchange.Outcome) bool { return o.Err == nil }
	spent := func(o exchange.Outcome) bool { return o.Err != nil && o.Err.Reason == delegation.TokenSpent }
	for range 2 { // a check spends nothing
		if got := ask(true, 1); !granted(got[0]) {
			t.Errorf("a check of what is unspent: %+v", got)
		}
		if got := ask(true, 2); !granted(got[0]) || !spent(got[1]) {
			t.Errorf("a check of two children of what is unspent: %+v", got)
		}
	}
	if got := ask(false, 1); !granted(got[0]) {
		t.Fatalf("the exchange: %+v", got)
	}
	if got := ask(true, 2); !spent(got[0]) || !spent(got[1]) {
		t.Errorf("a check of what is spent: %+v", got)
	}
	if e := newest(t, w); e.Kind != ledger.KindRefusal || e.Reason != delegation.TokenSpent {
		t.Errorf("the ledger has %s %s", e.Kind, e.Reason)
	}
}
