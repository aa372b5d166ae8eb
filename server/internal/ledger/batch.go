package ledger

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"slices"
	"time"

	"golang.org/x/mod/sumdb/tlog"

	"deputy.example/deputy/client/audit"
	"deputy.example/deputy/client/delegation"
	"deputy.example/deputy/server/internal/panics"
)

// batch is one transaction in preparation. Its steps are those of docs/ledger.md:
//
//  1. lock the head;
//  2. catch up with the revocations of other instances;
//  3. refuse each grant that a revocation hits;
//  4. decide idempotency keys and single uses by the rows that exist, under the lock;
//  5. write with contiguous numbers, advance the head, commit.
//
// A crash before the end of step 5 leaves nothing; a crash after it leaves everything.
type batch struct {
	s     *sequencer
	items []*item
	facts facts
	w     writes
	now   time.Time // before the transaction
	at    time.Time // ledger time, read with the head locked
	// distrust is why nothing may be granted or forgotten: this instance's clock, or the evidence
	// for it. nil: the clock is trusted.
	distrust error

	outcomes []outcome // the answers to items, once the batch is committed

	checked map[digest]bool // what the checks of the current item would have spent
}

type outcome struct {
	results []Result
	err     error // of single uses alone
}

var errWentBack = fmt.Errorf("%w: it is older than what this process has read", ErrDoubt)

// errUnresolved leaves open whether the batch was recorded. Without a token the entry is harmless.
var errUnresolved = errors.New("the outcome of the commit could not be found out in time")

// commit runs the batch and gives every item its outcome.
func (s *sequencer) commit(items []*item) {
	b := &batch{s: s, items: items}
	ctx, cancel := context.WithTimeout(context.Background(), s.ledger.config.Timeout)
	defer cancel()
	err := b.run(ctx)
	s.ledger.metrics.committed(len(items), err)
	s.failing.Store(err != nil)
	if err != nil {
		s.ledger.config.Logger.Error("batch failed", "tenant", s.tenant, "drafts", len(items), "error", err)
	}
	for i, it := range items {
		if err != nil {
			it.err = unavailable(err)
		} else {
			it.results, it.err = b.outcomes[i].results, b.outcomes[i].err
		}
		close(it.done)
	}
}

func (b *batch) run(ctx context.Context) error {
	config := b.s.ledger.config
	attempt, cancel := context.WithTimeout(ctx, config.attempt())
	defer cancel()
	b.now = floor(config.Now())
	if known, _ := b.s.ledger.lifeRow(); !known && !b.s.ledger.recovering {
		if err := b.s.ledger.probe(attempt); err != nil {
			return errors.Unwrap(err)
		}
	}
	if !b.s.live.feed.Load().loaded { // reading a long history must not hold the head's lock
		if err := b.s.live.refresh(attempt); err != nil {
			return err
		}
	}
	q := b.questions()
	err := b.transact(ctx, attempt, q)
	if errors.Is(err, errTaken) {
		// Ids are drawn at random, so the first try does not look them up. Now it must, so that
		// only the draft with the taken id fails.
		q = b.questions()
		q.ids = b.ids()
		err = b.transact(ctx, attempt, q)
	}
	if err != nil {
		return err
	}
	if n := len(b.w.entries); n > 0 {
		b.s.remember(memory{b.w.entries[n-1].Seq, b.w.entries[n-1].Leaf})
	}
	// Only after the commit: a revocation that was not committed must not be in force.
	b.s.seen, b.s.claimsFrom = b.w.head.seq, b.w.claimsFrom
	b.s.live.advance(b.revoked(), true)
	if b.w.prune == (pruning{}) {
		b.s.added = b.s.added.plus(b.w.added())
	} else {
		b.s.added, b.s.pruned = pruning{}, b.now
	}
	b.s.live.forgetExpired(b.at)
	return nil
}

