package ledger

import "context"

// Protection names what a negative control switches off.
type Protection func(*protections)

var (
	NoRevocationCheck Protection = func(p *protections) { p.revocations = true }
	NoSingleUse       Protection = func(p *protections) { p.singleUse = true }
	NoIdempotency     Protection = func(p *protections) { p.idempotency = true }
)

// SwitchOff must be called before the ledger is used.
func (l *Ledger) SwitchOff(p Protection) { p(&l.off) }

// OpenWithSeam opens a ledger whose statements fail where the seam says so.
func OpenWithSeam(ctx context.Context, dsn string, config Config, s func(point string) error) (*Ledger, error) {
	return open(ctx, dsn, config, s)
}

// Queued counts the tenant's drafts that wait for a turn.
func (l *Ledger) Queued(tenant string) int {
	s, err := l.sequencer(tenant)
	if err != nil {
		return 0
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	return len(s.queue)
}

// Salt is the salt of a personal field, by its number in the canonical form.
func (e *Entry) Salt(field int) [32]byte { return e.salts.sum[field] }
