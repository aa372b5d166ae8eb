package exchange

import (
	"cmp"
	"context"
	"crypto/sha256"
	"encoding/binary"
	"fmt"
	"slices"
	"time"

	"go.opentelemetry.io/otel/trace"

	"deputy.example/deputy/client/delegation"
	"deputy.example/deputy/server/internal/ledger"
)

// record is step 6: every decision about this call goes into one ledger batch, refusals too. The
// ledger refuses, in the transaction, a grant that a revocation hits meanwhile, and whatever comes with
// a credential that was used before; its word is final. What was not decided (a dependency did not
// answer) leaves no entry, but spends the credential too.
func (w *walk) record(ctx context.Context) error {
	var recorded []*child
	var drafts []*ledger.Draft
	for _, c := range w.children {
		if !c.alive() && c.outcome.Err.Temporary() {
			continue
		}
		recorded = append(recorded, c)
		drafts = append(drafts, w.draft(ctx, c))
	}
	if len(drafts) == 0 {
		if err := w.spendUndecided(ctx, w.arrival, nil); err != nil { // each child has its own reason
			w.refuseAll(err)
		}
		return nil
	}
	results := w.config.Ledger.AppendAll(ctx, w.tenant.Name, drafts, w.uses())
	if replayed := results[0].Err; isReplay(replayed) {
		w.refuseAll(replayed)
		return nil
	}
	for i, result := range results {
		c := recorded[i]
		if result.Err != nil {
			c.fail(result.Err) // a refusal that could not be recorded is not an answer either
			continue
		}
		if c.alive() {
			c.retried = result.Receipt.Existing
			if err := w.settle(c, result.Receipt); err != nil {
				c.fail(err)
			}
		}
	}
	return nil
}

// isReplay reports whether the ledger refused a whole call because its caller's credential was used before.
func isReplay(err error) bool {
	refusal := delegation.AsError(err)
	return refusal != nil && (refusal.Reason == delegation.AssertionReplayed || refusal.Reason == delegation.ProofReplayed)
}

// settle turns what the ledger keeps into the grant that is answered. After a retry these are the
// claims of the first time.
func (w *walk) settle(c *child, r ledger.Receipt) error {
	if !r.Existing {
		if c.payload = r.Claims; c.payload != nil { // a check has none, and no number of its own in them
			c.claims = w.tenant.number(c.claims, r.Seq)
		}
		c.outcome.Grant = w.grant(c, r.Seq)
		return nil
	}
	claims, err := delegation.DecodeClaims(r.Claims)
	if err != nil {
		return delegation.Refuse(delegation.Internal, "", "internal error: nothing was issued").WithCause(fmt.Errorf("claims of entry %d: %w", r.Seq, err))
	}
	c.claims, c.payload = claims, r.Claims
	c.outcome.Grant = w.grant(c, r.Seq)
	return nil
}

func (w *walk) grant(c *child, entry uint64) *Grant {
	return &Grant{
		IssuedTokenType: c.wish.tokenType,
		ExpiresIn:       max(time.Duration(c.claims.ExpiresAt-w.now.Unix())*time.Second, 0),
		Claims:          c.claims,
		Entry:           entry,
	}
}

