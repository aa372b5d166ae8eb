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

// RevokeCall is a request to revoke. Exactly one of Target, Token and RootToken is set. Suspend and
// Resume are kinds of targets.
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

// Revoked is the effect of a revocation, or with RevokeCall.DryRun the effect that it would have.
type Revoked struct {
	Revocation *delegation.Revocation // nil in a dry run
	Tokens     int                    // live tokens that it revokes
	Chains     int                    // chains that those tokens belong to
	Counted    bool                   // Tokens and Chains are known: the count ended in time
	Grants     []*ledger.Entry        // of the live tokens, oldest first, at most maxAffected; dry run
}

const (
	maxAffected = 1000
	maxReason   = 1000

	countsAtOnce = 2 // so that they leave connections to the database for other work
)

// system is the object of Deputy's own access control.
const system = "system:deputy"

// Revoke records a revocation and returns once it is durable. From then on no instance grants or
// introspects anything that it hits. It is then published to Redis and to the verifiers. If Redis
// does not respond, the revocation is in force all the same, and the lists are mended from the
// ledger later.
//
// The steps are: authenticate; decide; one commit that spends the caller's credential and records
// the revocation or its refusal; publish in Redis; count. None of them needs Redis. After the
// commit, one failure is an error: Redis has a later incarnation of the ledger, so that this ledger
// was given up. An error of reason unavailable means that the revocation is not known to be in
// force. Its description states whether it may be.
//
// The answer to a caller without the right to revoke is NotFound, as if there were nothing to
// revoke.
func (e *Engine) Revoke(ctx context.Context, call RevokeCall) (Revoked, error) {
	ctx, cancel := e.within(ctx)
	defer cancel()
	by, err := e.admitUnspent(ctx, Inquiry{Tenant: call.Tenant, Credentials: call.Credentials, Peer: call.Peer})
	if err != nil {
		return Revoked{}, err
	}
	tenant := by.tenant
	if err := e.revoking(ctx, tenant.Name); err != nil {
		return Revoked{}, e.spendUndecided(ctx, by.arrival, err)
	}
	draft := &ledger.Draft{Kind: ledger.KindRevocation, Caller: by.caller.Principal, Peer: call.Peer, TraceID: traceID(ctx), Detail: call.Reason}
	target, err := e.decideRevocation(ctx, tenant, by.caller, call)
	if err != nil {
		return Revoked{}, e.recordRefusal(ctx, tenant, draft, "revocation", err, by.uses()...)
	}
	if call.DryRun {
		if err := e.spend(ctx, by.arrival); err != nil {
			return Revoked{}, err
		}
		return e.affected(ctx, tenant, target)
	}
	draft.Revocation = &delegation.Revocation{Target: target, Until: e.until(tenant, target)}
	result := e.config.Ledger.AppendAll(ctx, tenant.Name, []*ledger.Draft{draft}, by.uses())[0]
	if result.Err != nil {
		return Revoked{}, e.notRevoked(tenant, result)
	}
	// The revocation is in force, unless this ledger was given up for a later incarnation.
	recorded := result.Receipt.Revocation
	counted := e.beginCount(ctx, tenant, *recorded)
	err = e.announce(ctx, tenant, *recorded)
	done := counted()
	if err != nil {
		return Revoked{}, err
	}
	done.Revocation = recorded
	return done, nil
}

// notRevoked is the answer if the ledger recorded a refusal in place of the revocation, or did not
// return in time what it recorded.
func (e *Engine) notRevoked(tenant *Tenant, result ledger.Result) error {
	refusal := delegation.AsError(result.Err)
	if result.Receipt.Seq > 0 {
		e.metrics.outcomes.WithLabelValues(tenant.Name, string(refusal.Reason)).Inc()
	}
	if refusal.Reason != delegation.DependencyDown {
		return refusal
	}
	unknown := delegation.Refuse(refusal.Reason, refusal.Field,
		"the ledger did not answer in time: the revocation may be in force or not; repeat it until it is acknowledged").WithCause(refusal)
	unknown.RetryAfter = refusal.RetryAfter
	return unknown
}

