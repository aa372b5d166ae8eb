package delegation

import (
	"errors"
	"fmt"
	"math"
	"slices"
	"strconv"
	"strings"

	"github.com/go-json-experiment/json/jsontext"
)

// maxDetails is the maximum number of elements in one authorization_details array.
const maxDetails = 32

// Detail is one element of authorization_details (RFC 9396 §2) in canonical JSON (RFC 8785), so
// equal details are equal strings.
type Detail struct {
	canonical string
	members   map[string]value    // canonical as well
	lists     map[string][]string // the list fields, sorted
}

// ParseDetails reads an authorization_details array strictly: each element is an object with a
// type, and the common fields of RFC 9396 §2.2 have their common form.
func ParseDetails(data []byte) ([]Detail, error) {
	// one level less, because a token holds the details inside the claims
	v, err := new(reader).value(data, maxJSONDepth-1)
	if err != nil {
		return nil, errors.New("authorization_details is not one strict JSON array")
	}
	return readDetails(v)
}

func readDetails(v value) ([]Detail, error) {
	if v.kind() != '[' {
		return nil, errors.New("authorization_details is not a JSON array")
	}
	elements := slices.Collect(v.within())
	if len(elements) == 0 || len(elements) > maxDetails {
		return nil, fmt.Errorf("authorization_details has %d elements, want 1 to %d", len(elements), maxDetails)
	}
	details := make([]Detail, 0, len(elements))
	for i, element := range elements {
		d, err := readDetail(element)
		if err != nil {
			return nil, fmt.Errorf("authorization_details[%d]: %w", i, err)
		}
		details = append(details, d)
	}
	return details, nil
}

func readDetail(v value) (Detail, error) {
	if typ, err := stringMember(v, "type"); err != nil || typ == "" {
		return Detail{}, errors.New("type is missing or not a string with content")
	}
	lists := make(map[string][]string)
	for m := range v.within() {
		name := m[0].name
		if !isListField(name) {
			continue
		}
		list, isList := m.list()
		if !isList || len(list) == 0 {
			return Detail{}, fmt.Errorf("%s is not a list of strings with content: leave it out instead", name)
		}
		slices.Sort(list)
		lists[name] = list
	}
	// RFC 8785 would round such numbers. The element would then have another meaning, such as
	// another account.
	if slices.ContainsFunc(v, func(n node) bool { return isNumber(n.text) && !isExact(n.text) }) {
		return Detail{}, errors.New("a number has more digits than readers agree on: write it as a string")
	}
	canonical := jsontext.Value(v.raw())
	if err := canonical.Canonicalize(); err != nil {
		return Detail{}, errors.New("malformed JSON")
	}
	if len(canonical) > MaxTokenBytes { // short numbers such as 1e20 become longer
		return Detail{}, fmt.Errorf("it is longer than %d bytes", MaxTokenBytes)
	}
	again, err := new(reader).object(canonical)
	if err != nil {
		return Detail{}, err
	}
	members := make(map[string]value)
	for m := range again.within() {
		members[m[0].name] = m
	}
	return Detail{canonical: again.raw(), members: members, lists: lists}, nil
}

func isNumber(text string) bool { return text[0] == '-' || '0' <= text[0] && text[0] <= '9' }

// isExact reports whether every reader takes the number for the same double. Numbers of up to
// fifteen significant digits and integers up to 2^53 are exact.
func isExact(number string) bool {
	f, err := strconv.ParseFloat(number, 64)
	mantissa, _, _ := strings.Cut(strings.ToLower(number), "e")
	digits := strings.Trim(strings.NewReplacer("-", "", ".", "").Replace(mantissa), "0")
	const smallest = 0x1p-1022 // doubles below it lose digits
	switch {
	case err != nil || digits != "" && math.Abs(f) < smallest:
		return false
	case len(digits) <= 15:
		return true
	}
	n, err := strconv.ParseInt(number, 10, 64)
	return err == nil && -1<<53 <= n && n <= 1<<53
}

// isListField reports whether a field is one of the common fields of RFC 9396 §2.2 that list
// alternatives: fewer is narrower.
func isListField(name string) bool {
	return name == "locations" || name == "actions" || name == "datatypes" || name == "privileges"
}

// Type is the element's type, never "".
func (d Detail) Type() string { s, _ := d.Text("type"); return s }

// Text returns a string field such as identifier, and whether it is present and a string.
func (d Detail) Text(field string) (string, bool) { return d.members[field].str() }

// List returns a list field such as actions, sorted, or nil if it is absent. Callers must not
// change it.
func (d Detail) List(field string) []string { return d.lists[field] }

// Fields returns the names of the element's members, sorted.
func (d Detail) Fields() []string {
	names := make([]string, 0, len(d.members))
	for name := range d.members {
		names = append(names, name)
	}
	slices.Sort(names)
	return names
}

// Narrows reports whether d allows nothing that wide does not allow. Both must have the same
// members, each list field must be a subset, and every other member must be equal. A member that
// only one of them has is never a narrowing: only the resource knows what its absence means, and
// absent must not come to mean all.
func (d Detail) Narrows(wide Detail) bool {
	if len(d.members) != len(wide.members) {
		return false
	}
	for name, own := range d.members {
		allowed, present := wide.members[name]
		switch {
		case !present:
			return false
		case isListField(name):
			if !isSubset(d.lists[name], wide.lists[name]) {
				return false
			}
		case own.raw() != allowed.raw():
			return false
		}
	}
	return true
}

// isSubset compares sorted lists. Callers choose their length, so it walks each list once.
func isSubset(list, of []string) bool {
	for _, s := range list {
		for len(of) > 0 && of[0] < s {
			of = of[1:]
		}
		if len(of) == 0 || of[0] != s {
			return false
		}
	}
	return true
}

// NarrowsAny reports whether d narrows at least one of the given details.
func (d Detail) NarrowsAny(wide []Detail) bool { return slices.ContainsFunc(wide, d.Narrows) }

// String returns the canonical JSON.
func (d Detail) String() string { return d.canonical }

// MarshalJSON writes the canonical JSON. The zero Detail has none and is an error.
func (d Detail) MarshalJSON() ([]byte, error) {
	if d.canonical == "" {
		return nil, errNoDetail
	}
	return []byte(d.canonical), nil
}

var errNoDetail = errors.New("delegation: the zero Detail has no JSON form")
