package exchange

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"sync"
	"sync/atomic"
	"time"

	"golang.org/x/mod/sumdb/tlog"

	"deputy.example/deputy/client/audit"
	"deputy.example/deputy/client/delegation"
	"deputy.example/deputy/server/internal/ledger"
)

const (
	// signEvery is the pace of checkpoints: a log that grows has one every second.
	signEvery = time.Second
	// proveEvery is how often a log is held to its checkpoints although nothing has happened to either.
	proveEvery = time.Minute
)

// Checkpoints signs the head of every tenant's log that has grown, until ctx ends; nothing is signed that
// does not continue every checkpoint known from before. Any number of instances may do it. It returns nil
// when ctx ends.
//
// One question for all tenants says where head, checkpoints and keys are still those of the last round: there
// is nothing to do.
func (e *Engine) Checkpoints(ctx context.Context) error {
	var all sync.WaitGroup
	notaries, names := make(map[string]*notary), []string(nil)
	for name, t := range e.tenants {
		if t.Checkpoints == nil {
			e.config.Logger.WarnContext(ctx, "the log has no signed checkpoints: configure audit.checkpoint_key or audit.managed_checkpoint_key", "tenant", name)
			continue
		}
		n := newNotary(e, t)
		notaries[name], names = n, append(names, name)
		all.Go(func() { n.run(ctx) })
	}
	if len(names) > 0 {
		all.Go(func() {
			e.again(ctx, "looking for logs to sign", signEvery, func(ctx context.Context) error { return e.callNotaries(ctx, names, notaries) })
		})
	}
	all.Wait()
	<-ctx.Done()
	return nil
}

// callNotaries has those do a round for whom something has changed, for whom the last round failed, and for
// whom it was long ago.
func (e *Engine) callNotaries(ctx context.Context, names []string, notaries map[string]*notary) error {
	sealed, err := e.config.Ledger.Sealed(ctx, names...)
	if err != nil {
		return err
	}
	for _, name := range names {
		n := notaries[name]
		now := n.grounds(sealed[name])
		if before := n.settled.Load(); before != nil && *before == now && time.Since(n.called) < proveEvery {
			continue
		}
		select {
		case n.calls <- now:
			n.called = time.Now().Add(-rand.N(proveEvery / 4)) // so that not all come at once ever after
		default: // it is not done with the last one
		}
	}
	return nil
}

// grounds are what a notary's round depends on.
type grounds struct {
	sealed ledger.Sealed
	keys   string    // that sign
	size   int64     // of the file
	saved  time.Time // when it was written
}

func (n *notary) grounds(sealed ledger.Sealed) grounds {
	s := grounds{sealed: sealed}
	signing, _, _ := n.keys() // none if they cannot be had: then the round says so
	for _, k := range signing {
		s.keys += k.id()
	}
	if info, err := os.Stat(n.file); err == nil {
		s.size, s.saved = info.Size(), info.ModTime()
	}
	return s
}

// Checkpointed says whether the tenant's log is known to continue the checkpoints from before. A tenant
// without a key has none to continue.
func (e *Engine) Checkpointed(_ context.Context, tenant string) error {
	if t := e.tenants[tenant]; t == nil || t.Checkpoints == nil {
		return nil
	}
	incarnation, _ := e.config.Ledger.Incarnation()
	v, done := e.proven.of(tenant, incarnation)
	if !done {
		v.err = errNotProvenYet
	}
	if v.err != nil {
		return delegation.Unavailable("checkpoints", v.err)
	}
	return nil
}

// notary signs for one tenant. It belongs to one goroutine.
type notary struct {
	*Engine
	*Checkpointer
	tenant *Tenant

	calls   chan grounds
	called  time.Time               // belongs to who calls
	settled atomic.Pointer[grounds] // of the last round if that was right, else nil

	last    kept // the newest that this process has signed or seen: also what survives a restored disk
	failing bool // the last round failed: said once
}

func newNotary(e *Engine, t *Tenant) *notary {
	return &notary{Engine: e, tenant: t, Checkpointer: t.Checkpoints, calls: make(chan grounds, 1)}
}

func (n *notary) run(ctx context.Context) {
	for {
		var now grounds
		select {
		case <-ctx.Done():
			return
		case now = <-n.calls:
		}
		n.settled.Store(nil)
		err := n.round(ctx)
		if ctx.Err() != nil {
			return
		}
		n.metrics.checkpoint(n.tenant.Name, n.last.Size, n.last.Time, err)
		if (err != nil) != n.failing {
			n.failing = err != nil
			n.config.Logger.ErrorContext(ctx, "signing checkpoints", "tenant", n.tenant.Name, "failing", n.failing, "cause", err)
		}
		if err == nil {
			n.settled.Store(&now)
		}
	}
}

// errBroken is a log that does not continue what was signed of it. Nothing is signed, and the tenant is not
// ready, until an operator has decided.
var errBroken = errors.New("the log is not the one that was signed")

func (n *notary) round(ctx context.Context) error {
	ctx, cancel := n.within(ctx)
	defer cancel()
	return n.note(n.head(ctx))
}

// note keeps what a look at the log has found. A database or a disk that does not answer leaves standing what was known.
func (n *notary) note(err error) error {
	incarnation, _ := n.config.Ledger.Incarnation()
	if err == nil || errors.Is(err, errBroken) {
		n.proven.put(n.tenant.Name, incarnation, err)
	}
	return err
}

