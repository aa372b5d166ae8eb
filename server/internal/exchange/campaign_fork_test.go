package exchange_test

import (
	"context"
	"database/sql"
	"errors"
	"math/rand/v2"
	"path/filepath"
	"sync"
	"testing"
	"time"

	"deputy.example/deputy/client/delegation"
	"deputy.example/deputy/server/internal/exchange"
	"deputy.example/deputy/server/internal/exchange/exchangetest"
	"deputy.example/deputy/server/internal/guard"
	"deputy.example/deputy/server/internal/ledger"
	"deputy.example/deputy/server/internal/testservers"
)

// fork is one deployment whose ledger another database continues.
type fork struct {
	*fleet
	*findings
	random  *rand.Rand
	primary *testservers.PostgresServer // nil: an SQLite file
	file    string
	guard   *guard.Guard
	tokens  []string                     // acknowledged, in order
	claims  map[string]delegation.Claims // by token
	revoked map[string]bool              // by token: acknowledged
}

// ways are the ways in which another database continues a ledger.
var ways = map[string]struct {
	file        bool // an SQLite file is copied
	backup      bool // an older copy continues, which was not replicated to
	synchronous bool // commits waited for the standby
	fenced      bool // the former database is dead
	full        bool // only in the full campaign
}{
	"synchronous, fenced":    {synchronous: true, fenced: true, full: true},
	"synchronous, unfenced":  {synchronous: true},
	"asynchronous, fenced":   {fenced: true},
	"asynchronous, unfenced": {full: true},
	"backup, fenced":         {backup: true, fenced: true, full: true},
	"backup, unfenced":       {backup: true},
	"file, fenced":           {file: true, backup: true, fenced: true},
	"file, unfenced":         {file: true, backup: true},
}

// TestCampaignForks: in whatever way another database continues a ledger, no revoked token is
// accepted, and nothing that a synchronous standby acknowledged is lost. If something may be lost,
// no instance serves before a recovery.
func TestCampaignForks(t *testing.T) {
	seed := testservers.Seed(t)
	for name, way := range ways {
		if way.full && testservers.Campaign(1, 0) == 0 {
			continue
		}
		t.Run(name, func(t *testing.T) {
			for round := range testservers.Campaign(10, 1) {
				f := newFork(t, rand.New(rand.NewPCG(seed, uint64(round))), way.file)
				f.work(t, f.at(0), 3)
				dsn, promote := f.second(t, way.synchronous, way.backup)
				f.work(t, f.at(0), 3) // a backup lacks these
				if !way.backup && !way.synchronous {
					f.primary.Replicated(t)
				}
				// Each instance compares every three seconds.
				must(t, f.at(0).Engine.Compare(t.Context(), f.n.Name))
				if way.fenced && f.primary != nil {
					f.primary.Kill()
				}
				next := f.at(0).Restored(t, promote(dsn))
				if way.synchronous {
					f.judge(t, next, "after a synchronous failover", 0)
				} else {
					f.refused(t, next, "before the recovery")
					f.recover(t, next, dsn)
				}
				f.work(t, next, 2)
				if !way.fenced {
					f.superseded(t, next)
				}
				f.report(t)
			}
		})
	}
}

func newFork(t *testing.T, random *rand.Rand, file bool) *fork {
	t.Helper()
	redis := testservers.NewRedis(t)
	f := &fork{random: random, findings: &findings{}, claims: map[string]delegation.Claims{}, revoked: map[string]bool{}, guard: guardAt(t, redis.URL())}
	config := exchangetest.Config{RedisURL: redis.URL(), Prompt: true, Deadline: 20 * time.Second}
	if f.file = filepath.Join(testservers.Dir(t), "ledger.db"); file {
		config.DSN = "sqlite://" + f.file
	} else {
		f.primary = testservers.NewPostgres(t)
		config.DSN = f.primary.DSN
	}
	f.fleet = newFleet(t, config, 1)
	return f
}

// second makes the database that will continue the ledger, and the function that makes it take
// writes.
func (f *fork) second(t *testing.T, synchronous, backup bool) (dsn string, promote func(string) string) {
	t.Helper()
	same := func(dsn string) string { return dsn }
	switch {
	case f.primary == nil:
		copied := filepath.Join(t.TempDir(), "copy.db")
		db, err := sql.Open("sqlite", f.file)
		must(t, err)
		_, err = db.Exec(`VACUUM INTO ?`, copied)
		must(t, errors.Join(err, db.Close()))
		return "sqlite://" + copied, same
	case backup:
		return f.primary.Backup(t).DSN, same
	}
	standby := f.primary.Standby(t, "standby", synchronous)
	must(t, f.at(0).Ledger.Probe(t.Context())) // which records whether commits wait
	return standby.DSN, func(dsn string) string { standby.Promote(t); return dsn }
}

