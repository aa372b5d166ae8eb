package ledger

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"hash/maphash"
	"math"
	"slices"
	"sync/atomic"
	"time"

	"deputy.example/deputy/client/delegation"
)

// Survey starts to count what a revocation of the target would revoke. Its Count is as of this
// call, whatever is recorded afterwards, including the revocation itself.
func (l *Ledger) Survey(ctx context.Context, tenant string, t delegation.Target) (*Survey, error) {
	if err := checkTarget(delegation.Revocation{Target: t}); err != nil {
		return nil, malformed(err)
	}
	s := newSurvey(l, tenant, t, l.config.Now())
	var err error
	if s.head, err = l.headSeq(ctx, tenant); err != nil {
		return nil, unavailable(err)
	}
	if s.before, _, err = l.Live(ctx, tenant); err != nil {
		return nil, err
	}
	return s, nil
}

// SurveyOf starts to count what a revocation that this instance recorded has revoked: its Count is
// as of the moment before. It does not read the database. Count returns ErrTooMany if it would read
// more than a fixed number of rows, so its time does not grow with the number of live grants.
func (l *Ledger) SurveyOf(tenant string, r delegation.Revocation) (*Survey, error) {
	s := newSurvey(l, tenant, r.Target, r.At)
	q, err := l.sequencer(tenant)
	if err != nil {
		return nil, unavailable(err)
	}
	s.head, s.most = r.Seq-1, claimsPage
	live := q.live.feed.Load().live
	s.before = live[:after(live, s.head)]
	return s, nil
}

// ErrTooMany is returned where a bounded Survey would revoke, or have to read, too many tokens to
// count.
var ErrTooMany = errors.New("ledger: there is more to count than one answer waits for")

func newSurvey(l *Ledger, tenant string, t delegation.Target, now time.Time) *Survey {
	return &Survey{ledger: l, tenant: tenant, now: now, target: t, seed: maphash.MakeSeed(), chains: map[uint64]struct{}{}}
}

// Survey is one pass over the live grants of a tenant that the target may hit.
type Survey struct {
	ledger  *Ledger
	tenant  string
	now     time.Time
	target  delegation.Target
	set     *delegation.RevocationSet // the target alone
	before  []delegation.Revocation
	dead    *delegation.RevocationSet // revocations before it
	head    uint64                    // grants with higher numbers were recorded after the question
	most    int                       // bound of the claims that are read, and of the rows of the index; 0: none
	stopped atomic.Bool

	read   int // claims read so far
	hit    []uint64
	tokens int
	seed   maphash.Seed
	chains map[uint64]struct{} // hashed: two in a million chains collide with a chance of one in 10⁷
}

const (
	sqlHeadSeq = `SELECT seq FROM heads WHERE tenant = $1`
	sqlClaims  = `SELECT seq, value FROM claims WHERE tenant = $1 AND seq > $2 AND seq <= $3 AND until > $4 ORDER BY seq LIMIT $5`

	claimsPage = 1000
)

// Count returns the grants that the revocation hits and that were live before it: the oldest, at
// most limit of them, with the number of all such tokens and of their chains. It may be called
// once.
//
// It applies RevocationSet.Hit to the lineage in each grant's stored claims, so its answer cannot
// differ from what the revocation does. An index finds the grants of a token, a chain, an agent or
// a subject, at some fifty microseconds for each. For a root token, a key and the tenant it reads
// all live grants, at some microseconds each. It reads page by page, within ctx, and holds no lock.
func (s *Survey) Count(ctx context.Context, limit int) (grants []*Entry, tokens, chains int, err error) {
	err = s.run(ctx)
	if errors.Is(err, ErrTooMany) {
		return nil, 0, 0, err
	}
	if err == nil {
		grants, err = s.list(ctx, limit)
	}
	if err != nil {
		return nil, 0, 0, unavailable(err)
	}
	return grants, s.tokens, len(s.chains), nil
}

// Stop makes a running Count return between two pages. Canceling a statement would cost
// PostgreSQL's connection.
func (s *Survey) Stop() { s.stopped.Store(true) }

var errStopped = errors.New("the count was stopped")

func (s *Survey) run(ctx context.Context) error {
	s.dead = delegation.NewRevocationSet(s.ledger.Skew(s.tenant))
	for some := range slices.Chunk(s.before, 1024) {
		if s.stopped.Load() {
			return errStopped
		}
		s.dead.Apply(some...)
	}
	s.set = delegation.NewRevocationSet(s.ledger.Skew(s.tenant))
	s.set.Apply(delegation.Revocation{Seq: s.head + 1, Target: s.target, At: s.now})
	agent, subject := delegation.Principal(s.target.ID), s.target.Subject
	switch s.target.Kind {
	case delegation.Resume:
		return nil
	case delegation.BanToken:
		return s.below(ctx)
	case delegation.BanChain:
		return s.chain(ctx, s.target.ID, 0)
	case delegation.CutSubject:
		return s.indexed(ctx, Query{Subject: agent}, nil)
	case delegation.CutAgentSubject:
		return s.indexed(ctx, Query{Actor: agent, Subject: subject}, nil)
	case delegation.BanSuspend, delegation.CutAgent:
		if err := s.indexed(ctx, Query{Actor: agent}, nil); err != nil {
			return err
		}
		// The agent may be the subject of grants in which it is not an actor.
		return s.indexed(ctx, Query{Subject: agent}, func(c delegation.Claims) bool { return !c.Act.Contains(agent) })
	}
	return s.scan(ctx)
}

