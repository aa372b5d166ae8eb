package delegation

import (
	"cmp"
	"encoding/base64"
	"errors"
	"fmt"
	"slices"
	"strings"
)

// MaxTokenBytes is the maximum length of a token, checked before any part of it is decoded.
const MaxTokenBytes = 8 << 10

// maxIDBytes bounds the names of tokens and keys: they are kept and compared long after the token.
const maxIDBytes = 256

const maxAudiences = 64

// Header holds the JOSE header parameters that Deputy uses.
type Header struct {
	Algorithm string
	// Type is in lower case, without an "application/" prefix (RFC 7515 §4.1.9); "" if absent.
	Type  string
	KeyID string // "" if absent
}

// Unverified is a token of valid form whose signature is not verified. Use it to choose the key,
// never to decide anything.
type Unverified struct {
	Header       Header
	SigningInput string // what the signature covers: the first two parts and the dot between them
	Signature    []byte
	Payload      []byte // the claims, one strict JSON object

	claims value // the payload
	exact  bool  // the header holds only alg, typ and kid
}

// forbiddenHeaders would let a token choose its own key, change how it is read, or demand an
// extension that is not implemented here (RFC 7515 §4.1, RFC 8725 §3). Other parameters are
// ignored, such as x5t, which GitHub sends: it names a certificate, and the key is found without
// it.
var forbiddenHeaders = []string{"jku", "jwk", "x5u", "x5c", "crit", "b64", "zip", "enc", "epk", "cty"}

// Parse is the strict gate that every token passes first, on the server and in the SDK: JWS compact
// serialization only, at most MaxTokenBytes, strict unpadded base64url, a header without key
// material or critical extensions, and one JSON object without duplicate members as payload. Errors
// name the broken rule and never repeat the token.
func Parse(token string) (*Unverified, error) {
	if len(token) > MaxTokenBytes {
		return nil, fmt.Errorf("token is longer than %d bytes", MaxTokenBytes)
	}
	if strings.Count(token, ".") != 2 {
		return nil, errors.New("token is not a JWS in compact serialization")
	}
	dot := strings.LastIndexByte(token, '.')
	signingInput := token[:dot]
	head, body, _ := strings.Cut(signingInput, ".")
	var r reader
	header, exact, err := parseHeader(&r, head)
	if err != nil {
		return nil, err
	}
	return parseRest(&r, header, exact, signingInput, body, token[dot+1:])
}

// parseRest reads the parts that follow the header.
func parseRest(r *reader, header Header, exact bool, signingInput, body, sealed string) (*Unverified, error) {
	payload, err := decodeSegment("payload", body)
	if err != nil {
		return nil, err
	}
	signature, err := decodeSegment("signature", sealed)
	if err != nil {
		return nil, err
	}
	claims, err := r.object(payload)
	if err != nil {
		return nil, fmt.Errorf("token payload: %w", err)
	}
	return &Unverified{Header: header, SigningInput: signingInput, Signature: signature, Payload: payload, claims: claims, exact: exact}, nil
}

func parseHeader(r *reader, segment string) (h Header, exact bool, err error) {
	raw, err := decodeSegment("header", segment)
	if err != nil {
		return Header{}, false, err
	}
	members, err := r.object(raw)
	if err != nil {
		return Header{}, false, fmt.Errorf("token header: %w", err)
	}
	exact = true
	for m := range members.within() {
		name := m[0].name
		if slices.Contains(forbiddenHeaders, name) {
			return Header{}, false, fmt.Errorf("token header: %s is not accepted", name)
		}
		exact = exact && (name == "alg" || name == "typ" || name == "kid")
	}
	var errs [3]error
	h.Algorithm, errs[0] = stringMember(members, "alg")
	h.Type, errs[1] = filledMember(members, "typ")
	h.KeyID, errs[2] = filledMember(members, "kid")
	if err := cmp.Or(errs[:]...); err != nil {
		return Header{}, false, fmt.Errorf("token header: %w", err)
	}
	if len(h.KeyID) > maxIDBytes {
		return Header{}, false, fmt.Errorf("token header: kid is longer than %d bytes", maxIDBytes)
	}
	h.Type = strings.TrimPrefix(strings.ToLower(h.Type), "application/")
	return h, exact, nil
}

var strictBase64 = base64.RawURLEncoding.Strict()

