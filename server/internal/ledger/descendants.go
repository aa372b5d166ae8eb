package ledger

import (
	"context"
	"slices"
)

// Descendant is a grant that was derived from another one.
type Descendant struct {
	*Entry
	Depth int // 1 for a child
}

// mostDescendants is how many entries of a chain one call looks at.
const mostDescendants = 2000

const (
	sqlFamily = `SELECT seq, jti, parent FROM entries WHERE tenant = $1 AND txn = $2 AND txn <> '' AND seq > $3 AND kind = 'grant' ORDER BY seq LIMIT $4`
	sqlGrant  = `SELECT seq, jti, parent FROM entries WHERE tenant = $1 AND jti = $2 AND jti <> '' AND kind = 'grant'`
)

// Descendants returns grants that were derived from the grant with the given jti. They are in the
// order of their numbers, each after its parent, and have numbers above after. next is where the
// next page begins; 0 means that there is none. One call reads a bounded part of the chain, so a
// page may be short or empty without being the last one.
func (l *Ledger) Descendants(ctx context.Context, tenant, jti string, after uint64, limit int) (page []Descendant, next uint64, err error) {
	ctx, cancel := context.WithTimeout(ctx, l.config.attempt())
	defer cancel()
	origin, err := l.Entry(ctx, tenant, jti)
	switch {
	case err != nil:
		return nil, 0, err
	case origin.Kind != KindGrant:
		return nil, 0, ErrNotFound
	}
	f := family{ledger: l, tenant: tenant, depths: map[string]int{jti: 0}}
	if page, next, err = f.page(ctx, origin, after, min(max(limit, 1), mostFound)); err != nil {
		return nil, 0, failed(err)
	}
	return page, next, nil
}

// family holds, for the grants of a chain, how far below one of them they are. A grant that does
// not descend from it is marked unrelated.
type family struct {
	ledger *Ledger
	tenant string
	depths map[string]int // by jti
}

const unrelated = -1

// link is a grant's place in its chain.
type link struct {
	seq         uint64
	jti, parent string
}

func (f *family) page(ctx context.Context, origin *Entry, after uint64, limit int) (page []Descendant, next uint64, err error) {
	after = max(after, origin.Seq)
	links, err := f.links(ctx, sqlFamily, f.tenant, origin.Txn, stored(after), int64(mostDescendants))
	if err != nil {
		return nil, 0, err
	}
	var seqs []uint64
	depths := map[uint64]int{}
	for i, g := range links {
		depth, err := f.depth(ctx, origin.Seq, g)
		if err != nil {
			return nil, 0, err
		}
		if depth != unrelated {
			seqs, depths[g.seq] = append(seqs, g.seq), depth
		}
		if len(seqs) == limit && (i+1 < len(links) || len(links) == mostDescendants) {
			next = g.seq
			break
		}
	}
	if next == 0 && len(links) == mostDescendants {
		next = links[len(links)-1].seq
	}
	for chunk := range slices.Chunk(seqs, entryPage) {
		entries, err := entriesAt(ctx, f.ledger.store, f.tenant, chunk)
		if err != nil {
			return nil, 0, err
		}
		for _, e := range entries {
			page = append(page, Descendant{Entry: e, Depth: depths[e.Seq]})
		}
	}
	return page, next, nil
}

// depth follows parents from a grant until it reaches one whose place is known, or one that is
// older than the origin. On a page that begins in the middle of the chain, it has to look up some
// of them.
func (f *family) depth(ctx context.Context, origin uint64, g link) (int, error) {
	var path []link
	for {
		path = append(path, g)
		depth, known := f.depths[g.parent]
		if !known && g.parent != "" && g.seq > origin {
			found, err := f.links(ctx, sqlGrant, f.tenant, g.parent)
			if err != nil {
				return 0, err
			}
			if len(found) > 0 && found[0].seq < g.seq { // parents are older: a damaged column must not cause a loop
				g = found[0]
				continue
			}
		}
		if !known {
			depth = unrelated
		}
		for _, g := range slices.Backward(path) {
			if depth != unrelated {
				depth++
			}
			f.depths[g.jti] = depth
		}
		return depth, nil
	}
}

func (f *family) links(ctx context.Context, sql string, args ...any) (list []link, err error) {
	found, err := f.ledger.store.query(ctx, sql, args...)
	if err != nil {
		return nil, err
	}
	err = eachRow(found, func() error {
		var g link
		if err := found.Scan(&g.seq, &g.jti, &g.parent); err != nil {
			return err
		}
		list = append(list, g)
		return nil
	})
	return list, err
}

var sqlVoided = `SELECT voids FROM entries WHERE tenant = $1 AND voids IN (` + numbered + `) AND voids <> 0`

// Voided returns which of the entries with the given numbers are grants that were voided.
func (l *Ledger) Voided(ctx context.Context, tenant string, seqs []uint64) (map[uint64]bool, error) {
	ctx, cancel := context.WithTimeout(ctx, l.config.attempt())
	defer cancel()
	voided := map[uint64]bool{}
	for chunk := range slices.Chunk(seqs, entryPage) {
		found, err := l.store.query(ctx, sqlVoided, byNumber(tenant, chunk)...)
		if err != nil {
			return nil, failed(err)
		}
		err = eachRow(found, func() error {
			var seq uint64
			err := found.Scan(&seq)
			voided[seq] = true
			return err
		})
		if err != nil {
			return nil, failed(err)
		}
	}
	return voided, nil
}
