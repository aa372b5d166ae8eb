package httpapi

import (
	"encoding/json"
	"fmt"
	"io"
	"maps"
	"net/http"
	"net/http/httptest"
	"net/url"
	"os"
	"reflect"
	"slices"
	"strconv"
	"strings"
	"testing"

	"github.com/goccy/go-yaml"

	"deputy.example/deputy/client/delegation"
	"deputy.example/deputy/server/internal/exchange"
)

// doorCase is one case of testdata/token.yaml, which explains the fields.
type doorCase struct {
	Name, Clause, Method, Query, Form, Gate string
	Body                                    *string
	Headers                                 map[string]*string
	Without                                 []string
	Fill                                    int
	Chunked, STS                            bool
	Repeat                                  struct {
		Pair  string
		Times int
	}
	Want struct {
		Status               int
		Error, Reason, Field string
		Headers              map[string]string
		Call                 map[string]any
	}
}

func doorCases(t testing.TB) []doorCase {
	t.Helper()
	data, err := os.ReadFile("testdata/token.yaml")
	if err != nil {
		t.Fatal(err)
	}
	var cases []doorCase
	if err := yaml.UnmarshalWithOptions(data, &cases, yaml.Strict()); err != nil {
		t.Fatal(err)
	}
	return cases
}

func (c doorCase) request() *http.Request {
	form := map[string]string{
		"grant_type": delegation.GrantTypeTokenExchange, "subject_token": "subject", "subject_token_type": delegation.TokenTypeAccessToken,
	}
	for _, name := range c.Without {
		delete(form, name)
	}
	var pairs []string
	for _, name := range slices.Sorted(maps.Keys(form)) {
		pairs = append(pairs, name+"="+url.QueryEscape(form[name]))
	}
	if c.Form != "" {
		pairs = append(pairs, strings.ReplaceAll(c.Form, " &", "&"))
	}
	for range c.Repeat.Times {
		pairs = append(pairs, c.Repeat.Pair)
	}
	body := strings.Join(pairs, "&")
	if c.Fill > 0 {
		body += "&x=" + strings.Repeat("y", c.Fill-len(body)-3)
	}
	if c.Body != nil {
		body = *c.Body
	}
	var reader io.Reader = strings.NewReader(body)
	if c.Chunked {
		reader = io.MultiReader(reader) // a type whose length the client cannot find out
	}
	method := c.Method
	if method == "" {
		method = http.MethodPost
	}
	r := httptest.NewRequest(method, "/t/acme/oauth2/token"+c.Query, reader)
	r.Header.Set("Content-Type", "application/x-www-form-urlencoded")
	for name, value := range c.Headers {
		r.Header.Del(name)
		if value != nil {
			// A line is one occurrence of a repeated header.
			for line := range strings.SplitSeq(*value, "\n") {
				r.Header.Add(name, line)
			}
		}
	}
	return r
}

func (c doorCase) config() Config {
	all := tenants()
	all[1].AcceptJSONSTS = c.STS
	return Config{Tenants: all}
}

// run returns what is wrong with the answer, or "".
func (c doorCase) run(h http.Handler, engine *script) string {
	w := httptest.NewRecorder()
	h.ServeHTTP(w, c.request())
	var got map[string]any
	if err := json.Unmarshal(w.Body.Bytes(), &got); err != nil {
		return fmt.Sprintf("%d with a body that is not JSON: %q", w.Code, w.Body)
	}
	for name, want := range map[string]string{"Cache-Control": "no-store", "Pragma": "no-cache", "X-Content-Type-Options": "nosniff", "Content-Type": "application/json"} {
		if w.Header().Get(name) != want {
			return fmt.Sprintf("%s: %q, want %q", name, w.Header().Get(name), want)
		}
	}
	for name, want := range c.Want.Headers {
		if w.Header().Get(name) != want {
			return fmt.Sprintf("%s: %q, want %q", name, w.Header().Get(name), want)
		}
	}
	if c.Want.Error != "" {
		if w.Code != c.Want.Status || got["error"] != c.Want.Error || got["reason"] != c.Want.Reason {
			return fmt.Sprintf("%d %v", w.Code, got)
		}
		if c.Want.Field != "" && got["field"] != c.Want.Field {
			return fmt.Sprintf("field %v, want %s", got["field"], c.Want.Field)
		}
		if len(engine.calls) > 0 {
			return "the call reached the engine"
		}
		return ""
	}
	if w.Code != http.StatusOK || len(engine.calls) != 1 {
		return fmt.Sprintf("%d %v, %d calls", w.Code, got, len(engine.calls))
	}
	return compareCall(engine.calls[0], c.Want.Call)
}

