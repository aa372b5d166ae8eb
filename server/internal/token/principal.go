package token

import (
	"fmt"
	"strings"

	"deputy.example/deputy/client/delegation"
)

// Mapping maps an issuer's tokens to principals: Type, a colon, and the percent-encoding of Prefix
// followed by the claim's value. It is injective, so two identifiers of one issuer are two
// principals.
type Mapping struct {
	// Type of every principal of this issuer, such as user, agent or service. Required.
	Type string `yaml:"type"`
	// Claim that identifies the principal; default sub. A name is that of a top-level claim. A text
	// that begins with a slash is a JSON pointer (RFC 6901) through objects, such as
	// /kubernetes.io/serviceaccount/uid. A claim other than sub must be an identifier that the
	// issuer never reassigns: an e-mail address often is not.
	Claim string `yaml:"claim"`
	// Prefix separates the identifiers of several issuers of one type.
	Prefix string `yaml:"prefix"`
	// When lists conditions, all of which a token must meet before it names a principal; default
	// none. Danger: without conditions, every user with a token of the right audience is a
	// principal. For an issuer that serves the public, such as that of GitHub Actions, that means
	// all its users.
	When []Condition `yaml:"when"`
}

const subjectClaim = "sub"

// identity returns the path to the claim that identifies the principal.
func (m Mapping) identity() (claimPath, error) {
	if m.Claim == "" {
		return claimPath{subjectClaim}, nil
	}
	return parseClaimPath(m.Claim)
}

func (m Mapping) principal(id string) (delegation.Principal, error) {
	if id == "" {
		return "", broken("what names its principal is empty")
	}
	p, err := delegation.NewPrincipal(m.Type, m.Prefix+id)
	if err != nil { // the cause would repeat the claim
		return "", broken("what names its principal is too long")
	}
	return p, nil
}

// named returns the principal that a token of the issuer names. It is the only way from such a
// token to a principal, in every parameter, and it checks every condition of the mapping.
func (i *issuer) named(p presented) (delegation.Principal, error) {
	for _, c := range i.conditions {
		if !c.metBy(p) {
			return "", broken("its claim " + c.path.String() + " is missing, not a string, or not one that its issuer's mapping allows")
		}
	}
	id, err := p.StringAt(i.identity...)
	if err != nil {
		return "", broken("the claim that names its principal is missing or not a string")
	}
	return i.Principal.principal(id)
}

// realm is the set of principals that one source of credentials can yield: the one named by start,
// or all that begin with it.
type realm struct {
	path   string // the path of the configuration field
	origin string // two realms of one origin give one principal to one identity
	start  string
	open   bool
	shared bool // the configuration accepts that another source yields the same principals
}

// checkDisjoint is invariant I7: two sources can never yield one principal, unless both permit it.
// The encoding of identifiers is a prefix code, so a comparison of encoded prefixes compares raw
// ones.
//
// The identifying claim is only where an issuer's identifiers come from, and does not change the
// principals made of them. Conditions do not separate two issuers: each chooses the content of its
// claims, so conditions make no realm smaller.
func checkDisjoint(realms []realm) error {
	for i, a := range realms {
		for _, b := range realms[:i] {
			if a.origin != b.origin && !(a.shared && b.shared) && (a.covers(b) || b.covers(a)) {
				return fault(a.path, "can yield the same principals as %s: give it another type or prefix, or set shared_principals on both", b.path)
			}
		}
	}
	return nil
}

func (a realm) typ() string { typ, _, _ := strings.Cut(a.start, ":"); return typ }

func (a realm) covers(b realm) bool {
	return a.start == b.start || a.open && strings.HasPrefix(b.start, a.start)
}

func (m Mapping) realm(path, issuer string, shared bool) (realm, error) {
	// A principal with an identifier of one character shows whether type and prefix are valid.
	if _, err := delegation.NewPrincipal(m.Type, m.Prefix+"x"); err != nil {
		return realm{}, fault(path, "type or prefix: %v", err)
	}
	identity, err := m.identity()
	if err != nil {
		return realm{}, fault(path+".claim", "%v", err)
	}
	return realm{
		// sub and /sub are one claim.
		path: path, origin: fmt.Sprintf("%q of issuer %q", identity, issuer),
		start: m.Type + ":" + delegation.EncodeID(m.Prefix), open: true, shared: shared,
	}, nil
}
