package ledger

import (
	"context"
	"errors"
	"fmt"
	"math/bits"
	"strings"
	"time"

	"deputy.example/deputy/client/audit"
	"deputy.example/deputy/client/delegation"
)

// Erasure is what to erase.
type Erasure struct {
	Principal delegation.Principal  // whose fields to erase. Required
	DryRun    bool                  // count, and change nothing
	Progress  func(done, of uint64) // called from time to time with the number of entries read; may be nil
}

// Erased is what an erasure did, or would do.
type Erased struct {
	Entries int // entries that lost a field
	Fields  int // fields that they lost
	// Deferred counts the entries that keep a field for now, because a live grant is signed again
	// from it or a live revocation needs it for its target. Erase again after Until, when no entry
	// needs it any more.
	Deferred int
	Until    time.Time
	// Kept counts the revocations that target the principal and never end.
	Kept int
}

// Erase removes a principal from the tenant's ledger. It removes the personal fields, values and
// salts, of every entry on behalf of the principal. In all other entries it removes the fields that
// name or describe the principal. Digests, leaves and proofs stay valid; without the salts, the
// digests reveal nothing.
//
// It goes through all entries block by block. Each block is a transaction that does not lock the
// tenant's head, and that also removes the block from the search index. Erase may be interrupted
// and repeated at any time; a repetition finds only what is left.
//
// The principal's console sessions end. What is recorded during or after the call is not erased.
func (l *Ledger) Erase(ctx context.Context, tenant string, r Erasure) (done Erased, err error) {
	if _, err := delegation.ParsePrincipal(string(r.Principal)); err != nil {
		return Erased{}, malformed(err)
	}
	size, _, err := l.Tree(ctx, tenant)
	if err != nil {
		return Erased{}, err
	}
	if !r.DryRun {
		if err := l.endSessions(ctx, tenant, r.Principal); err != nil {
			return Erased{}, err
		}
	}
	through, err := l.ended(ctx)
	if err != nil {
		return Erased{}, unavailable(err)
	}
	e := eraser{ledger: l, tenant: tenant, Erasure: r, through: through}
	for block := uint64(0); firstOf(block) <= size; block++ {
		if err := e.block(ctx, block); err != nil {
			return e.done, unavailable(err)
		}
		if r.Progress != nil {
			r.Progress(min(size, firstOf(block+1)-1), size)
		}
	}
	return e.done, nil
}

type eraser struct {
	ledger *Ledger
	tenant string
	Erasure
	through time.Time // what ended by then may be erased
	done    Erased
}

// about selects the entries of a block that may mention a principal. Claims are bytes here, and
// assess reads them. No index supports the statement, because an erasure must not depend on one.
// replace finds a text within another in both dialects.
const about = `e.tenant = $1 AND e.seq >= $2 AND e.seq < $3 AND (e.subject = $4 OR e.actor = $4 OR e.caller = $4
	OR e.target_principal = $4 OR e.target_subject = $4 OR replace(e.actors, $4, '') <> e.actors
	OR replace(e.detail, $4, '') <> e.detail OR replace(e.details, $4, '') <> e.details OR c.value IS NOT NULL) ORDER BY e.seq`

const (
	sqlErase = `UPDATE entries SET subject = $3, actor = $4, caller = $5, actors = $6, peer = $7, detail = $8, details = $9,
		actor_proof = $10, target_principal = $11, target_subject = $12, salts = $13 WHERE tenant = $1 AND seq = $2 AND salts = $14`
	sqlEraseClaims = `DELETE FROM claims WHERE tenant = $1 AND seq = $2`
	// sqlEraseSessions needs no index: a tenant has one session for each person in its console.
	sqlEraseSessions = `DELETE FROM console_sessions WHERE tenant = $1 AND principal = $2`
)

var errChanged = errors.New("another process erased from the same entry; try again")

func (e *eraser) block(ctx context.Context, block uint64) error {
	ctx, cancel := context.WithTimeout(ctx, e.ledger.config.Timeout)
	defer cancel()
	entries, err := scanEntries(ctx, e.ledger.store, about, e.tenant, int64(firstOf(block)), int64(firstOf(block+1)), string(e.Principal))
	if err != nil {
		return err
	}
	var redactions []redaction
	for _, entry := range entries {
		if lost := e.assess(entry); lost != 0 {
			redactions = append(redactions, redaction{entry, lost})
		}
	}
	if len(redactions) == 0 || e.DryRun {
		return nil
	}
	if err := e.ledger.redact(ctx, e.tenant, block, redactions, e.through); err != nil {
		return err
	}
	return e.ledger.reindex(ctx, e.tenant, block)
}

// assess counts what the entry loses and what it must keep.
func (e *eraser) assess(entry *Entry) fields {
	named := entry.names(e.Principal)
	needed, until := entry.needs(e.through)
	switch {
	case named&needed == 0:
	case until.IsZero():
		e.done.Kept++
	default:
		e.done.Deferred++
		if until = until.Add(margin); until.After(e.done.Until) {
			e.done.Until = until
		}
	}
	lost := named &^ needed
	if lost != 0 {
		e.done.Entries++
		e.done.Fields += bits.OnesCount16(uint16(lost))
	}
	return lost
}

// fields is a set of personal fields.
type fields uint16