// transact is one transaction. Everything that there is to write was written if it returns nil.
func (b *batch) transact(ctx, attempt context.Context, q questions) error {
	tx, found, err := b.s.ledger.store.begin(attempt, b.s.tenant, q)
	if err != nil {
		return err
	}
	b.facts = found
	b.at, b.distrust = b.s.ledger.config.Clock.Judge(serverClock, found.server, found.asked, fromMicros(found.head.time))
	err = b.sameLife(q)
	if err == nil {
		err = b.catchUp(q)
	}
	if err == nil {
		err = b.decide()
	}
	if err != nil || b.w.empty() {
		tx.rollback()
		if errors.Is(err, ErrDoubt) {
			b.s.ledger.Doubt(ctx, err)
		}
		return err
	}
	b.prune()
	err = tx.commit(attempt, &b.w)
	if errors.Is(err, errUnknown) {
		return b.resolve(ctx, err)
	}
	return err
}

// prune makes the transaction remove state that has ended, if it is due and the time is certain.
func (b *batch) prune() {
	added := b.s.added.plus(b.w.added())
	since := b.now.Sub(b.s.pruned)
	if !added.due() && since >= 0 && since < pruneEvery {
		return
	}
	through, certain := b.s.ledger.forgettable(b.at)
	if b.distrust != nil || !certain {
		return
	}
	b.w.prune, b.w.expired = added.limits(), micros(through)
	b.w.head.pruned = max(b.w.head.pruned, b.w.expired)
}

// revoked is the batch's own revocations.
func (b *batch) revoked() []delegation.Revocation {
	var list []delegation.Revocation
	for _, e := range b.w.entries {
		if e.Revocation != nil {
			list = append(list, *e.Revocation)
		}
	}
	return list
}

// sameLife refuses a ledger that is not the one that this process knows, or that lost an
// acknowledged entry.
func (b *batch) sameLife(q questions) error {
	w := &b.facts.witness
	_, row := b.s.ledger.lifeRow()
	switch {
	case b.s.ledger.recovering:
		return nil
	case w.doubt != "":
		return fmt.Errorf("%w: %s", ErrDoubt, w.doubt)
	case b.s.retired.Load(), w.number != row.Number, w.id != row.ID, !row.physical.same(b.s.ledger.store.below()):
		b.s.ledger.unproven()
		return errRenewed
	}
	return w.confirms(q.known)
}

// catchUp brings the revocation set up to the head that the transaction holds.
func (b *batch) catchUp(q questions) error {
	if b.facts.head.seq < b.s.seen {
		return errWentBack
	}
	if damaged := b.facts.head.damaged; damaged != nil {
		return fmt.Errorf("the head is damaged: %w", damaged)
	}
	b.s.seen = b.facts.head.seq
	return b.s.live.complete(q, b.facts.head.revocation, b.facts.revocations)
}

// resolve finds out the outcome of a commit whose answer was lost. Meanwhile nothing else of this
// tenant is appended here, and the items wait.
func (b *batch) resolve(ctx context.Context, unknown error) error {
	for {
		committed, err := b.s.ledger.store.settle(ctx, b.s.tenant, b.w.evidence())
		switch {
		case err == nil && committed:
			return nil
		case err == nil:
			return fmt.Errorf("not committed: %w", unknown)
		}
		again := time.NewTimer(20 * time.Millisecond)
		select {
		case <-again.C:
		case <-ctx.Done():
			again.Stop()
			return fmt.Errorf("%w: %w: %w", errUnresolved, unknown, err)
		}
	}
}

// questions collects what the items require to be looked up.
func (b *batch) questions() questions {
	q := b.s.live.question(b.now)
	q.known = b.s.memory()
	q.life, _ = b.s.ledger.Incarnation()
	for _, it := range b.items {
		for _, u := range it.uses {
			q.uses = append(q.uses, u.digest())
		}
		for _, d := range it.drafts {
			q.add(d)
		}
	}
	return q
}

func (q *questions) add(d *Draft) {
	for _, u := range d.Uses {
		q.uses = append(q.uses, u.digest())
	}
	if d.Idempotency != nil {
		q.keys = append(q.keys, keyDigest(d.Caller, d.Idempotency.Key))
	}
	if d.Voids > 0 {
		q.voids = append(q.voids, d.Voids)
	}
}

// ids are those of the drafts.
func (b *batch) ids() (list []string) {
	for _, it := range b.items {
		for _, d := range it.drafts {
			if d.ID != "" {
				list = append(list, d.ID)
			}
		}
	}
	return list
}

