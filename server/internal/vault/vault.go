package vault

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"sync"
	"time"

	"github.com/prometheus/client_golang/prometheus"
)

// Every is how often the table is read, with one statement for all tenants.
const Every = time.Second

// readTimeout bounds one read of the table and all that follows from it.
const readTimeout = 10 * time.Second

// Config configures a Vault.
type Config struct {
	Store Store
	KMS   KMS

	Now func() time.Time // nil: time.Now
	// Settled tells whether Now is certain enough for Run to make keys and to take them away. nil: always.
	Settled    func() bool
	Logger     *slog.Logger          // nil: discards
	Registerer prometheus.Registerer // nil: no metrics
}

// Vault keeps the managed keys of all tenants.
type Vault struct {
	config  Config
	members []Member
	signing *prometheus.GaugeVec
	failing prometheus.Gauge

	mu      sync.Mutex // one read at a time
	refused bool       // the last round failed; it is logged once
}

// Open reads the table for the series. A key that is in force and does not open is an error: no key
// ever replaces it automatically.
func Open(ctx context.Context, config Config, series ...Member) (*Vault, error) {
	if config.Now == nil {
		config.Now = time.Now
	}
	if config.Logger == nil {
		config.Logger = slog.New(slog.DiscardHandler)
	}
	v := &Vault{config: config, members: series}
	v.signing = prometheus.NewGaugeVec(prometheus.GaugeOpts{
		Name: "deputy_managed_key_signs_since_seconds",
		Help: "Time since which the current key signs, in seconds since 1970.",
	}, []string{"tenant", "use"})
	v.failing = prometheus.NewGauge(prometheus.GaugeOpts{
		Name: "deputy_managed_keys_failing",
		Help: "1 while the table of managed keys cannot be read, opened or maintained. Alert on it.",
	})
	if config.Registerer != nil {
		config.Registerer.MustRegister(v.signing, v.failing)
	}
	_, err := v.read(ctx)
	return v, err
}

// read takes the rows of the table into all series.
func (v *Vault) read(ctx context.Context) (map[Member][]Row, error) {
	v.mu.Lock()
	defer v.mu.Unlock()
	if len(v.members) == 0 {
		return nil, nil
	}
	began := v.config.Now()
	all, err := v.config.Store.SealedKeys(ctx)
	if err != nil {
		return nil, err
	}
	var errs []error
	held := make(map[Member][]Row)
	for _, m := range v.members {
		for _, r := range all {
			if r.Tenant == m.planned().Tenant && r.Use == m.planned().Use {
				held[m] = append(held[m], r)
			}
		}
		errs = append(errs, m.take(ctx, v.config.KMS, held[m], began))
	}
	return held, errors.Join(errs...)
}

// Begin makes the first key of every series that never had one. It signs immediately: no verifier
// can hold a token of another key yet. If many instances begin together, one key results.
func (v *Vault) Begin(ctx context.Context) error {
	held, err := v.read(ctx)
	if err != nil {
		return err
	}
	for _, m := range v.members {
		if len(held[m]) > 0 {
			continue
		}
		if _, err := v.add(ctx, m, nil, 0); err != nil {
			return err
		}
	}
	_, err = v.read(ctx)
	return err
}

// add makes the key that follows on these rows. It returns false if another instance was faster.
func (v *Vault) add(ctx context.Context, m Member, rows []Row, ahead time.Duration) (bool, error) {
	row := m.planned().next(rows, v.config.Now(), ahead)
	private, id, err := m.make(row)
	if err != nil {
		return false, err
	}
	row.ID, row.SealedBy = id, v.config.KMS.Current()
	if row.Sealed, err = v.config.KMS.Seal(ctx, row.SealedBy, private, row.bound()); err != nil {
		return false, err
	}
	clear(private)
	added, err := v.config.Store.AddSealedKey(ctx, row)
	if added {
		v.config.Logger.InfoContext(ctx, "managed key created", "tenant", row.Tenant, "use", row.Use, "kid", row.ID, "signs_from", row.SignsFrom)
	}
	return added, err
}

// Run reads the table every second, so that all instances learn of each other's rotations, and
// makes the keys that are due, until ctx is done. Then it returns nil.
func (v *Vault) Run(ctx context.Context) error {
	tick := time.NewTicker(Every)
	defer tick.Stop()
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-tick.C:
		}
		err := v.Round(ctx)
		if ctx.Err() != nil {
			return nil
		}
		if (err != nil) != v.refused {
			v.refused = err != nil
			v.config.Logger.ErrorContext(ctx, "managed keys failing", "failing", v.refused, "cause", err)
		}
	}
}

// Round is one iteration of Run.
func (v *Vault) Round(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, readTimeout)
	defer cancel()
	held, err := v.read(ctx)
	if err == nil && (v.config.Settled == nil || v.config.Settled()) {
		for _, m := range v.members {
			err = errors.Join(err, v.maintain(ctx, m, held[m]))
		}
	}
	v.failing.Set(map[bool]float64{true: 1}[err != nil])
	return err
}

