package exchange

import (
	"context"
	"errors"
	"slices"
	"time"

	"deputy.example/deputy/client/delegation"
	"deputy.example/deputy/server/internal/guard"
	"deputy.example/deputy/server/internal/ledger"
	"deputy.example/deputy/server/internal/policy"
	"deputy.example/deputy/server/internal/token"
)

// RevokeCall asks to take authority back. Exactly one of Target, Token and RootToken says what.
// Suspend and Resume are targets of their own kinds.
type RevokeCall struct {
	Tenant      string
	Credentials Credentials
	Peer        string
	Target      delegation.Target
	Token       string // a derived token of this tenant, perhaps expired: bans its jti
	RootToken   string // a root token: bans what descends from it
	Reason      string // for the ledger; up to 1,000 bytes
	DryRun      bool
}

// Revoked is what a revocation did, or with RevokeCall.DryRun would do.
type Revoked struct {
	Revocation *delegation.Revocation // nil in a dry run, and where there was nothing to revoke
	Tokens     int                    // live tokens that it kills
	Chains     int                    // that they belong to
	Counted    bool                   // Tokens and Chains are known: there was time to count them
	Grants     []*ledger.Entry        // of the live tokens, oldest first, at most maxAffected; dry run only
}

const (
	maxAffected = 1000
	maxReason   = 1000

	// Nobody waits long to hear what a revocation kills: so long before it is recorded, and so long again once
	// it is in force. What is not counted by then is not counted.
	countPatience = 200 * time.Millisecond
	countsAtOnce  = 2 // so that they leave connections to the database for others
)

// system is what Deputy's own access control is about.
const system = "system:deputy"

// Revoke records a revocation and returns once it is durable: from then on no instance grants or
// introspects anything that it hits. Redis and the verifiers hear of it right after; a Redis that
// does not answer is mended from the ledger later and undoes nothing.
//
// The answer to a caller who may not is NotFound, as if there were nothing to revoke.
func (e *Engine) Revoke(ctx context.Context, call RevokeCall) (Revoked, error) {
	ctx, cancel := e.within(ctx)
	defer cancel()
	by, err := e.admitReader(ctx, Inquiry{Tenant: call.Tenant, Credentials: call.Credentials, Peer: call.Peer})
	if err != nil {
		return Revoked{}, err
	}
	tenant, caller := by.tenant, by.caller
	if err := e.revoking(ctx, tenant.Name); err != nil {
		return Revoked{}, err
	}
	draft := &ledger.Draft{Kind: ledger.KindRevocation, Caller: caller.Principal, Peer: call.Peer, TraceID: traceID(ctx), Detail: call.Reason}
	target, err := e.decideRevocation(ctx, tenant, caller, call)
	if err == nil && call.DryRun {
		return e.affected(ctx, tenant, target)
	}
	if err != nil {
		return Revoked{}, e.recordRefusal(ctx, tenant, draft, "revocation", err)
	}
	draft.Revocation = &delegation.Revocation{Target: target, Until: e.until(tenant, target)}
	counted := e.countHits(ctx, tenant, target)
	result := e.config.Ledger.AppendAll(ctx, tenant.Name, []*ledger.Draft{draft}, nil)[0]
	if result.Err != nil {
		counted(0)
		return Revoked{}, delegation.AsError(result.Err)
	}
	recorded, err := e.config.Ledger.EntryAt(ctx, tenant.Name, result.Receipt.Seq)
	if err != nil || recorded.Revocation == nil {
		counted(0)
		return Revoked{}, delegation.Unavailable("ledger", err)
	}
	if err := e.announce(ctx, tenant, *recorded.Revocation); err != nil {
		counted(0)
		return Revoked{}, err
	}
	done := counted(e.patience)
	done.Revocation = recorded.Revocation
	return done, nil
}

// countHits begins to count, beside the recording, and returns what ends it: within the grace, counted or
// not. To count takes time in proportion to all that is alive, and so it must not keep anybody from revoking.
func (e *Engine) countHits(ctx context.Context, tenant *Tenant, target delegation.Target) (counted func(grace time.Duration) Revoked) {
	soon, cancel := context.WithTimeout(ctx, e.patience)
	defer cancel()
	survey, err := e.config.Ledger.Survey(soon, tenant.Name, target)
	if err != nil {
		e.config.Logger.WarnContext(ctx, "a revocation goes on uncounted", "tenant", tenant.Name, "cause", err)
		return func(time.Duration) Revoked { return Revoked{} }
	}
	done, enough := make(chan Revoked, 1), make(chan struct{})
	go func() {
		ctx, cancel := e.within(context.WithoutCancel(ctx)) // nobody's statement is broken off when the caller has its answer
		defer cancel()
		select {
		case e.counting <- struct{}{}:
			defer func() { <-e.counting }()
		case <-enough:
			return
		}
		if _, tokens, chains, err := e.hits(survey, ctx, 0); err == nil {
			done <- Revoked{Tokens: tokens, Chains: chains, Counted: true}
		}
	}()
	return func(grace time.Duration) Revoked {
		defer close(enough)
		defer survey.Stop()
		end := time.NewTimer(grace)
		defer end.Stop()
		select {
		case r := <-done:
			return r
		case <-end.C:
			e.config.Logger.WarnContext(ctx, "a revocation went on uncounted: there is too much to count in time", "tenant", tenant.Name)
			return Revoked{}
		}
	}
}

