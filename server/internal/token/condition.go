package token

import (
	"errors"
	"fmt"
	"slices"
	"strings"

	"deputy.example/deputy/client/delegation"
)

// Condition is a rule for one claim, which a token must meet before it names a principal. A claim
// that is missing or not a string meets no condition.
type Condition struct {
	// Claim is a name or a JSON pointer, as in Mapping. Required.
	Claim string `yaml:"claim"`
	// Values that the claim may have, byte for byte. Values or prefixes are required.
	Values []string `yaml:"values"`
	// Prefixes that the claim may begin with, byte for byte. Danger: end each prefix at the end of
	// a name. acme/ means the repositories of acme; acme also means those of acme-evil.
	Prefixes []string `yaml:"prefixes"`
}

// claimPath leads to a claim: names of members, from the outermost inwards. It is never empty, and
// two paths to one claim are equal.
type claimPath []string

// parseClaimPath reads the name of a top-level claim, or a JSON pointer (RFC 6901) to a nested one,
// which goes through objects only. A name that begins with a slash is written as a pointer:
// /~1name.
func parseClaimPath(text string) (claimPath, error) {
	rest, isPointer := strings.CutPrefix(text, "/")
	path := claimPath{text}
	if isPointer {
		path = strings.Split(rest, "/")
	}
	for n, name := range path {
		if isPointer {
			if strings.Contains(unescapes.Replace(name), "~") {
				return nil, errors.New("is not a JSON pointer: ~ must be followed by 0 or 1 (RFC 6901)")
			}
			// In this order: RFC 6901 section 4.
			name = strings.ReplaceAll(strings.ReplaceAll(name, "~1", "/"), "~0", "~")
			path[n] = name
		}
		if name == "" {
			return nil, errors.New("names no claim: want a name such as sub, or a JSON pointer such as /kubernetes.io/namespace")
		}
	}
	return path, nil
}

// unescapes removes the valid escape sequences.
var unescapes = strings.NewReplacer("~0", "", "~1", "")

// String returns the path as a JSON pointer, in its only spelling.
func (path claimPath) String() string {
	var b strings.Builder
	for _, name := range path {
		b.WriteString("/")
		b.WriteString(strings.ReplaceAll(strings.ReplaceAll(name, "~", "~0"), "/", "~1"))
	}
	return b.String()
}

// condition is a checked Condition.
type condition struct {
	path             claimPath
	values, prefixes []string
}

// conditions checks the conditions of a mapping.
func (m Mapping) conditions(path string) ([]condition, error) {
	var all []condition
	for n, c := range m.When {
		at := fmt.Sprintf("%s.when[%d]", path, n)
		claim, err := parseClaimPath(c.Claim)
		if err != nil {
			return nil, fault(at+".claim", "%v", err)
		}
		switch {
		case slices.ContainsFunc(all, func(other condition) bool { return slices.Equal(other.path, claim) }):
			return nil, fault(at+".claim", "has a condition already: put all that it may be into one")
		case len(c.Values)+len(c.Prefixes) == 0:
			return nil, fault(at+".values", "missing: list what the claim may be, or under prefixes how it may begin")
		case slices.Contains(c.Values, ""):
			return nil, fault(at+".values", "must not hold an empty value")
		case slices.Contains(c.Prefixes, ""):
			return nil, fault(at+".prefixes", "must not hold an empty prefix, with which everything begins")
		}
		all = append(all, condition{claim, c.Values, c.Prefixes})
	}
	return all, nil
}

func (c condition) metBy(p presented) bool {
	value, err := p.StringAt(c.path...)
	return err == nil && c.allows(value)
}

func (c condition) allows(value string) bool {
	return slices.Contains(c.values, value) ||
		slices.ContainsFunc(c.prefixes, func(prefix string) bool { return strings.HasPrefix(value, prefix) })
}

// names reports whether a token of the issuer could name the principal: every condition is met, as
// far as the principal itself shows it.
func (i *issuer) names(p delegation.Principal) bool {
	id, found := strings.CutPrefix(delegation.DecodeID(p.ID()), i.Principal.Prefix)
	if !found || id == "" || p.Type() != i.Principal.Type {
		return false
	}
	return !slices.ContainsFunc(i.conditions, func(c condition) bool {
		return slices.Equal(c.path, i.identity) && !c.allows(id)
	})
}
