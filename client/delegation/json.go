package delegation

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"iter"
	"strconv"
	"strings"

	"github.com/go-json-experiment/json/jsontext"
)

// maxJSONDepth leaves room for the deepest actor chain inside a claims object.
const maxJSONDepth = MaxChainDepth + 8

// value is a JSON value that was read strictly: its own node, then all nodes within it in the order
// in which they begin. The absent value is empty. All methods answer from the one pass that made
// the value.
type value []node

type node struct {
	name  string // of a member of an object
	text  string // the JSON text as it was written
	nodes int    // number of nodes of the value, its own included
}

// reader makes values of JSON texts. It may be used for one text after another, which saves memory.
type reader struct {
	dec   jsontext.Decoder
	text  string // the whole text
	nodes []node
}

// value reads one JSON value in a single strict pass: valid UTF-8, no duplicate member at any
// level, at most depth levels, no data behind it. Member names keep their exact case. The value
// shares memory with a copy of the data.
func (r *reader) value(data []byte, depth int) (value, error) {
	const usual = 12 // bytes per node of a typical token
	r.dec.Reset(bytes.NewBuffer(data))
	r.text, r.nodes = string(data), make([]node, 0, 1+len(data)/usual)
	if err := r.read("", depth); err != nil {
		return nil, err
	}
	if _, err := r.dec.ReadToken(); !errors.Is(err, io.EOF) {
		return nil, errors.New("data behind the JSON value")
	}
	return r.nodes, nil
}

func (r *reader) object(data []byte) (value, error) {
	v, err := r.value(data, maxJSONDepth)
	if err == nil && v.kind() != '{' {
		return nil, errors.New("not a JSON object")
	}
	return v, err
}

// read appends the next value. It descends at most depth levels, whatever the data holds.
func (r *reader) read(name string, depth int) error {
	at := len(r.nodes)
	r.nodes = append(r.nodes, node{name: name})
	open := r.dec.PeekKind()
	if open != '{' && open != '[' {
		text, err := r.scalar()
		r.nodes[at].text, r.nodes[at].nodes = text, 1
		return err
	}
	if depth == 0 {
		return errors.New("JSON is nested too deep")
	}
	if _, err := r.dec.ReadToken(); err != nil {
		return jsonFault(err)
	}
	begin := r.dec.InputOffset() - 1
	for next := r.dec.PeekKind(); next != '}' && next != ']'; next = r.dec.PeekKind() {
		member := ""
		if open == '{' {
			if next != '"' { // the decoder must not look for a name in the depths either
				return errors.New("malformed JSON")
			}
			quoted, err := r.scalar()
			if err != nil {
				return err
			}
			member = unquoted(quoted)
		}
		if err := r.read(member, depth-1); err != nil {
			return err
		}
	}
	if _, err := r.dec.ReadToken(); err != nil {
		return jsonFault(err)
	}
	r.nodes[at].text, r.nodes[at].nodes = r.text[begin:r.dec.InputOffset()], len(r.nodes)-at
	return nil
}

// scalar reads a value that holds no other value, or a member's name.
func (r *reader) scalar() (string, error) {
	raw, err := r.dec.ReadValue()
	if err != nil {
		return "", jsonFault(err)
	}
	end := r.dec.InputOffset()
	return r.text[end-int64(len(raw)) : end], nil
}

// jsonFault names the broken rule without repeating the data, which may hold a secret.
func jsonFault(err error) error {
	if errors.Is(err, jsontext.ErrDuplicateName) {
		return errors.New("JSON object has a duplicate member")
	}
	return errors.New("malformed JSON")
}

// unquoted is the content of a string that the decoder has accepted.
func unquoted(text string) string {
	if !strings.Contains(text, `\`) {
		return text[1 : len(text)-1]
	}
	s, _ := jsontext.AppendUnquote(nil, text)
	return string(s)
}

// kind is the first byte of the JSON text, which distinguishes the kinds, or 0 where the value is
// absent.
func (v value) kind() byte {
	if len(v) == 0 {
		return 0
	}
	return v[0].text[0]
}

func (v value) raw() string { return v[0].text }

// within iterates over the members of an object or the elements of an array.
func (v value) within() iter.Seq[value] {
	return func(yield func(value) bool) {
		for i := 1; i < len(v); i += v[i].nodes {
			if !yield(v[i : i+v[i].nodes]) {
				return
			}
		}
	}
}

func (v value) count() int {
	n := 0
	for range v.within() {
		n++
	}
	return n
}

// member finds a member by its exact name. A value that is not an object has none.
func (v value) member(name string) value {
	if v.kind() == '{' {
		for m := range v.within() {
			if m[0].name == name {
				return m
			}
		}
	}
	return nil
}

func (v value) str() (s string, isText bool) {
	if v.kind() != '"' {
		return "", false
	}
	return unquoted(v.raw()), true
}

// list reads an array of strings.
func (v value) list() (list []string, isList bool) {
	for element := range v.within() {
		s, isText := element.str()
		if !isText {
			return nil, false
		}
		list = append(list, s)
	}
	return list, v.kind() == '['
}

func stringMember(v value, name string) (string, error) {
	m := v.member(name)
	if m == nil {
		return "", fmt.Errorf("%s is missing", name)
	}
	s, isText := m.str()
	if !isText {
		return "", fmt.Errorf("%s is not a string", name)
	}
	return s, nil
}

// filledMember reads a string that may be absent but not empty.
func filledMember(v value, name string) (string, error) {
	m := v.member(name)
	s, isText := m.str()
	if m != nil && (!isText || s == "") {
		return "", fmt.Errorf("%s is not a string with content", name)
	}
	return s, nil
}

func stringsMember(v value, name string) ([]string, error) {
	m := v.member(name)
	if m == nil {
		return nil, fmt.Errorf("%s is missing", name)
	}
	if s, isText := m.str(); isText {
		return []string{s}, nil
	}
	list, isList := m.list()
	if !isList {
		return nil, fmt.Errorf("%s is neither a string nor a list of strings", name)
	}
	return list, nil
}

// secondsMember reads a NumericDate as this project accepts it: a whole, positive number of seconds
// that a float64 holds exactly, without fraction or exponent. An absent member is 0.
func secondsMember(v value, name string) (int64, error) {
	m := v.member(name)
	if m == nil {
		return 0, nil
	}
	n, err := strconv.ParseInt(m.raw(), 10, 64)
	if err != nil || n <= 0 || n > 1<<53 {
		return 0, fmt.Errorf("%s is not a whole positive number of seconds", name)
	}
	return n, nil
}

// countMember reads a whole number.
func countMember(v value, name string) (int, error) {
	m := v.member(name)
	if m == nil {
		return 0, fmt.Errorf("%s is missing", name)
	}
	n, err := strconv.Atoi(m.raw())
	if err != nil {
		return 0, fmt.Errorf("%s is not a whole number", name)
	}
	return n, nil
}

func principalMember(v value, name string) (Principal, error) {
	s, err := stringMember(v, name)
	if err != nil {
		return "", err
	}
	p, err := ParsePrincipal(s)
	if err != nil {
		return "", fmt.Errorf("%s %w", name, err)
	}
	return p, nil
}