// held is the log and what was signed of it.
type held struct {
	saved, outside kept
	size           uint64
	root           tlog.Hash
}

// prove reads the newest head and holds it to everything that was signed before.
func (n *notary) prove(ctx context.Context) (h held, err error) {
	recovery, err := n.recovery(ctx, n.tenant.Name)
	if err != nil {
		return h, err
	}
	// The head is read first: what others sign meanwhile may be ahead of it, and that is for the next round.
	if h.saved, err = n.saved(ctx); err != nil {
		return h, err
	}
	if h.outside, err = n.outside(); err != nil {
		return h, fmt.Errorf("the checkpoint outside the database: %w", err)
	}
	if h.size, h.root, err = n.config.Ledger.Tree(ctx, n.tenant.Name); err != nil {
		return h, err
	}
	if err := n.continues(ctx, "the database", h.saved, h.size, h.root); err != nil {
		return h, err
	}
	if err := n.continues(ctx, "its own memory", n.last, h.size, h.root); err != nil {
		if !n.last.givenUp(err, recovery) {
			return h, err
		}
		n.last = kept{}
	}
	if err := n.continues(ctx, n.file, h.outside, h.size, h.root); err != nil {
		if !h.outside.givenUp(err, recovery) {
			return h, err
		}
		n.config.Logger.WarnContext(ctx, "the checkpoint file is of a log that an operator gave up: it is set aside",
			"tenant", n.tenant.Name, "size", h.outside.Size, "signed", h.outside.Time)
		if err := n.setAside(recovery.Number); err != nil {
			return h, err
		}
		h.outside = kept{}
	}
	return h, nil
}

// givenUp says whether a checkpoint that the log does not continue is of a log that an operator gave up.
func (k kept) givenUp(err error, r ledger.Recovered) bool {
	return errors.Is(err, errBroken) && r.Number > 0 && k.Time.Before(r.Since)
}

// head signs the newest head if it is new, or if a key is.
func (n *notary) head(ctx context.Context) error {
	h, err := n.prove(ctx)
	if err != nil {
		return err
	}
	saved, outside, size, root := h.saved, h.outside, h.size, h.root
	newest := saved
	lacks, err := n.lacks(saved)
	if err != nil {
		return err
	}
	if size > saved.Size || lacks {
		head := saved.Checkpoint
		if size > saved.Size {
			head = audit.Checkpoint{Origin: Origin(n.tenant.Issuer), Size: size, Root: root, Time: n.config.Now().UTC().Truncate(time.Second)}
		}
		newest, err = n.issue(ctx, head)
		switch {
		case errors.Is(err, ledger.ErrForked): // another instance was faster: what it saved is compared in the next round
			newest = saved
		case err != nil:
			return err
		}
	}
	if lacks, err = n.lacks(outside); err != nil {
		return err
	}
	if newest.Size > outside.Size || newest.Size == outside.Size && lacks {
		if err := n.keep(newest.note); err != nil {
			return err
		}
	}
	n.last = newest
	return nil
}

// saved is the newest checkpoint of the database. Only its signature is believed.
func (n *notary) saved(ctx context.Context) (kept, error) {
	last, err := n.config.Ledger.LastCheckpoint(ctx, n.tenant.Name)
	switch {
	case errors.Is(err, ledger.ErrNotFound):
		return kept{}, nil
	case err != nil:
		return kept{}, err
	}
	k, err := n.parse(last.Note)
	if err != nil {
		return kept{}, fmt.Errorf("the checkpoint in the database is not one of this key: %w", err)
	}
	if k.Size != last.Size || k.Root != last.Root {
		return kept{}, fmt.Errorf("%w: the checkpoint in the database was changed", errBroken)
	}
	return k, nil
}

// continues proves that the log of this size and root begins with that of the checkpoint.
func (n *notary) continues(ctx context.Context, where string, before kept, size uint64, root tlog.Hash) error {
	switch {
	case before.Size == 0:
		return nil
	case before.Size > size:
		return fmt.Errorf("%w: %s has a checkpoint of %d entries, signed at %s, but the ledger has only %d. An old backup was restored, or the tail was deleted: "+
			"restore the newest database; docs/ledger.md says what to do if there is none", errBroken, where, before.Size, before.Time.Format(time.RFC3339), size)
	case before.Size == size && before.Root == root:
		return nil
	}
	proof, err := n.config.Ledger.ProveGrowth(ctx, n.tenant.Name, before.Size, size)
	if err != nil {
		return err
	}
	if err := tlog.CheckTree(proof, int64(size), root, int64(before.Size), before.Root); err != nil {
		return fmt.Errorf("%w: its first %d entries are not those of the checkpoint in %s, signed at %s; \"deputy log verify\" with it names the first that is wrong",
			errBroken, before.Size, where, before.Time.Format(time.RFC3339))
	}
	return nil
}

// issue signs the head and saves it.
func (n *notary) issue(ctx context.Context, head audit.Checkpoint) (kept, error) {
	k, err := n.signed(head)
	if err != nil {
		return kept{}, err
	}
	return k, n.config.Ledger.SaveCheckpoint(ctx, n.tenant.Name, ledger.Checkpoint{Size: k.Size, Root: k.Root, Time: k.Time, Note: k.note})
}
