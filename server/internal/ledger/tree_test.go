package ledger_test

import (
	"context"
	"database/sql"
	"encoding/binary"
	"fmt"
	"path/filepath"
	"strings"
	"testing"
	"time"

	_ "github.com/jackc/pgx/v5/stdlib" // the driver "pgx"
	"golang.org/x/mod/sumdb/tlog"
	"pgregory.net/rapid"

	"deputy.example/deputy/client/audit"
	"deputy.example/deputy/client/delegation"
	"deputy.example/deputy/server/internal/ledger"
	"deputy.example/deputy/server/internal/ledger/ledgertest"
	"deputy.example/deputy/server/internal/testservers"
)

// TestProofsOfLargeLogs checks the proofs that come from stored nodes of two tiers, with the
// library's own verification, and that none of them reads more than one block at a time.
func TestProofsOfLargeLogs(t *testing.T) {
	const size = 150_000
	leaves := make([]tlog.Hash, size)
	stored := map[audit.Node]tlog.Hash{}
	roots := map[uint64]tlog.Hash{}
	var edge audit.Edge
	for i := range leaves {
		leaves[i] = tlog.RecordHash(binary.BigEndian.AppendUint64(nil, uint64(i)))
		edge.Add(leaves[i], func(n audit.Node) {
			if n.Level%8 == 0 {
				stored[audit.Node{Level: n.Level, N: n.N}] = n.Hash
			}
		})
		roots[edge.Size] = edge.Root()
	}
	if len(stored) != size/256+size/65536 {
		t.Fatalf("%d stored nodes", len(stored))
	}
	most := 0
	reader := tlog.HashReaderFunc(func(indexes []int64) ([]tlog.Hash, error) {
		hashes, n, err := ledger.ReadNodes(func(from, to uint64) []tlog.Hash { return leaves[from:to] }, stored, indexes)
		most = max(most, n)
		return hashes, err
	})
	rapid.Check(t, func(t *rapid.T) {
		n := rapid.Int64Range(1, size).Draw(t, "size")
		at := rapid.Int64Range(0, n-1).Draw(t, "leaf")
		record, err := tlog.ProveRecord(n, at, reader)
		if err == nil {
			err = tlog.CheckRecord(record, n, roots[uint64(n)], at, leaves[at])
		}
		if err != nil {
			t.Fatal(err)
		}
		growth, err := tlog.ProveTree(n, at+1, reader)
		if err == nil {
			err = tlog.CheckTree(growth, n, roots[uint64(n)], at+1, roots[uint64(at+1)])
		}
		if err != nil {
			t.Fatal(err)
		}
	})
	if most > 256 {
		t.Errorf("a proof read %d rows at once", most)
	}

	// The control: a missing node is noticed, never made up.
	delete(stored, audit.Node{Level: 16})
	if _, err := tlog.ProveRecord(size, 70_000, reader); err == nil {
		t.Error("a proof came about without a node that it needs")
	}
}

// TestMigrationPlantsTheTree makes a database as the first version left it, and one more tenant
// without entries.
func TestMigrationPlantsTheTree(t *testing.T) {
	onBoth(t, func(t *testing.T, dsn string) {
		l := opened(t, dsn, patient)
		for range 30 {
			drafts := make([]*ledger.Draft, 10)
			for i := range drafts {
				drafts[i] = ledgertest.Grant(time.Now(), "user:alice", "agent:planner")
			}
			l.AppendAll(t.Context(), tenant, drafts, nil)
		}
		n, root, err := l.Tree(t.Context(), tenant)
		if err != nil || n != 300 {
			t.Fatal(n, err)
		}
		dsn = asFirst(t, dsn)
		execute(t, dsn, `INSERT INTO heads (tenant, seq, time, revocation) VALUES ('empty', 0, 0, 0)`)
		if err := ledger.Migrate(t.Context(), dsn); err != nil {
			t.Fatal(err)
		}
		l = opened(t, dsn, patient)
		if size, again, err := l.Tree(t.Context(), tenant); err != nil || size != n || again != root {
			t.Errorf("after the migration: %d %v, %v; before %d %v", size, again, err, n, root)
		}
		checked(t, l)
		for _, tenant := range []string{tenant, "empty"} {
			if _, err := l.Append(t.Context(), tenant, everything()); err != nil {
				t.Error(err)
			}
		}
		checked(t, l)

		// What an instance of the first version would do to the head fails.
		if err := tryExecute(context.Background(), dsn, `UPDATE heads SET seq = 302, time = time, revocation = 0 WHERE tenant = 'acme'`); err == nil {
			t.Error("an instance that does not maintain the tree advanced the head")
		}
	})
}

