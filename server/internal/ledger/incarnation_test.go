package ledger_test

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"

	"deputy.example/deputy/client/delegation"
	"deputy.example/deputy/server/internal/ledger"
	"deputy.example/deputy/server/internal/ledger/ledgertest"
	"deputy.example/deputy/server/internal/testservers"
)

func appended(t *testing.T, l *ledger.Ledger, n int) (last ledger.Receipt) {
	t.Helper()
	if n > 10 {
		drafts := make([]*ledger.Draft, n)
		for i := range drafts {
			drafts[i] = everything()
		}
		results := l.AppendAll(t.Context(), tenant, drafts, nil)
		if err := results[n-1].Err; err != nil {
			t.Fatal(err)
		}
		return results[n-1].Receipt
	}
	for range n {
		var err error
		if last, err = l.Append(t.Context(), tenant, everything()); err != nil {
			t.Fatal(err, errors.Unwrap(err))
		}
	}
	return last
}

// lost are ways in which a database turns out not to be the one that this process appended five
// entries to.
var lost = map[string][]string{
	"the tail is missing": {
		`DELETE FROM entries WHERE seq > 3`, `UPDATE heads SET seq = 3, tree_size = 3, tree = (SELECT tree FROM kept)`,
	},
	"another entry of that number": {`UPDATE entries SET leaf = (SELECT leaf FROM entries WHERE seq = 1) WHERE seq = 5`},
	"the writes of a while":        {`UPDATE incarnation SET beat = 0`},
	"an earlier incarnation":       {`UPDATE incarnation SET number = number - 1`},
	"another incarnation":          {`UPDATE incarnation SET id = 'other'`},
	"another instance's doubt":     {`UPDATE incarnation SET doubt = 'it is in doubt'`},
}

// TestLostIsDoubted: what was acknowledged and is gone is noticed, by every instance from then on
// and after every restart, and only a recovery ends it. Instances then go on by themselves.
func TestLostIsDoubted(t *testing.T) {
	for name, harm := range lost {
		t.Run(name, func(t *testing.T) {
			onBoth(t, func(t *testing.T, dsn string) {
				execute(t, dsn, `UPDATE incarnation SET number = 7`)
				l := opened(t, dsn, patient)
				appended(t, l, 3)
				execute(t, dsn, `CREATE TABLE kept AS SELECT tree FROM heads`)
				appended(t, l, 2)
				if err := l.Sound(t.Context()); err != nil {
					t.Fatal(err, errors.Unwrap(err))
				}
				for _, statement := range harm {
					execute(t, dsn, statement)
				}
				l.Unproven()
				if _, err := l.Append(t.Context(), tenant, everything()); reason(err) != delegation.DependencyDown {
					// The writes of a while are what only a probe sees.
					if name != "the writes of a while" {
						t.Errorf("appended: %v", err)
					}
				}
				if err := l.Sound(t.Context()); !errors.Is(err, ledger.ErrDoubt) {
					t.Fatalf("believed: %v", err)
				}
				restarted := opened(t, dsn, patient)
				if err := restarted.Sound(t.Context()); !errors.Is(err, ledger.ErrDoubt) {
					t.Fatalf("believed after a restart: %v", err)
				}
				if _, err := restarted.Append(t.Context(), tenant, everything()); !errors.Is(err, ledger.ErrDoubt) {
					t.Fatalf("appended after a restart: %v", err)
				}
				begun := recovered(t, dsn, ledger.Decision{Reason: "a test", CutOff: true, Above: 9})
				for _, again := range []*ledger.Ledger{l, restarted} {
					if err := again.Probe(t.Context()); err != nil {
						t.Fatalf("after the recovery: %v (%v)", err, errors.Unwrap(err))
					}
					if now, doubt := again.Incarnation(); now != begun || doubt != nil || now.Number <= 9 || now.Recovered != now.Number {
						t.Errorf("incarnation %v, not %v; %v", now, begun, doubt)
					}
					if _, err := again.Append(t.Context(), tenant, everything()); err != nil {
						t.Errorf("append after the recovery: %v (%v)", err, errors.Unwrap(err))
					}
				}
			})
		})
	}
}

