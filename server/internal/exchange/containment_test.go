package exchange_test

import (
	"context"
	"database/sql"
	"errors"
	"net/http"
	"path/filepath"
	"strings"
	"testing"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/redis/go-redis/v9"

	"deputy.example/deputy/client/delegation"
	"deputy.example/deputy/server/internal/exchange"
	"deputy.example/deputy/server/internal/exchange/exchangetest"
	"deputy.example/deputy/server/internal/ledger"
	"deputy.example/deputy/server/internal/ledger/ledgertest"
	"deputy.example/deputy/server/internal/testservers"
)

// storm is a hospital on a Redis of its own, with an auditor who signs in.
func storm(t *testing.T, c exchangetest.Config) (*exchangetest.World, *exchangetest.Tenant, []*exchange.Grant, *testservers.RedisServer) {
	t.Helper()
	server := testservers.NewRedis(t)
	c.RedisURL, c.Agents = server.URL(), []delegation.Principal{responder, operator, stranger}
	w := exchangetest.New(t, c)
	n := w.Tenant()
	for _, p := range []string{string(responder), "user:rita"} {
		n.FGA.Allow(p, "responder", "system:deputy")
		n.FGA.Allow(p, "auditor", "system:deputy")
	}
	n.FGA.Allow(string(operator), "operator", string(researcher))
	return w, n, w.Chain(t, n, planner, researcher, writer), server
}

// TestContainmentWithoutRedis revokes, suspends, resumes and reads while Redis is down, or hangs.
// All of it succeeds, for workloads and for people. An exchange is refused as unavailable.
func TestContainmentWithoutRedis(t *testing.T) {
	for name, fault := range map[string]func(*testservers.RedisServer) (mend func()){
		"gone":  func(s *testservers.RedisServer) func() { s.Kill(); return s.Start },
		"hangs": func(s *testservers.RedisServer) func() { s.Pause(); return s.Resume },
	} {
		t.Run(name, func(t *testing.T) {
			w, n, chain, server := storm(t, exchangetest.Config{Prompt: true})
			rita := exchange.Credentials{Person: w.SignIn(t, n, "rita")}
			watches := make(map[delegation.Principal]*exchange.Watch)
			for _, p := range []delegation.Principal{writer, operator} {
				watch, err := w.Engine.Watch(t.Context(), exchange.Inquiry{Tenant: "default", Credentials: n.Credentials(t, p)})
				if err != nil {
					t.Fatal(err)
				}
				watch.Seen("tool of "+string(p), 1)
				watches[p] = watch
			}
			if all, err := w.Engine.Receipts(t.Context(), exchange.Inquiry{Tenant: "default", Credentials: rita}, 0); err != nil || all.Partial {
				t.Fatalf("receipts before: %+v, %v", all, err)
			}
			mend := fault(server)
			if _, refusal := w.One(t.Context(), n.Call(t, chain[0].AccessToken, planner, researcher)); refusal == nil || refusal.Reason != delegation.DependencyDown {
				t.Fatalf("an exchange: %v", refusal)
			}
			for _, c := range []struct {
				by     delegation.Principal
				target delegation.Target
				dead   [3]bool
			}{
				{writer, delegation.Target{Kind: delegation.BanToken, ID: chain[2].Claims.ID}, [3]bool{false, false, true}},
				{operator, delegation.Target{Kind: delegation.BanSuspend, ID: string(researcher)}, [3]bool{false, true, true}},
				{operator, delegation.Target{Kind: delegation.Resume, ID: string(researcher)}, [3]bool{false, true, true}},
				{responder, delegation.Target{Kind: delegation.CutSubject, ID: string(alice)}, [3]bool{true, true, true}},
			} {
				call := exchange.RevokeCall{Tenant: "default", Credentials: n.Credentials(t, c.by), Target: c.target, DryRun: true}
				if _, err := w.Engine.Revoke(t.Context(), call); err != nil {
					t.Errorf("%v, a dry run: %v (%v)", c.target, err, errors.Unwrap(err))
				}
				if done, refusal := take(w, t, c.by, c.target); refusal != nil || done.Revocation == nil {
					t.Fatalf("%v: %v (%v)", c.target, refusal, refusal.Unwrap())
				}
				set, err := w.Ledger.Revocations(t.Context(), "default", true)
				if err != nil {
					t.Fatal(err)
				}
				for i, g := range chain {
					if _, hit := set.Hit(g.Claims.Lineage()); hit != c.dead[i] {
						t.Errorf("%v: token %d is revoked: %t", c.target, i, hit)
					}
				}
			}
			ask := exchange.Inquiry{Tenant: "default", Credentials: rita}
			if _, err := w.Engine.Restore(t.Context(), "default", exchange.Session{Principal: "user:rita", Issuer: n.IDP.Issuer, SignedIn: w.Clock().Now()}); err != nil {
				t.Errorf("a session: %v", err)
			}
			if role, err := w.Engine.Role(t.Context(), ask); err != nil || !role.Responds {
				t.Errorf("her role: %+v, %v", role, err)
			}
			if done, err := w.Engine.Revoke(t.Context(), exchange.RevokeCall{Tenant: "default", Credentials: rita, Target: delegation.Target{Kind: delegation.BanSuspend, ID: string(planner)}}); err != nil || done.Revocation == nil {
				t.Errorf("her suspension of an agent: %v", err)
			}
			if _, err := w.Engine.Reach(t.Context(), ask, writer, 1); err != nil {
				t.Errorf("what an agent reaches: %v", err)
			}
			ask.ID = chain[0].Claims.ID
			if page, _, err := w.Engine.Descendants(t.Context(), ask, 0, 10); err != nil || len(page) != 2 {
				t.Errorf("%d descendants, %v", len(page), err)
			}
			if _, _, err := w.Engine.Search(t.Context(), exchange.Inquiry{Tenant: "default", Credentials: rita}, ledger.Query{Limit: 10}); err != nil {
				t.Errorf("a search: %v", err)
			}
			watches[writer].Seen("tool of "+string(writer), 2)
			watches[operator].Close()
			watches[operator].Seen("late", 2)
			here, err := w.Engine.Receipts(t.Context(), exchange.Inquiry{Tenant: "default", Credentials: rita}, 0)
			if err != nil || !here.Partial || len(here.List) != 1 || here.List[0].Verifier != writer || here.List[0].Applied != 2 {
				t.Errorf("receipts: %+v, %v", here, err)
			}
			watches[writer].Close()
			if here, err = w.Engine.Receipts(t.Context(), exchange.Inquiry{Tenant: "default", Credentials: rita}, 0); err != nil || !here.Partial || len(here.List) != 0 {
				t.Errorf("receipts after the verifiers left: %+v, %v", here, err)
			}
			mend()
		})
	}
}

