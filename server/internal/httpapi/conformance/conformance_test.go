// Package conformance holds the clauses of RFC 8693, 7662, 9068 and 9396 as data. It checks them
// against a real engine (ledger, Redis, signatures) at every endpoint: the HTTP form, gRPC with the
// assertion in the message, gRPC with the assertion as metadata, and the Go SDK.
//
// A case in testdata/*.yaml is a sequence of steps. A step is an exchange of a root token of
// user:alice by agent:planner for the scope calendar.read at https://calendar.example. These keys
// change a step: `set` changes parameters (null removes one), `as` names the caller, `introspect`
// asks about a token instead, `save` keeps the token for later steps, and `relations` removes
// OpenFGA tuples for the case. A parameter that is a token is written as its origin: {root:
// {claims}, typ}, {saved: name}, {tampered: name}, {actor: agent}, {workload: name}, {assertion:
// agent, keep: name}, {thumbprint: agent}. {fresh: name} is a text that no other case uses.
// `exp_in` in claims counts from now.
//
// `want` compares members of the answer and claims of the token by dotted paths. "*" is any value,
// but not an absent one. Every grant must also meet what RFC 8693 §2.2.1 and RFC 9068 §2 require of
// all grants.
package conformance

import (
	"context"
	"encoding/base64"
	"encoding/json"
	"fmt"
	"maps"
	"math"
	"os"
	"path/filepath"
	"reflect"
	"slices"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/goccy/go-yaml"
	"go.uber.org/goleak"

	"deputy.example/deputy/client/delegation"
	"deputy.example/deputy/server/internal/exchange"
	"deputy.example/deputy/server/internal/exchange/exchangetest"
	"deputy.example/deputy/server/internal/httpapi"
	"deputy.example/deputy/server/internal/policy"
	"deputy.example/deputy/server/internal/rpc"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

type testCase struct {
	Clause, Name string
	Doors        []string
	Relations    struct{ Without [][3]string }
	Steps        []step
}

type step struct {
	As         any
	Set        map[string]any
	Introspect any
	Save       string
	Want       want
}

type want struct {
	Error, Reason, Field          string
	Metadata                      map[string]string
	Members, Claims, Header, Only map[string]any
	Most                          map[string]float64
	Lifetime                      float64  // exp minus iat of the token, in seconds
	Absent                        []string // claims
	AbsentMembers                 []string `yaml:"absent_members"`
	OnlyHeader                    []string `yaml:"only_header"`
	SameJTI                       string   `yaml:"same_jti"`
}

var allDoors = []string{"http", "grpc", "bearer", "sdk"}

func cases(t *testing.T) []testCase {
	t.Helper()
	files, err := filepath.Glob("testdata/*.yaml")
	if err != nil || len(files) == 0 {
		t.Fatal("no cases", err)
	}
	var all []testCase
	for _, file := range files {
		data, err := os.ReadFile(file)
		if err != nil {
			t.Fatal(err)
		}
		var some []testCase
		if err := yaml.UnmarshalWithOptions(data, &some, yaml.Strict()); err != nil {
			t.Fatalf("%s: %v", file, err)
		}
		all = append(all, some...)
	}
	return all
}

// newWorld returns a real engine for the tenant acme with one type of details, and its endpoints.
func newWorld(t *testing.T) (*exchangetest.World, map[string]door) {
	t.Helper()
	w := newEngine(t)
	return w, doors(t, rpc.For(w.Engine), w.Engine, front(w.Tenant()))
}

func front(n *exchangetest.Tenant) httpapi.Tenant {
	return httpapi.Tenant{
		Name: n.Name, Issuer: n.Issuer, JWKS: n.Keys.JWKS, AssertionAlgorithms: []string{"ES256"},
		DetailTypes: []string{"document"}, AcceptJSONSTS: true,
	}
}

func newEngine(t *testing.T) *exchangetest.World {
	t.Helper()
	w := exchangetest.New(t, exchangetest.Config{
		Tenants: []string{"acme"},
		// grpc-go's STS credential keeps no token that expires within 300 s.
		Limits: exchange.Limits{DefaultLifetime: 10 * time.Minute},
		Mapping: policy.Mapping{Details: map[string]policy.DetailRule{
			"document": {Object: "document:{identifier}", Relations: map[string]string{"read": "can_read", "write": "can_write"}},
		}},
	})
	tenant := w.Tenant()
	builder := "agent:wl/builder"
	tenant.FGA.Allow(string(exchangetest.Alice), "delegator", builder)
	tenant.FGA.Allow(builder, "holder", "scope:calendar.read")
	tenant.FGA.Allow(builder, "accessor", "resource:"+delegation.EncodeID(exchangetest.Calendar))
	for _, who := range []delegation.Principal{exchangetest.Alice, exchangetest.Planner} {
		tenant.FGA.Allow(string(who), "can_read", "document:plan")
		tenant.FGA.Allow(string(who), "can_write", "document:plan")
	}
	return w
}

func TestConformance(t *testing.T) {
	w, open := newWorld(t)
	for _, c := range cases(t) {
		for _, name := range c.through() {
			t.Run(fmt.Sprintf("%s %s/%s", c.Clause, c.Name, name), func(t *testing.T) {
				if err := c.run(t, w.Tenant(), open[name]); err != nil {
					t.Error(err)
				}
			})
		}
	}
}

// TestClausesAreCovered: every clause that applies to an exchange has a case.
func TestClausesAreCovered(t *testing.T) {
	covered := make(map[string]bool)
	for _, c := range cases(t) {
		covered[c.Clause] = true
	}
	for _, clause := range []string{
		"RFC 8693 §2.1", "RFC 8693 §2.1.1", "RFC 8693 §2.2.1", "RFC 8693 §2.2.2", "RFC 8693 §3", "RFC 8693 §4.1", "RFC 8693 §4.2",
		"RFC 8693 §4.3", "RFC 8693 §4.4", "RFC 8693 §6", "RFC 7662 §2.1", "RFC 7662 §2.2", "RFC 9068 §2.1", "RFC 9068 §2.2", "RFC 9396 §2", "RFC 9396 §5",
	} {
		if !covered[clause] {
			t.Errorf("no case for %s", clause)
		}
	}
}

func (c testCase) through() []string {
	if c.Doors == nil {
		return allDoors
	}
	return c.Doors
}

// attempt is one run of a case, with what its steps left for later steps.
type attempt struct {
	t      testing.TB
	tenant *exchangetest.Tenant
	door   door
	id     int64
	saved  map[string]string // access tokens, and assertions that cases keep
}

// attempts numbers the runs of this process, so that names can be fresh.
var attempts atomic.Int64

func (c testCase) run(t testing.TB, tenant *exchangetest.Tenant, d door) error {
	for _, r := range c.Relations.Without {
		tenant.FGA.Deny(r[0], r[1], r[2])
		defer tenant.FGA.Allow(r[0], r[1], r[2])
	}
	a := &attempt{t: t, tenant: tenant, door: d, id: attempts.Add(1), saved: make(map[string]string)}
	for i, s := range c.Steps {
		if err := a.step(t.Context(), s); err != nil {
			return fmt.Errorf("step %d: %w", i+1, err)
		}
	}
	return nil
}

func (a *attempt) step(ctx context.Context, s step) error {
	credential, err := a.credential(s.As)
	if err != nil {
		return err
	}
	if s.Introspect != nil {
		token, err := a.text(s.Introspect)
		if err != nil {
			return err
		}
		got, err := a.door.introspect(ctx, token, credential)
		if err != nil {
			return err
		}
		return a.compare(s.Want, got)
	}
	p, err := a.params(s.Set)
	if err != nil {
		return err
	}
	got, err := a.door.exchange(ctx, p, credential)
	if err != nil {
		return err
	}
	if err := repeatsNothing(got, p, credential); err != nil {
		return err
	}
	if err := a.compare(s.Want, got); err != nil {
		return err
	}
	if token, issued := got["access_token"].(string); issued && s.Save != "" {
		a.saved[s.Save] = token
	}
	return nil
}

// repeatsNothing returns an error if a refusal repeats a credential or token of the request.
func repeatsNothing(got answer, p params, credential string) error {
	if got["error"] == nil {
		return nil
	}
	said := fmt.Sprint(got)
	for _, secret := range []string{credential, p.get("subject_token"), p.get("actor_token"), p.get("client_assertion")} {
		if len(secret) > 20 && strings.Contains(said, secret[len(secret)-20:]) {
			return fmt.Errorf("the refusal repeats a secret: %s", said)
		}
	}
	return nil
}

// credential returns what the caller authenticates with. Default: the assertion of agent:planner.
func (a *attempt) credential(as any) (string, error) {
	switch as := as.(type) {
	case nil:
		return a.tenant.Assertion(a.t, exchangetest.Planner), nil
	case string:
		if as == "none" {
			return "", nil
		}
		return a.tenant.Assertion(a.t, delegation.Principal(as)), nil
	}
	return a.text(as)
}

func (a *attempt) params(set map[string]any) (params, error) {
	all := map[string]any{
		"subject_token": map[string]any{"root": map[string]any{}}, "subject_token_type": delegation.TokenTypeAccessToken,
		"audience": []any{exchangetest.Calendar}, "scope": "calendar.read",
	}
	maps.Copy(all, set)
	p := make(params)
	for name, value := range all {
		list, isList := value.([]any)
		if !isList {
			list = []any{value}
		}
		for _, item := range list {
			if item == nil {
				continue
			}
			text, err := a.text(item)
			if err != nil {
				return nil, fmt.Errorf("%s: %w", name, err)
			}
			p[name] = append(p[name], text)
		}
	}
	return p, nil
}

// text resolves a value of the data: a text as it is, or a token by its origin.
func (a *attempt) text(value any) (string, error) {
	if text, isText := value.(string); isText {
		return text, nil
	}
	from, isMap := value.(map[string]any)
	if !isMap {
		return "", fmt.Errorf("%v is neither a text nor a description", value)
	}
	for kind, of := range from {
		name, _ := of.(string)
		switch kind {
		case "root":
			return a.root(of, from["typ"])
		case "saved":
			return a.kept(name)
		case "tampered":
			token, err := a.kept(name)
			return tamper(token), err
		case "actor":
			return a.tenant.ActorToken(a.t, delegation.Principal(name)), nil
		case "workload":
			return a.tenant.Workload(a.t, name, a.tenant.Issuer), nil
		case "assertion":
			keep, _ := from["keep"].(string)
			if a.saved[keep] == "" {
				a.saved[keep] = a.tenant.Assertion(a.t, delegation.Principal(name))
			}
			return a.saved[keep], nil
		case "thumbprint":
			return a.tenant.Clients[delegation.Principal(name)].KeyID, nil
		case "fresh":
			return fmt.Sprintf("%s-%d", name, a.id), nil
		}
	}
	return "", fmt.Errorf("%v describes nothing", from)
}

func (a *attempt) kept(name string) (string, error) {
	if a.saved[name] == "" {
		return "", fmt.Errorf("nothing was saved as %q", name)
	}
	return a.saved[name], nil
}

// root makes a root token. typ, if present, is the typ of its header.
func (a *attempt) root(described, typ any) (string, error) {
	claims := make(map[string]any)
	if given, isMap := described.(map[string]any); isMap {
		maps.Copy(claims, given)
	}
	if seconds, relative := claims["exp_in"]; relative {
		delete(claims, "exp_in")
		offset, isNumber := number(seconds)
		if !isNumber {
			return "", fmt.Errorf("exp_in is %v", seconds)
		}
		claims["exp"] = time.Now().Unix() + int64(offset)
	}
	if described, isMap := claims["jti"].(map[string]any); isMap {
		fresh, err := a.text(described)
		if err != nil {
			return "", err
		}
		claims["jti"] = fresh
	}
	token := a.tenant.Root(a.t, claims)
	if typ == nil {
		return token, nil
	}
	all, err := decode(token, 1)
	if err != nil {
		return "", err
	}
	return a.tenant.IDP.Sign(a.t, typ.(string), all), nil
}

// tamper changes one character in the middle of the signature.
func tamper(token string) string {
	i := strings.LastIndexByte(token, '.') + 20
	changed := byte('A')
	if token[i] == changed {
		changed = 'B'
	}
	return token[:i] + string(changed) + token[i+1:]
}

func (a *attempt) compare(w want, got answer) error {
	if w.Error != "" {
		return compareRefusal(w, got)
	}
	if got["error"] != nil {
		return fmt.Errorf("refused: %v", got)
	}
	if w.Only != nil && !reflect.DeepEqual(map[string]any(got), plain(w.Only)) {
		return fmt.Errorf("%v, want only %v", got, w.Only)
	}
	if err := a.members("member", got, w.Members, w.AbsentMembers); err != nil {
		return err
	}
	for name, most := range w.Most {
		if n, isNumber := number(got[name]); !isNumber || n > most {
			return fmt.Errorf("%s is %v, want at most %v", name, got[name], most)
		}
	}
	token, issued := got["access_token"].(string)
	if !issued {
		return nil
	}
	header, err := decode(token, 0)
	if err != nil {
		return err
	}
	claims, err := decode(token, 1)
	if err != nil {
		return err
	}
	if err := everyGrant(got, header, claims); err != nil {
		return err
	}
	if names := slices.Sorted(maps.Keys(header)); w.OnlyHeader != nil && !slices.Equal(names, w.OnlyHeader) {
		return fmt.Errorf("header members %v", names)
	}
	iat, _ := number(claims["iat"])
	exp, _ := number(claims["exp"])
	if w.Lifetime != 0 && exp-iat != w.Lifetime {
		return fmt.Errorf("the token lives %v s, want %v", exp-iat, w.Lifetime)
	}
	if w.SameJTI != "" {
		earlier, err := decode(a.saved[w.SameJTI], 1)
		if err != nil || earlier["jti"] != claims["jti"] {
			return fmt.Errorf("jti %v, want %v (%v)", claims["jti"], earlier["jti"], err)
		}
	}
	if err := a.members("header", header, w.Header, nil); err != nil {
		return err
	}
	return a.members("claim", claims, w.Claims, w.Absent)
}

func compareRefusal(w want, got answer) error {
	if got["error"] != w.Error || got["reason"] != w.Reason {
		return fmt.Errorf("%v, want %s (%s)", got, w.Error, w.Reason)
	}
	if field, _ := got["field"].(string); w.Field != "" && field != w.Field {
		return fmt.Errorf("field %q, want %q", field, w.Field)
	}
	if w.Metadata != nil && !reflect.DeepEqual(got["metadata"], plain(w.Metadata)) {
		return fmt.Errorf("metadata %v, want %v", got["metadata"], w.Metadata)
	}
	return nil
}

// everyGrant checks what RFC 8693 §2.2.1, RFC 6749 §5.1 and RFC 9068 §2 require of all grants, and
// that answer and token agree.
func everyGrant(got answer, header, claims map[string]any) error {
	for _, name := range []string{"issued_token_type", "token_type"} {
		if text, isText := got[name].(string); !isText || text == "" {
			return fmt.Errorf("%s is %v", name, got[name])
		}
	}
	scope, isText := got["scope"].(string)
	if claimed, _ := claims["scope"].(string); !isText || scope != claimed {
		return fmt.Errorf("scope %v in the answer, %v in the token", got["scope"], claims["scope"])
	}
	expires, _ := number(got["expires_in"])
	exp, _ := number(claims["exp"])
	if left := exp - float64(time.Now().Unix()); expires <= 0 || math.Abs(left-expires) > 3 {
		return fmt.Errorf("expires_in %v, exp in %v", got["expires_in"], left)
	}
	if got["jti"] != claims["jti"] || got["txn"] != claims["txn"] {
		return fmt.Errorf("jti and txn differ: %v, %v", got, claims)
	}
	if !reflect.DeepEqual(got["authorization_details"], claims["authorization_details"]) {
		return fmt.Errorf("authorization_details %v in the answer, %v in the token", got["authorization_details"], claims["authorization_details"])
	}
	if got["refresh_token"] != nil || got["id_token"] != nil {
		return fmt.Errorf("more than one token: %v", got)
	}
	if header["typ"] != "at+jwt" || claims["act"] == nil {
		return fmt.Errorf("header %v, claims %v", header, claims)
	}
	return nil
}

// members compares the values at dotted paths.
func (a *attempt) members(what string, got, want map[string]any, absent []string) error {
	for path, value := range want {
		found := at(got, path)
		if value == "*" {
			if found == nil || found == "" {
				return fmt.Errorf("%s %s is not there: %v", what, path, got)
			}
			continue
		}
		if described, isMap := value.(map[string]any); isMap {
			text, err := a.text(described)
			if err != nil {
				return err
			}
			value = text
		}
		if !reflect.DeepEqual(found, plain(value)) {
			return fmt.Errorf("%s %s is %v, want %v", what, path, found, value)
		}
	}
	for _, path := range absent {
		if found := at(got, path); found != nil {
			return fmt.Errorf("%s %s is there: %v", what, path, found)
		}
	}
	return nil
}

func at(object map[string]any, path string) any {
	if whole, there := object[path]; there {
		return whole
	}
	first, rest, nested := strings.Cut(path, ".")
	inner, isObject := object[first].(map[string]any)
	if !nested || !isObject {
		return nil
	}
	return at(inner, rest)
}

// decode reads a part of a token without a check of the signature. The engine has just made it, and
// an introspection step checks it.
func decode(token string, part int) (map[string]any, error) {
	parts := strings.Split(token, ".")
	if len(parts) != 3 {
		return nil, fmt.Errorf("not a compact JWS")
	}
	raw, err := base64.RawURLEncoding.DecodeString(parts[part])
	if err != nil {
		return nil, err
	}
	object := make(map[string]any)
	return object, json.Unmarshal(raw, &object)
}

func number(value any) (float64, bool) {
	n, isNumber := plain(value).(float64)
	return n, isNumber
}
