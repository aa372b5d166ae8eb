package ledger

import (
	"bytes"
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"slices"

	"golang.org/x/mod/sumdb/tlog"

	"deputy.example/deputy/client/audit"
)

// page is how many entries Verify holds at a time.
const page = 500

// Verify reads everything that the tenant has recorded, in one snapshot, and returns all faults:
// numbers with gaps, time that runs backwards, entries that do not give their leaf or their
// digests, revocations that do not link to the previous one, a head or a tree that does not match
// the entries, and idempotency keys or stored claims that do not belong to a grant. Of entries that
// were dropped for their age it verifies the remaining leaves, and the revocations that stayed.
func (l *Ledger) Verify(ctx context.Context, tenant string) error {
	var findings []error
	err := l.store.view(ctx, func(db querier) error {
		var err error
		findings, err = verify(ctx, db, tenant)
		return err
	})
	return errors.Join(append(findings, err)...)
}

func verify(ctx context.Context, db querier, tenant string) (findings []error, err error) {
	wrong := func(format string, args ...any) { findings = append(findings, fmt.Errorf(format, args...)) }
	m, _, err := readMark(ctx, db, tenant)
	if err != nil {
		return nil, err
	}
	findings, nodes, err := verifyDropped(ctx, db, tenant, m.tree)
	if err != nil {
		return findings, err
	}
	last := head{seq: m.tree.Size, time: m.time, revocation: m.revocation, tree: m.tree}
	for {
		list, err := scanEntries(ctx, db, `e.tenant = $1 AND e.seq > $2 ORDER BY e.seq LIMIT $3`, tenant, int64(last.seq), int64(page))
		if err != nil {
			return findings, err
		}
		if len(list) == 0 {
			break
		}
		for _, e := range list {
			if e.Seq != last.seq+1 {
				wrong("entry %d follows entry %d", e.Seq, last.seq)
			}
			if at := micros(e.Time); at < last.time {
				wrong("entry %d is older than the one before it", e.Seq)
			} else {
				last.time = at
			}
			last.seq = e.Seq
			last.tree.Add(e.Leaf, keeping(&nodes))
			if err := e.Verify(); err != nil {
				findings = append(findings, err)
			}
			if e.Revocation != nil {
				if e.Revocation.Prev != last.revocation {
					wrong("revocation %d names %d as the one before it, but that is %d", e.Seq, e.Revocation.Prev, last.revocation)
				}
				last.revocation = e.Seq
			}
		}
	}
	counts := []struct{ sql, what string }{
		{`SELECT count(*) FROM heads WHERE tenant = $1 AND (seq <> $2 OR time < $3 OR revocation <> $4 OR tree <> $5)`, "head that is not the last entry's"},
		{`SELECT count(*) FROM idempotency_keys k LEFT JOIN entries e ON e.tenant = k.tenant AND e.seq = k.seq AND e.kind = 'grant'
			WHERE k.tenant = $1 AND e.seq IS NULL AND k.seq > ` + sqlThrough, "idempotency keys that name no grant"},
		{`SELECT count(*) FROM (SELECT seq FROM idempotency_keys WHERE tenant = $1 GROUP BY seq HAVING count(*) > 1) s`, "grants that several idempotency keys name"},
		{`SELECT count(*) FROM claims c LEFT JOIN entries e ON e.tenant = c.tenant AND e.seq = c.seq AND e.kind = 'grant'
			WHERE c.tenant = $1 AND e.seq IS NULL`, "claims that belong to no grant"},
		{`SELECT count(*) FROM claims c JOIN entries v ON v.tenant = c.tenant AND v.voids = c.seq AND v.kind = 'void'
			WHERE c.tenant = $1`, "claims of grants that were voided"},
	}
	for i, c := range counts {
		args := []any{tenant}
		if i == 0 {
			args = append(args, int64(last.seq), last.time, int64(last.revocation), edgeBytes(last.tree))
		}
		n, err := count(ctx, db, c.sql, args...)
		if err != nil {
			return findings, err
		}
		if n > 0 {
			wrong("%d %s", n, c.what)
		}
	}
	if err := verifyNodes(ctx, db, tenant, nodes); err != nil {
		findings = append(findings, err)
	}
	return findings, nil
}