// TestEachTransactionConfirmsTheLedger changes the ledger below an instance that does not probe it:
// the next append is refused by what its own transaction reads, also after a recovery.
func TestEachTransactionConfirmsTheLedger(t *testing.T) {
	for name, statement := range map[string]string{
		"doubted by another instance": `UPDATE incarnation SET doubt = 'entries are missing'`,
		"of another number":           `UPDATE incarnation SET number = number + 1`,
		"of another id":               `UPDATE incarnation SET id = 'another'`,
		"without the entry":           `DELETE FROM entries WHERE seq = 2`,
		"with another entry":          `UPDATE entries SET leaf = (SELECT leaf FROM entries WHERE seq = 1) WHERE seq = 2`,
	} {
		for _, before := range []string{"at first", "after a recovery"} {
			t.Run(name+" "+before, func(t *testing.T) {
				onBoth(t, func(t *testing.T, dsn string) {
					l := opened(t, dsn, patient)
					if before == "after a recovery" {
						appended(t, l, 1)
						recovered(t, dsn, ledger.Decision{Reason: "a test", CutOff: true})
						if err := l.Probe(t.Context()); err != nil {
							t.Fatal(err)
						}
					}
					appended(t, l, 2)
					last := fmt.Sprint("seq = ", l.KnownHead(tenant))
					execute(t, dsn, strings.NewReplacer("seq = 2", last).Replace(statement))
					if r, err := l.Append(t.Context(), tenant, everything()); reason(err) != delegation.DependencyDown {
						t.Errorf("appended %+v, %v", r, err)
					}
				})
			})
		}
	}
}

func recovered(t *testing.T, dsn string, d ledger.Decision) ledger.Incarnation {
	t.Helper()
	l, err := ledger.OpenToRecover(t.Context(), dsn, patient)
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	begun, err := l.Recover(t.Context(), d)
	if err != nil {
		t.Fatal(err)
	}
	return begun
}

// TestRecoveryIsRecorded: auditors see it, and what it cuts off and records again is in force.
func TestRecoveryIsRecorded(t *testing.T) {
	dsn := databases["sqlite"](t)
	l := opened(t, dsn, patient)
	head := appended(t, l, 4).Seq
	if _, err := l.Append(t.Context(), tenant, ledgertest.Revocation(delegation.BanChain, "early")); err != nil {
		t.Fatal(err)
	}
	again := delegation.Revocation{Target: delegation.Target{Kind: delegation.BanSuspend, ID: "agent:rogue"}}
	recovered(t, dsn, ledger.Decision{
		Reason: "a test", CutOff: true,
		Lost: map[string][]delegation.Revocation{tenant: {again}}, All: map[string]bool{tenant: true},
	})
	if err := l.Probe(t.Context()); err != nil {
		t.Fatal(err)
	}
	entries, err := l.Entries(t.Context(), tenant, head+1, 10)
	if err != nil || len(entries) != 4 {
		t.Fatalf("%d entries, %v", len(entries), err)
	}
	var said []string
	for _, e := range entries {
		what := string(e.Kind) + " " + string(e.Outcome)
		if e.Revocation != nil {
			what = string(e.Revocation.Target.Kind) + " " + e.Revocation.Target.ID
		}
		said = append(said, what)
	}
	if want := fmt.Sprintf("[admin done fork %d tenant  suspend agent:rogue]", head); fmt.Sprint(said) != want {
		t.Errorf("recorded %q, not %q", said, want)
	}
	if !strings.Contains(entries[0].Detail, "a test") {
		t.Errorf("the reason is not recorded: %q", entries[0].Detail)
	}
	r, err := l.LastRecovery(t.Context(), tenant)
	if err != nil || r.Head != head+1 || !r.Since.After(entries[0].Time.Add(delegation.ForkMargin*time.Second)) {
		t.Errorf("%+v, %v", r, err)
	}
	if err := l.Verify(t.Context(), tenant); err != nil {
		t.Error(err)
	}
}