// maintain applies what is due in a series. All instances do so, and any of them may succeed.
func (v *Vault) maintain(ctx context.Context, m Member, rows []Row) error {
	plan, now := m.planned(), v.config.Now()
	var errs []error
	if plan.due(rows, now) {
		_, err := v.add(ctx, m, rows, plan.Ahead)
		errs = append(errs, err)
	}
	states, _, _ := plan.states(rows, now)
	for _, s := range states {
		if s.Phase == Signing {
			v.signing.WithLabelValues(plan.Tenant, string(plan.Use)).Set(float64(s.Since.Unix()))
		}
		if s.Phase == Retired && s.Row.Retired.IsZero() { // its life is over: delete its private part
			_, err := v.config.Store.RetireSealedKey(ctx, s.Row, s.Since)
			errs = append(errs, err)
		} else if s.Phase != Retired {
			errs = append(errs, v.amend(ctx, plan, s.Row))
		}
	}
	return errors.Join(errs...)
}

// amend records the longest life that this instance's configuration allows. It counts as long as
// such tokens may exist, also after the configuration has changed. It seals again what a former
// key-encryption key sealed.
func (v *Vault) amend(ctx context.Context, plan Plan, row Row) error {
	next := row
	next.Lifetime = max(row.Lifetime, plan.Lifetime)
	if current := v.config.KMS.Current(); row.SealedBy != current {
		private, err := v.config.KMS.Open(ctx, row.SealedBy, row.Sealed, row.bound())
		if err != nil {
			return err
		}
		next.SealedBy = current
		if next.Sealed, err = v.config.KMS.Seal(ctx, current, private, row.bound()); err != nil {
			return err
		}
		clear(private)
	}
	if next.Lifetime == row.Lifetime && next.SealedBy == row.SealedBy {
		return nil
	}
	_, err := v.config.Store.AmendSealedKey(ctx, row, next)
	return err
}

// States reads the table and returns the state of every key.
func (v *Vault) States(ctx context.Context) ([]State, error) {
	held, err := v.read(ctx)
	if err != nil {
		return nil, err
	}
	var all []State
	for _, m := range v.members {
		states, _, _ := m.planned().states(held[m], v.config.Now())
		all = append(all, states...)
	}
	return all, nil
}

// Rotate makes the next key now. It signs after Plan.Ahead, or, immediately, after Soon: verifiers
// that have not fetched it by then refuse its first tokens.
func (v *Vault) Rotate(ctx context.Context, tenant string, use Use, immediately bool) (State, error) {
	m, err := v.member(tenant, use)
	if err != nil {
		return State{}, err
	}
	plan := m.planned()
	ahead := plan.Ahead
	if immediately || plan.Together {
		ahead = Soon
	}
	for {
		held, err := v.read(ctx)
		if err != nil {
			return State{}, err
		}
		rows := held[m]
		if newest, found := plan.newest(rows); found && !immediately && v.config.Now().Before(newest.SignsFrom) {
			return State{}, fmt.Errorf("key %s is published already and signs from %s; wait, or rotate immediately", newest.ID, newest.SignsFrom.Format(time.RFC3339))
		}
		if len(rows) == 0 {
			ahead = 0
		}
		added, err := v.add(ctx, m, rows, ahead)
		if err != nil {
			return State{}, err
		}
		if added {
			if held, err = v.read(ctx); err != nil {
				return State{}, err
			}
			states, _, _ := plan.states(held[m], v.config.Now())
			return states[len(rows)], nil
		}
	}
}

// Retire retires a key at once: what it signed is refused from then on. It returns an error if no
// other key signs.
func (v *Vault) Retire(ctx context.Context, tenant, id string) (State, error) {
	held, err := v.read(ctx)
	if err != nil {
		return State{}, err
	}
	for _, m := range v.members {
		plan := m.planned()
		states, _, _ := plan.states(held[m], v.config.Now())
		for _, s := range states {
			switch {
			case plan.Tenant != tenant || s.ID != id:
			case s.Phase == Retired:
				return State{}, fmt.Errorf("key %s was retired already, at %s", id, s.Since.Format(time.RFC3339))
			default:
				return v.retire(ctx, s.Row, states)
			}
		}
	}
	return State{}, fmt.Errorf(`tenant %q has no managed key %q; "deputyd keys list" lists its keys`, tenant, id)
}

func (v *Vault) retire(ctx context.Context, row Row, states []State) (State, error) {
	now := v.config.Now().UTC().Truncate(time.Microsecond)
	done, err := v.config.Store.RetireSealedKey(ctx, row, now)
	switch {
	case err != nil:
		return State{}, err
	case done:
		row.Retired, row.Sealed = now, nil
		return State{row, Retired, now, time.Time{}}, nil
	}
	for _, s := range states {
		if s.Phase == Published && s.Number > row.Number && s.SignsFrom.Sub(now) <= Soon {
			return State{}, fmt.Errorf("no later key than %s signs yet; wait until %s, when %s does", row.ID, s.SignsFrom.Add(time.Second).Format(time.RFC3339), s.ID)
		}
	}
	return State{}, fmt.Errorf(`no later key than %s signs; make one first, with "deputyd keys rotate --immediately"`, row.ID)
}

func (v *Vault) member(tenant string, use Use) (Member, error) {
	for _, m := range v.members {
		if m.planned().Tenant == tenant && m.planned().Use == use {
			return m, nil
		}
	}
	return nil, fmt.Errorf("tenant %q has no managed keys for %s", tenant, use)
}
