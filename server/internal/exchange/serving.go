package exchange

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"time"

	"deputy.example/deputy/client/delegation"
	"deputy.example/deputy/server/internal/guard"
	"deputy.example/deputy/server/internal/ledger"
)

// serving is the only function that decides whether this instance may serve a tenant. Exchange,
// introspection, the feed and readiness use it. The error is unavailable and has the cause.
// docs/incidents.md has the table.
//
// An instance may not serve in these cases. They mean that its ledger is not the newest one, or
// that this is not known yet, or that its clock is wrong:
//
//   - the ledger is doubted, is a standby, or took no write lately;
//   - Redis has entries or revocations that the ledger does not have, or a later incarnation;
//   - the ledger was not compared with Redis since this process began;
//   - the log does not continue its checkpoints;
//   - the clock of the instance is not trusted.
//
// If Redis does not respond, the last results of the comparison remain.
func (e *Engine) serving(ctx context.Context, tenant string) error {
	if err := e.config.Ledger.Trusted(); err != nil {
		return delegation.Unavailable("the clock", err)
	}
	if err := e.revoking(ctx, tenant); err != nil {
		return err
	}
	if err := e.comparedOnce(ctx, tenant); err != nil {
		return err
	}
	return e.provenOnce(ctx, tenant)
}

// revoking is the part of serving that also prevents the recording of revocations: the ledger is
// known not to be the one that counts. Redis that does not respond prevents no revocation.
func (e *Engine) revoking(ctx context.Context, tenant string) error {
	if err := e.config.Ledger.Sound(ctx); err != nil {
		return err
	}
	incarnation, _ := e.config.Ledger.Incarnation()
	if superseded := e.superseded.any(incarnation); superseded != nil {
		return delegation.Unavailable("ledger", superseded)
	}
	for _, known := range []*verdicts{&e.compared, &e.proven} {
		if v, there := known.of(tenant, incarnation); there && v.err != nil {
			return delegation.Unavailable("ledger", v.err)
		}
	}
	return nil
}

// comparedOnce compares the tenant's ledger with Redis, unless that was done before.
func (e *Engine) comparedOnce(ctx context.Context, tenant string) error {
	err := e.Ready(ctx, tenant)
	if !errors.Is(err, errNotCompared) {
		return err
	}
	_, err, _ = e.flights.Do("compare "+tenant, func() (any, error) {
		ctx, cancel := shared(ctx)
		defer cancel()
		return nil, e.compare(ctx, []string{tenant}, nil)
	})
	if err != nil {
		return delegation.Unavailable("revocations", fmt.Errorf("%w: %w", errNotCompared, err))
	}
	return e.Ready(ctx, tenant)
}

// sharedFor bounds work that several callers wait for.
const sharedFor = 5 * time.Second

// shared is the context of such work. It does not end with the first caller, because the others
// still wait.
func shared(ctx context.Context) (context.Context, context.CancelFunc) {
	return context.WithTimeout(context.WithoutCancel(ctx), sharedFor)
}

// provenOnce compares the tenant's log with its checkpoints, unless that was done before.
func (e *Engine) provenOnce(ctx context.Context, tenant string) error {
	err := e.Checkpointed(ctx, tenant)
	if !errors.Is(err, errNotProvenYet) {
		return err
	}
	_, err, _ = e.flights.Do("prove "+tenant, func() (any, error) {
		ctx, cancel := shared(ctx)
		defer cancel()
		n := newNotary(e, e.tenants[tenant])
		_, err := n.prove(ctx)
		return nil, n.note(err)
	})
	if err != nil {
		return delegation.Unavailable("checkpoints", err)
	}
	return e.Checkpointed(ctx, tenant)
}

// recovered is an error until tokens that are issued now cannot be confused with tokens of a ledger
// that was given up.
func (e *Engine) recovered(ctx context.Context, tenant string) error {
	r, err := e.recovery(ctx, tenant)
	if err != nil {
		return err
	}
	if now := e.config.Now(); now.Before(r.Since) {
		return delegation.Unavailable("ledger", fmt.Errorf("it was recovered, and serves from %s on", r.Since.UTC().Format(time.RFC3339)))
	}
	return nil
}