// TestMigrationRefusesGaps never plants a tree over entries that are not all there.
func TestMigrationRefusesGaps(t *testing.T) {
	for name, spoil := range map[string]string{
		"gap":     `DELETE FROM entries WHERE seq = 2`,
		"no end":  `DELETE FROM entries WHERE seq = 4`,
		"surplus": `UPDATE heads SET seq = 3`,
		"no leaf": `UPDATE entries SET leaf = digests WHERE seq = 3`,
	} {
		t.Run(name, func(t *testing.T) {
			onBoth(t, func(t *testing.T, dsn string) {
				l := opened(t, dsn, patient)
				for range 4 {
					if _, err := l.Append(t.Context(), tenant, everything()); err != nil {
						t.Fatal(err)
					}
				}
				dsn = asFirst(t, dsn)
				execute(t, dsn, spoil)
				if err := ledger.Migrate(t.Context(), dsn); err == nil {
					t.Error("migrated")
				}
			})
		})
	}
}

// asFirst makes a database of the first version of the schema that holds the same entries.
func asFirst(t *testing.T, dsn string) string {
	t.Helper()
	old := testDatabase(t, dsn)
	ledger.MigrateTo(t, old, 1)
	from, to := connected(t, dsn), connected(t, old)
	for table, columns := range map[string]string{"entries": ledger.EntryColumns, "heads": "tenant, seq, time, revocation", "claims": "tenant, seq, until, value"} {
		rows, err := from.QueryContext(t.Context(), `SELECT `+columns+` FROM `+table)
		if err != nil {
			t.Fatal(err)
		}
		names := strings.Split(columns, ", ")
		for rows.Next() {
			values, into := make([]any, len(names)), make([]any, len(names))
			parameters := make([]string, len(names))
			for i := range into {
				into[i], parameters[i] = &values[i], fmt.Sprintf("$%d", i+1)
			}
			if err := rows.Scan(into...); err != nil {
				t.Fatal(err)
			}
			insert := `INSERT INTO ` + table + ` (` + columns + `) VALUES (` + strings.Join(parameters, ", ") + `)`
			if _, err := to.ExecContext(t.Context(), insert, values...); err != nil {
				t.Fatal(err)
			}
		}
		if err := rows.Err(); err != nil {
			t.Fatal(err)
		}
	}
	return old
}

// testDatabase is an empty database of the same kind.
func testDatabase(t *testing.T, like string) string {
	if strings.HasPrefix(like, "sqlite") {
		return ledgertest.Address(filepath.Join(testservers.Dir(t), "ledger.db"))
	}
	return testservers.Postgres(t)
}

func connected(t *testing.T, dsn string) *sql.DB {
	t.Helper()
	driver, name := "pgx", dsn
	if path, ok := strings.CutPrefix(dsn, "sqlite://"); ok {
		driver, name = "sqlite", path
	}
	db, err := sql.Open(driver, name)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = db.Close() })
	return db
}

// TestDamagedHeadIsRefused never appends to a tree that is not that of the head's number.
func TestDamagedHeadIsRefused(t *testing.T) {
	onBoth(t, func(t *testing.T, dsn string) {
		l := opened(t, dsn, patient)
		if _, err := l.Append(t.Context(), tenant, everything()); err != nil {
			t.Fatal(err)
		}
		execute(t, dsn, `UPDATE heads SET tree = (SELECT digests FROM entries WHERE seq = 1)`)
		if _, err := l.Append(t.Context(), tenant, everything()); reason(err) != delegation.DependencyDown {
			t.Errorf("appended to a damaged tree: %v", err)
		}
		if _, _, err := l.Tree(t.Context(), tenant); reason(err) != delegation.LedgerDamaged {
			t.Errorf("read a damaged tree: %v", err)
		}
	})
}

