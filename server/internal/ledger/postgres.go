package ledger

import (
	"context"
	"errors"
)

func openPostgres(ctx context.Context, dsn string, config Config, s seam) (store, error) {
	return nil, errors.New("PostgreSQL is not built in yet")
}

func migratePostgres(ctx context.Context, dsn string) error {
	return errors.New("PostgreSQL is not built in yet")
}
