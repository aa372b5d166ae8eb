package httpapi

import (
	"errors"
	"io"
	"maps"
	"mime"
	"net/http"
	"slices"
	"strings"
	"unicode/utf8"

	"deputy.example/deputy/client/delegation"
	"deputy.example/deputy/server/internal/exchange"
)

// arity is how often a parameter may be sent. Names without an arity are unknown and are ignored
// (RFC 6749 §3.2).
type arity int

const (
	single     arity = iota + 1 // at most once (RFC 6749 §3.2)
	repeatable                  // any number (RFC 8693 §2.1: audience, resource)
	// unsupported is for known parameters whose meaning Deputy does not implement: they are
	// refused, never ignored.
	unsupported
)

// parameters holds the known parameters that came with a value. A value is never "": a parameter
// without a value counts as omitted (RFC 6749 §3.2).
type parameters map[string][]string

// text returns a single-valued parameter, or "".
func (p parameters) text(name string) string {
	if values := p[name]; len(values) > 0 {
		return values[0]
	}
	return ""
}

// optional returns a single-valued parameter, or nil.
func (p parameters) optional(name string) *string {
	if values := p[name]; len(values) > 0 {
		return &values[0]
	}
	return nil
}

// add adds one pair. A second value must not change what the first one means. A repeated
// single-valued parameter is refused even where one of the values is empty.
func (p parameters) add(known map[string]arity, seen map[string]bool, name, value string) error {
	kind := known[name]
	switch {
	case kind == 0:
		return nil
	case kind != repeatable && seen[name]:
		return delegation.Refuse(delegation.ParameterRepeated, name, "it must not be sent more than once")
	}
	seen[name] = true
	if value != "" {
		p[name] = append(p[name], value)
	}
	return nil
}

// refuseUnsupported refuses the first unsupported parameter, in alphabetical order.
func (p parameters) refuseUnsupported(known map[string]arity) error {
	first := ""
	for name := range p {
		if known[name] == unsupported && (first == "" || name < first) {
			first = name
		}
	}
	if first == "" {
		return nil
	}
	return delegation.Refuse(delegation.ParameterUnsupported, first, "it is not supported here and must not be sent")
}

// fit refuses the first parameter, in alphabetical order, with a value that is longer than its
// bound. It leaves out unsupported parameters, which are refused for any value.
func (p parameters) fit(known map[string]arity) error {
	for _, name := range slices.Sorted(maps.Keys(p)) {
		for _, value := range p[name] {
			if known[name] == unsupported {
				continue
			}
			if err := exchange.Fits(name, len(value), exchange.Bound(name)); err != nil {
				return err
			}
		}
	}
	return nil
}

// parseForm parses an application/x-www-form-urlencoded body. Every accepted body has exactly one
// meaning: '&' alone separates, two hexadecimal digits always follow '%', and the decoded text is
// UTF-8. Bytes that an encoder always encodes (controls, space, ';', anything beyond ASCII) are
// refused, because other parsers disagree about them. A body has at most maxParameters names, known
// or unknown.
func parseForm(body string, known map[string]arity) (parameters, error) {
	for i := range len(body) {
		if c := body[i]; c <= ' ' || c > '~' || c == ';' {
			return nil, delegation.Refuse(delegation.ParameterInvalid, "", "the form holds the byte 0x%02x, which must be percent-encoded", c)
		}
	}
	p, seen, count := make(parameters), make(map[string]bool), 0
	for body != "" {
		var pair string
		pair, body, _ = strings.Cut(body, "&")
		if pair == "" {
			continue
		}
		if count++; count > maxParameters {
			return nil, delegation.Refuse(delegation.RequestTooLarge, "", "the form has more than %d parameters", maxParameters)
		}
		rawName, rawValue, _ := strings.Cut(pair, "=")
		name, nameOK := decodeForm(rawName)
		value, valueOK := decodeForm(rawValue)
		if !nameOK || !valueOK || name == "" {
			return nil, delegation.Refuse(delegation.ParameterInvalid, fieldName(name, known), "parameter %d of the form is not name=value in strict percent-encoding of UTF-8", count)
		}
		if err := p.add(known, seen, name, value); err != nil {
			return nil, err
		}
	}
	return p, nil
}

// fieldName repeats a name from the request only if it is a known parameter.
func fieldName(name string, known map[string]arity) string {
	if known[name] == 0 {
		return ""
	}
	return name
}

// decodeForm decodes percent-encoding and '+' for space.
func decodeForm(s string) (string, bool) {
	if !strings.ContainsAny(s, "%+") {
		return s, true
	}
	out := make([]byte, 0, len(s))
	for i := 0; i < len(s); i++ {
		switch c := s[i]; c {
		case '+':
			out = append(out, ' ')
		case '%':
			if i+2 >= len(s) {
				return "", false
			}
			hi, lo := hexDigit(s[i+1]), hexDigit(s[i+2])
			if hi < 0 || lo < 0 {
				return "", false
			}
			out = append(out, byte(hi<<4|lo))
			i += 2
		default:
			out = append(out, c)
		}
	}
	return string(out), utf8.Valid(out)
}

func hexDigit(c byte) int {
	switch {
	case '0' <= c && c <= '9':
		return int(c - '0')
	case 'a' <= c && c <= 'f':
		return int(c-'a') + 10
	case 'A' <= c && c <= 'F':
		return int(c-'A') + 10
	}
	return -1
}

// Media types of request bodies.
const (
	mediaForm = "application/x-www-form-urlencoded"
	mediaJSON = "application/json"
)

// requestMediaType reads Content-Type: exactly one, with no parameter except a charset of UTF-8.
func requestMediaType(r *http.Request) (string, error) {
	unreadable := delegation.Refuse(delegation.MediaTypeUnsupported, "Content-Type", "send %s, in UTF-8 and without a content encoding", mediaForm)
	values := r.Header.Values("Content-Type")
	if len(values) != 1 {
		return "", unreadable
	}
	media, params, err := mime.ParseMediaType(values[0])
	if err != nil {
		return "", unreadable
	}
	charset, given := params["charset"]
	if given && !strings.EqualFold(charset, "utf-8") || len(params) > 1 || len(params) == 1 && !given {
		return "", unreadable
	}
	for _, coding := range r.Header.Values("Content-Encoding") {
		if !strings.EqualFold(coding, "identity") {
			return "", unreadable
		}
	}
	return media, nil
}

// readBody reads at most maxBodyBytes. If Content-Length is larger, it reads nothing.
func readBody(w http.ResponseWriter, r *http.Request) (string, error) {
	tooLarge := delegation.Refuse(delegation.RequestTooLarge, "", "the body is longer than %d bytes", maxBodyBytes)
	if r.ContentLength > maxBodyBytes {
		return "", tooLarge
	}
	body, err := io.ReadAll(http.MaxBytesReader(w, r.Body, maxBodyBytes))
	if err != nil {
		if tooLong := new(http.MaxBytesError); errors.As(err, &tooLong) {
			return "", tooLarge
		}
		return "", delegation.Refuse(delegation.ParameterInvalid, "", "the body could not be read to its end").WithCause(err)
	}
	return string(body), nil
}