// below judges a token and its descendants: the part of its chain from it on.
func (s *Survey) below(ctx context.Context) error {
	origin, err := s.ledger.Entry(ctx, s.tenant, s.target.ID)
	switch {
	case errors.Is(err, ErrNotFound):
		return nil
	case err != nil:
		return err
	case origin.Kind != KindGrant:
		return nil
	}
	return s.chain(ctx, origin.Txn, origin.Seq-1)
}

// chain judges the grants of a chain with numbers above after.
func (s *Survey) chain(ctx context.Context, txn string, after uint64) error {
	f := family{ledger: s.ledger, tenant: s.tenant}
	for {
		links, err := s.links(ctx, f, txn, after)
		if err != nil || len(links) == 0 {
			return err
		}
		if err := s.judge(ctx, links, nil); err != nil {
			return err
		}
		after = links[len(links)-1]
	}
}

func (s *Survey) links(ctx context.Context, f family, txn string, after uint64) (seqs []uint64, err error) {
	ctx, cancel := context.WithTimeout(ctx, s.ledger.config.attempt())
	defer cancel()
	links, err := f.links(ctx, sqlFamily, s.tenant, txn, stored(after), int64(entryPage))
	for _, g := range links {
		if g.seq <= s.head {
			seqs = append(seqs, g.seq)
		}
	}
	return seqs, err
}

// indexed judges the grants that the search index finds.
func (s *Survey) indexed(ctx context.Context, q Query, only func(delegation.Claims) bool) error {
	q.Before = s.head + 1
	w, err := s.ledger.walkLive(ctx, s.tenant, q)
	if err != nil {
		return err
	}
	if w.rows = math.MaxInt; s.most > 0 {
		w.rows = s.most
	}
	for w.more() {
		proposed, err := s.propose(ctx, w)
		if err != nil {
			return err
		}
		for chunk := range slices.Chunk(proposed, entryPage) {
			if err := s.judge(ctx, chunk, only); err != nil {
				return err
			}
		}
	}
	return nil
}

func (s *Survey) propose(ctx context.Context, w *walk) ([]uint64, error) {
	if w.rows <= 0 {
		return nil, ErrTooMany
	}
	ctx, cancel := context.WithTimeout(ctx, s.ledger.config.attempt())
	defer cancel()
	return w.propose(ctx, entryPage)
}

// judge reads the claims of grants, and counts those that the target hits and for which only, where
// it is not nil, returns true.
func (s *Survey) judge(ctx context.Context, seqs []uint64, only func(delegation.Claims) bool) error {
	if err := s.allows(len(seqs)); err != nil {
		return err
	}
	ctx, cancel := context.WithTimeout(ctx, s.ledger.config.attempt())
	defer cancel()
	found, err := s.ledger.store.query(ctx, sqlClaimsIn, append(byNumber(s.tenant, seqs), micros(s.now))...)
	if err != nil {
		return err
	}
	return eachRow(found, func() error {
		var seq uint64
		var raw []byte
		if err := found.Scan(&seq, &raw); err != nil {
			return err
		}
		return s.count(seq, raw, only)
	})
}

// allows refuses to read more claims than the bound permits, and counts them as read.
func (s *Survey) allows(more int) error {
	if s.stopped.Load() {
		return errStopped
	}
	if s.read += more; s.most > 0 && s.read > s.most {
		return ErrTooMany
	}
	return nil
}

// count counts a live grant if the target hits it.
func (s *Survey) count(seq uint64, raw []byte, only func(delegation.Claims) bool) error {
	claims, err := delegation.DecodeClaims(raw)
	if err != nil {
		return fmt.Errorf("claims of entry %d: %w", seq, err)
	}
	if only != nil && !only(claims) {
		return nil
	}
	_, dies := s.set.Hit(claims.Lineage())
	if _, dead := s.dead.Hit(claims.Lineage()); dies && !dead {
		s.tokens++
		s.chains[maphash.String(s.seed, claims.Txn)] = struct{}{}
		s.hit = append(s.hit, seq)
	}
	return nil
}

// scan reads all live grants.
func (s *Survey) scan(ctx context.Context) error {
	for after, more := uint64(0), true; more; {
		if err := s.allows(0); err != nil {
			return err
		}
		var err error
		if after, more, err = s.page(ctx, after); err != nil {
			return err
		}
		s.read += claimsPage
		if more && s.most > 0 && s.read >= s.most {
			return ErrTooMany
		}
	}
	return nil
}

// list returns the oldest of the grants that are hit.
func (s *Survey) list(ctx context.Context, limit int) (grants []*Entry, err error) {
	slices.Sort(s.hit)
	for chunk := range slices.Chunk(s.hit[:min(len(s.hit), limit)], entryPage) {
		entries, err := entriesAt(ctx, s.ledger.store, s.tenant, chunk)
		if err == nil && len(entries) != len(chunk) {
			err = errors.New("claims without their entry")
		}
		if err != nil {
			return nil, err
		}
		grants = append(grants, entries...)
	}
	return grants, nil
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

// livePage gives f the claims of the next grants with numbers from after+1 to upTo that are live at
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

// mentions is false only for claims that cannot hold the target's name: JSON without an escape
// holds every string as it is. A search is ten times faster than decoding.
func (s *Survey) mentions(claims []byte) bool {
	return bytes.Contains(claims, []byte(s.target.ID)) || bytes.IndexByte(claims, '\\') >= 0
}

// page judges the next live grants and returns the number of the last one.
func (s *Survey) page(ctx context.Context, after uint64) (last uint64, more bool, err error) {
	ctx, cancel := context.WithTimeout(ctx, s.ledger.config.attempt())
	defer cancel()
	return s.ledger.livePage(ctx, s.tenant, after, s.head, s.now, func(seq uint64, raw []byte) error {
		if !s.mentions(raw) {
			return nil
		}
		return s.count(seq, raw, nil)
	})
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
