package ledger

import (
	"context"
	"time"

	"deputy.example/deputy/server/internal/vault"
)

// A Ledger is the vault.Store. The managed keys are stored beside the entries, because this
// database is the one place that all instances share and trust.
var _ vault.Store = (*Ledger)(nil)

// SealedKeys reads the whole table in one statement. Each tenant has a few keys.
func (l *Ledger) SealedKeys(ctx context.Context) ([]vault.Row, error) {
	ctx, cancel := context.WithTimeout(ctx, l.config.attempt())
	defer cancel()
	found, err := l.store.query(ctx, `SELECT tenant, purpose, number, kid, algorithm, published, signs_from, lifetime, retired, sealed, sealed_by
		FROM managed_keys ORDER BY tenant, purpose, number`)
	if err != nil {
		return nil, unavailable(err)
	}
	var list []vault.Row
	err = eachRow(found, func() error {
		var r vault.Row
		var use string
		var number, published, signsFrom, lifetime, retired int64
		err := found.Scan(&r.Tenant, &use, &number, &r.ID, &r.Algorithm, &published, &signsFrom, &lifetime, &retired, &r.Sealed, &r.SealedBy)
		r.Use, r.Number = vault.Use(use), uint64(number)
		r.Published, r.SignsFrom, r.Retired = fromMicros(published), fromMicros(signsFrom), fromMicros(retired)
		r.Lifetime = time.Duration(lifetime) * time.Microsecond
		list = append(list, r)
		return err
	})
	if err != nil {
		return nil, unavailable(err)
	}
	return list, nil
}

// AddSealedKey relies on the unique number to decide which of several instances adds the next key.
func (l *Ledger) AddSealedKey(ctx context.Context, r vault.Row) (bool, error) {
	return l.changeKeys(ctx, `INSERT INTO managed_keys
		(tenant, purpose, number, kid, algorithm, published, signs_from, lifetime, retired, sealed, sealed_by)
		VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11) ON CONFLICT DO NOTHING`,
		r.Tenant, string(r.Use), int64(r.Number), r.ID, r.Algorithm, micros(r.Published), micros(r.SignsFrom),
		r.Lifetime.Microseconds(), micros(r.Retired), r.Sealed, r.SealedBy)
}

// AmendSealedKey compares and changes in one statement.
func (l *Ledger) AmendSealedKey(ctx context.Context, before, after vault.Row) (bool, error) {
	return l.changeKeys(ctx, `UPDATE managed_keys SET lifetime = $4, sealed = $5, sealed_by = $6
		WHERE tenant = $1 AND purpose = $2 AND number = $3 AND retired = 0 AND lifetime = $7 AND sealed = $8 AND sealed_by = $9`,
		before.Tenant, string(before.Use), int64(before.Number), after.Lifetime.Microseconds(), after.Sealed, after.SealedBy,
		before.Lifetime.Microseconds(), before.Sealed, before.SealedBy)
}

// RetireSealedKey requires a later key, not just another one. The last key therefore always stays,
// however many are retired at the same time.
func (l *Ledger) RetireSealedKey(ctx context.Context, r vault.Row, at time.Time) (bool, error) {
	return l.changeKeys(ctx, `UPDATE managed_keys SET retired = $4, sealed = $5
		WHERE tenant = $1 AND purpose = $2 AND number = $3 AND retired = 0 AND (signs_from > $4 OR EXISTS (
			SELECT 1 FROM managed_keys later WHERE later.tenant = $1 AND later.purpose = $2 AND later.number > $3
			AND later.retired = 0 AND later.signs_from <= $4))`,
		r.Tenant, string(r.Use), int64(r.Number), micros(at), []byte{})
}

// changeKeys changes one key and returns whether it did.
func (l *Ledger) changeKeys(ctx context.Context, sql string, args ...any) (changed bool, err error) {
	ctx, cancel := context.WithTimeout(ctx, l.config.attempt())
	defer cancel()
	err = l.store.change(ctx, func(db changer) error {
		n, err := db.change(ctx, sql, args...)
		changed = n > 0
		return err
	})
	if err != nil {
		return false, unavailable(err)
	}
	return changed, nil
}
