package exchange

import (
	"cmp"
	"net/url"
	"slices"
	"strings"
	"time"
	"unicode"
	"unicode/utf8"

	"deputy.example/deputy/client/delegation"
)

// Limits bound what one tenant issues. A zero field has the default of withDefaults.
type Limits struct {
	MaxLifetime     time.Duration // of a derived token; default 15 minutes
	DefaultLifetime time.Duration // if none is requested; default 5 minutes, at most MaxLifetime
	MaxDepth        int           // hops of a chain; default 8, at most delegation.MaxChainDepth
	MaxBatch        int           // children of one BatchExchange; default and ceiling 100
	// ActorMayRecur permits that an actor of the chain becomes the actor again. The actor gains
	// nothing: each hop still narrows the one before it. Default: refused.
	ActorMayRecur bool
	// AllowBearer permits tokens that are bound to no key. Default: each token is bound to a key or
	// a certificate of its actor, and a child that would be bound to none is refused (I6).
	AllowBearer bool
	// AllowUnbinding permits, together with AllowBearer, that a bound chain continues with a token
	// that is bound to no key. Default: a bound chain stays bound (I6).
	AllowUnbinding bool
	// ScopeTargets lists by scope the audiences at which it has a meaning. A token for several
	// audiences is issued only if it has scopes and each scope is mapped to each audience: RFC 8693
	// §2.1.1 makes the two a Cartesian product.
	ScopeTargets map[string][]string
}

func (l Limits) withDefaults() Limits {
	l.MaxLifetime = cmp.Or(l.MaxLifetime, 15*time.Minute)
	l.DefaultLifetime = min(cmp.Or(l.DefaultLifetime, 5*time.Minute), l.MaxLifetime)
	l.MaxDepth = min(cmp.Or(l.MaxDepth, 8), delegation.MaxChainDepth)
	l.MaxBatch = min(cmp.Or(l.MaxBatch, 100), 100)
	return l
}

// parent is what a plan starts from: a root token's ceiling or a derived token's claims. Nothing
// else of the subject token has an effect.
type parent struct {
	binding    *delegation.Confirmation // what the token is bound to, proven; nil for bearer
	issuer, id string                   // of the token; id is "" for a root token without a jti
	root       string
	txn        string // "" for a root token: the child starts a chain
	subject    delegation.Principal
	actors     delegation.Chain
	hops       []delegation.Hop
	scopes     delegation.Scopes
	audiences  []string
	details    []delegation.Detail
	issuedAt   time.Time // of a root token, as a cut-off compares it; zero if it has none
	expiresAt  time.Time
	depthLeft  int
	uses       int
	made       time.Time // when a derived token was issued
	mayAct     *delegation.Principal
}

func (p parent) isRoot() bool { return len(p.hops) == 0 }

// isBound reports whether the token, or any that it descends from, is bound to a key.
func (p parent) isBound() bool {
	return p.binding != nil || slices.ContainsFunc(p.hops, func(h delegation.Hop) bool { return h.Key != "" })
}

// chainWith is the chain once next acts. It grows by next unless next is the current actor (I4). It
// is nil if next is not known.
func (p parent) chainWith(next delegation.Principal) delegation.Chain {
	switch next {
	case "":
		return nil
	case p.actors.Current():
		return p.actors
	}
	return p.actors.Extend(next)
}

// wish is a Child in its parsed form.
type wish struct {
	scopes    delegation.Scopes
	audiences []string // resources and audiences, each once
	details   []delegation.Detail
	lifetime  time.Duration // 0: absent
	maxDepth  int           // -1: absent
	uses      int           // 0: absent
	tokenType string
}

// actor is the actor of the child.
type actor struct {
	principal delegation.Principal
	binding   delegation.Confirmation // what the child is bound to; zero for a bearer token
	signer    string                  // thumbprint of the key that signed its actor token, or ""
	proof     string                  // how the actor was proven, for the record
}