// TestFaultsWhereTheTreeGrows makes each statement of the transaction fail that completes a block.
func TestFaultsWhereTheTreeGrows(t *testing.T) {
	onBoth(t, func(t *testing.T, dsn string) {
		f := &faults{}
		l := openedWith(t, dsn, patient, f.at)
		fill := func(to uint64) {
			for n, _, err := l.Tree(t.Context(), tenant); n < to; n, _, err = l.Tree(t.Context(), tenant) {
				if err != nil {
					t.Fatal(err)
				}
				drafts := make([]*ledger.Draft, min(50, to-n))
				for i := range drafts {
					drafts[i] = &ledger.Draft{Kind: ledger.KindRefusal, Caller: "agent:planner", Reason: delegation.AccessDenied}
				}
				l.AppendAll(t.Context(), tenant, drafts, nil)
			}
		}
		const node, head = "insert into tree_nodes", "update heads set seq = $2"
		points := []string{"before " + node, "after " + node, "before " + head, "after " + head, "before commit", "after commit"}
		for i, point := range points {
			fill(uint64(i+1)*256 - 1)
			f.set(once(point))
			_, err := l.Append(t.Context(), tenant, everything())
			f.set(nil)
			if (err == nil) != (point == "after commit") {
				t.Errorf("%s: %v", point, err)
			}
			if err != nil {
				if _, err := l.Append(t.Context(), tenant, everything()); err != nil {
					t.Errorf("after a fault %s: %v", point, err)
				}
			}
			checked(t, l)
		}
	})
}

// TestTreeIsVerified is the control of Verify: it sees damage of the tree.
func TestTreeIsVerified(t *testing.T) {
	for name, spoil := range map[string]string{
		"edge":    `UPDATE heads SET tree = (SELECT leaf FROM entries WHERE seq = 7)`,
		"node":    `UPDATE tree_nodes SET hash = (SELECT leaf FROM entries WHERE seq = 7)`,
		"no node": `DELETE FROM tree_nodes`,
		"surplus": `INSERT INTO tree_nodes SELECT tenant, 8, 1, hash FROM tree_nodes`,
	} {
		t.Run(name, func(t *testing.T) {
			onBoth(t, func(t *testing.T, dsn string) {
				l := opened(t, dsn, patient)
				drafts := make([]*ledger.Draft, 256)
				for i := range drafts {
					drafts[i] = &ledger.Draft{Kind: ledger.KindRefusal, Caller: "agent:planner", Reason: delegation.AccessDenied, Detail: fmt.Sprint(i)}
				}
				l.AppendAll(t.Context(), tenant, drafts, nil)
				checked(t, l)
				execute(t, dsn, spoil)
				if err := l.Verify(t.Context(), tenant); err == nil {
					t.Error("nothing was found")
				}
			})
		})
	}
}

// TestAHeadWithoutItsTreeIsRefused has a head whose tree lacks the entry that its number counts.
func TestAHeadWithoutItsTreeIsRefused(t *testing.T) {
	onBoth(t, func(t *testing.T, dsn string) {
		l := opened(t, dsn, patient)
		if _, err := l.Append(t.Context(), tenant, everything()); err != nil {
			t.Fatal(err)
		}
		checked(t, l)
		execute(t, dsn, `UPDATE heads SET tree = substr(tree, 1, 0)`)
		if l.Verify(t.Context(), tenant) == nil {
			t.Error("an entry is not in the tree, and the ledger verifies")
		}
		if _, err := opened(t, dsn, patient).Append(t.Context(), tenant, everything()); reason(err) != delegation.DependencyDown {
			t.Errorf("appended to a head whose tree is not that of its entries: %v", err)
		}
	})
}

// TestNothingIsAboveTheHighestNumber asks for what comes after numbers that the databases cannot
// hold.
func TestNothingIsAboveTheHighestNumber(t *testing.T) {
	onBoth(t, func(t *testing.T, dsn string) {
		l := opened(t, dsn, patient)
		parent := ledgertest.Grant(time.Now(), "user:alice", "agent:planner")
		r, err := l.Append(t.Context(), tenant, parent)
		if err == nil {
			_, err = l.Append(t.Context(), tenant, ledgertest.Child(time.Now(), r.Claims, "agent:writer"))
		}
		if err != nil {
			t.Fatal(err)
		}
		for after, want := range map[uint64]int{1: 1, 1<<63 - 1: 0, 1 << 63: 0, 1<<64 - 1: 0} {
			if page, err := l.Entries(t.Context(), tenant, after, 10); err != nil || len(page) != want {
				t.Errorf("%d entries after %d, %v", len(page), after, err)
			}
			if page, next, err := l.Descendants(t.Context(), tenant, parent.ID, after, 10); err != nil || len(page) != want || next != 0 {
				t.Errorf("%d descendants after %d, %v", len(page), after, err)
			}
		}
	})
}