// decideRevocation settles the target and whether the caller may aim at it.
func (e *Engine) decideRevocation(ctx context.Context, tenant *Tenant, caller token.Caller, call RevokeCall) (delegation.Target, error) {
	if len(call.Reason) > maxReason {
		return delegation.Target{}, delegation.Refuse(delegation.ParameterInvalid, "reason", "at most %d bytes", maxReason)
	}
	if delegation.HoldsToken(call.Reason) {
		return delegation.Target{}, delegation.Refuse(delegation.ParameterInvalid, "reason", "holds a token, which must not be recorded: say why in words")
	}
	target, unreadable := revocationTarget(ctx, tenant, call)
	if unreadable != nil && unreadable.Reason != delegation.NotFound {
		return delegation.Target{}, unreadable
	}
	// Asked for what does not exist, too: neither answer nor time shall tell that from what is another's.
	may, err := e.mayRevoke(ctx, tenant, caller.Principal, target)
	switch {
	case err != nil:
		return delegation.Target{}, err
	case unreadable != nil:
		return delegation.Target{}, unreadable
	case !may && e.off.equalAnswers:
		return delegation.Target{}, delegation.Refuse(delegation.NotFound, "target", "nothing that you may revoke")
	case !may:
		return delegation.Target{}, nothingToRevoke(call)
	}
	return target, nil
}

// nothingToRevoke is the answer about what is not there, and about what the caller may not aim at.
func nothingToRevoke(call RevokeCall) *delegation.Error {
	field := "target"
	switch {
	case call.Token != "":
		field = "token"
	case call.RootToken != "":
		field = "root_token"
	}
	return delegation.Refuse(delegation.NotFound, field, "nothing there to revoke, or nothing that you may revoke")
}

// revocationTarget reads what is aimed at, strictly.
func revocationTarget(ctx context.Context, tenant *Tenant, call RevokeCall) (delegation.Target, *delegation.Error) {
	given := 0
	for _, is := range []bool{call.Target != (delegation.Target{}), call.Token != "", call.RootToken != ""} {
		if is {
			given++
		}
	}
	if given != 1 {
		return delegation.Target{}, delegation.Refuse(delegation.ParameterInvalid, "target", "name exactly one of a target, a token and a root token")
	}
	switch {
	case call.Token != "":
		claims, err := tenant.Trust.Issued(call.Token)
		if err != nil {
			return delegation.Target{Kind: delegation.BanToken}, nothingToRevoke(call).WithCause(err)
		}
		return delegation.Target{Kind: delegation.BanToken, ID: claims.ID}, nil
	case call.RootToken != "":
		subject, err := tenant.Trust.Subject(ctx, call.RootToken, delegation.TokenTypeJWT)
		if err != nil || subject.Root == nil {
			return delegation.Target{Kind: delegation.BanRoot}, nothingToRevoke(call).WithCause(err)
		}
		return delegation.Target{Kind: delegation.BanRoot, ID: subject.Root.Digest}, nil
	}
	if call.Target.Kind == delegation.CutFork {
		return call.Target, delegation.Refuse(delegation.ParameterInvalid, "target.kind", "must be one that callers may revoke: only \"deputyd ledger recover\" cuts off a fork")
	}
	return call.Target, delegation.AsError(call.Target.Check())
}

