package ledger

import (
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"
	"unicode/utf8"

	"deputy.example/deputy/client/delegation"
)

// Kind is what an entry records. The canonical form also reserves "approval".
type Kind string

const (
	KindGrant      Kind = "grant"      // a token may be signed
	KindRefusal    Kind = "refusal"    // an authenticated caller was refused
	KindCheck      Kind = "check"      // a question, answered without issuing a token
	KindVoid       Kind = "void"       // withdraws a grant whose token was never handed out
	KindRevocation Kind = "revocation" // bans or cuts off a target
	KindAdmin      Kind = "admin"      // an operator's act on the ledger itself
)

// Outcome is how the request of an entry ended.
type Outcome string

const (
	Granted Outcome = "granted"
	Refused Outcome = "refused"
	Done    Outcome = "done" // voids and revocations, which are neither
)

// Draft is an entry to be recorded. The ledger adds number and time, and may turn a grant or a
// check into a refusal. It does not change a draft. It may still read one after Append has returned
// unavailable, so another try needs a new draft.
type Draft struct {
	Kind    Kind
	ID      string // jti; mandatory for grants, never used twice in a tenant
	Parent  string // jti of the parent grant; "" if the parent is a root token
	Txn     string // the chain's id
	Root    string // digest of the root token
	Subject delegation.Principal
	Actor   delegation.Principal // the requested actor
	Caller  delegation.Principal // the authenticated caller; mandatory
	Actors  delegation.Chain     // all actors including Actor, oldest first

	HolderKey  string  // thumbprint of the key that the grant is bound to, or ""
	Outcome    Outcome // mandatory for checks; otherwise it follows from Kind
	Reason     delegation.Reason
	Detail     string // for people; cut at 4 KiB, without characters that a database refuses
	Scopes     delegation.Scopes
	Audiences  []string
	Details    []delegation.Detail
	Expiry     time.Time
	ModelID    string // OpenFGA model that decided
	Peer       string
	TraceID    string
	ActorProof string // how the actor was proven

	// Lineage supplies Hops, RootIssuedAt and Keys of a grant. Everything else that a revocation
	// can name comes from the fields above, so that what is checked is what is recorded.
	Lineage delegation.Lineage

	// Claims makes the canonical claims of a grant once its number is known. It runs inside the
	// transaction, so it must be fast and must not depend on anything else.
	Claims func(seq uint64) ([]byte, error)

	Idempotency *Idempotency // grants only
	Uses        []SingleUse  // grants: what the grant spends (a refusal spends nothing); checks: what must be unspent

	Voids uint64 // number of the grant that a void withdraws
	// Revocation has Target and Until; the ledger fills in the rest. A zero Until means that it
	// never ends. The ledger raises any other value to the end of everything that the target can
	// hit.
	Revocation *delegation.Revocation
}

// Idempotency names a grant by a key that its caller chose.
type Idempotency struct {
	Key         string
	Fingerprint [32]byte  // of the planned input: the same key with another fingerprint is refused
	Until       time.Time // the key may be forgotten after this; equal in every retry
}

// SingleUse names a credential that may be used once in a tenant.
type SingleUse struct {
	Issuer string
	Key    string    // thumbprint or id of the key that signed it
	ID     string    // its jti
	Made   time.Time // the earliest time of issue; zero: unknown, which counts as old
	Until  time.Time
	Reason delegation.Reason // of the refusal; AssertionReplayed if empty
}

// Receipt is where a draft was recorded.
type Receipt struct {
	Seq      uint64
	Time     time.Time
	Claims   []byte // of a grant
	Existing bool   // the idempotency key named this grant, and nothing was appended

	Revocation *delegation.Revocation // of a revocation: as recorded
}

// Entry is one recorded entry. Personal fields are empty after an erasure; Erased names them.
type Entry struct {
	Tenant string
	Seq    uint64
	Kind   Kind
	Time   time.Time

	ID, Parent, Txn, Root string

	HolderKey  string
	Outcome    Outcome
	Reason     delegation.Reason
	Scopes     delegation.Scopes
	Audiences  []string
	Expiry     time.Time
	ModelID    string
	TraceID    string
	Voids      uint64
	Revocation *delegation.Revocation // of a revocation, otherwise nil

	Subject, Actor, Caller delegation.Principal
	Actors                 delegation.Chain
	Peer                   string
	Detail                 string
	Details                []delegation.Detail
	ActorProof             string
	Claims                 []byte // nil once the grant has expired or was voided

	Leaf [32]byte // RFC 6962 leaf hash of Canonical

	digests, salts sealed
}

