package exchange_test

import (
	"fmt"
	"path/filepath"
	"sync"
	"testing"

	"deputy.example/deputy/client/delegation"
	"deputy.example/deputy/server/internal/exchange"
	"deputy.example/deputy/server/internal/exchange/exchangetest"
	"deputy.example/deputy/server/internal/guard"
	"deputy.example/deputy/server/internal/ledger"
	"deputy.example/deputy/server/internal/testservers"
)

// fleet is the instances of one deployment. Its callers are workloads with reusable credentials, so
// an introspection writes nothing.
type fleet struct {
	n         *exchangetest.Tenant
	instances []*exchangetest.World
	sharing   int // the number of instances on one ledger: all but those of splitOff
}

// newFleet opens this number of instances of a world whose agents may all delegate to one another.
func newFleet(t *testing.T, c exchangetest.Config, instances int) *fleet {
	t.Helper()
	c.Agents = append(c.Agents, responder)
	c.Servers = map[string][]delegation.Principal{calendar: {"agent:wl/auditor"}}
	w := exchangetest.New(t, c)
	f := &fleet{n: w.Tenant(), instances: []*exchangetest.World{w}, sharing: instances}
	for range instances - 1 {
		f.instances = append(f.instances, w.Peer(t))
	}
	f.n.FGA.Allow(string(responder), "responder", "system:deputy")
	return f
}

// at is the i-th instance of those on one ledger, modulo their number.
func (f *fleet) at(i int) *exchangetest.World { return f.instances[i%f.sharing] }

// splitOff adds an instance with the fleet's keys and principals on a ledger of its own, so that it
// receives no revocation. Each check here must notice that. Its numbers are far ahead, so that it
// would grant below each token of the others.
func (f *fleet) splitOff(t *testing.T) {
	t.Helper()
	dsn := "sqlite://" + filepath.Join(t.TempDir(), "elsewhere.db")
	w := exchangetest.New(t, exchangetest.Config{DSN: dsn})
	engine, err := exchange.New(exchange.Config{
		Tenants: f.instances[0].Engine.Tenants(), Ledger: w.Ledger, Guard: quietGuard(t), Now: f.instances[0].Clock().Now,
	})
	if err != nil {
		t.Fatal(err)
	}
	ahead := make([]*ledger.Draft, 1000)
	for i := range ahead {
		ahead[i] = &ledger.Draft{Kind: ledger.KindCheck, Outcome: ledger.Granted, Caller: stranger}
	}
	for _, result := range w.Ledger.AppendAll(t.Context(), f.n.Name, ahead, nil) {
		if result.Err != nil {
			t.Fatal(result.Err)
		}
	}
	f.instances = append(f.instances, &exchangetest.World{Engine: engine, Ledger: w.Ledger})
}

// quietGuard is a guard on a Redis of its own.
func quietGuard(t *testing.T) *guard.Guard {
	t.Helper()
	return guardAt(t, "redis://"+testservers.Redis(t))
}

func guardAt(t *testing.T, url string) *guard.Guard {
	t.Helper()
	client, err := guard.Dial(url)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := client.Close(); err != nil {
			t.Error(err)
		}
	})
	return guard.New(guard.Config{Client: client})
}

// know lets a principal hold the calendar, as the world's own principals do.
func (f *fleet) know(p delegation.Principal) {
	f.n.FGA.Allow(string(p), "holder", "scope:calendar.read")
	f.n.FGA.Allow(string(p), "holder", "scope:calendar.read|"+delegation.EncodeID(calendar))
	f.n.FGA.Allow(string(p), "accessor", "resource:"+delegation.EncodeID(calendar))
}

// welcome adds a user that delegates to the agents.
func (f *fleet) welcome(user delegation.Principal, agents ...delegation.Principal) {
	f.know(user)
	for _, a := range agents {
		f.n.FGA.Allow(string(user), "delegator", string(a))
	}
}

// crew adds n workloads that delegate to one another. Their names start with prefix.
func (f *fleet) crew(prefix string, n int) []delegation.Principal {
	all := make([]delegation.Principal, n)
	for i := range all {
		all[i] = delegation.Principal(fmt.Sprintf("agent:wl/%s-%d", prefix, i))
		f.know(all[i])
	}
	for _, from := range all {
		f.welcome(from, all...)
	}
	return all
}

