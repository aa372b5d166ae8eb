package token

import (
	"fmt"
	"strings"

	"deputy.example/deputy/client/delegation"
)

// Mapping makes principals of an issuer's tokens: Type, a colon, and the percent-encoding of Prefix
// followed by the claim's value. It is injective, so two identifiers of one issuer are two principals.
type Mapping struct {
	// Type of every principal of this issuer, such as user, agent or service. Required.
	Type string `yaml:"type"`
	// Claim that identifies the principal; default sub. Anything but sub must be an identifier that
	// the issuer never gives to somebody else: an e-mail address often is not.
	Claim string `yaml:"claim"`
	// Prefix keeps the identifiers of several issuers of one type apart.
	Prefix string `yaml:"prefix"`
}

const subjectClaim = "sub"

func (m Mapping) claim() string {
	if m.Claim == "" {
		return subjectClaim
	}
	return m.Claim
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

func (m Mapping) of(p presented) (delegation.Principal, error) {
	id, err := p.StringClaim(m.claim())
	if err != nil {
		return "", broken("the claim that names its principal is missing or not a string")
	}
	return m.principal(id)
}

// realm is the set of principals that one source of credentials can yield: the one named by start,
// or all that begin with it.
type realm struct {
	path   string // of the configuration field
	origin string // two realms of one origin name the same somebody by the same principal
	start  string
	open   bool
	shared bool // the configuration accepts that another source yields the same principals
}

// checkDisjoint is invariant I7: two sources can never yield one principal, unless both say so. The
// encoding of identifiers is a prefix code, so comparing encoded prefixes compares raw ones.
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
	// A principal with an identifier of one character shows whether the type is a type and the prefix fits.
	if _, err := delegation.NewPrincipal(m.Type, m.Prefix+"x"); err != nil {
		return realm{}, fault(path, "type or prefix: %v", err)
	}
	return realm{
		path: path, origin: fmt.Sprintf("%q of issuer %q", m.claim(), issuer),
		start: m.Type + ":" + delegation.EncodeID(m.Prefix), open: true, shared: shared,
	}, nil
}
