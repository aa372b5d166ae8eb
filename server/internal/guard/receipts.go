package guard

import (
	"cmp"
	"context"
	"maps"
	"slices"
	"time"

	"deputy.example/deputy/client/delegation"
)

// Receipt is the last report of a verifier: it had applied all revocations up to a number.
type Receipt struct {
	ID       string // of the connection, as its verifier chose it; without spaces
	Verifier delegation.Principal
	Applied  uint64
	SeenAt   time.Time
}

// connection identifies the verifier's connection: two verifiers may choose the same ID.
func (r Receipt) connection() string { return string(r.Verifier) + " " + r.ID }

// receiptsFor is how long a receipt counts.
const receiptsFor = 10 * time.Minute

// Saw shares receipts with the other instances, each in the place of an earlier one of its verifier
// with its ID. No verifier can report for another, whatever ID it chooses.
func (g *Guard) Saw(ctx context.Context, tenant string, receipts []Receipt) (err error) {
	defer g.observe("saw", time.Now(), &err)
	for some := range slices.Chunk(receipts, chunk) {
		if err := g.saw(ctx, tenant, some); err != nil {
			return err
		}
	}
	return nil
}

func (g *Guard) saw(ctx context.Context, tenant string, receipts []Receipt) error {
	ctx, cancel := g.within(ctx)
	defer cancel()
	return unavailable(g.store.saw(ctx, tenant, receipts))
}

// Receipts returns the newest receipt of every connection that was seen in the last ten minutes by
// any instance, sorted by ID. They inform people: what Redis lost is missing until the verifiers'
// next marks.
func (g *Guard) Receipts(ctx context.Context, tenant string) (list []Receipt, err error) {
	defer g.observe("receipts", time.Now(), &err)
	ctx, cancel := g.within(ctx)
	defer cancel()
	now := g.now()
	found, err := g.store.receipts(ctx, tenant, now)
	if err != nil {
		return nil, unavailable(err)
	}
	newest := make(map[string]Receipt)
	for _, r := range found {
		if old, there := newest[r.connection()]; (!there || old.SeenAt.Before(r.SeenAt)) && now.Sub(r.SeenAt) <= receiptsFor {
			newest[r.connection()] = r
		}
	}
	return slices.SortedFunc(maps.Values(newest), func(a, b Receipt) int {
		return cmp.Or(cmp.Compare(a.ID, b.ID), cmp.Compare(a.Verifier, b.Verifier))
	}), nil
}
