package token

import (
	"context"
	"crypto/sha256"
	"encoding/base64"
	"encoding/binary"
	"slices"
	"time"

	"github.com/go-json-experiment/json"
	"github.com/go-json-experiment/json/jsontext"

	"deputy.example/deputy/client/delegation"
)

// Subject is a verified subject token: exactly one of its fields is set.
type Subject struct {
	// Derived are the claims of a token that this tenant signed. A Confirmation in them is not
	// proven.
	Derived *delegation.Claims
	// Root is a token of a trusted issuer.
	Root *Root
}

// Confirmation is what the token is bound to, or nil. It is not proven: the caller of Subject must
// check the proof.
func (s Subject) Confirmation() *delegation.Confirmation {
	if s.Derived != nil {
		return s.Derived.Confirmation
	}
	if s.Root != nil {
		return s.Root.Confirmation
	}
	return nil
}

// Root is a verified token of a trusted issuer, with the ceiling of what may be derived from it.
type Root struct {
	Issuer string
	ID     string // jti, or ""
	// Digest is the token's identity in delegation.root. It never depends on the signature's bytes.
	Digest    string
	Principal delegation.Principal
	IssuedAt  time.Time
	// CutAt is IssuedAt for the comparison with a cut-off, which adds the tenant's skew: it is
	// earlier by the amount by which the issuer's skew is longer.
	CutAt     time.Time
	ExpiresAt time.Time
	Scopes    delegation.Scopes
	Audiences []string
	Details   []delegation.Detail
	MayAct    *delegation.Principal // who may become the actor; nil: the token has no may_act
	// Confirmation is what the token is bound to, or nil.
	Confirmation *delegation.Confirmation
	// Actors of an imported act, oldest first; nil unless the issuer has import_act.
	Actors delegation.Chain
}

// Subject verifies a subject token that was presented with the given token type URN. Errors are
// SubjectTokenInvalid with the broken rule, TokenTypeUnsupported, ForeignActorChain, RootTooLong or
// DependencyDown.
func (t *Trust) Subject(ctx context.Context, raw, tokenType string) (Subject, error) {
	if err := checkTokenType(subjectSlot, tokenType); err != nil {
		return Subject{}, err
	}
	p, err := t.read(raw)
	if err != nil {
		return Subject{}, subjectSlot.refuse(err)
	}
	if p.claims.Issuer == t.issuer {
		claims, err := t.derived(p, tokenType)
		if err != nil {
			return Subject{}, subjectSlot.refuse(err)
		}
		return Subject{Derived: &claims}, nil
	}
	root, err := t.root(ctx, p, tokenType)
	if err != nil {
		return Subject{}, subjectSlot.refuse(err)
	}
	return Subject{Root: root}, nil
}

func (t *Trust) derived(p presented, tokenType string) (delegation.Claims, error) {
	if tokenType == delegation.TokenTypeIDToken {
		return delegation.Claims{}, broken("a derived token is an access token, not an ID token")
	}
	return t.own(p)
}

func (t *Trust) root(ctx context.Context, p presented, tokenType string) (*Root, error) {
	i, trusted := t.issuers[p.claims.Issuer]
	if !trusted {
		return nil, broken("its issuer is not trusted here")
	}
	if !i.typesFor(tokenType).fits(p.Header.Type) {
		return nil, broken("its typ does not fit the token type it was presented with")
	}
	if _, err := t.signedBy(ctx, i.keys, p); err != nil {
		return nil, err
	}
	if err := t.timely(p.claims, i.skew); err != nil {
		return nil, err
	}
	if !isIntended(p.claims.Audience, i.Audiences) {
		return nil, broken("it is meant for another audience")
	}
	if err := i.shortLived(p.claims); err != nil {
		return nil, err
	}
	bound, err := confirmation(p)
	if err != nil {
		return nil, err
	}
	root := &Root{
		Confirmation: bound,
		Issuer:       i.Issuer, ID: p.claims.ID, Digest: digestOf(p),
		IssuedAt: time.Unix(p.claims.IssuedAt, 0), CutAt: time.Unix(p.claims.IssuedAt, 0).Add(t.skew - i.skew), ExpiresAt: time.Unix(p.claims.ExpiresAt, 0),
	}
	if root.Principal, err = i.named(p); err != nil {
		return nil, err
	}
	if root.Actors, err = i.actors(p); err != nil {
		return nil, err
	}
	if root.MayAct, err = t.mayAct(p); err != nil {
		return nil, err
	}
	return root, i.grant(root, p)
}

func (i *issuer) shortLived(r delegation.Registered) error {
	if r.IssuedAt == 0 {
		return delegation.Refuse(delegation.RootTooLong, string(subjectSlot), "the token has no time of issue, so its lifetime is unknown")
	}
	if time.Duration(r.ExpiresAt-r.IssuedAt) > i.MaxLifetime/time.Second {
		return delegation.Refuse(delegation.RootTooLong, string(subjectSlot), "the token lives longer than the %v that its issuer is allowed", i.MaxLifetime)
	}
	return nil
}

// digestOf identifies a root token. With a jti it is RootDigest. Without one it covers the signing
// input, never the signature: one signing input has many valid signatures.
func digestOf(p presented) string {
	if p.claims.ID != "" {
		return RootDigest(p.claims.Issuer, p.claims.ID)
	}
	sum := sha256.Sum256([]byte("jws\x00" + p.SigningInput))
	return base64.RawURLEncoding.EncodeToString(sum[:])
}

