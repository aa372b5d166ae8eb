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
	ID       string // of the connection
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

// Saw shares receipts with the other instances, each in the place of an earlier one with its ID.
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
		spans[span] = append(spans[span], r.ID, fmt.Sprintf("%d:%d:%s", r.Applied, r.SeenAt.UnixMilli(), r.Verifier))
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
		for id, value := range found {
			r, valid := parseReceipt(id, value)
			if !valid {
				return nil, delegation.Unavailable(dependency, fmt.Errorf("the receipt of %q is damaged", id))
			}
			if old, there := newest[id]; (!there || old.SeenAt.Before(r.SeenAt)) && now.Sub(r.SeenAt) <= receiptsFor {
				newest[id] = r
			}
		}
	}
	for _, r := range newest {
		list = append(list, r)
	}
	slices.SortFunc(list, func(a, b Receipt) int { return cmp.Compare(a.ID, b.ID) })
	return list, nil
}

func parseReceipt(id, value string) (Receipt, bool) {
	parts := strings.SplitN(value, ":", 3)
	if len(parts) != 3 {
		return Receipt{}, false
	}
	applied, errApplied := strconv.ParseUint(parts[0], 10, 64)
	seen, errSeen := strconv.ParseInt(parts[1], 10, 64)
	r := Receipt{ID: id, Verifier: delegation.Principal(parts[2]), Applied: applied, SeenAt: time.UnixMilli(seen)}
	return r, errApplied == nil && errSeen == nil
}