// decodeSegment accepts the one encoding that RFC 7515 §2 defines. It checks for line breaks first,
// because Go's decoder skips them even when it is strict.
func decodeSegment(name, segment string) ([]byte, error) {
	if segment == "" {
		return nil, fmt.Errorf("token %s is empty", name)
	}
	if strings.ContainsAny(segment, "\r\n") {
		return nil, fmt.Errorf("token %s is not strict base64url", name)
	}
	raw, err := strictBase64.DecodeString(segment)
	if err != nil {
		return nil, fmt.Errorf("token %s is not strict base64url", name)
	}
	return raw, nil
}

// HoldsToken reports whether the text holds something with the form of a JWS in compact
// serialization, from any issuer. A credential in the wrong field must be refused before that field
// is recorded or repeated.
func HoldsToken(text string) bool {
	for {
		i := strings.Index(text, tokenStart)
		if i < 0 {
			return false
		}
		text = text[i:]
		rest := strings.TrimLeft(text, base64URL)
		body, dotted := strings.CutPrefix(rest, ".")
		if dotted && len(text)-len(rest) >= shortestHeader && strings.TrimLeft(body, base64URL) != body {
			return true
		}
		text = text[len(tokenStart):]
	}
}

const (
	tokenStart     = "eyJ" // the encoding of {" and of nothing else
	shortestHeader = 12    // no header with an alg is shorter
	base64URL      = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_"
)

// Registered holds the registered claims of RFC 7519 §4.1. Absent strings are "", absent times 0.
// exp is never absent.
type Registered struct {
	Issuer    string
	Subject   string
	Audience  []string
	ExpiresAt int64 // seconds since 1970
	NotBefore int64
	IssuedAt  int64
	ID        string
}

// Registered reads the registered claims by exact case. iss and exp must be present, and each
// present claim must have its type.
func (u *Unverified) Registered() (Registered, error) { return u.registered(stringMember) }

// RegisteredSVID is Registered for a SPIFFE JWT-SVID, where iss is optional: the trust domain in
// its sub determines whose keys verify it (JWT-SVID §3 and §4).
func (u *Unverified) RegisteredSVID() (Registered, error) { return u.registered(filledMember) }

func (u *Unverified) registered(issuer func(value, string) (string, error)) (Registered, error) {
	var r Registered
	var errs [6]error
	r.Issuer, errs[0] = issuer(u.claims, "iss")
	r.Subject, errs[1] = filledMember(u.claims, "sub")
	r.ExpiresAt, errs[2] = secondsMember(u.claims, "exp")
	r.NotBefore, errs[3] = secondsMember(u.claims, "nbf")
	r.IssuedAt, errs[4] = secondsMember(u.claims, "iat")
	r.ID, errs[5] = filledMember(u.claims, "jti")
	if err := cmp.Or(errs[:]...); err != nil {
		return Registered{}, err
	}
	if len(r.ID) > maxIDBytes {
		return Registered{}, fmt.Errorf("jti is longer than %d bytes", maxIDBytes)
	}
	if r.ExpiresAt == 0 {
		return Registered{}, errors.New("exp is missing")
	}
	if u.claims.member("aud") != nil {
		var err error
		if r.Audience, err = stringsMember(u.claims, "aud"); err != nil || slices.Contains(r.Audience, "") {
			return Registered{}, errors.New("aud is neither a string nor a list of strings")
		}
		if len(r.Audience) > maxAudiences {
			return Registered{}, fmt.Errorf("aud has more than %d values", maxAudiences)
		}
	}
	return r, nil
}

// Claim returns the raw JSON value of one claim, by exact case, and whether it is present.
func (u *Unverified) Claim(name string) ([]byte, bool) {
	m := u.claims.member(name)
	if m == nil {
		return nil, false
	}
	return []byte(m.raw()), true
}

// StringClaim returns one claim that must be a string.
func (u *Unverified) StringClaim(name string) (string, error) { return stringMember(u.claims, name) }

// StringAt returns the string at a path of member names, each matched exactly, from the claims
// inwards. All members but the last must be objects: a position in a list cannot name a principal.
func (u *Unverified) StringAt(path ...string) (string, error) {
	v := u.claims
	for _, name := range path {
		v = v.member(name)
	}
	s, isText := v.str()
	if !isText {
		return "", errors.New("no string is there")
	}
	return s, nil
}

// StringsClaim returns one claim that must be a string or a list of strings.
func (u *Unverified) StringsClaim(name string) ([]string, error) {
	return stringsMember(u.claims, name)
}
