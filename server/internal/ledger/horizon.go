package ledger

import (
	"context"
	"errors"
	"time"

	"deputy.example/deputy/server/internal/clock"
)

// The horizon rule: whatever protects is forgotten only up to a time that is remembered in its place, and what ends at or
// before that time is refused. So a clock that was wrong can make the ledger refuse for a while, and never accept what
// was revoked or spent. The time is kept in two places: RevocationSet.Horizon for the memory of an instance, and
// heads.pruned_through for rows, which moves in the transaction that prunes.

const (
	// LongestRoot is the longest life that any configuration may allow a root token, and so how long a revocation that
	// hits root tokens lasts at least. A later version must not allow a longer one while revocations of an earlier are in
	// force.
	LongestRoot = 24 * time.Hour

	// maxSkew is the longest skew that any configuration may grant a root token.
	maxSkew = time.Minute

	// margin is how long something has ended, by ledger time, before it is forgotten.
	margin = 30 * time.Second

	serverClock = "postgresql" // name of the database's clock among the sources of a clock.Clock
)

// forgettable is the time up to which what has ended may be forgotten, and whether the clocks are certain enough that
// anything may be forgotten at all.
func (l *Ledger) forgettable(at time.Time) (through time.Time, certain bool) {
	return at.Add(-margin), l.config.Clock.Settled()
}

// sqlHorizon belongs into every transaction that takes away what has ended outside of an append.
const sqlHorizon = `UPDATE heads SET pruned_through = $2 WHERE tenant = $1 AND pruned_through < $2`

// horizon asks what time it is and returns up to which time a transaction may take away what has ended. The error means
// that nothing may be taken away now.
func (l *Ledger) horizon(ctx context.Context) (time.Time, error) {
	through, err := l.ended(ctx)
	if err == nil && !l.config.Clock.Settled() {
		err = errUnsettled
	}
	return through, err
}

// ended asks what time it is and returns up to which time things have ended. It is enough by itself for what an operator
// orders, which a process that was just started does. The error means that the clocks are in doubt.
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

// raise notes in a transaction that what ended by then may be gone.
func raise(ctx context.Context, db changer, tenant string, through time.Time) error {
	_, err := db.change(ctx, sqlHorizon, tenant, micros(through))
	return err
}

// Clock is the clock of the database as a source of evidence; false if it has none of its own.
func (l *Ledger) Clock() (clock.Source, bool) {
	_, own := l.store.(*postgresStore)
	return clock.Source{Name: serverClock, Ask: l.store.time}, own
}

// Trusted is nil while this instance may issue, by Config.Clock.
func (l *Ledger) Trusted() error { return l.config.Clock.Trusted() }
