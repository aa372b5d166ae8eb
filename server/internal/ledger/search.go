package ledger

import (
	"context"
	"encoding/json"
	"slices"
	"strings"
	"time"

	"deputy.example/deputy/client/delegation"
)

// Query selects entries: those that match every field that is set, whole and byte by byte.
type Query struct {
	Subject  delegation.Principal
	Actor    delegation.Principal // any actor of the chain, or the requested one
	Caller   delegation.Principal
	Audience string
	Scope    string
	Kind     Kind
	Outcome  Outcome
	Reason   delegation.Reason
	TraceID  string
	ID       string // the jti
	Txn      string
	Key      string    // thumbprint of the key that the token is bound to
	Peer     string    // address of the caller, with its port or without
	From     time.Time // recorded at or after
	Until    time.Time // recorded before
	Before   uint64    // with a lower number; 0: from the newest on
	Limit    int       // at least 1; at most 1,000 are found at once

	// Seen, where it is not nil, reports which entries the caller may see. The others are treated
	// as absent: no page ends at one.
	Seen func(*Entry) bool
}

const (
	mostFound = 1000
	// mostRows is how many rows one call reads, of the index or of entries that it does not cover:
	// a million indexed entries, or sixteen thousand others.
	mostRows = 16 << 10
	// mostPrefetched is how many blocks of the index one statement reads.
	mostPrefetched = 512
)

// want is one value that an entry must have.
type want struct {
	facet facet
	value string
}

func (q *Query) wants() []want {
	var list []want
	for _, w := range []want{
		{facetSubject, string(q.Subject)}, {facetActor, string(q.Actor)}, {facetCaller, string(q.Caller)},
		{facetAudience, q.Audience}, {facetScope, q.Scope}, {facetKind, string(q.Kind)}, {facetOutcome, string(q.Outcome)},
		{facetReason, string(q.Reason)}, {facetTrace, q.TraceID}, {facetKey, q.Key}, {facetPeer, hostOf(q.Peer)},
	} {
		if w.value != "" {
			list = append(list, w)
		}
	}
	return list
}

// Search finds entries, the newest first. before is the Query.Before of the next page; 0 means that
// there is none. One call does a bounded amount of work, so a page may be short or empty without
// being the last one. Entries that are recorded meanwhile do not move the pages.
//
// It reads the search index where that is built and undamaged, and the entries themselves
// elsewhere. A result may take more calls, but is never missed. A jti and a txn have indexes of the
// database.
func (l *Ledger) Search(ctx context.Context, tenant string, q Query) (page []*Entry, before uint64, err error) {
	ctx, cancel := context.WithTimeout(ctx, l.config.attempt())
	defer cancel()
	w, err := l.walk(ctx, tenant, q)
	if err == nil {
		page, before, err = w.page(ctx, min(max(q.Limit, 1), mostFound))
	}
	if err != nil {
		return nil, 0, failed(err)
	}
	return page, before, nil
}

// walk goes through a tenant's entries, from the newest to the oldest, and proposes those that
// match.
type walk struct {
	ledger     *Ledger
	tenant     string
	wants      []want
	exact      exact
	seen       func(*Entry) bool
	low        uint64 // what is left to read: from low to below high
	high       uint64
	head       uint64 // the newest entry when the walk began
	built      uint64 // blocks below this are in the index
	rows       int    // how many may still be read
	prefetched prefetched
}

// prefetched is a part of the index that was read at once.
type prefetched struct {
	first   uint64 // block of the first element
	members []members
	lost    []bool // rows of the block are missing or damaged
	most    int    // blocks that the next statement reads
}