// work issues some tokens and revokes some, all acknowledged.
func (f *fork) work(t *testing.T, w *exchangetest.World, n int) {
	t.Helper()
	for range n {
		grant, err := w.One(t.Context(), f.n.Call(t, f.n.Root(t, nil), exchangetest.Planner, exchangetest.Planner))
		if err != nil {
			t.Fatalf("%v (%v)", err, err.Unwrap())
		}
		f.tokens = append(f.tokens, grant.AccessToken)
		f.claims[grant.AccessToken] = grant.Claims
	}
	victim := f.tokens[f.random.IntN(len(f.tokens))]
	if f.revoked[victim] {
		return
	}
	if _, err := f.revoke(t, w, delegation.Target{Kind: delegation.BanToken, ID: f.claims[victim].ID}); err != nil {
		t.Fatalf("%v (%v)", err, errors.Unwrap(err))
	}
	f.revoked[victim] = true
}

// judge introspects each token. Those above lostAbove are lost and must not be active either. 0:
// none is lost.
func (f *fork) judge(t *testing.T, w *exchangetest.World, when string, lostAbove uint64) {
	t.Helper()
	for _, token := range f.tokens {
		active, err := f.introspect(t, w, token)
		seq := f.claims[token].Delegation.Hops[0].Seq
		alive := !f.revoked[token] && (lostAbove == 0 || seq <= lostAbove)
		if err != nil || active != alive {
			f.add("%s: token %d is active %v, not %v (%v)", when, seq, active, alive, errors.Join(err, errors.Unwrap(err)))
		}
	}
}

// refused requires that no call discloses the state of a token.
func (f *fork) refused(t *testing.T, w *exchangetest.World, when string) {
	t.Helper()
	for _, token := range f.tokens {
		if _, err := f.introspect(t, w, token); reason(err) != delegation.DependencyDown {
			f.add("%s: introspected (%v)", when, err)
		}
	}
	if _, err := w.One(t.Context(), f.n.Call(t, f.n.Root(t, nil), exchangetest.Planner, exchangetest.Planner)); err == nil {
		f.add("%s: issued", when)
	}
	if _, err := w.Engine.Watch(t.Context(), exchange.Inquiry{Tenant: f.n.Name, Credentials: f.n.Credentials(t, exchangetest.Writer)}); err == nil {
		f.add("%s: watched", when)
	}
	if _, err := f.revoke(t, w, delegation.Target{Kind: delegation.BanChain, ID: "x"}); err == nil {
		f.add("%s: revoked", when)
	}
}

// recover does what "deputyd ledger recover --cut-off" does, and lets the margin of clocks pass.
func (f *fork) recover(t *testing.T, w *exchangetest.World, dsn string) {
	t.Helper()
	l, err := ledger.OpenToRecover(t.Context(), dsn, ledger.Config{Now: w.Clock().Now, Timeout: 20 * time.Second})
	must(t, err)
	remains, _, err := l.Remains(t.Context())
	must(t, err)
	lost, complete, err := f.guard.Remembered(t.Context(), f.n.Name, remains[0].Revocation)
	if must(t, err); !complete {
		t.Fatal("Redis holds no lists")
	}
	_, err = l.Recover(t.Context(), ledger.Decision{Reason: "campaign", CutOff: true, Lost: map[string][]delegation.Revocation{f.n.Name: lost}})
	must(t, errors.Join(err, l.Close()))
	must(t, w.Ledger.Probe(t.Context()))
	if _, err := f.introspect(t, w, f.tokens[0]); reason(err) != delegation.DependencyDown {
		f.add("within the margin of clocks: %v", err)
	}
	w.Clock().Advance((delegation.ForkMargin + 2) * time.Second)
	head := remains[0].Grant
	f.judge(t, w, "after the recovery", head)
	f.work(t, w, 4)                  // numbers are given again
	for i, token := range f.tokens { // what is lost stays lost
		seq := f.claims[token].Delegation.Hops[0].Seq
		if i < len(f.tokens)-4 && seq > head {
			f.revoked[token] = true
		}
	}
	f.judge(t, w, "when numbers come again", 0)
}

// superseded requires that the former instance finds out by Redis, or by a database that takes no
// more writes.
func (f *fork) superseded(t *testing.T, next *exchangetest.World) {
	t.Helper()
	must(t, next.Engine.Compare(t.Context(), f.n.Name))
	must(t, f.at(0).Engine.Arbitrate(t.Context(), f.n.Name))
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
	defer cancel()
	var asking sync.WaitGroup
	for _, token := range f.tokens[:2] {
		asking.Go(func() {
			_, err := f.at(0).Engine.Introspect(ctx, exchange.Inquiry{
				Tenant: f.n.Name, Token: token, Credentials: f.n.Credentials(t, exchangetest.Writer),
			})
			if err == nil {
				f.add("the former instance answers")
			}
		})
	}
	asking.Wait()
}
