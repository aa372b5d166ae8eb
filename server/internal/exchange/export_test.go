package exchange

import (
	"context"
	"maps"
	"slices"
	"time"

	"deputy.example/deputy/server/internal/guard"
)

// AdmitUntil admits an inquiry whose credential is spent before the revocations are read. In
// between it calls hangUp.
func (e *Engine) AdmitUntil(ctx context.Context, q Inquiry, hangUp func()) error {
	_, err := e.inquirer(ctx, q, e.workload, func(ctx context.Context, a arrival) error {
		defer hangUp()
		return e.spend(ctx, a)
	})
	return err
}

// Notary returns the function that makes one process's rounds of signing checkpoints for a tenant.
func (e *Engine) Notary(tenant string) (round func(context.Context) error) {
	t := e.tenants[tenant]
	n := newNotary(e, t)
	return n.round
}

// HasRoomFor gives the instance fewer places for streams.
func (e *Engine) HasRoomFor(watchers, tails int) {
	tenants := len(e.config.Tenants)
	e.watchers = newPlaces("watchers", watchers, tenants, 2, time.Second)
	e.tails = newPlaces("streams of entries", tails, tenants, 4, 5*time.Second)
}

// StatusMaxAge returns how long a status list of time at may still be kept.
func StatusMaxAge(at, now time.Time) (time.Duration, error) { return statusMaxAge(at, now) }

// Compare compares a tenant's ledger with Redis, now.
func (e *Engine) Compare(ctx context.Context, tenant string) error {
	return e.compare(ctx, []string{tenant}, nil)
}

// Arbitrate compares this instance's incarnation with the one in Redis, now.
func (e *Engine) Arbitrate(ctx context.Context, tenant string) error { return e.arbitrate(ctx, tenant) }

// BoundNames are the names of all fields that a request may have.
func BoundNames() []string { return slices.Sorted(maps.Keys(bounds)) }

// ShareReceipts shares a receipt of each tenant, and returns the tenants that still have some.
func (e *Engine) ShareReceipts(ctx context.Context, tenants ...string) (left []string, err error) {
	for _, tenant := range tenants {
		e.receipts.put(tenant, guard.Receipt{ID: "1", Verifier: "service:calendar", Applied: 1, SeenAt: e.config.Now()})
	}
	err = e.share(ctx)
	return e.receipts.tenants(), err
}