const (
	// One statement, so that its parts come from one snapshot.
	sqlExtent = `SELECT h.seq, coalesce(s.block, 0), ` + sqlThrough + ` + 1
		FROM heads h LEFT JOIN search_heads s ON s.tenant = h.tenant WHERE h.tenant = $1`

	sqlPostings = `SELECT block, terms FROM postings WHERE tenant = $1 AND bucket = $2 AND block >= $3 AND block <= $4`

	// sqlFacets reads the columns by which entries are found.
	sqlFacets = `SELECT seq, kind, outcome, reason, scopes, audiences, trace_id, subject, actor, caller, actors, holder_key, peer
		FROM entries WHERE tenant = $1 AND seq >= $2 AND seq < $3 ORDER BY seq`

	// sqlSince finds the first number from $2 to below $3 that was recorded at $4 or after, or $3.
	// Time never runs backwards within a tenant, so it halves the range repeatedly. Entries that
	// are missing were dropped for their age.
	sqlSince = `WITH RECURSIVE s(low, high) AS (
			SELECT CAST($2 AS BIGINT), CAST($3 AS BIGINT)
			UNION ALL
			SELECT CASE WHEN e.time >= $4 THEN s.low ELSE (s.low + s.high) / 2 + 1 END,
				CASE WHEN e.time >= $4 THEN (s.low + s.high) / 2 ELSE s.high END
			FROM s LEFT JOIN entries e ON e.tenant = $1 AND e.seq = (s.low + s.high) / 2 WHERE s.low < s.high)
		SELECT max(low) FROM s`
)

func (l *Ledger) walk(ctx context.Context, tenant string, q Query) (*walk, error) {
	w := &walk{ledger: l, tenant: tenant, wants: q.wants(), exact: q.exact(), seen: q.Seen, rows: mostRows, prefetched: prefetched{most: 4}}
	found, err := l.store.query(ctx, sqlExtent, tenant)
	if err != nil {
		return nil, err
	}
	err = eachRow(found, func() error { return found.Scan(&w.head, &w.built, &w.low) })
	if err != nil {
		return nil, err
	}
	if w.low == 0 { // no such tenant
		return w, nil
	}
	w.built = min(w.built, w.head/blockSize) // a block that is not full does not cover later entries
	if w.high = w.head + 1; q.Before > 0 && q.Before < w.high {
		w.high = q.Before
	}
	if !q.Until.IsZero() {
		if w.high, err = w.since(ctx, q.Until); err != nil {
			return nil, err
		}
	}
	if !q.From.IsZero() {
		w.low, err = w.since(ctx, q.From)
	}
	return w, err
}

// since is the number of the first entry that was recorded at t or after.
func (w *walk) since(ctx context.Context, t time.Time) (uint64, error) {
	if w.low >= w.high {
		return w.high, nil
	}
	at := t.UnixMicro()
	if time.UnixMicro(at).Before(t) {
		at++ // entries have whole microseconds
	}
	var seq uint64
	found, err := w.ledger.store.query(ctx, sqlSince, w.tenant, int64(w.low), int64(w.high), at)
	if err != nil {
		return 0, err
	}
	err = eachRow(found, func() error { return found.Scan(&seq) })
	return seq, err
}

func (w *walk) more() bool { return w.low < w.high }

func (w *walk) page(ctx context.Context, limit int) (page []*Entry, before uint64, err error) {
	low := w.low
	for w.more() && w.rows > 0 && len(page) < limit {
		proposed, err := w.propose(ctx, limit-len(page))
		if err != nil {
			return nil, 0, err
		}
		for chunk := range slices.Chunk(proposed, entryPage) {
			entries, err := entriesAt(ctx, w.ledger.store, w.tenant, chunk)
			if err != nil {
				return nil, 0, err
			}
			w.rows -= len(chunk)
			for _, e := range slices.Backward(entries) {
				if len(page) < limit && w.matches(e) && (w.seen == nil || w.seen(e)) {
					page = append(page, e)
				}
			}
			if len(page) == limit {
				break
			}
		}
	}
	switch {
	case len(page) == limit && page[limit-1].Seq > low:
		return page, page[limit-1].Seq, nil
	case len(page) < limit && w.more():
		return page, w.high, nil
	}
	return page, 0, nil
}

func (w *walk) matches(e *Entry) bool {
	if !w.exact.matches(e) {
		return false
	}
	for _, want := range w.wants {
		if !e.has(want.facet, want.value) {
			return false
		}
	}
	return true
}