// workload is the subject of a crew member's workload JWT.
func workload(agent delegation.Principal) string { return string(agent)[len("agent:wl/"):] }

// byWorkload is an exchange by a crew member for each of the actors; "" is a self-narrowing.
func (f *fleet) byWorkload(t *testing.T, parent string, caller delegation.Principal, actors ...delegation.Principal) exchange.Call {
	t.Helper()
	call := exchange.Call{
		Tenant: f.n.Name, Credentials: exchange.Credentials{Bearer: f.n.Workload(t, workload(caller), f.n.Issuer)},
		SubjectToken: parent, SubjectTokenType: delegation.TokenTypeAccessToken, Batch: len(actors) > 1,
	}
	scope := "calendar.read"
	for _, actor := range actors {
		c := exchange.Child{Audience: []string{calendar}, Scope: &scope}
		if actor != "" {
			c.ActorToken, c.ActorTokenType = f.n.Workload(t, workload(actor), delegation.ActorAudience(f.n.Issuer)), delegation.TokenTypeJWT
		}
		call.Children = append(call.Children, c)
	}
	return call
}

// introspect introspects a token at one instance.
func (f *fleet) introspect(t *testing.T, w *exchangetest.World, token string) (bool, error) {
	t.Helper()
	got, err := w.Engine.Introspect(t.Context(), exchange.Inquiry{
		Tenant: f.n.Name, Token: token,
		Credentials: exchange.Credentials{Bearer: f.n.Workload(t, "auditor", f.n.Issuer)},
	})
	return got.Claims != nil, err
}

// revoke revokes as the responder, at one instance.
func (f *fleet) revoke(t *testing.T, w *exchangetest.World, target delegation.Target) (*delegation.Revocation, error) {
	t.Helper()
	got, err := w.Engine.Revoke(t.Context(), exchange.RevokeCall{
		Tenant: f.n.Name, Credentials: f.n.Credentials(t, responder), Target: target, Reason: "campaign",
	})
	return got.Revocation, err
}

// rootOf is a root token of a user.
func (f *fleet) rootOf(t *testing.T, user delegation.Principal) string {
	t.Helper()
	return f.n.Root(t, map[string]any{"sub": user.ID()})
}

// kills reports whether a token is dead after a revocation, in the terms of the design and from the
// token's claims alone. It is independent of delegation.RevocationSet, which it checks.
func kills(r delegation.Revocation, c delegation.Claims) bool {
	hops := c.Delegation.Hops
	held := func() bool {
		for _, h := range hops {
			if string(c.Act[h.Actor]) == r.Target.ID && h.Seq < r.Seq {
				return true
			}
		}
		return false
	}
	switch r.Target.Kind {
	case delegation.BanToken:
		for _, h := range hops {
			if h.ID == r.Target.ID {
				return true
			}
		}
		return false
	case delegation.BanKey:
		for _, h := range hops {
			if h.Key == r.Target.ID {
				return true
			}
		}
		return false
	case delegation.BanChain:
		return c.Txn == r.Target.ID
	case delegation.BanRoot:
		return c.Delegation.Root == r.Target.ID
	case delegation.BanSuspend:
		return c.Act.Contains(delegation.Principal(r.Target.ID))
	case delegation.CutSubject:
		return string(c.Subject) == r.Target.ID && hops[0].Seq < r.Seq
	case delegation.CutAgent:
		return held()
	case delegation.CutAgentSubject:
		return c.Subject == r.Target.Subject && held()
	case delegation.CutTenant:
		return hops[0].Seq < r.Seq
	}
	return true
}

// findings are violations that any goroutine found.
type findings struct {
	mu  sync.Mutex
	all []string
}

func (f *findings) add(format string, args ...any) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.all = append(f.all, fmt.Sprintf(format, args...))
}

// report fails the test with the first 20.
func (f *findings) report(t *testing.T) {
	t.Helper()
	for _, found := range f.all[:min(len(f.all), 20)] {
		t.Error(found)
	}
}
