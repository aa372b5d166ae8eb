package httpapi

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"maps"
	"net/url"
	"reflect"
	"slices"
	"strings"
	"testing"

	"deputy.example/deputy/client/delegation"
)

type reader func(string, map[string]arity) (parameters, error)

// oneReading checks a property of both parsers. Another parser reads an accepted body in the same
// way. The result holds no single-valued parameter twice and no empty value, and is the same after
// encoding and parsing again. read is the other parser and returns all values of each name, in
// order.
func oneReading(body string, parse reader, read func(string) (url.Values, error)) error {
	p, err := parse(body, tokenParameters)
	if err != nil {
		return nil
	}
	all, err := read(body)
	if err != nil {
		return fmt.Errorf("another parser refuses it: %w", err)
	}
	want := make(parameters)
	for name, values := range all {
		kind := tokenParameters[name]
		if kind == 0 {
			continue
		}
		if kind != repeatable && len(values) > 1 {
			return fmt.Errorf("%s is accepted %d times", name, len(values))
		}
		if values = slices.DeleteFunc(values, func(s string) bool { return s == "" }); len(values) > 0 {
			want[name] = values
		}
	}
	if !reflect.DeepEqual(p, want) {
		return fmt.Errorf("read as %q, by another parser as %q", p, want)
	}
	again, err := parseForm(url.Values(p).Encode(), tokenParameters)
	if err != nil || !reflect.DeepEqual(again, p) {
		return fmt.Errorf("%q becomes %q, %v", p, again, err)
	}
	return nil
}

func FuzzForm(f *testing.F) {
	for _, seed := range []string{
		"", "&", "scope=a", "scope=a&scope=b", "audience=a&audience=b", "scope=%61+b%25", "scope=%", "=", "scope", "a;b=c",
		"grant_type=urn%3Aietf%3Aparams%3Aoauth%3Agrant-type%3Atoken-exchange&subject_token=x&subject_token_type=y&max_depth=0",
	} {
		f.Add(seed)
	}
	f.Fuzz(func(t *testing.T, body string) {
		if err := oneReading(body, parseForm, url.ParseQuery); err != nil {
			t.Errorf("%q: %v", body, err)
		}
		if p, err := parseForm(body, tokenParameters); err == nil {
			_, _ = newCall(p) // it must not panic, whatever it returns
		}
	})
}

func FuzzSTS(f *testing.F) {
	for _, seed := range []string{
		`{}`, `{"scope":"a"}`, `{"scope":"a","scope":"b"}`, `{"scope":"a","sc\u006fpe":"b"}`, `{"scope":["a"]}`, `{"scope":""}`,
		`{"audience":"a","resource":"b"} `, `{"scope":"\ud800"}`, `[]`, `{"scope":{"scope":"a"}}`, `{"colour":"red"}`,
	} {
		f.Add(seed)
	}
	f.Fuzz(func(t *testing.T, body string) {
		if err := oneReading(body, parseSTS, readJSON); err != nil {
			t.Errorf("%q: %v", body, err)
		}
	})
}

// readJSON reads a flat object with the standard library's decoder, and keeps duplicates.
func readJSON(body string) (url.Values, error) {
	dec := json.NewDecoder(strings.NewReader(body))
	if open, err := dec.Token(); err != nil || open != json.Delim('{') {
		return nil, errors.New("not an object")
	}
	values := make(url.Values)
	for dec.More() {
		name, err := dec.Token()
		if err != nil {
			return nil, err
		}
		value, err := dec.Token()
		if err != nil {
			return nil, err
		}
		text, isText := value.(string)
		if !isText {
			return nil, errors.New("not a string")
		}
		values.Add(name.(string), text)
	}
	if _, err := dec.Token(); err != nil {
		return nil, err
	}
	if _, err := dec.Token(); !errors.Is(err, io.EOF) {
		return nil, errors.New("something behind it")
	}
	return values, nil
}

// TestOneReadingFindsLenientParsers is the negative control: the property detects parsers with
// common leniencies.
func TestOneReadingFindsLenientParsers(t *testing.T) {
	firstWins := func(body string, known map[string]arity) (parameters, error) {
		values, _ := url.ParseQuery(body) // keeps what it read before an error
		p := make(parameters)
		for name, list := range values {
			if known[name] == single && list[0] != "" {
				p[name] = list[:1]
			}
		}
		return p, nil
	}
	for _, body := range []string{"scope=a&scope=b", "scope=a&subject_token=%", "audience=a", "scope=%ff"} {
		if oneReading(body, firstWins, url.ParseQuery) == nil {
			t.Errorf("%q passes", body)
		}
	}
	lastWins := func(body string, _ map[string]arity) (parameters, error) {
		flat := make(map[string]string)
		if err := json.Unmarshal([]byte(body), &flat); err != nil {
			return nil, err
		}
		p := make(parameters)
		for name, value := range flat {
			p[name] = []string{value}
		}
		return p, nil
	}
	for _, body := range []string{`{"scope":"a","scope":"b"}`, `{"colour":"red"}`, `{"scope":null}`} {
		if oneReading(body, lastWins, readJSON) == nil {
			t.Errorf("%s passes", body)
		}
	}
}

// TestParametersAreDocumented: the documentation holds exactly the parameters of a form and the
// members of a JSON body.
func TestParametersAreDocumented(t *testing.T) {
	rows := documentedParameters(t, "## Token endpoint")
	for _, name := range slices.Sorted(maps.Keys(tokenParameters)) {
		if !rows[name] {
			t.Errorf("docs/http-api.md has no row for %s", name)
		}
		delete(rows, name)
	}
	for name := range rows {
		t.Errorf("docs/http-api.md documents %s, which the endpoint does not know", name)
	}
}

// TestFormBounds: the bound on parameters counts unknown names too.
func TestFormBounds(t *testing.T) {
	if _, err := parseForm(strings.Repeat("x=y&", maxParameters), tokenParameters); err != nil {
		t.Errorf("%d parameters: %v", maxParameters, err)
	}
	_, err := parseForm(strings.Repeat("x=y&", maxParameters+1), tokenParameters)
	if refusal := delegation.AsError(err); refusal == nil || refusal.Reason != delegation.RequestTooLarge {
		t.Errorf("%d parameters: %v", maxParameters+1, err)
	}
}
