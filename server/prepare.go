package server

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"

	"deputy.example/deputy/server/internal/exchange"
	"deputy.example/deputy/server/internal/ledger"
	"deputy.example/deputy/server/internal/token"
)

// Migrate prepares the database, or migrates it to the current schema.
func Migrate(ctx context.Context, d Database) error {
	var p problems
	d.check(&p)
	address := withPassword(&p, "database.password_file", d.DSN, d.PasswordFile)
	if err := p.err(); err != nil {
		return err
	}
	return ledger.Migrate(ctx, address)
}

// CreateCheckpointKey makes the key that signs the heads of an issuer's log, in a new file with
// mode 0600, and returns the verifier key for auditors. It never replaces a file.
func CreateCheckpointKey(path, issuer string) (verifierKey string, err error) {
	return exchange.CreateCheckpointKey(path, issuer)
}

// CreateKey makes a signing key in a new file with mode 0600. It never replaces a file.
func CreateKey(path, algorithm string) error {
	if _, err := os.Lstat(path); !errors.Is(err, fs.ErrNotExist) {
		if err == nil {
			err = fs.ErrExist
		}
		return fmt.Errorf("%s: %w", path, err)
	}
	// If the file appears between the two calls, it is kept too. Only the message is missing then.
	_, err := token.OpenKeyset(token.KeysetConfig{Keys: []token.KeyFile{{Path: path, Algorithm: algorithm}}, Create: true})
	return err
}