// RootDigest is the identity of the root token that the issuer gave this jti: unpadded base64url of
// SHA-256 over "jti", a zero byte, the issuer's length as eight bytes, the issuer and the jti.
func RootDigest(issuer, jti string) string {
	data := binary.BigEndian.AppendUint64([]byte("jti\x00"), uint64(len(issuer)))
	sum := sha256.Sum256(append(append(data, issuer...), jti...))
	return base64.RawURLEncoding.EncodeToString(sum[:])
}

// mayAct reads a root token's may_act (RFC 8693 §4.4), which must name an actor in this tenant's
// own form: sub is a canonical principal, and iss, if present, is this tenant.
func (t *Trust) mayAct(p presented) (*delegation.Principal, error) {
	raw, present := p.Claim("may_act")
	if !present {
		return nil, nil
	}
	var claim struct {
		Sub *string `json:"sub"`
		Iss *string `json:"iss"`
	}
	if jsontext.Value(raw).Kind() != '{' || json.Unmarshal(raw, &claim, json.RejectUnknownMembers(true)) != nil || claim.Sub == nil {
		return nil, broken("its may_act holds something other than sub and perhaps iss")
	}
	if claim.Iss != nil && *claim.Iss != t.issuer {
		return nil, broken("its may_act names an actor of another issuer")
	}
	sub, err := delegation.ParsePrincipal(*claim.Sub)
	if err != nil {
		return nil, broken("the sub of its may_act is not a principal")
	}
	return &sub, nil
}

// actors imports a foreign act, or refuses it. Each act object holds sub, optionally the iss of the
// token itself, and optionally the act before it.
func (i *issuer) actors(p presented) (delegation.Chain, error) {
	raw, present := p.Claim("act")
	if !present {
		return nil, nil
	}
	if i.ImportAct == nil {
		return nil, errForeignAct("the token names actors already, which its issuer is not configured to hand in")
	}
	var chain delegation.Chain
	for raw != nil {
		var act struct {
			Sub string         `json:"sub"`
			Iss *string        `json:"iss"`
			Act jsontext.Value `json:"act"`
		}
		if jsontext.Value(raw).Kind() != '{' || json.Unmarshal(raw, &act, json.RejectUnknownMembers(true)) != nil {
			return nil, errForeignAct("the token's act holds something other than sub, iss and act")
		}
		if act.Iss != nil && *act.Iss != i.Issuer {
			return nil, errForeignAct("the token's act names an actor of another issuer")
		}
		actor, err := i.ImportAct.principal(act.Sub)
		if err != nil || len(chain) == delegation.MaxChainDepth {
			return nil, errForeignAct("the token's act cannot be turned into a chain of principals")
		}
		chain = append(chain, actor)
		raw = act.Act
	}
	slices.Reverse(chain)
	return chain, nil
}

func errForeignAct(rule string) error {
	return delegation.Refuse(delegation.ForeignActorChain, string(subjectSlot), "%s", rule)
}

// compileGrants checks the fixed part of the ceiling.
func (i *issuer) compileGrants(path string) error {
	var err error
	if i.scopes, err = delegation.NewScopes(i.RootGrants.Scopes...); err != nil {
		return fault(path+".scopes", "%v", err)
	}
	if slices.Contains(i.RootGrants.Audiences, "") {
		return fault(path+".audiences", "must not hold an empty audience")
	}
	if i.RootGrants.Details != "" {
		if i.details, err = delegation.ParseDetails([]byte(i.RootGrants.Details)); err != nil {
			return fault(path+".details", "%v", err)
		}
	}
	return nil
}

// grant sets the ceiling: the values of the configured claims, and the fixed part.
func (i *issuer) grant(root *Root, p presented) error {
	g := i.RootGrants
	scopes := slices.Clone(i.scopes)
	if _, present := granted(p, g.ScopesClaim); present {
		claimed, err := scopesClaim(p, g.ScopesClaim)
		if err != nil {
			return broken("the claim that holds its scopes is malformed")
		}
		scopes = append(scopes, claimed...)
	}
	var err error
	if root.Scopes, err = delegation.NewScopes(scopes...); err != nil {
		return broken("the claim that holds its scopes is malformed")
	}
	root.Audiences = slices.Clone(g.Audiences)
	if _, present := granted(p, g.AudiencesClaim); present {
		claimed, err := p.StringsClaim(g.AudiencesClaim)
		if err != nil || slices.Contains(claimed, "") {
			return broken("the claim that holds its audiences is malformed")
		}
		root.Audiences = append(root.Audiences, claimed...)
	}
	slices.Sort(root.Audiences)
	root.Audiences = slices.Compact(root.Audiences)
	root.Details = slices.Clone(i.details)
	if raw, present := granted(p, g.DetailsClaim); present {
		claimed, err := delegation.ParseDetails(raw)
		if err != nil {
			return broken("the claim that holds its authorization details is malformed")
		}
		root.Details = append(root.Details, claimed...)
	}
	return nil
}

// granted returns the claim of that name, unless no name is configured: a member may have the name
// "".
func granted(p presented, name string) ([]byte, bool) {
	if name == "" {
		return nil, false
	}
	return p.Claim(name)
}

// scopesClaim reads the string of RFC 8693 §4.2, or the list of strings that many issuers write
// instead.
func scopesClaim(p presented, name string) (delegation.Scopes, error) {
	if text, err := p.StringClaim(name); err == nil {
		return delegation.ParseScopes(text)
	}
	list, err := p.StringsClaim(name)
	if err != nil {
		return nil, err
	}
	return delegation.NewScopes(list...)
}
