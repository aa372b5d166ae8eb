package exchange

import (
	"cmp"
	"context"
	"errors"
	"maps"
	"slices"
	"sync"
	"time"

	"deputy.example/deputy/client/delegation"
	"deputy.example/deputy/server/internal/guard"
	"deputy.example/deputy/server/internal/ledger"
	"deputy.example/deputy/server/internal/policy"
)

// watchLife is how long a verifier may watch with one credential. A verifier that loses its
// credential loses the feed within this time, and soon afterwards refuses all tokens.
const watchLife = 10 * time.Minute

// Watch is a verifier's view of its tenant's revocations. All methods but Snapshot and Last read
// from memory. No call of a Watch waits for another.
type Watch struct {
	engine      *Engine
	by          inquirer
	until       time.Time
	leave       func()
	incarnation uint64 // of the ledger that by.revoked was read from
	closed      bool   // guarded by engine.receipts
}

// Watch authenticates and admits a verifier. Any caller of the tenant may watch. It takes one of
// the instance's places, which Close gives back. The error is RateLimited if the tenant or the
// caller has no place left.
func (e *Engine) Watch(ctx context.Context, q Inquiry) (*Watch, error) {
	ctx, cancel := e.within(ctx)
	defer cancel()
	incarnation, _ := e.config.Ledger.Incarnation()
	by, err := e.admitInquiry(ctx, q)
	if err == nil {
		err = e.serving(ctx, by.tenant.Name)
	}
	if err != nil {
		return nil, err
	}
	leave, err := e.watchers.enter(by.tenant.Name, by.caller.Principal)
	if err != nil {
		return nil, err
	}
	return &Watch{engine: e, by: by, until: e.config.Now().Add(watchLife), leave: leave, incarnation: incarnation.Recovered}, nil
}

// Close gives the verifier's place back. A second call does nothing.
func (w *Watch) Close() {
	w.engine.receipts.close(w)
	w.leave()
}

// Until is when the verifier must come back with a new credential.
func (w *Watch) Until() time.Time { return w.until }

// Standing refuses a verifier that was suspended meanwhile, or whose key was banned, as
// unauthenticated: a credential that cannot open a stream cannot continue one. It uses the same
// revocations as Events.
func (w *Watch) Standing() error {
	revoked, err := w.engine.config.Ledger.Revocations(context.Background(), w.by.tenant.Name, false)
	if err != nil {
		return err
	}
	if _, hit := revoked.HitCaller(w.by.caller.Principal, w.by.keys()...); hit {
		return unauthenticated(errors.New("the verifier was suspended, or its key banned"))
	}
	return nil
}

// Events are the revocations after a number, each following the one before it. See ledger.Events.
// The stream ends, as for a closed ledger, if the ledger was recovered since the watch began.
func (w *Watch) Events(after uint64) (events []delegation.Revocation, complete bool, changed <-chan struct{}) {
	if now, _ := w.engine.config.Ledger.Incarnation(); now.Recovered != w.incarnation {
		return nil, false, nil
	}
	return w.engine.config.Ledger.Events(w.by.tenant.Name, after)
}

// Snapshot returns all revocations in force, the number up to which they are complete, and the time
// up to which revocations that have ended may be missing.
func (w *Watch) Snapshot(ctx context.Context) (live []delegation.Revocation, last uint64, forgotten time.Time, err error) {
	ctx, cancel := w.engine.within(ctx)
	defer cancel()
	if err := w.engine.serving(ctx, w.by.tenant.Name); err != nil {
		return nil, 0, time.Time{}, err
	}
	return w.engine.config.Ledger.Snapshot(ctx, w.by.tenant.Name)
}

// Last returns the number of the newest revocation and the ledger's time, read from the ledger
// after the call began. Therefore an instance that is cut off from its ledger, or whose clock is
// wrong, cannot report that nothing was revoked.
func (w *Watch) Last(ctx context.Context) (uint64, time.Time, error) {
	ctx, cancel := w.engine.within(ctx)
	defer cancel()
	if err := w.engine.serving(ctx, w.by.tenant.Name); err != nil {
		return 0, time.Time{}, err
	}
	return w.engine.config.Ledger.Newest(ctx, w.by.tenant.Name)
}

// Incarnation is the ledger's newest recovery when the watch began. Numbers count within one
// incarnation.
func (w *Watch) Incarnation() uint64 { return w.incarnation }

// Skew is the tolerance for clocks when root tokens are compared with a cut-off.
func (w *Watch) Skew() time.Duration { return w.engine.config.Ledger.Skew(w.by.tenant.Name) }

