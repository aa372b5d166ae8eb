package client

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"slices"
	"strings"
	"sync/atomic"
	"time"

	"deputy.example/deputy/client/delegation"
)

// VerifierConfig names the issuer and the audience of the tokens that a resource server accepts.
type VerifierConfig struct {
	// Issuer of the Deputy tenant: tokens of any other "iss" are refused. Required.
	Issuer string
	// Audience is the name of this resource server at Deputy. A token is accepted only if its "aud"
	// holds it, byte for byte. Required.
	Audience string

	// Client gives the address of Deputy and the principal that follows its revocations, over a
	// connection of the Verifier's own with the Client's configuration. Closing the Client does not
	// end it. Required, unless IgnoreRevocations is set.
	Client *Client
	// MaxStaleness is the maximum age of the known revocations: 3 s to 10 s. Beyond it every token
	// is refused with AccessUnavailable. So it is also the longest time that a disconnected
	// Verifier accepts a revoked token. Default: 10 s.
	MaxStaleness time.Duration
	// IntrospectWhenStale queries Deputy for each token (Client.Introspect, up to 2 s) while the
	// known revocations are too old, instead of a refusal. The Client's principal must be under
	// resource_servers for Audience in the tenant's configuration, or an introspector: otherwise
	// Deputy answers that every token is inactive, and the Verifier refuses it. Default: refuse.
	IntrospectWhenStale bool
	// IgnoreRevocations accepts a token until it expires, even if the token, an ancestor, its agent
	// or its subject was revoked. It is for tools that show tokens, and for servers that call
	// Client.Introspect for each token. Without a feed the wall clock alone decides about expiry.
	// It excludes the three fields above.
	IgnoreRevocations bool

	// URLs are the addresses by which callers reach this resource server, for instance
	// "https://calendar.example". A token that is bound to a key is accepted only with a DPoP proof
	// for the request's path below one of them (RFC 9449 §4.3). Where there are several, the host
	// in the request selects one. The path of a URL precedes the path of the request that arrives
	// here. gRPC callers use the same hosts. https, or http to this machine. Default: none, and
	// every token that is bound to a key is refused.
	URLs []string
	// SeenProof records the use of the proof with this id, and returns whether it is the first use.
	// The use must be remembered until the given time, by the clock of Now. The call has up to 2 s,
	// and an error refuses the request with AccessUnavailable. Where a service has several
	// instances, set it to a store that all of them share (SET NX in Redis): otherwise one proof is
	// accepted once by each instance. Default: a memory of this Verifier for half a million proofs.
	// It refuses further proofs when it is full, and requires a nonce where a proof may have been
	// used and forgotten.
	SeenProof func(ctx context.Context, id string, until time.Time) (fresh bool, err error)
	// RequireProofNonce accepts only proofs with a nonce that this Verifier issued in the last 40
	// to 80 seconds (RFC 9449 §9), so that no proof is made in advance. It costs a holder one more
	// round trip after each pause of that length, and a caller must reach the same instance again
	// to use its nonce. Default: no nonce.
	RequireProofNonce bool

	// JWKSURL is where the issuer publishes its keys. Default: Issuer + "/oauth2/jwks".
	JWKSURL string
	// JWKS is a fixed key set that replaces the fetched one. A key that the issuer removes stays in
	// force here until the program is restarted with another set.
	JWKS []byte
	// MaxKeyAge is the maximum age of a fetched key set: 55 s to 1 h. Default: 55 s. A removed key
	// stays in force here for at most that time. With the seconds that the issuer's instances take
	// to learn of a retired key, it is refused everywhere within a minute. A longer age keeps this
	// resource server working while the issuer is down. It also keeps a stolen, removed key in
	// force for an attacker that blocks this resource server's access to the issuer.
	MaxKeyAge time.Duration
	// HTTPTransport fetches keys. Default: http.DefaultTransport.
	HTTPTransport http.RoundTripper
	// Now is the wall clock, for the expiry of tokens and the dates of proofs. Default: time.Now.
	// Ages, timeouts and memory follow the monotonic clock of the runtime and the ledger's time, so
	// that no step of the wall clock makes a revoked token or a used proof valid.
	Now func() time.Time
}

