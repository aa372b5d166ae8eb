package ledger

import (
	"context"
	"errors"
	"strconv"

	"github.com/jackc/pgx/v5/pgconn"
)

// A database may execute an INSERT without an error and keep nothing: a trigger returns NULL, or
// RAISEs IGNORE, or a rule does something INSTEAD. What was not kept must not be acknowledged, so
// every write that matters is counted.
var errNotKept = errors.New("the database did not keep what was written, and reported no error: look for triggers and rules")

// keep changes exactly n rows, or fails.
func keep(ctx context.Context, db changer, n int64, sql string, args ...any) error {
	changed, err := db.change(ctx, sql, args...)
	if err == nil && changed != n {
		err = errNotKept
	}
	return err
}

// counted is a statement for a pipeline, whose COMMIT is sent before the client can count rows. The
// server itself fails the statement, and with it the transaction, unless it keeps as many rows as
// the parameter after its own ones.
func counted(sql string, parameters int) string {
	return `WITH kept AS (` + sql + ` RETURNING 1) SELECT 1 / (CASE WHEN count(*) = $` + strconv.Itoa(parameters+1) +
		`::bigint THEN 1 ELSE 0 END) FROM kept`
}

// notKept recognizes the failure that counted provokes.
func notKept(pe *pgconn.PgError) bool { return pe != nil && pe.Code == "22012" } // division_by_zero
