package guard

import (
	"context"
	"errors"
	"time"

	"deputy.example/deputy/client/delegation"
)

// Witness is what Redis remembers of a tenant's ledger: the incarnation, and the newest entry that
// some instance saw. Nothing is concluded from a witness that is not there.
type Witness struct {
	There  bool
	Number uint64 // of the incarnation
	ID     string
	Seq    uint64
	Leaf   [32]byte
}

// ErrSuperseded means that Redis holds a later incarnation of the ledger than this instance's.
// Nothing of the former one is published.
var ErrSuperseded = errors.New("guard: Redis knows a later incarnation of the ledger")

// On sets the incarnation of what is published from now on. Lists of a later one are left alone.
func (g *Guard) On(incarnation uint64) { g.incarnation.Store(incarnation) }

// Testify remembers how far the ledgers of some tenants have come, each unless Redis knows more.
func (g *Guard) Testify(ctx context.Context, of map[string]Witness) (err error) {
	if len(of) == 0 {
		return nil
	}
	defer g.observe("testify", time.Now(), &err)
	ctx, cancel := g.within(ctx)
	defer cancel()
	return unavailable(g.store.testify(ctx, of))
}

// Witness returns what Redis remembers of one tenant's ledger.
func (g *Guard) Witness(ctx context.Context, tenant string) (w Witness, err error) {
	defer g.observe("witness", time.Now(), &err)
	ctx, cancel := g.within(ctx)
	defer cancel()
	w, err = g.store.witness(ctx, tenant)
	return w, unavailable(err)
}

// Discard removes a tenant's lists, its events and its witness: they are of an incarnation that was
// given up.
func (g *Guard) Discard(ctx context.Context, tenant string) (err error) {
	defer g.observe("discard", time.Now(), &err)
	ctx, cancel := g.within(ctx)
	defer cancel()
	return unavailable(g.store.discard(ctx, tenant))
}

// Remembered returns what Redis holds of a tenant's revocations above a number: of each target the
// latest one. It does not contain what was resumed there. complete is false where there are no
// lists.
func (g *Guard) Remembered(ctx context.Context, tenant string, above uint64) (list []delegation.Revocation, complete bool, err error) {
	foreign := false
	err = g.scan(ctx, tenant, func(name, value string) {
		if name == headField {
			complete = true
			return
		}
		m, good := parseMark(value)
		target, known := targetOf(name)
		switch {
		case !good || !known:
			foreign = true
		case m.seq > above:
			r := delegation.Revocation{Seq: m.seq, Target: target}
			if m.ends != 0 {
				r.Until = time.UnixMilli(m.ends)
			}
			list = append(list, r)
		}
	})
	switch {
	case errors.Is(err, ErrGap) || err == nil && foreign:
		return nil, false, nil
	case err != nil:
		return nil, false, err
	}
	return list, complete, nil
}
