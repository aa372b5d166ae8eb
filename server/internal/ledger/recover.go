package ledger

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strconv"
	"time"

	"deputy.example/deputy/client/delegation"
)

// Recovered is the newest recovery of a tenant's ledger, as the database holds it.
type Recovered struct {
	Number uint64    // of the incarnation that it began; 0: there was none
	Head   uint64    // number of the newest entry before it
	Since  time.Time // older tokens are not of this incarnation; instances serve from then on
}

// LastRecovery returns the tenant's newest recovery, zero if there was none.
func (l *Ledger) LastRecovery(ctx context.Context, tenant string) (r Recovered, err error) {
	ctx, cancel := context.WithTimeout(ctx, l.config.attempt())
	defer cancel()
	found, err := l.store.query(ctx, `SELECT number, head, since FROM recoveries WHERE tenant = $1 ORDER BY number DESC LIMIT 1`, tenant)
	if err == nil {
		err = eachRow(found, func() error {
			var since int64
			err := found.Scan(&r.Number, &r.Head, &since)
			r.Since = fromMicros(since)
			return err
		})
	}
	if err != nil {
		return Recovered{}, unavailable(err)
	}
	return r, nil
}

// OpenToRecover opens a ledger that instances refuse, so that Recover can begin its next
// incarnation.
func OpenToRecover(ctx context.Context, dsn string, config Config) (*Ledger, error) {
	l, err := Open(ctx, dsn, config)
	if err != nil {
		return nil, err
	}
	l.recovering = true
	return l, nil
}

// Known reads the incarnation from the database.
func (l *Ledger) Known(ctx context.Context) (Incarnation, error) {
	row, err := readIncarnation(ctx, l.store)
	return row.Incarnation, err
}

// Remains is what the ledger still holds of one tenant.
type Remains struct {
	Tenant     string
	Seq        uint64 // of the newest entry
	Leaf       [32]byte
	Time       time.Time // and when it was recorded
	Grant      uint64    // of the newest grant: this ledger holds no token with a higher number
	Revocation uint64    // of the newest revocation
}

const sqlRemains = `SELECT h.tenant, h.seq, h.time, h.revocation, coalesce(e.leaf, ''),
	coalesce((SELECT max(g.seq) FROM entries g WHERE g.tenant = h.tenant AND g.kind = 'grant'), 0)
	FROM heads h LEFT JOIN entries e ON e.tenant = h.tenant AND e.seq = h.seq ORDER BY h.tenant`

// Remains returns what the ledger holds of the named tenants and of every tenant with a head, and
// the cause of its doubt, if any. A named tenant without a head has zero Remains: its first entry
// may be among the lost ones.
func (l *Ledger) Remains(ctx context.Context, tenants ...string) (list []Remains, doubt string, err error) {
	err = l.store.view(ctx, func(db querier) error {
		row, err := readIncarnation(ctx, db)
		if err != nil {
			return err
		}
		doubt = row.doubt
		found, err := db.query(ctx, sqlRemains)
		if err != nil {
			return err
		}
		return eachRow(found, func() error {
			var r Remains
			var at int64
			var leaf []byte
			err := found.Scan(&r.Tenant, &r.Seq, &at, &r.Revocation, &leaf, &r.Grant)
			r.Time = fromMicros(at)
			copy(r.Leaf[:], leaf)
			list = append(list, r)
			return err
		})
	})
	for _, tenant := range tenants {
		if !slices.ContainsFunc(list, func(r Remains) bool { return r.Tenant == tenant }) {
			list = append(list, Remains{Tenant: tenant})
		}
	}
	return list, doubt, err
}

// Decision is what an operator decided about a ledger. The program never guesses what was lost.
type Decision struct {
	Reason  string   // recorded for auditors, in each tenant's log
	Tenants []string // the configured ones, recovered even if the ledger has nothing of them
	// Above is the highest number of an incarnation that is known anywhere.
	Above uint64
	// Intact means that nothing was lost, and only another server continues.
	Intact bool
	// CutOff refuses what was issued after the newest remaining grant. Lost holds, by tenant, the
	// revocations that were found elsewhere; they are recorded again, with CutOff or without. All
	// names the tenants in which everything ever issued is refused.
	CutOff bool
	Lost   map[string][]delegation.Revocation
	All    map[string]bool
}