// keeping collects the nodes of the tree that are stored.
func keeping(nodes *[]audit.Node) func(audit.Node) {
	return func(n audit.Node) {
		if kept(n) {
			*nodes = append(*nodes, n)
		}
	}
}

// verifyDropped verifies what is left of the dropped entries, against the edge that the mark holds
// of them.
func verifyDropped(ctx context.Context, db querier, tenant string, edge audit.Edge) (findings []error, nodes []audit.Node, err error) {
	var leaves []tlog.Hash
	found, err := db.query(ctx, `SELECT block, leaves FROM dropped_leaves WHERE tenant = $1 ORDER BY block`, tenant)
	if err != nil {
		return nil, nil, err
	}
	var again audit.Edge
	err = eachRow(found, func() error {
		var block uint64
		var row []byte
		if err := found.Scan(&block, &row); err != nil {
			return err
		}
		if block != again.Size/tierWidth || len(row) != tierWidth*sha256.Size {
			return fmt.Errorf("the leaves of dropped block %d are damaged or misplaced", block)
		}
		for chunk := range slices.Chunk(row, sha256.Size) {
			leaves = append(leaves, tlog.Hash(chunk))
			again.Add(tlog.Hash(chunk), keeping(&nodes))
		}
		return nil
	})
	if err != nil {
		return nil, nil, err
	}
	if again.Size != edge.Size || !bytes.Equal(edgeBytes(again), edgeBytes(edge)) {
		findings = append(findings, fmt.Errorf("the leaves of dropped entries are not those of the first %d", edge.Size))
	}
	stayed, err := scanEntries(ctx, db, `e.tenant = $1 AND e.seq <= $2 ORDER BY e.seq`, tenant, int64(edge.Size))
	for _, e := range stayed {
		switch {
		case e.Kind != KindRevocation:
			findings = append(findings, fmt.Errorf("entry %d was dropped but still exists", e.Seq))
		case e.Seq > again.Size || leaves[e.Seq-1] != e.Leaf:
			findings = append(findings, fmt.Errorf("entry %d has changed since the entries around it were dropped", e.Seq))
		default:
			if err := e.Verify(); err != nil {
				findings = append(findings, err)
			}
		}
	}
	return findings, nodes, err
}

// verifyNodes compares the stored nodes of the tree with those that the entries give.
func verifyNodes(ctx context.Context, db querier, tenant string, want []audit.Node) error {
	type place struct{ level, n int64 }
	left := make(map[place]tlog.Hash, len(want))
	for _, n := range want {
		left[place{int64(n.Level), int64(n.N)}] = n.Hash
	}
	found, err := db.query(ctx, `SELECT level, n, hash FROM tree_nodes WHERE tenant = $1`, tenant)
	if err != nil {
		return err
	}
	err = eachRow(found, func() error {
		var p place
		var hash []byte
		if err := found.Scan(&p.level, &p.n, &hash); err != nil {
			return err
		}
		if h, there := left[p]; !there || !bytes.Equal(h[:], hash) {
			return fmt.Errorf("node %d of level %d of the tree is not that of its entries", p.n, p.level)
		}
		delete(left, p)
		return nil
	})
	if err == nil && len(left) > 0 {
		err = fmt.Errorf("%d nodes of the tree are missing", len(left))
	}
	return err
}

func count(ctx context.Context, db querier, sql string, args ...any) (n int64, err error) {
	r, err := db.query(ctx, sql, args...)
	if err != nil {
		return 0, err
	}
	defer r.Close()
	if r.Next() {
		err = r.Scan(&n)
	}
	return n, errors.Join(err, r.Err())
}
