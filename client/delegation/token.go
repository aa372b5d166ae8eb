package delegation

import (
	"encoding/base64"
	"errors"
	"fmt"
	"slices"
	"strings"

	"github.com/go-json-experiment/json/jsontext"
)

// MaxTokenBytes bounds a token before anything of it is decoded.
const MaxTokenBytes = 8 << 10

// Header holds the JOSE header parameters that Deputy honours.
type Header struct {
	Algorithm string
	Type      string // lower-cased, without an "application/" prefix (RFC 7515 §4.1.9); "" if absent
	KeyID     string // "" if absent
}

// Unverified is a token whose form is right and whose signature nobody has checked. Use it to
// choose the key, never to decide anything.
type Unverified struct {
	Header       Header
	SigningInput string // what the signature covers: the first two parts and the dot between them
	Signature    []byte
	Payload      []byte // the claims, one strict JSON object

	members map[string]jsontext.Value
	exact   bool // the header holds nothing beside alg, typ and kid
}

// forbiddenHeaders would let a token choose its own key, change how it is read, or demand an
// extension that nobody here implements (RFC 7515 §4.1, RFC 8725 §3).
var forbiddenHeaders = []string{"jku", "jwk", "x5u", "x5c", "crit", "b64", "zip", "enc", "epk", "cty"}

// Parse is the strict gate that every token passes first, on the server and in the SDK: JWS compact
// serialization only, at most MaxTokenBytes, strict unpadded base64url, a header without key
// material or critical extensions, one JSON object without duplicate members as payload. Errors
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
	header, exact, err := parseHeader(head)
	if err != nil {
		return nil, err
	}
	payload, err := decodeSegment("payload", body)
	if err != nil {
		return nil, err
	}
	signature, err := decodeSegment("signature", token[dot+1:])
	if err != nil {
		return nil, err
	}
	members, err := objectMembers(payload)
	if err != nil {
		return nil, fmt.Errorf("token payload: %w", err)
	}
	return &Unverified{Header: header, SigningInput: signingInput, Signature: signature, Payload: payload, members: members, exact: exact}, nil
}

func parseHeader(segment string) (h Header, exact bool, err error) {
	raw, err := decodeSegment("header", segment)
	if err != nil {
		return Header{}, false, err
	}
	members, err := objectMembers(raw)
	if err != nil {
		return Header{}, false, fmt.Errorf("token header: %w", err)
	}
	for _, name := range forbiddenHeaders {
		if _, present := members[name]; present {
			return Header{}, false, fmt.Errorf("token header: %s is not accepted", name)
		}
	}
	if h.Algorithm, err = stringMember(members, "alg"); err != nil {
		return Header{}, false, fmt.Errorf("token header: %w", err)
	}
	for name, into := range map[string]*string{"typ": &h.Type, "kid": &h.KeyID} {
		if _, present := members[name]; !present {
			continue
		}
		if *into, err = stringMember(members, name); err != nil || *into == "" {
			return Header{}, false, fmt.Errorf("token header: %s is not a string with content", name)
		}
	}
	exact = true
	for name := range members {
		exact = exact && (name == "alg" || name == "typ" || name == "kid")
	}
	h.Type = strings.TrimPrefix(strings.ToLower(h.Type), "application/")
	return h, exact, nil
}

// decodeSegment accepts the one encoding that RFC 7515 §2 defines. The alphabet is checked first
// because Go's decoder skips line breaks even when it is strict.
func decodeSegment(name, segment string) ([]byte, error) {
	if segment == "" {
		return nil, fmt.Errorf("token %s is empty", name)
	}
	if strings.ContainsAny(segment, "\r\n") {
		return nil, fmt.Errorf("token %s is not strict base64url", name)
	}
	raw, err := base64.RawURLEncoding.Strict().DecodeString(segment)
	if err != nil {
		return nil, fmt.Errorf("token %s is not strict base64url", name)
	}
	return raw, nil
}

// HoldsToken says whether the text holds something with the form of a JWS in compact serialization,
// whoever made it. A credential that was put into the wrong field must be refused before that field
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

// Registered holds the registered claims of RFC 7519 §4.1. Absent strings are "", absent times 0;
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

// Registered reads the registered claims by exact case: iss and exp must be there, and each claim
// that is there must have its type.
func (u *Unverified) Registered() (Registered, error) {
	var r Registered
	var err error
	if r.ExpiresAt, err = secondsMember(u.members, "exp"); err != nil {
		return Registered{}, err
	}
	if r.Issuer, err = stringMember(u.members, "iss"); err != nil {
		return Registered{}, err
	}
	for name, into := range map[string]*int64{"nbf": &r.NotBefore, "iat": &r.IssuedAt} {
		if _, present := u.members[name]; present {
			if *into, err = secondsMember(u.members, name); err != nil {
				return Registered{}, err
			}
		}
	}
	for name, into := range map[string]*string{"sub": &r.Subject, "jti": &r.ID} {
		if _, present := u.members[name]; present {
			if *into, err = stringMember(u.members, name); err != nil || *into == "" {
				return Registered{}, fmt.Errorf("%s is not a string with content", name)
			}
		}
	}
	if _, present := u.members["aud"]; present {
		if r.Audience, err = stringsMember(u.members, "aud"); err != nil || slices.Contains(r.Audience, "") {
			return Registered{}, errors.New("aud is neither a string nor a list of strings")
		}
	}
	return r, nil
}

// Claim returns the raw JSON value of one claim, by exact case, and whether it is there.
func (u *Unverified) Claim(name string) ([]byte, bool) {
	raw, present := u.members[name]
	return raw, present
}

// StringClaim returns one claim that must be a string.
func (u *Unverified) StringClaim(name string) (string, error) { return stringMember(u.members, name) }

// StringsClaim returns one claim that must be a string or a list of strings.
func (u *Unverified) StringsClaim(name string) ([]string, error) {
	return stringsMember(u.members, name)
}
