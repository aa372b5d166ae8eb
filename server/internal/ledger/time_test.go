package ledger_test

import (
	"path/filepath"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"deputy.example/deputy/client/delegation"
	"deputy.example/deputy/server/internal/clock"
	"deputy.example/deputy/server/internal/ledger"
	"deputy.example/deputy/server/internal/ledger/ledgertest"
	"deputy.example/deputy/server/internal/testservers"
)

// machine is an instance on a machine of its own, whose clocks a test steps away from what time it
// is.
type machine struct {
	*ledger.Ledger
	wall, remote *atomic.Int64 // how far ahead the wall clock and the clock of the database are
}

func newMachine(t testing.TB, dsn string, truth *ledgertest.Clock, wall time.Duration) machine {
	t.Helper()
	m := machine{wall: new(atomic.Int64), remote: new(atomic.Int64)}
	m.wall.Store(int64(wall))
	began := truth.Now()
	m.Ledger = opened(t, dsn, ledger.Config{Timeout: patient.Timeout, Clock: clock.New(clock.Config{
		Now:     func() time.Time { return truth.Add(0).Add(time.Duration(m.wall.Load())) },
		Elapsed: func() time.Duration { return truth.Now().Sub(began) },
		Remote:  func(string, time.Time) time.Time { return truth.Now().Add(time.Duration(m.remote.Load())) },
	})})
	return m
}

// wrong is an instance that believes a clock that is ahead, as one does that has no other evidence.
func wrong(t testing.TB, dsn string, truth *ledgertest.Clock, ahead time.Duration) *ledger.Ledger {
	t.Helper()
	return opened(t, dsn, ledger.Config{Timeout: patient.Timeout, Now: func() time.Time { return truth.Now().Add(ahead) }})
}

func must(t testing.TB, l *ledger.Ledger, d *ledger.Draft, uses ...ledger.SingleUse) ledger.Receipt {
	t.Helper()
	r, err := l.Append(t.Context(), tenant, d, uses...)
	if err != nil {
		t.Fatal(err)
	}
	return r
}

func use(id string, until time.Time) ledger.SingleUse {
	return ledger.SingleUse{Issuer: "https://idp.example", Key: "k1", ID: id, Until: until}
}

// TestSpentStaysSpentWhenRowsArePruned has an instance prune by a clock that is ahead; another one,
// whose clock is right, is shown what was spent.
func TestSpentStaysSpentWhenRowsArePruned(t *testing.T) {
	onBoth(t, func(t *testing.T, dsn string) {
		truth := ledgertest.NewClock()
		right := newMachine(t, dsn, truth, 0)
		assertion, parent := use("assertion", truth.Now().Add(time.Minute)), use("parent", truth.Now().Add(30*time.Minute))
		parent.Reason = delegation.TokenSpent
		grant := func() *ledger.Draft {
			d := ledgertest.Grant(truth.Now(), "user:alice", "agent:planner")
			d.Uses = []ledger.SingleUse{parent}
			return d
		}
		must(t, right.Ledger, grant(), assertion)
		keyed := ledgertest.Grant(truth.Now(), "user:alice", "agent:planner")
		keyed.Idempotency = &ledger.Idempotency{Key: "key", Until: truth.Now().Add(40 * time.Minute)}
		must(t, right.Ledger, keyed)

		ahead := wrong(t, dsn, truth, time.Hour)
		const added = 2 * ledger.PruneAfter
		for i := range added { // prunes
			late := truth.Now().Add(3 * time.Hour)
			d := ledgertest.Grant(truth.Now().Add(time.Hour), "user:bob", "agent:writer")
			d.Idempotency = &ledger.Idempotency{Key: strings.Repeat("k", i+1), Until: late}
			must(t, ahead, d, use(strings.Repeat("x", i+1), late))
		}
		if uses, keys := ahead.Rows(t, "single_uses"), ahead.Rows(t, "idempotency_keys"); uses != added || keys != added {
			t.Fatalf("%d and %d rows are left: the test is void", uses, keys)
		}
		if err := right.Spend(t.Context(), tenant, []ledger.SingleUse{assertion}); reason(err) != delegation.AssertionReplayed {
			t.Errorf("an assertion that was spent: %v", err)
		}
		if _, err := right.Append(t.Context(), tenant, grant()); reason(err) != delegation.TokenSpent {
			t.Errorf("a token that was spent: %v", err)
		}
		again := ledgertest.Grant(truth.Now(), "user:alice", "agent:planner")
		again.Idempotency = keyed.Idempotency
		if _, err := right.Append(t.Context(), tenant, again); reason(err) != delegation.GrantGone {
			t.Errorf("a key whose grant was made: %v", err)
		}
		must(t, right.Ledger, ledgertest.Grant(truth.Now(), "user:alice", "agent:planner"), use("fresh", truth.Now().Add(2*time.Hour)))
	})
}

