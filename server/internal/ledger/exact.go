package ledger

import (
	"context"
	"fmt"
	"net"
)

// exact is the part of a query that the search index does not cover: jti and txn, which have
// indexes of the database, and the port of a peer.
type exact struct {
	id, txn string
	peer    string // with its port; "": any port
}

func (q *Query) exact() exact {
	x := exact{id: q.ID, txn: q.Txn}
	if hostOf(q.Peer) != q.Peer {
		x.peer = q.Peer
	}
	return x
}

// matches compares with a whole entry, or with its facets if the query has neither jti nor txn.
func (x exact) matches(e *Entry) bool {
	return (x.id == "" || e.ID == x.id) && (x.txn == "" || e.Txn == x.txn) && (x.peer == "" || e.Peer == x.peer)
}

// hostOf is a peer's address without its port.
func hostOf(peer string) string {
	if host, _, err := net.SplitHostPort(peer); err == nil {
		return host
	}
	return peer
}

// exactPage is how many entries of a chain one statement names.
const exactPage = 1000

var (
	sqlOfID  = sqlExact(`e.jti = $2 AND e.jti <> ''`)
	sqlOfTxn = sqlExact(`e.txn = $2 AND e.txn <> ''`)
)

func sqlExact(where string) string {
	return fmt.Sprintf(`SELECT e.seq FROM entries e WHERE e.tenant = $1 AND %s AND e.seq >= $3 AND e.seq < $4 ORDER BY e.seq DESC LIMIT %d`, where, exactPage)
}

// lookUp is the statement that finds the jti or the txn; "" if the query has neither.
func (x exact) lookUp() (sql, arg string) {
	switch {
	case x.id != "":
		return sqlOfID, x.id
	case x.txn != "":
		return sqlOfTxn, x.txn
	}
	return "", ""
}

// proposeExact returns the next entries with the jti or of the chain, the newest first.
func (w *walk) proposeExact(ctx context.Context, sql, arg string) (seqs []uint64, err error) {
	found, err := w.ledger.store.query(ctx, sql, w.tenant, arg, int64(w.low), int64(w.high))
	if err != nil {
		return nil, err
	}
	err = eachRow(found, func() error {
		var seq uint64
		err := found.Scan(&seq)
		seqs = append(seqs, seq)
		return err
	})
	w.rows -= 1 + len(seqs)
	if len(seqs) < exactPage {
		w.high = w.low
	} else {
		w.high = seqs[len(seqs)-1]
	}
	return seqs, err
}
