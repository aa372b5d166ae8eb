package ledger

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"hash/maphash"
	"slices"
	"sync/atomic"
	"time"

	"deputy.example/deputy/client/delegation"
)

// Hits says what a revocation of the target would kill if it were recorded now: the grants that have
// neither expired nor been voided or revoked and that it hits, oldest first and at most limit of them,
// together with the number of all such tokens and of the chains that they belong to. It is a Survey with its
// Count.
func (l *Ledger) Hits(ctx context.Context, tenant string, t delegation.Target, limit int) (grants []*Entry, tokens, chains int, err error) {
	s, err := l.Survey(ctx, tenant, t)
	if err != nil {
		return nil, 0, 0, err
	}
	return s.Count(ctx, limit)
}

// Survey begins to find out what a revocation of the target kills. Its Count is of the time of this call,
// whatever is recorded meanwhile, the revocation itself included.
func (l *Ledger) Survey(ctx context.Context, tenant string, t delegation.Target) (*Survey, error) {
	if err := checkTarget(delegation.Revocation{Target: t}); err != nil {
		return nil, malformed(err)
	}
	s := &Survey{ledger: l, tenant: tenant, now: l.config.Now(), target: t, seed: maphash.MakeSeed(), chains: map[uint64]struct{}{}}
	var err error
	if s.head, err = l.headSeq(ctx, tenant); err != nil {
		return nil, unavailable(err)
	}
	if s.before, _, err = l.Live(ctx, tenant); err != nil {
		return nil, err
	}
	return s, nil
}

// Survey is one pass over a tenant's live grants.
type Survey struct {
	ledger  *Ledger
	tenant  string
	now     time.Time
	limit   int
	target  delegation.Target
	set     *delegation.RevocationSet // the target alone
	before  []delegation.Revocation
	dead    *delegation.RevocationSet // what was revoked before
	head    uint64                    // grants with higher numbers came after the question
	stopped atomic.Bool

	grants []*Entry
	tokens int
	seed   maphash.Seed
	chains map[uint64]struct{} // hashed: two in a million chains share one by a chance of one in 10⁷
}

const (
	sqlHeadSeq = `SELECT seq FROM heads WHERE tenant = $1`
	sqlClaims  = `SELECT seq, value FROM claims WHERE tenant = $1 AND seq > $2 AND seq <= $3 AND until > $4 ORDER BY seq LIMIT $5`

	claimsPage = 1000
)

// Count returns what Hits does. It may be called once.
//
// It asks RevocationSet.Hit of the lineage in each live grant's stored claims, so it cannot differ
// from what becomes of them. That takes time in proportion to all live grants of the tenant, within
// ctx: some microseconds for each, and fifty for each that names the target. It reads them page by
// page and holds no lock.
func (s *Survey) Count(ctx context.Context, limit int) (grants []*Entry, tokens, chains int, err error) {
	s.limit = limit
	if err := s.run(ctx); err != nil {
		return nil, 0, 0, unavailable(err)
	}
	return s.grants, s.tokens, len(s.chains), nil
}

// Stop has a Count that runs give up between two pages: to break off a statement would cost PostgreSQL's
// connection.
func (s *Survey) Stop() { s.stopped.Store(true) }

var errStopped = errors.New("the count was stopped")

func (s *Survey) run(ctx context.Context) error {
	s.dead = delegation.NewRevocationSet(s.ledger.config.Skew)
	for some := range slices.Chunk(s.before, 1024) {
		if s.stopped.Load() {
			return errStopped
		}
		s.dead.Apply(some...)
	}
	s.set = delegation.NewRevocationSet(s.ledger.config.Skew)
	s.set.Apply(delegation.Revocation{Seq: s.head + 1, Target: s.target, At: s.now})
	var err error
	for after, more := uint64(0), true; more; {
		if s.stopped.Load() {
			return errStopped
		}
		if after, more, err = s.page(ctx, after); err != nil {
			return err
		}
	}
	return nil
}

// headSeq is the number of the tenant's newest entry, 0 if there is none.
func (l *Ledger) headSeq(ctx context.Context, tenant string) (seq uint64, err error) {
	found, err := l.store.query(ctx, sqlHeadSeq, tenant)
	if err != nil {
		return 0, err
	}
	err = eachRow(found, func() error { return found.Scan(&seq) })
	return seq, err
}

// livePage gives f the claims of the next grants with numbers from after+1 to upTo that are alive at
// now, in order, and returns the number of the last one. f must not keep the bytes.
func (l *Ledger) livePage(ctx context.Context, tenant string, after, upTo uint64, now time.Time, f func(seq uint64, claims []byte) error) (last uint64, more bool, err error) {
	found, err := l.store.query(ctx, sqlClaims, tenant, int64(after), int64(upTo), micros(now), int64(claimsPage))
	if err != nil {
		return 0, false, err
	}
	n := 0
	err = eachRow(found, func() error {
		var raw []byte
		if err := found.Scan(&last, &raw); err != nil {
			return err
		}
		n++
		return f(last, raw)
	})
	return last, n == claimsPage, err
}

// names is false only for claims that cannot hold the target's name: JSON without an escape holds
// every string as it is. To search is ten times faster than to decode.
func (s *Survey) names(claims []byte) bool {
	return bytes.Contains(claims, []byte(s.target.ID)) || bytes.IndexByte(claims, '\\') >= 0
}

// page judges the next live grants and returns the number of the last one.
func (s *Survey) page(ctx context.Context, after uint64) (last uint64, more bool, err error) {
	ctx, cancel := context.WithTimeout(ctx, s.ledger.config.attempt())
	defer cancel()
	var hit []uint64
	last, more, err = s.ledger.livePage(ctx, s.tenant, after, s.head, s.now, func(seq uint64, raw []byte) error {
		if !s.names(raw) {
			return nil
		}
		claims, err := delegation.DecodeClaims(raw)
		if err != nil {
			return fmt.Errorf("claims of entry %d: %w", seq, err)
		}
		_, dies := s.set.Hit(claims.Lineage())
		if _, dead := s.dead.Hit(claims.Lineage()); dies && !dead {
			s.tokens++
			s.chains[maphash.String(s.seed, claims.Txn)] = struct{}{}
			if len(s.grants)+len(hit) < s.limit {
				hit = append(hit, seq)
			}
		}
		return nil
	})
	if err != nil {
		return 0, false, err
	}
	for chunk := range slices.Chunk(hit, entryPage) {
		entries, err := entriesAt(ctx, s.ledger.store, s.tenant, chunk)
		if err == nil && len(entries) != len(chunk) {
			err = errors.New("claims without their entry")
		}
		if err != nil {
			return 0, false, err
		}
		s.grants = append(s.grants, entries...)
	}
	return last, more, nil
}

func eachRow(r rows, f func() error) error {
	defer r.Close()
	for r.Next() {
		if err := f(); err != nil {
			return err
		}
	}
	return r.Err()
}
