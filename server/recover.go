package server

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	"deputy.example/deputy/client/delegation"
	"deputy.example/deputy/server/internal/guard"
	"deputy.example/deputy/server/internal/ledger"
	"deputy.example/deputy/server/internal/vault"
)

// Decision is an operator's decision about a ledger that may have lost entries (docs/incidents.md).
type Decision struct {
	RotateKeys bool   // replace all managed signing keys: every issued token is refused
	CutOff     bool   // refuse what the ledger no longer has, and record lost revocations again
	Intact     bool   // nothing was lost; refused where any evidence shows a loss
	Reason     string // for auditors
}

// Losses is what is known of the losses of a ledger.
type Losses struct {
	Doubt  string // why instances refuse; "": they do not refuse
	Redis  error  // why Redis could not be read; nil: it was read
	Number uint64 // of the incarnation that is recovered, and
	Next   uint64 // of the one that begins; 0: nothing was done
	Loss   []Loss
}

// Loss is what is known of the losses of one tenant.
type Loss struct {
	ledger.Remains
	Managed bool // its signing keys are managed

	Witness guard.Witness // the newest entry that Redis remembers
	Forked  bool          // Witness is not the ledger's entry of that number
	Lists   bool          // Redis holds the revocations of this very ledger
	Lost    []delegation.Revocation
	Signed  uint64    // entries that the checkpoint file covers
	At      time.Time // when it was signed
	Ahead   []guard.Receipt
}

// gone reports whether something was certainly lost.
func (l Loss) gone() bool {
	return l.Forked || l.Witness.Seq > l.Seq || len(l.Lost) > 0 || l.Signed > l.Seq || len(l.Ahead) > 0
}

// All reports that a cut-off cannot be limited to what was lost, because the missing revocations
// are not known.
func (l Loss) All() bool { return !l.Lists || l.Forked }

// Recover reports what a ledger lost and, with a decision, begins its next incarnation. Instances
// then continue with it by themselves. All databases but this one must be fenced before.
func Recover(ctx context.Context, c Config, d *Decision) (found Losses, err error) {
	parts, p := c.open(Options{})
	for _, t := range parts.tenants {
		defer t.Policy.Close()
	}
	if err := p.err(); err != nil {
		return found, err
	}
	if err := d.check(c); err != nil {
		return found, err
	}
	records, err := ledger.OpenToRecover(ctx, parts.database, ledger.Config{Timeout: 30 * time.Second})
	if err != nil {
		return found, err
	}
	defer func() {
		err = errors.Join(err, records.Close())
	}()
	remembered, redis, err := c.Redis.open(parts.redis, guard.Config{Timeout: 5 * time.Second})
	if err != nil {
		return found, err
	}
	defer redis.Close()
	r := recovery{Config: c, parts: parts, ledger: records, guard: remembered}
	if found, err = r.examine(ctx); err != nil || d == nil {
		return found, err
	}
	return r.decide(ctx, found, *d)
}

func (d *Decision) check(c Config) error {
	switch {
	case d == nil:
		return nil
	case !d.RotateKeys && !d.CutOff && !d.Intact:
		return errors.New("the decision is missing: choose --rotate-keys, --cut-off or, if nothing was lost, --intact")
	case d.Intact && (d.RotateKeys || d.CutOff):
		return errors.New("--intact: must be the only option of its kind, because it states that nothing was lost")
	case d.Reason == "" || len(d.Reason) > 1000 || delegation.HoldsToken(d.Reason):
		return errors.New("--reason: must have 1 to 1,000 bytes and no token; describe for auditors what happened")
	}
	for _, t := range c.Tenants {
		if d.RotateKeys && !d.CutOff && t.ManagedKeys == nil {
			return fmt.Errorf("--rotate-keys: tenant %s signs with key files, which must be replaced in the configuration; choose --cut-off as well", t.Name)
		}
	}
	return nil
}

// recovery is one run of Recover.
type recovery struct {
	Config
	parts  opened
	ledger *ledger.Ledger
	guard  *guard.Guard
}

// examine reads the ledger, Redis, the checkpoint files and the receipts of verifiers.
func (r recovery) examine(ctx context.Context) (found Losses, err error) {
	remains, doubt, err := r.ledger.Remains(ctx, r.names()...)
	if err != nil {
		return found, err
	}
	incarnation, err := r.ledger.Known(ctx)
	if err != nil {
		return found, err
	}
	found.Doubt, found.Number = doubt, incarnation.Number
	for _, left := range remains {
		l := Loss{Remains: left}
		if n := slices.IndexFunc(r.Tenants, func(t Tenant) bool { return t.Name == left.Tenant }); n >= 0 {
			l.Managed = r.Tenants[n].ManagedKeys != nil
			if checkpoints := r.parts.tenants[n].Checkpoints; checkpoints != nil {
				if l.Signed, l.At, err = checkpoints.Outside(); err != nil {
					return found, fmt.Errorf("the checkpoint file of tenant %s: %w", left.Tenant, err)
				}
			}
		}
		if found.Redis == nil {
			found.Redis = r.askRedis(ctx, incarnation, &l)
		}
		found.Loss = append(found.Loss, l)
	}
	return found, nil
}

// names returns the names of the configured tenants.
func (r recovery) names() []string {
	names := make([]string, len(r.Tenants))
	for i := range r.Tenants {
		names[i] = r.Tenants[i].Name
	}
	return names
}