// TestNothingIsPrunedByADoubtfulClock is the same with an instance that has evidence against its
// clock.
func TestNothingIsPrunedByADoubtfulClock(t *testing.T) {
	onBoth(t, func(t *testing.T, dsn string) {
		truth := ledgertest.NewClock()
		m := newMachine(t, dsn, truth, 0)
		must(t, m.Ledger, ledgertest.Grant(truth.Now(), "user:alice", "agent:planner"), use("assertion", truth.Now().Add(time.Minute)))
		m.wall.Store(int64(time.Hour))
		truth.Add(5 * time.Minute) // the assertion has expired, and the instance cannot be certain of that
		for i := range 2 * ledger.PruneAfter {
			if err := m.Spend(t.Context(), tenant, []ledger.SingleUse{use(strings.Repeat("x", i+1), truth.Now().Add(2*time.Hour))}); err != nil {
				t.Fatal(err)
			}
		}
		if n := m.Rows(t, "single_uses"); n != 2*ledger.PruneAfter+1 {
			t.Errorf("%d rows are left", n)
		}
	})
}

// TestAForgottenRevocationRevivesNothing sweeps a memory by a clock that is ahead and then sets it
// right: what the forgotten revocation hits is refused, and the memory is rebuilt by itself.
func TestAForgottenRevocationRevivesNothing(t *testing.T) {
	onBoth(t, func(t *testing.T, dsn string) {
		truth := ledgertest.NewClock()
		ahead := new(atomic.Int64)
		l := opened(t, dsn, ledger.Config{Timeout: patient.Timeout, Now: func() time.Time { return truth.Now().Add(time.Duration(ahead.Load())) }})
		parent := must(t, l, ledgertest.Grant(truth.Now(), "user:alice", "agent:planner"))
		ban := ledgertest.Revocation(delegation.BanToken, ledgertest.Decode(parent.Claims).ID)
		ban.Revocation.Until = truth.Now().Add(time.Second)
		must(t, l, ban)
		ahead.Store(int64(time.Hour))
		l.Sweep(tenant)
		ahead.Store(0)

		if _, err := l.Append(t.Context(), tenant, ledgertest.Child(truth.Now(), parent.Claims, "agent:writer")); err == nil {
			t.Error("a child of a revoked token was granted")
		}
		set, err := l.Revocations(t.Context(), tenant, false)
		if err != nil || !set.Forgotten(truth.Now().Add(ledgertest.Life)) {
			t.Errorf("the memory answers for what it forgot: %v", err)
		}
		if set, err = l.Revocations(t.Context(), tenant, true); err != nil {
			t.Fatal(err)
		}
		if _, hit := set.Hit(ledgertest.Decode(parent.Claims).Lineage()); !hit || set.Forgotten(truth.Now().Add(ledgertest.Life)) {
			t.Errorf("the memory was not rebuilt: horizon %v", set.Horizon())
		}
		if live, last, forgotten, err := l.Snapshot(t.Context(), tenant); err != nil || len(live) != 1 || last != 2 || forgotten.After(truth.Now()) {
			t.Errorf("Snapshot = %v, %d, %v, %v", live, last, forgotten, err)
		}
		must(t, l, ledgertest.Grant(truth.Now(), "user:alice", "agent:planner"))
	})
}

