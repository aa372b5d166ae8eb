package ledger

import (
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"slices"

	"golang.org/x/mod/sumdb/tlog"

	"deputy.example/deputy/client/audit"
)

// The log of a tenant is a Merkle tree whose leaf n-1 is entry n. The tenant's head holds its right
// edge, which advances in the transaction of the entries. Only every tierHeight-th level of its
// inner nodes is stored. The levels between are computed from at most 256 nodes of the tier below,
// or leaves.
const (
	tierHeight = 8
	tierWidth  = 1 << tierHeight
)

// parseEdge reads the edge of a head. It is never kept from one batch to the next: the locked row
// decides, whatever the outcome of earlier commits was.
func parseEdge(size uint64, stored []byte) (audit.Edge, error) {
	edge := audit.Edge{Size: size}
	for chunk := range slices.Chunk(stored, sha256.Size) {
		if len(chunk) != sha256.Size {
			return edge, errors.New("the tree of the head is cut short")
		}
		edge.Hashes = append(edge.Hashes, tlog.Hash(chunk))
	}
	return edge, edge.Check()
}

func edgeBytes(e audit.Edge) []byte {
	b := make([]byte, 0, len(e.Hashes)*sha256.Size)
	for _, h := range e.Hashes {
		b = append(b, h[:]...)
	}
	return b
}

// kept reports whether the node is one of those that are stored.
func kept(n audit.Node) bool { return n.Level%tierHeight == 0 }

// Tree returns the newest size and root of the tenant's log. A tenant without entries has size 0.
func (l *Ledger) Tree(ctx context.Context, tenant string) (size uint64, root tlog.Hash, err error) {
	ctx, cancel := context.WithTimeout(ctx, l.config.attempt())
	defer cancel()
	edge, err := readEdge(ctx, l.store, tenant)
	if err != nil {
		return 0, tlog.Hash{}, failed(err)
	}
	return edge.Size, edge.Root(), nil
}

func readEdge(ctx context.Context, db querier, tenant string) (audit.Edge, error) {
	found, err := db.query(ctx, `SELECT seq, tree FROM heads WHERE tenant = $1`, tenant)
	if err != nil {
		return audit.Edge{}, err
	}
	var size int64
	var stored []byte
	if err := eachRow(found, func() error { return found.Scan(&size, &stored) }); err != nil {
		return audit.Edge{}, err
	}
	edge, err := parseEdge(uint64(size), stored)
	if err != nil {
		err = fmt.Errorf("%w: its head: %w", errDamaged, err)
	}
	return edge, err
}

// ProveEntry proves that the entry is in the log of the given size (RFC 6962 §2.1.1). ErrNotFound:
// the log has no such size, or no such entry within it.
func (l *Ledger) ProveEntry(ctx context.Context, tenant string, seq, size uint64) (proof tlog.RecordProof, err error) {
	if seq == 0 || seq > size {
		return nil, ErrNotFound
	}
	err = l.prove(ctx, tenant, size, func(r tlog.HashReader) error {
		proof, err = tlog.ProveRecord(int64(size), int64(seq-1), r)
		return err
	})
	return proof, err
}

// ProveGrowth proves that the log of the larger size begins with the log of the smaller, old size
// (RFC 6962 §2.1.2). ErrNotFound: the log has no such sizes.
func (l *Ledger) ProveGrowth(ctx context.Context, tenant string, old, size uint64) (proof tlog.TreeProof, err error) {
	if old == 0 || old > size {
		return nil, ErrNotFound
	}
	err = l.prove(ctx, tenant, size, func(r tlog.HashReader) error {
		proof, err = tlog.ProveTree(int64(size), int64(old), r)
		return err
	})
	return proof, err
}

// RootAt returns the root that the log had at the given size, computed from its entries and not
// from the head. ErrNotFound: the log has not reached that size.
func (l *Ledger) RootAt(ctx context.Context, tenant string, size uint64) (root tlog.Hash, err error) {
	if size == 0 {
		return (&audit.Edge{}).Root(), nil
	}
	err = l.prove(ctx, tenant, size, func(r tlog.HashReader) error {
		root, err = tlog.TreeHash(int64(size), r)
		return err
	})
	return root, err
}

