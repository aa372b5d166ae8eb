package token

import (
	"context"
	"errors"
	"time"

	"deputy.example/deputy/client/delegation"
)

// maxAssertionAge is the longest time since the issue of a client assertion, and the longest time
// to its expiry, by a clock that is correct to within the skew.
const maxAssertionAge = 5 * time.Minute

// Caller is the principal that authenticated a request.
type Caller struct {
	Principal delegation.Principal
	// Key is the thumbprint of the client's signing key, or of the certificate; "" for a workload's
	// JWT.
	Key    string
	Method string // the method of the proof: one of the Method constants
	Use    *Use   // must be new, or the assertion is a replay; nil: reusable until it expires
	// Confirmation is what the credential is bound to, or nil. A bound credential authenticates
	// only a presenter that proves possession.
	Confirmation *delegation.Confirmation
}

// Use identifies an assertion that is single-use.
type Use struct {
	Issuer string    // the client
	Key    string    // thumbprint of the key that signed
	ID     string    // jti
	Made   time.Time // iat, or without it the earliest time at which the assertion was acceptable
	Until  time.Time // when the assertion expires, and its use may be forgotten
}

// Caller authenticates a client by its assertion (private_key_jwt, RFC 7523 §3): iss and sub are
// the client, aud is the tenant's issuer as a string and not as a list (RFC 7523bis §4), jti is
// present, and exp is at most five minutes ahead. It records no use: the code that records the
// request does that.
//
// Every fault gives the same ClientUnauthenticated. The cause of the error holds the broken rule. A
// client that is not registered costs as much work as one that is.
func (t *Trust) Caller(ctx context.Context, assertion string) (Caller, error) {
	p, err := t.read(assertion)
	if err != nil {
		return Caller{}, unauthenticated(err)
	}
	return t.client(ctx, p)
}

// Bearer authenticates by the credential in "authorization: Bearer" metadata: a client assertion,
// exactly as Caller accepts it, or a workload's JWT of caller audience. Errors are those of Caller,
// or DependencyDown where the keys of a workload issuer are not available.
func (t *Trust) Bearer(ctx context.Context, credential string) (Caller, error) {
	p, err := t.read(credential)
	if err != nil {
		return Caller{}, unauthenticated(err)
	}
	var a Actor
	i, isIssuer := t.issuers[p.claims.Issuer]
	d, isSVID := t.svidDomain(p)
	switch {
	case isIssuer && i.Workloads:
		a, err = t.workload(ctx, i, p, delegation.TokenTypeJWT)
	case isSVID:
		a, err = t.svid(ctx, d, p, delegation.TokenTypeJWT)
	default:
		return t.client(ctx, p)
	}
	switch down, typed := errors.AsType[*delegation.Error](err); {
	case typed && down.Reason == delegation.DependencyDown:
		return Caller{}, down
	case err != nil:
		return Caller{}, unauthenticated(err)
	case !a.Authenticates:
		return Caller{}, unauthenticated(broken("it only names an actor"))
	}
	return Caller{Principal: a.Principal, Method: a.Method, Confirmation: a.Confirmation}, nil
}

func (t *Trust) client(ctx context.Context, p presented) (Caller, error) {
	c, key, err := t.callerKey(ctx, p)
	if forged := key.verify(p.Unverified); err == nil {
		err = forged
	}
	if err == nil {
		err = t.authenticates(p)
	}
	if err != nil {
		return Caller{}, unauthenticated(err)
	}
	return Caller{
		Principal: c.principal, Key: key.thumbprint, Method: MethodPrivateKeyJWT,
		Use: &Use{Issuer: p.claims.Issuer, Key: key.thumbprint, ID: p.claims.ID, Made: t.made(p), Until: time.Unix(p.claims.ExpiresAt, 0)},
	}, nil
}

func unauthenticated(cause error) error {
	return delegation.Refuse(delegation.ClientUnauthenticated, "",
		"the caller could not be authenticated: send a private_key_jwt assertion, a workload JWT whose audience is the tenant's issuer, or a client certificate that the tenant knows").WithCause(cause)
}

// callerKey returns the client and its key. If there is none, it returns an error and a decoy for
// the verification. The alg of the assertion selects the decoy, not the set of registered clients.
func (t *Trust) callerKey(ctx context.Context, p presented) (*client, *publicKey, error) {
	decoy, known := t.decoys[p.Header.Algorithm]
	if !known {
		return nil, t.decoys["ES256"], broken("its algorithm is not one that signs with a key pair")
	}
	c, known := t.clients[p.claims.Issuer]
	if !known {
		return nil, decoy, broken("no such client")
	}
	key, err := c.keys.key(ctx, p.Header.KeyID)
	if err != nil {
		return nil, decoy, err
	}
	if key.algorithm.String() != p.Header.Algorithm {
		return nil, decoy, broken("its algorithm is not the one of its key")
	}
	return c, key, nil
}

// made returns when the assertion was issued or, without iat, the earliest time at which it was
// acceptable.
func (t *Trust) made(p presented) time.Time {
	if p.claims.IssuedAt != 0 {
		return time.Unix(p.claims.IssuedAt, 0)
	}
	return time.Unix(p.claims.ExpiresAt, 0).Add(-maxAssertionAge - t.skew)
}

func (t *Trust) authenticates(p presented) error {
	if !(typRule{typAbsent, typJWT, typClientAuth}).fits(p.Header.Type) {
		return broken("its typ is not that of a client assertion")
	}
	if err := t.timely(p.claims, t.skew); err != nil {
		return err
	}
	now := t.now()
	switch r := p.claims; {
	case r.Subject != r.Issuer:
		return broken("its sub is not its iss")
	case !addressed(p, t.issuer) || !single(p):
		return broken("its aud is not exactly this tenant's issuer, as a string")
	case r.ID == "":
		return broken("it has no jti")
	case time.Unix(r.ExpiresAt, 0).After(now.Add(maxAssertionAge + t.skew)):
		return broken("it expires too late")
	case r.IssuedAt != 0 && time.Unix(r.IssuedAt, 0).Before(now.Add(-maxAssertionAge-t.skew)):
		return broken("it was issued too long ago")
	}
	return nil
}

// single reports whether aud is a string. A list of one value is another text with the same
// meaning, and an assertion has one form.
func single(p presented) bool {
	_, err := p.StringClaim("aud")
	return err == nil
}
