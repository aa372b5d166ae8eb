package exchange

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"math"
	"slices"
	"time"

	"deputy.example/deputy/client/delegation"
	"deputy.example/deputy/server/internal/ledger"
	"deputy.example/deputy/server/internal/policy"
	"deputy.example/deputy/server/internal/token"
)

// front is step 1. It determines the tenant and the caller. Before both are known, nothing is
// decided and nothing is recorded.
func (w *walk) front(ctx context.Context) error {
	if len(w.children) == 0 {
		return delegation.Refuse(delegation.ParameterMissing, "children", "ask for at least one child")
	}
	first := w.children[0]
	var err error
	if w.arrival, err = w.authenticate(ctx, w.call.Tenant, w.call.Credentials, &actorToken{first.ActorToken, first.ActorTokenType}); err != nil {
		return err
	}
	first.named = w.named
	return nil
}

// actorToken is an actor_token with its type.
type actorToken struct{ raw, tokenType string }

// authenticate determines the tenant, the caller, and what the request proves that the caller
// holds. Client authentication comes first. Without it, an actor token of caller audience
// authenticates the caller, and is returned so that it is not verified again. fallback is nil if no
// actor token is possible. A verified assertion is spent, also if another part of the request is
// refused.
func (e *Engine) authenticate(ctx context.Context, addressed string, c Credentials, fallback *actorToken) (arrival, error) {
	a, err := e.identify(ctx, addressed, c, fallback)
	if err != nil {
		return arrival{}, err
	}
	if err = namesCaller(c, a.caller); err == nil {
		a.held, err = e.hold(ctx, a.tenant, c)
	}
	if err == nil {
		err = e.bound(a, c)
	}
	if err == nil {
		noteAuthenticated(ctx)
		return a, nil
	}
	return a, e.asUnknown(ctx, a, cmp.Or(e.spendRefused(ctx, a), err))
}

// spendRefused spends what authenticated a call that is refused before its own entry would spend
// it. It does so within the caller's rate, so that no caller makes the ledger write without bound.
func (e *Engine) spendRefused(ctx context.Context, a arrival) error {
	if len(a.uses()) == 0 {
		return nil
	}
	if err := e.limitCaller(ctx, a); err != nil {
		return err
	}
	return e.config.Ledger.Spend(ctx, a.tenant.Name, a.uses())
}

// spendUndecided spends what authenticated an admitted call that a dependency, or the state of this
// instance, keeps undecided. Otherwise the credential would be good later for another sender. It
// returns undecided, or the refusal of what was used before. Redis is not asked, because it may
// have noted the uses for this very call. The end of the caller's connection does not stop it.
func (e *Engine) spendUndecided(ctx context.Context, a arrival, undecided error) error {
	ctx, cancel := e.within(context.WithoutCancel(ctx))
	defer cancel()
	err := e.config.Ledger.Spend(ctx, a.tenant.Name, a.uses())
	if refusal := delegation.AsError(err); refusal == nil || refusal.Temporary() {
		return undecided
	}
	return err
}

// namesCaller refuses a client_id that is not the credential's subject.
func namesCaller(c Credentials, caller token.Caller) error {
	if c.ClientID != "" && c.ClientID != string(caller.Principal) {
		return unauthenticated(errors.New("client_id is not the credential's subject"))
	}
	return nil
}