// nothingKept makes a table keep nothing of what is inserted or, for heads, updated.
func nothingKept(t *testing.T, dsn, table string) {
	t.Helper()
	event := "INSERT"
	if table == "heads" || table == "incarnation" {
		event = "UPDATE"
	}
	if strings.HasPrefix(dsn, "sqlite") {
		execute(t, dsn, `CREATE TRIGGER keeps_nothing BEFORE `+event+` ON `+table+` BEGIN SELECT RAISE(IGNORE); END`)
		return
	}
	execute(t, dsn, `CREATE FUNCTION nothing() RETURNS trigger LANGUAGE plpgsql AS 'BEGIN RETURN NULL; END'`)
	execute(t, dsn, `CREATE TRIGGER keeps_nothing BEFORE `+event+` ON `+table+` FOR EACH ROW EXECUTE FUNCTION nothing()`)
}

// TestNothingKeptIsNotAcknowledged: a statement that succeeds and writes no row fails the append.
func TestNothingKeptIsNotAcknowledged(t *testing.T) {
	for _, table := range []string{"entries", "claims", "single_uses", "idempotency_keys", "heads", "tree_nodes"} {
		t.Run(table, func(t *testing.T) {
			onBoth(t, func(t *testing.T, dsn string) {
				l := opened(t, dsn, patient)
				appended(t, l, 255) // the next one completes a node of the tree
				nothingKept(t, dsn, table)
				d := everything()
				if _, err := l.Append(t.Context(), tenant, d); reason(err) != delegation.DependencyDown {
					t.Fatalf("acknowledged: %v", err)
				}
				if _, err := l.Entry(t.Context(), tenant, d.ID); !errors.Is(err, ledger.ErrNotFound) {
					t.Errorf("recorded all the same: %v", err)
				}
				checked(t, l)
			})
		})
	}
	t.Run("a rule", func(t *testing.T) {
		dsn := databases["postgres"](t)
		l := opened(t, dsn, patient)
		appended(t, l, 1)
		execute(t, dsn, `CREATE RULE nothing AS ON INSERT TO entries DO INSTEAD NOTHING`)
		if _, err := l.Append(t.Context(), tenant, everything()); reason(err) != delegation.DependencyDown {
			t.Fatalf("acknowledged: %v", err)
		}
	})
	for _, table := range []string{"incarnation", "console_sessions"} {
		t.Run(table, func(t *testing.T) {
			onBoth(t, func(t *testing.T, dsn string) {
				l := opened(t, dsn, patient)
				nothingKept(t, dsn, table)
				l.Unproven()
				if err := l.StartSession(t.Context(), tenant, [32]byte{1}, ledger.Session{Until: time.Now().Add(time.Hour)}); (err != nil) != (table == "console_sessions") {
					t.Errorf("a session: %v", err)
				}
				if err := l.Sound(t.Context()); (err != nil) != (table == "incarnation") {
					t.Errorf("sound: %v", err)
				}
			})
		})
	}
}

// TestAheadOfTheLedgerIsRefused: a hop with a number that was never given is of another ledger.
func TestAheadOfTheLedgerIsRefused(t *testing.T) {
	onBoth(t, func(t *testing.T, dsn string) {
		l := opened(t, dsn, patient)
		parent := everything()
		r, err := l.Append(t.Context(), tenant, parent)
		if err != nil {
			t.Fatal(err)
		}
		for above, want := range map[uint64]delegation.Reason{0: "", 1: delegation.TokenRevoked, 100: delegation.TokenRevoked} {
			child := everything()
			child.Parent, child.Txn, child.Root = parent.ID, parent.Txn, parent.Root
			child.Lineage.Hops = []delegation.Hop{{ID: parent.ID, Seq: r.Seq + above, Actor: 0}}
			if above > 0 {
				child.Lineage.Hops[0].Seq += 10 // whatever this test has appended
			}
			if _, err := l.Append(t.Context(), tenant, child); reason(err) != want {
				t.Errorf("%d above: %v", above, err)
			}
		}
	})
}

