package ledger

import (
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"time"

	"golang.org/x/mod/sumdb/tlog"

	"deputy.example/deputy/client/audit"
)

// leaf is what a dropped entry leaves behind.
type leaf struct {
	seq, at    int64
	revocation bool
	hash       tlog.Hash
}

const (
	sqlLeaves = `SELECT seq, time, kind, leaf FROM entries WHERE tenant = $1 AND seq >= $2 AND seq < $3 ORDER BY seq`

	// sqlDropped succeeds only if nothing was dropped since the mark was read.
	sqlDropped    = `UPDATE retention SET through = $3, time = $4, revocation = $5, tree = $6 WHERE tenant = $1 AND through = $2`
	sqlKeepLeaves = `INSERT INTO dropped_leaves (tenant, block, leaves) VALUES ($1, $2, $3)`
	// sqlDrop leaves the revocations that are in force, and the newest one, from which the end of
	// the others is known. sqlDropEnded removes those that it left and that have ended since.
	sqlDrop = `DELETE FROM entries WHERE tenant = $1 AND seq >= $2 AND seq < $3 AND NOT (kind = 'revocation'
		AND (until = 0 OR until > $4 OR seq = (SELECT revocation FROM heads WHERE tenant = $1)))`
	sqlDropEnded = `DELETE FROM entries WHERE tenant = $1 AND seq < $2 AND kind = 'revocation' AND until <> 0 AND until <= $3
		AND seq <> (SELECT revocation FROM heads WHERE tenant = $1)`
)

// drop removes the next block's entries and keeps their leaf hashes. Everything that could be
// proven of the log can still be proven, by those who kept the entries to prove.
func (l *Ledger) drop(ctx context.Context, tenant string, m mark, age time.Duration) (more bool, err error) {
	through := m.tree.Size
	block := through / blockSize
	first, end := int64(firstOf(block)), int64(firstOf(block+1))
	leaves, err := l.oldLeaves(ctx, tenant, m, age)
	if len(leaves) == 0 || err != nil {
		return false, err
	}
	for _, f := range leaves {
		m.tree.Add(f.hash, nil)
		m.time = f.at
		if f.revocation {
			m.revocation = uint64(f.seq)
		}
	}
	ended, err := l.horizon(ctx)
	if err != nil {
		return false, err
	}
	err = l.store.change(ctx, func(db changer) error {
		n, err := db.change(ctx, sqlDropped, tenant, int64(through), end-1, m.time, int64(m.revocation), edgeBytes(m.tree))
		if err != nil || n == 0 { // another instance has done it
			return err
		}
		if err := l.unindex(ctx, db, tenant, block); err != nil {
			return err
		}
		if err := dropBlock(ctx, db, tenant, first, end, micros(ended), leaves); err != nil {
			return err
		}
		return raise(ctx, db, tenant, ended)
	})
	return err == nil, err
}

// oldLeaves reads the leaves of the next block, on one snapshot. It returns none if the block is
// not due, or if another instance has just dropped it.
func (l *Ledger) oldLeaves(ctx context.Context, tenant string, m mark, age time.Duration) (leaves []leaf, err error) {
	block := m.tree.Size / blockSize
	err = l.store.view(ctx, func(db querier) error {
		if due, err := l.due(ctx, db, tenant, block, age); !due || err != nil {
			return err
		}
		if leaves, err = readLeaves(ctx, db, tenant, int64(firstOf(block)), int64(firstOf(block+1))); err != nil {
			return err
		}
		return matchTree(ctx, db, tenant, block, leaves)
	})
	return leaves, err
}

// matchTree compares a block's leaves with the nodes of the tree above them. If they differ, the
// entries are the evidence: after a drop, it could not be shown which of them was changed.
func matchTree(ctx context.Context, db querier, tenant string, block uint64, leaves []leaf) error {
	first := block * (blockSize / tierWidth)
	nodes, err := readTier(ctx, db, tenant, tierHeight, span{first, first + blockSize/tierWidth})
	if err != nil {
		return err
	}
	for i, node := range nodes {
		below := leaves[i*tierWidth : (i+1)*tierWidth]
		var edge audit.Edge
		for _, f := range below {
			edge.Add(f.hash, nil)
		}
		if edge.Root() != node {
			return fmt.Errorf("entries %d to %d do not match the tree; none of them is dropped", below[0].seq, below[tierWidth-1].seq)
		}
	}
	return nil
}

func dropBlock(ctx context.Context, db changer, tenant string, first, end, ended int64, leaves []leaf) error {
	for i := 0; i < len(leaves); i += tierWidth {
		row := make([]byte, 0, tierWidth*sha256.Size)
		for _, f := range leaves[i : i+tierWidth] {
			row = append(row, f.hash[:]...)
		}
		if err := keep(ctx, db, 1, sqlKeepLeaves, tenant, (first-1+int64(i))/tierWidth, row); err != nil {
			return err
		}
	}
	for _, s := range []struct {
		sql  string
		args []any
	}{
		{sqlAgeClaims, []any{tenant, first, end}},
		{sqlDrop, []any{tenant, first, end, ended}},
		{sqlDropEnded, []any{tenant, first, ended}},
	} {
		if _, err := db.change(ctx, s.sql, s.args...); err != nil {
			return err
		}
	}
	return nil
}

func readLeaves(ctx context.Context, db querier, tenant string, first, end int64) ([]leaf, error) {
	found, err := db.query(ctx, sqlLeaves, tenant, first, end)
	if err != nil {
		return nil, err
	}
	var list []leaf
	err = eachRow(found, func() error {
		var f leaf
		var kind string
		var hash []byte
		if err := found.Scan(&f.seq, &f.at, &kind, &hash); err != nil {
			return err
		}
		if len(hash) != sha256.Size {
			return fmt.Errorf("the leaf of entry %d is damaged", f.seq)
		}
		f.revocation, f.hash = Kind(kind) == KindRevocation, tlog.Hash(hash)
		list = append(list, f)
		return nil
	})
	return list, err
}

// readDroppedLeaves returns the leaf hashes of dropped entries from number from+1 to number to,
// which lie within one row.
func readDroppedLeaves(ctx context.Context, db querier, tenant string, s span) ([]tlog.Hash, error) {
	block := s.from / tierWidth
	found, err := db.query(ctx, `SELECT leaves FROM dropped_leaves WHERE tenant = $1 AND block = $2`, tenant, int64(block))
	if err != nil {
		return nil, err
	}
	var row []byte
	if err := eachRow(found, func() error { return found.Scan(&row) }); err != nil {
		return nil, err
	}
	if len(row) != tierWidth*sha256.Size {
		return nil, errors.New("both the entries and the leaves of dropped entries are missing")
	}
	var hashes []tlog.Hash
	for n := s.from - block*tierWidth; n < s.to-block*tierWidth; n++ {
		hashes = append(hashes, tlog.Hash(row[n*sha256.Size:(n+1)*sha256.Size]))
	}
	return hashes, nil
}