func (e *Engine) identify(ctx context.Context, addressed string, c Credentials, fallback *actorToken) (arrival, error) {
	presented := 0
	for _, credential := range []string{c.Assertion, c.Bearer, c.DPoP} {
		if credential != "" {
			presented++
		}
	}
	switch {
	case c.Person != nil:
		return arrival{}, unauthenticated(errors.New("a person who signed in may read and revoke, and nothing else"))
	case presented > 1:
		return arrival{}, delegation.Refuse(delegation.ParameterConflict, "client_assertion",
			"the authorization metadata authenticates the caller too: send one of them")
	case c.Assertion == "" && (c.AssertionType != "" || c.ClientID != "" && (presented > 0 || len(c.Certificates) == 0)):
		return arrival{}, delegation.Refuse(delegation.ParameterMissing, "client_assertion",
			"client_assertion_type needs a client_assertion, and client_id one or a client certificate")
	case c.Assertion != "" && c.AssertionType != delegation.ClientAssertionTypeJWTBearer:
		return arrival{}, delegation.Refuse(delegation.ParameterInvalid, "client_assertion_type",
			"must be %s", delegation.ClientAssertionTypeJWTBearer)
	case c.DPoP != "" && c.Proof == nil:
		return arrival{}, delegation.Refuse(delegation.ParameterMissing, "dpop", "a credential of scheme DPoP needs a proof of its key (RFC 9449 section 7.1)")
	}
	credential := c.Assertion + c.Bearer + c.DPoP // all but one are empty
	if credential == "" {
		if a, known, err := e.identifyCertificate(ctx, addressed, c); known || err != nil {
			return a, err
		}
		if fallback != nil {
			return e.identifyActor(ctx, addressed, *fallback)
		}
	}
	tenant, err := e.tenantOf(addressed, credential)
	if err != nil {
		return arrival{}, err
	}
	verify := tenant.Trust.Bearer
	if c.Assertion != "" {
		verify = tenant.Trust.Caller
	}
	caller, err := verify(ctx, credential)
	if err != nil {
		return arrival{}, err
	}
	return arrival{tenant: tenant, caller: caller}, nil
}

// identifyActor authenticates the caller by an actor token of caller audience. A token of actor
// audience only names an actor: a principal that received it from the actor must not become the
// actor.
func (e *Engine) identifyActor(ctx context.Context, addressed string, t actorToken) (arrival, error) {
	switch {
	case t.raw == "":
		return arrival{}, unauthenticated(errors.New("no credential"))
	case t.tokenType == "":
		return arrival{}, errActorTokenType
	}
	tenant, err := e.tenantOf(addressed, t.raw)
	if err != nil {
		return arrival{}, err
	}
	named, err := tenant.Trust.Actor(ctx, t.raw, t.tokenType)
	if err != nil {
		var refusal *delegation.Error
		if errors.As(err, &refusal) && (refusal.Temporary() || refusal.Reason == delegation.TokenTypeUnsupported) {
			return arrival{}, refusal
		}
		return arrival{}, unauthenticated(err)
	}
	if !named.Authenticates {
		return arrival{}, unauthenticated(errors.New("an actor token of actor audience authenticates no caller"))
	}
	caller := token.Caller{Principal: named.Principal, Method: named.Method, Confirmation: named.Confirmation}
	return arrival{tenant: tenant, caller: caller, named: &named}, nil
}

var errActorTokenType = delegation.Refuse(delegation.ParameterMissing, "actor_token_type", "is required with actor_token (RFC 8693 section 2.1)")

// admit is step 2. It checks the caller's rate and whether its credential is new. The check in
// Redis is early and cheap. The row that decides about a replay is written in step 6.
func (w *walk) admit(ctx context.Context) error {
	err := w.admitCaller(ctx, w.arrival, len(w.children))
	if refusal := delegation.AsError(err); refusal != nil {
		if refusal.Reason == delegation.RequestTooLarge { // before anything was noted
			err = cmp.Or(w.spendRefused(ctx, w.arrival), err)
		}
		return err
	}
	if err := w.serving(ctx, w.tenant.Name); err != nil {
		return w.asUnknown(ctx, w.arrival, w.spendUndecided(ctx, w.arrival, err))
	}
	revoked, err := w.config.Ledger.Revocations(ctx, w.tenant.Name, w.call.ValidateOnly)
	if err != nil {
		return w.spendUndecided(ctx, w.arrival, err)
	}
	return w.standing(ctx, inquirer{w.arrival, revoked}, w.call.Peer, w.uses()...)
}

// admitCaller admits the calls within the caller's rate.
func (e *Engine) admitCaller(ctx context.Context, a arrival, calls int) error {
	err := e.config.Guard.Admit(ctx, a.tenant.Name, a.caller.Principal, calls, a.tenant.CallerRate, a.noted()...)
	return e.asUnknown(ctx, a, e.notAdmitted(ctx, a, err))
}

