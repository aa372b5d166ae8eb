package delegation

import (
	"errors"
	"fmt"
	"strings"
)

// maxPrincipalBytes is the longest object name that OpenFGA accepts.
const maxPrincipalBytes = 256

// Principal is a typed name such as "user:alice" or "agent:planner". It is identical to the
// principal's OpenFGA object name. A parsed Principal has the canonical form: its id is
// percent-encoded exactly where EncodeID encodes, so equal principals are equal strings.
type Principal string

// NewPrincipal returns the principal of the given type. rawID is its identifier as its issuer wrote
// it. Two different pairs never give the same Principal.
func NewPrincipal(typ, rawID string) (Principal, error) {
	return ParsePrincipal(typ + ":" + EncodeID(rawID))
}

// ParsePrincipal accepts only a principal in canonical form and never repairs one. Its errors name
// the rule and never repeat s: they are sent, logged and recorded.
func ParsePrincipal(s string) (Principal, error) {
	typ, id, found := strings.Cut(s, ":")
	switch {
	case !found:
		return "", errors.New("must be type:id, such as agent:planner")
	case len(s) > maxPrincipalBytes:
		return "", fmt.Errorf("must have at most %d bytes", maxPrincipalBytes)
	case !isTypeName(typ):
		return "", errors.New("must have a type that matches [a-z][a-z0-9_-]*, such as agent in agent:planner")
	case !isEncodedID(id):
		return "", errors.New("must have an id in canonical form: every byte but letters, digits and -._~/@+= as %XX")
	}
	return Principal(s), nil
}

// Type is the part before the colon: user, agent, service, …
func (p Principal) Type() string { typ, _, _ := strings.Cut(string(p), ":"); return typ }

// ID is the encoded part after the colon.
func (p Principal) ID() string { _, id, _ := strings.Cut(string(p), ":"); return id }

const upperHex = "0123456789ABCDEF"

// EncodeID makes any string a valid id of an OpenFGA object. Letters, digits and -._~/@+= stay as
// they are, every other byte becomes %XX in upper case. The mapping is injective, and the result
// never holds a separator of OpenFGA (':', '#', '*', white space) or of Deputy ('|').
func EncodeID(raw string) string {
	clean := true
	for i := range len(raw) {
		clean = clean && isPlainIDByte(raw[i])
	}
	if clean {
		return raw
	}
	var b strings.Builder
	for i := range len(raw) {
		if c := raw[i]; isPlainIDByte(c) {
			b.WriteByte(c)
		} else {
			b.WriteByte('%')
			b.WriteByte(upperHex[c>>4])
			b.WriteByte(upperHex[c&15])
		}
	}
	return b.String()
}

// DecodeID reverses EncodeID, for display only.
func DecodeID(id string) string {
	var b strings.Builder
	for i := 0; i < len(id); i++ {
		if c, ok := encodedByteAt(id, i); ok {
			b.WriteByte(c)
			i += 2
			continue
		}
		b.WriteByte(id[i])
	}
	return b.String()
}

func isEncodedID(id string) bool {
	for i := 0; i < len(id); i++ {
		if isPlainIDByte(id[i]) {
			continue
		}
		c, ok := encodedByteAt(id, i)
		if !ok || isPlainIDByte(c) {
			return false
		}
		i += 2
	}
	return id != ""
}

func encodedByteAt(id string, i int) (byte, bool) {
	if id[i] != '%' || i+2 >= len(id) {
		return 0, false
	}
	hi, lo := strings.IndexByte(upperHex, id[i+1]), strings.IndexByte(upperHex, id[i+2])
	if hi < 0 || lo < 0 {
		return 0, false
	}
	return byte(hi<<4 | lo), true
}

func isPlainIDByte(c byte) bool {
	return 'a' <= c && c <= 'z' || 'A' <= c && c <= 'Z' || '0' <= c && c <= '9' ||
		strings.IndexByte("-._~/@+=", c) >= 0
}

func isTypeName(s string) bool {
	for i := range len(s) {
		c := s[i]
		letter := 'a' <= c && c <= 'z'
		if !letter && (i == 0 || !('0' <= c && c <= '9' || c == '_' || c == '-')) {
			return false
		}
	}
	return s != ""
}
