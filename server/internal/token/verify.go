package token

import (
	"context"
	"errors"
	"slices"
	"time"

	"deputy.example/deputy/client/delegation"
)

// broken is a rule that a token breaks, in words that may be sent to whoever presented it: they hold
// no part of the token.
type broken string

func (b broken) Error() string { return string(b) }

// slot is the parameter that a token was presented in. It decides how a refusal is named.
type slot string

const (
	subjectSlot slot = "subject_token"
	actorSlot   slot = "actor_token"
	anySlot     slot = "token"
)

// refuse names the broken rule. An error that has its reason already keeps it.
func (s slot) refuse(err error) error {
	if typed, ok := errors.AsType[*delegation.Error](err); ok {
		return typed
	}
	reason := delegation.SubjectTokenInvalid
	if s == actorSlot {
		reason = delegation.ActorTokenInvalid
	}
	if rule, ok := errors.AsType[broken](err); ok {
		return delegation.Refuse(reason, string(s), "the token is refused: %s", rule)
	}
	return delegation.Refuse(reason, string(s), "the token is refused").WithCause(err)
}

// presented is a token whose form is right. Nothing in it is believed yet.
type presented struct {
	*delegation.Unverified
	raw    string // all of it
	claims delegation.Registered
	memory *remembered // of these very bytes, or nil
}

func (t *Trust) read(raw string) (presented, error) {
	if known := t.memory.recall(raw); known != nil {
		return known.presented, nil
	}
	u, err := t.parse(raw)
	if err != nil {
		return presented{}, broken(err.Error())
	}
	registered := (*delegation.Unverified).Registered
	if mayLackIssuer(u) {
		registered = (*delegation.Unverified).RegisteredSVID
	}
	claims, err := registered(u)
	if err != nil {
		return presented{}, broken(err.Error())
	}
	return presented{Unverified: u, raw: raw, claims: claims}, nil
}

// Audiences are whom a token says that it is for. Nobody has verified it: use them to choose by whose rules
// that shall be done, never to decide anything.
func (t *Trust) Audiences(raw string) ([]string, error) {
	if known := t.memory.recall(raw); known != nil {
		return known.StringsClaim("aud")
	}
	u, err := t.parse(raw)
	if err != nil {
		return nil, err
	}
	return u.StringsClaim("aud")
}

// signedBy checks the signature with the key that the token names among those of its source.
func (t *Trust) signedBy(ctx context.Context, keys *source, p presented) (*publicKey, error) {
	key, err := keys.key(ctx, p.Header.KeyID)
	if err != nil {
		return nil, err
	}
	return key, t.authentic(key, p)
}

// authentic checks the signature, unless this very key has found it right before. It is for tokens that
// come more than once: a client's assertion never does.
func (t *Trust) authentic(key *publicKey, p presented) error {
	if p.memory != nil && p.memory.by.Load() == key {
		return nil
	}
	if err := t.verify(key, p.Unverified); err != nil {
		return err
	}
	if p.memory != nil {
		p.memory.by.Store(key)
	} else {
		t.memory.keep(p, key)
	}
	return nil
}

// timely is RFC 7519 §4.1.4 to 4.1.6: exp without leeway, nbf and iat with the skew of their issuer.
func (t *Trust) timely(r delegation.Registered, skew time.Duration) error {
	now := t.now()
	latest := now.Add(skew).Unix()
	switch {
	case !now.Before(time.Unix(r.ExpiresAt, 0)):
		return broken("it has expired")
	case r.NotBefore > latest:
		return broken("it is not valid yet")
	case r.IssuedAt > latest:
		return broken("it was issued in the future")
	case r.IssuedAt >= r.ExpiresAt:
		return broken("it expired when it was issued")
	}
	return nil
}

// isIntended says whether one of the audiences is acceptable. No audience never is.
func isIntended(audiences, acceptable []string) bool {
	return slices.ContainsFunc(audiences, func(a string) bool { return slices.Contains(acceptable, a) })
}

// typRule is a set of acceptable "typ" header values, lower-cased; "" is the absent one.
type typRule []string

func (rule typRule) fits(typ string) bool { return slices.Contains(rule, typ) }

// Header types beside at+jwt.
const (
	typAbsent     = ""
	typJWT        = "jwt"
	typJOSE       = "jose"                      // SPIFFE JWT-SVIDs may say so
	typClientAuth = "client-authentication+jwt" // RFC 7523bis
)

// typesFor says which typ an issuer's token may have in a slot of the given token type, so that a
// token made for one purpose never serves another (RFC 8725 §3.11).
func (i *issuer) typesFor(tokenType string) typRule {
	access := typRule{delegation.HeaderTypeAccessToken}
	if i.UntypedAccessTokens {
		access = append(access, typJWT, typAbsent)
	}
	var id typRule
	if i.IDTokens {
		id = typRule{typJWT, typAbsent}
	}
	switch tokenType {
	case delegation.TokenTypeAccessToken:
		return access
	case delegation.TokenTypeIDToken:
		return id
	case delegation.TokenTypeJWT:
		return append(access, id...)
	}
	return nil
}

// checkTokenType refuses the token types that no rule here is about.
func checkTokenType(s slot, tokenType string) error {
	switch tokenType {
	case delegation.TokenTypeAccessToken, delegation.TokenTypeIDToken, delegation.TokenTypeJWT:
		return nil
	}
	return delegation.Refuse(delegation.TokenTypeUnsupported, string(s)+"_type",
		"want %s, %s or %s", delegation.TokenTypeAccessToken, delegation.TokenTypeIDToken, delegation.TokenTypeJWT)
}

// Own verifies one of the tenant's own tokens, for introspection: signature, time and that its claims
// agree with themselves. Whether it was revoked, whether it is meant for whoever holds it and whether
// a bound one was proven (Claims.Confirmation) is not asked here.
func (t *Trust) Own(raw string) (delegation.Claims, error) {
	p, err := t.read(raw)
	if err != nil {
		return delegation.Claims{}, anySlot.refuse(err)
	}
	claims, err := t.own(p)
	if err != nil {
		return delegation.Claims{}, anySlot.refuse(err)
	}
	return claims, nil
}

// Issued verifies that a token is one of the tenant's own, whether or not it is in force: for its
// revocation, which must not fail because the clock was faster.
func (t *Trust) Issued(raw string) (delegation.Claims, error) {
	p, err := t.read(raw)
	if err != nil {
		return delegation.Claims{}, anySlot.refuse(err)
	}
	claims, err := t.signedByUs(p)
	if err != nil {
		return delegation.Claims{}, anySlot.refuse(err)
	}
	return claims, nil
}

func (t *Trust) own(p presented) (delegation.Claims, error) {
	claims, err := t.signedByUs(p)
	if err != nil {
		return delegation.Claims{}, err
	}
	return claims, t.timely(p.claims, t.skew)
}

func (t *Trust) signedByUs(p presented) (delegation.Claims, error) {
	if p.claims.Issuer != t.issuer {
		return delegation.Claims{}, broken("its issuer is not this one")
	}
	if !t.typFits(typRule{delegation.HeaderTypeAccessToken}, p.Header.Type) {
		return delegation.Claims{}, broken("its typ is not at+jwt")
	}
	key, err := t.keys.find(p.Header.KeyID)
	if err != nil {
		return delegation.Claims{}, err
	}
	if err := t.authentic(key, p); err != nil {
		return delegation.Claims{}, err
	}
	claims, err := p.Claims()
	if err != nil { // signed by us and yet not ours: the cause would repeat claims
		return delegation.Claims{}, broken("its claims are not those of a derived token")
	}
	return claims, nil
}
