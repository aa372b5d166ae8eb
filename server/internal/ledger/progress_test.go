package ledger_test

import (
	"fmt"
	"testing"
	"time"

	"deputy.example/deputy/client/delegation"
	"deputy.example/deputy/server/internal/ledger"
	"deputy.example/deputy/server/internal/ledger/ledgertest"
)

// TestProgress has another instance revoke in some of many tenants, of which one has more than is
// known here, one is caught up, and one has nothing at all.
func TestProgress(t *testing.T) {
	onBoth(t, func(t *testing.T, dsn string) {
		here, there := opened(t, dsn, patient), opened(t, dsn, patient)
		tenants := []string{"without entries", "quiet", "busy", "new"}
		for _, tenant := range tenants[1:] {
			if _, err := there.Append(t.Context(), tenant, ledgertest.Grant(time.Now(), "user:alice", "agent:planner")); err != nil {
				t.Fatal(err)
			}
		}
		revoke := func(tenant, id string) uint64 {
			t.Helper()
			r, err := there.Append(t.Context(), tenant, ledgertest.Revocation(delegation.BanChain, id))
			if err != nil {
				t.Fatal(err)
			}
			return r.Seq
		}
		standings := func(want ...ledger.Progress) {
			t.Helper()
			got, err := here.Progress(t.Context(), tenants...)
			if err != nil {
				t.Fatal(err)
			}
			for i, w := range want {
				live := len(got[i].Live)
				if got[i].Live = nil; fmt.Sprint(got[i]) != fmt.Sprint(w) || w.Current && live != map[bool]int{true: 1}[w.Revocation > 0] {
					t.Errorf("%+v with %d live, want %+v", got[i], live, w)
				}
			}
		}
		standings(ledger.Progress{Tenant: "without entries", Current: true}, ledger.Progress{Tenant: "quiet", Seq: 1, Current: true})
		last := revoke("busy", "x")
		if _, err := here.LastRevocation(t.Context(), "busy"); err != nil {
			t.Fatal(err)
		}
		revoke("new", "y")
		standings(ledger.Progress{Tenant: "without entries", Current: true}, ledger.Progress{Tenant: "quiet", Seq: 1, Current: true},
			ledger.Progress{Tenant: "busy", Seq: last, Revocation: last, Current: true}, ledger.Progress{Tenant: "new", Seq: 2, Revocation: 2})
		// Who was found to have none goes on from there.
		revoke("quiet", "z")
		standings(ledger.Progress{Tenant: "without entries", Current: true}, ledger.Progress{Tenant: "quiet", Seq: 2, Revocation: 2})
		if _, err := here.LastRevocation(t.Context(), "quiet"); err != nil {
			t.Fatal(err)
		}
		if events, complete, _ := here.Events("quiet", 0); !complete || len(events) != 1 || events[0].Target.ID != "z" {
			t.Errorf("events %+v, %t", events, complete)
		}
		standings(ledger.Progress{Tenant: "without entries", Current: true}, ledger.Progress{Tenant: "quiet", Seq: 2, Revocation: 2, Current: true})
	})
}

// TestASurveyIsOfItsTime counts after the revocation has been recorded what it killed.
func TestASurveyIsOfItsTime(t *testing.T) {
	onBoth(t, func(t *testing.T, dsn string) {
		l := opened(t, dsn, patient)
		target := delegation.Target{Kind: delegation.CutSubject, ID: "user:alice"}
		grant := func() {
			t.Helper()
			if _, err := l.Append(t.Context(), tenant, ledgertest.Grant(time.Now(), "user:alice", "agent:planner")); err != nil {
				t.Fatal(err)
			}
		}
		grant()
		grant()
		s, err := l.Survey(t.Context(), tenant, target)
		if err != nil {
			t.Fatal(err)
		}
		if _, err := l.Append(t.Context(), tenant, ledgertest.Revocation(target.Kind, target.ID)); err != nil {
			t.Fatal(err)
		}
		if grants, tokens, chains, err := s.Count(t.Context(), 10); err != nil || len(grants) != 2 || tokens != 2 || chains != 2 {
			t.Errorf("%d grants, %d tokens, %d chains, %v", len(grants), tokens, chains, err)
		}
		if _, tokens, _, err := ledgertest.Impact(t.Context(), l, tenant, target, 10); err != nil || tokens != 0 {
			t.Errorf("%d tokens, %v: the control sees what is dead by now", tokens, err)
		}
	})
}

// TestPruningKeepsUp appends claims that have ended at once: what stays is bounded, however the
// transactions share the pruning.
func TestPruningKeepsUp(t *testing.T) {
	onBoth(t, func(t *testing.T, dsn string) {
		config := patient
		now := time.Now()
		config.Now = func() time.Time { return now }
		l := opened(t, dsn, config)
		for range 400 {
			d := ledgertest.Grant(now, "user:alice", "agent:planner")
			use := ledger.SingleUse{Issuer: "i", Key: "k", ID: d.ID, Until: now.Add(time.Minute)}
			if _, err := l.Append(t.Context(), tenant, d, use); err != nil {
				t.Fatal(err)
			}
			now = now.Add(2 * ledgertest.Life)
		}
		for _, table := range []string{"claims", "single_uses"} {
			if n := l.Rows(t, table); n > ledger.PruneAfter+2 {
				t.Errorf("%d rows are left in %s", n, table)
			}
		}
	})
}