const (
	defaultMaxKeyAge  = 55 * time.Second
	maxMaxKeyAge      = time.Hour
	minMaxStaleness   = 3 * time.Second
	maxMaxStaleness   = 10 * time.Second
	introspectTimeout = 2 * time.Second
)

// Verifier checks derived tokens for a resource server without a network call per request. The
// issuer's keys are fetched when they are first needed and every 30 s of use. Revocations come over
// a stream of its own: a token is refused within a second after Deputy acknowledged a revocation in
// its chain. A Verifier without messages from Deputy for MaxStaleness refuses everything until they
// come again. It is safe for concurrent use. Close it when it is no longer needed.
type Verifier struct {
	issuer   string
	audience string
	keys     *keySource
	clock    clock
	verdicts *verdicts // a pointer, for the same reason as the value of Secret
	closed   atomic.Bool

	// Exactly one of feed and ignoreRevocations is set. introspect is nil where a stale feed
	// refuses.
	feed              *feed
	ignoreRevocations bool
	introspect        func(context.Context, Secret) (*Introspection, error)

	envelope  []rule[*delegation.Unverified]
	admission []rule[*delegation.Claims]

	// Fields for the proof of possession; see held.
	urls         []publicURL
	binding      []possessionRule
	proven       []possessionRule
	requireNonce bool
	nonces       *nonces
	seenProof    func(context.Context, string, time.Time) (bool, error) // nil: memory is used
	memory       *proofMemory
	began        instant
}

// NewVerifier checks the configuration and begins to follow revocations. It does not wait: until
// the first snapshot is complete, tokens are refused with AccessUnavailable. See Ready.
func NewVerifier(cfg VerifierConfig) (*Verifier, error) {
	v, err := newVerifier(cfg)
	if err != nil {
		return nil, fmt.Errorf("deputy verifier: %w", err)
	}
	if v.feed != nil {
		go v.feed.run()
	}
	return v, nil
}

// newVerifier makes a Verifier that does not follow revocations yet.
func newVerifier(cfg VerifierConfig) (*Verifier, error) {
	if err := cfg.check(); err != nil {
		return nil, err
	}
	c := clockOf(cfg.Now)
	v := &Verifier{
		issuer: cfg.Issuer, audience: cfg.Audience, clock: c, verdicts: new(verdicts), ignoreRevocations: cfg.IgnoreRevocations,
		envelope: envelopeRules(), admission: admissionRules(),
		binding: bindingRules(), proven: proofRules(), requireNonce: cfg.RequireProofNonce,
		nonces: newNonces(), seenProof: cfg.SeenProof, memory: &proofMemory{most: maxProofs}, began: c.now(),
	}
	for _, text := range cfg.URLs {
		u, err := parsePublicURL(text)
		if err != nil {
			return nil, fmt.Errorf("URLs: %q: %w", text, err)
		}
		v.urls = append(v.urls, u)
	}
	var err error
	if v.keys, err = cfg.keys(c); err != nil || cfg.IgnoreRevocations {
		return v, err
	}
	if cfg.IntrospectWhenStale {
		v.introspect = cfg.Client.Introspect
	}
	if cfg.MaxStaleness == 0 {
		cfg.MaxStaleness = maxMaxStaleness
	}
	id, err := newKey(cfg.Client.rand)
	if err != nil {
		return nil, err
	}
	v.feed = newFeed(id, cfg.Client.watchRevocations, cfg.MaxStaleness, c)
	return v, nil
}