const (
	maxText   = 8 << 10 // of any one text
	maxDetail = 4 << 10
	maxClaims = 64 << 10
	maxUses   = 16
)

// check refuses a draft that could not be stored whole. It must find everything that a database
// might refuse, because a failed statement fails the whole batch.
func (d *Draft) check(tenant string) error {
	if tenant == "" || !storable(tenant) {
		return errTenant
	}
	if err := d.checkKind(); err != nil {
		return err
	}
	if d.Caller == "" {
		return errors.New("caller is empty: only what an authenticated caller did is recorded")
	}
	if d.Reason != "" && !d.Reason.Known() {
		return fmt.Errorf("reason %q is not registered", d.Reason)
	}
	if len(d.Actors) > 0 && d.Actors.Current() != d.Actor {
		return errors.New("actor is not the last of actors")
	}
	texts := []string{d.ID, d.Parent, d.Txn, d.Root, string(d.Subject), string(d.Actor), string(d.Caller),
		d.HolderKey, d.ModelID, d.Peer, d.TraceID, d.ActorProof, joinChain(d.Actors), d.Scopes.String()}
	texts = append(texts, d.Audiences...)
	if d.Revocation != nil {
		texts = append(texts, d.Revocation.Target.ID, string(d.Revocation.Target.Subject))
	}
	for _, text := range texts {
		if !storable(text) {
			return errors.New("a field is not UTF-8, holds a NUL or is longer than 8 KiB")
		}
	}
	for _, detail := range d.Details {
		if detail.String() == "" || !storable(detail.String()) {
			return errors.New("an authorization detail is empty or cannot be stored")
		}
	}
	return checkUses(d.Uses)
}

func (d *Draft) checkKind() error {
	wrong := func(what string) error { return fmt.Errorf("draft of a %s: %s", d.Kind, what) }
	outcome := map[Kind]Outcome{KindGrant: Granted, KindRefusal: Refused, KindVoid: Done, KindRevocation: Done, KindAdmin: Done}
	want, fixed := outcome[d.Kind]
	switch {
	case !fixed && d.Kind != KindCheck:
		return fmt.Errorf("kind %q is unknown", d.Kind)
	case fixed && d.Outcome != "" && d.Outcome != want, !fixed && d.Outcome != Granted && d.Outcome != Refused:
		return wrong("its outcome cannot be " + string(d.Outcome))
	case d.Kind != KindGrant && (d.Claims != nil || d.Idempotency != nil):
		return wrong("only grants have claims and idempotency keys")
	case d.Kind != KindGrant && d.Kind != KindCheck && len(d.Uses) > 0:
		return wrong("only grants and checks have uses of their own")
	case (d.Kind == KindVoid) != (d.Voids > 0):
		return wrong("voids, and nothing else, name the number that they void")
	case (d.Kind == KindRevocation) != (d.Revocation != nil):
		return wrong("revocations, and nothing else, have a Revocation")
	case (d.Outcome == Refused || d.Kind == KindRefusal) && d.Reason == "":
		return wrong("a refusal needs a reason")
	}
	switch d.Kind {
	case KindGrant:
		return d.checkGrant()
	case KindRevocation:
		return checkTarget(*d.Revocation)
	}
	return nil
}

func (d *Draft) checkGrant() error {
	hops := d.Lineage.Hops
	switch {
	case d.ID == "" || d.Txn == "" || d.Root == "" || d.Subject == "" || len(d.Actors) == 0 || d.Claims == nil || d.Expiry.IsZero():
		return errors.New("draft of a grant: ID, Txn, Root, Subject, Actors, Claims and Expiry must all be there")
	case d.Parent == "" && len(hops) > 0, d.Parent != "" && (len(hops) == 0 || hops[len(hops)-1].ID != d.Parent):
		return errors.New("draft of a grant: Lineage.Hops must end with Parent")
	case d.Idempotency == nil:
		return nil
	case d.Idempotency.Key == "" || !storable(d.Idempotency.Key) || d.Idempotency.Until.IsZero():
		return errors.New("draft of a grant: an idempotency key needs content and an end")
	}
	return nil
}