func (r recovery) askRedis(ctx context.Context, incarnation ledger.Incarnation, l *Loss) (err error) {
	if l.Witness, err = r.guard.Witness(ctx, l.Tenant); err != nil {
		return cause(err)
	}
	same := l.Witness.There && l.Witness.Number == incarnation.Number && l.Witness.ID == incarnation.ID
	if l.Witness.There && l.Witness.Seq <= l.Seq {
		holds := r.ledger.Holds(ctx, l.Tenant, l.Witness.Seq, l.Witness.Leaf)
		if l.Forked = errors.Is(holds, ledger.ErrDoubt); holds != nil && !l.Forked {
			return cause(holds)
		}
	}
	lost, complete, err := r.guard.Remembered(ctx, l.Tenant, l.Revocation)
	if err != nil {
		return cause(err)
	}
	l.Lost, l.Lists = lost, complete && same
	receipts, err := r.guard.Receipts(ctx, l.Tenant)
	if err != nil {
		return cause(err)
	}
	for _, receipt := range receipts {
		if receipt.Applied > l.Revocation {
			l.Ahead = append(l.Ahead, receipt)
		}
	}
	return nil
}

// cause returns the cause of an error, which an operator may see and a caller may not.
func cause(err error) error {
	if inner := errors.Unwrap(err); inner != nil {
		return inner
	}
	return err
}

func (r recovery) decide(ctx context.Context, found Losses, d Decision) (Losses, error) {
	decision := ledger.Decision{
		Reason: d.Reason, Tenants: r.names(), Intact: d.Intact, CutOff: d.CutOff, Above: found.Number,
		Lost: make(map[string][]delegation.Revocation), All: make(map[string]bool),
	}
	for _, l := range found.Loss {
		if d.Intact && (l.gone() || found.Redis != nil || !l.Lists && l.Seq > 0) {
			return found, fmt.Errorf("--intact: tenant %s must have lost nothing, and Redis must remember this very ledger to show it; choose --cut-off or --rotate-keys", l.Tenant)
		}
		decision.Above = max(decision.Above, l.Witness.Number)
		decision.Lost[l.Tenant] = l.Lost
		decision.All[l.Tenant] = !d.Intact && (found.Redis != nil || l.All())
	}
	if d.RotateKeys {
		if err := r.rotate(ctx); err != nil {
			return found, err
		}
	}
	begun, err := r.ledger.Recover(ctx, decision)
	if err != nil {
		return found, err
	}
	found.Next = begun.Number
	return found, nil
}

// rotate makes a new signing key for each tenant with managed keys, and retires all others.
func (r recovery) rotate(ctx context.Context) error {
	if !slices.ContainsFunc(r.Tenants, func(t Tenant) bool { return t.ManagedKeys != nil }) {
		return nil
	}
	v, err := vault.Open(ctx, vault.Config{Store: r.ledger, KMS: r.parts.kms}, r.parts.managed...)
	if err != nil {
		return err
	}
	before, err := v.States(ctx)
	if err != nil {
		return err
	}
	for _, t := range r.Tenants {
		if t.ManagedKeys == nil {
			continue
		}
		if _, err := v.Rotate(ctx, t.Name, vault.Tokens, true); err != nil {
			return fmt.Errorf("tenant %s: %w", t.Name, err)
		}
	}
	for _, key := range before {
		if key.Use != vault.Tokens || key.Phase == vault.Retired {
			continue
		}
		if err := retire(ctx, v, key); err != nil {
			return fmt.Errorf("tenant %s: %w", key.Tenant, err)
		}
	}
	return nil
}

// retire waits until the next key signs, which takes some seconds, and then retires the key.
func retire(ctx context.Context, v *vault.Vault, key vault.State) error {
	ctx, cancel := context.WithTimeout(ctx, time.Minute)
	defer cancel()
	for {
		_, err := v.Retire(ctx, key.Tenant, key.ID)
		if err == nil {
			return nil
		}
		select {
		case <-time.After(time.Second):
		case <-ctx.Done():
			return err
		}
	}
}

// String returns the report for an operator.
func (l Loss) String() string {
	var b strings.Builder
	say := func(format string, args ...any) { fmt.Fprintf(&b, format+"\n", args...) }
	if l.Seq == 0 {
		say("tenant %s: the ledger has no entry", l.Tenant)
	} else {
		say("tenant %s: entries up to %d, recorded until %s", l.Tenant, l.Seq, l.Time.UTC().Format(time.RFC3339))
	}
	if l.Witness.There {
		state := "which the ledger has"
		if l.Witness.Seq > l.Seq {
			state = fmt.Sprintf("so at least %d are lost", l.Witness.Seq-l.Seq)
		} else if l.Forked {
			state = "which is another one here: two databases went on with this ledger"
		}
		say("  redis        remembers entry %d of incarnation %d, %s", l.Witness.Seq, l.Witness.Number, state)
	}
	if l.Signed > 0 {
		say("  checkpoint   covers %d entries, signed at %s", l.Signed, l.At.UTC().Format(time.RFC3339))
	}
	for _, r := range l.Lost {
		say("  revocation   %d is lost and known to redis: %s %s %s", r.Seq, r.Target.Kind, r.Target.ID, r.Target.Subject)
	}
	for _, r := range l.Ahead {
		say("  verifier     %s has applied revocation %d, the ledger has %d", r.Verifier, r.Applied, l.Revocation)
	}
	if !l.Lists {
		say("  revocations  redis does not hold those of this ledger: what was revoked and lost is not known, so every decision but --intact refuses all tokens that are out")
		say("  repeat       suspensions of agents, and bans of keys and root tokens, that are newer than the entries above: they are lost")
	}
	return b.String()
}