// TestOneAssertionRevokesOnce: without Redis, the ledger's row decides, in the commit of the
// revocation itself.
func TestOneAssertionRevokesOnce(t *testing.T) {
	w, n, chain, server := storm(t, exchangetest.Config{})
	server.Kill()
	for name, target := range map[string]delegation.Target{
		"a revocation": {Kind: delegation.BanToken, ID: chain[2].Claims.ID},
		"a refusal":    {Kind: delegation.CutTenant},
	} {
		call := exchange.RevokeCall{Tenant: "default", Credentials: n.Credentials(t, writer), Target: target}
		if _, err := w.Engine.Revoke(t.Context(), call); (err == nil) != (name == "a revocation") || err != nil && delegation.AsError(err).Reason != delegation.NotFound {
			t.Fatalf("%s: %v", name, err)
		}
		call.Target = delegation.Target{Kind: delegation.BanToken, ID: chain[2].Claims.ID}
		if _, err := w.Engine.Revoke(t.Context(), call); err == nil || delegation.AsError(err).Reason != delegation.AssertionReplayed {
			t.Errorf("%s, and its assertion again: %v", name, err)
		}
		call.Target = delegation.Target{Kind: delegation.CutTenant}
		if _, err := w.Engine.Revoke(t.Context(), call); err == nil || delegation.AsError(err).Reason != delegation.AssertionReplayed {
			t.Errorf("%s, and its assertion for what is refused: %v", name, err)
		}
	}
	live, _, err := w.Ledger.Live(t.Context(), "default")
	if err != nil || len(live) != 1 {
		t.Errorf("%d revocations, %v", len(live), err)
	}
}

