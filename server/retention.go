package server

import (
	"context"
	"fmt"
	"slices"
	"time"

	"deputy.example/deputy/client/delegation"
	"deputy.example/deputy/server/internal/ledger"
)

// Retention says for how long the tenant's entries are kept (docs/retention.md). Default for ever.
type Retention struct {
	// Personal is after which time entries lose the fields that name or describe somebody. Their
	// digests stay, and every proof with them. Default for ever, at least 24h. Danger: what was erased
	// is gone for auditors too.
	Personal time.Duration `yaml:"personal"`
	// Entries is after which time whole entries are dropped. Their leaf hashes stay, so that all that
	// was signed can still be proven. Default for ever, at least 24h and not shorter than personal.
	// Danger: export and keep what you will be asked about before it goes.
	Entries time.Duration `yaml:"entries"`
}

// A day is the longest life of a token: nothing that is alive is ever old enough to be forgotten.
const leastRetention, mostRetention = 24 * time.Hour, 100 * 365 * 24 * time.Hour

func (r *Retention) check(p *problems, path string) {
	for _, setting := range []struct {
		key   string
		value time.Duration
	}{{"personal", r.Personal}, {"entries", r.Entries}} {
		if setting.value != 0 && (setting.value < leastRetention || setting.value > mostRetention) {
			p.add(path+"."+setting.key, "must be between %s and %s: leave it out to keep them for ever", short(leastRetention), short(mostRetention))
		}
	}
	if r.Entries != 0 && r.Personal > r.Entries {
		p.add(path+".personal", "is longer than entries, after which nothing is left: make it shorter or leave it out")
	}
}

// retention is what each tenant's configuration says, as the ledger takes it.
func (c *Config) retention() map[string]ledger.Retention {
	keep := make(map[string]ledger.Retention)
	for _, t := range c.Tenants {
		keep[t.Name] = ledger.Retention(t.Audit.Retention)
	}
	return keep
}

// Erase makes a tenant's ledger forget a principal. It may run while instances serve, and again after it
// was ended. The progress is told how many entries were looked at.
func Erase(ctx context.Context, c Config, tenant, principal string, dryRun bool, progress func(done, of uint64)) (_ ledger.Erased, err error) {
	if !slices.ContainsFunc(c.Tenants, func(t Tenant) bool { return t.Name == tenant }) {
		return ledger.Erased{}, fmt.Errorf("the configuration has no tenant %q", tenant)
	}
	whom, err := delegation.ParsePrincipal(principal)
	if err != nil {
		return ledger.Erased{}, fmt.Errorf("the principal %w", err)
	}
	var p problems
	address := withPassword(&p, "database.password_file", c.Database.DSN, c.Database.PasswordFile)
	if err := p.err(); err != nil {
		return ledger.Erased{}, err
	}
	l, err := ledger.Open(ctx, address, ledger.Config{Timeout: 30 * time.Second})
	if err != nil {
		return ledger.Erased{}, err
	}
	defer func() {
		if closed := l.Close(); err == nil {
			err = closed
		}
	}()
	return l.Erase(ctx, tenant, ledger.Erasure{Principal: whom, DryRun: dryRun, Progress: progress})
}