// Seen records the receipt of one connection: it has applied all revocations up to a number.
func (w *Watch) Seen(id string, applied uint64) {
	receipt := guard.Receipt{ID: id, Verifier: w.by.caller.Principal, Applied: applied, SeenAt: w.engine.config.Now()}
	w.engine.receipts.put(w.by.tenant.Name, receipt)
	w.engine.receipts.keep(w, receipt)
}

// receipts are the receipts of verifiers at this instance: all since it last shared them through
// Redis, and the newest of each open watch.
type receipts struct {
	mu   sync.Mutex
	new  map[string]map[string]guard.Receipt // by tenant, verifier and connection
	open map[*Watch]guard.Receipt
}

// keep stores the newest receipt of a watch until close.
func (r *receipts) keep(w *Watch, receipt guard.Receipt) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if w.closed {
		return
	}
	if r.open == nil {
		r.open = make(map[*Watch]guard.Receipt)
	}
	r.open[w] = receipt
}

func (r *receipts) close(w *Watch) {
	r.mu.Lock()
	defer r.mu.Unlock()
	w.closed = true
	delete(r.open, w)
}

// here returns the newest receipts of a tenant's open watches, sorted by ID.
func (r *receipts) here(tenant string) (list []guard.Receipt) {
	r.mu.Lock()
	defer r.mu.Unlock()
	for w, receipt := range r.open {
		if w.by.tenant.Name == tenant {
			list = append(list, receipt)
		}
	}
	slices.SortFunc(list, func(a, b guard.Receipt) int {
		return cmp.Or(cmp.Compare(a.ID, b.ID), cmp.Compare(a.Verifier, b.Verifier))
	})
	return list
}

func (r *receipts) put(tenant string, receipt guard.Receipt) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.new == nil {
		r.new = make(map[string]map[string]guard.Receipt)
	}
	if r.new[tenant] == nil {
		r.new[tenant] = make(map[string]guard.Receipt)
	}
	r.new[tenant][string(receipt.Verifier)+" "+receipt.ID] = receipt
}

// tenants are the tenants that have receipts to share.
func (r *receipts) tenants() []string {
	r.mu.Lock()
	defer r.mu.Unlock()
	return slices.Collect(maps.Keys(r.new))
}

func (r *receipts) take(tenant string) []guard.Receipt {
	r.mu.Lock()
	defer r.mu.Unlock()
	var all []guard.Receipt
	for _, receipt := range r.new[tenant] {
		all = append(all, receipt)
	}
	delete(r.new, tenant)
	return all
}

// Receipts are how far the verifiers of a tenant are.
type Receipts struct {
	List []guard.Receipt
	// Partial is set if Redis did not respond. The list then has only the verifiers that are
	// connected to this instance.
	Partial bool
}

// Receipts returns how far each connected verifier of the tenant is, at any instance. Responders
// may ask; other callers for a revocation that they recorded themselves, named by its entry. If
// Redis does not respond, the result is partial, because a responder needs it during an incident.
func (e *Engine) Receipts(ctx context.Context, q Inquiry, entry uint64) (Receipts, error) {
	ctx, cancel := e.within(ctx)
	defer cancel()
	by, err := e.admitReader(ctx, q)
	if err != nil {
		return Receipts{}, err
	}
	own := false
	if entry > 0 {
		recorded, err := e.config.Ledger.EntryAt(ctx, by.tenant.Name, entry)
		if err != nil && !errors.Is(err, ledger.ErrNotFound) {
			return Receipts{}, delegation.AsError(err)
		}
		own = err == nil && recorded.Kind == ledger.KindRevocation && recorded.Caller == by.caller.Principal
	}
	if !own {
		may, err := by.tenant.Policy.Has(ctx, policy.Relation{User: string(by.caller.Principal), Relation: "responder", Object: system})
		if may = may || e.inEmergency(ctx, by.tenant, by.caller.Principal, err); err != nil && !may {
			return Receipts{}, delegation.AsError(err)
		}
		if !may {
			return Receipts{}, delegation.Refuse(delegation.NotFound, "entry", "no such revocation of yours")
		}
	}
	list, err := e.config.Guard.Receipts(ctx, by.tenant.Name)
	if err != nil && delegation.AsError(err).Reason == delegation.DependencyDown {
		return Receipts{List: e.receipts.here(by.tenant.Name), Partial: true}, nil
	}
	return Receipts{List: list}, err
}
