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

// Introspect returns the claims of a token that is active now (RFC 7662). For anything but an
// active derived token of this tenant that the caller may introspect, the answer is the same empty
// one. An error means that there is no answer.
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

// ahead reports whether a hop has a number that the ledger has not given: the token is of a fork,
// or of entries that were lost. The caller of ahead must have read the revocations before.
func (e *Engine) ahead(tenant *Tenant, hops []delegation.Hop) bool {
	head := e.config.Ledger.KnownHead(tenant.Name)
	return slices.ContainsFunc(hops, func(h delegation.Hop) bool { return h.Seq > head })
}

// mayIntrospect is the only function that decides who may introspect a token: its subject and the
// actors of its chain, the servers of its audiences, and the tenant's introspectors and auditors.
// OpenFGA is asked about a revoked token too, so that the time of an answer does not distinguish it
// from a token in force. OpenFGA is not asked about a text that is no token of the tenant: any
// holder of the tenant's public keys can determine that.
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

// serves reports whether the principal serves the audience.
func (t *Tenant) serves(p delegation.Principal, audience string) bool {
	return audience == string(p) || slices.Contains(t.Servers[audience], p)
}

// inquirer is the caller of an inquiry, with the current revocations.
type inquirer struct {
	arrival
	revoked *delegation.RevocationSet
}

// admitInquiry accepts the credentials of workloads. admitReader also accepts a person who signed
// in. Both spend single-use assertions and proofs durably, as an exchange spends them in its entry.
func (e *Engine) admitInquiry(ctx context.Context, q Inquiry) (inquirer, error) {
	return e.admitted(ctx, q, e.workload, e.spend)
}

func (e *Engine) admitReader(ctx context.Context, q Inquiry) (inquirer, error) {
	return e.admitted(ctx, q, e.reader(q), e.spend)
}

// admitUnspent is admitReader for a call whose own entry spends the caller's single-use
// credentials.
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

// Unauthenticated refuses a request without a credential, in place of the requested answer. The error
// is the one answer to each failed authentication.
func (e *Engine) Unauthenticated(ctx context.Context) error {
	return e.turnAway(ctx, unauthenticated(errors.New("no credential")))
}

func (e *Engine) workload(ctx context.Context, q Inquiry) (arrival, error) {
	return e.authenticate(ctx, q.Tenant, q.Credentials, nil)
}

// authenticator determines the caller of an inquiry.
type authenticator func(context.Context, Inquiry) (arrival, error)

// inquirer admits the caller within its rate. If Redis does not respond, the limit of this instance
// alone applies, because reading and revoking do not need Redis. spend spends the caller's
// single-use credentials. If it is nil, the call's own entry spends them.
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

// spend records the caller's single-use credentials in the ledger.
func (e *Engine) spend(ctx context.Context, a arrival) error {
	return e.asUnknown(ctx, a, e.config.Ledger.Spend(ctx, a.tenant.Name, a.uses()))
}

// unrevoked refuses a caller that is suspended or whose key is banned, and a person whose session
// began before a revocation that covers it.
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

// standing refuses a caller that is suspended, or whose key is banned, with the answer for an
// unknown caller. A revoked credential authenticates no caller, and the thief of a credential
// learns nothing. Responders find the attempt in the ledger. The record of it spends uses, unless
// they were spent before.
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

// asUnknown returns the refusal of a caller whose suspension was not checked before. If the caller
// is suspended or its key is banned, the answer is the one for an unknown caller: the refusal
// itself would disclose that the credential is valid.
func (e *Engine) asUnknown(ctx context.Context, a arrival, refusal error) error {
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