// TestNoErrorAfterTheCommit: a failure after a revocation is durable does not turn its answer into
// an error.
func TestNoErrorAfterTheCommit(t *testing.T) {
	database := filepath.Join(t.TempDir(), "ledger.db")
	w, _, _, server := storm(t, exchangetest.Config{DSN: ledgertest.Address(database)})
	server.Kill() // so that nothing can be announced
	db, err := sql.Open("sqlite", database)
	if err != nil {
		t.Fatal(err)
	}
	defer db.Close()
	// A revocation by agent reads the claims only to count.
	if _, err := db.Exec("ALTER TABLE claims RENAME TO lost"); err != nil {
		t.Fatal(err)
	}
	target := delegation.Target{Kind: delegation.CutAgent, ID: string(writer)}
	done, refusal := take(w, t, writer, target)
	if refusal != nil || done.Counted || done.Revocation == nil {
		t.Fatalf("%+v, %v", done, refusal)
	}
	if _, err := db.Exec("ALTER TABLE lost RENAME TO claims"); err != nil {
		t.Fatal(err)
	}
	recorded, err := w.Ledger.EntryAt(t.Context(), "default", done.Revocation.Seq)
	if err != nil || *recorded.Revocation != *done.Revocation {
		t.Errorf("answered %+v, recorded %+v, %v", done.Revocation, recorded, err)
	}
}

// TestContainmentWithoutOpenFGA: a caller revokes what it holds itself without a question. Of the
// other callers, only emergency responders of the configuration may revoke and read, and only while
// OpenFGA does not respond.
func TestContainmentWithoutOpenFGA(t *testing.T) {
	w, n, chain, _ := storm(t, exchangetest.Config{Emergency: []delegation.Principal{stranger}})
	down := func(*http.Request) error { return errors.New("connection refused") }
	oneQuestion := func(r *http.Request) error {
		if strings.HasSuffix(r.URL.Path, "/batch-check") {
			return context.DeadlineExceeded
		}
		return nil
	}
	suspend, resume := delegation.Target{Kind: delegation.BanSuspend, ID: string(researcher)}, delegation.Target{Kind: delegation.Resume, ID: string(researcher)}
	for _, c := range []struct {
		name   string
		gate   func(*http.Request) error
		by     delegation.Principal
		target delegation.Target
		want   delegation.Reason
	}{
		{"its own token", down, planner, delegation.Target{Kind: delegation.BanToken, ID: chain[0].Claims.ID}, ""},
		{"itself", down, writer, delegation.Target{Kind: delegation.CutAgent, ID: string(writer)}, ""},
		{"another's key", down, writer, delegation.Target{Kind: delegation.BanKey, ID: n.Clients[stranger].KeyID}, delegation.DependencyDown},
		{"a responder", down, responder, suspend, delegation.DependencyDown},
		{"an operator", down, operator, suspend, delegation.DependencyDown},
		{"no emergency", nil, stranger, suspend, delegation.NotFound},
		{"one question that fails", oneQuestion, stranger, suspend, delegation.DependencyDown},
		{"an emergency", down, stranger, suspend, ""},
		{"an emergency: the tenant", down, stranger, delegation.Target{Kind: delegation.CutTenant}, ""},
		{"an emergency: what gives back", down, stranger, resume, delegation.DependencyDown},
	} {
		n.FGA.Gate(c.gate)
		_, refusal := take(w, t, c.by, c.target)
		if got := reasonOf(refusal); got != c.want {
			t.Errorf("%s: %q, want %q", c.name, got, c.want)
		}
	}
	for by, want := range map[delegation.Principal]delegation.Reason{stranger: "", responder: delegation.DependencyDown} {
		ask := func() exchange.Inquiry { return exchange.Inquiry{Tenant: "default", Credentials: n.Credentials(t, by)} }
		_, reach := w.Engine.Reach(t.Context(), ask(), researcher, 1)
		role, err := w.Engine.Role(t.Context(), ask())
		_, receipts := w.Engine.Receipts(t.Context(), ask(), 0)
		for what, err := range map[string]error{"reach": reach, "role": err, "receipts": receipts} {
			if got := reasonOf(delegation.AsError(err)); got != want {
				t.Errorf("%s, %s: %q, want %q", by, what, got, want)
			}
		}
		if role.Responds != (want == "") {
			t.Errorf("%s: %+v", by, role)
		}
		may, err := w.Engine.MayRevoke(t.Context(), ask(), resume, suspend)
		if got := reasonOf(delegation.AsError(err)); got != want || want == "" && (may[0] || !may[1]) {
			t.Errorf("%s may resume and suspend: %v, %q", by, may, got)
		}
	}
	if strings.Count(w.Log.String(), "emergency responder admitted without OpenFGA") != 6 {
		t.Error("the log does not tell of each emergency")
	}
}