// mayRevoke is the one place that says who may take what back. Responders may everything; what
// others may follows from what they hold, and an unknown jti or txn is nobody's but a responder's.
func (e *Engine) mayRevoke(ctx context.Context, tenant *Tenant, caller delegation.Principal, t delegation.Target) (bool, error) {
	own := false
	switch t.Kind {
	case delegation.BanToken:
		grant, err := e.grant(ctx, tenant, t.ID)
		if err != nil {
			return false, err
		}
		// An actor of the chain held the token or one that it descends from.
		own = grant != nil && (grant.Subject == caller || grant.Actors.Contains(caller))
	case delegation.BanChain:
		first, err := e.config.Ledger.First(ctx, tenant.Name, t.ID)
		if err != nil && !errors.Is(err, ledger.ErrNotFound) {
			return false, err
		}
		own = first != nil && (first.Subject == caller || first.Actor == caller)
	case delegation.BanKey:
		own = tenant.Trust.Registered(caller, t.ID)
	case delegation.CutSubject, delegation.CutAgentSubject:
		own = t.Subject == caller || t.Kind == delegation.CutSubject && t.ID == string(caller)
	case delegation.CutAgent:
		own = t.ID == string(caller)
	}
	if own {
		return true, nil
	}
	if slices.Contains([]delegation.TargetKind{delegation.CutAgent, delegation.CutAgentSubject, delegation.BanSuspend, delegation.Resume}, t.Kind) {
		operates, err := tenant.Policy.Has(ctx, policy.Relation{User: string(caller), Relation: "operator", Object: t.ID})
		if err != nil || operates {
			return operates, err
		}
	}
	return tenant.Policy.Has(ctx, policy.Relation{User: string(caller), Relation: "responder", Object: system})
}

// grant finds a grant by its jti; nil if there is none.
func (e *Engine) grant(ctx context.Context, tenant *Tenant, jti string) (*ledger.Entry, error) {
	entry, err := e.config.Ledger.Entry(ctx, tenant.Name, jti)
	switch {
	case errors.Is(err, ledger.ErrNotFound):
		return nil, nil
	case err != nil:
		return nil, delegation.AsError(err)
	case entry.Kind != ledger.KindGrant:
		return nil, nil
	}
	return entry, nil
}

// until is when nothing that the target could hit is alive any more, also where it has not been seen
// yet: no root token is older than the longest life that an issuer is allowed, and no token outlives
// the root that it descends from. Keys and suspensions are remembered for ever.
func (e *Engine) until(tenant *Tenant, t delegation.Target) time.Time {
	const margin = time.Minute // clocks of issuers and instances
	switch t.Kind {
	case delegation.BanKey, delegation.BanSuspend, delegation.Resume:
		return time.Time{}
	case delegation.BanToken, delegation.BanChain:
		return e.config.Now().Add(tenant.Limits.MaxLifetime + margin)
	}
	return e.config.Now().Add(max(tenant.Trust.LongestRoot(), tenant.Limits.MaxLifetime) + margin)
}

// affected answers a dry run.
func (e *Engine) affected(ctx context.Context, tenant *Tenant, t delegation.Target) (Revoked, error) {
	survey, err := e.config.Ledger.Survey(ctx, tenant.Name, t)
	if err != nil {
		return Revoked{}, delegation.AsError(err)
	}
	grants, tokens, chains, err := e.hits(survey, ctx, maxAffected)
	if err != nil {
		return Revoked{}, delegation.AsError(err)
	}
	return Revoked{Tokens: tokens, Chains: chains, Counted: true, Grants: grants}, nil
}

// recordRefusal keeps the refusal of an authenticated caller with what it wanted, and returns it.
func (e *Engine) recordRefusal(ctx context.Context, tenant *Tenant, draft *ledger.Draft, wanted string, err error) error {
	refusal := delegation.AsError(err)
	if refusal.Temporary() {
		return refusal
	}
	draft.Kind, draft.Reason, draft.Revocation = ledger.KindRefusal, refusal.Reason, nil
	draft.Detail = wanted + ": " + refusal.Description
	if result := e.config.Ledger.AppendAll(ctx, tenant.Name, []*ledger.Draft{draft}, nil)[0]; result.Err != nil && result.Receipt.Seq == 0 {
		return delegation.AsError(result.Err)
	}
	e.metrics.outcomes.WithLabelValues(tenant.Name, string(refusal.Reason)).Inc()
	return refusal
}

// announce tells Redis, which wakes the other instances. It is bounded and its failure is no failure
// of the revocation: whoever keeps the lists mends them from the ledger. Only where Redis knows a later incarnation of the
// ledger, this one was given up, and nothing was revoked by it.
func (e *Engine) announce(ctx context.Context, tenant *Tenant, r delegation.Revocation) error {
	err := e.config.Guard.Publish(ctx, tenant.Name, r)
	if errors.Is(err, guard.ErrSuperseded) {
		return delegation.Unavailable("ledger", err)
	}
	if err != nil {
		e.config.Logger.WarnContext(ctx, "a revocation is durable but not in Redis yet", "tenant", tenant.Name, "entry", r.Seq, "cause", err)
	}
	return nil
}