// limitCaller admits one call, also while Redis does not respond.
func (e *Engine) limitCaller(ctx context.Context, a arrival) error {
	err := e.config.Guard.AdmitOrLimit(ctx, a.tenant.Name, a.caller.Principal, a.tenant.CallerRate, a.noted()...)
	return e.asUnknown(ctx, a, e.notAdmitted(ctx, a, err))
}

// notAdmitted spends what authenticated a call that Redis did not decide about, or whose caller
// hung up meanwhile, within the limit of this instance alone.
func (e *Engine) notAdmitted(ctx context.Context, a arrival, err error) error {
	if refusal := delegation.AsError(err); refusal == nil || refusal.Reason != delegation.DependencyDown ||
		e.config.Guard.LimitUndecided(a.tenant.Name, a.caller.Principal, a.tenant.CallerRate) != nil {
		return err
	}
	return e.spendUndecided(ctx, a, err)
}

// verify is step 3. It verifies the subject token once, and then each child's actor.
func (w *walk) verify(ctx context.Context) error {
	if err := w.checkCall(); err != nil {
		return err
	}
	if w.call.SubjectToken == "" || w.call.SubjectTokenType == "" {
		return delegation.Refuse(delegation.ParameterMissing, "subject_token", "subject_token and subject_token_type are required")
	}
	subject, err := w.tenant.Trust.Subject(ctx, w.call.SubjectToken, w.call.SubjectTokenType)
	if err != nil {
		return err
	}
	if err := w.mustHold(w.held, subject.Confirmation(), "subject_token"); err != nil {
		return err
	}
	if w.parent, err = parentOf(subject, w.tenant.Limits); err != nil {
		return err
	}
	// A grant is checked again in step 6. A check is not, so it needs the revocations of all
	// instances here.
	revoked, err := w.config.Ledger.Revocations(ctx, w.tenant.Name, w.call.ValidateOnly)
	if err != nil {
		return err
	}
	if _, hit := revoked.Hit(w.parent.lineage(w.arrival)); hit {
		return delegation.Refuse(delegation.TokenRevoked, "subject_token", "it, something it descends from, or its caller was revoked")
	}
	// A grant is compared with the head in step 6.
	if w.call.ValidateOnly && w.ahead(w.tenant, w.parent.hops) {
		return delegation.Refuse(delegation.TokenRevoked, "subject_token", "must descend from grants that the ledger holds; obtain a new one")
	}
	for _, c := range w.children {
		if err := w.nameActor(ctx, c, revoked); err != nil {
			c.fail(err)
		} else if _, hit := revoked.Hit(w.lineage(c)); hit {
			c.fail(delegation.Refuse(delegation.TokenRevoked, "actor_token", "the actor, or its key, was revoked"))
		}
	}
	// The same set, after its last Hit: its horizon is raised before a revocation is forgotten.
	// Naming the actors may have taken seconds, because their issuers' keys are fetched.
	if revoked.Forgotten(w.parent.expiresAt) {
		return delegation.Refuse(delegation.SubjectTokenInvalid, "subject_token", "the token is refused: it has expired")
	}
	return nil
}

// checkCall checks the rules between the parameters of the whole call.
func (w *walk) checkCall() error {
	key := w.call.IdempotencyKey
	switch {
	case len(w.children) > w.tenant.Limits.MaxBatch:
		return delegation.Refuse(delegation.ParameterInvalid, "children", "at most %d children in one batch", w.tenant.Limits.MaxBatch)
	case key != "" && w.call.ValidateOnly:
		return delegation.Refuse(delegation.ParameterConflict, "idempotency_key", "validate_only issues nothing that could be repeated")
	case len(key) > 128 || slices.ContainsFunc([]byte(key), func(b byte) bool { return b < 0x21 || b > 0x7e }):
		return delegation.Refuse(delegation.ParameterInvalid, "idempotency_key", "must be at most 128 visible ASCII characters")
	}
	return nil
}

