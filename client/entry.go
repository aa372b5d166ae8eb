package client

import (
	"fmt"
	"slices"
	"strings"
	"time"

	"golang.org/x/mod/sumdb/tlog"

	"deputy.example/deputy/client/delegation"
	deputyv1 "deputy.example/deputy/gen/deputy/v1"
)

// EntryKind is what an entry records. A kind that this version of the SDK does not define is its
// number on the wire, in digits.
type EntryKind string

// The kinds of entries.
const (
	KindGrant      EntryKind = "grant"      // a token may be signed
	KindRefusal    EntryKind = "refusal"    // an authenticated caller was refused
	KindCheck      EntryKind = "check"      // a decision that issued nothing (ValidateOnly)
	KindVoid       EntryKind = "void"       // revokes a grant whose token was never issued
	KindRevocation EntryKind = "revocation" // bans or cuts off a target
	KindAdmin      EntryKind = "admin"      // an operator's change of the ledger itself
)

// EntryOutcome is how the request that an entry records ended. An outcome that this version of the
// SDK does not define is its number on the wire, in digits.
type EntryOutcome string

// The outcomes of requests.
const (
	OutcomeGranted EntryOutcome = "granted"
	OutcomeRefused EntryOutcome = "refused"
	OutcomeDone    EntryOutcome = "done" // voids and revocations, which are neither
)

// GrantState is the state of a grant at the time of the answer, or "" for an entry that is not a
// grant. A state that this version of the SDK does not define is its number on the wire, in digits.
type GrantState string

// The states of a grant.
const (
	StateLive    GrantState = "live"
	StateExpired GrantState = "expired"
	StateRevoked GrantState = "revoked" // a revocation hit its chain while it lived
	StateVoided  GrantState = "voided"
)

// Entry is one entry of a tenant's ledger. Personal fields that were erased are empty, and Erased
// names them.
type Entry struct {
	Seq     uint64 // number in the ledger
	Kind    EntryKind
	Time    time.Time // of the record
	Outcome EntryOutcome
	Reason  delegation.Reason // of a refusal
	State   GrantState        // of a grant
	// RevokedBy is the number of the revocation that hit a revoked grant, or 0 where it is unknown.
	RevokedBy uint64

	JTI    string // of a grant
	Parent string // jti of the parent grant, or "" where the parent is a root token
	Txn    string // the chain's id
	Root   string // digest that identifies the root token

	Subject delegation.Principal
	Actor   delegation.Principal // the requested actor
	Caller  delegation.Principal // the principal that authenticated
	Actors  delegation.Chain     // oldest first

	Scope    delegation.Scopes
	Audience []string
	Details  []delegation.Detail
	Expiry   time.Time // of a grant
	Key      string    // RFC 7638 thumbprint that the grant is bound to, or ""

	ActorProof string // how the actor was proven
	Detail     string // text for readers: what was missing, or the reason of a revocation
	Peer       string // network address of the caller
	ModelID    string // the OpenFGA model of the decision
	TraceID    string

	Voids      uint64                 // number of the grant that a void revokes
	Revocation *delegation.Revocation // of a revocation, otherwise nil; its target may be erased

	Erased []string  // names of personal fields that were erased
	Leaf   tlog.Hash // in the log's tree (RFC 6962 section 2.1); zero where it was not sent
	Record string    // the entry as a line of an export (docs/ledger.md), where requested
}

// word is the SDK's name for a value of an API enum: the wire name without the prefix, in lower
// case.
func word(value fmt.Stringer, prefix string) string {
	w := strings.ToLower(strings.TrimPrefix(value.String(), prefix))
	if w == "unspecified" {
		return ""
	}
	return w
}

// readEntry refuses every value that an Entry cannot hold.
func readEntry(m *deputyv1.Entry) (*Entry, error) {
	e := &Entry{
		Seq: m.GetEntry(), Time: moment(m.GetTime()), Reason: delegation.Reason(m.GetReason()),
		Kind:    EntryKind(word(m.GetKind(), "ENTRY_KIND_")),
		Outcome: EntryOutcome(word(m.GetOutcome(), "ENTRY_OUTCOME_")),
		State:   GrantState(word(m.GetState(), "GRANT_STATE_")), RevokedBy: m.GetRevokedBy(),
		JTI: m.GetJti(), Parent: m.GetParent(), Txn: m.GetTxn(), Root: m.GetRoot(),
		Subject: delegation.Principal(m.GetSubject()), Actor: delegation.Principal(m.GetActor()), Caller: delegation.Principal(m.GetCaller()),
		Audience: slices.Clone(m.GetAudience()), Expiry: moment(m.GetExpiresAt()), Key: m.GetKey(),
		ActorProof: m.GetActorProof(), Detail: m.GetDetail(), Peer: m.GetPeer(), ModelID: m.GetModelId(), TraceID: m.GetTraceId(),
		Voids: m.GetVoids(), Erased: slices.Clone(m.GetErased()), Record: m.GetRecord(),
	}
	for _, actor := range m.GetActors() {
		e.Actors = append(e.Actors, delegation.Principal(actor))
	}
	var err error
	if e.Scope, err = delegation.NewScopes(m.GetScope()...); err != nil {
		return nil, malformed("entry %d: scope: %v", e.Seq, err)
	}
	if m.GetAuthorizationDetails() != "" {
		if e.Details, err = delegation.ParseDetails([]byte(m.GetAuthorizationDetails())); err != nil {
			return nil, malformed("entry %d: %v", e.Seq, err)
		}
	}
	if m.GetRevocation() != nil {
		// Not readRevocation: an expired revocation may have lost its target, and no decision uses
		// this one.
		r, err := revocationOf(m.GetRevocation())
		if err != nil {
			return nil, malformed("entry %d: %v", e.Seq, err)
		}
		e.Revocation = &r
	}
	if len(m.GetLeafHash()) > 0 {
		if e.Leaf, err = readHash(m.GetLeafHash()); err != nil {
			return nil, malformed("entry %d: %v", e.Seq, err)
		}
	}
	return e, nil
}

func readEntries(messages []*deputyv1.Entry) ([]*Entry, error) {
	var entries []*Entry
	for _, m := range messages {
		e, err := readEntry(m)
		if err != nil {
			return nil, err
		}
		entries = append(entries, e)
	}
	return entries, nil
}

func readHash(raw []byte) (tlog.Hash, error) {
	if len(raw) != tlog.HashSize {
		return tlog.Hash{}, fmt.Errorf("a hash of %d bytes", len(raw))
	}
	return tlog.Hash(raw), nil
}

func readHashes(raw [][]byte) ([]tlog.Hash, error) {
	var hashes []tlog.Hash
	for _, r := range raw {
		h, err := readHash(r)
		if err != nil {
			return nil, malformed("%v", err)
		}
		hashes = append(hashes, h)
	}
	return hashes, nil
}
