package exchange

import (
	"context"
	"errors"
	"slices"
	"time"

	"deputy.example/deputy/client/delegation"
	"deputy.example/deputy/server/internal/ledger"
	"deputy.example/deputy/server/internal/policy"
)

// Introspect says whether a token is active now (RFC 7662). Everything but an active derived token of
// this tenant that the caller may ask about gives the same answer; an error means that there is no answer.
func (e *Engine) Introspect(ctx context.Context, q Inquiry) (Introspection, error) {
	ctx, cancel := e.within(ctx)
	defer cancel()
	by, err := e.admitInquiry(ctx, q)
	if err == nil {
		err = e.serving(ctx, by.tenant.Name)
	}
	if err != nil {
		return Introspection{}, err
	}
	if q.Token == "" {
		return Introspection{}, delegation.Refuse(delegation.ParameterMissing, "token", "is required (RFC 7662 section 2.1)")
	}
	claims, err := by.tenant.Trust.Own(q.Token)
	if err != nil {
		return Introspection{}, nil
	}
	if may, err := e.mayIntrospect(ctx, by, claims); err != nil || !may {
		return Introspection{}, err
	}
	if _, hit := by.revoked.Hit(claims.Lineage()); hit || by.revoked.Forgotten(time.Unix(claims.ExpiresAt, 0)) || e.ahead(by.tenant, claims.Delegation.Hops) {
		return Introspection{}, nil
	}
	return Introspection{Claims: &claims}, nil
}

// ahead says whether a hop has a number that the ledger has not given: it is of a fork, or of a future that was lost. What
// is revoked must have been read again before.
func (e *Engine) ahead(tenant *Tenant, hops []delegation.Hop) bool {
	head := e.config.Ledger.KnownHead(tenant.Name)
	return slices.ContainsFunc(hops, func(h delegation.Hop) bool { return h.Seq > head })
}

// mayIntrospect is the one place that decides who may ask about a token: its subject and the actors of its chain,
// the servers of its audiences, and introspectors and auditors of the tenant. OpenFGA is asked about a
// revoked token too, so that the time of an answer does not tell it from one that is in force. It is not
// asked about what is no token: that is for everybody to see who has the tenant's public keys.
func (e *Engine) mayIntrospect(ctx context.Context, by inquirer, c delegation.Claims) (bool, error) {
	who := by.caller.Principal
	if who == c.Subject || c.Act.Contains(who) || slices.ContainsFunc(c.Audience, func(a string) bool { return by.tenant.serves(who, a) }) {
		return true, nil
	}
	has, err := by.tenant.Policy.HasEach(ctx, []policy.Relation{
		{User: string(who), Relation: "introspector", Object: system}, {User: string(who), Relation: "auditor", Object: system},
	})
	if err != nil {
		return false, delegation.AsError(err)
	}
	return slices.Contains(has, true), nil
}

// serves says whether tokens for the audience are made for the principal.
func (t *Tenant) serves(p delegation.Principal, audience string) bool {
	return audience == string(p) || slices.Contains(t.Servers[audience], p)
}

// inquirer is who asks a question, with the revocations of now.
type inquirer struct {
	arrival
	revoked *delegation.RevocationSet
}

// admitInquiry takes what workloads authenticate with, admitReader people who signed in besides. Both spend
// single-use assertions and proofs durably, as an exchange spends them in its entry.
func (e *Engine) admitInquiry(ctx context.Context, q Inquiry) (inquirer, error) {
	return e.admitted(ctx, q, e.workload, e.spend)
}

func (e *Engine) admitReader(ctx context.Context, q Inquiry) (inquirer, error) {
	return e.admitted(ctx, q, e.reader(q), e.spend)
}

// admitUnspent is admitReader for a call that spends what the caller came with in the entry that it writes.
func (e *Engine) admitUnspent(ctx context.Context, q Inquiry) (inquirer, error) {
	return e.admitted(ctx, q, e.reader(q), nil)
}

func (e *Engine) reader(q Inquiry) authenticator {
	if q.Credentials.Person != nil {
		return e.person
	}
	return e.workload
}