// beginCount starts the count of what the recorded revocation hits. counted waits for the count for
// at most e.patience, stops it and returns the numbers; Counted is false if the count did not end.
func (e *Engine) beginCount(ctx context.Context, tenant *Tenant, r delegation.Revocation) (counted func() Revoked) {
	survey, err := e.config.Ledger.SurveyOf(tenant.Name, r)
	if err != nil {
		return func() Revoked { return Revoked{} }
	}
	done, enough := make(chan Revoked, 1), make(chan struct{})
	go func() {
		// No statement is canceled when the caller has its answer.
		ctx, cancel := e.within(context.WithoutCancel(ctx))
		defer cancel()
		defer close(done)
		select {
		case e.counting <- struct{}{}:
			defer func() { <-e.counting }()
		case <-enough:
			return
		}
		if _, tokens, chains, err := survey.Count(ctx, 0); err == nil {
			done <- Revoked{Tokens: tokens, Chains: chains, Counted: true}
		}
	}()
	return func() Revoked {
		defer close(enough)
		defer survey.Stop()
		end := time.NewTimer(e.config.CountPatience)
		defer end.Stop()
		select {
		case r := <-done: // zero if the count failed
			return r
		case <-end.C:
			e.config.Logger.WarnContext(ctx, "revocation not counted in time", "tenant", tenant.Name, "entry", r.Seq)
			return Revoked{}
		}
	}
}

// decideRevocation returns the target, if the caller may revoke it.
func (e *Engine) decideRevocation(ctx context.Context, tenant *Tenant, caller token.Caller, call RevokeCall) (delegation.Target, error) {
	if len(call.Reason) > maxReason {
		return delegation.Target{}, delegation.Refuse(delegation.ParameterInvalid, "reason", "at most %d bytes", maxReason)
	}
	if delegation.HoldsToken(call.Reason) {
		return delegation.Target{}, delegation.Refuse(delegation.ParameterInvalid, "reason", "must not hold a token, because it is recorded; give the reason in words")
	}
	target, unreadable := revocationTarget(ctx, tenant, call)
	if unreadable != nil && unreadable.Reason != delegation.NotFound {
		return delegation.Target{}, unreadable
	}
	// OpenFGA is asked about an absent target too. Neither the answer nor its time distinguishes it
	// from a target of another principal.
	may, err := e.mayRevoke(ctx, tenant, caller.Principal, target)
	switch {
	case err != nil:
		return delegation.Target{}, err
	case unreadable != nil:
		return delegation.Target{}, unreadable
	case !may:
		return delegation.Target{}, nothingToRevoke(call)
	}
	return target, nil
}

// nothingToRevoke is the answer about an absent target, and about a target that the caller may not
// revoke.
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

// revocationTarget parses the target strictly.
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

// mayRevoke is the only function that decides what a caller may revoke. Responders may revoke
// everything. The rights of other callers follow from what they hold; an unknown jti or txn is a
// responder's only. A caller revokes what it holds itself without a question to OpenFGA.
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
	relations := []policy.Relation{{User: string(caller), Relation: "responder", Object: system}}
	if slices.Contains([]delegation.TargetKind{delegation.CutAgent, delegation.CutAgentSubject, delegation.BanSuspend, delegation.Resume}, t.Kind) {
		relations = append(relations, policy.Relation{User: string(caller), Relation: "operator", Object: t.ID})
	}
	has, err := tenant.Policy.HasEach(ctx, relations)
	if t.Kind != delegation.Resume && e.inEmergency(ctx, tenant, caller, err) {
		return true, nil
	}
	return slices.Contains(has, true), err
}

// inEmergency is isEmergency for a caller that then has a responder's rights, which is logged.
func (e *Engine) inEmergency(ctx context.Context, tenant *Tenant, caller delegation.Principal, failed error) bool {
	if !e.isEmergency(ctx, tenant, caller, failed) {
		return false
	}
	e.config.Logger.WarnContext(ctx, "emergency responder admitted without OpenFGA",
		"tenant", tenant.Name, "caller", caller, "cause", delegation.AsError(failed).Unwrap())
	return true
}

// readyPatience bounds the wait for OpenFGA's readiness, independently of the caller's deadline.
// The call's own question took up to one of its 1.8 seconds before.
const readyPatience = 300 * time.Millisecond

