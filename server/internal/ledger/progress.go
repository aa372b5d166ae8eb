package ledger

import (
	"context"

	"deputy.example/deputy/client/delegation"
)

// Progress is how far a tenant's ledger has come, and how much of that this instance has read.
type Progress struct {
	Tenant     string
	Seq        uint64 // number of the newest entry
	Revocation uint64 // number of the newest revocation
	// Current is true if this instance's memory has every revocation up to Revocation and none
	// after it. Live then holds those in force, as Ledger.Live returns them.
	Current bool
	Live    []delegation.Revocation
}

// Progress reads how far the ledgers of the tenants have come, in one statement, and returns it in
// their order. The read begins after the call. Where an element is not Current, LastRevocation
// brings the memory up to date. If the database does not answer, the error is unavailable, and
// nothing is known of any tenant.
func (l *Ledger) Progress(ctx context.Context, tenants ...string) ([]Progress, error) {
	ctx, cancel := context.WithTimeout(ctx, l.config.attempt())
	defer cancel()
	found, err := l.store.among(ctx, `SELECT tenant, seq, revocation FROM heads WHERE tenant`, tenants)
	if err != nil {
		return nil, unavailable(err)
	}
	heads := make(map[string]Progress, len(tenants))
	err = eachRow(found, func() error {
		var s Progress
		if err := found.Scan(&s.Tenant, &s.Seq, &s.Revocation); err != nil {
			return err
		}
		heads[s.Tenant] = s
		return nil
	})
	if err != nil {
		return nil, unavailable(err)
	}
	list := make([]Progress, len(tenants))
	for i, tenant := range tenants {
		s, err := l.sequencer(tenant)
		if err != nil {
			return nil, unavailable(err)
		}
		list[i] = s.live.progress(heads[tenant])
		list[i].Tenant = tenant
	}
	return list, nil
}

// progress completes what was read of the tenant's head. Without a head there is no entry.
func (r *revocations) progress(s Progress) Progress {
	if s.Revocation == 0 {
		r.loadedEmpty()
	}
	f := r.feed.Load()
	if s.Current = f.loaded && f.last == s.Revocation; s.Current {
		s.Live = f.live[:len(f.live):len(f.live)]
	}
	return s
}

// loadedEmpty notes that the database had no revocation. What is read from now on begins with the
// first.
func (r *revocations) loadedEmpty() {
	r.mu.Lock()
	defer r.mu.Unlock()
	old := r.feed.Load()
	if old.loaded || old.last > 0 { // a page of newer ones has been read meanwhile
		return
	}
	r.feed.Store(&feed{loaded: true, changed: old.changed}) // waiting readers need not wake
}