// parentOf returns what a subject token allows: a derived token exactly its claims, a root token
// what its issuer's mapping grants.
func parentOf(s token.Subject, l Limits) (parent, error) {
	switch {
	case s.Derived != nil:
		c := *s.Derived
		p := parent{
			binding: s.Confirmation(),
			issuer:  c.Issuer, id: c.ID, root: c.Delegation.Root, txn: c.Txn,
			subject: c.Subject, actors: c.Act, hops: c.Delegation.Hops,
			scopes: c.Scope, audiences: c.Audience, details: c.Details,
			expiresAt: time.Unix(c.ExpiresAt, 0), depthLeft: c.Delegation.DepthLeft, uses: c.Delegation.Uses, made: time.Unix(c.IssuedAt, 0),
		}
		if c.MayAct != nil {
			p.mayAct = &c.MayAct.Sub
		}
		return p, nil
	case s.Root != nil:
		r := *s.Root
		return parent{
			binding: s.Confirmation(),
			issuer:  r.Issuer, id: r.ID, root: r.Digest,
			subject: r.Principal, actors: r.Actors,
			scopes: r.Scopes, audiences: r.Audiences, details: r.Details,
			issuedAt: r.CutAt, expiresAt: r.ExpiresAt, depthLeft: l.MaxDepth, mayAct: r.MayAct,
		}, nil
	}
	return parent{}, delegation.Refuse(delegation.SubjectTokenInvalid, "subject_token", "it must have a claim")
}

// lineage is what a revocation can name of the parent and of the caller, including the keys that
// the caller signed with: a ban on a stolen key stops the thief.
func (p parent) lineage(by arrival) delegation.Lineage {
	l := delegation.Lineage{
		Root: p.root, RootIssuedAt: p.issuedAt, Txn: p.txn,
		Subject: p.subject, Actors: p.actors, Hops: p.hops, Caller: by.caller.Principal, Keys: by.keys(),
	}
	if p.isRoot() {
		l.RootActors = p.actors
	}
	return l
}

// lineage is the parent's lineage with the child's actor and its key.
func (w *walk) lineage(c *child) delegation.Lineage {
	l := w.parent.lineage(w.arrival)
	l.Actors = w.parent.chainWith(c.actor.principal)
	for _, key := range []string{c.actor.binding.Key(), c.actor.signer} {
		if key != "" {
			l.Keys = append(l.Keys, key)
		}
	}
	return l
}

// nameActor determines the actor of a child.
func (w *walk) nameActor(ctx context.Context, c *child, revoked *delegation.RevocationSet) error {
	var named *actor
	switch {
	case c.ActorToken == "" && c.ActorTokenType != "":
		return delegation.Refuse(delegation.ParameterConflict, "actor_token_type", "must not be sent without actor_token (RFC 8693 section 2.1)")
	case c.ActorToken != "" && c.RequestedActor != "":
		return delegation.Refuse(delegation.ParameterConflict, "requested_actor", "actor_token names the actor already")
	case c.RequestedActor == "" && c.ActorConfirmation != "":
		return delegation.Refuse(delegation.ParameterConflict, "actor_confirmation", "goes with requested_actor")
	case c.ActorToken != "":
		byToken, err := w.actorByToken(ctx, c, revoked)
		if err != nil {
			return err
		}
		named = &byToken
	case c.RequestedActor != "":
		byKey, err := w.actorByKey(c)
		if err != nil {
			return err
		}
		named = &byKey
	}
	if named != nil {
		c.actor = *named // for the record, if the route is refused
		if named.principal != w.caller.Principal && named.hit(revoked) {
			return w.asIfUnknown(c)
		}
	}
	next, err := w.parent.route(w.caller.Principal, named, w.held.binding(), w.tenant.Limits)
	if err != nil {
		return err
	}
	if slices.ContainsFunc(w.parent.actors, func(p delegation.Principal) bool {
		return p != next.principal && w.tenant.Trust.Registered(p, next.binding.Key())
	}) {
		return delegation.Refuse(delegation.ActorUnconfirmed, "actor_confirmation", "the key is registered for an ancestor")
	}
	c.actor = next
	return nil
}

