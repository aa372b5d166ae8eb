package client

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"slices"
	"time"

	"deputy.example/deputy/client/delegation"
)

// VerifierConfig says whose tokens a resource server accepts, and as whom.
type VerifierConfig struct {
	// Issuer of the Deputy tenant: tokens of any other "iss" are refused. Required.
	Issuer string
	// Audience is the name by which this resource server is known to Deputy. A token is accepted
	// only if its "aud" holds it, byte for byte. Required.
	Audience string
	// JWKSURL is where the issuer publishes its keys. Default: Issuer + "/oauth2/jwks".
	JWKSURL string
	// JWKS is a fixed key set to use instead of fetching one. A key that is removed at the issuer
	// stays in force here until the program is restarted with another set.
	JWKS []byte
	// MaxKeyAge is how old a fetched key set may be: 60 s to 1 h. Default: 60 s, which is also how
	// long a key lives on that was removed. A longer age keeps this resource server working while
	// the issuer is down, and a stolen, removed key alive for whoever keeps this resource server
	// from reaching the issuer.
	MaxKeyAge time.Duration
	// HTTPTransport fetches keys. Default: http.DefaultTransport.
	HTTPTransport http.RoundTripper
	// Now is the clock. Default: time.Now.
	Now func() time.Time
}

// futureSkew is how far the issuer's clock may be ahead of ours. It applies to nbf only: a token
// never lives longer than its exp says.
const futureSkew = 10 * time.Second

const (
	defaultMaxKeyAge = time.Minute
	maxMaxKeyAge     = time.Hour
)

// Verifier checks derived tokens for a resource server without a network call per request: the
// issuer's keys are fetched when they are first needed and every 30 s of use. It is safe for
// concurrent use and needs no closing.
//
// A Verifier does not know of revocations: it accepts a token whose chain was revoked until the
// token expires. Where that is too long, ask Client.Introspect, which does know.
type Verifier struct {
	issuer   string
	audience string
	keys     *keySource
	now      func() time.Time

	envelope  []rule[*delegation.Unverified]
	admission []rule[*delegation.Claims]
}

// NewVerifier checks the configuration. It fetches nothing yet.
func NewVerifier(cfg VerifierConfig) (*Verifier, error) {
	v := &Verifier{
		issuer: cfg.Issuer, audience: cfg.Audience, now: cfg.Now,
		envelope: envelopeRules(), admission: admissionRules(),
	}
	if v.now == nil {
		v.now = time.Now
	}
	switch {
	case cfg.Issuer == "":
		return nil, errors.New("deputy verifier: Issuer is missing")
	case cfg.Audience == "":
		return nil, errors.New("deputy verifier: Audience is missing: a token for another service must not open this one")
	case cfg.JWKS != nil && (cfg.JWKSURL != "" || cfg.MaxKeyAge != 0):
		return nil, errors.New("deputy verifier: JWKS excludes JWKSURL and MaxKeyAge")
	case cfg.MaxKeyAge != 0 && (cfg.MaxKeyAge < defaultMaxKeyAge || cfg.MaxKeyAge > maxMaxKeyAge):
		return nil, fmt.Errorf("deputy verifier: MaxKeyAge must be %v to %v", defaultMaxKeyAge, maxMaxKeyAge)
	}
	if cfg.JWKS != nil {
		keys, err := parseKeys(cfg.JWKS)
		if err != nil {
			return nil, fmt.Errorf("deputy verifier: JWKS: %w", err)
		}
		v.keys = &keySource{keys: keys, fixed: true, now: v.now}
		return v, nil
	}
	if cfg.JWKSURL == "" {
		cfg.JWKSURL = cfg.Issuer + "/oauth2/jwks"
	}
	if cfg.MaxKeyAge == 0 {
		cfg.MaxKeyAge = defaultMaxKeyAge
	}
	var err error
	if v.keys, err = newKeySource(cfg.JWKSURL, cfg.HTTPTransport, cfg.MaxKeyAge, v.now); err != nil {
		return nil, fmt.Errorf("deputy verifier: %w", err)
	}
	return v, nil
}

// Delegation is what a verified token says: who acts for whom, and what may be done.
type Delegation struct {
	Claims delegation.Claims
}

// Subject is on whose behalf the request is made.
func (d *Delegation) Subject() delegation.Principal { return d.Claims.Subject }

// Actor is who makes the request.
func (d *Delegation) Actor() delegation.Principal { return d.Claims.Act.Current() }

// Chain holds all actors, oldest first. Only the last one, the Actor, acts by its own authority
// (RFC 8693 §4.1): decide nothing by the others.
func (d *Delegation) Chain() delegation.Chain { return d.Claims.Act }

// HasScope says whether the token allows every one of the given scopes.
func (d *Delegation) HasScope(scopes ...string) bool {
	return !slices.ContainsFunc(scopes, func(s string) bool { return !d.Claims.Scope.Contains(s) })
}

// Expiry is when the token ends.
func (d *Delegation) Expiry() time.Time { return time.Unix(d.Claims.ExpiresAt, 0) }

