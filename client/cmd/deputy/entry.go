package main

import (
	"cmp"
	"fmt"
	"strings"
	"time"

	"deputy.example/deputy/client"
	"deputy.example/deputy/client/delegation"
)

// ledgerFlags are the flags of commands that read the ledger.
type ledgerFlags struct {
	Issuer string `env:"DEPUTY_ISSUER" placeholder:"URL" help:"Issuer of the Deputy tenant, byte for byte."`

	serverFlags `embed:""`
}

func (f ledgerFlags) open() (*client.Client, error) {
	if !f.authenticated() {
		return nil, usage("reading the ledger needs an authenticated caller: name --client-id and --client-key, or --workload-token-file")
	}
	return f.connect(f.Issuer)
}

// entryReport is an entry for programs.
type entryReport struct {
	Entry      uint64               `json:"entry"`
	Kind       client.EntryKind     `json:"kind"`
	Time       time.Time            `json:"time,omitzero"`
	Outcome    client.EntryOutcome  `json:"outcome,omitzero"`
	Reason     delegation.Reason    `json:"reason,omitzero"`
	State      client.GrantState    `json:"state,omitzero"`
	RevokedBy  uint64               `json:"revoked_by,omitzero"`
	JTI        string               `json:"jti,omitzero"`
	Parent     string               `json:"parent,omitzero"`
	Txn        string               `json:"txn,omitzero"`
	Root       string               `json:"root,omitzero"`
	Subject    delegation.Principal `json:"subject,omitzero"`
	Actor      delegation.Principal `json:"actor,omitzero"`
	Caller     delegation.Principal `json:"caller,omitzero"`
	Actors     []string             `json:"actors,omitzero"`
	Scope      delegation.Scopes    `json:"scope,omitzero"`
	Audience   []string             `json:"audience,omitzero"`
	Details    []delegation.Detail  `json:"authorization_details,omitzero"`
	Expiry     time.Time            `json:"expires_at,omitzero"`
	Key        string               `json:"key,omitzero"`
	ActorProof string               `json:"actor_proof,omitzero"`
	Detail     string               `json:"detail,omitzero"`
	Peer       string               `json:"peer,omitzero"`
	ModelID    string               `json:"model_id,omitzero"`
	TraceID    string               `json:"trace_id,omitzero"`
	Voids      uint64               `json:"voids,omitzero"`
	Revocation *revocationReport    `json:"revocation,omitzero"`
	Erased     []string             `json:"erased,omitzero"`
}

type revocationReport struct {
	Kind    delegation.TargetKind `json:"kind"`
	ID      string                `json:"id,omitzero"`
	Subject delegation.Principal  `json:"subject,omitzero"`
	Until   time.Time             `json:"until,omitzero"`
}

// names lists the principals of a chain, whose own JSON form is nested.
func names(chain delegation.Chain) []string {
	var names []string
	for _, p := range chain {
		names = append(names, string(p))
	}
	return names
}

func entryJSON(e *client.Entry) entryReport {
	report := entryReport{
		Entry: e.Seq, Kind: e.Kind, Time: e.Time, Outcome: e.Outcome, Reason: e.Reason, State: e.State, RevokedBy: e.RevokedBy,
		JTI: e.JTI, Parent: e.Parent, Txn: e.Txn, Root: e.Root, Subject: e.Subject, Actor: e.Actor, Caller: e.Caller,
		Actors: names(e.Actors), Scope: e.Scope, Audience: e.Audience, Details: e.Details, Expiry: e.Expiry, Key: e.Key, ActorProof: e.ActorProof,
		Detail: e.Detail, Peer: e.Peer, ModelID: e.ModelID, TraceID: e.TraceID, Voids: e.Voids, Erased: e.Erased,
	}
	if r := e.Revocation; r != nil {
		report.Revocation = &revocationReport{Kind: r.Target.Kind, ID: r.Target.ID, Subject: r.Target.Subject, Until: r.Until}
	}
	return report
}

// stateBy shows the state of a grant, and the entry that revoked it.
func (p *printer) stateBy(state client.GrantState, by uint64) styled {
	if by == 0 {
		return p.stateOf(state)
	}
	return p.stateOf(state) + styled(fmt.Sprintf(" by #%d", by))
}

// stateOf shows the state of a grant in its color.
func (p *printer) stateOf(state client.GrantState) styled {
	switch state {
	case client.StateLive:
		return p.good(string(state))
	case client.StateRevoked, client.StateVoided:
		return p.bad(string(state))
	case "":
		return ""
	}
	return p.faint(string(state))
}

// name shows a principal, "(erased)" where it was erased, or "-" where the entry has none.
func name(p delegation.Principal, e *client.Entry, field string) string {
	for _, erased := range e.Erased {
		if erased == field {
			return "(erased)"
		}
	}
	return cmp.Or(string(p), "-")
}

// aimedAt describes the target of a revocation.
func aimedAt(e *client.Entry) string {
	if e.Revocation == nil {
		return ""
	}
	t := e.Revocation.Target
	text := string(t.Kind)
	if t.ID != "" {
		text += " " + t.ID
	} else if t.Kind != delegation.CutTenant {
		text += " (erased)"
	}
	if t.Subject != "" {
		text += fmt.Sprintf(" for %s", t.Subject)
	}
	return text
}

// scopeAt shows the scope of a grant and its audiences.
func scopeAt(e *client.Entry) string {
	text := orNone(e.Scope.String())
	if len(e.Audience) > 0 {
		text += " at " + strings.Join(e.Audience, ", ")
	}
	return text
}