// TestWhatALoadLeavesOutIsRefused opens an instance with a clock that is ahead: its first read
// leaves out a revocation that it takes for ended.
func TestWhatALoadLeavesOutIsRefused(t *testing.T) {
	onBoth(t, func(t *testing.T, dsn string) {
		truth := ledgertest.NewClock()
		right := newMachine(t, dsn, truth, 0)
		parent := must(t, right.Ledger, ledgertest.Grant(truth.Now(), "user:alice", "agent:planner"))
		for _, id := range []string{ledgertest.Decode(parent.Claims).ID, "another"} { // the newest is always read
			ban := ledgertest.Revocation(delegation.BanToken, id)
			ban.Revocation.Until = truth.Now().Add(time.Second)
			must(t, right.Ledger, ban)
		}
		ahead := wrong(t, dsn, truth, time.Hour)
		set, err := ahead.Revocations(t.Context(), tenant, true)
		if err != nil {
			t.Fatal(err)
		}
		if _, hit := set.Hit(ledgertest.Decode(parent.Claims).Lineage()); hit || !set.Forgotten(truth.Now().Add(ledgertest.Life)) {
			t.Errorf("hit %t, horizon %v: want it left out, and behind the horizon", hit, set.Horizon())
		}
	})
}

// TestARestartDuringAStep starts an instance while all of its clocks are ahead, without evidence
// against them. Once they are right, nothing is refused that was issued meanwhile or before.
func TestARestartDuringAStep(t *testing.T) {
	onBoth(t, func(t *testing.T, dsn string) {
		truth := ledgertest.NewClock()
		before := newMachine(t, dsn, truth, 0)
		parent := must(t, before.Ledger, ledgertest.Grant(truth.Now(), "user:alice", "agent:planner"), use("assertion", truth.Now().Add(time.Minute)))

		const step = 48 * time.Hour
		m := newMachine(t, dsn, truth, step)
		m.remote.Store(int64(step))
		for i := range 2 * ledger.PruneAfter {
			must(t, m.Ledger, ledgertest.Grant(truth.Now().Add(step), "user:bob", "agent:writer"), use(strings.Repeat("x", i+1), truth.Now().Add(2*step)))
		}
		if n := m.Rows(t, "single_uses"); n != 2*ledger.PruneAfter+1 {
			t.Errorf("%d rows are left", n)
		}
		if err := m.Trusted(); err != nil {
			t.Fatalf("%v: the test is void", err)
		}
		m.wall.Store(0)
		m.remote.Store(0)
		for end := truth.Now().Add(clock.Hold + 5*time.Second); truth.Now().Before(end); truth.Add(time.Second) {
			if _, err := m.Revocations(t.Context(), tenant, true); err != nil {
				t.Fatal(err)
			}
		}
		if err := m.Trusted(); err != nil {
			t.Fatal(err)
		}
		set, err := m.Revocations(t.Context(), tenant, true)
		if err != nil || set.Forgotten(truth.Now().Add(ledgertest.Life)) {
			t.Errorf("what was issued before is refused: horizon %v, %v", set.Horizon(), err)
		}
		must(t, m.Ledger, ledgertest.Child(truth.Now(), parent.Claims, "agent:writer"))
	})
}