// parseWish checks the form of everything that a child requests, and that the ledger can store it,
// because a refusal is recorded too. It does not depend on the parent.
func parseWish(c Child) (wish, error) {
	if err := noMisplacedToken(c); err != nil {
		return wish{}, err
	}
	w := wish{maxDepth: -1, tokenType: delegation.TokenTypeAccessToken}
	switch c.RequestedTokenType {
	case "", delegation.TokenTypeAccessToken:
	case delegation.TokenTypeJWT:
		w.tokenType = c.RequestedTokenType
	default:
		return wish{}, delegation.Refuse(delegation.TokenTypeUnsupported, "requested_token_type", "only access_token and jwt are issued")
	}
	var err error
	if c.Scope != nil {
		if len(*c.Scope) > delegation.MaxTokenBytes {
			return wish{}, delegation.Refuse(delegation.ScopeMalformed, "scope", "is longer than any token")
		}
		if w.scopes, err = delegation.ParseScopes(*c.Scope); err != nil {
			return wish{}, delegation.Refuse(delegation.ScopeMalformed, "scope", "%v", err)
		}
	}
	if w.audiences, err = targets(c.Resource, c.Audience); err != nil {
		return wish{}, err
	}
	if c.AuthorizationDetails != nil {
		if w.details, err = delegation.ParseDetails([]byte(*c.AuthorizationDetails)); err != nil {
			return wish{}, delegation.Refuse(delegation.DetailsMalformed, "authorization_details", "%v", err)
		}
		size := 0
		for _, detail := range w.details {
			size += len(detail.String())
		}
		if size > delegation.MaxTokenBytes {
			return wish{}, delegation.Refuse(delegation.DetailsMalformed, "authorization_details", "is longer than any token")
		}
	}
	if c.RequestedLifetime != nil {
		if w.lifetime = *c.RequestedLifetime; w.lifetime < time.Second || w.lifetime%time.Second != 0 {
			return wish{}, delegation.Refuse(delegation.ParameterInvalid, "requested_lifetime", "must be a whole, positive number of seconds")
		}
	}
	if c.MaxDepth != nil {
		if *c.MaxDepth > delegation.MaxChainDepth {
			return wish{}, delegation.Refuse(delegation.ParameterInvalid, "max_depth", "must be 0 to %d", delegation.MaxChainDepth)
		}
		w.maxDepth = int(*c.MaxDepth)
	}
	if c.Uses != nil {
		if *c.Uses != 1 {
			return wish{}, delegation.Refuse(delegation.ParameterInvalid, "uses", "only 1 has a meaning: leave it out for no limit of its own")
		}
		w.uses = 1
	}
	return w, nil
}

// noMisplacedToken refuses a token in a field that is recorded or repeated (I8). The refusal names
// the first such field.
func noMisplacedToken(c Child) error {
	type field struct {
		name  string
		texts []string
	}
	fields := []field{{"resource", c.Resource}, {"audience", c.Audience}, {"requested_token_type", []string{c.RequestedTokenType}}}
	if c.Scope != nil {
		fields = append(fields, field{"scope", []string{*c.Scope}})
	}
	if c.AuthorizationDetails != nil {
		fields = append(fields, field{"authorization_details", []string{*c.AuthorizationDetails}})
	}
	for _, f := range fields {
		if slices.ContainsFunc(f.texts, delegation.HoldsToken) {
			return delegation.Refuse(delegation.ParameterInvalid, f.name, "holds a token: it was not recorded, but treat it as exposed")
		}
	}
	return nil
}

