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
	// signEvery is the interval of checkpoints: a log that grows has a new one every second.
	signEvery = time.Second
	// proveEvery is the interval at which a log is compared with its checkpoints if neither has
	// changed.
	proveEvery = time.Minute
)

// Checkpoints signs the head of each tenant's log that has grown, until ctx ends. It signs only a
// head that continues every earlier checkpoint. Any number of instances may run it. It returns nil
// when ctx ends.
//
// One query for all tenants finds the logs whose head, checkpoint and keys have not changed since
// the last round. Those logs need no round.
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

// callNotaries starts a round of each notary whose grounds have changed, whose last round failed,
// or whose last round was proveEvery ago.
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
			// A random part, so that the next rounds do not coincide.
			n.called = time.Now().Add(-rand.N(proveEvery / 4))
		default: // its last round still runs
		}
	}
	return nil
}

// grounds are the values that a notary's round depends on.
type grounds struct {
	sealed ledger.Sealed
	keys   string    // that sign
	size   int64     // of the file
	saved  time.Time // when the file was written
}

func (n *notary) grounds(sealed ledger.Sealed) grounds {
	s := grounds{sealed: sealed}
	signing, _, _ := n.keys() // none on an error: the round reports it
	for _, k := range signing {
		s.keys += k.id()
	}
	if info, err := os.Stat(n.file); err == nil {
		s.size, s.saved = info.Size(), info.ModTime()
	}
	return s
}

// Checkpointed returns nil if the tenant's log is proven to continue its earlier checkpoints, else
// an Unavailable error. A tenant without a key has no checkpoints to continue.
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
	called  time.Time               // belongs to callNotaries
	settled atomic.Pointer[grounds] // of the last round if it succeeded, else nil

	last    kept // the newest signed or read by this process; survives a restored disk
	failing bool // the last round failed, which is logged once
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

// errBroken is the error of a log that does not continue its signed checkpoints. Nothing is signed,
// and the tenant is not ready, until an operator has decided.
var errBroken = errors.New("the log is not the one that was signed")

func (n *notary) round(ctx context.Context) error {
	ctx, cancel := n.within(ctx)
	defer cancel()
	return n.note(n.head(ctx))
}

// note keeps the result of a round. If the database or the disk does not respond, the earlier
// result remains.
func (n *notary) note(err error) error {
	incarnation, _ := n.config.Ledger.Incarnation()
	if err == nil || errors.Is(err, errBroken) {
		n.proven.put(n.tenant.Name, incarnation, err)
	}
	return err
}

// held is the log and its signed checkpoints.
type held struct {
	saved, outside kept
	size           uint64
	root           tlog.Hash
}

// prove reads the newest head and compares it with every earlier checkpoint.
func (n *notary) prove(ctx context.Context) (h held, err error) {
	recovery, err := n.recovery(ctx, n.tenant.Name)
	if err != nil {
		return h, err
	}
	// The checkpoints are read before the head, so the head includes all entries that they cover.
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

// givenUp reports whether a checkpoint that the log does not continue belongs to a log that an
// operator gave up.
func (k kept) givenUp(err error, r ledger.Recovered) bool {
	return errors.Is(err, errBroken) && r.Number > 0 && k.Time.Before(r.Since)
}

// head signs the newest head if it or a key is new.
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
		case errors.Is(err, ledger.ErrForked): // the next round compares what it saved
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

// saved is the newest checkpoint of the database. Only its signature is evidence.
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

// continues proves that the log of this size and root begins with the log of the checkpoint.
func (n *notary) continues(ctx context.Context, where string, before kept, size uint64, root tlog.Hash) error {
	switch {
	case before.Size == 0:
		return nil
	case before.Size > size:
		return fmt.Errorf("%w: %s has a checkpoint of %d entries, signed at %s, but the ledger has only %d. An old backup was restored, or the tail was deleted: "+
			"restore the newest database; docs/ledger.md has the steps if there is none", errBroken, where, before.Size, before.Time.Format(time.RFC3339), size)
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
