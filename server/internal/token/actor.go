package token

import (
	"context"
	"time"

	"deputy.example/deputy/client/delegation"
)

// The ways in which a principal is proven, as ledger entries record them.
const (
	MethodPrivateKeyJWT = "private_key_jwt" // an assertion that the client signed for this request (RFC 7523)
	MethodWorkloadJWT   = "workload_jwt"    // a trusted issuer's token about a workload
	MethodActorJWT      = "actor_jwt"       // a client's own statement that only names it
)

// maxActorLifetime bounds how long a client's own actor credential may still live.
const maxActorLifetime = time.Hour

// Actor is a verified actor token. None of them is single-use.
type Actor struct {
	Principal delegation.Principal
	// Authenticates: the token was addressed to the tenant's issuer, so whoever presents it is the
	// principal. Otherwise it was addressed to the actor audience and only names the principal: it says
	// nothing about who presents it.
	Authenticates bool
	// Confirmation is what the actor's tokens shall be bound to (cnf), or nil. A token that authenticates
	// is bound to it itself: it authenticates only whoever proves that.
	Confirmation *delegation.Confirmation
	Method       string // MethodWorkloadJWT, MethodJWTSVID or MethodActorJWT
}

// Actor verifies an actor token that was presented with the given token type URN. Errors are
// ActorTokenInvalid with the broken rule, or TokenTypeUnsupported or DependencyDown.
func (t *Trust) Actor(ctx context.Context, raw, tokenType string) (Actor, error) {
	if err := checkTokenType(actorSlot, tokenType); err != nil {
		return Actor{}, err
	}
	p, err := t.read(raw)
	if err != nil {
		return Actor{}, actorSlot.refuse(err)
	}
	a, err := t.actor(ctx, p, tokenType)
	if err != nil {
		return Actor{}, actorSlot.refuse(err)
	}
	return a, nil
}

func (t *Trust) actor(ctx context.Context, p presented, tokenType string) (Actor, error) {
	if p.claims.Issuer == t.issuer {
		return Actor{}, broken("a derived token names no actor")
	}
	if c, known := t.clients[p.claims.Issuer]; known {
		return t.selfNamed(ctx, c, p, tokenType)
	}
	if i, known := t.issuers[p.claims.Issuer]; known && i.Workloads {
		return t.workload(ctx, i, p, tokenType)
	}
	if d, known := t.svidDomain(p); known {
		return t.svid(ctx, d, p, tokenType)
	}
	return Actor{}, broken("its issuer is not trusted to name actors here")
}

// workload takes a trusted issuer's token about one of its workloads.
func (t *Trust) workload(ctx context.Context, i *issuer, p presented, tokenType string) (Actor, error) {
	if !t.typFits(i.workloadTypesFor(tokenType), p.Header.Type) {
		return Actor{}, broken("its typ does not fit the token type it was presented with")
	}
	if _, err := t.signedBy(ctx, i.keys, p); err != nil {
		return Actor{}, err
	}
	if err := t.timely(p.claims, i.skew); err != nil {
		return Actor{}, err
	}
	a, err := t.workloadOf(p)
	if err != nil {
		return Actor{}, err
	}
	a.Principal, err = t.named(i, p)
	return a, err
}

// workloadOf says what a verified token about a workload may do here: authenticate it, or only name it.
func (t *Trust) workloadOf(p presented) (Actor, error) {
	a := Actor{Method: MethodWorkloadJWT}
	switch {
	case t.addressed(p, t.issuer):
		a.Authenticates = true
	case !t.addressed(p, delegation.ActorAudience(t.issuer)):
		return Actor{}, errActorAudience
	}
	var err error
	if a.Confirmation, err = confirmation(p); err != nil {
		return Actor{}, err
	}
	if _, delegated := p.Claim("act"); delegated {
		return Actor{}, broken("it is about a delegation itself")
	}
	return a, nil
}

// workloadTypesFor allows, beside what a subject token may have, the untyped JWTs that workloads
// usually get: nothing but an audience of this tenant's makes them acceptable.
func (i *issuer) workloadTypesFor(tokenType string) typRule {
	if tokenType == delegation.TokenTypeJWT {
		return typRule{typAbsent, typJWT, typJOSE, delegation.HeaderTypeAccessToken}
	}
	return i.typesFor(tokenType)
}

// selfNamed takes what a registered client signed to be named by. It never authenticates: for that a
// client presents a client assertion, which is single-use.
func (t *Trust) selfNamed(ctx context.Context, c *client, p presented, tokenType string) (Actor, error) {
	if tokenType != delegation.TokenTypeJWT {
		return Actor{}, broken("what a client signs itself is of token type jwt")
	}
	if !t.typFits(typRule{typAbsent, typJWT}, p.Header.Type) {
		return Actor{}, broken("its typ is not JWT")
	}
	if _, err := t.signedBy(ctx, c.keys, p); err != nil {
		return Actor{}, err
	}
	if err := t.timely(p.claims, t.skew); err != nil {
		return Actor{}, err
	}
	switch {
	case !t.addressed(p, delegation.ActorAudience(t.issuer)):
		return Actor{}, errActorAudience
	case p.claims.Subject != p.claims.Issuer:
		return Actor{}, broken("its sub is not the client that signed it")
	case time.Unix(p.claims.ExpiresAt, 0).After(t.now().Add(maxActorLifetime + t.skew)):
		return Actor{}, broken("it expires too late")
	}
	bound, err := confirmation(p)
	return Actor{Principal: c.principal, Confirmation: bound, Method: MethodActorJWT}, err
}

const errActorAudience = broken("its aud is not exactly one of those that this tenant gives to actors")

// addressed says whether the token is meant for this audience and no other.
func (t *Trust) addressed(p presented, audience string) bool {
	return len(p.claims.Audience) == 1 && t.intended(p.claims.Audience, []string{audience})
}

// confirmation is the token's cnf, or nil without one. Any way of binding but the two that Deputy knows
// is refused, because a binding that is not understood must not get lost.
func confirmation(p presented) (*delegation.Confirmation, error) {
	raw, present := p.Claim("cnf")
	if !present {
		return nil, nil
	}
	c, err := delegation.ReadConfirmation(raw)
	if err != nil {
		return nil, broken("its cnf holds something other than one jkt or one x5t#S256")
	}
	return c, nil
}
