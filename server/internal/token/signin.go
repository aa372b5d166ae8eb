package token

import (
	"context"
	"crypto/subtle"
	"time"

	"deputy.example/deputy/client/delegation"
)

// MethodSignIn is the method by which a person is proven who signed in with an ID token.
const MethodSignIn = "sign_in"

// maxSignInAge is the maximum age of an ID token: it comes directly from the issuer, in answer to a
// sign-in that has just begun.
const maxSignInAge = 5 * time.Minute

// idTokenSlot is the slot of an ID token that signs a person in.
const idTokenSlot slot = "id_token"

// SignIn describes the ID token that signs a person in.
type SignIn struct {
	IDToken  string
	Issuer   string // the issuer of the request: a token of any other issuer is refused
	ClientID string // the requester's client_id at the issuer: the token's audience
	Nonce    string // of the request that the token answers; never ""
}

// SignIn verifies the ID token with which a trusted issuer answered a sign-in (OpenID Connect Core
// 1.0 section 3.1.3.7). It returns the principal that the token names by the issuer's mapping. It
// does not check whether the issuer's ID tokens may begin a chain. Errors are SubjectTokenInvalid
// with the broken rule, ProofRequired, or DependencyDown where the issuer's keys are not available.
func (t *Trust) SignIn(ctx context.Context, s SignIn) (delegation.Principal, error) {
	p, err := t.read(s.IDToken)
	if err != nil {
		return "", idTokenSlot.refuse(err)
	}
	who, err := t.signIn(ctx, p, s)
	if err != nil {
		return "", idTokenSlot.refuse(err)
	}
	return who, nil
}

func (t *Trust) signIn(ctx context.Context, p presented, s SignIn) (delegation.Principal, error) {
	i, trusted := t.issuers[p.claims.Issuer]
	switch {
	case !trusted || p.claims.Issuer != s.Issuer:
		return "", broken("its issuer is not the one that was asked")
	case s.ClientID == "" || s.Nonce == "":
		return "", broken("no sign-in asked for it")
	case s.ClientID == t.issuer || s.ClientID == delegation.ActorAudience(t.issuer):
		return "", broken("what is addressed to the tenant is a credential of workloads")
	case !(typRule{typAbsent, typJWT}).fits(p.Header.Type):
		return "", broken("its typ is not that of an ID token")
	}
	if _, err := t.signedBy(ctx, i.keys, p); err != nil {
		return "", err
	}
	if err := t.timely(p.claims, i.skew); err != nil {
		return "", err
	}
	nonce, err := p.StringClaim("nonce")
	switch {
	case err != nil || subtle.ConstantTimeCompare([]byte(nonce), []byte(s.Nonce)) != 1:
		return "", broken("its nonce is not that of this sign-in")
	case !isIntended(p.claims.Audience, []string{s.ClientID}):
		return "", broken("it is meant for another audience")
	case p.claims.IssuedAt == 0 || time.Unix(p.claims.IssuedAt, 0).Before(t.now().Add(-maxSignInAge-i.skew)):
		return "", broken("it was not issued just now")
	}
	if _, named := p.Claim("azp"); named || len(p.claims.Audience) > 1 {
		if party, err := p.StringClaim("azp"); err != nil || party != s.ClientID {
			return "", broken("it was issued to another party")
		}
	}
	if _, bound := p.Claim("cnf"); bound {
		return "", delegation.Refuse(delegation.ProofRequired, string(idTokenSlot), "the token is bound to a key, which a sign-in cannot prove")
	}
	return i.named(p)
}

// Names reports whether a token of the issuer could name the principal, by the present mapping.
func (t *Trust) Names(issuer string, p delegation.Principal) bool {
	i, trusted := t.issuers[issuer]
	return trusted && i.names(p)
}

// MayBegin reports whether a token of some issuer could begin a chain on behalf of the principal.
func (t *Trust) MayBegin(p delegation.Principal) bool {
	for _, i := range t.issuers {
		if len(i.Audiences) > 0 && i.names(p) {
			return true
		}
	}
	return false
}
