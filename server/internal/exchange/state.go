package exchange

import (
	"context"
	"fmt"
	"sort"
	"time"

	"deputy.example/deputy/client/delegation"
	"deputy.example/deputy/server/internal/ledger"
)

// State is what has become of a grant.
type State string

// The states of a grant; what is no grant has none. A grant that is over is StateRevoked only where that
// can still be told: its claims, which name all that it came from, are gone.
const (
	StateLive    State = "live"
	StateExpired State = "expired"
	StateRevoked State = "revoked" // it, or something that it came from, while it lived
	StateVoided  State = "voided"
)

// Recorded is an entry as it is shown to somebody, with what has become of it by now. Personal fields
// that are kept from whoever asks look as if they had been erased, in its record too.
type Recorded struct {
	*ledger.Entry
	State     State
	RevokedBy uint64 // number of the revocation, where that is known
}

// show makes entries ready for whoever may see them.
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

// without keeps from those who may not read everything what others would not want them to know: why
// OpenFGA refused, which the wire did not say either, and where somebody else called from.
func (s sight) without(entry *ledger.Entry) *ledger.Entry {
	if !s.withhold {
		return entry
	}
	words := entry.Kind == ledger.KindRefusal || entry.Kind == ledger.KindCheck
	return entry.Without(entry.Caller != s.as[0], words)
}

// judge knows the state of grants at one moment.
type judge struct {
	engine *Engine
	inquirer
	now    time.Time
	voided map[uint64]bool
	live   []delegation.Revocation // in order; read when it is needed
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

// afterwards says whether a grant that is over was revoked before, as far as its own entry and the
// revocations that are still remembered prove it.
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

// lineageOf is what an entry itself says of its grant. It names no hop but its own, and compares what
// came before by its own number, which is higher than theirs: whatever hits it hits the grant.
func lineageOf(entry *ledger.Entry) delegation.Lineage {
	return delegation.Lineage{
		Root: entry.Root, Txn: entry.Txn, Subject: entry.Subject, Actors: entry.Actors,
		Hops: []delegation.Hop{{ID: entry.ID, Seq: entry.Seq, Actor: len(entry.Actors) - 1, Key: entry.HolderKey}},
	}
}
