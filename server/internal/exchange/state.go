package exchange

import (
	"context"
	"fmt"
	"sort"
	"time"

	"deputy.example/deputy/client/delegation"
	"deputy.example/deputy/server/internal/ledger"
)

// State is the state of a grant.
type State string

// The states of a grant. Other entries have none. An expired grant is StateRevoked only if that can
// still be proven: its claims, which name all its ancestors, are deleted.
const (
	StateLive    State = "live"
	StateExpired State = "expired"
	StateRevoked State = "revoked" // it, or one of its ancestors, before it expired
	StateVoided  State = "voided"
)

// Recorded is an entry as its reader sees it, with its state now. A personal field that is withheld
// from the reader looks as if it had been erased, in the entry's record too.
type Recorded struct {
	*ledger.Entry
	State     State
	RevokedBy uint64 // number of the revocation, if it is known
}

// show prepares entries for a reader that may see them.
func (e *Engine) show(ctx context.Context, by inquirer, s sight, entries ...*ledger.Entry) ([]Recorded, error) {
	j := judge{engine: e, inquirer: by, now: e.config.Now()}
	var gone []uint64
	for _, entry := range entries {
		if entry.Kind == ledger.KindGrant && entry.Claims == nil {
			gone = append(gone, entry.Seq)
		}
	}
	if len(gone) > 0 {
		voided, err := e.config.Ledger.Voided(ctx, by.tenant.Name, gone)
		if err != nil {
			return nil, delegation.AsError(err)
		}
		j.voided = voided
	}
	shown := make([]Recorded, len(entries))
	for i, entry := range entries {
		state, revokedBy, err := j.state(ctx, entry)
		if err != nil {
			return nil, err
		}
		shown[i] = Recorded{Entry: s.without(entry), State: state, RevokedBy: revokedBy}
	}
	return shown, nil
}

// without withholds from a reader without the right to the whole ledger why OpenFGA refused, which
// the response did not contain either, and the address of other callers.
func (s sight) without(entry *ledger.Entry) *ledger.Entry {
	if !s.withhold {
		return entry
	}
	words := entry.Kind == ledger.KindRefusal || entry.Kind == ledger.KindCheck
	return entry.Without(entry.Caller != s.as[0], words)
}

// judge determines the state of grants at one time.
type judge struct {
	engine *Engine
	inquirer
	now    time.Time
	voided map[uint64]bool
	live   []delegation.Revocation // in order; read on first use
}

func (j *judge) state(ctx context.Context, entry *ledger.Entry) (State, uint64, error) {
	switch {
	case entry.Kind != ledger.KindGrant:
		return "", 0, nil
	case j.voided[entry.Seq]:
		return StateVoided, 0, nil
	case !j.now.Before(entry.Expiry):
		return j.afterwards(ctx, entry)
	}
	lineage := lineageOf(entry)
	if entry.Claims != nil {
		claims, err := delegation.DecodeClaims(entry.Claims)
		if err != nil {
			return "", 0, delegation.Unavailable("ledger", fmt.Errorf("claims of entry %d: %w", entry.Seq, err))
		}
		lineage = claims.Lineage()
	}
	if r, hit := j.revoked.Hit(lineage); hit {
		return StateRevoked, r.Seq, nil
	}
	return StateLive, 0, nil
}

// afterwards determines whether an expired grant was revoked before its expiry, as far as its own
// entry and the revocations that are still kept prove it.
func (j *judge) afterwards(ctx context.Context, entry *ledger.Entry) (State, uint64, error) {
	r, hit := j.revoked.Hit(lineageOf(entry))
	if !hit || r.Seq <= entry.Seq {
		return StateExpired, 0, nil
	}
	if j.live == nil {
		live, _, err := j.engine.config.Ledger.Live(ctx, j.tenant.Name)
		if err != nil {
			return "", 0, delegation.AsError(err)
		}
		j.live = live
	}
	i := sort.Search(len(j.live), func(i int) bool { return j.live[i].Seq >= r.Seq })
	if i == len(j.live) || j.live[i].Seq != r.Seq || !j.live[i].At.Before(entry.Expiry) {
		return StateExpired, 0, nil
	}
	return StateRevoked, r.Seq, nil
}

// lineageOf is the lineage that an entry itself contains. It has no hop but the grant's own, and
// compares ancestors by the grant's number, which is higher than theirs: a revocation that hits the
// lineage hits the grant.
func lineageOf(entry *ledger.Entry) delegation.Lineage {
	return delegation.Lineage{
		Root: entry.Root, Txn: entry.Txn, Subject: entry.Subject, Actors: entry.Actors,
		Hops: []delegation.Hop{{ID: entry.ID, Seq: entry.Seq, Actor: len(entry.Actors) - 1, Key: entry.HolderKey}},
	}
}