// decide turns items into writes and outcomes, in order.
func (b *batch) decide() error {
	config := b.s.ledger.config
	b.outcomes = make([]outcome, len(b.items))
	mark := make([]byte, 16)
	if _, err := io.ReadFull(config.Rand, mark); err != nil {
		return fmt.Errorf("draw a batch mark: %w", err)
	}
	// Time never runs backwards within a tenant, whichever instance's clock it comes from.
	b.w = writes{tenant: b.s.tenant, batch: mark, head: b.facts.head, claimsFrom: b.s.claimsFrom}
	b.w.head.time = max(micros(b.at), b.facts.head.time)
	b.w.head.tree.Hashes = slices.Clone(b.w.head.tree.Hashes)
	for i, it := range b.items {
		if b.distrust != nil && it.issues() {
			b.outcomes[i].err = unavailable(b.distrust)
			continue
		}
		b.checked = nil
		replayed := b.spent(it.uses)
		b.spend(it.uses)
		if len(it.drafts) == 0 && replayed != nil {
			b.outcomes[i].err = replayed
		}
		for _, d := range it.drafts {
			b.outcomes[i].results = append(b.outcomes[i].results, b.record(d, replayed))
		}
	}
	return nil
}

// spent returns the refusal for the first of the single uses that was used before, or whose row may
// have been pruned.
func (b *batch) spent(uses []SingleUse) *delegation.Error {
	for _, u := range uses {
		if b.predates(u) {
			return predates(u.Reason)
		}
		if b.facts.used[u.digest()] || b.forgotten(u.Until) {
			return replay(u.Reason)
		}
	}
	return nil
}

// predates reports whether the credential may have been spent in a ledger that was given up, whose
// rows are lost. Times of issue are whole seconds, and nothing is issued in the last ones before
// since.
func (b *batch) predates(u SingleUse) bool {
	since := b.facts.witness.since
	return since > 0 && u.Made.Before(fromMicros(since).Truncate(time.Second))
}

// forgotten reports whether rows about something that ends then may have been pruned.
func (b *batch) forgotten(ends time.Time) bool { return micros(ends) <= b.facts.head.pruned }

// spend records those of the single uses that are new.
func (b *batch) spend(uses []SingleUse) {
	for _, u := range uses {
		name := u.digest()
		if !b.facts.used[name] {
			b.facts.used[name] = true
			b.w.uses = append(b.w.uses, useRow{digest: name, until: micros(u.Until)})
		}
	}
}

func replay(reason delegation.Reason) *delegation.Error {
	switch reason {
	case "", delegation.AssertionReplayed:
		return delegation.Refuse(delegation.AssertionReplayed, "", "the credential was used before; present a new one")
	case delegation.TokenSpent:
		return delegation.Refuse(reason, "subject_token", "must not have been exchanged before, because it allows one exchange; obtain a new token")
	}
	return delegation.Refuse(reason, "", "the credential may be used once and was used before; present a new one")
}

func predates(reason delegation.Reason) *delegation.Error {
	if reason == delegation.TokenSpent {
		return delegation.Refuse(reason, "subject_token", "must be newer than the ledger's recovery, because it allows one exchange and may have been exchanged; obtain a new token")
	}
	return delegation.Refuse(cmp.Or(reason, delegation.AssertionReplayed), "", "the credential is older than the ledger's recovery and may have been used; present a new one")
}

var (
	errRevoked = delegation.Refuse(delegation.TokenRevoked, "subject_token",
		"must have no revoked token, key or principal in its chain; obtain a new token")
	errAhead = delegation.Refuse(delegation.TokenRevoked, "subject_token",
		"must descend from grants that the ledger holds, not from a ledger that was given up; obtain a new token")
	errConflict = delegation.Refuse(delegation.IdempotencyConflict, "idempotency_key",
		"must not have been used for another request; choose a new key")
	errEnded = delegation.Refuse(delegation.SubjectTokenInvalid, "subject_token",
		"must expire after the time up to which revocations may be forgotten; present a token that expires later")
	errGone = delegation.Refuse(delegation.GrantGone, "idempotency_key",
		"must name a grant that has not expired and was not voided; choose a new key")
)

