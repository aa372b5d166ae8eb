package ledger

import (
	"context"
	"database/sql"
	"fmt"

	"github.com/pressly/goose/v3"
	"golang.org/x/mod/sumdb/tlog"

	"deputy.example/deputy/client/audit"
)

// The second migration is in Go because it computes: every tenant's log becomes a tree. The
// constraint on heads stops instances that do not maintain the tree: their UPDATE of the head
// fails, and their batch with it.
const (
	sqliteTree = `
CREATE TABLE tree_nodes (
    tenant TEXT    NOT NULL,
    level  INTEGER NOT NULL, -- 8, 16, …: the root of 2^level leaves
    n      INTEGER NOT NULL, -- the first of them is leaf n * 2^level
    hash   BLOB    NOT NULL,
    PRIMARY KEY (tenant, level, n)
) STRICT, WITHOUT ROWID;
CREATE TABLE checkpoints (
    tenant TEXT    NOT NULL PRIMARY KEY,
    size   INTEGER NOT NULL,
    root   BLOB    NOT NULL,
    time   INTEGER NOT NULL,
    note   TEXT    NOT NULL
) STRICT, WITHOUT ROWID;
ALTER TABLE heads ADD COLUMN tree BLOB NOT NULL DEFAULT x'';
ALTER TABLE heads ADD COLUMN tree_size INTEGER NOT NULL DEFAULT 0;`

	sqliteGuard = `
CREATE TABLE guarded (
    tenant     TEXT    NOT NULL PRIMARY KEY,
    seq        INTEGER NOT NULL,
    time       INTEGER NOT NULL,
    revocation INTEGER NOT NULL,
    tree       BLOB    NOT NULL DEFAULT x'', -- the right edge: hashes of full subtrees, the largest first
    tree_size  INTEGER NOT NULL DEFAULT 0,
    CHECK (tree_size = seq)
) STRICT, WITHOUT ROWID;
INSERT INTO guarded SELECT tenant, seq, time, revocation, tree, tree_size FROM heads;
DROP TABLE heads;
ALTER TABLE guarded RENAME TO heads;`

	postgresTree = `
CREATE TABLE tree_nodes (
    tenant TEXT   NOT NULL,
    level  BIGINT NOT NULL, -- 8, 16, …: the root of 2^level leaves
    n      BIGINT NOT NULL, -- the first of them is leaf n * 2^level
    hash   BYTEA  NOT NULL,
    PRIMARY KEY (tenant, level, n)
);
CREATE TABLE checkpoints (
    tenant TEXT   NOT NULL PRIMARY KEY,
    size   BIGINT NOT NULL,
    root   BYTEA  NOT NULL,
    time   BIGINT NOT NULL,
    note   TEXT   NOT NULL
);
ALTER TABLE heads
    ADD COLUMN tree      BYTEA  NOT NULL DEFAULT '', -- the right edge: hashes of full subtrees, the largest first
    ADD COLUMN tree_size BIGINT NOT NULL DEFAULT 0;`

	postgresGuard = `ALTER TABLE heads ADD CONSTRAINT heads_tree CHECK (tree_size = seq);`
)

func plantTree(ctx context.Context, tx *sql.Tx, dialect goose.Dialect) error {
	tables, guard := sqliteTree, sqliteGuard
	if dialect == goose.DialectPostgres {
		tables, guard = postgresTree, postgresGuard // ALTER TABLE locks out every append
	}
	if _, err := tx.ExecContext(ctx, tables); err != nil {
		return err
	}
	sizes := map[string]uint64{}
	err := scanEach(ctx, tx, func(row *sql.Rows) error {
		var tenant string
		var size int64
		err := row.Scan(&tenant, &size)
		sizes[tenant] = uint64(size)
		return err
	}, `SELECT tenant, seq FROM heads`)
	if err != nil {
		return err
	}
	for tenant, size := range sizes {
		if err := growTree(ctx, tx, tenant, size); err != nil {
			return err
		}
	}
	_, err = tx.ExecContext(ctx, guard)
	return err
}

// growTree computes the tree of the existing entries.
func growTree(ctx context.Context, tx *sql.Tx, tenant string, size uint64) error {
	const page = 1 << 14
	var edge audit.Edge
	for edge.Size < size {
		var nodes []audit.Node
		before := edge.Size
		err := scanEach(ctx, tx, func(row *sql.Rows) error {
			var seq int64
			var leaf []byte
			if err := row.Scan(&seq, &leaf); err != nil {
				return err
			}
			if uint64(seq) != edge.Size+1 || len(leaf) != tlog.HashSize {
				return fmt.Errorf("tenant %s: entry %d is missing or damaged; the ledger was tampered with or restored incompletely", tenant, edge.Size+1)
			}
			edge.Add(tlog.Hash(leaf), func(n audit.Node) {
				if kept(n) {
					nodes = append(nodes, n)
				}
			})
			return nil
		}, `SELECT seq, leaf FROM entries WHERE tenant = $1 AND seq > $2 ORDER BY seq LIMIT $3`, tenant, int64(before), page)
		if err != nil {
			return err
		}
		if edge.Size == before {
			return fmt.Errorf("tenant %s: entry %d is missing", tenant, before+1)
		}
		for _, n := range nodes {
			if _, err := tx.ExecContext(ctx, `INSERT INTO tree_nodes (tenant, level, n, hash) VALUES ($1, $2, $3, $4)`,
				tenant, n.Level, int64(n.N), n.Hash[:]); err != nil {
				return err
			}
		}
	}
	if edge.Size != size {
		return fmt.Errorf("tenant %s: there are entries after the last one, %d", tenant, size)
	}
	_, err := tx.ExecContext(ctx, `UPDATE heads SET tree = $2, tree_size = seq WHERE tenant = $1`, tenant, edgeBytes(edge))
	return err
}

func scanEach(ctx context.Context, tx *sql.Tx, f func(*sql.Rows) error, query string, args ...any) error {
	found, err := tx.QueryContext(ctx, query, args...)
	if err != nil {
		return err
	}
	return eachRow(sqlRows{found}, func() error { return f(found) })
}