// Verify accepts a derived token that the issuer signed, for this audience, that is in force now
// and not bound to a key. Everything else is an *AccessError.
func (v *Verifier) Verify(ctx context.Context, token string) (*Delegation, error) {
	claims, err := v.authenticate(ctx, token)
	if err != nil {
		return nil, err
	}
	if err := v.admit(claims); err != nil {
		return nil, err
	}
	return &Delegation{Claims: *claims}, nil
}

// Inspection is what an authentic token says, whether or not it may still be used.
type Inspection struct {
	Header delegation.Header
	Claims delegation.Claims
	// Refusal is why Verify would refuse the token; nil if it would accept it.
	Refusal error
}

// Inspect is for people and tools that look at tokens: the signature must be right, but the token
// may have expired, be for another audience or be bound to a key. Never let anybody in by it.
func (v *Verifier) Inspect(ctx context.Context, token string) (*Inspection, error) {
	claims, err := v.authenticate(ctx, token)
	if err != nil {
		return nil, err
	}
	u, err := delegation.Parse(token)
	if err != nil {
		return nil, err
	}
	return &Inspection{Header: u.Header, Claims: *claims, Refusal: v.admit(claims)}, nil
}

// authenticate establishes who made the token and that it is one of Deputy's. Claims are read only
// after the signature is right.
func (v *Verifier) authenticate(ctx context.Context, token string) (*delegation.Claims, error) {
	u, err := delegation.Parse(token)
	if err != nil {
		return nil, denied(AccessInvalidToken, "the token is malformed").because(err)
	}
	for _, rule := range v.envelope {
		if rule.broken(v, u) {
			return nil, denied(AccessInvalidToken, "%s", rule.text)
		}
	}
	key, err := v.keys.key(ctx, u.Header.KeyID)
	switch {
	case errors.Is(err, errUnknownKey):
		return nil, denied(AccessInvalidToken, "%v", errUnknownKey)
	case err != nil:
		return nil, accessError(err)
	case u.Header.Algorithm != key.algorithm:
		return nil, denied(AccessInvalidToken, "the token's algorithm is not its key's")
	}
	if err := key.verify(u.SigningInput, u.Signature); err != nil {
		return nil, denied(AccessInvalidToken, "the token's signature is wrong").because(err)
	}
	claims, err := u.Claims()
	if err != nil {
		return nil, denied(AccessInvalidToken, "the token's claims are not those of a derived token").because(err)
	}
	return &claims, nil
}

// admit decides whether authentic claims are good here and now.
func (v *Verifier) admit(c *delegation.Claims) error {
	for _, rule := range v.admission {
		if rule.broken(v, c) {
			return denied(AccessInvalidToken, "%s", rule.text)
		}
	}
	return nil
}

// rule is one thing that a token must not do. Rules are a table so that tests can take away each
// one and see that nothing else would have held.
type rule[T any] struct {
	text   string
	broken func(*Verifier, T) bool
}

// envelopeRules hold before any key is fetched.
func envelopeRules() []rule[*delegation.Unverified] {
	return []rule[*delegation.Unverified]{
		{"the token is not an access token: its typ is not at+jwt", func(_ *Verifier, u *delegation.Unverified) bool {
			return u.Header.Type != delegation.HeaderTypeAccessToken
		}},
		{"the token is from another issuer", func(v *Verifier, u *delegation.Unverified) bool {
			issuer, err := u.StringClaim("iss")
			return err != nil || issuer != v.issuer
		}},
	}
}

// admissionRules hold for authentic claims. Revocations, once the verifier learns of them, and
// proofs of cnf belong here.
func admissionRules() []rule[*delegation.Claims] {
	return []rule[*delegation.Claims]{
		{"the token is for another audience", func(v *Verifier, c *delegation.Claims) bool {
			return !slices.Contains(c.Audience, v.audience)
		}},
		{"the token has expired", func(v *Verifier, c *delegation.Claims) bool {
			return !v.now().Before(time.Unix(c.ExpiresAt, 0))
		}},
		{"the token is not valid yet", func(v *Verifier, c *delegation.Claims) bool {
			return v.now().Add(futureSkew).Before(time.Unix(c.NotBefore, 0))
		}},
		{"the token is bound to a key, and this server takes no proof of it", func(_ *Verifier, c *delegation.Claims) bool {
			return c.Confirmation != nil
		}},
	}
}

// require refuses a delegation that lacks one of the scopes.
func (d *Delegation) require(scopes delegation.Scopes) error {
	if d.HasScope(scopes...) {
		return nil
	}
	e := denied(AccessInsufficientScope, "the token does not allow this")
	e.Scopes = scopes
	return e
}

type contextKey struct{}

// FromContext returns the delegation that a request was let in by: the Handler and the interceptors
// put it there.
func FromContext(ctx context.Context) (*Delegation, bool) {
	d, ok := ctx.Value(contextKey{}).(*Delegation)
	return d, ok
}