// TestWhatIsPrunedIsNotReadAgain has the ledger's horizon be ahead, which another load does not
// change.
func TestWhatIsPrunedIsNotReadAgain(t *testing.T) {
	onBoth(t, func(t *testing.T, dsn string) {
		truth := ledgertest.NewClock()
		ahead := wrong(t, dsn, truth, time.Hour)
		for i := range 2 * ledger.PruneAfter {
			must(t, ahead, ledgertest.Grant(truth.Now().Add(time.Hour), "user:bob", "agent:writer"), use(strings.Repeat("x", i+1), truth.Now().Add(3*time.Hour)))
		}
		var asked atomic.Int64
		l := opened(t, dsn, ledger.Config{Timeout: patient.Timeout, Now: func() time.Time {
			asked.Add(1)
			return truth.Now()
		}})
		if _, err := l.Append(t.Context(), "other", ledgertest.Grant(truth.Now(), "user:alice", "agent:planner")); err != nil {
			t.Fatal(err)
		}
		refresh := func(name string) (horizon time.Time, times int64) { // how often each read asks for the time is always the same
			asked.Store(0)
			set, err := l.Revocations(t.Context(), name, true)
			if err != nil {
				t.Fatal(err)
			}
			return set.Horizon(), asked.Load()
		}
		refresh(tenant)
		refresh("other")
		_, once := refresh("other")
		if horizon, times := refresh(tenant); !horizon.After(truth.Now()) || times != once {
			t.Errorf("horizon %v, and the time asked for %d times instead of %d", horizon, times, once)
		}
	})
}

// TestLedgerTimeDoesNotJump steps the clock of one instance, and that of PostgreSQL.
func TestLedgerTimeDoesNotJump(t *testing.T) {
	onBoth(t, func(t *testing.T, dsn string) {
		truth := ledgertest.NewClock()
		a, b := newMachine(t, dsn, truth, 0), newMachine(t, dsn, truth, 0)
		record := func(m machine) (ledger.Receipt, error) {
			return m.Append(t.Context(), tenant, &ledger.Draft{Kind: ledger.KindRefusal, Reason: delegation.Internal, Caller: "agent:planner"})
		}
		last := truth.Now().Add(-time.Second)
		for i, step := range []time.Duration{0, time.Hour, -time.Hour, 48 * time.Hour, 0, -48 * time.Hour, 3 * time.Second, 0} {
			for _, stepped := range []*atomic.Int64{a.wall, a.remote} {
				stepped.Store(int64(step))
				for _, m := range []machine{a, b, a} {
					truth.Add(time.Second)
					r, err := record(m)
					if err != nil {
						t.Fatal(err)
					}
					if off := r.Time.Sub(truth.Now()).Abs(); off > clock.DefaultBound || r.Time.Before(last) {
						t.Errorf("step %d by %v: ledger time is %v off, %v after the last", i, step, off, r.Time.Sub(last))
					}
					last = r.Time
				}
				stepped.Store(0)
			}
		}
	})
}

// TestADoubtfulClockGrantsNothingAndRevokes asks both of an instance whose clock was stepped.
func TestADoubtfulClockGrantsNothingAndRevokes(t *testing.T) {
	onBoth(t, func(t *testing.T, dsn string) {
		truth := ledgertest.NewClock()
		m := newMachine(t, dsn, truth, 0)
		parent := must(t, m.Ledger, ledgertest.Grant(truth.Now(), "user:alice", "agent:planner"))
		for _, step := range []time.Duration{-48 * time.Hour, -3 * time.Second, 3 * time.Second, 40 * time.Minute} {
			m.wall.Store(int64(step))
			if r, err := m.Append(t.Context(), tenant, ledgertest.Grant(truth.Now(), "user:alice", "agent:planner")); reason(err) != delegation.DependencyDown || r.Seq != 0 {
				t.Errorf("%v: a grant: %+v, %v", step, r, err)
			}
			if m.Trusted() == nil {
				t.Errorf("%v: trusted", step)
			}
			r := must(t, m.Ledger, ledgertest.Revocation(delegation.CutSubject, "user:bob"))
			if off := r.Time.Sub(truth.Now()).Abs(); off > clock.DefaultBound {
				t.Errorf("%v: a revocation is recorded %v off", step, off)
			}
		}
		m.wall.Store(0)
		must(t, m.Ledger, ledgertest.Child(truth.Now(), parent.Claims, "agent:writer"))
		if _, at, err := m.Newest(t.Context(), tenant); err != nil || at.Sub(truth.Now()).Abs() > clock.DefaultBound {
			t.Errorf("the newest is of %v, %v", at, err)
		}
	})
}