// TestLockedTablesAreNotSound: the probe takes what an append takes.
func TestLockedTablesAreNotSound(t *testing.T) {
	config := ledger.Config{Timeout: 1500 * time.Millisecond}
	for _, table := range []string{"entries", "heads", "claims"} {
		dsn := databases["postgres"](t)
		l := opened(t, dsn, config)
		conn, err := pgx.Connect(t.Context(), dsn)
		if err != nil {
			t.Fatal(err)
		}
		tx, err := conn.Begin(t.Context())
		if err == nil {
			_, err = tx.Exec(t.Context(), `LOCK TABLE `+table+` IN ACCESS EXCLUSIVE MODE`)
		}
		if err != nil {
			t.Fatal(err)
		}
		l.Unproven()
		if err := l.Sound(t.Context()); reason(err) != delegation.DependencyDown || errors.Is(err, ledger.ErrDoubt) {
			t.Errorf("%s is locked: %v", table, err)
		}
		if err := errors.Join(tx.Rollback(t.Context()), conn.Close(t.Context())); err != nil {
			t.Fatal(err)
		}
		if err := l.Sound(t.Context()); err != nil {
			t.Errorf("%s is free again: %v", table, err)
		}
	}
}

// TestStandbysAndFailovers is the rule for each way in which another server goes on.
func TestStandbysAndFailovers(t *testing.T) {
	primary := testservers.NewPostgres(t)
	ledgertest.Migrate(t, primary.DSN)
	l := opened(t, primary.DSN, patient)
	appended(t, l, 3)
	asynchronous := primary.Standby(t, "slow", false)
	primary.Replicated(t)
	if _, err := ledger.Open(t.Context(), asynchronous.DSN, patient); err == nil || !strings.Contains(err.Error(), "standby") {
		t.Fatalf("a standby was opened: %v", err)
	}
	asynchronous.Promote(t)
	after := opened(t, asynchronous.DSN, patient)
	if err := after.Sound(t.Context()); !errors.Is(err, ledger.ErrDoubt) {
		t.Fatalf("commits did not wait for it, and it is believed: %v", err)
	}
	if err := l.Probe(t.Context()); err != nil {
		t.Fatalf("the primary that goes on: %v", err)
	}

	synchronous := primary.Standby(t, "fast", true)
	if err := l.Probe(t.Context()); err != nil { // which writes down that commits wait
		t.Fatal(err, errors.Unwrap(err))
	}
	r := appended(t, l, 1)
	before, _ := l.Incarnation()
	synchronous.Promote(t)
	next := opened(t, synchronous.DSN, patient)
	if err := next.Sound(t.Context()); err != nil {
		t.Fatalf("commits waited for it, and it is not believed: %v (%v)", err, errors.Unwrap(err))
	}
	now, _ := next.Incarnation()
	if now.Number != before.Number+1 || now.ID == before.ID || now.Recovered != 0 {
		t.Errorf("incarnation %+v follows %+v", now, before)
	}
	if again := appended(t, next, 1); again.Seq != r.Seq+1 {
		t.Errorf("entry %d follows %d", again.Seq, r.Seq)
	}
	// The former primary lives on, and no operator fenced it: it waits for a standby that is gone,
	// so it proves nothing.
	short := opened(t, primary.DSN, ledger.Config{Timeout: 600 * time.Millisecond})
	if err := short.Sound(t.Context()); err == nil {
		t.Error("the former primary is believed")
	}
	ctx, cancel := context.WithTimeout(t.Context(), time.Second)
	defer cancel()
	if _, err := short.Append(ctx, tenant, everything()); err == nil {
		t.Error("the former primary acknowledged a grant")
	}
	// What it gave up waiting for is not visible either.
	conn, err := pgx.Connect(t.Context(), primary.DSN)
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close(t.Context())
	var head, waiting uint64
	if err := conn.QueryRow(t.Context(), `SELECT (SELECT max(seq) FROM entries), (SELECT count(*) FROM pg_stat_activity WHERE wait_event = 'SyncRep')`).
		Scan(&head, &waiting); err != nil || head != r.Seq || waiting == 0 {
		t.Errorf("entry %d is visible on the former primary, not %d; %d commits wait; %v", head, r.Seq, waiting, err)
	}
}