// hit reports whether the actor is suspended, or one of its keys in this request is banned.
func (a actor) hit(revoked *delegation.RevocationSet) bool {
	for _, key := range []string{a.binding.Key(), a.signer} {
		if _, hit := revoked.HitCaller(a.principal, key); hit {
			return true
		}
	}
	return false
}

// asIfUnknown refuses a suspended actor, or one whose key is banned, as an unknown one. A caller
// that names an actor has not proven that it may see that actor's state. The entry has the reason.
func (w *walk) asIfUnknown(c *child) error {
	c.kept = delegation.Refuse(delegation.TokenRevoked, "", "the actor is suspended, or its key is banned")
	if c.named != nil {
		return token.NamesNobody()
	}
	return errNotRegistered
}

var errNotRegistered = delegation.Refuse(delegation.ActorUnconfirmed, "actor_confirmation", "is not a registered key of the requested actor")

func (w *walk) actorByToken(ctx context.Context, c *child, revoked *delegation.RevocationSet) (actor, error) {
	if c.ActorTokenType == "" {
		return actor{}, errActorTokenType
	}
	if c.named == nil {
		verified, err := w.tenant.Trust.Actor(ctx, c.ActorToken, c.ActorTokenType)
		if err != nil {
			return actor{}, err
		}
		c.named = &verified
	}
	named := actor{principal: c.named.Principal, signer: c.named.Signer, proof: c.named.Method}
	if c.named.Confirmation != nil {
		named.binding = *c.named.Confirmation
	}
	switch {
	case !c.named.Authenticates || named.hit(revoked): // nameActor refuses a revoked actor
		return named, nil
	case named.principal != w.caller.Principal:
		return actor{}, delegation.Refuse(delegation.ActorTokenInvalid, "actor_token",
			"it authenticates another caller: ask that actor for a token whose audience is %s", delegation.ActorAudience(w.tenant.Issuer))
	}
	return named, w.mustHold(w.held, c.named.Confirmation, "actor_token")
}

func (w *walk) actorByKey(c *child) (actor, error) {
	principal, err := delegation.ParsePrincipal(c.RequestedActor)
	if err != nil {
		return actor{}, delegation.Refuse(delegation.ParameterInvalid, "requested_actor", "%v", err)
	}
	if c.ActorConfirmation == "" {
		return actor{}, delegation.Refuse(delegation.ParameterMissing, "actor_confirmation", "requested_actor needs the thumbprint of one of that actor's registered keys")
	}
	binding := w.tenant.Trust.Binding(principal, c.ActorConfirmation)
	if binding.Key() == "" {
		return actor{}, errNotRegistered
	}
	return actor{principal: principal, binding: binding, proof: "registered_key"}, nil
}

// plan is step 4. See parent.claims, which is a pure function.
func (w *walk) plan(context.Context) error {
	for _, c := range w.children {
		if c.alive() {
			if err := w.planChild(c); err != nil {
				c.fail(err)
			}
		}
	}
	return nil
}

func (w *walk) planChild(c *child) error {
	var err error
	if c.wish, err = parseWish(c.Child); err != nil {
		return err
	}
	id, err := w.newID(w.now)
	if err != nil {
		return err
	}
	txn := ""
	if w.parent.txn == "" {
		if txn, err = w.newID(w.now); err != nil {
			return err
		}
	}
	if c.claims, err = w.parent.claims(c.actor, c.wish, w.tenant.Limits, w.tenant.Issuer, id, txn, w.now); err != nil {
		return err
	}
	return w.tenant.fits(c.claims)
}

// fits refuses a token that could be recorded and signed but that verifiers would refuse for its
// length.
func (t *Tenant) fits(c delegation.Claims) error {
	payload, err := t.numbered(c, math.MaxInt64)
	if err != nil {
		return err
	}
	size, err := t.Keys.SizeOf(len(payload))
	if err != nil {
		return delegation.Unavailable("the signing keys", err)
	}
	if size > delegation.MaxTokenBytes {
		return delegation.Refuse(delegation.RequestTooLarge, "",
			"the token would have %d bytes, more than %d: ask for fewer scopes, audiences or details", size, delegation.MaxTokenBytes)
	}
	return nil
}