// TestRevocationsOutliveWhatTheyHit asks for an end that today's limits would give, of tokens that
// were granted under longer ones.
func TestRevocationsOutliveWhatTheyHit(t *testing.T) {
	onBoth(t, func(t *testing.T, dsn string) {
		truth := ledgertest.NewClock()
		l := newMachine(t, dsn, truth, 0)
		long := ledgertest.Grant(truth.Now(), "user:alice", "agent:planner")
		long.Expiry = truth.Now().Add(2 * time.Hour)
		must(t, l.Ledger, long)
		for kind, id := range map[delegation.TargetKind]string{
			delegation.BanToken: long.ID, delegation.BanChain: long.Txn, delegation.BanRoot: long.Root,
			delegation.CutSubject: "user:alice", delegation.CutAgent: "agent:planner", delegation.CutTenant: "",
		} {
			d := ledgertest.Revocation(kind, id)
			d.Revocation.Until = truth.Now().Add(15 * time.Minute)
			e, err := l.EntryAt(t.Context(), tenant, must(t, l.Ledger, d).Seq)
			if err != nil {
				t.Fatal(err)
			}
			least := long.Expiry
			if kind != delegation.BanToken && kind != delegation.BanChain { // a root token may just have been issued
				least = truth.Now().Add(ledger.LongestRoot + time.Minute)
			}
			if e.Revocation.Until.Before(least) {
				t.Errorf("%s ends at %v, before %v", kind, e.Revocation.Until, least)
			}
		}
	})
}

// TestSkewIsTheTenants compares root tokens with cut-offs of two tenants.
func TestSkewIsTheTenants(t *testing.T) {
	onBoth(t, func(t *testing.T, dsn string) {
		truth := ledgertest.NewClock()
		l := opened(t, dsn, ledger.Config{Timeout: patient.Timeout, Now: truth.Now, Skews: map[string]time.Duration{"near": 5 * time.Second, "far": time.Minute}})
		for name, skew := range map[string]time.Duration{"near": 5 * time.Second, "far": time.Minute} {
			cut, err := l.Append(t.Context(), name, ledgertest.Revocation(delegation.CutSubject, "user:alice"))
			if err != nil {
				t.Fatal(err)
			}
			for late, want := range map[time.Duration]delegation.Reason{skew - time.Second: delegation.TokenRevoked, skew + 2*time.Second: ""} {
				d := ledgertest.Grant(truth.Now(), "user:alice", "agent:planner")
				d.Lineage.RootIssuedAt = cut.Time.Add(late)
				if _, err := l.Append(t.Context(), name, d); reason(err) != want {
					t.Errorf("%s: a root issued %v after the cut-off: %v", name, late, err)
				}
			}
			if l.Skew(name) != skew {
				t.Errorf("Skew(%s) = %v", name, l.Skew(name))
			}
		}
	})
}

// TestMigrationRemembersWhatWasPruned brings up a database in which rows were pruned, and long
// tokens granted, before either was noted.
func TestMigrationRemembersWhatWasPruned(t *testing.T) {
	for name, database := range map[string]func(testing.TB) string{
		"sqlite":   func(t testing.TB) string { return ledgertest.Address(filepath.Join(t.TempDir(), "ledger.db")) },
		"postgres": testservers.Postgres,
	} {
		t.Run(name, func(t *testing.T) {
			dsn := database(t)
			ledger.MigrateTo(t, dsn, 8)
			execute(t, dsn, `INSERT INTO heads (tenant, seq, time, revocation) VALUES ('acme', 0, 1000000000, 0)`)
			ledgertest.Migrate(t, dsn)
			l := opened(t, dsn, patient)
			if err := l.Spend(t.Context(), tenant, []ledger.SingleUse{use("old", time.UnixMicro(1000000000-30000000))}); reason(err) != delegation.AssertionReplayed {
				t.Errorf("what may have been pruned before: %v", err)
			}
		})
	}
}