func (cfg VerifierConfig) check() error {
	switch {
	case cfg.Issuer == "":
		return errors.New("no Issuer: name the tenant whose tokens are accepted")
	case strings.ContainsAny(cfg.Issuer, "?#"):
		return errors.New("the field Issuer must have no query and no fragment (RFC 8414 section 2)")
	case cfg.Audience == "":
		return errors.New("no Audience: a token for another service must not open this one")
	case cfg.JWKS != nil && (cfg.JWKSURL != "" || cfg.MaxKeyAge != 0):
		return errors.New("JWKS excludes JWKSURL and MaxKeyAge")
	case cfg.MaxKeyAge != 0 && (cfg.MaxKeyAge < defaultMaxKeyAge || cfg.MaxKeyAge > maxMaxKeyAge):
		return fmt.Errorf("MaxKeyAge must be %v to %v", defaultMaxKeyAge, maxMaxKeyAge)
	case cfg.IgnoreRevocations && (cfg.Client != nil || cfg.MaxStaleness != 0 || cfg.IntrospectWhenStale):
		return errors.New("IgnoreRevocations excludes Client, MaxStaleness and IntrospectWhenStale")
	case cfg.IgnoreRevocations:
		return nil
	case cfg.Client == nil:
		return errors.New("Client is missing: without it revoked tokens are accepted until they expire (set IgnoreRevocations if this is intended)")
	case cfg.MaxStaleness != 0 && (cfg.MaxStaleness < minMaxStaleness || cfg.MaxStaleness > maxMaxStaleness):
		return fmt.Errorf("MaxStaleness must be %v to %v", minMaxStaleness, maxMaxStaleness)
	}
	return nil
}

func (cfg VerifierConfig) keys(c clock) (*keySource, error) {
	if cfg.JWKS != nil {
		keys, err := parseKeys(cfg.JWKS)
		if err != nil {
			return nil, fmt.Errorf("JWKS: %w", err)
		}
		return fixedKeys(keys), nil
	}
	if cfg.JWKSURL == "" {
		cfg.JWKSURL = cfg.Issuer + "/oauth2/jwks"
	}
	if cfg.MaxKeyAge == 0 {
		cfg.MaxKeyAge = defaultMaxKeyAge
	}
	return newKeySource(cfg.JWKSURL, cfg.HTTPTransport, cfg.MaxKeyAge, c)
}

// Close ends the stream of revocations and every fetch, and waits for their goroutines. A closed
// Verifier refuses every token.
func (v *Verifier) Close() error {
	v.closed.Store(true)
	if v.feed != nil {
		v.feed.close()
	}
	v.keys.end()
	return nil
}

// Format implements fmt.Formatter: a Verifier prints its issuer and its audience, and not the
// tokens that it remembers.
func (v *Verifier) Format(f fmt.State, _ rune) {
	fmt.Fprintf(f, "verifier of %s for %s", v.issuer, v.audience)
}

// Ready waits until revocations are known for the first time, so that a server need not accept
// requests that it could only refuse. Its error gives the reason. Status shows later faults.
func (v *Verifier) Ready(ctx context.Context) error {
	if v.ignoreRevocations {
		return nil
	}
	select {
	case <-v.feed.ready:
		return nil
	case <-v.feed.done:
		return errClosed
	case <-ctx.Done():
	}
	why := v.Status().Err
	if why == nil {
		return nil // ready at the last moment
	}
	return fmt.Errorf("deputy verifier: %w: %w", context.Cause(ctx), why)
}

