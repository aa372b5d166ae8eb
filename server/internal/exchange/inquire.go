package exchange

import (
	"context"
	"errors"

	"deputy.example/deputy/client/delegation"
	"deputy.example/deputy/server/internal/ledger"
	"deputy.example/deputy/server/internal/policy"
	"deputy.example/deputy/server/internal/token"
)

// Introspect says whether a token is active now (RFC 7662). Any authenticated caller of the tenant
// may ask. Everything but an active derived token of this tenant gives the same answer; an error
// means that there is no answer.
func (e *Engine) Introspect(ctx context.Context, q Inquiry) (Introspection, error) {
	ctx, cancel := e.within(ctx)
	defer cancel()
	tenant, _, err := e.admitInquiry(ctx, q)
	if err != nil {
		return Introspection{}, err
	}
	if q.Token == "" {
		return Introspection{}, delegation.Refuse(delegation.ParameterMissing, "token", "is required (RFC 7662 section 2.1)")
	}
	claims, err := tenant.Trust.Own(q.Token)
	if err != nil {
		return Introspection{}, nil
	}
	revoked, err := e.config.Ledger.Revocations(ctx, tenant.Name, true)
	if err != nil {
		return Introspection{}, err
	}
	if _, hit := revoked.Hit(claims.Lineage()); hit {
		return Introspection{}, nil
	}
	return Introspection{Claims: &claims}, nil
}

// Chain returns the grants that lead to one, root to leaf, to its subject, to its actors, and to
// auditors. Unknown and forbidden are the same answer.
func (e *Engine) Chain(ctx context.Context, q Inquiry) ([]*ledger.Entry, error) {
	ctx, cancel := e.within(ctx)
	defer cancel()
	tenant, caller, err := e.admitInquiry(ctx, q)
	if err != nil {
		return nil, err
	}
	nothing := delegation.Refuse(delegation.NotFound, "jti", "no such grant, or none that you may see")
	entries, err := e.config.Ledger.Chain(ctx, tenant.Name, q.ID)
	if err != nil && !errors.Is(err, ledger.ErrNotFound) {
		return nil, delegation.AsError(err)
	}
	auditor := policy.Relation{User: string(caller.Principal), Relation: "auditor", Object: "system:deputy"}
	if len(entries) > 0 {
		leaf := entries[len(entries)-1]
		if leaf.Subject == caller.Principal || leaf.Actors.Contains(caller.Principal) {
			return entries, nil
		}
	}
	// Asked whether or not the grant exists, so that the time taken does not tell.
	allowed, err := tenant.Policy.Has(ctx, auditor)
	if err != nil {
		return nil, delegation.AsError(err)
	}
	if !allowed || len(entries) == 0 {
		return nil, nothing
	}
	return entries, nil
}

// admitInquiry authenticates and admits whoever asks a question. A single-use assertion is spent
// durably here, as an exchange spends it in its entry.
func (e *Engine) admitInquiry(ctx context.Context, q Inquiry) (*Tenant, token.Caller, error) {
	tenant, caller, _, err := e.authenticate(ctx, q.Tenant, q.Credentials, nil)
	if err != nil {
		return nil, token.Caller{}, e.turnAway(ctx, err)
	}
	if err := e.config.Guard.Admit(ctx, tenant.Name, caller.Principal, 1, tenant.CallerRate); err != nil {
		return nil, token.Caller{}, e.turnAway(ctx, err)
	}
	if caller.Use == nil {
		return tenant, caller, nil
	}
	if err := e.noteUse(ctx, tenant, caller); err != nil {
		return nil, token.Caller{}, e.turnAway(ctx, err)
	}
	u := *caller.Use
	spent := ledger.SingleUse{Issuer: u.Issuer, Key: u.Key, ID: u.ID, Until: u.Until, Reason: delegation.AssertionReplayed}
	if err := e.config.Ledger.Spend(ctx, tenant.Name, []ledger.SingleUse{spent}); err != nil {
		return nil, token.Caller{}, e.turnAway(ctx, err)
	}
	return tenant, caller, nil
}
