package delegation

import (
	"errors"
	"fmt"
	"strings"
)

// HeaderTypeProof is the "typ" of a DPoP proof (RFC 9449 §4.2).
const HeaderTypeProof = "dpop+jwt"

// ParseProof is the gate, as Parse is for tokens, of a DPoP proof: the one kind of JWS that carries
// its own key. Its header holds exactly typ, alg and jwk. It returns the members of the jwk by
// name; a member that is not a string has the value "". Nothing in the proof is verified yet, and
// it is not a token: Parse refuses every proof, and ParseProof refuses every token. Errors never
// repeat the proof.
func ParseProof(proof string) (u *Unverified, jwk map[string]string, err error) {
	if len(proof) > MaxTokenBytes {
		return nil, nil, fmt.Errorf("proof is longer than %d bytes", MaxTokenBytes)
	}
	if strings.Count(proof, ".") != 2 {
		return nil, nil, errors.New("proof is not a JWS in compact serialization")
	}
	dot := strings.LastIndexByte(proof, '.')
	head, body, _ := strings.Cut(proof[:dot], ".")
	var r reader
	raw, err := decodeSegment("header", head)
	if err != nil {
		return nil, nil, err
	}
	members, err := r.object(raw)
	if err != nil {
		return nil, nil, fmt.Errorf("proof header: %w", err)
	}
	var h Header
	if h.Algorithm, err = stringMember(members, "alg"); err != nil {
		return nil, nil, fmt.Errorf("proof header: %w", err)
	}
	if h.Type, err = stringMember(members, "typ"); err != nil {
		return nil, nil, fmt.Errorf("proof header: %w", err)
	}
	key := members.member("jwk")
	if key.kind() != '{' || members.count() != 3 {
		return nil, nil, errors.New("proof header: must hold exactly typ, alg and jwk")
	}
	jwk = make(map[string]string)
	for m := range key.within() {
		jwk[m[0].name], _ = m.str()
	}
	u, err = parseRest(&r, h, false, proof[:dot], body, proof[dot+1:])
	return u, jwk, err
}

// SecondsClaim returns one claim that must be a NumericDate: whole, positive seconds since 1970.
func (u *Unverified) SecondsClaim(name string) (int64, error) {
	seconds, err := secondsMember(u.claims, name)
	if err == nil && seconds == 0 {
		err = fmt.Errorf("%s is missing", name)
	}
	return seconds, err
}
