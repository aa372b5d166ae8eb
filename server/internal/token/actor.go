package token

import (
	"context"
	"errors"
	"time"

	"deputy.example/deputy/client/delegation"
)

// Methods by which a principal is proven, as ledger entries record them.
const (
	// MethodPrivateKeyJWT: an assertion that the client signed for this request (RFC 7523).
	MethodPrivateKeyJWT = "private_key_jwt"
	MethodWorkloadJWT   = "workload_jwt" // a token of a trusted issuer about a workload
	MethodActorJWT      = "actor_jwt"    // a client's own statement that only names it
)

// maxActorLifetime is the longest remaining lifetime of a client's own actor credential.
const maxActorLifetime = time.Hour

// Actor is a verified actor token. No actor token is single-use.
type Actor struct {
	Principal delegation.Principal
	// Authenticates: the token's audience is the tenant's issuer, so its presenter is the
	// principal. Otherwise its audience is the actor audience, and it only names the principal: it
	// proves nothing about its presenter.
	Authenticates bool
	// Confirmation is the cnf that the actor's tokens are bound to, or nil. A token that
	// authenticates is bound to it itself: it authenticates only a presenter that proves
	// possession.
	Confirmation *delegation.Confirmation
	Signer       string // thumbprint of the client's signing key; "" for a workload
	Method       string // MethodWorkloadJWT, MethodJWTSVID or MethodActorJWT
}

// Actor verifies an actor token that was presented with the given token type URN. Errors are
// ActorTokenInvalid with the broken rule, TokenTypeUnsupported or DependencyDown.
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
	_, err := t.namedBy(ctx, nil, p)
	return Actor{}, err
}

// errNobody is the one answer to an actor token of an unknown signer, whether its issuer, its key
// or its signature is at fault.
const errNobody = broken("it names no actor that may act here")

// NamesNobody returns the refusal of an actor token that no known signer has signed.
func NamesNobody() *delegation.Error { return delegation.AsError(actorSlot.refuse(errNobody)) }

// namedBy checks the signature before anything else in an actor token, so that only a presenter
// with a token of a known signer learns which other rule is broken. keys is nil for an unknown
// signer; then the check costs as much as with keys.
func (t *Trust) namedBy(ctx context.Context, keys *source, p presented) (signer string, err error) {
	with, known := t.decoys[p.Header.Algorithm]
	if !known {
		return "", errNobody
	}
	err = errNobody
	if keys != nil {
		var key *publicKey
		if key, err = keys.key(ctx, p.Header.KeyID); err == nil {
			if key.algorithm.String() != p.Header.Algorithm {
				// A key of another algorithm would refuse without any work.
				_ = with.verify(p.Unverified)
			}
			with = key
		}
	}
	forged := t.authentic(with, p)
	if _, down := errors.AsType[*delegation.Error](err); down {
		return "", err
	}
	if err != nil || forged != nil {
		return "", errNobody
	}
	return with.thumbprint, nil
}

// workload verifies a trusted issuer's token about one of its workloads.
func (t *Trust) workload(ctx context.Context, i *issuer, p presented, tokenType string) (Actor, error) {
	if _, err := t.namedBy(ctx, i.keys, p); err != nil {
		return Actor{}, err
	}
	if !i.workloadTypesFor(tokenType).fits(p.Header.Type) {
		return Actor{}, broken("its typ does not fit the token type it was presented with")
	}
	if err := t.timely(p.claims, i.skew); err != nil {
		return Actor{}, err
	}
	a, err := t.workloadOf(p)
	if err != nil {
		return Actor{}, err
	}
	a.Principal, err = i.named(p)
	return a, err
}

// workloadOf returns what a verified token about a workload may do here: authenticate it, or only
// name it.
func (t *Trust) workloadOf(p presented) (Actor, error) {
	a := Actor{Method: MethodWorkloadJWT}
	switch {
	case addressed(p, t.issuer):
		a.Authenticates = true
	case !addressed(p, delegation.ActorAudience(t.issuer)):
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

// workloadTypesFor permits, in addition to the types of subject tokens, the untyped JWTs that
// workloads usually get: only an audience of this tenant makes them acceptable.
func (i *issuer) workloadTypesFor(tokenType string) typRule {
	if tokenType == delegation.TokenTypeJWT {
		return typRule{typAbsent, typJWT, typJOSE, delegation.HeaderTypeAccessToken}
	}
	return i.typesFor(tokenType)
}

// selfNamed verifies a token by which a registered client names itself. It never authenticates: for
// that a client presents a client assertion, which is single-use.
func (t *Trust) selfNamed(ctx context.Context, c *client, p presented, tokenType string) (Actor, error) {
	signer, err := t.namedBy(ctx, c.keys, p)
	if err != nil {
		return Actor{}, err
	}
	if tokenType != delegation.TokenTypeJWT {
		return Actor{}, broken("what a client signs itself is of token type jwt")
	}
	if !(typRule{typAbsent, typJWT}).fits(p.Header.Type) {
		return Actor{}, broken("its typ is not JWT")
	}
	if err := t.timely(p.claims, t.skew); err != nil {
		return Actor{}, err
	}
	switch {
	case !addressed(p, delegation.ActorAudience(t.issuer)):
		return Actor{}, errActorAudience
	case p.claims.Subject != p.claims.Issuer:
		return Actor{}, broken("its sub is not the client that signed it")
	case time.Unix(p.claims.ExpiresAt, 0).After(t.now().Add(maxActorLifetime + t.skew)):
		return Actor{}, broken("it expires too late")
	}
	bound, err := confirmation(p)
	return Actor{Principal: c.principal, Confirmation: bound, Signer: signer, Method: MethodActorJWT}, err
}

const errActorAudience = broken("its aud is not exactly one of those that this tenant gives to actors")

// addressed reports whether the token is meant for this audience and no other.
func addressed(p presented, audience string) bool {
	return len(p.claims.Audience) == 1 && isIntended(p.claims.Audience, []string{audience})
}

// confirmation returns the token's cnf, or nil without one. Any confirmation method except the two
// that Deputy supports is refused, because an unknown binding must not get lost.
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
