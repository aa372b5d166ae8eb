package ledger

import (
	"context"
	"errors"
	"time"

	"deputy.example/deputy/server/internal/clock"
)

// The horizon rule: state that protects is forgotten only up to a time, and that time is kept in
// its place. What ends at or before that time is refused. A wrong clock can therefore make the
// ledger refuse for a while, but never accept what was revoked or spent. The time is kept in two
// places: RevocationSet.Horizon for the memory of an instance, and heads.pruned_through for rows,
// which moves in the transaction that prunes.

const (
	// LongestRoot is the longest life that a configuration may allow a root token, and the shortest
	// life of a revocation that hits root tokens. A later version must not allow a longer one while
	// revocations of an earlier version are in force.
	LongestRoot = 24 * time.Hour

	// maxSkew is the longest skew that any configuration may grant a root token.
	maxSkew = time.Minute

	// margin is how long state must have ended, by ledger time, before it is forgotten.
	margin = 30 * time.Second

	serverClock = "postgresql" // name of the database's clock among the sources of a clock.Clock
)

// forgettable returns the time up to which state that has ended may be forgotten, and whether the
// clocks are certain enough to forget anything.
func (l *Ledger) forgettable(at time.Time) (through time.Time, certain bool) {
	return at.Add(-margin), l.config.Clock.Settled()
}

// sqlHorizon belongs in every transaction, other than an append, that removes state that has ended.
const sqlHorizon = `UPDATE heads SET pruned_through = $2 WHERE tenant = $1 AND pruned_through < $2`

// horizon reads the clocks and returns up to which time a transaction may remove state that has
// ended. After an error nothing may be removed.
func (l *Ledger) horizon(ctx context.Context) (time.Time, error) {
	through, err := l.ended(ctx)
	if err == nil && !l.config.Clock.Settled() {
		err = errUnsettled
	}
	return through, err
}

// ended reads the clocks and returns up to which time things have ended. It is sufficient for what
// an operator orders, which a process does right after its start. The error means that the clocks
// are in doubt.
func (l *Ledger) ended(ctx context.Context) (time.Time, error) {
	asked := l.config.Clock.Elapsed()
	server, err := l.store.time(ctx)
	if err != nil {
		return time.Time{}, err
	}
	at, err := l.config.Clock.Judge(serverClock, server, asked, time.Time{})
	if err != nil {
		return time.Time{}, err
	}
	return at.Add(-margin), nil
}

var errUnsettled = errors.New("the instance was started, or the clocks were changed, less than 15 minutes ago: nothing is forgotten until then")

// raise records in a transaction that state which ended by then may be gone.
func raise(ctx context.Context, db changer, tenant string, through time.Time) error {
	_, err := db.change(ctx, sqlHorizon, tenant, micros(through))
	return err
}

// Clock is the database's clock as a source of evidence; false if the database has none of its own.
func (l *Ledger) Clock() (clock.Source, bool) {
	_, own := l.store.(*postgresStore)
	return clock.Source{Name: serverClock, Ask: l.store.time}, own
}

// Trusted is nil while this instance may issue, by Config.Clock.
func (l *Ledger) Trusted() error { return l.config.Clock.Trusted() }
