package server

import (
	"context"
	"fmt"
	"slices"
	"time"

	"deputy.example/deputy/client/delegation"
	"deputy.example/deputy/server/internal/ledger"
)

// Retention is how long the tenant's entries are kept (docs/retention.md). Default forever.
type Retention struct {
	// Personal is the age at which entries lose the fields that name or describe a person. The
	// digests of the fields stay, and every proof with them. Default forever, at least 24h. Danger:
	// an erased field is lost for auditors too.
	Personal time.Duration `yaml:"personal"`
	// Entries is the age at which whole entries are dropped. Their leaf hashes stay, so that
	// everything that was signed can still be proven. Default forever, at least 24h and not shorter
	// than personal. Danger: export the entries that you must be able to show later before they are
	// dropped.
	Entries time.Duration `yaml:"entries"`
}

// leastRetention is the longest life of a token, so nothing that is alive is old enough to be
// forgotten.
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

// retention returns each tenant's retention in the form that the ledger takes.
func (c *Config) retention() map[string]ledger.Retention {
	keep := make(map[string]ledger.Retention)
	for _, t := range c.Tenants {
		keep[t.Name] = ledger.Retention(t.Audit.Retention)
	}
	return keep
}

// Erase makes a tenant's ledger forget a principal. It may run while instances serve, and again
// after an interruption. progress receives how many entries were examined.
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