func fieldSet(list ...audit.Field) (set fields) {
	for _, f := range list {
		set |= 1 << f
	}
	return set
}

const everyField fields = 1<<audit.Fields - 1

var (
	targets     = fieldSet(audit.FieldTarget, audit.FieldTargetSubject)
	ofSubject   = fieldSet(audit.FieldSubject, audit.FieldPeer, audit.FieldDetail, audit.FieldDetails, audit.FieldClaims, audit.FieldActorProof)
	ofActor     = fieldSet(audit.FieldActor, audit.FieldActorProof)
	ofActors    = fieldSet(audit.FieldActors, audit.FieldClaims) // claims name all actors
	ofCaller    = fieldSet(audit.FieldCaller, audit.FieldPeer)
	ofTarget    = fieldSet(audit.FieldTarget, audit.FieldDetail)
	ofTargetFor = fieldSet(audit.FieldTargetSubject, audit.FieldDetail)
)

// names returns which of the remaining fields name or describe the principal.
func (e *Entry) names(p delegation.Principal) (set fields) {
	within := func(text string) bool { return strings.Contains(text, string(p)) }
	var target delegation.Target
	if e.Revocation != nil {
		target = e.Revocation.Target
	}
	_, aimed := splitTarget(target)
	for _, rule := range []struct {
		holds bool
		set   fields
	}{
		{e.Subject == p, ofSubject},
		{e.Actor == p, ofActor},
		{e.Actors.Contains(p), ofActors},
		{e.Caller == p, ofCaller},
		{aimed == string(p), ofTarget},
		{target.Subject == p, ofTargetFor},
		{within(e.Detail), fieldSet(audit.FieldDetail)},
		{within(joinDetails(e.Details)), fieldSet(audit.FieldDetails, audit.FieldClaims)}, // claims repeat them
		{within(string(e.Claims)), fieldSet(audit.FieldClaims)},                           // for instance in may_act
	} {
		if rule.holds {
			set |= rule.set
		}
	}
	return set & fields(e.salts.mask)
}

// needs returns which fields have to stay, and until when; a zero time means always. A live grant
// is signed again from its fields, and a live revocation without its target would revive what it
// hit.
func (e *Entry) needs(now time.Time) (set fields, until time.Time) {
	switch {
	case e.Kind == KindGrant && e.Expiry.After(now):
		return everyField, e.Expiry
	case e.Revocation != nil && (e.Revocation.Until.IsZero() || e.Revocation.Until.After(now)):
		return targets, e.Revocation.Until
	}
	return 0, time.Time{}
}

// redaction is an entry with the fields that it loses.
type redaction struct {
	*Entry
	fields fields
}

// redact erases fields of entries of one block, together with the block's part of the search index.
// Searches read the block itself until it is indexed again.
func (l *Ledger) redact(ctx context.Context, tenant string, block uint64, redactions []redaction, through time.Time) error {
	return l.store.change(ctx, func(db changer) error {
		if err := l.unindex(ctx, db, tenant, block); err != nil {
			return err
		}
		if err := redactAll(ctx, db, tenant, redactions); err != nil {
			return err
		}
		return raise(ctx, db, tenant, through)
	})
}

func redactAll(ctx context.Context, db changer, tenant string, redactions []redaction) error {
	for _, e := range redactions {
		before := e.salts.bytes()
		e.clear(e.fields)
		r, err := e.record()
		if err != nil {
			return err
		}
		n, err := db.change(ctx, sqlErase, tenant, r.seq, r.subject, r.actor, r.caller, r.actors, r.peer, r.detail,
			r.details, r.actorProof, r.targetPrincipal, r.targetSubject, r.salts, before)
		if err == nil && n != 1 {
			err = errChanged
		}
		if err == nil && e.fields&fieldSet(audit.FieldClaims) != 0 {
			_, err = db.change(ctx, sqlEraseClaims, tenant, r.seq)
		}
		if err != nil {
			return fmt.Errorf("entry %d: %w", e.Seq, err)
		}
	}
	return nil
}

// clear empties fields and removes their salts.
func (e *Entry) clear(set fields) {
	e.salts = e.salts.without(set)
	has := func(f audit.Field) bool { return set&(1<<f) != 0 }
	for f, value := range map[audit.Field]*string{
		audit.FieldSubject: (*string)(&e.Subject), audit.FieldActor: (*string)(&e.Actor), audit.FieldCaller: (*string)(&e.Caller),
		audit.FieldPeer: &e.Peer, audit.FieldDetail: &e.Detail, audit.FieldActorProof: &e.ActorProof,
	} {
		if has(f) {
			*value = ""
		}
	}
	if has(audit.FieldActors) {
		e.Actors = nil
	}
	if has(audit.FieldDetails) {
		e.Details = nil
	}
	if has(audit.FieldClaims) {
		e.Claims = nil
	}
	if e.Revocation != nil && has(audit.FieldTarget) {
		e.Revocation.Target.ID, _ = splitTarget(e.Revocation.Target)
	}
	if e.Revocation != nil && has(audit.FieldTargetSubject) {
		e.Revocation.Target.Subject = ""
	}
}

// without is the values of all other fields.
func (s *sealed) without(set fields) (left sealed) {
	for f := range audit.Fields {
		if s.has(f) && set&(1<<f) == 0 {
			left.set(f, s.sum[f])
		}
	}
	return left
}
