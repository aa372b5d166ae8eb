package httpapi

import (
	"errors"
	"io"
	"strings"

	"github.com/go-json-experiment/json/jsontext"

	"deputy.example/deputy/client/delegation"
)

// parseSTS parses the JSON body that grpc-go's STS credential sends in place of a form: one flat
// object whose members are parameters of RFC 8693 §2.1, each a string and each at most once. The
// rules for the parameters of a form hold for the members too. Other members are refused: no
// standard specifies this JSON, so no standard permits to ignore an unknown member.
func parseSTS(body string, known map[string]arity) (parameters, error) {
	malformed := delegation.Refuse(delegation.ParameterInvalid, "", "the body is not one flat JSON object whose members are strings, each named once")
	dec := jsontext.NewDecoder(strings.NewReader(body))
	if open, err := dec.ReadToken(); err != nil || open.Kind() != '{' {
		return nil, malformed
	}
	p, seen := make(parameters), make(map[string]bool)
	for dec.PeekKind() != '}' {
		member, err := dec.ReadToken()
		if errors.Is(err, jsontext.ErrDuplicateName) {
			return nil, delegation.Refuse(delegation.ParameterRepeated, "", "the JSON object names a member twice")
		}
		if err != nil {
			return nil, malformed
		}
		name := member.String() // copied: the next read overwrites the token
		value, err := dec.ReadToken()
		if err != nil || value.Kind() != '"' {
			return nil, malformed
		}
		if !stsMembers[name] {
			return nil, delegation.Refuse(delegation.ParameterUnsupported, fieldName(name, known), "a JSON body may hold the parameters of RFC 8693 only: send a form")
		}
		if err := p.add(known, seen, name, value.String()); err != nil {
			return nil, err
		}
	}
	if _, err := dec.ReadToken(); err != nil {
		return nil, malformed
	}
	if _, err := dec.ReadToken(); !errors.Is(err, io.EOF) {
		return nil, malformed
	}
	return p, nil
}