// targets joins resource (RFC 8707 §2: an absolute URI without fragment) and audience.
func targets(resources, audiences []string) ([]string, error) {
	const most = 16
	if len(resources)+len(audiences) > most {
		return nil, delegation.Refuse(delegation.ParameterInvalid, "audience", "more than %d targets", most)
	}
	for _, r := range resources {
		if u, err := url.Parse(r); err != nil || !u.IsAbs() || u.Host == "" && u.Opaque == "" || u.Fragment != "" || u.RawFragment != "" || slices.Contains([]byte(r), '#') {
			return nil, delegation.Refuse(delegation.TargetMalformed, "resource", "must be an absolute URI without fragment (RFC 8707 section 2)")
		}
	}
	all := slices.Concat(resources, audiences)
	if slices.ContainsFunc(all, func(s string) bool {
		return s == "" || len(s) > maxTarget || !utf8.ValidString(s) || strings.ContainsFunc(s, unprintable)
	}) {
		return nil, delegation.Refuse(delegation.TargetMalformed, "audience", "must have 1 to %d bytes of printable UTF-8", maxTarget)
	}
	slices.Sort(all)
	return slices.Compact(all), nil
}

// unprintable reports whether a character changes how the text around it is shown, or is not shown:
// controls, formats such as the bidirectional ones, and line separators.
func unprintable(r rune) bool { return !unicode.IsPrint(r) }

// claims is step 4, the plan. It returns the child's exact claims, or a refusal that names the part
// of the request that is beyond the parent. It is a pure function. id and txn are new names; txn is
// used only if a chain starts. The last hop's number stays 0 until the ledger gives it.
func (p parent) claims(a actor, w wish, l Limits, tenantIssuer, id, txn string, now time.Time) (delegation.Claims, error) {
	if err := p.binds(a, l); err != nil {
		return delegation.Claims{}, err
	}
	expires, err := p.expiry(w, l, now)
	if err != nil {
		return delegation.Claims{}, err
	}
	depthLeft, err := p.depth(w, l)
	if err != nil {
		return delegation.Claims{}, err
	}
	if err := p.covers(w, l); err != nil {
		return delegation.Claims{}, err
	}
	actors := p.chainWith(a.principal)
	if len(actors) > delegation.MaxChainDepth { // of which most came with the root token
		return delegation.Claims{}, delegation.Refuse(delegation.DepthExhausted, "subject_token", "a chain has at most %d actors", delegation.MaxChainDepth)
	}
	c := delegation.Claims{
		Issuer: tenantIssuer, Subject: p.subject, ClientID: a.principal,
		Audience: w.audiences, Scope: w.scopes, Details: w.details,
		IssuedAt: now.Unix(), NotBefore: now.Unix(), ExpiresAt: expires,
		ID: id, Txn: cmp.Or(p.txn, txn), Act: actors,
		Delegation: delegation.Delegation{
			Root:      p.root,
			Hops:      append(slices.Clone(p.hops), delegation.Hop{ID: id, Actor: len(actors) - 1, Key: a.binding.Key()}),
			DepthLeft: depthLeft,
			Uses:      max(p.uses, w.uses),
		},
	}
	if a.binding.Key() != "" {
		c.Confirmation = &a.binding
	}
	return c, nil
}

// binds is I6: the child is bound to its actor's key, unless the tenant allows bearer tokens. In a
// bound chain the tenant must also allow unbinding.
func (p parent) binds(a actor, l Limits) error {
	const how = "send a DPoP proof, connect with a certificate, or name the actor with its key (cnf of actor_token, or actor_confirmation)"
	switch {
	case a.binding.Key() != "":
	case !l.AllowBearer:
		return delegation.Refuse(delegation.BearerNotIssued, "", "the token would be bound to no key: %s", how)
	case p.isBound() && !l.AllowUnbinding:
		return delegation.Refuse(delegation.BearerNotIssued, "", "the token would be bound to no key, and its chain is bound: %s", how)
	}
	return nil
}