// propose returns the next entries that match according to the index, the newest first: at least n
// of them, unless the walk or its allowance of rows ends before.
func (w *walk) propose(ctx context.Context, n int) (seqs []uint64, err error) {
	if sql, arg := w.exact.lookUp(); sql != "" {
		return w.proposeExact(ctx, sql, arg)
	}
	for w.more() && w.rows > 0 && len(seqs) < n {
		block := blockOf(w.high - 1)
		m, whole, err := w.index(ctx, block)
		if err != nil {
			return nil, err
		}
		if !whole {
			if m, err = w.scan(ctx, block); err != nil {
				return nil, err
			}
		}
		seqs = append(seqs, m.numbers(block, w.low, w.high)...)
		w.high = max(w.low, firstOf(block))
	}
	return seqs, nil
}

// index returns the members of a block that have all terms. whole is false if the block is not in
// the index, or not completely.
func (w *walk) index(ctx context.Context, block uint64) (m members, whole bool, err error) {
	switch {
	case len(w.wants) == 0:
		return everyone, true, nil
	case block >= w.built:
		return members{}, false, nil
	case len(w.prefetched.members) == 0 || block < w.prefetched.first:
		if err := w.read(ctx, block); err != nil {
			return members{}, false, err
		}
	}
	i := block - w.prefetched.first
	if w.prefetched.lost[i] {
		w.ledger.lost.note(w.tenant, block)
	}
	return w.prefetched.members[i], !w.prefetched.lost[i], nil
}

// read takes the block and those before it from the index: the more of them, the longer the walk
// has been.
func (w *walk) read(ctx context.Context, last uint64) error {
	n := min(uint64(w.prefetched.most), last-blockOf(w.low)+1)
	w.prefetched = prefetched{first: last + 1 - n, members: make([]members, n), lost: make([]bool, n), most: min(2*w.prefetched.most, mostPrefetched)}
	for i := range w.prefetched.members {
		w.prefetched.members[i] = everyone
	}
	for _, want := range w.wants {
		if err := w.readTerm(ctx, last, termOf(want.facet, want.value)); err != nil {
			return err
		}
	}
	w.rows -= int(n) * len(w.wants)
	return nil
}

func (w *walk) readTerm(ctx context.Context, last uint64, t term) error {
	a := w.prefetched
	there := make([]bool, len(a.members))
	found, err := w.ledger.store.query(ctx, sqlPostings, w.tenant, int64(t.bucket()), int64(a.first), int64(last))
	if err != nil {
		return err
	}
	err = eachRow(found, func() error {
		var block uint64
		var row []byte
		if err := found.Scan(&block, &row); err != nil {
			return err
		}
		m, whole := find(row, w.tenant, block, t)
		there[block-a.first] = whole
		a.members[block-a.first].intersect(m)
		return nil
	})
	for i, ok := range there {
		if !ok {
			a.lost[i] = true
		}
	}
	return err
}

// scan reads the block's entries themselves.
func (w *walk) scan(ctx context.Context, block uint64) (m members, err error) {
	low, high := max(w.low, firstOf(block)), min(w.high, firstOf(block+1))
	entries, err := readFacets(ctx, w.ledger.store, w.tenant, low, high)
	w.rows -= int(high - low)
	for _, e := range entries {
		if w.matches(e) {
			m.add(e.Seq - firstOf(block))
		}
	}
	return m, err
}

// readFacets returns the entries from low to below high with only the values by which they are
// found.
func readFacets(ctx context.Context, db querier, tenant string, low, high uint64) ([]*Entry, error) {
	found, err := db.query(ctx, sqlFacets, tenant, int64(low), int64(high))
	if err != nil {
		return nil, err
	}
	list := make([]*Entry, 0, high-low)
	err = eachRow(found, func() error {
		var e Entry
		var scopes, audiences, actors string
		if err := found.Scan(&e.Seq, &e.Kind, &e.Outcome, &e.Reason, &scopes, &audiences, &e.TraceID,
			&e.Subject, &e.Actor, &e.Caller, &actors, &e.HolderKey, &e.Peer); err != nil {
			return err
		}
		// If the column is damaged, the entry is not found by it. Where it is found by another
		// value, reading it whole fails. One damaged entry must not stop the index for all others.
		if json.Unmarshal([]byte(audiences), &e.Audiences) != nil {
			e.Audiences = nil
		}
		e.Scopes, e.Actors = strings.Split(scopes, " "), splitChain(actors)
		list = append(list, &e)
		return nil
	})
	return list, err
}