// checkTarget also requires that a target which never expires by itself has no end.
func checkTarget(r delegation.Revocation) error {
	kind := r.Target.Kind
	switch kind {
	case delegation.BanKey, delegation.BanSuspend, delegation.Resume:
		if !r.Until.IsZero() {
			return fmt.Errorf("a revocation of kind %s never ends by itself", kind)
		}
	default:
		if !slices.Contains(targetKinds, kind) {
			return fmt.Errorf("revocation target kind %q is unknown", kind)
		}
	}
	if (r.Target.ID == "") != (kind == delegation.CutTenant) || (r.Target.Subject == "") != (kind != delegation.CutAgentSubject) {
		return fmt.Errorf("the target of a revocation of kind %s is incomplete or has parts that the kind does not take", kind)
	}
	return nil
}

func checkUses(uses []SingleUse) error {
	if len(uses) > maxUses {
		return fmt.Errorf("%d single uses are more than %d", len(uses), maxUses)
	}
	for _, u := range uses {
		if u.Issuer == "" || u.ID == "" || u.Until.IsZero() || u.Reason != "" && !u.Reason.Known() {
			return errors.New("a single use needs issuer, id and an end, and a registered reason if it gives one")
		}
		if !storable(u.Issuer) || !storable(u.Key) || !storable(u.ID) {
			return errors.New("what names a single use is not UTF-8, holds a NUL or is longer than 8 KiB")
		}
	}
	return nil
}

func storable(s string) bool {
	return len(s) <= maxText && utf8.ValidString(s) && strings.IndexByte(s, 0) < 0
}

// cleanDetail never fails: a refusal must be recordable whatever caused it.
func cleanDetail(s string) string {
	if len(s) > maxDetail {
		s = s[:maxDetail]
	}
	return strings.ReplaceAll(strings.ToValidUTF8(s, "�"), "\x00", "�")
}

// lineage is what revocations are matched against.
func (d *Draft) lineage() delegation.Lineage {
	l := d.Lineage
	l.Root, l.Txn, l.Subject, l.Caller, l.Actors = d.Root, d.Txn, d.Subject, d.Caller, d.Actors
	if d.HolderKey != "" {
		l.Keys = append(slices.Clone(l.Keys), d.HolderKey)
	}
	return l
}

// entry is the draft as it would be recorded, without number, time, claims and seal.
func (d *Draft) entry(tenant string) *Entry {
	e := &Entry{
		Tenant: tenant, Kind: d.Kind, ID: d.ID, Parent: d.Parent, Txn: d.Txn, Root: d.Root,
		HolderKey: d.HolderKey, Outcome: d.Outcome, Reason: d.Reason, Scopes: d.Scopes, Audiences: d.Audiences,
		Expiry: floor(d.Expiry), ModelID: d.ModelID, TraceID: d.TraceID, Voids: d.Voids,
		Subject: d.Subject, Actor: d.Actor, Caller: d.Caller, Actors: d.Actors, Peer: d.Peer,
		Detail: cleanDetail(d.Detail), Details: d.Details, ActorProof: d.ActorProof,
	}
	if d.Revocation != nil {
		e.Revocation = &delegation.Revocation{Target: d.Revocation.Target, Until: floor(d.Revocation.Until)}
	}
	switch d.Kind {
	case KindGrant:
		e.Outcome = Granted
	case KindRefusal:
		e.Outcome = Refused
	case KindVoid, KindRevocation, KindAdmin:
		e.Outcome = Done
	}
	return e
}

// refuse turns the entry into the refusal that the transaction decided.
func (e *Entry) refuse(r *delegation.Error) {
	e.Kind, e.Outcome, e.Reason, e.Detail = KindRefusal, Refused, r.Reason, cleanDetail(r.Description)
	e.Voids, e.Revocation = 0, nil
}

// floor is the resolution of the ledger: whole microseconds of UTC.
func floor(t time.Time) time.Time {
	if t.IsZero() {
		return t
	}
	return t.UTC().Truncate(time.Microsecond)
}