// record decides one draft.
func (b *batch) record(d *Draft, replayed *delegation.Error) Result {
	if d.ID != "" && b.facts.ids[d.ID] {
		return Result{Err: malformed(fmt.Errorf("entry %q was recorded before", d.ID))}
	}
	if d.Voids > 0 && !b.facts.grants[d.Voids] {
		return Result{Err: malformed(fmt.Errorf("number %d is no grant of this tenant", d.Voids))}
	}
	if replayed != nil {
		return b.refuse(d, replayed)
	}
	switch d.Kind {
	case KindCheck:
		return b.check(d)
	case KindGrant:
	default:
		return b.append(d.entry(b.s.tenant), d, nil)
	}
	if d.Idempotency != nil {
		if stored, taken := b.facts.keys[keyDigest(d.Caller, d.Idempotency.Key)]; taken {
			return b.repeat(d, stored)
		}
		if b.forgotten(d.Idempotency.Until) { // the grant of the key may have been pruned
			return b.refuse(d, errGone)
		}
	}
	if b.aboveHead(d.Lineage.Hops) {
		return b.refuse(d, errAhead)
	}
	set := b.s.live.set.Load() // one set for both checks, the horizon last: it rises before anything is forgotten
	if hit(set, d.lineage()) {
		return b.refuse(d, errRevoked)
	}
	if set.Forgotten(d.Expiry) {
		return b.refuse(d, errEnded)
	}
	// After the retries, which must not find what their first try spent.
	if spent := b.spent(d.Uses); spent != nil {
		return b.refuse(d, spent)
	}
	r := b.append(d.entry(b.s.tenant), d, nil)
	if r.Err == nil {
		b.spend(d.Uses)
	}
	return r
}

// check records what a grant from the same draft would get. It spends nothing, except towards the
// other checks of its call.
func (b *batch) check(d *Draft) Result {
	if spent := b.spent(d.Uses); spent != nil {
		return b.refuse(d, spent)
	}
	for _, u := range d.Uses {
		name := u.digest()
		if b.checked[name] {
			return b.refuse(d, replay(u.Reason))
		}
		if b.checked == nil {
			b.checked = make(map[digest]bool)
		}
		b.checked[name] = true
	}
	return b.append(d.entry(b.s.tenant), d, nil)
}

// repeat answers a retry with the grant that its key names. The retry's lineage counts as well as
// the stored grant's: the first has the caller of today, the second has the hop of the grant
// itself.
func (b *batch) repeat(d *Draft, stored storedKey) Result {
	if stored.fingerprint != d.Idempotency.Fingerprint {
		return b.refuse(d, errConflict)
	}
	if stored.claims == nil {
		return b.refuse(d, errGone)
	}
	claims, err := delegation.DecodeClaims(stored.claims)
	if err != nil {
		return Result{Err: malformed(fmt.Errorf("claims of entry %d: %w", stored.seq, err))}
	}
	granted := claims.Lineage()
	granted.Caller, granted.Keys = d.Caller, d.lineage().Keys
	set := b.s.live.set.Load() // as in record
	if hit(set, granted) || hit(set, d.lineage()) {
		return b.refuse(d, errRevoked)
	}
	if set.Forgotten(time.Unix(claims.ExpiresAt, 0)) {
		return b.refuse(d, errGone)
	}
	return Result{Receipt: Receipt{Seq: stored.seq, Time: stored.time, Claims: slices.Clone(stored.claims), Existing: true}}
}

// aboveHead reports whether a hop has a number that the ledger has not given yet, neither in a
// commit nor in this batch. A parent is recorded before its child, so such a hop belongs to a
// ledger that this one forked from, or to entries that this one lost.
func (b *batch) aboveHead(hops []delegation.Hop) bool {
	return slices.ContainsFunc(hops, func(h delegation.Hop) bool { return h.Seq > b.w.head.seq })
}

func hit(set *delegation.RevocationSet, l delegation.Lineage) bool {
	_, hit := set.Hit(l)
	return hit
}

// refuse records the refusal in place of the draft.
func (b *batch) refuse(d *Draft, refusal *delegation.Error) Result {
	e := d.entry(b.s.tenant)
	e.refuse(refusal)
	return b.append(e, d, refusal)
}

