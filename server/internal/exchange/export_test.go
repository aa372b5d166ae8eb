package exchange

import (
	"context"
	"maps"
	"slices"
	"time"

	"deputy.example/deputy/server/internal/guard"
	"deputy.example/deputy/server/internal/ledger"
	"deputy.example/deputy/server/internal/token"
)

// Protection names what a negative control switches off.
type Protection func(*protections)

var (
	NoCallerRules     Protection = func(p *protections) { p.callerRules = true }
	NoActorAudience   Protection = func(p *protections) { p.actorAudience = true }
	NoOtherCaller     Protection = func(p *protections) { p.otherCaller = true }
	NoBinding         Protection = func(p *protections) { p.binding = true }
	NoPolicy          Protection = func(p *protections) { p.policy = true }
	NoReplayCheck     Protection = func(p *protections) { p.replay = true }
	NoUses            Protection = func(p *protections) { p.uses = true }
	NoIdempotency     Protection = func(p *protections) { p.idempotency = true }
	NoRevocationCheck Protection = func(p *protections) { p.revocation = true }
	NoContinuity      Protection = func(p *protections) { p.continuity = true }
	NoReadingRules    Protection = func(p *protections) { p.reading = true }
	NoWithholding     Protection = func(p *protections) { p.withholding = true }
	NoClientID        Protection = func(p *protections) { p.clientID = true }
	NoOneTenant       Protection = func(p *protections) { p.oneTenant = true }
	NoEqualAnswers    Protection = func(p *protections) { p.equalAnswers = true }
)

// SwitchOff must be called before the engine is used.
func (e *Engine) SwitchOff(p Protection) { p(&e.off) }

// Notary is one process's rounds of signing checkpoints for a tenant.
func (e *Engine) Notary(tenant string) (round func(context.Context) error) {
	t := e.tenants[tenant]
	n := newNotary(e, t)
	return n.round
}

// SignWith replaces the signer; nil puts it back.
func (e *Engine) SignWith(sign func(*token.Keyset, []byte) (string, error)) {
	if e.sign = sign; sign == nil {
		e.sign = (*token.Keyset).Sign
	}
}

// CountPatiently has revocations wait for their counts, on a machine that does much else.
func (e *Engine) CountPatiently() { e.patience = time.Second }

// HasRoomFor makes the instance one with fewer places for streams.
func (e *Engine) HasRoomFor(watchers, tails int) {
	tenants := len(e.config.Tenants)
	e.watchers = newPlaces("watchers", watchers, tenants, 2, time.Second)
	e.tails = newPlaces("streams of entries", tails, tenants, 4, 5*time.Second)
}

// CountWith replaces the count of what a revocation kills.
func (e *Engine) CountWith(hits func(s *ledger.Survey, ctx context.Context, limit int) ([]*ledger.Entry, int, int, error)) {
	e.hits = hits
}

// ListWith replaces the making of status lists; nil puts it back.
func (e *Engine) ListWith(statuses func(ctx context.Context, tenant string, list uint64, maxAge time.Duration) (*ledger.Statuses, error)) {
	if e.statuses = statuses; statuses == nil {
		e.statuses = e.config.Ledger.Statuses
	}
}

// Compare compares a tenant's ledger with Redis, now.
func (e *Engine) Compare(ctx context.Context, tenant string) error {
	return e.compare(ctx, []string{tenant}, nil)
}

// Arbitrate looks for a later incarnation, now.
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
