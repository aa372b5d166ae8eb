package ledger

import (
	"context"
	"fmt"
	"slices"

	"deputy.example/deputy/client/delegation"
)

// AgentView is what an agent holds at one moment: tokens that have not expired, were not voided,
// and are not hit by a revocation.
type AgentView struct {
	Tokens    []*Entry // with the agent as current actor, the newest first
	Live      int      // number of all such tokens
	Below     int      // tokens of others whose chain contains the agent
	Truncated bool     // there are more than were counted
	Head      uint64   // number of the newest entry that was considered
}

// mostJudged is how many claims one call decodes. Some take fifty microseconds.
const mostJudged = 8000

var (
	// Claims are pruned from the lowest number on. Below the first one, no grant is live.
	sqlFirstClaims = `SELECT seq FROM claims WHERE tenant = $1 ORDER BY seq LIMIT 1`
	sqlClaimsIn    = `SELECT seq, value FROM claims WHERE tenant = $1 AND seq IN (` + numbered + fmt.Sprintf(`) AND until > $%d ORDER BY seq`, entryPage+2)
)

// AgentView returns what the agent holds now, with at most limit tokens. It applies
// RevocationSet.Hit to the lineage in each live grant's claims, with every revocation that was
// committed before the call. A Survey applies the same function.
//
// It finds the grants by the search index, and counts some thousand live ones at most.
func (l *Ledger) AgentView(ctx context.Context, tenant string, agent delegation.Principal, limit int) (AgentView, error) {
	ctx, cancel := context.WithTimeout(ctx, l.config.attempt())
	defer cancel()
	revoked, err := l.Revocations(ctx, tenant, true)
	if err != nil {
		return AgentView{}, err
	}
	h := agentView{ledger: l, tenant: tenant, agent: agent, limit: min(max(limit, 0), mostFound), revoked: revoked}
	if err := h.run(ctx); err != nil {
		return AgentView{}, failed(err)
	}
	return h.AgentView, nil
}

type agentView struct {
	ledger  *Ledger
	tenant  string
	agent   delegation.Principal
	limit   int
	revoked *delegation.RevocationSet

	AgentView
	judged int
}

func (h *agentView) run(ctx context.Context) error {
	w, err := h.ledger.walkLive(ctx, h.tenant, Query{Actor: h.agent, Kind: KindGrant})
	if err != nil {
		return err
	}
	h.Head = w.head
	for w.more() {
		if w.rows <= 0 || h.judged >= mostJudged {
			h.Truncated = true
			return nil
		}
		proposed, err := w.propose(ctx, entryPage)
		if err != nil {
			return err
		}
		for chunk := range slices.Chunk(proposed, entryPage) {
			w.rows -= len(chunk)
			if err := h.judge(ctx, chunk); err != nil {
				return err
			}
		}
	}
	return nil
}

// walkLive walks the grants that may be live.
func (l *Ledger) walkLive(ctx context.Context, tenant string, q Query) (*walk, error) {
	w, err := l.walk(ctx, tenant, q)
	if err != nil {
		return nil, err
	}
	first := w.high
	found, err := l.store.query(ctx, sqlFirstClaims, tenant)
	if err != nil {
		return nil, err
	}
	err = eachRow(found, func() error { return found.Scan(&first) })
	w.low = max(w.low, first)
	return w, err
}

// judge counts those of the grants that are live.
func (h *agentView) judge(ctx context.Context, seqs []uint64) error {
	args := append(byNumber(h.tenant, seqs), micros(h.ledger.config.Now()))
	found, err := h.ledger.store.query(ctx, sqlClaimsIn, args...)
	if err != nil {
		return err
	}
	var held []uint64
	err = eachRow(found, func() error {
		var seq uint64
		var raw []byte
		if err := found.Scan(&seq, &raw); err != nil {
			return err
		}
		h.judged++
		claims, err := delegation.DecodeClaims(raw)
		if err != nil {
			return fmt.Errorf("claims of entry %d: %w", seq, err)
		}
		switch _, dead := h.revoked.Hit(claims.Lineage()); {
		case dead:
		case claims.Act.Current() == h.agent:
			held = append(held, seq)
		case slices.Contains(claims.Act, h.agent):
			h.Below++
		}
		return nil
	})
	if err != nil {
		return err
	}
	h.Live += len(held)
	// The newest first, and at most as many as the limit leaves.
	slices.Reverse(held)
	held = held[:min(len(held), h.limit-len(h.Tokens))]
	if len(held) == 0 {
		return nil
	}
	entries, err := entriesAt(ctx, h.ledger.store, h.tenant, held)
	slices.Reverse(entries)
	h.Tokens = append(h.Tokens, entries...)
	return err
}