// recovery is the newest recovery of the tenant's ledger; zero if there was none.
func (e *Engine) recovery(ctx context.Context, tenant string) (ledger.Recovered, error) {
	incarnation, _ := e.config.Ledger.Incarnation()
	if incarnation.Recovered == 0 {
		return ledger.Recovered{}, nil
	}
	if known, there := e.recoveries.Load(tenant); there {
		if r := known.(ledger.Recovered); r.Number == incarnation.Recovered {
			return r, nil
		}
	}
	r, err := e.config.Ledger.LastRecovery(ctx, tenant)
	if err != nil {
		return r, err
	}
	r.Number = incarnation.Recovered
	e.recoveries.Store(tenant, r)
	return r, nil
}

// verdicts are the results of comparisons by tenant, with the incarnation of the ledger that they
// are about.
type verdicts struct{ by sync.Map } // tenant's name → verdict

type verdict struct {
	of  ledger.Incarnation
	err error // nil: nothing is wrong
}

func (v *verdicts) of(tenant string, incarnation ledger.Incarnation) (verdict, bool) {
	found, there := v.by.Load(tenant)
	if !there || found.(verdict).of != incarnation {
		return verdict{}, false
	}
	return found.(verdict), true
}

func (v *verdicts) put(tenant string, of ledger.Incarnation, err error) {
	v.by.Store(tenant, verdict{of, err})
}

// any returns what is wrong with any tenant's ledger of this incarnation; nil: nothing.
func (v *verdicts) any(incarnation ledger.Incarnation) (err error) {
	v.by.Range(func(_, found any) bool {
		if found.(verdict).of == incarnation {
			err = found.(verdict).err
		}
		return err == nil
	})
	return err
}

var (
	errNotCompared  = errors.New("the ledger has not been compared with what redis remembers of it")
	errNotProvenYet = errors.New("the log has not been compared with its checkpoints")
	// errFork: two databases continue the ledger. The one with the later incarnation in Redis
	// counts.
	errFork = errors.New("another database goes on with this ledger: this instance is connected to one that was given up")
)

// Ready returns nil if Redis and the ledger agree for one tenant. Before their first comparison, it
// is an error. If Redis has entries or revocations that the ledger does not have, an operator must
// decide.
func (e *Engine) Ready(ctx context.Context, tenant string) error {
	incarnation, _ := e.config.Ledger.Incarnation()
	v, done := e.compared.of(tenant, incarnation)
	if !done {
		v.err = errNotCompared
	}
	if v.err != nil {
		return delegation.Unavailable("revocations", v.err)
	}
	return e.recovered(ctx, tenant)
}

// Standing returns the error that prevents the instance from serving any tenant: of its ledger, or
// of a later incarnation.
func (e *Engine) Standing(ctx context.Context) error {
	if err := e.config.Ledger.Sound(ctx); err != nil {
		return err
	}
	incarnation, _ := e.config.Ledger.Incarnation()
	if superseded := e.superseded.any(incarnation); superseded != nil {
		return delegation.Unavailable("ledger", superseded)
	}
	return nil
}

// arbitrate determines whether Redis has a later incarnation than this instance. The witness of one
// tenant is evidence for all.
func (e *Engine) arbitrate(ctx context.Context, tenant string) error {
	// Read before Redis, so that a later incarnation there is another instance's.
	incarnation, _ := e.config.Ledger.Incarnation()
	e.config.Guard.On(incarnation.Number)
	w, err := e.config.Guard.Witness(ctx, tenant)
	if err != nil {
		return err
	}
	_ = e.supersede(tenant, w, incarnation) // serving returns the error to the next callers
	return nil
}

// supersede records whether the tenant's witness is of a later incarnation. Only a witness of the
// same tenant clears what one tenant's witness showed.
func (e *Engine) supersede(tenant string, w guard.Witness, mine ledger.Incarnation) error {
	err := conflict(w, mine)
	switch {
	case err != nil:
		if e.superseded.any(mine) == nil {
			e.config.Logger.Error("this instance's ledger was superseded", "tenant", tenant, "cause", err)
		}
		e.superseded.put(tenant, mine, err)
	case w.There:
		e.superseded.by.Delete(tenant)
	}
	return err
}

// conflict returns an error if the witness is of an incarnation that takes precedence over this
// one.
func conflict(w guard.Witness, mine ledger.Incarnation) error {
	switch {
	case !w.There || w.Number < mine.Number, w.Number == mine.Number && w.ID == mine.ID:
		return nil
	case w.Number == mine.Number:
		return fmt.Errorf("%w: redis knows another one of incarnation %d", errFork, mine.Number)
	}
	return fmt.Errorf("%w: redis knows incarnation %d, and this is %d", errFork, w.Number, mine.Number)
}