// Status is the state of a Verifier's revocations.
type Status struct {
	// Healthy: the known revocations are not older than MaxStaleness, so tokens are judged by them.
	// With IgnoreRevocations it is always set, and every other field is zero.
	Healthy bool
	// Connected: the stream is up.
	Connected bool
	// Last is the number of the newest applied revocation, and At the time when it was applied.
	// Both are zero where none was applied.
	Last uint64
	At   time.Time
	// Staleness is how long ago the known revocations were complete. Before the first snapshot it
	// is how long ago the Verifier was made.
	Staleness time.Duration
	// Err is the reason why it is not Healthy or not Connected, else nil. It wraps a
	// *delegation.Error where Deputy refused.
	Err error
	// Offset is how far the wall clock (VerifierConfig.Now) is ahead of the ledger's time on the
	// feed; negative: behind. It is zero within the travel time of a message, and before the first
	// echo.
	Offset time.Duration
	// Clock is a warning, else nil: Offset is beyond 10 s, the newest ledger time of the feed was
	// absent or not credible, or the server may have forgotten revocations that are in force. With
	// a clock that is ahead, tokens are refused too early. With a clock that is behind, new tokens
	// are refused as not valid yet. No revoked token is accepted in either case.
	Clock error
}

// Status returns the present state of the revocations.
func (v *Verifier) Status() Status {
	switch {
	case v.closed.Load():
		return Status{Err: errClosed}
	case v.ignoreRevocations:
		return Status{Healthy: true}
	}
	return v.feed.status()
}

// ledgerTime returns the newest credible time of the feed, or nil.
func (v *Verifier) ledgerTime() *feedTime {
	if v.feed == nil {
		return nil
	}
	return v.feed.time.Load()
}

// Delegation is the content of a verified token: the subject, the actors and what is allowed. All
// requests with the same token share it, so it cannot be changed.
type Delegation struct {
	claims delegation.Claims
}

// Subject returns the principal on whose behalf the request is made.
func (d *Delegation) Subject() delegation.Principal { return d.claims.Subject }

// Actor returns the principal that makes the request.
func (d *Delegation) Actor() delegation.Principal { return d.claims.Act.Current() }

// Chain returns all actors, oldest first. Only the last one, the Actor, acts by its own authority
// (RFC 8693 §4.1): decide nothing by the others.
func (d *Delegation) Chain() delegation.Chain { return slices.Clone(d.claims.Act) }

// Scopes returns all scopes that the token allows.
func (d *Delegation) Scopes() delegation.Scopes { return slices.Clone(d.claims.Scope) }

// HasScope reports whether the token allows every one of the given scopes.
func (d *Delegation) HasScope(scopes ...string) bool {
	for _, scope := range scopes {
		if !d.claims.Scope.Contains(scope) {
			return false
		}
	}
	return true
}

// Expiry returns when the token expires.
func (d *Delegation) Expiry() time.Time { return time.Unix(d.claims.ExpiresAt, 0) }

// Claims returns a copy of all claims of the token.
func (d *Delegation) Claims() delegation.Claims {
	c := d.claims
	c.Audience, c.Scope, c.Act = slices.Clone(c.Audience), slices.Clone(c.Scope), slices.Clone(c.Act)
	c.Delegation.Hops, c.Details = slices.Clone(c.Delegation.Hops), slices.Clone(c.Details)
	if c.Confirmation != nil {
		c.Confirmation = new(*c.Confirmation)
	}
	if c.MayAct != nil {
		c.MayAct = new(*c.MayAct)
	}
	if c.Status != nil {
		c.Status = new(*c.Status)
	}
	return c
}

// Verify accepts a derived token of the issuer that is for this audience, in force now, bound to
// nothing, and without a revocation in its chain. Everything else is refused with an *AccessError.
//
// It answers from memory. It waits for the network only where the issuer's keys were never fetched
// or are too old, and where IntrospectWhenStale applies.
func (v *Verifier) Verify(ctx context.Context, token string) (*Delegation, error) {
	return v.VerifyPresented(ctx, Presentation{Token: token, Scheme: schemeBearer})
}