// expiry is I3: not after the parent's expiry, and within the tenant's maximum.
func (p parent) expiry(w wish, l Limits, now time.Time) (int64, error) {
	left := p.expiresAt.Sub(now.Truncate(time.Second)).Truncate(time.Second)
	if left < time.Second {
		return 0, delegation.Refuse(delegation.SubjectTokenInvalid, "subject_token", "it has expired")
	}
	most := min(left, l.MaxLifetime)
	if w.lifetime > most {
		return 0, delegation.Refuse(delegation.LifetimeExceedsParent, "requested_lifetime",
			"%d seconds are more than the %d that the parent and the tenant allow", w.lifetime/time.Second, most/time.Second)
	}
	lifetime := min(cmp.Or(w.lifetime, l.DefaultLifetime), most)
	return now.Truncate(time.Second).Add(lifetime).Unix(), nil
}

// depth is the decreasing part of I4: each hop costs one, also a hop of self-narrowing.
func (p parent) depth(w wish, l Limits) (int, error) {
	left := min(p.depthLeft, l.MaxDepth-len(p.hops)) - 1
	if left < 0 {
		return 0, delegation.Refuse(delegation.DepthExhausted, "subject_token", "the chain may not grow any further")
	}
	if w.maxDepth > left {
		return 0, delegation.Refuse(delegation.DepthExceedsParent, "max_depth", "%d further hops are more than the %d that remain", w.maxDepth, left)
	}
	if w.maxDepth >= 0 {
		left = w.maxDepth
	}
	return left, nil
}

// covers is I1, I2 and I5: a request beyond the parent is refused; nothing is dropped silently.
func (p parent) covers(w wish, l Limits) error {
	if beyond := w.scopes.Without(p.scopes); len(beyond) > 0 {
		named := few(beyond)
		return delegation.Refuse(delegation.ScopeExceedsParent, "scope", "the subject token does not hold %s", named).
			WithMetadata("scope", named)
	}
	if len(w.audiences) == 0 {
		return delegation.Refuse(delegation.AudienceMissing, "audience", "name at least one audience or resource")
	}
	for _, audience := range w.audiences {
		if !slices.Contains(p.audiences, audience) {
			return delegation.Refuse(delegation.AudienceExceedsParent, "audience", "the subject token is not for %s", audience).
				WithMetadata("audience", audience)
		}
	}
	if len(w.audiences) > 1 {
		if err := eachScopeEverywhere(w, l); err != nil {
			return err
		}
	}
	if len(w.audiences) > 1 && len(w.details) > 0 {
		return delegation.Refuse(delegation.AudienceNotSingle, "audience",
			"authorization_details are not mapped to audiences: ask for one token per audience")
	}
	for i, detail := range w.details {
		if !detail.NarrowsAny(p.details) {
			return delegation.Refuse(delegation.DetailsExceedParent, "authorization_details",
				"element %d narrows none of the subject token's", i)
		}
	}
	return nil
}

// few names as many scopes as an error may repeat, because the error must fit into a trailer.
func few(scopes delegation.Scopes) string {
	const most = 512
	text := scopes[0][:min(len(scopes[0]), most)]
	for _, scope := range scopes[1:] {
		if len(text)+1+len(scope) > most {
			break
		}
		text += " " + scope
	}
	return text
}

// eachScopeEverywhere refuses a token for several audiences unless each scope is mapped to each
// audience. A token without scope has nothing to map. Each audience determines its meaning there,
// so it must be for one audience.
func eachScopeEverywhere(w wish, l Limits) error {
	if len(w.scopes) == 0 {
		return delegation.Refuse(delegation.AudienceNotSingle, "audience",
			"a token for several audiences needs scopes that are mapped to each of them: ask for one token per audience")
	}
	for _, scope := range w.scopes {
		for _, audience := range w.audiences {
			if !slices.Contains(l.ScopeTargets[scope], audience) {
				return delegation.Refuse(delegation.AudienceNotSingle, "audience",
					"a token for several audiences needs scope %.128s mapped to %s: ask for one token per audience", scope, audience)
			}
		}
	}
	return nil
}