// TestReceiptsAreNotHeapedUp: while Redis is down no tenant's receipts grow.
func TestReceiptsAreNotHeapedUp(t *testing.T) {
	w, _, _, server := storm(t, exchangetest.Config{})
	server.Kill()
	if left, err := w.Engine.ShareReceipts(t.Context(), "default", "other", "third"); err == nil || len(left) > 0 {
		t.Errorf("%v keep theirs, %v", left, err)
	}
}

func reasonOf(refusal *delegation.Error) delegation.Reason {
	if refusal == nil {
		return ""
	}
	return refusal.Reason
}

// TestMendedListsAreToldOf breaks the lists in Redis in each way. Each repair is logged and
// counted, with its cause.
func TestMendedListsAreToldOf(t *testing.T) {
	const list = "{default}:revoked:list"
	registry := prometheus.NewRegistry()
	w, n, chain, server := storm(t, exchangetest.Config{Registerer: registry})
	client := redis.NewClient(&redis.Options{Addr: server.Addr})
	defer func() { _ = client.Close() }()
	must := func(err error) {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
	}
	if _, refusal := take(w, t, writer, delegation.Target{Kind: delegation.BanToken, ID: chain[2].Claims.ID}); refusal != nil {
		t.Fatal(refusal)
	}
	before, err := client.Dump(t.Context(), list).Result()
	if err == nil { // published now: the dumped lists were right
		_, refusal := take(w, t, researcher, delegation.Target{Kind: delegation.BanToken, ID: chain[1].Claims.ID})
		err = orNil(refusal)
	}
	must(err)
	follow(t, w)
	counted := func(cause string) float64 {
		metrics, err := registry.Gather()
		must(err)
		for _, family := range metrics {
			for _, m := range family.GetMetric() {
				if family.GetName() != "deputy_revocation_lists_mended_total" {
					continue
				}
				labels := map[string]string{}
				for _, l := range m.GetLabel() {
					labels[l.GetName()] = l.GetValue()
				}
				if labels["tenant"] == n.Name && labels["cause"] == cause {
					return m.GetCounter().GetValue()
				}
			}
		}
		return 0
	}
	if _, ready := await(serviceWithin, func() bool { return w.Engine.Ready(t.Context(), n.Name) == nil }); !ready {
		t.Fatal("the lists are not compared")
	}
	if total := counted("lost") + counted("old") + counted("damaged"); total != 0 {
		t.Fatalf("%v lists were mended that were right", total)
	}
	for _, c := range []struct {
		cause  string
		damage func() error
	}{
		{"lost", func() error { return client.Del(t.Context(), list).Err() }},
		{"old", func() error { return client.RestoreReplace(t.Context(), list, 0, before).Err() }},
		{"damaged", func() error { return client.HDel(t.Context(), list, "token:"+chain[2].Claims.ID).Err() }},
		{"damaged", func() error { return client.Set(t.Context(), list, "x", 0).Err() }},
	} {
		was := counted(c.cause)
		must(c.damage())
		if _, told := await(2*serviceWithin, func() bool { return counted(c.cause) == was+1 }); !told {
			t.Errorf("%s: counted %v, want %v", c.cause, counted(c.cause), was+1)
		}
	}
	if n := strings.Count(w.Log.String(), "revocation lists in redis mended"); n != 4 {
		t.Errorf("%d lines in the log, want 4", n)
	}
}

// follow makes the world follow until the test ends.
func follow(t *testing.T, w *exchangetest.World) {
	t.Helper()
	ctx, stop := context.WithCancel(t.Context())
	done := make(chan error, 1)
	go func() { done <- w.Engine.Follow(ctx) }()
	t.Cleanup(func() {
		stop()
		if err := <-done; err != nil {
			t.Error(err)
		}
	})
}

func orNil(refusal *delegation.Error) error {
	if refusal == nil {
		return nil
	}
	return refusal
}
