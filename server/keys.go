package server

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"time"

	"deputy.example/deputy/server/internal/exchange"
	"deputy.example/deputy/server/internal/ledger"
	"deputy.example/deputy/server/internal/token"
	"deputy.example/deputy/server/internal/vault"
)

// KeyEncryption names the key that seals the private keys in the database.
type KeyEncryption struct {
	// KeyFile holds key-encryption keys, one on each line: the first seals, all open. "deputyd keys
	// create --kek" makes one. Default none: then no key can be managed. Danger: with the file and
	// the database anyone can sign as any tenant, and without the file the managed keys are lost.
	// Keep a copy of it, and keep it apart from the database's backups.
	KeyFile string `yaml:"key_file"`
}

// ManagedKeys are signing keys that Deputy makes, keeps in the database and replaces by itself. All
// instances have the same keys.
type ManagedKeys struct {
	// Algorithm of the next key: ES256, EdDSA or RS256. Default ES256.
	Algorithm string `yaml:"algorithm"`
	// RotateEvery is how long a key signs. Default 2160h, which is 90 days; at least twice
	// publish_ahead and a twenty-fourth of limits.max_lifetime, at most 87600h.
	RotateEvery time.Duration `yaml:"rotate_every"`
	// PublishAhead is how long a key is published before it signs. Default 1h, which is the longest
	// time for which the SDK keeps keys. 2m to 168h. Danger: a verifier that keeps keys for longer
	// refuses the first tokens of a new key.
	PublishAhead time.Duration `yaml:"publish_ahead"`
}

func (m *ManagedKeys) check(p *problems, path string, l Limits) {
	oneOf(p, path+".algorithm", &m.Algorithm, "ES256", "EdDSA", "RS256")
	between(p, path+".publish_ahead", &m.PublishAhead, time.Hour, 2*time.Minute, 168*time.Hour)
	between(p, path+".rotate_every", &m.RotateEvery, max(2160*time.Hour, 2*m.PublishAhead), max(2*m.PublishAhead, l.MaxLifetime/24), 87600*time.Hour)
}

// checkSigning requires exactly one kind of signing keys.
func (t *Tenant) checkSigning(p *problems, path string) {
	switch {
	case t.ManagedKeys == nil && len(t.SigningKeys) == 0:
		p.add(path+".signing_keys", `is missing: make a key with "deputyd keys create" and name its file and algorithm, or write managed_keys`)
	case t.ManagedKeys != nil && len(t.SigningKeys) > 0:
		p.add(path+".managed_keys", "contradicts signing_keys: keep one of the two")
	}
}

// checkSealed requires a key-encryption key where keys are managed.
func (c *Config) checkSealed(p *problems) {
	for i, t := range c.Tenants {
		path := tenantPath(i)
		for _, managed := range []struct {
			at  string
			set bool
		}{{".managed_keys", t.ManagedKeys != nil}, {".audit.managed_checkpoint_key", t.Audit.ManagedCheckpointKey}} {
			if managed.set && c.KeyEncryption.KeyFile == "" {
				p.add(path+managed.at, `needs key_encryption.key_file, whose key seals it: "deputyd keys create --kek" makes one`)
			}
		}
	}
}

func (k *KeyEncryption) open(p *problems) vault.KMS {
	if k.KeyFile == "" {
		return nil
	}
	kms, err := vault.OpenFileKMS(k.KeyFile)
	if err != nil {
		p.add("key_encryption.key_file", "%v", err)
	}
	return kms
}

// signs reports whether the tenant has any key for checkpoints.
func (a *Audit) signs() bool { return a.CheckpointKey != "" || a.ManagedCheckpointKey }

// openManaged makes a keyset that has its keys once the vault is open.
func (t *Tenant) openManaged(parts *opened, o Options) *token.Keyset {
	keys, series := token.NewManagedKeyset(vault.Plan{
		Tenant: t.Name, Use: vault.Tokens, Algorithm: t.ManagedKeys.Algorithm,
		Rotate: t.ManagedKeys.RotateEvery, Ahead: t.ManagedKeys.PublishAhead, Lifetime: t.Limits.MaxLifetime + t.Skew,
	}, o.Now)
	parts.managed = append(parts.managed, series)
	return keys
}

// beginKeys opens the managed keys, of which there may be none, and makes the first key of each
// kind.
func (s *Server) beginKeys(ctx context.Context, parts opened, o Options) (err error) {
	s.vault, err = vault.Open(ctx, vault.Config{
		Store: s.ledger, KMS: parts.kms, Now: o.Now, Settled: s.clock.Steady, Logger: o.Logger, Registerer: o.Registry,
	}, parts.managed...)
	if err == nil {
		err = s.vault.Begin(ctx)
	}
	if err != nil {
		return fmt.Errorf("managed keys: %w", err)
	}
	return nil
}

