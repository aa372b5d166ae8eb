package token

import (
	"context"
	"errors"
	"slices"
	"time"

	"deputy.example/deputy/client/delegation"
)

// broken is a rule that a token breaks. Its text may be sent to the presenter: it holds no part of
// the token.
type broken string

func (b broken) Error() string { return string(b) }

// slot is the parameter in which a token was presented. It determines reason and field of a
// refusal.
type slot string

const (
	subjectSlot slot = "subject_token"
	actorSlot   slot = "actor_token"
	anySlot     slot = "token"
)

// refuse names the broken rule. An error that already has its reason keeps it.
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

// presented is a token of valid form. Nothing in it is verified yet.
type presented struct {
	*delegation.Unverified
	raw    string // the whole token
	claims delegation.Registered
	memory *remembered // of exactly these bytes, or nil
}

func (t *Trust) read(raw string) (presented, error) {
	if known := t.memory.recall(raw); known != nil {
		return known.presented, nil
	}
	u, err := delegation.Parse(raw)
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

// Audiences returns the audiences in a token. They are not verified: use them to choose the rules
// that verify the token, never to decide anything.
func (t *Trust) Audiences(raw string) ([]string, error) {
	if known := t.memory.recall(raw); known != nil {
		return known.StringsClaim("aud")
	}
	u, err := delegation.Parse(raw)
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

// authentic checks the signature, unless the same key has verified it before. It is for tokens that
// come more than once: a client's assertion never does.
func (t *Trust) authentic(key *publicKey, p presented) error {
	if p.memory != nil && p.memory.by.Load() == key {
		return nil
	}
	if err := key.verify(p.Unverified); err != nil {
		return err
	}
	if p.memory != nil {
		p.memory.by.Store(key)
	} else {
		t.memory.keep(p, key)
	}
	return nil
}

// timely is RFC 7519 §4.1.4 to 4.1.6: exp without leeway, nbf and iat with the skew of their
// issuer.
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

// isIntended reports whether one of the audiences is acceptable. A token without audiences never
// is.
func isIntended(audiences, acceptable []string) bool {
	return slices.ContainsFunc(audiences, func(a string) bool { return slices.Contains(acceptable, a) })
}

// typRule is a set of acceptable "typ" header values in lower case; "" is the absent one.
type typRule []string

func (rule typRule) fits(typ string) bool { return slices.Contains(rule, typ) }

// Header types other than at+jwt.
const (
	typAbsent     = ""
	typJWT        = "jwt"
	typJOSE       = "jose"                      // permitted in SPIFFE JWT-SVIDs
	typClientAuth = "client-authentication+jwt" // RFC 7523bis
)

// typesFor returns the typ values that an issuer's token may have with the given token type, so
// that a token for one purpose is never accepted for another (RFC 8725 §3.11).
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

// checkTokenType refuses the token types without a rule.
func checkTokenType(s slot, tokenType string) error {
	switch tokenType {
	case delegation.TokenTypeAccessToken, delegation.TokenTypeIDToken, delegation.TokenTypeJWT:
		return nil
	}
	return delegation.Refuse(delegation.TokenTypeUnsupported, string(s)+"_type",
		"want %s, %s or %s", delegation.TokenTypeAccessToken, delegation.TokenTypeIDToken, delegation.TokenTypeJWT)
}

// Own verifies one of the tenant's own tokens, for introspection: signature, time and consistent
// claims. It does not check whether the token was revoked, is meant for its holder, or is bound to
// a key that was proven (Claims.Confirmation).
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

// Issued verifies that a token is one of the tenant's own, whether or not it is in force. It is for
// its revocation, which must not fail because the token expired first.
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
	if !(typRule{delegation.HeaderTypeAccessToken}).fits(p.Header.Type) {
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
	if err != nil { // signed by this tenant and yet invalid: the cause would repeat claims
		return delegation.Claims{}, broken("its claims are not those of a derived token")
	}
	return claims, nil
}
