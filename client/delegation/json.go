package delegation

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"math"
	"strconv"

	"github.com/go-json-experiment/json/jsontext"
)

// maxJSONDepth leaves room for the deepest actor chain inside a claims object.
const maxJSONDepth = MaxChainDepth + 8

// objectMembers reads one JSON object in a single strict pass: valid UTF-8, no duplicate member at
// any level, bounded nesting, nothing behind it. Member names keep their exact case.
func objectMembers(data []byte) (map[string]jsontext.Value, error) {
	dec := jsontext.NewDecoder(bytes.NewReader(data))
	if tok, err := dec.ReadToken(); err != nil || tok.Kind() != '{' {
		return nil, errors.New("not a JSON object")
	}
	if tooDeep(data) {
		return nil, fmt.Errorf("JSON is nested deeper than %d", maxJSONDepth)
	}
	members := make(map[string]jsontext.Value, 16)
	for dec.PeekKind() != '}' {
		name, err := dec.ReadToken()
		if err != nil {
			return nil, jsonFault(err)
		}
		key := name.String()
		value, err := dec.ReadValue()
		if err != nil {
			return nil, jsonFault(err)
		}
		members[key] = value.Clone()
	}
	if _, err := dec.ReadToken(); err != nil {
		return nil, jsonFault(err)
	}
	if _, err := dec.ReadToken(); !errors.Is(err, io.EOF) {
		return nil, errors.New("data behind the JSON object")
	}
	return members, nil
}

// tooDeep counts brackets outside strings: a bound that holds before anything recurses.
func tooDeep(data []byte) bool {
	depth, quoted := 0, false
	for i := 0; i < len(data); i++ {
		switch c := data[i]; {
		case quoted && c == '\\':
			i++
		case c == '"':
			quoted = !quoted
		case quoted:
		case c == '{' || c == '[':
			if depth++; depth > maxJSONDepth {
				return true
			}
		case c == '}' || c == ']':
			depth--
		}
	}
	return false
}

// jsonFault says what rule was broken without repeating the data: it may hold a secret.
func jsonFault(err error) error {
	if errors.Is(err, jsontext.ErrDuplicateName) {
		return errors.New("JSON object has a duplicate member")
	}
	return errors.New("malformed JSON")
}

func stringMember(members map[string]jsontext.Value, name string) (string, error) {
	raw, present := members[name]
	if !present {
		return "", fmt.Errorf("%s is missing", name)
	}
	if raw.Kind() != '"' {
		return "", fmt.Errorf("%s is not a string", name)
	}
	s, err := jsontext.AppendUnquote(nil, raw)
	if err != nil {
		return "", fmt.Errorf("%s is not a string", name)
	}
	return string(s), nil
}

// secondsMember reads a NumericDate as this project accepts it: a whole, positive number of seconds
// that a float64 can hold exactly, without fraction or exponent.
func secondsMember(members map[string]jsontext.Value, name string) (int64, error) {
	raw, present := members[name]
	if !present {
		return 0, fmt.Errorf("%s is missing", name)
	}
	n, err := strconv.ParseInt(string(raw), 10, 64)
	if err != nil || n <= 0 || n > 1<<53 || math.Signbit(float64(n)) {
		return 0, fmt.Errorf("%s is not a whole positive number of seconds", name)
	}
	return n, nil
}

func stringsMember(members map[string]jsontext.Value, name string) ([]string, error) {
	raw, present := members[name]
	if !present {
		return nil, fmt.Errorf("%s is missing", name)
	}
	if raw.Kind() == '"' {
		s, err := stringMember(members, name)
		return []string{s}, err
	}
	list, err := stringList(raw)
	if err != nil {
		return nil, fmt.Errorf("%s is neither a string nor a list of strings", name)
	}
	return list, nil
}

func stringList(raw jsontext.Value) ([]string, error) {
	dec := jsontext.NewDecoder(bytes.NewReader(raw))
	if tok, err := dec.ReadToken(); err != nil || tok.Kind() != '[' {
		return nil, errors.New("not a list")
	}
	var list []string
	for dec.PeekKind() != ']' {
		tok, err := dec.ReadToken()
		if err != nil || tok.Kind() != '"' {
			return nil, errors.New("not a list of strings")
		}
		list = append(list, tok.String())
	}
	return list, nil
}

func arrayElements(raw jsontext.Value) ([]jsontext.Value, error) {
	dec := jsontext.NewDecoder(bytes.NewReader(raw))
	if tok, err := dec.ReadToken(); err != nil || tok.Kind() != '[' {
		return nil, errors.New("not a list")
	}
	var elements []jsontext.Value
	for dec.PeekKind() != ']' {
		value, err := dec.ReadValue()
		if err != nil {
			return nil, jsonFault(err)
		}
		elements = append(elements, value.Clone())
	}
	return elements, nil
}