// Key is a managed key in its current state.
type Key struct {
	Tenant    string     `json:"tenant"`
	Use       string     `json:"use"` // tokens or checkpoints
	ID        string     `json:"kid"`
	Algorithm string     `json:"algorithm"`
	State     string     `json:"state"` // published, signing, verifying or retired
	Since     time.Time  `json:"since"`
	Until     *time.Time `json:"until,omitempty"`
	SealedBy  string     `json:"sealed_by,omitempty"`
	// Verifier is the verifier key with which auditors check checkpoints.
	Verifier string `json:"verifier_key,omitempty"`
}

// Keys lists the managed keys of a tenant, or of all tenants if tenant is empty.
func Keys(ctx context.Context, c Config, tenant string) (list []Key, err error) {
	err = c.withKeys(ctx, tenant, func(k keyring) error {
		states, err := k.States(ctx)
		for _, s := range states {
			if tenant == "" || s.Tenant == tenant {
				list = append(list, k.key(s))
			}
		}
		return err
	})
	return list, err
}

// RotateKey makes the next key of a tenant, for checkpoints if checkpoints is set and otherwise for
// tokens. The key signs after publish_ahead. If immediately is set, it signs within seconds.
func RotateKey(ctx context.Context, c Config, tenant string, checkpoints, immediately bool) (made Key, err error) {
	use := vault.Tokens
	if checkpoints {
		use = vault.Checkpoints
	}
	err = c.withKeys(ctx, tenant, func(k keyring) error {
		s, err := k.Rotate(ctx, tenant, use, immediately)
		made = k.key(s)
		return err
	})
	return made, err
}

// RetireKey ends a key at once and permanently.
func RetireKey(ctx context.Context, c Config, tenant, id string) (retired Key, err error) {
	err = c.withKeys(ctx, tenant, func(k keyring) error {
		if err := k.spare(ctx, tenant, id); err != nil {
			return err
		}
		s, err := k.Retire(ctx, tenant, id)
		retired = k.key(s)
		return err
	})
	return retired, err
}

// CreateKEK makes a key-encryption key in a new file with mode 0600, and returns its id. It never
// replaces a file.
func CreateKEK(path string) (keyID string, err error) { return vault.CreateKEK(path) }

// keyring holds the managed keys of a configuration for a command that does not serve.
type keyring struct {
	*vault.Vault
	tenants []exchange.Tenant
	ledger  *ledger.Ledger
}

// spare refuses to retire the key that alone has signed the newest checkpoint.
func (k keyring) spare(ctx context.Context, tenant, id string) error {
	n := slices.IndexFunc(k.tenants, func(t exchange.Tenant) bool { return t.Name == tenant })
	if n < 0 || k.tenants[n].Checkpoints == nil || k.tenants[n].Checkpoints.VerifierKeys()[id] == "" {
		return nil
	}
	last, err := k.ledger.LastCheckpoint(ctx, tenant)
	switch {
	case errors.Is(err, ledger.ErrNotFound):
		return nil
	case err == nil && !k.tenants[n].Checkpoints.SignedWithout(id, last.Note):
		err = fmt.Errorf("no other key than %s has signed the newest checkpoint: rotate, and let an instance run for some seconds before you retire it", id)
	}
	return err
}

func (k keyring) key(s vault.State) Key {
	key := Key{
		Tenant: s.Tenant, Use: string(s.Use), ID: s.ID, Algorithm: s.Algorithm, State: string(s.Phase),
		Since: s.Since.UTC().Truncate(time.Second), SealedBy: s.SealedBy,
	}
	if !s.Until.IsZero() {
		key.Until = new(s.Until.UTC().Truncate(time.Second))
	}
	if s.Phase == vault.Retired {
		key.SealedBy = "" // a retired key is not sealed any more
	}
	for _, t := range k.tenants {
		if t.Name == s.Tenant && s.Use == vault.Checkpoints {
			key.Verifier = t.Checkpoints.VerifierKeys()[s.ID]
		}
	}
	return key
}

// withKeys opens the managed keys that the configuration names, and starts nothing else.
func (c *Config) withKeys(ctx context.Context, tenant string, f func(keyring) error) (err error) {
	if tenant != "" && !slices.ContainsFunc(c.Tenants, func(t Tenant) bool { return t.Name == tenant }) {
		return fmt.Errorf("the configuration has no tenant %q", tenant)
	}
	parts, p := c.open(Options{})
	for _, t := range parts.tenants {
		defer t.Policy.Close()
	}
	if err := p.err(); err != nil {
		return err
	}
	if len(parts.managed) == 0 {
		return errors.New("the configuration has no managed keys: those of files are replaced in the configuration")
	}
	times := c.Clock.open(Options{})
	l, err := ledger.Open(ctx, parts.database, ledger.Config{Clock: times, Timeout: 10 * time.Second})
	if err != nil {
		return err
	}
	defer func() {
		if closed := l.Close(); err == nil {
			err = closed
		}
	}()
	if source, own := l.Clock(); own {
		times.Compare(ctx, source)
	}
	v, err := vault.Open(ctx, vault.Config{Store: l, KMS: parts.kms, Now: times.Now}, parts.managed...)
	if err != nil {
		return err
	}
	return f(keyring{v, parts.tenants, l})
}