// compare compares the ledgers of some tenants with the witnesses in Redis, and the lists in Redis
// with the ledgers. It starts a closer comparison of lists that are wrong, if there are followers.
func (e *Engine) compare(ctx context.Context, names []string, lists map[string]*follower) error {
	mine, _ := e.config.Ledger.Incarnation()
	e.config.Guard.On(mine.Number)
	peeks, err := e.config.Guard.Peek(ctx, names...)
	if err != nil {
		return err
	}
	// Read after Redis: what another instance published or testified meanwhile was in the ledger
	// before.
	standings, err := e.config.Ledger.Progress(ctx, names...)
	if err != nil {
		return err
	}
	tips, err := e.config.Ledger.Tips(ctx, names...)
	if err != nil {
		return err
	}
	if now, doubt := e.config.Ledger.Incarnation(); now != mine || doubt != nil {
		return delegation.Unavailable("ledger", errors.Join(errors.New("its incarnation changed meanwhile"), doubt))
	}
	news := make(map[string]guard.Witness)
	for i, s := range standings {
		p, tip := peeks[i], tips[s.Tenant]
		wrong, err := e.judge(ctx, p, s, tip, mine)
		if err != nil {
			return err
		}
		e.compared.put(s.Tenant, mine, wrong)
		if wrong != nil {
			continue
		}
		if (!s.Current || !p.Right(s.Live, s.Revocation)) && lists != nil {
			lists[s.Tenant].nudge()
		}
		if w := p.Witness; tip.Seq > 0 && (!w.There || w.Number < mine.Number || w.Seq < tip.Seq) {
			news[s.Tenant] = guard.Witness{Number: mine.Number, ID: mine.ID, Seq: tip.Seq, Leaf: tip.Leaf}
		}
	}
	return e.config.Guard.Testify(ctx, news)
}

// judge compares one tenant's ledger with what Redis has of it. wrong is what the ledger lost. err
// means that the comparison failed.
func (e *Engine) judge(ctx context.Context, p guard.Peek, s ledger.Progress, tip ledger.Tip, mine ledger.Incarnation) (wrong, err error) {
	w := p.Witness
	if wrong := e.supersede(s.Tenant, w, mine); wrong != nil {
		return wrong, nil
	}
	if w.There && w.Number < mine.Recovered { // of a ledger that an operator gave up
		return nil, e.config.Guard.Discard(ctx, s.Tenant)
	}
	head, err := p.Head()
	if errors.Is(err, guard.ErrGap) { // too long for one look, or no lists
		if head, err = e.config.Guard.PublishedHead(ctx, s.Tenant); errors.Is(err, guard.ErrGap) {
			head, err = 0, nil
		}
		if err != nil {
			return nil, err
		}
		if head > s.Revocation { // read after the ledger's progress: it may be news
			if s.Revocation, err = e.config.Ledger.LastRevocation(ctx, s.Tenant); err != nil {
				return nil, err
			}
		}
	}
	switch {
	case w.There && w.Seq > tip.Seq:
		wrong = fmt.Errorf("redis knows entry %d of tenant %s, the ledger has %d", w.Seq, s.Tenant, tip.Seq)
	case head > s.Revocation:
		// The ledger was restored from a backup, or Redis belongs to another deployment. No
		// automatic repair is safe: the ledger may lack acknowledged revocations.
		wrong = fmt.Errorf("redis knows revocation %d, the ledger only %d", head, s.Revocation)
	case w.There && w.Seq == tip.Seq && w.Leaf != tip.Leaf && tip.Leaf != [32]byte{}:
		wrong = fmt.Errorf("redis knows another entry %d of tenant %s", tip.Seq, s.Tenant)
	case w.There && w.Seq < tip.Seq:
		if err := e.config.Ledger.Holds(ctx, s.Tenant, w.Seq, w.Leaf); errors.Is(err, ledger.ErrDoubt) {
			wrong = err
		} else if err != nil {
			return nil, err
		}
	}
	if wrong != nil && w.There {
		// The witness is of this very ledger: entries that it names were acknowledged here, and are
		// lost.
		e.config.Ledger.Doubt(ctx, wrong)
	}
	return wrong, nil
}