// recoverer is the caller in the entries of a recovery.
const recoverer = delegation.Principal("system:deputy")

// Recover records the decision in every tenant's log and begins the next incarnation. While it
// runs, no instance appends. If it fails it may be repeated: no instance serves before it has
// succeeded.
func (l *Ledger) Recover(ctx context.Context, d Decision) (Incarnation, error) {
	if !l.recovering {
		return Incarnation{}, errors.New("ledger: not opened to recover")
	}
	l.Doubt(ctx, errors.New("a recovery is under way"))
	remains, doubt, err := l.Remains(ctx, d.Tenants...)
	if err == nil && doubt == "" {
		err = errNotKept
	}
	if err != nil {
		return Incarnation{}, fmt.Errorf("ledger: recover: %w", err)
	}
	var next incarnation
	err = l.store.change(ctx, func(db changer) error {
		var err error
		next, err = readIncarnation(ctx, db)
		return err
	})
	if err != nil {
		return Incarnation{}, fmt.Errorf("ledger: recover: %w", err)
	}
	// A restored database has lost its newest numbers. The clock gives a higher one, because no
	// ledger has that many failovers.
	number := max(next.Number+1, d.Above+1, uint64(l.config.Now().Unix()))
	for _, r := range remains {
		if err := l.recoverTenant(ctx, d, r, number); err != nil {
			return Incarnation{}, fmt.Errorf("ledger: recover tenant %s: %w", r.Tenant, err)
		}
	}
	err = l.store.change(ctx, func(db changer) error {
		before, err := readIncarnation(ctx, db)
		if err != nil {
			return err
		}
		next = before
		next.Number = number
		if !d.Intact {
			next.Recovered = next.Number
		}
		if next.physical, err = l.store.physical(ctx, db); err != nil {
			return err
		}
		if next.standby {
			return errStandby
		}
		if err := l.keepIncarnation(ctx, db, &before, next); err != nil {
			return err
		}
		next = before
		return nil
	})
	if err != nil {
		return Incarnation{}, fmt.Errorf("ledger: recover: %w", err)
	}
	return next.Incarnation, nil
}

func (l *Ledger) recoverTenant(ctx context.Context, d Decision, r Remains, number uint64) error {
	what := "nothing was lost"
	switch {
	case d.Intact:
	case d.All[r.Tenant]:
		what = "all that was issued is cut off"
	case d.CutOff:
		what = fmt.Sprintf("what was issued after entry %d is cut off, %d revocations are recorded again", r.Grant, len(d.Lost[r.Tenant]))
	default:
		what = "the signing keys were replaced"
	}
	admin := &Draft{Kind: KindAdmin, Caller: recoverer,
		Detail: fmt.Sprintf("recovery: incarnation %d begins after entry %d: %s: %s", number, r.Seq, what, d.Reason)}
	last, err := l.Append(ctx, r.Tenant, admin)
	if err != nil {
		return errors.Join(err, errors.Unwrap(err))
	}
	if d.Intact {
		return nil
	}
	var cuts []delegation.Target
	if d.CutOff {
		cuts = append(cuts, delegation.Target{Kind: delegation.CutFork, ID: strconv.FormatUint(r.Grant, 10)})
	}
	if d.All[r.Tenant] {
		cuts = append(cuts, delegation.Target{Kind: delegation.CutTenant})
	}
	again := make([]delegation.Revocation, 0, len(cuts))
	for _, target := range cuts {
		again = append(again, delegation.Revocation{Target: target})
	}
	for _, lost := range append(again, d.Lost[r.Tenant]...) {
		revocation := delegation.Revocation{Target: lost.Target, Until: lost.Until}
		if last, err = l.Append(ctx, r.Tenant, &Draft{Kind: KindRevocation, Caller: recoverer, Revocation: &revocation, Detail: "recovery"}); err != nil {
			return errors.Join(err, errors.Unwrap(err))
		}
	}
	since := last.Time.Add((delegation.ForkMargin + 1) * time.Second) // the set rounds up to whole seconds
	return l.store.change(ctx, func(db changer) error {
		return keep(ctx, db, 1, `INSERT INTO recoveries (tenant, number, head, since) VALUES ($1, $2, $3, $4)
			ON CONFLICT (tenant, number) DO UPDATE SET since = excluded.since`, r.Tenant, int64(number), int64(r.Seq), micros(since))
	})
}