// VerifyPresented accepts what Verify accepts, and a token that is bound to a key or a certificate
// if the presentation proves possession: with scheme DPoP and one valid proof that was not used
// before (RFC 9449), or over a connection that was opened with the certificate (RFC 8705). Handler
// and the interceptors call it. Call it in servers that are reached in another way.
//
// It also waits for SeenProof, where that is set.
func (v *Verifier) VerifyPresented(ctx context.Context, p Presentation) (*Delegation, error) {
	d, err := v.presented(ctx, p)
	if err != nil {
		return nil, err
	}
	return &d.Delegation, nil
}

// presented judges a token and its sender. The error is an *AccessError.
func (v *Verifier) presented(ctx context.Context, p Presentation) (*verdict, error) {
	d, err := v.verdict(ctx, p.Token)
	if err == nil {
		err = v.held(ctx, p, d)
	}
	if err != nil {
		return nil, accessError(err).as(p.Scheme)
	}
	return d, nil
}

// verdict finds or makes the verdict on a token, and judges it at this moment.
func (v *Verifier) verdict(ctx context.Context, token string) (*verdict, error) {
	d := v.verdicts.get(token)
	if d == nil {
		claims, header, key, err := v.authenticate(ctx, token)
		if err != nil {
			return nil, err
		}
		d = &verdict{Delegation: Delegation{claims: *claims}, keyID: header.KeyID, key: key}
		if err := v.judge(ctx, token, d); err != nil {
			return nil, err
		}
		v.verdicts.put(token, d)
		return d, nil
	}
	if err := v.judge(ctx, token, d); err != nil {
		if accessError(err).Code != AccessUnavailable {
			v.verdicts.drop(token)
		}
		return nil, err
	}
	return d, nil
}

// judge decides whether an authentic token is valid at this moment. Nothing that can change between
// two requests is answered from an earlier one: its key, the time, and its revocation. Revocation
// comes last, because the earlier steps may wait for the network.
func (v *Verifier) judge(ctx context.Context, token string, d *verdict) error {
	key, err := v.key(ctx, d.keyID)
	if err != nil {
		return err
	}
	if key != d.key {
		return denied(AccessInvalidToken, "the token's key was replaced by another of the same name")
	}
	if err := v.admit(&d.claims); err != nil {
		return err
	}
	return v.standing(ctx, token, d)
}

// standing refuses a revoked token, and every token while revocations are not known.
func (v *Verifier) standing(ctx context.Context, token string, d *verdict) error {
	switch {
	case v.closed.Load():
		return denied(AccessUnavailable, "%v", errClosed)
	case v.ignoreRevocations:
		return nil
	}
	known, fresh := v.feed.current()
	switch {
	case fresh && !d.standsIn(known):
		return denied(AccessInvalidToken, "the token was revoked")
	// Forgotten comes last: the horizon is raised before anything is forgotten.
	case fresh && known.set.Forgotten(d.Expiry()):
		return denied(AccessInvalidToken, "the token expires by the horizon of the known revocations")
	case fresh:
		return nil
	case v.introspect == nil:
		return denied(AccessUnavailable, "what was revoked is not known here at the moment")
	}
	ctx, cancel := context.WithTimeout(ctx, introspectTimeout)
	defer cancel()
	in, err := v.introspect(ctx, NewSecret(token))
	switch {
	case err != nil:
		return denied(AccessUnavailable, "revocation state is stale, and Deputy does not answer an introspection").because(err)
	case !in.Active || in.JTI != d.claims.ID || in.Issuer != d.claims.Issuer:
		return denied(AccessInvalidToken, "the token is not active")
	}
	return nil
}

// Inspection is the content of an authentic token, whether or not it may still be used.
type Inspection struct {
	Header delegation.Header
	Claims delegation.Claims
	// Refusal is why the token would be refused for every sender; nil if its holder may use it.
	// Claims.Confirmation holds what the holder must prove.
	Refusal error
}

