package delegation

import (
	"errors"
	"fmt"
	"slices"
	"strings"
)

// maxScopes is the maximum number of scopes in one request or token.
const maxScopes = 128

// Scopes is a set of OAuth scope tokens (RFC 6749 §3.3): sorted, each once, compared byte by byte
// without case folding, prefixes or wildcards. The zero value is the empty set: no scope.
type Scopes []string

// ParseScopes reads the wire form: scope tokens of RFC 6749's alphabet, separated by single spaces.
// The empty string is malformed: the caller leaves an absent scope out.
func ParseScopes(s string) (Scopes, error) {
	if s == "" {
		return nil, errors.New("scope is empty: leave it out to ask for none")
	}
	return NewScopes(strings.Split(s, " ")...)
}

// NewScopes makes a set of single scope tokens.
func NewScopes(tokens ...string) (Scopes, error) {
	if len(tokens) > maxScopes {
		return nil, fmt.Errorf("%d scopes are more than %d", len(tokens), maxScopes)
	}
	for i, token := range tokens {
		if !isScopeToken(token) {
			return nil, fmt.Errorf("scope token %d must be visible ASCII without quotes and backslashes (RFC 6749 section 3.3)", i+1)
		}
	}
	set := slices.Clone(tokens)
	slices.Sort(set)
	return slices.Compact(set), nil
}

// String is the wire form; the empty set is "".
func (s Scopes) String() string { return strings.Join(s, " ") }

// Contains reports whether the token is in the set.
func (s Scopes) Contains(token string) bool {
	_, found := slices.BinarySearch(s, token)
	return found
}

// Without returns the tokens of s that other does not hold.
func (s Scopes) Without(other Scopes) Scopes {
	var rest Scopes
	for _, token := range s {
		if !other.Contains(token) {
			rest = append(rest, token)
		}
	}
	return rest
}

// SubsetOf reports whether other holds every token of s.
func (s Scopes) SubsetOf(other Scopes) bool { return len(s.Without(other)) == 0 }

func isScopeToken(s string) bool {
	for i := range len(s) {
		if c := s[i]; c < 0x21 || c > 0x7e || c == '"' || c == '\\' {
			return false
		}
	}
	return s != ""
}
