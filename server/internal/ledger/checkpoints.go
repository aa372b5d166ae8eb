package ledger

import (
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"time"

	"golang.org/x/mod/sumdb/tlog"
)

// Checkpoint is the newest signed head of a tenant's log. The ledger stores one. Earlier ones
// follow from the log, and auditors who must not trust the log keep theirs outside.
type Checkpoint struct {
	Size uint64
	Root tlog.Hash
	Time time.Time
	Note string // the signed note
}

// ErrForked is returned for a checkpoint that contradicts the stored one.
var ErrForked = errors.New("ledger: the checkpoint does not continue the one that was signed before it")

// SaveCheckpoint replaces the stored checkpoint. The new one may be the same with other signatures.
// The error is ErrForked if the stored one is larger, or has the same size and another root.
func (l *Ledger) SaveCheckpoint(ctx context.Context, tenant string, c Checkpoint) error {
	ctx, cancel := context.WithTimeout(ctx, l.config.attempt())
	defer cancel()
	err := l.store.change(ctx, func(db changer) error {
		saved, err := db.change(ctx, `INSERT INTO checkpoints (tenant, size, root, time, note) VALUES ($1, $2, $3, $4, $5)
			ON CONFLICT (tenant) DO UPDATE SET size = excluded.size, root = excluded.root, time = excluded.time, note = excluded.note
			WHERE excluded.size > checkpoints.size OR excluded.size = checkpoints.size AND excluded.root = checkpoints.root`, tenant, int64(c.Size), c.Root[:], micros(c.Time), c.Note)
		if err != nil || saved > 0 {
			return err
		}
		return ErrForked
	})
	if err != nil && !errors.Is(err, ErrForked) {
		return unavailable(err)
	}
	return err
}

// LastCheckpoint returns the stored checkpoint, or ErrNotFound.
func (l *Ledger) LastCheckpoint(ctx context.Context, tenant string) (Checkpoint, error) {
	ctx, cancel := context.WithTimeout(ctx, l.config.attempt())
	defer cancel()
	c, err := lastCheckpoint(ctx, l.store, tenant)
	if err != nil && !errors.Is(err, ErrNotFound) {
		return Checkpoint{}, failed(err)
	}
	return c, err
}

// Sealed is the head of a tenant's log and its newest checkpoint, as the database holds them. It is
// for comparison only: if it did not change, there is nothing to sign, and nothing to prove that
// was not proven before.
type Sealed struct {
	size, signed     int64
	tree, root, note string
}

// Sealed reads the head and the checkpoint of all the tenants in one statement.
func (l *Ledger) Sealed(ctx context.Context, tenants ...string) (map[string]Sealed, error) {
	ctx, cancel := context.WithTimeout(ctx, l.config.attempt())
	defer cancel()
	found, err := l.store.among(ctx, sqlSealed, tenants)
	if err != nil {
		return nil, unavailable(err)
	}
	all := make(map[string]Sealed, len(tenants))
	err = eachRow(found, func() error {
		var tenant string
		var s Sealed
		var tree, root []byte
		if err := found.Scan(&tenant, &s.size, &tree, &s.signed, &root, &s.note); err != nil {
			return err
		}
		s.tree, s.root = string(tree), string(root)
		all[tenant] = s
		return nil
	})
	if err != nil {
		return nil, unavailable(err)
	}
	return all, nil
}

const sqlSealed = `SELECT h.tenant, h.seq, h.tree, coalesce(c.size, 0), c.root, coalesce(c.note, '')
	FROM heads h LEFT JOIN checkpoints c ON c.tenant = h.tenant WHERE h.tenant`

func lastCheckpoint(ctx context.Context, db querier, tenant string) (Checkpoint, error) {
	found, err := db.query(ctx, `SELECT size, root, time, note FROM checkpoints WHERE tenant = $1`, tenant)
	if err != nil {
		return Checkpoint{}, err
	}
	var list []Checkpoint
	err = eachRow(found, func() error {
		var c Checkpoint
		var size, at int64
		var root []byte
		if err := found.Scan(&size, &root, &at, &c.Note); err != nil {
			return err
		}
		if len(root) != sha256.Size {
			return fmt.Errorf("%w: the root of the checkpoint is no hash", errDamaged)
		}
		c.Size, c.Root, c.Time = uint64(size), tlog.Hash(root), fromMicros(at)
		list = append(list, c)
		return nil
	})
	switch {
	case err != nil:
		return Checkpoint{}, err
	case len(list) == 0:
		return Checkpoint{}, ErrNotFound
	}
	return list[0], nil
}