func (l *Ledger) prove(ctx context.Context, tenant string, size uint64, f func(tlog.HashReader) error) error {
	ctx, cancel := context.WithTimeout(ctx, l.config.attempt())
	defer cancel()
	err := l.store.view(ctx, func(db querier) error {
		edge, err := readEdge(ctx, db, tenant)
		if err != nil {
			return err
		}
		if edge.Size < size {
			return ErrNotFound
		}
		return f(tlog.HashReaderFunc(func(indexes []int64) ([]tlog.Hash, error) { return readNodes(ctx, db, tenant, indexes) }))
	})
	if err != nil && !errors.Is(err, ErrNotFound) {
		return failed(err)
	}
	return err
}

// tier is a run of stored nodes, or leaves, of one block, from which a few hashes of a proof are
// computed.
type tier struct {
	level int
	block uint64 // of tierWidth nodes of that level
}

type span struct{ from, to uint64 }

// readNodes is tlog's HashReader. The hashes of one proof lie in at most two blocks of each tier:
// that of the entry, and the last one.
func readNodes(ctx context.Context, db querier, tenant string, indexes []int64) ([]tlog.Hash, error) {
	need := map[tier]span{}
	for _, index := range indexes {
		t, s := locate(index)
		if known, there := need[t]; there {
			s = span{min(s.from, known.from), max(s.to, known.to)}
		}
		need[t] = s
	}
	rows := map[tier][]tlog.Hash{}
	for t, s := range need {
		var err error
		if rows[t], err = readTier(ctx, db, tenant, t.level, s); err != nil {
			return nil, err
		}
	}
	hashes := make([]tlog.Hash, len(indexes))
	for i, index := range indexes {
		t, s := locate(index)
		first := need[t].from
		var sub audit.Edge
		for _, h := range rows[t][s.from-first : s.to-first] {
			sub.Add(h, nil)
		}
		hashes[i] = sub.Root()
	}
	return hashes, nil
}

// locate returns which nodes of which tier give the hash with tlog's index.
func locate(index int64) (tier, span) {
	level, n := tlog.SplitStoredHashIndex(index)
	above := level % tierHeight
	s := span{uint64(n) << above, uint64(n+1) << above}
	return tier{level: level - above, block: s.from / tierWidth}, s
}

func readTier(ctx context.Context, db querier, tenant string, level int, s span) ([]tlog.Hash, error) {
	sql, args := `SELECT hash FROM tree_nodes WHERE tenant = $1 AND n >= $2 AND n < $3 AND level = $4 ORDER BY n`,
		[]any{tenant, int64(s.from), int64(s.to), int64(level)}
	if level == 0 {
		sql, args = `SELECT leaf FROM entries WHERE tenant = $1 AND seq > $2 AND seq <= $3 ORDER BY seq`, args[:3]
	}
	found, err := db.query(ctx, sql, args...)
	if err != nil {
		return nil, err
	}
	hashes := make([]tlog.Hash, 0, s.to-s.from)
	err = eachRow(found, func() error {
		var h []byte
		if err := found.Scan(&h); err != nil {
			return err
		}
		if len(h) != sha256.Size {
			return fmt.Errorf("%w: a hash of level %d is no hash", errDamaged, level)
		}
		hashes = append(hashes, tlog.Hash(h))
		return nil
	})
	if err == nil && level == 0 && uint64(len(hashes)) != s.to-s.from {
		hashes, err = readDroppedLeaves(ctx, db, tenant, s)
	}
	if err == nil && uint64(len(hashes)) != s.to-s.from {
		err = fmt.Errorf("%w: it has %d of the nodes %d to %d of level %d", errDamaged, len(hashes), s.from, s.to-1, level)
	}
	return hashes, err
}