// append gives the entry the next number. If its claims cannot be made, the number stays free and
// nothing of the entry is written.
func (b *batch) append(e *Entry, d *Draft, refusal *delegation.Error) Result {
	e.Seq = b.w.head.seq + 1
	e.Time = fromMicros(b.w.head.time)
	if e.Revocation != nil {
		e.Revocation.Seq, e.Revocation.Prev, e.Revocation.At = e.Seq, b.w.head.revocation, e.Time
		e.Revocation.Until = b.until(*e.Revocation)
	}
	if e.Kind == KindGrant {
		var err error
		if e.Claims, err = makeClaims(d, e.Seq); err != nil {
			return Result{Err: malformed(fmt.Errorf("claims: %w", err))}
		}
	}
	if err := e.seal(b.s.ledger.config.Rand); err != nil {
		return Result{Err: malformed(err)}
	}
	b.w.head.seq = e.Seq
	b.w.entries = append(b.w.entries, e)
	b.growTree(e.Leaf)
	if e.ID != "" {
		b.facts.ids[e.ID] = true
	}
	switch {
	case e.Revocation != nil:
		b.w.head.revocation = e.Seq
	case e.Kind == KindVoid:
		b.void(e.Voids)
	case e.Kind == KindGrant:
		b.grant(e, d)
	}
	r := Result{Receipt: Receipt{Seq: e.Seq, Time: e.Time, Claims: e.Claims, Revocation: e.Revocation}}
	if refusal != nil {
		r.Err = refusal
	}
	return r
}

// until returns the end of a revocation that ends: after everything that it can hit, whatever the
// current limits are and whichever clock the caller used.
func (b *batch) until(v delegation.Revocation) time.Time {
	if v.Until.IsZero() {
		return v.Until
	}
	ends := max(micros(v.Until), b.w.head.longest+margin.Microseconds())
	switch v.Target.Kind {
	case delegation.BanToken, delegation.BanChain:
	default: // hits root tokens too, which may not have been presented yet
		ends = max(ends, micros(v.At.Add(LongestRoot+maxSkew+margin)))
	}
	return fromMicros(ends)
}

// growTree adds the entry's leaf to the tree.
func (b *batch) growTree(leaf tlog.Hash) {
	b.w.head.tree.Add(leaf, func(n audit.Node) {
		if kept(n) {
			b.w.nodes = append(b.w.nodes, n)
		}
	})
}

// grant stores what a retry will need.
func (b *batch) grant(e *Entry, d *Draft) {
	b.w.head.longest = max(b.w.head.longest, micros(e.Expiry))
	b.w.claims = append(b.w.claims, claimsRow{seq: e.Seq, until: micros(e.Expiry), value: e.Claims})
	if d.Idempotency == nil {
		return
	}
	name := keyDigest(d.Caller, d.Idempotency.Key)
	b.facts.keys[name] = storedKey{fingerprint: d.Idempotency.Fingerprint, seq: e.Seq, time: e.Time, claims: e.Claims}
	b.w.keys = append(b.w.keys, keyRow{
		digest: name, fingerprint: d.Idempotency.Fingerprint, seq: e.Seq, until: micros(d.Idempotency.Until),
	})
}

// void makes sure that no retry gets the grant again, not even later in this batch.
func (b *batch) void(seq uint64) {
	b.w.voids = append(b.w.voids, seq)
	for name, stored := range b.facts.keys {
		if stored.seq == seq {
			stored.claims = nil
			b.facts.keys[name] = stored
		}
	}
}

// makeClaims recovers from a panic of the caller's function, which would otherwise fail the drafts
// of other callers too.
func makeClaims(d *Draft, seq uint64) (claims []byte, err error) {
	defer func() {
		if p := recover(); p != nil {
			err = panics.Of(p)
		}
	}()
	claims, err = d.Claims(seq)
	switch {
	case err != nil:
		return nil, err
	case len(claims) == 0 || len(claims) > maxClaims:
		return nil, fmt.Errorf("%d bytes are not between 1 and %d", len(claims), maxClaims)
	}
	return claims, nil
}
