package ledger

import (
	"context"
	"errors"
	"net"
	"sync/atomic"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"
)

// When a context ends before its statement, pgx sends a CancelRequest over a second connection.
// PostgreSQL then ends a COMMIT's wait for the synchronous standby, and a commit that no standby
// has becomes visible: readers would rely on what a failover loses. While a connection commits,
// that second connection is refused.

const committingKey = "deputy.committing"

var errCommitting = errors.New("a commit is not canceled: the synchronous standby may not have it")

// uncancelled prepares the configuration of a new connection.
func uncancelled(_ context.Context, config *pgx.ConnConfig) error {
	committing, dial := new(atomic.Bool), config.DialFunc
	config.DialFunc = func(ctx context.Context, network, address string) (net.Conn, error) {
		if committing.Load() {
			return nil, errCommitting
		}
		return dial(ctx, network, address)
	}
	after := config.AfterConnect
	config.AfterConnect = func(ctx context.Context, conn *pgconn.PgConn) error {
		conn.CustomData()[committingKey] = committing
		if after != nil {
			return after(ctx, conn)
		}
		return nil
	}
	return nil
}

// committing runs a commit on the connection, for which no CancelRequest is sent. After an error
// the connection stays in that state: pgx cancels in the background, and closes it.
func committing(conn *pgx.Conn, commit func() error) error {
	state, prepared := conn.PgConn().CustomData()[committingKey].(*atomic.Bool)
	if !prepared {
		return errCommitting
	}
	state.Store(true)
	err := commit()
	if !conn.IsClosed() {
		state.Store(false)
	}
	return err
}
