package ledger_test

import (
	"errors"
	"testing"
	"time"

	"deputy.example/deputy/client/delegation"
	"deputy.example/deputy/server/internal/ledger"
	"deputy.example/deputy/server/internal/ledger/ledgertest"
)

// TestWhatIsNotThereCostsNoEntries searches for what nothing has: that reads a row of the index for
// each block and value, in one call, and of the entries only those that make up no whole block yet.
func TestWhatIsNotThereCostsNoEntries(t *testing.T) {
	const blocks, rest = 60, 100
	onBoth(t, func(t *testing.T, dsn string) {
		stuff(t, dsn, blocks*ledger.BlockSize+rest)
		l := opened(t, dsn, patient)
		queries := map[int]ledger.Query{
			1: {Subject: "user:nobody", Limit: 50},
			2: {Kind: ledger.KindRevocation, TraceID: "none", Limit: 50},
			3: {Subject: "user:nobody", Actor: "agent:nobody", Caller: "user:r", Limit: 50},
		}
		for _, q := range queries {
			if rows, _ := l.SearchRows(t, tenant, q); rows < blocks*ledger.BlockSize/2 {
				t.Errorf("%+v read %d rows without an index: this test sees nothing", q, rows)
			}
		}
		l.BuildIndex(t, tenant, blocks)
		for values, q := range queries {
			rows, whole := l.SearchRows(t, tenant, q)
			if most := values*blocks + rest; rows > most || !whole {
				t.Errorf("%+v read %d rows, want at most %d and all in one call (%t)", q, rows, most, whole)
			}
		}
	})
}

// TestACountIsBounded revokes among few and among many live grants: to count what one revocation
// killed reads as much with the many, or ends. Without the bound everything is counted.
func TestACountIsBounded(t *testing.T) {
	const many = 3*ledger.ClaimsPage + 50
	onBoth(t, func(t *testing.T, dsn string) {
		l := opened(t, dsn, patient)
		grants := func(n int, subject, actor delegation.Principal) (list []*ledger.Draft) {
			for range n {
				list = append(list, ledgertest.Grant(time.Now(), subject, actor))
			}
			for some := list; len(some) > 0; some = some[min(len(some), 200):] {
				for _, r := range l.AppendAll(t.Context(), tenant, some[:min(len(some), 200)], nil) {
					if r.Err != nil {
						t.Fatal(r.Err)
					}
				}
			}
			return list
		}
		grants(many, "user:many", "agent:busy")
		few := grants(3, "user:few", "agent:rare")
		l.BuildIndex(t, tenant, many/ledger.BlockSize)
		for _, c := range []struct {
			target delegation.Target
			tokens int // -1: too many
			most   int // claims that are read
		}{
			{delegation.Target{Kind: delegation.BanToken, ID: few[0].ID}, 1, 1},
			{delegation.Target{Kind: delegation.BanToken, ID: "01ARZ3NDEKTSV4RRFFQ69G5FAV"}, 0, 0},
			{delegation.Target{Kind: delegation.BanChain, ID: few[1].Txn}, 1, 1},
			{delegation.Target{Kind: delegation.CutAgentSubject, ID: "agent:rare", Subject: "user:few"}, 1, 3},
			{delegation.Target{Kind: delegation.BanSuspend, ID: "agent:rare"}, 0, 3},
			{delegation.Target{Kind: delegation.CutSubject, ID: "user:few"}, 0, 3},
			{delegation.Target{Kind: delegation.BanSuspend, ID: "agent:busy"}, -1, ledger.ClaimsPage + 100},
			{delegation.Target{Kind: delegation.CutSubject, ID: "user:many"}, -1, ledger.ClaimsPage + 100},
			{delegation.Target{Kind: delegation.BanKey, ID: "some key"}, -1, ledger.ClaimsPage},
			{delegation.Target{Kind: delegation.CutTenant}, -1, ledger.ClaimsPage},
		} {
			foretold, err := l.Survey(t.Context(), tenant, c.target)
			if err != nil {
				t.Fatal(err)
			}
			r, err := l.Append(t.Context(), tenant, &ledger.Draft{Kind: ledger.KindRevocation, Caller: "user:r", Revocation: &delegation.Revocation{Target: c.target}})
			if err != nil || r.Revocation == nil || r.Revocation.Seq != r.Seq || r.Revocation.Target != c.target {
				t.Fatalf("%v: %+v, %v", c.target, r, err)
			}
			s, err := l.SurveyOf(tenant, *r.Revocation)
			if err != nil {
				t.Fatal(err)
			}
			_, tokens, _, err := s.Count(t.Context(), 0)
			if errors.Is(err, ledger.ErrTooMany) {
				tokens, err = -1, nil
			}
			if read := s.Read(); err != nil || tokens != c.tokens || read > c.most {
				t.Errorf("%v: %d tokens by %d claims, %v; want %d by at most %d", c.target, tokens, read, err, c.tokens, c.most)
			}
			if _, all, _, err := foretold.Count(t.Context(), 0); err != nil || c.tokens >= 0 && all != c.tokens {
				t.Errorf("%v, without a bound: %d, %v", c.target, all, err)
			}
		}
	})
}