// Inspect is for tools that show tokens: the signature must be correct, but the token may have
// expired, be for another audience or be bound to a key that was not proven. Never admit a request
// by it.
func (v *Verifier) Inspect(ctx context.Context, token string) (*Inspection, error) {
	claims, header, key, err := v.authenticate(ctx, token)
	if err != nil {
		return nil, err
	}
	d := &verdict{Delegation: Delegation{claims: *claims}, keyID: header.KeyID, key: key}
	return &Inspection{Header: header, Claims: *claims, Refusal: v.judge(ctx, token, d)}, nil
}

// authenticate verifies that the issuer signed the token and that it is a derived token. Claims are
// read only after the signature is verified.
func (v *Verifier) authenticate(ctx context.Context, token string) (*delegation.Claims, delegation.Header, *verificationKey, error) {
	refuse := func(err error) (*delegation.Claims, delegation.Header, *verificationKey, error) {
		return nil, delegation.Header{}, nil, err
	}
	u, err := delegation.Parse(token)
	if err != nil {
		return refuse(denied(AccessInvalidToken, "the token is malformed").because(err))
	}
	for _, rule := range v.envelope {
		if rule.broken(v, u) {
			return refuse(denied(AccessInvalidToken, "%s", rule.text))
		}
	}
	key, err := v.key(ctx, u.Header.KeyID)
	switch {
	case err != nil:
		return refuse(err)
	case u.Header.Algorithm != key.algorithm:
		return refuse(denied(AccessInvalidToken, "the token's algorithm is not its key's"))
	case !key.verifies(u.SigningInput, u.Signature):
		return refuse(denied(AccessInvalidToken, "the token's signature is wrong"))
	}
	claims, err := u.Claims()
	if err != nil {
		return refuse(denied(AccessInvalidToken, "the token's claims are not those of a derived token").because(err))
	}
	return &claims, u.Header, key, nil
}

// key returns one of the issuer's keys.
func (v *Verifier) key(ctx context.Context, kid string) (*verificationKey, error) {
	key, err := v.keys.key(ctx, kid)
	switch {
	case errors.Is(err, errUnknownKey):
		return nil, denied(AccessInvalidToken, "%v", errUnknownKey)
	case err != nil:
		return nil, accessError(err)
	}
	return key, nil
}

// admit decides whether authentic claims are valid here and now.
func (v *Verifier) admit(c *delegation.Claims) error {
	for _, rule := range v.admission {
		if rule.broken(v, c) {
			return denied(AccessInvalidToken, "%s", rule.text)
		}
	}
	return nil
}

// rule is one condition that a token must not meet. Rules are a table so that tests can remove each
// one and show that no other rule would have refused.
type rule[T any] struct {
	text   string
	broken func(*Verifier, T) bool
}

// envelopeRules apply before any key is fetched.
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

// admissionRules apply to authentic claims, each time a token is presented and for as long as a
// stream lasts that was opened with it. bindingRules and proofRules hold what its sender must prove
// once.
func admissionRules() []rule[*delegation.Claims] {
	return []rule[*delegation.Claims]{
		{"the token is for another audience", func(v *Verifier, c *delegation.Claims) bool {
			return !slices.Contains(c.Audience, v.audience)
		}},
		{"the token has expired", func(v *Verifier, c *delegation.Claims) bool {
			return !v.clock.wall().Before(time.Unix(c.ExpiresAt, 0))
		}},
		{"the token has expired by the ledger's time", func(v *Verifier, c *delegation.Claims) bool {
			return v.ledgerTime().past(time.Unix(c.ExpiresAt, 0), v.clock.now())
		}},
		{"the token is not valid yet", func(v *Verifier, c *delegation.Claims) bool {
			return v.clock.wall().Add(clockSkew).Before(time.Unix(c.NotBefore, 0))
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

// FromContext returns the delegation by which a request was admitted. The Handler and the
// interceptors put it there.
func FromContext(ctx context.Context) (*Delegation, bool) {
	d, ok := ctx.Value(contextKey{}).(*Delegation)
	return d, ok
}