func compareCall(call exchange.Call, want map[string]any) string {
	for path, value := range want {
		wanted, err := json.Marshal(value)
		if err != nil {
			return err.Error()
		}
		got, err := json.Marshal(memberAt(reflect.ValueOf(call), strings.Split(path, ".")).Interface())
		if err != nil {
			return err.Error()
		}
		var a, b any
		if json.Unmarshal(wanted, &a) != nil || json.Unmarshal(got, &b) != nil || !reflect.DeepEqual(a, b) {
			return fmt.Sprintf("%s is %s, want %s", path, got, wanted)
		}
	}
	return ""
}

func memberAt(v reflect.Value, path []string) reflect.Value {
	for _, step := range path {
		if i, err := strconv.Atoi(step); err == nil {
			v = v.Index(i)
		} else {
			v = v.FieldByName(step)
		}
	}
	return v
}

func TestTokenEndpoint(t *testing.T) {
	for _, c := range doorCases(t) {
		t.Run(c.Name, func(t *testing.T) {
			engine := granting(t)
			config := c.config()
			config.Engine = engine
			if wrong := c.run(newHandler(t, config), engine); wrong != "" {
				t.Errorf("%s: %s", c.Clause, wrong)
			}
		})
	}
}

// TestEveryGateKeepsSomethingOut is the negative control: without its gate a case must fail, and
// every gate has such a case.
func TestEveryGateKeepsSomethingOut(t *testing.T) {
	guarded := make(map[string]int)
	for _, c := range doorCases(t) {
		if c.Gate == "" {
			continue
		}
		engine := granting(t)
		config := c.config()
		config.Engine = engine
		h := newHandler(t, config)
		ep := h.endpoints["/t/acme/oauth2/token"]
		before := len(ep.gates)
		ep.gates = slices.DeleteFunc(ep.gates, func(g gate) bool { return g.name == c.Gate })
		if len(ep.gates) != before-1 {
			t.Fatalf("%s: no gate %q", c.Name, c.Gate)
		}
		if c.run(h, engine) == "" {
			t.Errorf("%s: passes without the gate %q too", c.Name, c.Gate)
		}
		guarded[c.Gate]++
	}
	for _, g := range newHandler(t, Config{Engine: granting(t)}).endpoints["/t/acme/oauth2/token"].gates {
		if guarded[g.name] == 0 {
			t.Errorf("no case fails without the gate %q", g.name)
		}
	}
}

// TestUnsupportedParameters: every known parameter without support is refused. As an unknown
// parameter it would not be refused.
func TestUnsupportedParameters(t *testing.T) {
	count := 0
	for name, kind := range tokenParameters {
		if kind != unsupported {
			continue
		}
		count++
		form := "grant_type=" + url.QueryEscape(delegation.GrantTypeTokenExchange) + "&" + name + "=x"
		p, err := parseForm(form, tokenParameters)
		if err != nil {
			t.Fatal(err)
		}
		_, err = newCall(p)
		if refusal := delegation.AsError(err); refusal == nil || refusal.Reason != delegation.ParameterUnsupported || refusal.Field != name {
			t.Errorf("%s: %v", name, err)
		}
		fewer := maps.Clone(tokenParameters)
		delete(fewer, name)
		p, err = parseForm(form, fewer)
		if err != nil {
			t.Fatal(err)
		}
		if _, err := newCall(p); err != nil {
			t.Errorf("%s is refused without being known: %v", name, err)
		}
	}
	if count == 0 {
		t.Error("no parameter is unsupported")
	}
}
