package guard

import (
	"cmp"
	"context"
	"fmt"
	"slices"
	"strconv"
	"strings"
	"time"

	"deputy.example/deputy/client/delegation"
)

// Receipt is what a verifier last said: that it had applied all revocations up to a number.
type Receipt struct {
	ID       string // of the connection, as its verifier chose it; without spaces
	Verifier delegation.Principal
	Applied  uint64
	SeenAt   time.Time
}

// receiptsFor is how long a receipt is remembered at least. Receipts of that long share a key, which
// then expires as a whole.
const receiptsFor = 10 * time.Minute

func receiptsKey(tenant string, span int64) string {
	return key(tenant, "revoked", "receipts:"+strconv.FormatInt(span, 10))
}

func spanOf(t time.Time) int64 { return t.UnixMilli() / receiptsFor.Milliseconds() }

// Saw shares receipts with the other instances, each in the place of an earlier one of its verifier
// with its ID. No verifier can speak for another, whatever ID it chooses.
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
	ctx, cancel := context.WithTimeout(ctx, g.timeout)
	defer cancel()
	spans := make(map[int64][]any)
	for _, r := range receipts {
		span := spanOf(r.SeenAt)
		spans[span] = append(spans[span], string(r.Verifier)+" "+r.ID, fmt.Sprintf("%d:%d", r.Applied, r.SeenAt.UnixMilli()))
	}
	pipe := g.client.Pipeline()
	for span, pairs := range spans {
		name := receiptsKey(tenant, span)
		pipe.HSet(ctx, name, pairs...)
		pipe.PExpire(ctx, name, 3*receiptsFor)
	}
	if _, err := pipe.Exec(ctx); err != nil {
		return delegation.Unavailable(dependency, err)
	}
	return nil
}

// Receipts returns the newest receipt of every connection that was seen in the last ten minutes by
// any instance, sorted by ID. They are told for people: what Redis lost is missing until the
// verifiers' next marks.
func (g *Guard) Receipts(ctx context.Context, tenant string) (list []Receipt, err error) {
	defer g.observe("receipts", time.Now(), &err)
	ctx, cancel := context.WithTimeout(ctx, g.timeout)
	defer cancel()
	now := g.now()
	newest := make(map[string]Receipt)
	for span := spanOf(now) - 1; span <= spanOf(now)+1; span++ { // another instance's clock may be ahead
		found, err := g.client.HGetAll(ctx, receiptsKey(tenant, span)).Result()
		if err != nil {
			return nil, delegation.Unavailable(dependency, err)
		}
		for whose, value := range found {
			r, valid := parseReceipt(whose, value)
			if !valid {
				return nil, delegation.Unavailable(dependency, fmt.Errorf("the receipt of %q is damaged", whose))
			}
			if old, there := newest[whose]; (!there || old.SeenAt.Before(r.SeenAt)) && now.Sub(r.SeenAt) <= receiptsFor {
				newest[whose] = r
			}
		}
	}
	for _, r := range newest {
		list = append(list, r)
	}
	slices.SortFunc(list, func(a, b Receipt) int { return cmp.Or(cmp.Compare(a.ID, b.ID), cmp.Compare(a.Verifier, b.Verifier)) })
	return list, nil
}

func parseReceipt(whose, value string) (Receipt, bool) {
	verifier, id, both := strings.Cut(whose, " ")
	first, second, two := strings.Cut(value, ":")
	applied, errApplied := strconv.ParseUint(first, 10, 64)
	seen, errSeen := strconv.ParseInt(second, 10, 64)
	r := Receipt{ID: id, Verifier: delegation.Principal(verifier), Applied: applied, SeenAt: time.UnixMilli(seen)}
	return r, both && two && errApplied == nil && errSeen == nil
}