// TestRecoveryIsNotDoubtedAgain: memory of the incarnation that was given up is no evidence against
// the recovered one, neither before this process learns of the recovery nor in a read that waited
// meanwhile.
func TestRecoveryIsNotDoubtedAgain(t *testing.T) {
	for _, adopted := range []bool{false, true} {
		t.Run(fmt.Sprintf("adopted %v", adopted), func(t *testing.T) {
			onBoth(t, func(t *testing.T, dsn string) {
				l := opened(t, dsn, patient)
				appended(t, l, 3)
				execute(t, dsn, `CREATE TABLE kept AS SELECT tree FROM heads`)
				appended(t, l, 6)
				read := l.Reader(tenant)
				if err := read(t.Context()); err != nil {
					t.Fatal(err)
				}
				for _, statement := range lost["the tail is missing"] {
					execute(t, dsn, statement)
				}
				recovered(t, dsn, ledger.Decision{Reason: "a test", CutOff: true})
				if adopted {
					if err := l.Probe(t.Context()); err != nil {
						t.Fatal(err, errors.Unwrap(err))
					}
				}
				if err := read(t.Context()); err == nil || errors.Is(err, ledger.ErrDoubt) {
					t.Errorf("read of the former incarnation: %v", err)
				}
				if err := opened(t, dsn, patient).Sound(t.Context()); err != nil {
					t.Errorf("another instance: %v", err)
				}
				if err := l.Sound(t.Context()); err != nil {
					t.Errorf("sound: %v", err)
				}
				if _, err := l.Revocations(t.Context(), tenant, true); err != nil {
					t.Errorf("read of the recovered incarnation: %v", err)
				}
			})
		})
	}
}

// TestOldUsesAreRefusedAfterARecovery: what was spent in the ledger that was given up is not known,
// so what is older than the recovery is refused, unless nothing was lost.
func TestOldUsesAreRefusedAfterARecovery(t *testing.T) {
	for _, intact := range []bool{false, true} {
		t.Run(fmt.Sprint("intact ", intact), func(t *testing.T) {
			onBoth(t, func(t *testing.T, dsn string) {
				l := opened(t, dsn, patient)
				appended(t, l, 1)
				recovered(t, dsn, ledger.Decision{Reason: "a test", CutOff: !intact, Intact: intact})
				if err := l.Probe(t.Context()); err != nil {
					t.Fatal(err, errors.Unwrap(err))
				}
				r, err := l.LastRecovery(t.Context(), tenant)
				if err != nil || r.Since.IsZero() != intact {
					t.Fatalf("%+v, %v", r, err)
				}
				since := r.Since
				if intact {
					since = time.Now()
				}
				for made, refused := range map[time.Time]bool{time.Unix(1, 0): true, since.Add(-2 * time.Second): true, since: false} {
					for _, is := range []delegation.Reason{delegation.AssertionReplayed, delegation.ProofReplayed, delegation.TokenSpent} {
						want := is
						if !refused || intact {
							want = ""
						}
						use := ledger.SingleUse{Issuer: "i", ID: fmt.Sprint(t.Name(), made, is), Made: made, Until: time.Now().Add(time.Hour), Reason: is}
						d := everything()
						d.Uses = []ledger.SingleUse{use}
						if _, err := l.Append(t.Context(), tenant, d); reason(err) != want {
							t.Errorf("grant, made %v: %v", made, err)
						}
						use.ID += "caller"
						if err := l.Spend(t.Context(), tenant, []ledger.SingleUse{use}); reason(err) != want {
							t.Errorf("spent, made %v: %v", made, err)
						}
					}
				}
			})
		})
	}
}