// isEmergency reports whether the caller has a responder's rights because OpenFGA did not respond
// (failed). The configuration must name the caller as an emergency responder. A call that has no
// time left is no emergency. One failed question is not sufficient either, because the caller may
// have made it slow: OpenFGA's readiness must fail too.
func (e *Engine) isEmergency(ctx context.Context, tenant *Tenant, caller delegation.Principal, failed error) bool {
	refusal := delegation.AsError(failed)
	if refusal == nil || refusal.Reason != delegation.DependencyDown || ctx.Err() != nil || !slices.Contains(tenant.EmergencyResponders, caller) {
		return false
	}
	_, down, _ := e.flights.Do("openfga "+tenant.Name, func() (any, error) {
		ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), readyPatience)
		defer cancel()
		return nil, tenant.Policy.Ready(ctx)
	})
	return down != nil
}

// grant returns a grant by its jti, or nil if it does not exist.
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

// until returns when a revocation may be forgotten. It is zero, which means never, for keys,
// suspensions and resumptions. Other revocations are kept for as long as a token that is issued
// now, so that readers can determine why a token ended. The ledger raises the time, in its
// transaction, to the expiry of all that the target can hit. Therefore neither this instance's
// clock nor the current limits decide what is accepted.
func (e *Engine) until(tenant *Tenant, t delegation.Target) time.Time {
	switch t.Kind {
	case delegation.BanKey, delegation.BanSuspend, delegation.Resume:
		return time.Time{}
	}
	return e.config.Now().Add(tenant.Limits.MaxLifetime + time.Minute)
}

// affected is the answer to a dry run.
func (e *Engine) affected(ctx context.Context, tenant *Tenant, t delegation.Target) (Revoked, error) {
	survey, err := e.config.Ledger.Survey(ctx, tenant.Name, t)
	if err != nil {
		return Revoked{}, delegation.AsError(err)
	}
	grants, tokens, chains, err := survey.Count(ctx, maxAffected)
	if err != nil {
		return Revoked{}, delegation.AsError(err)
	}
	return Revoked{Tokens: tokens, Chains: chains, Counted: true, Grants: grants}, nil
}

// recordRefusal records the refusal of an authenticated caller with what it wanted, spends uses,
// and returns the refusal. If one of the uses was spent before, that is the refusal. A dependency
// that did not respond is no decision: it leaves no entry, and the uses are spent all the same.
func (e *Engine) recordRefusal(ctx context.Context, tenant *Tenant, draft *ledger.Draft, wanted string, err error, uses ...ledger.SingleUse) error {
	refusal := delegation.AsError(err)
	if refusal.Temporary() {
		if err := e.config.Ledger.Spend(ctx, tenant.Name, uses); err != nil {
			return err
		}
		return refusal
	}
	draft.Kind, draft.Reason, draft.Revocation = ledger.KindRefusal, refusal.Reason, nil
	draft.Detail = wanted + ": " + refusal.Description
	if result := e.config.Ledger.AppendAll(ctx, tenant.Name, []*ledger.Draft{draft}, uses)[0]; result.Err != nil {
		if refusal = delegation.AsError(result.Err); result.Receipt.Seq == 0 {
			return refusal // and no entry
		}
	}
	e.metrics.outcomes.WithLabelValues(tenant.Name, string(refusal.Reason)).Inc()
	return refusal
}

// announce publishes the revocation in Redis, which wakes the other instances. It does so also if
// the caller hung up, and is bounded in time. A failure is no failure of the revocation, because
// the follower mends the lists from the ledger. Only one failure is an error: Redis has a later
// incarnation of the ledger. This ledger was then given up, and the revocation is not in force.
func (e *Engine) announce(ctx context.Context, tenant *Tenant, r delegation.Revocation) error {
	err := e.config.Guard.Publish(context.WithoutCancel(ctx), tenant.Name, r)
	if errors.Is(err, guard.ErrSuperseded) {
		return delegation.Unavailable("ledger", err)
	}
	if err != nil {
		e.config.Logger.WarnContext(ctx, "a revocation is durable but not in Redis yet", "tenant", tenant.Name, "entry", r.Seq, "cause", err)
	}
	return nil
}
