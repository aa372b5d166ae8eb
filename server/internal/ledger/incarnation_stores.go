package ledger

import (
	"context"
	"errors"

	"github.com/jackc/pgx/v5"
)

// A file cannot be distinguished from a copy of it.
func (st *sqliteStore) physical(context.Context, querier) (physical, error) { return physical{}, nil }

func (st *sqliteStore) below() physical { return physical{} }

// The transaction has the only lock.
func (st *sqliteStore) touch(context.Context, changer) error { return nil }

// pgTouch takes the locks that INSERT and UPDATE take, so a locked table fails the probe as it
// fails an append.
const pgTouch = `LOCK TABLE heads, entries, tree_nodes, claims, single_uses, idempotency_keys IN ROW EXCLUSIVE MODE`

func (st *postgresStore) touch(ctx context.Context, db changer) error {
	_, err := db.change(ctx, pgTouch)
	return err
}

func (st *postgresStore) below() physical {
	if met := st.met.Load(); met != nil {
		return *met
	}
	return physical{}
}

// meet refuses a standby, and remembers the server of a new connection.
func (st *postgresStore) meet(ctx context.Context, conn *pgx.Conn) error {
	now, err := st.physical(ctx, pgQuerier(conn.Query))
	if err == nil && now.standby {
		err = errStandby
	}
	if err == nil {
		if before := st.met.Swap(&now); before != nil && !before.same(now) {
			st.renew()
		}
	}
	return err
}

// renew closes idle connections now, and busy ones when they are released: they may lead to a
// server that was given up.
func (st *postgresStore) renew() {
	if pool := st.opened.Load(); pool != nil {
		pool.Reset()
	}
}

func (st *sqliteStore) renew() {}

const (
	// A primary's timeline is in the name of the file that it writes. A standby's file belongs to
	// another server.
	pgServer = `SELECT pg_is_in_recovery(), current_setting('synchronous_standby_names') <> '',
		has_function_privilege('pg_control_system()', 'execute'),
		CASE WHEN pg_is_in_recovery() THEN 0 ELSE ('x' || substr(pg_walfile_name(pg_current_wal_lsn()), 1, 8))::bit(32)::bigint END`
	pgSystem = `SELECT system_identifier::text FROM pg_control_system()`
)

func (st *postgresStore) physical(ctx context.Context, db querier) (now physical, err error) {
	readable, rows := false, 0
	found, err := db.query(ctx, pgServer)
	if err == nil {
		err = eachRow(found, func() error {
			rows++
			return found.Scan(&now.standby, &now.synchronous, &readable, &now.timeline)
		})
	}
	if err == nil && rows != 1 {
		err = errors.New("PostgreSQL did not return what server it is")
	}
	if err != nil || !readable {
		return now, err
	}
	if found, err = db.query(ctx, pgSystem); err != nil {
		return now, err
	}
	return now, eachRow(found, func() error { return found.Scan(&now.system) })
}