func (e *Engine) admitted(ctx context.Context, q Inquiry, who authenticator, spend func(context.Context, arrival) error) (inquirer, error) {
	by, err := e.inquirer(ctx, q, who, spend)
	if err != nil {
		return inquirer{}, e.turnAway(ctx, err)
	}
	return by, nil
}

// Stranger turns away somebody who brought nothing that could authenticate it, in place of whatever was
// asked: with the one answer to every failed authentication.
func (e *Engine) Stranger(ctx context.Context) error {
	return e.turnAway(ctx, unauthenticated(errors.New("no credential")))
}

func (e *Engine) workload(ctx context.Context, q Inquiry) (arrival, error) {
	return e.authenticate(ctx, q.Tenant, q.Credentials, nil)
}

// authenticator finds out who asks.
type authenticator func(context.Context, Inquiry) (arrival, error)

// inquirer admits the caller, within its rate and, where Redis does not answer, within what this instance
// allows by itself: looking and taking back do not need Redis. spend, where it is not nil, spends what the caller came with;
// where it is nil, the call's own entry does.
func (e *Engine) inquirer(ctx context.Context, q Inquiry, who authenticator, spend func(context.Context, arrival) error) (by inquirer, err error) {
	if by.arrival, err = who(ctx, q); err != nil {
		return by, err
	}
	if err := e.limitCaller(ctx, by.arrival); err != nil {
		return by, err
	}
	unspent := by.uses()
	if spend != nil {
		if err := spend(ctx, by.arrival); err != nil {
			return by, err
		}
		unspent = nil
	}
	if by.revoked, err = e.config.Ledger.Revocations(ctx, by.tenant.Name, true); err != nil {
		if spend != nil { // again it would count as a replay
			return by, err
		}
		return by, e.spendUndecided(ctx, by.arrival, err)
	}
	return by, e.unrevoked(ctx, by, q, unspent...)
}

// spend notes in the ledger what the caller came with and may use once.
func (e *Engine) spend(ctx context.Context, a arrival) error {
	return e.asStranger(ctx, a, e.config.Ledger.Spend(ctx, a.tenant.Name, a.uses()))
}

// unrevoked refuses a caller that is suspended or whose key is banned, and a person whose session began
// before something that cut it off.
func (e *Engine) unrevoked(ctx context.Context, by inquirer, q Inquiry, unspent ...ledger.SingleUse) error {
	if err := e.standing(ctx, by, q.Peer, unspent...); err != nil {
		return err
	}
	p := q.Credentials.Person
	if p == nil {
		return nil
	}
	if _, hit := by.revoked.Hit(p.lineage(e.config.Ledger.Skew(by.tenant.Name))); hit {
		return unauthenticated(errors.New("the session was revoked"))
	}
	return nil
}

// standing refuses a caller that is suspended, or whose key is banned, with the answer for one that nobody
// knows: what was taken back authenticates nobody, and whoever stole it learns nothing. Responders find
// the attempt in the ledger.
// The record of it spends uses, where nothing has spent them before.
func (e *Engine) standing(ctx context.Context, by inquirer, peer string, uses ...ledger.SingleUse) error {
	if _, hit := by.revoked.HitCaller(by.caller.Principal, by.keys()...); !hit {
		return nil
	}
	kept := delegation.Refuse(delegation.TokenRevoked, "", "the caller is suspended, or its key is banned")
	draft := &ledger.Draft{Caller: by.caller.Principal, Peer: peer, TraceID: traceID(ctx)}
	if err := delegation.AsError(e.recordRefusal(ctx, by.tenant, draft, "authentication", kept, uses...)); err.Temporary() {
		return err
	}
	return unauthenticated(kept)
}

// asStranger is what a caller is told that is refused before it was looked whether it stands: if it was taken
// back, no more than that nobody knows it. What else is wrong would say that its credential is good.
func (e *Engine) asStranger(ctx context.Context, a arrival, refusal error) error {
	if refusal == nil {
		return nil
	}
	revoked, err := e.config.Ledger.Revocations(ctx, a.tenant.Name, false)
	if err != nil {
		return err
	}
	if _, hit := revoked.HitCaller(a.caller.Principal, a.keys()...); hit {
		return unauthenticated(refusal)
	}
	return refusal
}
