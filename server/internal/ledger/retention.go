package ledger

import (
	"context"
	"fmt"
	"time"

	"deputy.example/deputy/client/audit"
)

// Retention is how long a tenant's entries are kept. Zero: without limit.
type Retention struct {
	Personal time.Duration // after this, entries lose their personal fields
	Entries  time.Duration // after this, whole entries are dropped; their leaf hashes stay
}

// Old entries are removed a block at a time, from the oldest on and without a gap, and only if the
// whole block is old enough and nothing in it is live. Revocations that never end stay, with their
// targets.

// mark is a tenant's row in retention: how far its oldest entries were removed.
type mark struct {
	personal   uint64     // the last entry whose personal fields were removed for their age
	time       int64      // of the last entry that was dropped
	revocation uint64     // the newest revocation that was dropped, or stayed behind
	tree       audit.Edge // of the entries that were dropped: its size is the number of the last one
}

const (
	sqlNewMark = `INSERT INTO retention (tenant, personal, through, time, revocation, tree) VALUES ($1, 0, 0, 0, 0, $2) ON CONFLICT DO NOTHING`
	sqlMark    = `SELECT personal, through, time, revocation, tree FROM retention WHERE tenant = $1`
	sqlThrough = `coalesce((SELECT d.through FROM retention d WHERE d.tenant = $1), 0)`

	// sqlReady counts the entries of a block, and those that must not be removed yet.
	sqlReady = `SELECT count(*), coalesce(sum(CASE WHEN time >= $4 OR kind = 'grant' AND expiry > $5 OR kind = 'revocation' AND until > $5
		THEN 1 ELSE 0 END), 0) FROM entries WHERE tenant = $1 AND seq >= $2 AND seq < $3`

	sqlAge = `UPDATE entries SET subject = '', actor = '', caller = '', actors = '', peer = '', detail = '', details = '', actor_proof = '',
		target_principal = '', target_subject = '', salts = $4
		WHERE tenant = $1 AND seq >= $2 AND seq < $3 AND NOT (kind = 'revocation' AND until = 0)`
	sqlAgeClaims = `DELETE FROM claims WHERE tenant = $1 AND seq >= $2 AND seq < $3`
	sqlAged      = `UPDATE retention SET personal = $3 WHERE tenant = $1 AND personal = $2`
	endless      = `e.tenant = $1 AND e.seq >= $2 AND e.seq < $3 AND e.kind = 'revocation' AND e.until = 0 ORDER BY e.seq`
)

func readMark(ctx context.Context, db querier, tenant string) (m mark, there bool, err error) {
	found, err := db.query(ctx, sqlMark, tenant)
	if err != nil {
		return m, false, err
	}
	err = eachRow(found, func() error {
		var stored []byte
		var through uint64
		if err := found.Scan(&m.personal, &through, &m.time, &m.revocation, &stored); err != nil {
			return err
		}
		there = true
		m.tree, err = parseEdge(through, stored)
		return err
	})
	if err != nil {
		err = fmt.Errorf("%w: the mark of what was dropped: %w", errDamaged, err)
	}
	return m, there, err
}

// Dropped returns which of the tenant's oldest entries were dropped for their age, as the first
// line of an export states it; false if none was. Entries begins after them.
func (l *Ledger) Dropped(ctx context.Context, tenant string) (audit.Dropped, bool, error) {
	ctx, cancel := context.WithTimeout(ctx, l.config.attempt())
	defer cancel()
	m, _, err := readMark(ctx, l.store, tenant)
	if err != nil {
		return audit.Dropped{}, false, failed(err)
	}
	return audit.Dropped{Through: m.tree.Size, Hashes: m.tree.Hashes}, m.tree.Size > 0, nil
}

// retain removes from the next block of the tenant that is old enough: first its personal fields
// and later the entries. Several instances may do so; one of them wins.
func (l *Ledger) retain(ctx context.Context, tenant string) (more bool, err error) {
	keep := l.config.Retention[tenant]
	if keep == (Retention{}) {
		return false, nil
	}
	m, there, err := readMark(ctx, l.store, tenant)
	if err == nil && !there {
		err = l.store.change(ctx, func(db changer) error {
			_, err := db.change(ctx, sqlNewMark, tenant, []byte{})
			return err
		})
	}
	if err != nil {
		return false, err
	}
	if keep.Personal > 0 {
		if more, err = l.age(ctx, tenant, m, keep.Personal); more || err != nil {
			return more, err
		}
	}
	if keep.Entries > 0 {
		return l.drop(ctx, tenant, m, keep.Entries)
	}
	return false, nil
}

// due reports whether all entries of the block are older than the age and none of them is live.
func (l *Ledger) due(ctx context.Context, db querier, tenant string, block uint64, age time.Duration) (bool, error) {
	through, err := l.horizon(ctx)
	if err != nil {
		return false, err
	}
	found, err := db.query(ctx, sqlReady, tenant, int64(firstOf(block)), int64(firstOf(block+1)),
		micros(through.Add(margin-age)), micros(through))
	if err != nil {
		return false, err
	}
	var there, alive int64
	err = eachRow(found, func() error { return found.Scan(&there, &alive) })
	return there == blockSize && alive == 0, err
}

// age erases all personal fields of the next block.
func (l *Ledger) age(ctx context.Context, tenant string, m mark, age time.Duration) (more bool, err error) {
	// Entries that were dropped before personal fields had an age have no personal fields left,
	// except in the revocations that stayed.
	block := max(m.personal, m.tree.Size) / blockSize
	if due, err := l.due(ctx, l.store, tenant, block, age); !due || err != nil {
		return false, err
	}
	through, err := l.horizon(ctx)
	if err != nil {
		return false, err
	}
	first, end := int64(firstOf(block)), int64(firstOf(block+1))
	stay, err := scanEntries(ctx, l.store, endless, tenant, first, end)
	if err != nil {
		return false, err
	}
	var redactions []redaction
	for _, e := range stay {
		redactions = append(redactions, redaction{e, fields(e.salts.mask) &^ targets})
	}
	err = l.store.change(ctx, func(db changer) error {
		n, err := db.change(ctx, sqlAged, tenant, int64(m.personal), end-1)
		if err != nil || n == 0 { // another instance has done it
			return err
		}
		if err := l.unindex(ctx, db, tenant, block); err != nil {
			return err
		}
		if err := redactAll(ctx, db, tenant, redactions); err != nil {
			return err
		}
		if _, err := db.change(ctx, sqlAge, tenant, first, end, new(sealed).bytes()); err != nil {
			return err
		}
		if _, err := db.change(ctx, sqlAgeClaims, tenant, first, end); err != nil {
			return err
		}
		return raise(ctx, db, tenant, through)
	})
	if err != nil {
		return false, err
	}
	return true, l.reindex(ctx, tenant, block)
}