// authorize is step 5. It asks one question for each child, all in as few requests as OpenFGA
// allows. Human approval belongs here, after the policy and before the record.
func (w *walk) authorize(ctx context.Context) error {
	var asking []*child
	var questions []policy.Question
	for _, c := range w.children {
		if c.alive() {
			asking = append(asking, c)
			questions = append(questions, question(c.claims))
		}
	}
	if len(questions) == 0 {
		return nil
	}
	answers := w.tenant.Policy.AskAll(ctx, questions)
	if len(answers) != len(questions) {
		return delegation.Unavailable("policy", fmt.Errorf("%d answers to %d questions", len(answers), len(questions)))
	}
	for i, answer := range answers {
		c := asking[i]
		c.decision = answer.Decision
		switch {
		case answer.Err != nil:
			c.fail(answer.Err)
		case !answer.Decision.Allowed:
			c.fail(w.notPermitted(c))
		}
	}
	return nil
}

// question asks for each edge of the chain, so that a consent that was withdrawn cuts everything
// below it, and for all that the child would hold.
func question(c delegation.Claims) policy.Question {
	q := policy.Question{Subject: c.Subject, Actor: c.Act.Current(), Scopes: c.Scope, Audiences: c.Audience, Details: c.Details}
	from := c.Subject
	for _, to := range c.Act {
		q.Edges = append(q.Edges, policy.Edge{From: from, To: to})
		from = to
	}
	return q
}

// notPermitted is the refusal on the wire. It names the missing relation only if the caller knows
// the principal already: it is the caller itself, or a token of the request names it.
func (w *walk) notPermitted(c *child) *delegation.Error {
	missing := c.decision.Missing
	if missing == nil {
		return delegation.Unavailable("policy", errors.New("a refusal without a missing relation"))
	}
	field := map[delegation.Reason]string{
		delegation.EdgeNotPermitted: "actor_token", delegation.ScopeNotPermitted: "scope",
		delegation.AudienceNotPermitted: "audience", delegation.DetailsNotPermitted: "authorization_details",
	}[missing.Reason]
	who := delegation.Principal(missing.User)
	known := who == w.caller.Principal || who == w.parent.subject || w.parent.actors.Contains(who) ||
		c.named != nil && who == c.named.Principal
	if !known {
		return delegation.Refuse(missing.Reason, field, "a relation that this needs is missing; the ledger names it")
	}
	return delegation.Refuse(missing.Reason, field, "%s has no relation %s to %s", missing.User, missing.Relation.Relation, missing.Object).
		WithMetadata("user", missing.User).WithMetadata("relation", missing.Relation.Relation).WithMetadata("object", missing.Object)
}

// mint is step 7. It signs exactly the claims in the ledger. A signature that fails leaves a void
// entry, so that the record never claims a token that does not exist.
func (w *walk) mint(ctx context.Context) error {
	for _, c := range w.children {
		if !c.alive() || c.outcome.Grant == nil || w.call.ValidateOnly {
			continue
		}
		signed, err := w.tenant.Keys.Sign(c.payload)
		if err != nil {
			w.void(ctx, c, c.outcome.Grant.Entry)
			c.fail(delegation.Refuse(delegation.Internal, "", "the token could not be signed: nothing was issued").WithCause(err))
			continue
		}
		c.outcome.Grant.AccessToken = signed
	}
	return nil
}

// void voids a grant whose token was not delivered, also if the caller hung up. It does not void
// the grant of a retry, because the first answer may have carried the token.
func (w *walk) void(ctx context.Context, c *child, entry uint64) {
	if c.retried {
		return
	}
	_, err := w.config.Ledger.Append(context.WithoutCancel(ctx), w.tenant.Name, &ledger.Draft{
		Kind: ledger.KindVoid, Voids: entry, Caller: w.caller.Principal,
		Reason: delegation.Internal, Peer: w.call.Peer, TraceID: traceID(ctx),
	})
	if err != nil {
		// The grant stays in the ledger without a token. That is harmless; a token without a grant
		// would not be.
		w.config.Logger.ErrorContext(ctx, "a failed signature could not be voided", "entry", entry, "cause", err)
	}
}