// draft is the entry for one child, whatever became of it.
func (w *walk) draft(ctx context.Context, c *child) *ledger.Draft {
	d := &ledger.Draft{
		Kind: ledger.KindGrant, Outcome: ledger.Granted,
		Parent: w.parent.id, Txn: w.parent.txn, Root: w.parent.root,
		Subject: w.parent.subject, Caller: w.caller.Principal,
		Actor: c.actor.principal, Actors: w.parent.chainWith(c.actor.principal), HolderKey: c.actor.binding.Key(), ActorProof: c.actor.proof,
		ModelID: c.decision.ModelID, Peer: w.call.Peer, TraceID: traceID(ctx),
		Scopes: c.wish.scopes, Audiences: c.wish.audiences, Details: c.wish.details,
	}
	if w.parent.isRoot() {
		d.Parent = "" // a root token has no entry
	}
	if w.call.ValidateOnly {
		d.Kind = ledger.KindCheck
	}
	if !c.alive() {
		if d.Kind == ledger.KindGrant {
			d.Kind = ledger.KindRefusal
		}
		refusal := cmp.Or(c.kept, c.outcome.Err)
		d.Outcome, d.Reason, d.Detail = ledger.Refused, refusal.Reason, refusal.Description
		if missing := c.decision.Missing; missing != nil {
			d.Detail = "missing: " + missing.Relation.String()
		}
		return d
	}
	d.Txn, d.Expiry = c.claims.Txn, time.Unix(c.claims.ExpiresAt, 0)
	if w.parent.uses > 0 {
		d.Uses = []ledger.SingleUse{{Issuer: w.parent.issuer, ID: w.parent.id, Made: w.parent.made, Until: w.parent.expiresAt, Reason: delegation.TokenSpent}}
	}
	if d.Kind == ledger.KindCheck {
		return d
	}
	d.ID = c.claims.ID
	d.Lineage = w.lineage(c)
	d.Lineage.Txn = c.claims.Txn
	d.Claims = func(seq uint64) ([]byte, error) { return w.tenant.numbered(c.claims, seq) }
	if w.call.IdempotencyKey != "" {
		d.Idempotency = &ledger.Idempotency{Key: w.itemKey(c), Fingerprint: w.fingerprint(c), Until: w.parent.expiresAt.Add(keepKeys)}
	}
	return d
}

// keepKeys is how long an idempotency key is remembered after the token that its grant was derived from has ended. Until
// then the grant is never made again; afterwards the ledger refuses a grant from that token.
const keepKeys = 24 * time.Hour

// number is the child's claims once the ledger has given its number, from which its place in a status list
// follows.
func (t *Tenant) number(c delegation.Claims, seq uint64) delegation.Claims {
	hops := slices.Clone(c.Delegation.Hops)
	hops[len(hops)-1].Seq = seq
	c.Delegation.Hops, c.Status = hops, t.status(seq)
	return c
}

// numbered are these claims in canonical form.
func (t *Tenant) numbered(c delegation.Claims, seq uint64) ([]byte, error) {
	c = t.number(c, seq)
	if err := c.Check(); err != nil {
		return nil, err
	}
	return c.MarshalJSON()
}

func (w *walk) itemKey(c *child) string {
	if w.call.Batch {
		return fmt.Sprintf("%s/%d", w.call.IdempotencyKey, c.index)
	}
	return w.call.IdempotencyKey
}

// fingerprint covers the planned input: the parent's identity, the new actor and its key, and every
// requested value. Credentials are not in it, they differ on a retry.
func (w *walk) fingerprint(c *child) [32]byte {
	h := sha256.New()
	field := func(values ...string) {
		var size [8]byte
		binary.BigEndian.PutUint64(size[:], uint64(len(values)))
		h.Write(size[:])
		for _, v := range values {
			binary.BigEndian.PutUint64(size[:], uint64(len(v)))
			h.Write(size[:])
			h.Write([]byte(v))
		}
	}
	field("deputy/fingerprint/v1")
	field(w.parent.issuer, w.parent.id, w.parent.root)
	field(string(c.actor.principal), c.actor.binding.Key())
	field(c.wish.scopes...)
	field(c.wish.audiences...)
	details := make([]string, len(c.wish.details))
	for i, d := range c.wish.details {
		details[i] = d.String()
	}
	field(details...)
	field(c.wish.tokenType, c.wish.lifetime.String(), fmt.Sprint(c.wish.maxDepth), fmt.Sprint(c.wish.uses))
	return [32]byte(h.Sum(nil))
}

// traceID is the W3C trace id of the call, or "".
func traceID(ctx context.Context) string {
	if id := trace.SpanContextFromContext(ctx).TraceID(); id.IsValid() {
		return id.String()
	}
	return ""
}
