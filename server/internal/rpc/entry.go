package rpc

import (
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/timestamppb"

	"deputy.example/deputy/client/audit"
	deputyv1 "deputy.example/deputy/gen/deputy/v1"
	"deputy.example/deputy/server/internal/exchange"
	"deputy.example/deputy/server/internal/ledger"
)

// entryKinds, outcomes and states are the names in this API. The unspecified names are no filter
// and mean no grant.
var (
	entryKinds = map[deputyv1.EntryKind]ledger.Kind{
		deputyv1.EntryKind_ENTRY_KIND_UNSPECIFIED: "",
		deputyv1.EntryKind_ENTRY_KIND_GRANT:       ledger.KindGrant,
		deputyv1.EntryKind_ENTRY_KIND_REFUSAL:     ledger.KindRefusal,
		deputyv1.EntryKind_ENTRY_KIND_CHECK:       ledger.KindCheck,
		deputyv1.EntryKind_ENTRY_KIND_VOID:        ledger.KindVoid,
		deputyv1.EntryKind_ENTRY_KIND_REVOCATION:  ledger.KindRevocation,
		deputyv1.EntryKind_ENTRY_KIND_ADMIN:       ledger.KindAdmin,
	}
	outcomes = map[deputyv1.EntryOutcome]ledger.Outcome{
		deputyv1.EntryOutcome_ENTRY_OUTCOME_UNSPECIFIED: "",
		deputyv1.EntryOutcome_ENTRY_OUTCOME_GRANTED:     ledger.Granted,
		deputyv1.EntryOutcome_ENTRY_OUTCOME_REFUSED:     ledger.Refused,
		deputyv1.EntryOutcome_ENTRY_OUTCOME_DONE:        ledger.Done,
	}
	states = map[deputyv1.GrantState]exchange.State{
		deputyv1.GrantState_GRANT_STATE_LIVE:    exchange.StateLive,
		deputyv1.GrantState_GRANT_STATE_EXPIRED: exchange.StateExpired,
		deputyv1.GrantState_GRANT_STATE_REVOKED: exchange.StateRevoked,
		deputyv1.GrantState_GRANT_STATE_VOIDED:  exchange.StateVoided,
	}
)

// onWire returns the name in this API, and the unspecified one where there is none.
func onWire[W, O comparable](names map[W]O, ours O) (name W) {
	for wire, o := range names {
		if o == ours {
			return wire
		}
	}
	return name
}

func newEntry(e exchange.Recorded) *deputyv1.Entry {
	m := &deputyv1.Entry{
		Entry: e.Seq, Kind: onWire(entryKinds, e.Kind), Time: timestamppb.New(e.Time),
		Jti: e.ID, Parent: e.Parent, Txn: e.Txn, Root: e.Root, Key: e.HolderKey,
		Outcome: onWire(outcomes, e.Outcome), Reason: string(e.Reason), Scope: e.Scopes, Audience: e.Audiences,
		ModelId: e.ModelID, TraceId: e.TraceID, Voids: e.Voids, Revocation: newRevocation(e.Revocation),
		Subject: string(e.Subject), Actor: string(e.Actor), Caller: string(e.Caller), Peer: e.Peer, Detail: e.Detail,
		ActorProof: e.ActorProof, Erased: e.Erased(),
		State: onWire(states, e.State), RevokedBy: e.RevokedBy, LeafHash: e.Leaf[:],
	}
	if !e.Expiry.IsZero() {
		m.ExpiresAt = timestamppb.New(e.Expiry)
	}
	if len(e.Details) > 0 {
		m.AuthorizationDetails = e.Record().Personal[audit.FieldDetails].Value // as canonical JSON
	}
	for _, p := range e.Actors {
		m.Actors = append(m.Actors, string(p))
	}
	return m
}

// withRecord returns the entry with its line of an export.
func withRecord(e exchange.Recorded) (*deputyv1.Entry, error) {
	m := newEntry(e)
	record := e.Record()
	line, err := record.MarshalJSON()
	if err != nil {
		return nil, broken("the record of entry %d: %w", e.Seq, err)
	}
	m.Record = string(line)
	return m, nil
}

// room is the free space of a message. A client accepts four megabytes unless it is configured
// otherwise, and one entry may have hundreds of kilobytes. A page must not become too large for a
// client.
type room struct{ used int }

const maxPageBytes = 2 << 20

// takes reports whether the message fits, and counts it. The first message always fits.
func (r *room) takes(m proto.Message) bool {
	size := proto.Size(m) + 16
	if r.used > 0 && r.used+size > maxPageBytes {
		return false
	}
	r.used += size
	return true
}
